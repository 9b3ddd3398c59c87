"""What Parquet footers say: rows, row groups and schema of each file.

Each footer is read once, at planning. A file whose footer cannot be read is set aside with its
reason; the rest goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.fs as pa_fs
from numpy.typing import NDArray

from ray_mlc.corpus.listing import InputFile, Listing, file_path
from ray_mlc.corpus.reading import open_parquet, refuse_local_stores_fault
from ray_mlc.errors import first_line
from ray_mlc.storage import filesystem_of

FOOTER_THREADS = 32
"""Footers read at once: each is a few small reads that mostly wait for storage."""


@dataclass(frozen=True)
class Footer:
    """One file's footer, reduced to what planning needs."""

    file: InputFile
    schema: pa.Schema | None = None
    """Arrow schema; None if the footer could not be read."""
    group_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows of each row group."""
    group_bytes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Uncompressed bytes of each row group, all its columns included, as the footer says."""
    fault: str | None = None
    """Why the file is set aside: `footer` or `schema`, and a sentence."""

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return int(self.group_rows.sum())


def read_footers(
    listing: Listing, *, progress: Callable[[int], None] | None = None
) -> list[Footer]:
    """Read the footer of every file, several at a time.

    Args:
        listing: Files to look at.
        progress: Called with 1 after each file.

    Returns:
        One footer per file in the listing's order; unreadable ones carry a `fault`.

    Raises:
        StorageError: If the storage fails; a remote one for longer than reads are repeated.
    """
    filesystem, root = filesystem_of(listing.root)
    cancelled = threading.Event()

    def read(file: InputFile) -> Footer:
        path = file_path(listing.root, file.source)
        footer = _read_footer(filesystem, path, file, cancelled, root=root)
        if progress is not None:
            progress(1)
        return footer

    with ThreadPoolExecutor(max_workers=min(FOOTER_THREADS, len(listing.files) or 1)) as pool:
        try:
            return list(pool.map(read, listing.files))
        except BaseException:
            cancelled.set()  # leaving the block waits for reads that go on
            raise


class KnownFooters:
    """Footers that a command has read: of several runs over one corpus each is read once."""

    def __init__(self) -> None:
        """None is known yet."""
        self._known: dict[InputFile, Footer] = {}

    def read(
        self, listing: Listing, *, progress: Callable[[int], None] | None = None
    ) -> list[Footer]:
        """As `read_footers`."""
        missing = tuple(file for file in listing.files if file not in self._known)
        wanted = replace(listing, files=missing)
        self._known |= {footer.file: footer for footer in read_footers(wanted, progress=progress)}
        return [self._known[file] for file in listing.files]


def _read_footer(
    filesystem: pa_fs.FileSystem,
    path: str,
    file: InputFile,
    cancelled: threading.Event,
    *,
    root: str,
) -> Footer:
    try:
        with open_parquet(filesystem, path, cancelled=cancelled) as opened:
            metadata = opened.metadata
        schema = metadata.schema.to_arrow_schema().remove_metadata()
    except (OSError, pa.ArrowException, ValueError) as error:
        refuse_local_stores_fault(filesystem, root, path, error)
        if file.size == 0:
            return Footer(file, fault="footer: the file has no bytes")
        return Footer(file, fault=f"footer: {first_line(error)}")
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    return Footer(
        file,
        schema,
        np.array([group.num_rows for group in groups], np.int64),
        # not the sum over the columns that are read: asked for one column, Arrow 26 ends the
        # process if a damaged footer contradicts itself there
        np.array([max(0, group.total_byte_size) for group in groups], np.int64),
    )
