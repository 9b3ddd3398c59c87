"""Presets: the public data sets in the forms in which people have them. All rows are made up."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from support.cli import run as cli

from ray_mlc.errors import DataError
from ray_mlc.training.convert import ConvertSummary, convert
from ray_mlc.training.eurovoc import DOMAINS
from ray_mlc.training.examples import read_examples
from ray_mlc.training.hub import PARQUET_REVISION
from ray_mlc.training.presets import EMOTIONS, TOXICITY, Preset

TRAIN = '''id,comment_text,toxic,severe_toxic,obscene,threat,insult,identity_hate
0a,"one
""two""",1,0,1,0,0,0
0b,three,0,0,0,0,0,0
'''
TEST = 'id,comment_text\n1a,"four, five"\n1b,six\n1c,seven\n'
TEST_LABELS = """id,toxic,severe_toxic,obscene,threat,insult,identity_hate
1c,0,0,0,0,1,0
1a,-1,-1,-1,-1,-1,-1
1b,0,0,0,0,0,0
"""
KAGGLE = {
    "train.csv": TRAIN,
    "test.csv": TEST,
    "test_labels.csv": TEST_LABELS,
    "sample_submission.csv": "id,toxic\n1a,0.5\n",
}
EURLEX = [
    {
        "celex_id": f"3200{i}R",
        "publication_date": "2001-01-01",
        "text": {"en": f"Article {i}" if i != 2 else None, "de": f"Artikel {i}"},
        "eurovoc_concepts": {
            "level_1": [["100149", "100160"], [], ["100144"]][i],
            "level_2": [["100215"], ["100163"], []][i],
            "level_3": [["2479", "181"], [], ["85"]][i],
        },
    }
    for i in range(3)
]


def make(source: str | list[str], output: Path, preset: str, **options: Any) -> ConvertSummary:
    chosen = Preset.named(
        preset, level=options.pop("level", None), language=options.pop("language", None)
    )
    return convert(source, str(output), preset=chosen, overwrite=True, **options)


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def message(source: str | list[str], output: Path, preset: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        make(source, output, preset, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- jigsaw


def kaggle(folder: Path, form: str) -> str:
    """The archive of the challenge as people have it: unpacked, halfway so, or not."""
    folder = folder / form
    folder.mkdir()
    if form == "folder":
        for name, content in KAGGLE.items():
            (folder / name).write_text(content, encoding="utf-8")
        return str(folder)
    inner = {}
    for name, content in KAGGLE.items():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
        inner[f"{name}.zip"] = buffer.getvalue()
        if form == "zips":
            (folder / f"{name}.zip").write_bytes(inner[f"{name}.zip"])
    if form == "zips":
        return str(folder)
    with zipfile.ZipFile(folder / "jigsaw.zip", "w") as archive:
        for name in KAGGLE:
            if form == "zip":
                archive.writestr(name, KAGGLE[name])
            else:
                archive.writestr(f"{name}.zip", inner[f"{name}.zip"])
    return str(folder / "jigsaw.zip")


@pytest.mark.parametrize("form", ["folder", "zips", "zip", "zip of zips"])
def test_jigsaws_splits_come_out_of_its_archive_in_any_state(tmp_path: Path, form: str) -> None:
    source, output = kaggle(tmp_path, form), tmp_path / "x.parquet"
    make(source, output, "jigsaw", split="train")
    assert rows_of(output) == [
        {"id": "0a", "text": 'one\n"two"', "labels": ["toxic", "obscene"]},
        {"id": "0b", "text": "three", "labels": []},
    ]
    summary = make(source, output, "jigsaw", split="test")
    assert rows_of(output) == [
        {"id": "1a", "text": "four, five", "labels": None},
        {"id": "1b", "text": "six", "labels": []},
        {"id": "1c", "text": "seven", "labels": ["insult"]},
    ]
    assert (summary.not_annotated, summary.unannotated_cells) == (1, 0)
    assert tuple(sorted(summary.labels)) == tuple(sorted(TOXICITY))
    assert "name a split: it has train, test" in message(source, output, "jigsaw")
    said = message(source, output, "jigsaw", split="trian")
    assert "there is no split 'trian': did you mean 'train'?" in said


def test_jigsaws_files_can_be_named_one_by_one(tmp_path: Path) -> None:
    folder, output = Path(kaggle(tmp_path, "folder")), tmp_path / "x.parquet"
    assert make(str(folder / "train.csv"), output, "jigsaw").rows == 2
    both = [str(folder / "test_labels.csv"), str(folder / "test.csv")]
    assert make(both, output, "jigsaw").rows == 3
    apart = make(both[1], output, "jigsaw", labels_from=both[0])
    assert (apart.rows, apart.not_annotated) == (3, 1)
    said = message(both[1], output, "jigsaw")
    assert "test.csv: there are no labels: name test_labels.csv beside" in said
    (folder / "test.csv").write_text(TRAIN, encoding="utf-8")
    assert make(both[1], output, "jigsaw").rows == 2  # somebody has joined them already
    (folder / "mine.csv").write_text(TRAIN, encoding="utf-8")
    assert make(str(folder / "mine.csv"), output, "jigsaw").rows == 2
    renamed = TRAIN.replace("comment_text", "comment").replace("insult", "insults")
    (folder / "mine.csv").write_text(renamed, encoding="utf-8")
    said = message(str(folder / "mine.csv"), output, "jigsaw")
    assert "no column 'comment_text' (text): did you mean 'comment'?" in said
    said = message(str(folder / "mine.csv"), output, "jigsaw", text="comment")
    assert "no column 'insult' (labels): did you mean 'insults'?" in said
    options = {"text": "comment", "labels": ["toxic", "obscene"]}
    summary = make(str(folder / "mine.csv"), output, "jigsaw", **options)
    assert summary.labels == {"obscene": 1, "toxic": 1}


def test_jigsaws_text_with_labels_of_ones_own(tmp_path: Path) -> None:
    folder, output = Path(kaggle(tmp_path, "folder")), tmp_path / "x.parquet"
    (folder / "mine.csv").write_text("id,comment_text,rude\n1,x,1\n", encoding="utf-8")
    assert make(str(folder / "mine.csv"), output, "jigsaw", labels=["rude"]).labels == {"rude": 1}
    assert "there are no labels" in message(str(folder / "mine.csv"), output, "jigsaw")
    (folder / "train.csv.gz").write_bytes(gzip.compress(TRAIN.encode()))
    said = message(str(folder), output, "jigsaw", split="train")
    assert said.endswith("one is enough, name it")


@pytest.mark.parametrize(
    ("texts", "labels", "said"),
    [
        ("id,text\n1,x\n2,y\n", "id,a\n1,0\n", "row 2: id '2' is not in"),
        ("id,text\n1,x\n", "id,a\n1,0\n1,1\n", "row 2: id '1' is there twice"),
        ("id,text\n1,x\n", "id,a\n,0\n", "row 1: column 'id' is empty"),
        ("id,text\n1,x\n", "ID,a\n1,0\n", "no column 'id' (id)"),
        ("id,text\n1,x\n", "id,b\n1,0\n", "no column 'a' (labels)"),
        ("id,text\n1,x\n", "id,a\n", "there is no row in it"),
        ("id,text\n1,x\n", "id,a\n1,7\n", "column 'a' is '7'"),
    ],
)
def test_joins_that_do_not_add_up_are_refused(
    tmp_path: Path, texts: str, labels: str, said: str
) -> None:
    (tmp_path / "t.csv").write_text(texts, encoding="utf-8")
    (tmp_path / "l.csv").write_text(labels, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        convert(
            str(tmp_path / "t.csv"),
            str(tmp_path / "x.parquet"),
            labels=["a"],
            labels_from=str(tmp_path / "l.csv"),
        )
    assert said in str(caught.value)
    assert not (tmp_path / "x.parquet").exists()


def test_a_join_takes_any_form_of_labels_from_any_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_mlc.training.formats.PIECE_ROWS", 2)
    rng = np.random.default_rng(0)
    ids = [f"k{i}" for i in range(50)]
    lists = [None if i % 9 == 0 else [f"l{j}" for j in range(i % 4)] for i in range(50)]
    texts = [{"key": ids[i], "text": f"t{ids[i]}"} for i in rng.permutation(50)]
    labels = [{"key": ids[i], "labels": lists[i]} for i in rng.permutation(50)]
    for name, rows in (("t", texts), ("l", labels)):
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    convert(
        str(tmp_path / "t.jsonl.gz"),
        str(tmp_path / "x.parquet"),
        id="key",
        labels_from=str(tmp_path / "l.jsonl.gz"),
    )
    rows = rows_of(tmp_path / "x.parquet")
    assert [row["id"] for row in rows] == [row["key"] for row in texts]
    expected = dict(zip(ids, lists, strict=True))
    assert all(row["labels"] == expected[row["id"]] for row in rows)


# --- go_emotions


def emotions(folder: Path, *, with_names: bool) -> str:
    """Files as on the hub: a folder for each configuration, a file for each split."""
    import datasets

    label = datasets.ClassLabel(names=list(EMOTIONS)) if with_names else datasets.Value("int64")
    features = datasets.Features(
        text=datasets.Value("string"), labels=datasets.List(label), id=datasets.Value("string")
    )
    (folder / "simplified").mkdir(parents=True)
    (folder / "raw").mkdir()
    for split in ("train", "validation", "test"):
        rows = {"text": [split, "y"], "labels": [[27], [0, 17]], "id": ["a", "b"]}
        data = datasets.Dataset.from_dict(rows, features=features)
        data.to_parquet(str(folder / f"simplified/{split}-00000-of-00001.parquet"))
    raw: dict[str, list[Any]] = {"text": ["x", "x"], "id": ["a", "a"], "rater_id": [1, 2]}
    raw |= {name: [int(name == "joy"), int(name == "neutral")] for name in EMOTIONS}
    pq.write_table(pa.table(raw), folder / "raw/train-00000-of-00001.parquet")
    return str(folder)


@pytest.mark.parametrize("with_names", [True, False])
def test_go_emotions_is_read_from_files_like_the_hubs(tmp_path: Path, with_names: bool) -> None:
    source, output = emotions(tmp_path / "go", with_names=with_names), tmp_path / "x.parquet"
    make(source, output, "go_emotions", split="validation")
    assert rows_of(output) == [
        {"id": "a", "text": "validation", "labels": ["neutral"]},
        {"id": "b", "text": "y", "labels": ["admiration", "joy"]},
    ]
    summary = make(source, output, "go_emotions", subset="raw")
    assert [row["labels"] for row in rows_of(output)] == [["joy"], ["neutral"]]
    assert (summary.duplicate_ids, len(summary.labels)) == (1, 28)
    file = f"{source}/simplified/test-00000-of-00001.parquet"
    assert make(file, output, "go_emotions").rows == 2
    said = message(source, output, "go_emotions")
    assert said == f"{source}: name a split: it has train, validation, test"
    assert "no folder 'rwa' in it" in message(source, output, "go_emotions", subset="rwa")
    assert "no split 'test': expected train" in message(
        source, output, "go_emotions", subset="raw", split="test"
    )


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_what_a_rater_found_unclear_is_not_annotated_rather_than_without_emotion(
    tmp_path: Path, form: str
) -> None:
    raw: dict[str, list[Any]] = {"text": list("xyz"), "id": list("abc")}
    raw["example_very_unclear"] = [False, True, False]
    raw |= {name: [int(name == "joy"), 0, 0] for name in EMOTIONS}
    path = tmp_path / f"goemotions_1.{form}"
    if form == "csv":
        pa_csv.write_csv(pa.table(raw), path)
    else:
        pq.write_table(pa.table(raw), path)
    summary = make(str(path), tmp_path / "x.parquet", "go_emotions")
    assert [row["labels"] for row in rows_of(tmp_path / "x.parquet")] == [["joy"], None, []]
    assert (summary.not_annotated, summary.unannotated_cells) == (1, 0)


def test_go_emotions_is_read_from_jsonl_and_may_be_named_already(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "x", "labels": [3, 27]}\n', encoding="utf-8")
    make(str(path), tmp_path / "x.parquet", "go_emotions")
    assert rows_of(tmp_path / "x.parquet")[0]["labels"] == ["annoyance", "neutral"]
    path.write_text('{"text": "x", "labels": ["annoyance"]}\n', encoding="utf-8")
    make(str(path), tmp_path / "x.parquet", "go_emotions")
    assert rows_of(tmp_path / "x.parquet")[0]["labels"] == ["annoyance"]
    path.write_text('{"text": "x", "labels": [28]}\n', encoding="utf-8")
    said = message(str(path), tmp_path / "x.parquet", "go_emotions")
    assert "lists 28, expected 0 to 27" in said


# --- multi_eurlex


def eurlex_archive(folder: Path) -> str:
    """The published archive: a JSONL file for each split."""
    path = folder / "multi_eurlex.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("train", "dev", "test"):
            rows = [{**row, "celex_id": f"{name}-{row['celex_id']}"} for row in EURLEX]
            content = "\n".join(map(json.dumps, rows)).encode()
            member = tarfile.TarInfo(f"{name}.jsonl")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def test_multi_eurlex_is_read_from_the_published_archive_at_each_level(tmp_path: Path) -> None:
    source, output = eurlex_archive(tmp_path), tmp_path / "x.parquet"
    summary = make(source, output, "multi_eurlex", split="validation")
    assert rows_of(output) == [
        {"id": "dev-32000R", "text": "Article 0", "labels": ["social questions", "industry"]},
        {"id": "dev-32001R", "text": "Article 1", "labels": []},
    ]
    assert (summary.rows, summary.skipped, summary.unnamed_labels) == (2, 1, 0)
    make(source, output, "multi_eurlex", split="test", level=2, language="de")
    assert [(row["text"], row["labels"]) for row in rows_of(output)] == [
        ("Artikel 0", ["health"]),
        ("Artikel 1", ["political framework"]),
        ("Artikel 2", []),
    ]
    make(source, output, "multi_eurlex", split="train", level=3)
    assert [row["labels"] for row in rows_of(output)] == [["2479", "181"], []]
    named = {"2479": "food", "181": "tax"}
    summary = make(source, output, "multi_eurlex", split="train", level=3, names=named)
    assert [row["labels"] for row in rows_of(output)] == [["food", "tax"], []]
    kept = make(source, output, "multi_eurlex", split="train", skip_null_text=False)
    assert (kept.rows, kept.null_texts, kept.skipped) == (3, 1, 0)
    assert make(f"{source}/dev.jsonl", output, "multi_eurlex").rows == 2
    said = message(source, output, "multi_eurlex")
    assert said == f"{source}: name a split: it has train, validation, test"
    assert "did you mean 'test'?" in message(source, output, "multi_eurlex", split="tset")


def test_an_archive_is_read_from_wherever_fsspec_reads(tmp_path: Path) -> None:
    # as hf://datasets/coastalcph/multi_eurlex/data/multi_eurlex.tar.gz is
    import fsspec

    files = {"multi_eurlex.tar.gz": eurlex_archive(tmp_path), "jigsaw.zip": kaggle(tmp_path, "zip")}
    memory = fsspec.filesystem("memory")
    for name, path in files.items():
        memory.pipe(f"/presets/{name}", Path(path).read_bytes())
    output = tmp_path / "x.parquet"
    source = "memory://presets/multi_eurlex.tar.gz"
    assert make(source, output, "multi_eurlex", split="validation").rows == 2
    assert rows_of(output)[0]["id"] == "dev-32000R"
    assert make(f"{source}/test.jsonl", output, "multi_eurlex").rows == 2
    assert make("memory://presets/jigsaw.zip", output, "jigsaw", split="test").rows == 3


def test_multi_eurlex_is_read_from_the_unpacked_archive(tmp_path: Path) -> None:
    with tarfile.open(eurlex_archive(tmp_path)) as archive:
        for member in archive.getmembers():  # extractall takes a filter from Python 3.11.4 on
            content = archive.extractfile(member)
            if content is not None:
                file = tmp_path / "unpacked" / member.name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.read())
    source, output = str(tmp_path / "unpacked"), tmp_path / "x.parquet"
    assert make(source, output, "multi_eurlex", split="dev").labels == {
        "industry": 1,
        "social questions": 1,
    }
    said = message(f"{source}/dev.jsonl", output, "multi_eurlex", language="fr")
    assert "no column 'text.fr' (text)" in said
    assert "text.en, text.de" in said


def hub_parquet(folder: Path, *, with_names: bool = True) -> Path:
    """The hub's own conversion: a folder for each language, in it one for each split."""
    import datasets

    label = datasets.ClassLabel(names=list(DOMAINS)) if with_names else datasets.Value("int64")
    features = datasets.Features(
        celex_id=datasets.Value("string"),
        text=datasets.Value("string"),
        labels=datasets.List(label),
    )
    for language in ("en", "de"):
        for split in ("train", "validation", "test"):
            (folder / language / split).mkdir(parents=True)
            rows = {"celex_id": ["1", "2"], "text": [f"{language} {split}"] * 2}
            rows |= {"labels": [[0, 15], []]}  # type: ignore[dict-item]
            data = datasets.Dataset.from_dict(rows, features=features)
            data.to_parquet(str(folder / language / split / "0000.parquet"))
    return folder


@pytest.mark.parametrize("with_names", [True, False])
def test_multi_eurlex_is_read_from_a_copy_of_the_hubs_parquet(
    tmp_path: Path, with_names: bool
) -> None:
    source = str(hub_parquet(tmp_path / "hub", with_names=with_names))
    output = tmp_path / "x.parquet"
    make(source, output, "multi_eurlex", split="test", language="de")
    assert rows_of(output)[0] == {
        "id": "1",
        "text": "de test",
        "labels": ["social questions", "european union"],
    }
    said = message(source, output, "multi_eurlex", split="test", level=2)
    assert "the hub's Parquet has level 1 only: pass the published archive" in said


def test_a_data_set_that_is_a_script_is_read_from_the_hubs_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    folder, load = hub_parquet(tmp_path / "hub"), datasets.load_dataset
    asked: list[dict[str, Any]] = []

    def load_dataset(path: str, **options: Any) -> Any:
        assert path == "coastalcph/multi_eurlex"
        asked.append(dict(options))
        if options.pop("revision", None) != PARQUET_REVISION:
            raise RuntimeError("Dataset scripts are no longer supported, but found multi_eurlex.py")
        return load(str(folder), **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    output = tmp_path / "x.parquet"
    summary = make("coastalcph/multi_eurlex", output, "multi_eurlex", split="train", language="de")
    assert rows_of(output) == [
        {"id": "1", "text": "de train", "labels": ["social questions", "european union"]},
        {"id": "2", "text": "de train", "labels": []},
    ]
    assert summary.skipped == 0
    assert [options.get("name") for options in asked] == ["de", None]
    assert asked[1]["data_dir"] == "de"
    source = f"coastalcph/multi_eurlex@{PARQUET_REVISION}"
    make(source, output, "multi_eurlex", split="test")
    assert rows_of(output)[0]["text"] == "en test"
    assert len(asked) == 3
    said = message("coastalcph/multi_eurlex", output, "multi_eurlex")
    assert said == "coastalcph/multi_eurlex: name a split: it has train, validation, test"
    said = message("coastalcph/multi_eurlex", output, "multi_eurlex", split="train", level=3)
    assert "level 1 only: pass the published archive, hf://datasets/coastalcph/" in said
    with pytest.raises(DataError, match="name a subset: the hub's conversion"):
        convert("coastalcph/multi_eurlex", str(output), split="train", overwrite=True)


# --- options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preset", "go-emotions"], "preset 'go-emotions': did you mean 'go_emotions'?"),
        (["--preset", "imdb"], "preset 'imdb': expected jigsaw, go_emotions, multi_eurlex"),
        (["--preset", "jigsaw", "--level", "2"], "level is of the preset multi_eurlex"),
        (["--level", "2"], "level is of the preset multi_eurlex"),
        (["--preset", "multi_eurlex", "--level", "4"], "level 4: expected 1, 2 or 3"),
        (["--preset", "multi_eurlex", "--language", "eng"], "language 'eng': did you mean 'en'?"),
        (["--preset", "multi_eurlex", "--subset", "fr"], "MultiEURLEX has one for each language"),
        (["--split", "train"], "leave them out here, or name a preset"),
        (["--names", "none.json"], "none.json: cannot be read"),
        (["--labels-from", "none.csv", "--labels", "a,b"], "none.csv: there is no such file"),
    ],
)
def test_wrong_options_are_one_line_with_the_near_miss(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "x.csv").write_text("text,a,b\nx,1,0\n", encoding="utf-8")
    arguments = ["data", "convert", str(tmp_path / "x.csv"), str(tmp_path / "x.parquet")]
    assert cli(monkeypatch, *arguments, *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert said in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_the_command_takes_several_sources_and_says_what_is_odd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.tsv").write_text(
            "id\ttitle\tbody\tx\ty\n1\tA, b\tc\t1\t-1\n2\t\t\t-1\t-1\n", encoding="utf-8"
        )
    output = str(tmp_path / "x.parquet")
    sources = [str(tmp_path / f"{name}.tsv") for name in "ab"]
    options = ["--text", "{title}\\n{body}", "--labels", "x,y", "--json"]
    assert cli(monkeypatch, "data", "convert", *sources, output, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["duplicate_ids"], found["not_annotated"]) == (4, 2, 2)
    assert (found["unannotated_cells"], found["labels"]) == (2, {"x": 2, "y": 0})
    assert rows_of(tmp_path / "x.parquet")[0]["text"] == "A, b\nc"
    assert cli(monkeypatch, "data", "convert", *sources, output, *options[:-1], "--overwrite") == 0
    captured = capsys.readouterr()
    assert "4 examples with 2 labels" in captured.out
    assert "2  rows whose id an earlier row has" in captured.out
    assert "2  rows not annotated" in captured.out
    assert captured.err == "convert: 4 rows\n"


def test_a_comma_makes_one_column_a_zero_one_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.csv").write_text("text,spam\nx,1\ny,0\n", encoding="utf-8")
    arguments = ["data", "convert", str(tmp_path / "x.csv"), str(tmp_path / "x.parquet")]
    assert cli(monkeypatch, *arguments, "--labels", "spam") == 2
    assert "(a single one: `spam,`)" in capsys.readouterr().err
    assert cli(monkeypatch, *arguments, "--labels", "spam,") == 0
    assert [row["labels"] for row in rows_of(tmp_path / "x.parquet")] == [["spam"], []]


def test_a_preset_reads_back_like_its_columns(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(TRAIN, encoding="utf-8")
    make(str(tmp_path / "train.csv"), tmp_path / "x.parquet", "jigsaw")
    direct = read_examples(str(tmp_path / "train.csv"), text="comment_text", labels=list(TOXICITY))
    back = read_examples(str(tmp_path / "x.parquet"), label_set=direct.label_set)
    np.testing.assert_array_equal(back.targets_NL(), direct.targets_NL())
