"""The judge: whether an output is what an independent reading of the input demands.

It shares no code with the product but the tokenizer: files are read with pyarrow, whole, statuses
follow from a few lines, and values are compared one by one.
"""

from __future__ import annotations

import base64
import json
import math
import string
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.ipc as pa_ipc
import pyarrow.parquet as pq

from fuzz.corpora import is_binary_like, names_on_disk
from fuzz.world import LABELS, THRESHOLD, expected_score, tokenizer_of
from ray_mlc import errors
from ray_mlc.config import ScoreJob
from ray_mlc.errors import RayMlcError
from ray_mlc.scoring.verify import verify

EXIT_CODES = {
    "RayMlcError": 1,
    "ConfigError": 2,
    "DataError": 2,
    "ModelError": 2,
    "RunMismatchError": 2,
    "ResourceError": 2,
    "UsageError": 2,
    "StorageError": 1,
    "LeaseError": 1,
    "LimitError": 3,
    "GateError": 4,
}
LONGEST_MESSAGE = 600
_SCORES = {f"score_{name}" for name in LABELS.column_names}
UNREADABLE = (OSError, pa.ArrowException, ValueError, OverflowError, KeyError)


class WrongOutputError(AssertionError):
    """The output is not what the input demands."""


def demand(condition: bool, message: str) -> None:
    """Raise if something does not hold."""
    if not condition:
        raise WrongOutputError(message)


def check_error(error: RayMlcError) -> str:
    """An error as users may see it: one line, its exit code; its name."""
    name = type(error).__name__
    message = str(error)
    demand(len(message.splitlines()) == 1, repr(message))
    demand(len(message) < LONGEST_MESSAGE, f"{len(message)} characters: {message[:700]}")
    demand(bool(message.strip()), f"{name} without a message")
    message.encode()  # what cannot be printed is no message
    demand(getattr(errors, name) is type(error), name)
    demand(error.exit_code == EXIT_CODES[name], f"{name} has exit code {error.exit_code}")
    return name


def check_output(job: ScoreJob, corpus: Path, *, complete: bool, readers: bool) -> None:
    """Compare a finished output with the input, row by row.

    Args:
        job: What was run.
        corpus: Folder of the input.
        complete: Whether `_SUCCESS` must be there; it must not otherwise.
        readers: Also read the output with pyarrow.dataset and DuckDB.
    """
    output = Path(job.output.path)
    demand((output / "_SUCCESS").exists() == complete, f"_SUCCESS, complete={complete}")
    record = json.loads((output / "_ray_mlc/run.json").read_text())
    failures = json.loads((output / "_ray_mlc/failures.json").read_text())
    columns = record["columns"]
    root = Path(columns["root"])
    paths = {
        path.relative_to(root).as_posix(): path for path in _named_files(job, corpus)
    }  # by source
    parts = sorted(output.rglob("*.parquet"))
    tables = [pq.ParquetFile(part).read(use_threads=False) for part in parts]
    for table in tables[1:]:
        demand(table.schema.equals(tables[0].schema), "two parts have different schemas")
    by_source: dict[str, list[pa.Table]] = defaultdict(list)
    for table in tables:
        demand(table.num_rows > 0, "a part without rows")
        by_source[table["source"][0].as_py()].append(table)
    whole = {item["source"]: item for item in failures if item["first_row"] is None}
    pieces = defaultdict(list)
    for item in failures:
        if item["first_row"] is not None:
            pieces[item["source"]].append(item)
    demand(set(whole) <= set(paths), "a fault of a file that is not in the input")
    demand(set(by_source) <= set(paths) - set(whole), "rows of a file that is not in the input")
    judge = _Judge(job, columns, record["identity"]["output.format"])
    for source, path in paths.items():
        if source in whole:
            judge.fault_of_file(path, whole[source], [paths[s] for s in by_source])
        else:
            judge.rows_of_file(source, path, by_source.get(source, []), pieces[source])
    verdict = verify(str(output), deep=True, sample=20)
    if not verdict.holds:
        raise WrongOutputError(f"verify: {verdict.problems[:3]} {verdict.to_dict()['rows']}")
    if readers and parts:
        _read_as_one(output, parts, sum(table.num_rows for table in tables))


