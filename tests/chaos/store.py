"""The output on an object store: moto's server over HTTP, with a proxy before it that fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.object_store import (
    SECRET_KEY,
    FaultyProxy,
    make_bucket,
    moto_server,
    s3_environment,
    uploads_in_progress,
)

from chaos.compare import is_part
from chaos.trial import LocalPlace, Stamp, Trial

BUCKET = "chaos"


class StorePlace:
    """A prefix of a bucket, looked at past the proxy."""

    poll_s = 0.2
    """Seconds between two looks: each is a listing."""

    def __init__(self, endpoint: str, prefix: str) -> None:
        from obstore.store import S3Store

        names = {name.lower(): value for name, value in s3_environment(endpoint).items()}
        self.output = f"s3://{BUCKET}/{prefix}"
        self._store = S3Store(
            BUCKET,
            prefix=prefix,
            endpoint=endpoint,
            access_key_id=names["aws_access_key_id"],
            secret_access_key=names["aws_secret_access_key"],
            region="us-east-1",
            client_options={"allow_http": True},
        )

    def _objects(self) -> Iterator[tuple[str, Stamp]]:
        import obstore

        for page in obstore.list(self._store):
            for meta in page:
                changed = int(meta["last_modified"].timestamp() * 1e9)
                yield meta["path"], (meta["size"], changed)

    def look(self) -> dict[str, Stamp]:
        """See `Place`; an object has no inode, its size stands in."""
        return {name: stamp for name, stamp in self._objects() if is_part(name)}

    def count(self) -> int:
        """See `Place`."""
        return len(self.look())

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        import obstore

        try:
            return bytes(obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Put an object."""
        import obstore

        obstore.put(self._store, name, data)

    def copy_to(self, folder: Path) -> None:
        """All objects as files."""
        for name, _ in self._objects():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.read(name) or b"")


@contextmanager
def output_on_store(
    trial: Trial, *, share: float, kinds: Sequence[str], corpus: bool
) -> Iterator[FaultyProxy]:
    """Give a trial an output, and maybe an input, on a store; its objects end as local files.

    Args:
        trial: Draws its own faults from its seed.
        share: Share of the calls that fail.
        kinds: How they fail; see `FaultyProxy`.
        corpus: The input lies there too.
    """
    local = trial.base / "out"
    with moto_server() as server:
        make_bucket(server, BUCKET)
        place = StorePlace(server, "out")
        trial.place = place
        if corpus:
            source = StorePlace(server, "corpus")
            for path in sorted(trial.workload.corpus.rglob("*.parquet")):
                source.write(str(path.relative_to(trial.workload.corpus)), path.read_bytes())
            trial.corpus = source.output
        with FaultyProxy(server, seed=trial.seed, share=share, kinds=kinds) as proxy:
            trial.env = s3_environment(proxy.endpoint)
            try:
                yield proxy
            finally:
                trial.result.notes["injected"] = dict(proxy.injected)
        trial.env = s3_environment(server)  # a sound store again, for the proof
        trial.verify_there()
        if count := uploads_in_progress(server, BUCKET):
            trial.problem(f"{count} multipart uploads were left behind")
        place.copy_to(local)
        trial.forget_stamps()
        trial.place = LocalPlace(local)
        said = [command.stderr_path for command in trial.commands]
        for path in [*said, *(path for path in local.rglob("*") if path.is_file())]:
            if SECRET_KEY.encode() in path.read_bytes():
                trial.problem(f"{path.name}: holds the secret key")
