"""`evaluate --explain`: the words of the worst mistakes, shaded, named and never run as markup."""

from __future__ import annotations

import html as html_of
import json
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.browser import opened
from support.cli import run
from support.studies import made_up_study

from ray_mlc import synthetic
from ray_mlc.model.explain import Explanation, TermShare, WordShare
from ray_mlc.report.evaluation import evaluation_page
from ray_mlc.report.explanations import TEXT_SHOWN, shaded
from ray_mlc.report.page import Piece
from ray_mlc.runtime import explain as explain_module

HOSTILE = '</p><script>alert(1)</script> \u202eneve <img src=x onerror=alert(2)> "quoted" & so'


def words_of(text: str, shares: list[float]) -> list[WordShare]:
    found = [(item.group(), item.start()) for item in re.finditer(r"\S+", text)]
    return [
        WordShare(word, start, share) for (word, start), share in zip(found, shares, strict=False)
    ]


def page_of(text: str, **changes: Any) -> str:
    found = made_up_study(60, 4)
    words = words_of(text, [1.0, -0.5, 0.2, 0.01, -1.0, 0.6])
    explained = [
        (mistake, Explanation("label", 1.0, -1.0, 0, words, 0.0, **changes))
        for mistake in found.costliest[:2]
    ]
    return evaluation_page(
        found,
        title="t",
        facts=[],
        ids=[HOSTILE] * 60,
        texts=[text] * 60,
        explained=explained,
        wanted=5,
    )


def test_a_text_in_pieces_is_the_text() -> None:
    text = "one two\n three  four"
    pieces = shaded(text, words_of(text, [1.0, -0.4, 0.05, 0.2]))
    assert "".join(piece.text for piece in pieces) == text
    marks = {piece.text: piece.mark for piece in pieces if piece.mark}
    assert marks == {"one": 4, "two": -2, "four": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("abc", []),
        ("abc", [WordShare("abc", 0, 0.0)]),
        ("abc", [WordShare("ab", 0, 1.0), WordShare("bc", 1, -1.0), WordShare("bc", 1, 1.0)]),
        ("x" * 5_000, [WordShare("x" * 5_000, 0, 1.0)]),
        ("😀😀", [WordShare("😀", 0, 1.0), WordShare("", 1, 1.0), WordShare("😀", 1, -1.0)]),
    ],
)
def test_odd_words_lose_and_repeat_nothing(text: str, words: list[WordShare]) -> None:
    shown = "".join(piece.text for piece in shaded(text, words)).removesuffix(" …")
    assert text.startswith(shown)
    assert len(shown) == min(len(text), TEXT_SHOWN)


def test_of_a_long_text_the_stretch_is_shown_that_says_most() -> None:
    text = " ".join(f"w{number}" for number in range(3_000))
    shares = [0.001] * 3_000
    shares[2_000] = 5.0
    pieces = shaded(text, words_of(text, shares))
    assert Piece("w2000", 4, "+5.000") in pieces
    assert pieces[0].text == "… "
    assert pieces[-1].text == " …"
    assert sum(len(piece.text) for piece in pieces) <= TEXT_SHOWN + 4


def test_nothing_of_a_text_is_markup_and_marks_are_told_in_words_too() -> None:
    html = page_of(HOSTILE)
    body = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert "<img" not in body
    assert "alert(1)</script>" not in body
    assert html_of.escape("</p><script>alert(1)</script>", quote=False) in body
    assert "2 of 5 were explained in the time there was" in body
    assert re.search(r"<b>for:</b> .*\+1\.00", body)
    assert re.search(r"<b>against:</b> .*-1\.00", body)
    assert 'class="for m4"' in body
    assert 'class="against m4"' in body


def test_pairs_are_named_where_the_model_has_them() -> None:
    html = page_of("a b c", terms=[TermShare("a b", 1, 0.75), TermShare("c", 2, -0.25)])
    assert "a b +0.75" in html
    assert "c -0.25" in html


