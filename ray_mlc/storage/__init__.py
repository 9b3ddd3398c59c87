"""One door to storage: where inputs are read from, and how results are committed.

Reading Parquet goes through `pyarrow.fs` (and fsspec for schemes that Arrow lacks, such as
`hf://`). Writing goes through `Storage`, which promises two things that a file system alone does
not: `put` makes an object appear whole or not at all, and `create` makes it only if it is absent.

On a local or NFS file system `put` writes a temporary file, fsyncs it, renames it and fsyncs the
folder, so that what was committed survives a crash of the machine. On an object store it is one
PUT, which is atomic there; a Parquet writer on a remote stream would publish half a file when it
is closed after an error. It is never a multipart upload, so that none is ever left behind.

Whether a request was carried out is unknown when its answer is lost: an NFS client repeats a
rename that was made, an HTTP client repeats a PUT that was stored, and the repetition fails. After
such an error the target is looked at before anything is said.

Credentials come from the environment or the node's role, never from a location: locations are
written into run files and error texts.
"""

from __future__ import annotations

from ray_mlc.errors import ConfigError
from ray_mlc.storage.filesystems import filesystem_of
from ray_mlc.storage.local import LocalStorage, write_file
from ray_mlc.storage.locations import (
    OBJECT_STORES,
    join,
    local_path,
    place_of,
    refuse_credentials,
    scheme_of,
)
from ray_mlc.storage.objects import ObjectStorage
from ray_mlc.storage.protocol import ObjectInfo, Storage, existing_paths, sweep

__all__ = [
    "OBJECT_STORES",
    "LocalStorage",
    "ObjectInfo",
    "ObjectStorage",
    "Storage",
    "existing_paths",
    "filesystem_of",
    "join",
    "local_path",
    "open_storage",
    "place_of",
    "refuse_credentials",
    "scheme_of",
    "sweep",
    "write_file",
]


def open_storage(uri: str, *, scratch: str = "_ray_mlc/tmp") -> Storage:
    """The storage at `uri`: a local folder, `s3://`, `gs://`, `az://`.

    Args:
        uri: Folder; it need not exist yet.
        scratch: Folder below it for temporary files of local storage.

    Raises:
        ConfigError: If nothing here writes to that scheme, or the URI carries credentials.
    """
    refuse_credentials(uri)
    path = local_path(uri)
    if path is not None:
        return LocalStorage(path, scratch=scratch)
    if scheme_of(uri) in OBJECT_STORES:
        return ObjectStorage(uri)
    raise ConfigError(
        f"{uri}: cannot write to {scheme_of(uri)}://; expected a local path, s3://, gs:// or az://"
    )
