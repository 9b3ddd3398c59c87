"""Names of label ids: read from files as people have them, and never two ids in one label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_mlc.errors import DataError
from ray_mlc.training.convert import ConvertSummary, convert
from ray_mlc.training.eurovoc import DOMAINS, MICROTHESAURI
from ray_mlc.training.names import Naming, parse_names


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


def labels_of(path: Path) -> list[list[str] | None]:
    lists: list[list[str] | None] = pq.read_table(path)["labels"].to_pylist()
    return lists


def run(folder: Path, lists: pa.Array, names: Any, **options: Any) -> ConvertSummary:
    pq.write_table(pa.table({"text": ["t"] * len(lists), "labels": lists}), folder / "in.parquet")
    source, output = str(folder / "in.parquet"), str(folder / "out.parquet")
    return convert(source, output, names=names, overwrite=True, **options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.json", '["ä b", "c"]'),
        ("names.json", '{"0": "ä b", "1": "c"}'),
        ("names.json", '{"0": {"en": "ä b", "de": "x"}, "1": {"en": "c", "de": "y"}}'),
        ("names.txt", "ä b\nc\n\n"),
        ("names.txt", "\ufeffä b\r\n c \r\n"),
        ("labels", "ä b\nc"),
    ],
)
def test_names_are_read_from_every_form(tmp_path: Path, name: str, content: str) -> None:
    naming = Naming(parse_names(write(tmp_path / name, content)))
    assert [naming("0"), naming("1")] == ["ä b", "c"]


def test_names_are_also_given_with_commas() -> None:
    assert parse_names("a, b c ,d") == ["a", "b c", "d"]
    assert parse_names("a") == ["a"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "item 0 is 1, expected a name"),
        ('{"1": null}', "'1' is None, expected a name"),
        ('{"1": {"de": "x"}}', "'1' has no name in language 'en': it has de"),
        ("[", "line 1 is not JSON"),
        ("a\n\nb", "line 2 is blank"),
        ("\udcff", "not valid UTF-8"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(
    tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "names.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError) as caught:
        parse_names(str(path))
    assert said in str(caught.value)
    with pytest.raises(DataError, match=r"typo\.json: cannot be read"):
        parse_names(str(tmp_path / "typo.json"))
    with pytest.raises(DataError, match="a name between two commas is blank"):
        parse_names("a,,b")


def test_text_ids_are_named_too_and_those_without_a_name_stay_and_are_counted(
    tmp_path: Path,
) -> None:
    lists = pa.array([["7", "x"], None, ["y", "7"]])
    summary = run(tmp_path, lists, {"7": "seven", "z": "never"})
    assert labels_of(tmp_path / "out.parquet") == [["seven", "x"], None, ["y", "seven"]]
    assert summary.unnamed_labels == 2
    assert summary.labels == {"seven": 2, "x": 1, "y": 1}


def test_names_of_something_else_are_refused(tmp_path: Path) -> None:
    said = "names has none of the 2 ids of the labels, such as 'x': it has '7'"
    with pytest.raises(DataError, match=said):
        run(tmp_path, pa.array([["y", "x"], []]), {"7": "seven"})
    assert not (tmp_path / "out.parquet").exists()
    assert run(tmp_path, pa.array([[], ["7"]]), {"7": "seven"}).labels == {"seven": 1}


def test_two_ids_never_become_one_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 'n' for both 'a' and 'b'"):
        run(tmp_path, pa.array([["a"], ["b"]]), {"a": "n", "b": "n"})
    with pytest.raises(DataError, match="has 'b' for both 'a' and 'b'"):
        run(tmp_path, pa.array([["a"], ["b"]]), {"a": "b"})
    # as in EuroVoc, whose levels share names: only ids that are met count
    assert run(tmp_path, pa.array([["a"], ["c"]]), {"a": "n", "b": "n"}).labels == {"c": 1, "n": 1}


def test_a_list_names_text_ids_by_position_and_leaves_names_alone(tmp_path: Path) -> None:
    run(tmp_path, pa.array(["1, 0", "", None]), ["p", "q"], delimiter=",")
    assert labels_of(tmp_path / "out.parquet") == [["q", "p"], [], None]
    run(tmp_path, pa.array([["q"], ["p"]]), ["p", "q"])
    assert labels_of(tmp_path / "out.parquet") == [["q"], ["p"]]
    with pytest.raises(DataError, match="for both 'q' and '1'"):
        run(tmp_path, pa.array([["q"], ["1"]]), ["p", "q"])
    with pytest.raises(DataError, match="row 2: labels list '2', expected 0 to 1 or one of"):
        run(tmp_path, pa.array(["1", "2"]), ["p", "q"], delimiter=",")


def test_integers_are_named_by_a_mapping_and_must_all_be_in_it(tmp_path: Path) -> None:
    run(tmp_path, pa.array([[30, 7], []]), {"7": "seven", "30": "thirty"})
    assert labels_of(tmp_path / "out.parquet") == [["thirty", "seven"], []]
    with pytest.raises(DataError, match=r"row 2: .* lists 8, expected one of the 2 ids"):
        run(tmp_path, pa.array([[7], [8]]), {"7": "seven", "30": "thirty"})
    with pytest.raises(DataError, match=r"row 2: .* lists None"):
        run(tmp_path, pa.array([[7], [7, None]]), {"7": "seven"})


def test_the_undecided_labels_are_named_like_the_others(tmp_path: Path) -> None:
    table = pa.table({"text": ["x"], "labels": [["1"]], "unannotated": [["2"]]})
    pq.write_table(table, tmp_path / "in.parquet")
    names = {"1": "one", "2": "two"}
    convert(str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), names=names)
    row = pq.read_table(tmp_path / "out.parquet").to_pylist()[0]
    assert (row["labels"], row["unannotated"]) == (["one"], ["two"])


def test_eurovocs_names_are_distinct_and_as_many_as_multieurlex_has() -> None:
    assert len(set(DOMAINS.values())) == len(DOMAINS) == 21
    assert len(set(MICROTHESAURI.values())) == len(MICROTHESAURI) == 127
    assert not set(DOMAINS) & set(MICROTHESAURI)
    # published examples: https://github.com/nlpaueb/multi-eurlex, data/eurovoc_descriptors.json
    published = {
        "100215": "health",
        "100211": "social framework",
        "100208": "family",
        "100216": "construction and town planning",
        "100270": "iron, steel and other metal industries",
        "100273": "building and public works",
        "100269": "chemistry",
    }
    assert published.items() <= MICROTHESAURI.items()
    assert {"100163", "100289"} <= set(MICROTHESAURI)