def test_without_texts_no_word_is_shown_even_if_explanations_are_passed() -> None:
    found = made_up_study(20, 3)
    words = [WordShare("secret", 0, 1.0)]
    explained = [(found.costliest[0], Explanation("label", 1.0, 0.0, 0, words, 0.0))]
    ids = [str(row) for row in range(20)]
    html = evaluation_page(found, title="t", facts=[], ids=ids, explained=explained)
    assert "secret" not in html


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = synthetic.documents(30, seed=7)
    texts = documents["text"].to_pylist()
    texts[0], texts[1] = " \n", HOSTILE
    labels = documents["labels"].to_pylist()
    labels[2] = ["a label, that the model lacks"]
    file = tmp_path_factory.mktemp("examples") / "test.parquet"
    pq.write_table(pa.table({"text": texts, "labels": labels}), file)
    return file


def evaluate(
    monkeypatch: pytest.MonkeyPatch, model: Path, examples: Path, output: Path, *options: str
) -> int:
    paths = (str(model), str(examples), "--output", str(output), "--device", "cpu")
    return run(monkeypatch, "evaluate", *paths, *options)


def test_the_command_explains_the_worst_mistakes_of_both_kinds_of_model(
    tiny_model: Path,
    tiny_tfidf: Path,
    examples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(explain_module, "EXPLAINED", 3)
    for name, model in (("encoder", tiny_model), ("tfidf", tiny_tfidf)):
        output = tmp_path / f"{name}.json"
        assert evaluate(monkeypatch, model, examples, output, "--texts", "--explain") == 0
        written = json.loads(output.read_text())
        assert written["explained"]["mistakes"] == written["explained"]["wanted"] == 3
        html = output.with_suffix(".html").read_text()
        assert html.count('<article class="passage">') == 4
        assert "Why: the words behind the most costly mistakes" in html
        # the figures for programs hold no text
        assert "lacks" in output.read_text()
        assert "onerror" not in output.read_text()
    assert "explain: 3 of 3 mistakes" in capsys.readouterr().err


def test_time_that_is_up_leaves_out_the_rest_and_says_so(
    tiny_model: Path,
    examples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(explain_module.time, "monotonic", lambda: next(clock) * 0.5)
    output = tmp_path / "x.json"
    options = ("--texts", "--explain", "--explain-seconds", "5")
    assert evaluate(monkeypatch, tiny_model, examples, output, *options) == 0
    written = json.loads(output.read_text())["explained"]
    assert written["mistakes"] < written["wanted"]
    assert "mistakes were explained in 5 s (--explain-seconds)" in capsys.readouterr().err
    assert "explained in the time there was" in output.with_suffix(".html").read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--explain",), "set texts as well"),
        (("--texts", "--explain", "--explain-seconds", "0"), "--explain-seconds"),
        (("--texts", "--explain", "--explain-seconds", "nan"), "--explain-seconds"),
    ],
)
def test_what_cannot_be_explained_is_refused_before_the_scoring(
    tiny_model: Path,
    examples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    says: str,
) -> None:
    output = tmp_path / "x.json"
    assert evaluate(monkeypatch, tiny_model, examples, output, *options) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert "evaluate:" not in shown
    assert not output.exists()


def test_a_machine_without_captum_is_told_before_the_scoring(
    tiny_model: Path,
    examples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    output = tmp_path / "x.json"
    assert evaluate(monkeypatch, tiny_model, examples, output, "--texts", "--explain") == 2
    shown = capsys.readouterr().err
    assert "pip install 'ray-mlc[explain]'" in shown
    assert "evaluate:" not in shown


@pytest.mark.browser
def test_shades_can_be_told_apart_and_fit_a_phone(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page_of(HOSTILE + " " + "x" * 900), encoding="utf-8")
    with opened(file) as seen:
        for width in (1280, 400):
            seen.page.set_viewport_size({"width": width, "height": 900})
            script = "[...document.querySelectorAll('.passage')].every(p => p.scrollWidth <= "
            assert seen.page.evaluate(script + "p.clientWidth)")
        style = "m => { const s = getComputedStyle(m); return [s.backgroundColor, "
        style += "s.textDecorationStyle, s.color]; }"
        mark = seen.page.locator("mark.for.m4").last.evaluate(style)
        other = seen.page.locator("mark.against.m4").last.evaluate(style)
        assert mark[0] != other[0]
        assert (mark[1], other[1]) == ("solid", "dotted")
        assert mark[2] == other[2]  # the ink of the page
        assert (seen.complaints, seen.requests) == ([], [])
