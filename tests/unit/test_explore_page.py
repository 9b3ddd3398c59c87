"""The page of `data explore`, its words, and the command around it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.cli import run
from support.models import write_tiny_encoder

from ray_mlc.errors import DataError
from ray_mlc.report.explore import exploration_page, findings
from ray_mlc.runtime.explore import explore_examples, split_names
from ray_mlc.runtime.progress import Display

HOSTILE = "</script><script>alert(1)</script><a href='https://example.com'>&\"'"
SECRET = "a sentence that nobody may read in a report"


def write(path: Path, rows: int, labels: list[str], *, text: str = "some words of row") -> str:
    generator = np.random.default_rng(rows)
    lists = [
        sorted(
            {labels[at] for at in [row % len(labels), *generator.integers(0, len(labels), row % 3)]}
        )
        for row in range(rows)
    ]
    texts = [f"{text} {row % (rows - 2)}" for row in range(rows)]
    pq.write_table(pa.table({"text": texts, "labels": lists}), path)
    return str(path)


def figures_of(*paths: str, **options: Any) -> dict[str, Any]:
    settings = {"text": "text", "labels": "labels", "tokenizer": None, "near": 0.8}
    settings |= {"texts": False, "output": None, "display": Display(quiet=True)}
    return explore_examples(list(paths), **{**settings, **options})


def body(html: str) -> str:
    """The page without its scripts, in which plotly's library names many addresses."""
    return re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)


def test_the_page_needs_nothing_from_anywhere(tmp_path: Path) -> None:
    labels = [HOSTILE, "b", "c", "https://example.com/label"]
    paths = [write(tmp_path / f"{name}.parquet", 50, labels) for name in ("train", "test")]
    html = exploration_page(figures_of(*paths, texts=True), made="today")
    assert "default-src 'none'" in html
    assert "<script>alert" not in html
    assert not re.search(r"<(img|iframe|object|embed|video|audio|source|base|form)\b", body(html))
    assert re.findall(r"<link\b[^>]*>", html) == ['<link rel="icon" href="data:,">']
    assert not re.search(r"<[^>]+\b(src|href|action)\s*=\s*[\"']?(?![\"'#]|data:)", body(html))
    assert not re.search(r"<script[^>]+\bsrc\b", html)
    assert "@import" not in body(html)


def test_no_name_reaches_a_plot_as_markup(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", 50, [HOSTILE, "<b>x</b>", "c"])
    html = exploration_page(figures_of(path), made="today")
    for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.S):
        assert "<" not in re.sub(r"<(br|extra)>|</extra>", "", json.dumps(json.loads(data)))


def test_four_thousand_labels_stay_within_a_page(tmp_path: Path) -> None:
    labels = [f"a label with quite a long name, number {at}" for at in range(4_000)]
    paths = [
        write(tmp_path / f"{name}.parquet", rows, labels)
        for name, rows in (("train", 9_000), ("validation", 900), ("test", 901))
    ]
    figures = figures_of(*paths, near=0)
    html = exploration_page(figures, made="today")
    assert len(figures["labels"]) == 4_000
    assert html.count("number 3999") >= 1
    from plotly.offline import get_plotlyjs

    assert len(html) - len(get_plotlyjs()) < 6_000_000
    assert len(figures["together"]["labels"]) == 40


def test_texts_are_shown_only_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "train.parquet", 40, ["a", "b"], text=SECRET)
    page = tmp_path / "page.html"
    assert run(monkeypatch, "data", "explore", path, "--output", str(page), "--quiet") == 0
    assert SECRET not in page.read_text(encoding="utf-8")
    assert run(monkeypatch, "data", "explore", path, "--json", "--quiet") == 0
    assert SECRET not in capsys.readouterr().out
    options = ["--texts", "--output", str(page), "--json", "--quiet"]
    assert run(monkeypatch, "data", "explore", path, *options) == 0
    assert SECRET in page.read_text(encoding="utf-8")
    assert SECRET in capsys.readouterr().out


def test_the_page_and_the_json_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write(tmp_path / f"{name}.parquet", 60, ["a", "b", "c"]) for name in ("x", "y")]
    page = tmp_path / "page.html"
    options = ["--json", "--quiet", "--output", str(page)]
    assert run(monkeypatch, "data", "explore", *paths, *options) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["sources"]) == ["x", "y"]
    html = page.read_text(encoding="utf-8")
    for label in figures["labels"]:
        for name in ("x", "y"):
            assert f">{label['count'][name]:,}<" in html
            assert f">{100 * label['rate'][name]:.3f}<" in html