def _named_files(job: ScoreJob, corpus: Path) -> list[Path]:
    paths = [job.input.path] if isinstance(job.input.path, str) else job.input.path
    if all(Path(path).is_file() for path in paths):
        return [Path(path) for path in paths]
    return [corpus / name for name in names_on_disk(corpus)]  # no example names a part of it


def _read_as_one(output: Path, parts: Sequence[Path], rows: int) -> None:
    import duckdb

    # as a list: Arrow takes a folder's name that starts with a dot for hidden
    found = pads.dataset([str(part) for part in parts], format="parquet").count_rows()
    demand(found == rows, f"pyarrow.dataset counts {found} of {rows} rows")
    if any("\\" in str(part) for part in parts):
        return  # DuckDB's globs take a backslash for a separator
    query = "select count(status) from read_parquet(?, hive_partitioning=false)"
    with duckdb.connect(config={"threads": 1}) as connection:
        found = connection.execute(query, [f"{output}/**/*.parquet"]).fetchone()
    demand(found is not None and found[0] == rows, f"DuckDB counts {found} of {rows} rows")


class _Judge:
    """Compares files; keeps what is the same for all of them."""

    def __init__(self, job: ScoreJob, columns: dict[str, Any], form: str) -> None:
        self.job, self.kept, self.format = job, columns["kept"], form
        self.schema = pa_ipc.read_schema(pa.py_buffer(base64.b64decode(columns["schema"])))
        self.text = job.input.text
        long = job.long
        tokens = long.max_tokens if long and long.max_tokens else None
        self.tokenizer = tokenizer_of(job.model, tokens or 12)
        self.skip = bool(long and long.policy == "skip")

    def text_columns(self) -> list[str]:
        if "{" not in self.text:
            return [self.text]
        return [name for _, name, _, _ in string.Formatter().parse(self.text) if name is not None]

    def fault_of_file(self, path: Path, item: dict[str, Any], good: Sequence[Path]) -> None:
        """A file is set aside only for a reason that holds."""
        reason = item["reason"]
        demand("\n" not in reason, f"a reason of several lines: {reason!r}")
        if reason.startswith("footer: "):
            demand(item["rows"] is None, "rows of a file without a footer")
            demand(not _consistent(path), f"set aside as {reason}, but it can be read")
            return
        demand(reason.startswith("schema: "), reason)
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow.remove_metadata()
            demand(item["rows"] == file.metadata.num_rows, "rows of a file set aside")
        names = schema.names
        broken = len(set(names)) < len(names) or any(n not in names for n in self.text_columns())
        for other in good:
            with pq.ParquetFile(other) as file:
                same = file.schema_arrow.remove_metadata().equals(schema)
            hive = [[e for e in p.parts if "=" in e] for p in (other, path)]
            demand(broken or not same or hive[0] != hive[1], f"set aside as {reason}, alone")

    def rows_of_file(
        self, source: str, path: Path, tables: list[pa.Table], faults: list[dict[str, Any]]
    ) -> None:
        """Every row that is not set aside is there once, in order, with its values."""
        lost: set[int] = set()
        for item in faults:
            demand(item["reason"].startswith(("read: ", "write: ")), item["reason"])
            demand("\n" not in item["reason"], repr(item["reason"]))
            lost |= set(range(item["first_row"], item["first_row"] + item["rows"]))
        with pq.ParquetFile(path) as file:
            rows = file.metadata.num_rows
            if lost:
                self.demand_unreadable(file, lost, path)
            expected = [row for row in range(rows) if row not in lost]
            demand(
                all(t["source"].unique().to_pylist() == [source] for t in tables), "wrong source"
            )
            tables = sorted(tables, key=lambda table: table["row"][0].as_py())
            found = [row for table in tables for row in table["row"].to_pylist()]
            demand(found == expected, f"{source}: rows {found}, expected {expected}")
            if not found:
                return
            written = pa.concat_tables(tables)
            names = file.schema_arrow.names
            wanted = {*self.text_columns(), *(item["name"] for item in self.kept)} & set(names)
            groups = _groups_of(file.metadata, set(expected))
            read = [
                (first, file.read_row_group(group, columns=sorted(wanted), use_threads=False))
                for group, first in groups
            ]
        taken = [
            table.slice(row - first, 1)  # Arrow cannot take from views
            for first, table in read
            for row in expected
            if 0 <= row - first < len(table)
        ]
        demand(sum(len(table) for table in taken) == len(expected), "rows of row groups")
        for item in self.kept:
            self.column(item, path, taken, written, names)
        self.scores(taken, written)

    def demand_unreadable(self, file: pq.ParquetFile, lost: set[int], path: Path) -> None:
        """Each unit that was set aside has a row group that cannot be read, or a value that the
        output's type cannot hold."""
        names = {item["name"] for item in self.kept} | set(self.text_columns())
        names &= set(file.schema_arrow.names)
        try:
            for group, _ in _groups_of(file.metadata, lost):
                table = file.read_row_group(group, columns=sorted(names), use_threads=False)
                table.validate(full=True)
                if len(table) != file.metadata.row_group(group).num_rows:
                    return
                for item, field in zip(self.kept, self.schema, strict=True):
                    if item["name"] in names and table[item["name"]].type != field.type:
                        table[item["name"]].cast(field.type)
        except UNREADABLE:
            return
        raise WrongOutputError(f"{path}: rows {sorted(lost)[:5]} set aside, but they can be read")

    def column(
        self,
        item: dict[str, Any],
        path: Path,
        taken: Sequence[pa.Table],
        written: pa.Table,
        names: Sequence[str],
    ) -> None:
        actual = written[item["output"]]
        if item["name"] in names:
            expected = pa.chunked_array([c for t in taken for c in t[item["name"]].chunks])
        else:
            keys = dict(e.split("=", 1) for e in path.parts[:-1] if e.count("=") and e[0] != "=")
            value = keys.get(item["name"])
            shown = [None if x is None else str(x) for x in actual.to_pylist()]
            demand(shown == [value] * len(written), f"{item}: {shown[:3]}, the path says {value}")
            return
        if expected.type.equals(actual.type) and expected.equals(actual):
            return
        one, other = list(plain(expected)), list(plain(actual))
        if one == other:
            return
        try:
            if pa.types.is_dictionary(expected.type):
                expected = expected.cast(expected.type.value_type)
            one = list(plain(expected.cast(actual.type)))
        except UNREADABLE:
            pass
        demand(one == other, f"{item}: {other[:5]}, expected {one[:5]}")

    def scores(self, taken: Sequence[pa.Table], written: pa.Table) -> None:
        types = [taken[0].schema.field(name).type for name in self.text_columns()]
        if not all(_is_plain_text(type_) for type_ in types):
            return  # a date or a float in a template: how it is written is Arrow's to say
        texts = [text for table in taken for text in self.texts(table)]
        ours = _OURS | {"sparse": {"top"}, "dense": {"scores"}}.get(self.format, _SCORES)
        rows = written.select([name for name in written.column_names if name in ours]).to_pylist()
        for text, row in zip(texts, rows, strict=True):
            status, tokens, scores = self.expect(text)
            shown = f"{text!r}: {row}, expected {status} {tokens} {scores}"
            demand(row["status"] == status, shown)
            demand(row["n_tokens"] == tokens, shown)
            if scores is None:
                demand(row["labels"] is None and row["n_windows"] == 0, shown)
                continue
            demand(row["truncated"] == ((tokens or 0) > self.tokenizer.max_tokens), shown)
            clear = np.abs(scores - THRESHOLD) > 1e-6
            given = [name in row["labels"] for name in LABELS.names]
            demand(bool(((scores >= THRESHOLD) == given)[clear].all()), shown)
            self.stored(row, scores, shown)

    def stored(self, row: dict[str, Any], scores: Any, shown: str) -> None:
        by_label = dict(zip(LABELS.names, scores, strict=True))
        if self.format == "sparse":
            floor, k = np.float32(self.job.output.floor), self.job.output.k
            top = {item["label"]: item["score"] for item in row["top"]}
            demand(all(abs(by_label[n] - s) < 1e-6 for n, s in top.items()), shown)
            above = [score for score in scores if score >= floor + 1e-6]
            demand(min(k, len(above)) <= len(top) <= k, shown)
        elif self.format == "dense":
            demand(float(np.abs(scores - row["scores"]).max()) < 1e-3, shown)
        else:
            found = [row[f"score_{name}"] for name in LABELS.column_names]
            demand(float(np.abs(scores - found).max()) < 1e-6, shown)

    def texts(self, table: pa.Table) -> Iterator[bytes | str | None]:
        """Text of each row; bytes where it is not UTF-8."""
        if "{" not in self.text:
            yield from (_decoded(value) for value in plain(table[self.text]))
            return
        columns = {name: list(plain(table[name])) for name in self.text_columns()}
        for row in range(len(table)):
            cells = {name: _decoded(values[row]) for name, values in columns.items()}
            if all(value is None for value in cells.values()):
                yield None
            elif any(isinstance(value, bytes) for value in cells.values()):
                yield b"\xff"
            else:
                filled = {name: "" if value is None else value for name, value in cells.items()}
                yield "".join(
                    literal + (filled[name] if name is not None else "")
                    for literal, name, _, _ in string.Formatter().parse(self.text)
                )

    def expect(self, text: bytes | str | None) -> tuple[str, int | None, Any]:
        """Status, tokens and scores of a text."""
        if text is None:
            return "null_text", None, None
        if isinstance(text, bytes):
            return "decode_error", None, None
        if len(text.encode()) > self.job.input.max_text_bytes:
            return "too_long", None, None
        if not text.strip():
            return "empty", None, None
        tokens, scores = expected_score(text, self.tokenizer)
        if self.skip and tokens > self.tokenizer.max_tokens:
            return "too_long", tokens, None
        return ("not_finite" if scores is None else "ok"), tokens, scores


