"""Files in archives read like files in a folder, and damaged archives say so in one line."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ray_mlc.errors import DataError
from ray_mlc.training import formats
from ray_mlc.training.examples import Examples, read_examples
from ray_mlc.training.hub import is_hub_id
from ray_mlc.training.sources import names_a_file, without_extension

CSV = 'id,text,a,b\n1,"x\n,y",1,0\n2,ü,0,1\n'
JSONL = "\n".join(
    json.dumps(row)
    for row in (
        {"id": "1", "text": "x\n,y", "a": 1, "b": 0},
        {"id": "2", "text": "ü", "a": 0, "b": 1},
    )
)


def zip_of(path: Path, files: Mapping[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def tar_of(path: Path, files: Mapping[str, bytes], mode: str = "w:gz") -> str:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def read(path: str | list[str]) -> Examples:
    return read_examples(path, labels=["a", "b"])


def message(path: str | list[str]) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_whole(examples: Examples) -> None:
    assert examples.ids.to_pylist() == ["1", "2"]
    assert examples.texts.to_pylist() == ["x\n,y", "ü"]
    assert examples.targets_NL().tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("content", [("x.csv", CSV), ("x.jsonl", JSONL)], ids=lambda c: c[0])
@pytest.mark.parametrize("gz", [False, True])
def test_a_member_reads_like_the_file(tmp_path: Path, content: tuple[str, str], gz: bool) -> None:
    name, text = content
    data = gzip.compress(text.encode()) if gz else text.encode()
    files = {f"folder/{name}{'.gz' if gz else ''}": data, "README.md": b"words", "._x.csv": b""}
    assert_whole(read(zip_of(tmp_path / "a.zip", files)))
    assert_whole(read(tar_of(tmp_path / "a.tar.gz", files)))
    assert_whole(read(tar_of(tmp_path / "a.tgz", files)))
    assert_whole(read(tar_of(tmp_path / "a.tar", files, "w")))
    assert_whole(read(tar_of(tmp_path / "a.tar.bz2", files, "w:bz2")))


def test_a_zip_in_a_zip_is_opened(tmp_path: Path) -> None:
    inner = zip_of(tmp_path / "x.csv.zip", {"x.csv": CSV.encode()})
    outer = zip_of(tmp_path / "all.zip", {"x.csv.zip": Path(inner).read_bytes()})
    assert_whole(read(inner))
    assert_whole(read(outer))
    assert_whole(read(f"{outer}/x.csv.zip"))
    assert_whole(read(f"{outer}/x.csv.zip/x.csv"))
    assert_whole(read(f"{outer}/x.csv"))


def test_files_of_an_archive_are_named_like_those_of_a_folder(tmp_path: Path) -> None:
    other = CSV.replace('1,"x\n,y",1,0\n2,ü,0,1', "3,z,1,1").encode()
    files = {"one.csv": CSV.encode(), "sub/two.csv": other, "sub/three.csv": CSV.encode()}
    for archive in (zip_of(tmp_path / "a.zip", files), tar_of(tmp_path / "b.tar.gz", files)):
        assert_whole(read(f"{archive}/one.csv"))
        assert read(f"{archive}/two.csv").ids.to_pylist() == ["3"]
        assert read(f"{archive}/sub/two.csv").ids.to_pylist() == ["3"]
        assert len(read(f"{archive}/sub/*.csv")) == 3
        assert len(read([f"{archive}/one.csv", f"{archive}/two.csv"])) == 3
        assert len(read(archive)) == 5
        said = message(f"{archive}/for.csv")
        assert "there is no 'for.csv' in the archive: it has " in said
        assert "sub/two.csv" in said
    zip_of(tmp_path / "mixed.zip", {"x.csv": CSV.encode(), "x.jsonl": JSONL.encode()})
    assert "holds CSV and JSON files" in message(str(tmp_path / "mixed.zip"))
    assert_whole(read(str(tmp_path / "mixed.zip/*.csv")))


def test_an_archive_beside_its_files_is_not_read_with_them(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    zip_of(tmp_path / "d/x.csv.zip", {"x.csv": CSV.encode()})
    assert_whole(read(str(tmp_path / "d")))
    (tmp_path / "d/x.csv").write_text(CSV, encoding="utf-8")
    assert_whole(read(str(tmp_path / "d")))


def test_errors_name_the_member_and_the_row(tmp_path: Path) -> None:
    bad = CSV.replace("0,1\n", "0,yes\n").encode()
    for archive in (
        zip_of(tmp_path / "a.zip", {"x.csv": bad}),
        tar_of(tmp_path / "a.tar.gz", {"x.csv": bad}),
    ):
        assert message(archive).startswith(f"{archive}/x.csv: row 2: column 'b' is 'yes'")


def test_archives_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    rows = "".join(f"{i},{hash((i, 'x')):x},1,0\n" for i in range(20_000))
    data = {"x.csv": f"id,text,a,b\n{rows}".encode()}
    whole = Path(zip_of(tmp_path / "a.zip", data)).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    assert "cut.zip: cannot be read as a zip" in message(str(tmp_path / "cut.zip"))
    middle = len(whole) // 2
    torn = whole[: middle - 40] + bytes(80) + whole[middle + 40 :]
    (tmp_path / "torn.zip").write_bytes(torn)
    assert "torn.zip/x.csv: cannot be read as CSV" in message(str(tmp_path / "torn.zip"))
    whole = Path(tar_of(tmp_path / "a.tar.gz", data)).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    assert "cut.tar.gz" in message(str(tmp_path / "cut.tar.gz"))
    (tmp_path / "no.tar.gz").write_bytes(b"no archive")
    assert "no.tar.gz: cannot be read" in message(str(tmp_path / "no.tar.gz"))
    for archive in (
        zip_of(tmp_path / "p.zip", {"x.parquet": b"PAR1"}),
        tar_of(tmp_path / "p.tar", {"x.parquet": b"PAR1"}, "w"),
    ):
        assert "unpack it first" in message(archive)
    for archive in (
        zip_of(tmp_path / "e.zip", {"x.md": b""}),
        tar_of(tmp_path / "e.tar", {"x.md": b""}, "w"),
    ):
        assert "none of 1 file(s) in the archive can be read (x.md)" in message(archive)


def test_a_tar_is_read_no_further_than_to_the_file_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"one.csv": CSV.encode(), "two.csv": b"never read as one"}
    archive = tar_of(tmp_path / "a.tar.gz", files)
    seen: list[str] = []
    of_tar = formats.of_tar

    def noted(file: Any, name: str, stream: Any) -> Any:
        seen.append(name)
        return of_tar(file, name, stream)

    monkeypatch.setattr(formats, "of_tar", noted)
    assert_whole(read(f"{archive}/one.csv"))
    assert seen == ["one.csv"]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a/train.parquet", "a/train"),
        ("x.CSV.GZ", "x"),
        ("x.ndjson", "x"),
        ("v1.2.jsonl.gz", "v1.2"),
        ("data.zip", None),
        ("data.TAR.BZ2", None),
        ("data.tgz", None),
    ],
)
def test_one_list_says_which_names_are_files_and_what_they_are_without_it(
    name: str, stem: str | None
) -> None:
    assert names_a_file(name)
    assert without_extension(name) == (stem or name)
    assert not is_hub_id(name)


@pytest.mark.parametrize("name", ["owner/data", "owner/v1.2", "imdb", "x.parquet.gz", "x.txt"])
def test_other_names_are_no_files(name: str) -> None:
    assert not names_a_file(name)
    assert without_extension(name) == name
    assert is_hub_id(name)