def test_a_glob_does_not_make_the_test_split_the_one_to_learn_from(tmp_path: Path) -> None:
    for name in ("test", "train", "other", "validation"):
        write(tmp_path / f"{name}.parquet", 30, ["a", "b"])
    figures = figures_of(*map(str, sorted(tmp_path.glob("*.parquet"))), near=0)
    assert [split["name"] for split in figures["splits"]] == [
        "train",
        "validation",
        "test",
        "other",
    ]
    assert list(figures["sources"]) == ["train", "validation", "test", "other"]


def test_without_an_output_json_writes_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "train.parquet", 30, ["a", "b"])
    assert run(monkeypatch, "data", "explore", path, "--json", "--quiet") == 0
    assert [found.name for found in tmp_path.iterdir()] == ["train.parquet"]
    assert run(monkeypatch, "data", "explore", path, "--quiet") == 0
    assert sorted(found.name for found in tmp_path.iterdir()) == [
        "exploration.html",
        "train.parquet",
    ]
    assert "written: exploration.html" in capsys.readouterr().out


def test_tokens_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    from ray_mlc.model.tokenization import Tokenizer

    encoder = tmp_path / "encoder"
    write_tiny_encoder(encoder, seed=0)
    texts = ["one", "", "many words " * 300]
    pq.write_table(pa.table({"text": texts, "labels": [["a"]] * 3}), tmp_path / "t.parquet")
    figures = figures_of(str(tmp_path / "t.parquet"), tokenizer=str(encoder), near=0)
    words, tokens = figures["lengths"]
    expected = Tokenizer.load(encoder, max_tokens=10_000).encode(texts).n_tokens
    assert (words["splits"][0]["total"], words["tokenizer"]) == (601, None)
    assert tokens["splits"][0]["total"] == expected.sum()
    assert tokens["splits"][0]["longest"] == expected.max()
    assert "Length in tokens" in exploration_page(figures, made="today")


def test_the_findings_name_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    common = [f"text {at} with some more words to it" for at in range(200)]
    train = pa.table(
        {
            "text": [*common, None, " ", common[0], common[0].upper()],
            "labels": pa.array([["a"]] * 202 + [["b"], None], pa.list_(pa.string())),
        }
    )
    test = pa.table({"text": [common[1], "new"], "labels": [["a"], ["c"]]})
    pq.write_table(train, tmp_path / "train.parquet")
    pq.write_table(test, tmp_path / "test.parquet")
    figures = figures_of(str(tmp_path / "train.parquet"), str(tmp_path / "test.parquet"))
    said = "\n".join(finding for finding, _ in findings(figures))
    assert "32 words keep all of the documents whole" in said
    assert "train: 1 texts are null and 1 empty, of 204." in said
    assert "train: in 1 of 204 rows nobody decided a label." in said
    assert "2 of 3 labels have fewer than 10 examples in train, such as 'b', 'c'." in said
    assert "1 label(s) are absent from train, such as 'c'; 0 of them have 10 examples" in said
    assert "2 row(s) repeat the text of an earlier row of their split (train 2)." in said
    assert "test: the text of 1 row(s) (50.0%) is in train too" in said
    assert "2 rows have the text of another, but not its labels (1 texts)." in said
    assert all(remedy for _, remedy in findings(figures))


def test_splits_are_named_by_as_much_of_their_path_as_tells_them_apart() -> None:
    assert split_names(["a/train.parquet", "a/test.parquet"]) == ["train", "test"]
    assert split_names(["a/x.parquet", "b/x.parquet"]) == ["a/x", "b/x"]
    assert split_names(["/a/x.csv.gz", "b/"]) == ["x", "b"]
    assert split_names(["x.csv", "x.parquet"]) == ["x.csv", "x.parquet"]
    assert split_names(["a/v1.2/"]) == ["v1.2"]
    with pytest.raises(DataError, match="there twice"):
        split_names(["a/x.parquet", "a/x.parquet"])


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["missing.parquet"], 2, "there is no such file"),
        (["train.parquet", "--text", "txt"], 2, "did you mean 'text'?"),
        (["train.parquet", "--near", "0.2"], 2, "expected a Jaccard similarity"),
        (["train.parquet", "--tokenizer", "./none"], 2, "the tokenizer cannot be loaded"),
        (["train.parquet", "--output", "train.parquet/x.html"], 1, "cannot write"),
        (["train.parquet", "train.parquet"], 2, "there twice"),
    ],
)
def test_wrong_use_is_one_line(
    options: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.parquet", 30, ["a", "b"])
    assert run(monkeypatch, "data", "explore", *options, "--quiet") == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]
