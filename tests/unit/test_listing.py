"""What an input names: folders, globs, lists; hidden paths; part folders that would clash."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ray_mlc.corpus import listing
from ray_mlc.corpus.listing import InputFile, list_corpus
from ray_mlc.errors import DataError, StorageError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (len(name)))


def sources(path: str | list[str]) -> list[str]:
    return [file.source for file in list_corpus(path).files]


def test_a_folder_gives_its_parquet_files_at_any_depth_in_path_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.parquet", "a/z.parquet", "a/deep/er/x.parquet", "notes.txt", "a/x.csv")
    listing = list_corpus(str(tmp_path))
    assert listing.root == str(tmp_path)
    assert [file.source for file in listing.files] == [
        "a/deep/er/x.parquet",
        "a/z.parquet",
        "b.parquet",
    ]
    assert listing.hidden == ()
    assert sources(f"{tmp_path}/") == sources(str(tmp_path))
    assert sources(f"file://{tmp_path}") == sources(str(tmp_path))


def test_size_and_time_are_those_of_the_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet")
    (file,) = list_corpus(str(tmp_path)).files
    status = (tmp_path / "a.parquet").stat()
    assert (file.size, file.mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_a_file_is_its_folder_with_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "a/one.parquet", "a/two.parquet", "a/no_extension")
    listing = list_corpus(str(tmp_path / "a/one.parquet"))
    assert (listing.root, [file.source for file in listing.files]) == (
        str(tmp_path / "a"),
        ["one.parquet"],
    )
    assert sources(str(tmp_path / "a/no_extension")) == ["no_extension"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a.parquet"]),
        ("*/*.parquet", ["x/b.parquet", "y/c.parquet"]),
        ("?/b.parquet", ["x/b.parquet"]),
        ("[xy]/*.parquet", ["x/b.parquet", "y/c.parquet"]),
        ("x/**/*.parquet", ["b.parquet", "deep/er/d.parquet"]),
        (
            "**/*.parquet",
            ["a.parquet", "x/b.parquet", "x/deep/er/d.parquet", "y/c.parquet"],
        ),
        ("x/*", ["b.parquet", "note.txt"]),
    ],
)
def test_a_star_stays_within_an_element_and_two_cross_them(
    tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    touch(tmp_path, "a.parquet", "x/b.parquet", "y/c.parquet", "x/deep/er/d.parquet", "x/note.txt")
    assert sources(str(tmp_path / pattern)) == expected


def test_a_list_is_rooted_at_the_longest_common_folder(tmp_path: Path) -> None:
    touch(tmp_path, "n/2026/a.parquet", "n/2027/b.parquet", "n/2027/c.parquet", "n/x/d.parquet")
    listing = list_corpus([str(tmp_path / "n/2026"), str(tmp_path / "n/2027/*.parquet")])
    assert listing.root == str(tmp_path / "n")
    assert [file.source for file in listing.files] == [
        "2026/a.parquet",
        "2027/b.parquet",
        "2027/c.parquet",
    ]


def test_the_root_follows_from_what_was_written_not_from_what_matches(tmp_path: Path) -> None:
    touch(tmp_path, "n/01/a.parquet")
    pattern = str(tmp_path / "n/*/*.parquet")
    listed = [str(tmp_path / "n/*/a.parquet"), str(tmp_path / "n/*/b*.parquet")]
    touch(tmp_path, "n/01/b.parquet")
    before = [list_corpus(pattern), list_corpus(listed)]
    touch(tmp_path, "n/02/b.parquet")  # tomorrow
    after = [list_corpus(pattern), list_corpus(listed)]
    for one, other in zip(before, after, strict=True):
        assert one.root == other.root == str(tmp_path / "n")
        assert set(one.files) < set(other.files)


@pytest.mark.parametrize("name", ["*.parquet", "[z].parquet", "a?.parquet"])
def test_a_file_that_is_named_like_a_glob_is_taken_by_its_name(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "other.parquet", "ab.parquet", "z.parquet")
    assert sources(str(tmp_path / name)) == [name]


def test_a_file_is_no_folder_for_a_glob(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet")
    with pytest.raises(DataError, match="no file matches"):
        list_corpus(str(tmp_path / "a.parquet/*"))


def test_a_file_named_twice_is_there_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.parquet", "a/y.parquet")
    twice = [str(tmp_path / "a"), str(tmp_path / "a/x.parquet"), str(tmp_path / "a/*.parquet")]
    assert sources(twice) == ["x.parquet", "y.parquet"]


def test_hidden_paths_are_skipped_and_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet", "_tmp/b.parquet", ".c.parquet", "x/_d.parquet", "x/.e/f.parquet")
    listing = list_corpus(str(tmp_path))
    assert [file.source for file in listing.files] == ["a.parquet"]
    assert set(listing.hidden) == {
        "_tmp/b.parquet",
        ".c.parquet",
        "x/_d.parquet",
        "x/.e/f.parquet",
    }


def test_a_folder_below_a_hidden_one_is_listed_when_it_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "_staging/night/a.parquet")
    assert sources(str(tmp_path / "_staging/night")) == ["a.parquet"]
    assert sources(str(tmp_path / "_staging/night/*.parquet")) == ["a.parquet"]


def test_keys_in_the_path_are_hive_keys(tmp_path: Path) -> None:
    touch(tmp_path, "date=2026-11-20/lang=en/a.parquet", "plain/b=c.parquet")
    first, second = list_corpus(str(tmp_path)).files
    assert first.hive_keys == {"date": "2026-11-20", "lang": "en"}
    assert second.hive_keys == {}
    assert InputFile("a=b=c/=d/x.parquet", 0, 0).hive_keys == {"a": "b=c"}


def test_a_folder_may_end_in_parquet(tmp_path: Path) -> None:
    touch(tmp_path, "x.parquet/part-0.parquet", "x.parquet/part-1.parquet")
    first, second = list_corpus(str(tmp_path)).files
    assert first.source == "x.parquet/part-0.parquet"
    assert (first.part_folder, second.part_folder) == ("x/part-0", "x/part-1")


@pytest.mark.parametrize(
    ("one", "other"),
    [("x/y.parquet", "x.parquet/y.parquet"), ("x/y/z.parquet", "x/y.parquet/z.parquet")],
)
def test_two_inputs_with_one_part_folder_are_refused_by_name(
    tmp_path: Path, one: str, other: str
) -> None:
    touch(tmp_path, one, other)
    with pytest.raises(DataError, match="would share the part folder x/y") as caught:
        list_corpus(str(tmp_path))
    assert one in str(caught.value)
    assert other in str(caught.value)


def test_a_file_beside_a_folder_of_its_name_is_no_clash(tmp_path: Path) -> None:
    touch(tmp_path, "x.parquet", "x/y.parquet")
    folders = [file.part_folder for file in list_corpus(str(tmp_path)).files]
    assert sorted(folders) == ["x", "x/y"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("absent", "there is no such file or folder"),
        ("absent/*.parquet", "there is no such file or folder"),
        ("empty", "no file in it ends in .parquet"),
        ("texts", "no file in it ends in .parquet"),
        ("hidden", "no file in it ends in .parquet; 1 hidden file(s) were skipped"),
        ("texts/*.parquet", "no file matches"),
    ],
)
def test_an_input_with_nothing_to_read_is_refused(tmp_path: Path, path: str, said: str) -> None:
    touch(tmp_path, "texts/a.txt", "hidden/_a.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        list_corpus(str(tmp_path / path))
    assert str(caught.value) == f"{tmp_path / path}: {said}"


def test_a_folder_that_cannot_be_listed_is_the_storages_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        def get_file_info(self, _: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(listing, "filesystem_of", lambda uri: (Refusing(), uri))
    with pytest.raises(StorageError, match=r"cannot be listed .*Permission denied"):
        list_corpus(str(tmp_path))


def test_paths_on_different_stores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lie on different stores"):
        list_corpus([str(tmp_path), "s3://bucket/key"])


@pytest.mark.parametrize("name", ["_SUCCESS.parquet", ".a.parquet", "_ray_mlc/a.parquet"])
def test_a_hidden_file_that_is_named_itself_is_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "b.parquet")
    with pytest.raises(DataError, match=r"starts with _ or \., so readers would skip"):
        list_corpus([str(tmp_path / name), str(tmp_path / "b.parquet")])