def _is_plain_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return is_binary_like(type_) or pa.types.is_integer(type_) or pa.types.is_null(type_)


_OURS = {"status", "n_tokens", "labels", "n_windows", "truncated"}


def _decoded(value: Any) -> bytes | str | None:
    """Text of a value, the bytes if they are not UTF-8."""
    if value is None:
        return None
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def plain(values: pa.ChunkedArray | pa.Array) -> Iterator[Any]:
    """Values as Python objects that compare: NaN equals NaN, strings are bytes."""
    return (_plain(value) for value in values)


def _plain(value: pa.Scalar) -> Any:
    if not value.is_valid:
        return None
    type_ = value.type
    if isinstance(type_, pa.BaseExtensionType):
        return _plain(value.value)
    if is_binary_like(type_):
        return value.as_buffer().to_pybytes()
    if pa.types.is_dictionary(type_):
        return _plain(value.value)
    if pa.types.is_struct(type_):
        return [_plain(value[index]) for index in range(type_.num_fields)]
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_map(type_):
        return [_plain(item) for item in value.values]
    if pa.types.is_fixed_size_list(type_) or "list_view" in str(type_):
        return [_plain(item) for item in value.values]
    if pa.types.is_floating(type_):
        number = float(value.as_py())
        return "nan" if math.isnan(number) else (number, math.copysign(1, number))
    if pa.types.is_temporal(type_):
        return value.value if hasattr(value, "value") else value.as_py()
    return value.as_py()


def _groups_of(metadata: pq.FileMetaData, rows: set[int]) -> list[tuple[int, int]]:
    """Row groups that hold some of the rows, each with its first row."""
    found, first = [], 0
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if any(row in rows for row in range(first, first + count)):
            found.append((group, first))
        first += count
    return found


def _consistent(path: Path) -> bool:
    """Whether a footer can be read, and does not contradict itself."""
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.metadata
            metadata.schema.to_arrow_schema()
            groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
            counts = [group.num_rows for group in groups]
            if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
                return False
            file.read(use_threads=False)
    except UNREADABLE:
        return False
    return True
