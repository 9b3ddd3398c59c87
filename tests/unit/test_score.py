"""Blocks of text to blocks of scores: rows keep their order, faults stay in their row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_mlc.corpus.columns import ReadSpec
from ray_mlc.corpus.rows import BLOCK_FAULT, BLOCK_UNIT_ROWS, read_block
from ray_mlc.corpus.units import Unit
from ray_mlc.labels import LabelSet
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.decisions import Decision, Rules
from ray_mlc.model.engines.protocol import OneByOne
from ray_mlc.model.tokenization import Tokenizer
from ray_mlc.scoring import score as score_module
from ray_mlc.scoring.parts import (
    BLOCK_ERROR,
    BLOCK_K_CUT,
    BLOCK_PADDED,
    BLOCK_REAL,
    SCORED_BLOCK_COLUMNS,
    OutputSpec,
    resolve_format,
)
from ray_mlc.scoring.score import score_block, scored_schema, set_aside, tokenize_block

MAX_TOKENS = 16
NAMES = ("a", "b", "c", "d")
THRESHOLDS_L = np.array([0.2, 0.5, 0.5, 0.9], np.float32)
FLOOR, K = 0.3, 2


class CountingEngine(OneByOne):
    """Stands in for an encoder: its logits follow from the ids of each document alone.

    A document that holds one of `poison`'s ids gets that id's value as its last logit.
    """

    name, device, dtype = "double", "cpu", "float32"

    def __init__(self, labels: int, poison: dict[int, float] | None = None) -> None:
        self.labels, self.poison = labels, poison or {}
        self.batches: list[int] = []

    def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        self.batches.append(len(ids))
        return np.array([self.row(row) for row in ids], np.float32)

    def row(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        logits = 4 * np.random.default_rng(ids.astype(np.int64)).standard_normal(self.labels)
        for poisoned, value in self.poison.items():
            if poisoned in ids:
                logits[-1] = value
        return logits.astype(np.float32)


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder: Path) -> Tokenizer:
    return Tokenizer.load(tiny_encoder, max_tokens=MAX_TOKENS)


def classifier(tokenizer: Tokenizer, engine: CountingEngine, names: Sequence[str]) -> Classifier:
    return Classifier(LabelSet(tuple(names)), tokenizer, engine, max_batch_tokens=64)


def block_of(folder: Path, texts: Sequence[Any], *, max_text_bytes: int = 2**30) -> pa.Table:
    """A block of one unit as reading gives it; texts are bytes, strings or None."""
    raw = [text.encode() if isinstance(text, str) else text for text in texts]
    pq.write_table(pa.table({"text": pa.array(raw, pa.binary())}), folder / "a.parquet")
    unit = Unit("a.parquet", "a", 0, len(texts), 0, 1, 0)
    return read_block([unit], ReadSpec(str(folder), "text", ()), max_text_bytes=max_text_bytes)


def output(format_: str = "wide", names: Sequence[str] = NAMES) -> OutputSpec:
    return OutputSpec(pa.schema([]), LabelSet(tuple(names)), format_, K, FLOOR)


def run(
    block: pa.Table,
    tokenizer: Tokenizer,
    *,
    format_: str = "wide",
    policy: str = "truncate",
    engine: CountingEngine | None = None,
    rules: Rules = Rules(THRESHOLDS_L),
) -> pa.Table:
    engine = engine or CountingEngine(len(NAMES))
    tokenized = tokenize_block(block, tokenizer, policy=policy)
    scored = score_block(tokenized, classifier(tokenizer, engine, NAMES), rules, output(format_))
    assert scored.num_rows == block.num_rows
    assert scored["row"].to_pylist() == block["row"].to_pylist()
    return scored


def expected_scores(text: str, tokenizer: Tokenizer) -> NDArray[np.float64]:
    """Scores of one text alone, in float64."""
    ids = tokenizer.encode([text]).values
    return 1 / (1 + np.exp(-CountingEngine(len(NAMES)).row(ids).astype(np.float64)))


def expected_labels(scores: NDArray[np.float64]) -> list[str]:
    given_ = [column for column in range(len(NAMES)) if scores[column] >= THRESHOLDS_L[column]]
    return [NAMES[column] for column in sorted(given_, key=lambda column: -scores[column])]


MIXED = [
    "the meeting starts at nine",
    None,
    "a",
    " \n",
    b"\xff\xfe",
    "the " * 100,
    "it was so",
    "",
    "any of those things that they said",
]
MIXED_STATUS = ["ok", "null_text", "ok", "empty", "decode_error", "ok", "ok", "empty", "ok"]


@pytest.mark.parametrize("format_", ["wide", "sparse", "dense"])
def test_fall_back_and_hierarchy_hold_in_every_form_and_leave_rows_without_scores_alone(
    tmp_path: Path, tokenizer: Tokenizer, format_: str
) -> None:
    poisoned = int(tokenizer.encode(["it was so"]).values[1])
    engine = CountingEngine(len(NAMES), {poisoned: float("nan")})
    decision = Decision(threshold=0.98, hierarchy={"a": ["d"], "d": ["c"]}, fallback=1)
    label_set = LabelSet(NAMES)
    scored = run(
        block_of(tmp_path, MIXED),
        tokenizer,
        format_=format_,
        engine=engine,
        rules=decision.rules(label_set),
    )
    statuses = scored["status"].to_pylist()
    assert "not_finite" in statuses
    counts = []
    for text, status, labels in zip(MIXED, statuses, scored["labels"].to_pylist(), strict=True):
        if status != "ok":
            assert labels is None
            continue
        scores = dict(zip(NAMES, expected_scores(str(text), tokenizer), strict=True))
        given = {name for name in NAMES if scores[name] >= 0.98}
        counts.append(len(given))
        given = given or {max(NAMES, key=scores.__getitem__)}
        given |= {"d"} if "a" in given else set()
        given |= {"c"} if "d" in given else set()
        assert labels == sorted(given, key=lambda name: -scores[name])
    assert min(counts) == 0 < max(counts)  # both happen


@pytest.mark.parametrize("format_", ["wide", "sparse", "dense"])
def test_every_form_holds_what_each_text_alone_gives(
    tmp_path: Path, tokenizer: Tokenizer, format_: str
) -> None:
    scored = run(block_of(tmp_path, MIXED), tokenizer, format_=format_)
    extra = [BLOCK_K_CUT] if format_ == "sparse" else []
    own = output(format_).schema.names
    assert scored.column_names == [*own, *SCORED_BLOCK_COLUMNS, *extra]
    assert scored["status"].to_pylist() == MIXED_STATUS
    for text, row in zip(MIXED, scored.to_pylist(), strict=True):
        cells = [row[name] for name in own if name.startswith(("score", "top", "labels"))]
        if row["status"] != "ok":
            assert cells == [None] * len(cells)
            assert row["n_windows"] == 0
            continue
        scores = expected_scores(str(text), tokenizer)
        assert row["labels"] == expected_labels(scores)
        assert row["n_windows"] == 1
        match format_:
            case "wide":
                assert [row[f"score_{name}"] for name in NAMES] == pytest.approx(scores, abs=1e-6)
            case "dense":
                assert [float(x) for x in row["scores"]] == pytest.approx(scores, abs=1e-3)
            case _:
                best = [column for column in np.argsort(-scores) if scores[column] >= FLOOR]
                assert [item["label"] for item in row["top"]] == [NAMES[at] for at in best[:K]]
                found = [item["score"] for item in row["top"]]
                assert found == pytest.approx(scores[best[:K]], abs=1e-6)
                assert row[BLOCK_K_CUT] == max(0, len(best) - K)


def test_tokens_are_counted_before_cutting(tmp_path: Path, tokenizer: Tokenizer) -> None:
    scored = run(block_of(tmp_path, MIXED), tokenizer)
    for text, row in zip(MIXED, scored.to_pylist(), strict=True):
        if row["status"] != "ok":
            assert (row["n_tokens"], row["truncated"]) == (None, None)
            continue
        whole = int(tokenizer.encode([str(text)]).n_tokens[0])
        assert (row["n_tokens"], row["truncated"]) == (whole, whole > MAX_TOKENS)
    assert any(row["truncated"] for row in scored.to_pylist())


def test_skipping_long_texts_marks_them_and_scores_the_others(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    block = block_of(tmp_path, MIXED)
    scored, truncated = run(block, tokenizer, policy="skip"), run(block, tokenizer)
    for row, other in zip(scored.to_pylist(), truncated.to_pylist(), strict=True):
        if other["truncated"]:
            assert (row["status"], row["labels"], row["score_a"]) == ("too_long", None, None)
            assert (row["n_tokens"], row["truncated"]) == (other["n_tokens"], False)
        else:
            for name in output().schema.names:
                assert row[name] == other[name]


@pytest.mark.parametrize("format_", ["wide", "sparse", "dense"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_marks_its_row_only(
    tmp_path: Path, tokenizer: Tokenizer, format_: str, value: float
) -> None:
    texts = ["the first", "it was poisoned zzz", "a third"]
    clean = run(block_of(tmp_path, texts), tokenizer, format_=format_)
    only = set(tokenizer.encode([texts[1]]).values) - set(
        tokenizer.encode([texts[0], texts[2]]).values
    )
    engine = CountingEngine(len(NAMES), {int(min(only)): value})
    scored = run(block_of(tmp_path, texts), tokenizer, format_=format_, engine=engine)
    assert engine.batches == [3]  # all in one forward pass
    assert scored["status"].to_pylist() == ["ok", "not_finite", "ok"]
    first, broken, third = scored.to_pylist()
    assert [first, third] == [clean.to_pylist()[0], clean.to_pylist()[2]]
    for name in output(format_).schema.names:
        if name.startswith(("score", "top", "labels")):
            assert broken[name] is None
    assert broken["n_windows"] == 0
    assert broken["n_tokens"] == int(tokenizer.encode([texts[1]]).n_tokens[0])


class Breaking(CountingEngine):
    """Fails over every batch with a document that holds the id `guilty`."""

    def __init__(self, guilty: int) -> None:
        super().__init__(len(NAMES))
        self.guilty = guilty

    def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        if any(self.guilty in row for row in ids):
            raise RuntimeError("a kernel failed")
        return super().logits(ids)


def test_a_row_over_which_the_engine_fails_keeps_its_place_and_says_why(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_module, "MAX_CELLS", 5 * len(NAMES))  # several chunks of a block
    texts: list[str | None] = [f"the word {number}" for number in range(20)]
    texts[3], texts[11] = None, "the word z"
    guilty = int(tokenizer.encode(["z"]).values[1])
    assert sum(guilty in tokenizer.encode([text]).values for text in texts if text) == 1
    scored = run(block_of(tmp_path, texts), tokenizer, engine=Breaking(guilty))
    statuses = scored["status"].to_pylist()
    assert statuses == [
        "null_text" if i == 3 else "not_finite" if i == 11 else "ok" for i in range(20)
    ]
    assert scored[BLOCK_ERROR].to_pylist() == [
        "a kernel failed" if i == 11 else None for i in range(20)
    ]
    assert [row is None for row in scored["labels"].to_pylist()] == [
        i in (3, 11) for i in range(20)
    ]


def test_a_text_that_is_there_again_is_scored_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts: list[str | None] = ["one", "two", "one", None, "two", "three", "one", " "]
    engine = CountingEngine(len(NAMES))
    scored = run(block_of(tmp_path, texts), tokenizer, engine=engine)
    assert sum(engine.batches) == 3
    for row, text in enumerate(texts):
        if text in ("one", "two", "three"):
            (tmp_path / f"{row}").mkdir()
            alone = run(block_of(tmp_path / f"{row}", [text]), tokenizer)
            for name in ("labels", *(f"score_{label}" for label in NAMES), "n_tokens", "status"):
                assert scored[name][row].as_py() == alone[name][0].as_py()
    # tokens are those of the forward passes: a repeated text costs nothing
    tokens = [
        len(row) for row in (tokenizer.encode([text]).values for text in ("one", "two", "three"))
    ]
    assert sum(scored[BLOCK_REAL].to_pylist()) == sum(tokens)


def test_all_rows_with_a_guilty_text_say_why(tmp_path: Path, tokenizer: Tokenizer) -> None:
    guilty = int(tokenizer.encode(["z"]).values[1])
    scored = run(
        block_of(tmp_path, ["a word", "z", "a word", "z"]), tokenizer, engine=Breaking(guilty)
    )
    assert scored["status"].to_pylist() == ["ok", "not_finite", "ok", "not_finite"]
    assert scored[BLOCK_ERROR].to_pylist() == [None, "a kernel failed", None, "a kernel failed"]


class Panicking:
    """A tokenizer whose Rust code panics over some texts; a panic is no Exception."""

    def __init__(self, tokenizer: Tokenizer, error: type[BaseException]) -> None:
        self.inner, self.error, self.covered = tokenizer, error, tokenizer.covered

    def encode(self, texts: Sequence[str]) -> Any:
        if any("bad" in text for text in texts):
            raise self.error("index out of bounds")
        return self.inner.encode(texts)


PanicException = type("PanicException", (BaseException,), {})


@pytest.mark.parametrize("error", [ValueError, PanicException])
@pytest.mark.parametrize("bad", [{0}, {7}, {2, 3, 9}, set(range(10))])
def test_a_text_over_which_the_tokenizer_fails_is_a_decode_error_of_its_row(
    tmp_path: Path, tokenizer: Tokenizer, bad: set[int], error: type[BaseException]
) -> None:
    texts = ["bad" if number in bad else f"word {number}" for number in range(10)]
    block = block_of(tmp_path, texts)
    scored = run(block, Panicking(tokenizer, error))  # type: ignore[arg-type]
    plain = run(block, tokenizer)
    for number in range(10):
        if number in bad:
            assert scored["status"][number].as_py() == "decode_error"
            assert scored[BLOCK_ERROR][number].as_py() == "index out of bounds"
            assert scored["n_tokens"][number].as_py() is None
        else:
            assert scored["score_a"][number].as_py() == plain["score_a"][number].as_py()
            assert scored["n_tokens"][number].as_py() == plain["n_tokens"][number].as_py()


def test_ctrl_c_in_the_tokenizer_is_not_taken_for_a_bad_text(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(block_of(tmp_path, ["bad"]), Panicking(tokenizer, KeyboardInterrupt))  # type: ignore[arg-type]


@pytest.mark.parametrize("format_", ["wide", "sparse", "dense"])
def test_the_schema_of_scored_blocks_is_as_announced(
    tmp_path: Path, tokenizer: Tokenizer, format_: str
) -> None:
    scored = run(block_of(tmp_path, ["a word"]), tokenizer, format_=format_)
    assert scored.schema == scored_schema(output(format_))


def test_a_unit_set_aside_is_one_marker_row_with_the_reason(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    marker = set_aside(block_of(tmp_path, ["a", "b", "c"]), "it kills")
    scored = run(marker, tokenizer)
    assert (scored.num_rows, scored[BLOCK_FAULT][0].as_py()) == (1, "it kills")
    assert scored[BLOCK_UNIT_ROWS][0].as_py() == 3


def test_labels_are_empty_where_none_is_given(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenized = tokenize_block(block_of(tmp_path, ["one", None]), tokenizer, policy="truncate")
    unreachable_L = np.full(len(NAMES), 2, np.float32)
    double = classifier(tokenizer, CountingEngine(len(NAMES)), NAMES)
    assert score_block(tokenized, double, Rules(unreachable_L), output())["labels"].to_pylist() == [
        [],
        None,
    ]


def test_a_threshold_is_reached_by_the_score_that_equals_it(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    block = block_of(tmp_path, ["one"])
    scores = [run(block, tokenizer)[f"score_{name}"][0].as_py() for name in NAMES]
    tokenized = tokenize_block(block, tokenizer, policy="truncate")
    double = classifier(tokenizer, CountingEngine(len(NAMES)), NAMES)
    at_L = np.array(scores, np.float32)
    above_L = np.nextafter(at_L, np.float32(2))
    assert len(score_block(tokenized, double, Rules(at_L), output())["labels"][0].as_py()) == 4
    assert score_block(tokenized, double, Rules(above_L), output())["labels"][0].as_py() == []


ODD = {
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 🙂" * 3,
    "right to left": "שלום עולם مرحبا بالعالم",
    "zero width": "a\u200bb\u200c\ufeff",
    "only zero width": "\u200b\u200d",
    "control": "a\x00b\x07c\x1b[0m",
    "only control": "\x00\x01\x02",
    "combining": "e" + "\u0301" * 500,
    "private and unassigned": "\ue000\U0010ffff",
    "direction override": "\u202eabc\u202c",
    "one letter": "x",
    "one long word": "x" * 5000,
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_text_is_scored_like_any_other(
    tmp_path: Path, tokenizer: Tokenizer, name: str
) -> None:
    scored = run(block_of(tmp_path, ["before", ODD[name], "after"]), tokenizer)
    assert scored["status"].to_pylist() == ["ok"] * 3
    row = scored.to_pylist()[1]
    scores = expected_scores(ODD[name], tokenizer)
    assert [row[f"score_{label}"] for label in NAMES] == pytest.approx(scores, abs=1e-6)
    assert row["n_tokens"] >= 2


def test_half_a_surrogate_pair_is_a_decode_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    half = "\ud83d".encode("utf-8", "surrogatepass")
    scored = run(block_of(tmp_path, ["before", half, "after"]), tokenizer)
    assert scored["status"].to_pylist() == ["ok", "decode_error", "ok"]


def test_a_text_of_ten_megabytes_is_cut_and_scored(tmp_path: Path, tokenizer: Tokenizer) -> None:
    huge = ("word " + "🙂" * 500 + " ") * 5000
    assert len(huge.encode()) > 10**7
    block = block_of(tmp_path, ["before", huge, "after"])
    row = run(block, tokenizer).to_pylist()[1]
    assert (row["status"], row["truncated"]) == ("ok", True)
    assert row["n_tokens"] > 10_000
    limited = block_of(tmp_path, ["before", huge, "after"], max_text_bytes=10**7)
    assert run(limited, tokenizer)["status"].to_pylist() == ["ok", "too_long", "ok"]


def test_a_marker_row_passes_through_unscored(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    units = [Unit("gone.parquet", "gone", 0, 9, 0, 1, 0), Unit("a.parquet", "a", 0, 2, 0, 1, 0)]
    block = read_block(units, ReadSpec(str(tmp_path), "text", ()), max_text_bytes=100)
    engine = CountingEngine(len(NAMES))
    scored = run(block, tokenizer, engine=engine)
    assert sum(engine.batches) == 2
    faults = scored["__ray_mlc_fault"].to_pylist()
    assert "gone.parquet" in faults[0]
    assert faults[1:] == [None, None]
    assert scored["labels"].to_pylist()[0] is None


def test_a_block_without_any_text_needs_no_forward_pass(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    for format_ in ("wide", "sparse", "dense"):
        engine = CountingEngine(len(NAMES))
        scored = run(block_of(tmp_path, [None, ""]), tokenizer, format_=format_, engine=engine)
        assert scored["status"].to_pylist() == ["null_text", "empty"]
        assert engine.batches == []


def test_many_labels_come_out_sparse_and_equal_the_plain_answer(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(f"label {number}" for number in range(80))
    label_set = LabelSet(names)
    format_ = resolve_format("auto", label_set)
    assert format_ == "sparse"
    spec = OutputSpec(pa.schema([]), label_set, format_, 5, 0.5)
    tokenized = tokenize_block(block_of(tmp_path, MIXED), tokenizer, policy="truncate")
    whole = score_block(
        tokenized,
        classifier(tokenizer, CountingEngine(80), names),
        Rules(np.full(80, 0.5, np.float32)),
        spec,
    )
    for row in whole.to_pylist():
        if row["status"] == "ok":
            assert len(row["top"]) == 5
            assert row["labels"][:5] == [item["label"] for item in row["top"]]
            assert row[BLOCK_K_CUT] == len(row["labels"]) - 5
    # the scores of a block are made in pieces so that memory stays bounded: it must not show
    monkeypatch.setattr(score_module, "MAX_CELLS", 160)
    pieces = score_block(
        tokenized,
        classifier(tokenizer, CountingEngine(80), names),
        Rules(np.full(80, 0.5, np.float32)),
        spec,
    )
    without = [name for name in whole.column_names if name != BLOCK_PADDED]
    assert pieces.select(without).to_pylist() == whole.select(without).to_pylist()


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.one_of(st.none(), st.text(max_size=40), st.binary(max_size=8)), min_size=1))
def test_rows_keep_their_number_and_order_whatever_the_texts(
    tmp_path: Path, tokenizer: Tokenizer, texts: list[Any]
) -> None:
    raw = [text.encode("utf-8", "replace") if isinstance(text, str) else text for text in texts]
    scored = run(block_of(tmp_path, raw), tokenizer)
    for value, row in zip(raw, scored.to_pylist(), strict=True):
        if row["status"] == "ok":
            scores = expected_scores(value.decode(), tokenizer)
            assert [row[f"score_{name}"] for name in NAMES] == pytest.approx(scores, abs=1e-6)
        else:
            assert row["labels"] is None


def test_a_real_encoder_scores_a_text_alike_alone_and_among_others(
    tmp_path: Path, tiny_classifier: Classifier
) -> None:
    from ray_mlc import synthetic

    texts = synthetic.documents(40, seed=5)["text"].to_pylist()
    names = tiny_classifier.label_set.names
    rules = Rules(np.full(len(names), 0.6, np.float32))
    block = block_of(tmp_path, texts)
    tokenized = tokenize_block(block, tiny_classifier.tokenizer, policy="truncate")
    scored = score_block(tokenized, tiny_classifier, rules, output("wide", names))
    together_NL = np.stack([scored[f"score_{name}"].to_numpy() for name in names], axis=1)
    alone_NL = np.concatenate([tiny_classifier.predict_proba([text]) for text in texts])
    assert np.abs(together_NL - alone_NL).max() < 1e-6
    assert together_NL.std() > 0.05  # or else the test would see nothing
