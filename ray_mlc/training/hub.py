"""Labelled rows of a data set on the Hugging Face hub, streamed through `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from ray_mlc.corpus.fields import column_at, field_paths, top_column
from ray_mlc.errors import DataError, first_line
from ray_mlc.storage import local_path
from ray_mlc.training.archives import split_archive
from ray_mlc.training.formats import PIECE_ROWS
from ray_mlc.training.pieces import (
    Columns,
    Piece,
    one_array,
    wanted_columns,
)
from ray_mlc.training.sources import names_a_file

PARQUET_REVISION = "refs/convert/parquet"
"""Where the hub keeps its own Parquet conversion of a data set."""
_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")


def is_hub_id(source: str) -> bool:
    """Whether `source` can only be a data set of the hub: no file, and shaped like an id."""
    path = local_path(source)
    if path is None or path.exists() or names_a_file(source) or split_archive(source):
        return False
    return _HUB_ID.fullmatch(source) is not None


class HubData:
    """A split of a data set, opened; rows come with `pieces`."""

    def __init__(self, source: str, *, split: str | None, subset: str | None) -> None:
        """Look the data set up.

        A data set that is a script, which `datasets` no longer runs, is read from the hub's own
        conversion to Parquet, where it has one.

        Raises:
            DataError: If it cannot be reached or read, or has several splits and none is named.
        """
        self._source = source
        with _explained(source):
            self._data: Any = _load(source, split=split, subset=subset)
            schema = _schema_of(self._data)
        self.columns = field_paths(schema)
        """Names of columns, and of fields of structs as `text.en`."""
        self._schema = schema
        self._metadata: Mapping[bytes, bytes] = schema.metadata or {}

    def pieces(self, columns: Columns) -> Iterator[Piece]:
        """Read the rows in order; only the columns asked for are fetched where that is possible.

        Raises:
            DataError: If a column is absent, or the hub fails.
        """
        names = wanted_columns(self._source, self.columns, columns)
        with _explained(self._source):
            tops = dict.fromkeys(top_column(self._schema, name) for name in names)
            data = self._data.select_columns(list(tops))
            start = 0
            for table in data.with_format("arrow").iter(batch_size=PIECE_ROWS):
                read = {name: one_array(table.column(name)) for name in table.column_names}
                arrays = {name: column_at(read, name) for name in names}
                yield Piece(self._source, "hub", start, arrays, metadata=self._metadata)
                start += len(table)


def _load(source: str, *, split: str | None, subset: str | None) -> Any:
    import datasets

    match = _HUB_ID.fullmatch(source)
    assert match is not None

    options = {"split": split, "streaming": True}
    converted = match["revision"] == PARQUET_REVISION
    if not converted:
        try:
            data = datasets.load_dataset(
                match["id"], name=subset, revision=match["revision"], **options
            )
        except RuntimeError as error:
            converted = match["revision"] is None and "scripts are no longer" in str(error)
            if not converted:
                raise
    if converted:
        if subset is None:
            raise DataError(
                f"{source}: name a subset: the hub's conversion to Parquet has a folder for each"
            )
        # the card that says which folder is which subset is not in this revision
        data = datasets.load_dataset(
            match["id"], data_dir=subset, revision=PARQUET_REVISION, **options
        )
    if isinstance(data, dict):
        if len(data) > 1:
            raise DataError(f"{source}: name a split: it has {', '.join(data)}")
        data = next(iter(data.values()))
    return data


def _schema_of(data: Any) -> pa.Schema:
    if data.features is not None:
        return data.features.arrow_schema
    # some formats say their columns only with the first rows
    first = next(iter(data.with_format("arrow").iter(batch_size=1)), None)
    return pa.schema([]) if first is None else first.schema


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn what `datasets` says about a data set into one line with a way out."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except ConnectionError as error:
        raise DataError(
            f"{source}: no such file or folder here, and the hub cannot be reached "
            f"({first_line(error)}): pass a local CSV, JSONL or Parquet file"
        ) from None
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"{source}: cannot be read from the hub ({first_line(error)}): "
            "pass another id, subset or split, or a local file"
        ) from None
