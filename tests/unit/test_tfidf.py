"""A TF-IDF model folder is one like another: exact, proven by canaries, and refused by others."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ray_mlc import synthetic
from ray_mlc.config import BatchingConfig, EngineConfig, LongConfig
from ray_mlc.errors import ConfigError, ModelError
from ray_mlc.labels import LabelSet
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.engines.choose import (
    ResolvedEngine,
    load_classifier,
    load_tokenizer,
    reference_canaries,
    resolve,
)
from ray_mlc.model.engines.tfidf_engine import TfidfEngine, tfidf_classifier
from ray_mlc.model.folder import open_model
from ray_mlc.model.tfidf import (
    MAX_TOKENS,
    START,
    VOCABULARY_FILE,
    TfidfModel,
    TfidfTokenizer,
    tfidf_rows,
    words_and_pairs,
)
from ray_mlc.runtime.evaluate import load_here

HOSTILE = (
    "",
    " \n\t ",
    "a",
    "a b c",
    "Straße STRASSE ẞ straẞe",
    "İstanbul ISTANBUL ıstanbul",
    "naïve cafe\u0301 café CAFÉ",
    "12 3 45678 ٣٤ 一九 ²³ 1_000 3.14",
    "_under_ __ _x _1",
    "図書館は 九時に 開きます 図書館は 九時に",
    "भाषा हिन्दी भाषा",
    "nul\x00inside sep\u2028line zero\u200bwidth",
    "\U0001f600 \U0001f600\U0001f600 ok ok \U0001d400\U0001d401",
    "<script>alert(1)</script> & \"quoted\" 'single'",
    "the the the the the the the the",
    "long " * 3000,
)
TEXTS = [*synthetic.documents(40, seed=4)["text"].to_pylist(), *HOSTILE]


@pytest.fixture
def folder(tiny_tfidf: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(tiny_tfidf, tmp_path / "model"))


@pytest.fixture(scope="module")
def classifier(tiny_tfidf: Path) -> Classifier:
    return load_here(open_model(str(tiny_tfidf)), dtype="float32", device="cpu")


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    found = load_file(folder / "model.safetensors")
    found[name] = np.ascontiguousarray(change(found[name]))
    save_file(found, folder / "model.safetensors")


def toy(texts: Sequence[str], *, labels: int = 3, min_df: int = 1) -> TfidfModel:
    """A vocabulary of some texts with weights drawn at random."""
    names = [words_and_pairs(text) for text in texts]
    vocabulary = sorted({name for row in names for name in row})
    counts = [sum(name in row for row in names) for name in vocabulary]
    idf = np.log((1 + len(texts)) / (1 + np.array(counts))) + 1
    rng = np.random.default_rng(0)
    return TfidfModel(
        vocabulary=vocabulary,
        idf_F=idf.astype(np.float32),
        weights_FL=(4 * rng.standard_normal((len(vocabulary), labels))).astype(np.float32),
        bias_L=rng.standard_normal(labels).astype(np.float32),
    )


def rows_of(model: TfidfModel, texts: Sequence[str]) -> Any:
    ids = TfidfTokenizer(model.vocabulary).encode(texts)
    return tfidf_rows(ids.windows(np.arange(len(ids))), model.idf_F)


def theirs(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(texts)


def test_features_are_those_of_scikit_learn_on_hostile_texts() -> None:
    vectorizer, model = theirs(TEXTS), toy(TEXTS)
    assert list(model.vocabulary) == sorted(vectorizer.vocabulary_)
    difference = abs(rows_of(model, TEXTS) - vectorizer.transform(TEXTS))
    assert difference.max() < 1e-6


@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=8))
def test_features_are_those_of_scikit_learn_on_any_text(texts: list[str]) -> None:
    texts = [*texts, "one word more"]  # it refuses an empty vocabulary
    vectorizer, model = theirs(texts), toy(texts)
    assert list(model.vocabulary) == sorted(vectorizer.vocabulary_)
    assert abs(rows_of(model, texts) - vectorizer.transform(texts)).max() < 1e-6


def test_scores_after_loading_are_the_same_to_the_last_bit(tmp_path: Path) -> None:
    labels = LabelSet(("<b>bold</b>", 'a "quoted", label', "図書館"))
    model = toy(TEXTS)
    before_NL = tfidf_classifier(model, labels).predict_proba([*TEXTS, "unknown words alone"])
    tmp_path.joinpath("model").mkdir()
    model.save(tmp_path / "model", labels)
    loaded = TfidfModel.load(tmp_path / "model")
    after_NL = tfidf_classifier(loaded, labels).predict_proba([*TEXTS, "unknown words alone"])
    np.testing.assert_array_equal(before_NL, after_NL)
    assert before_NL.std(axis=0).min() > 0.1  # else constants were compared
    folder = open_model(str(tmp_path / "model"))
    assert (folder.info.kind, folder.label_set) == ("tfidf", labels)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    picked=st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=20),
    max_batch_tokens=st.integers(10_000, 20_000),
)
def test_scores_do_not_depend_on_the_neighbours_of_a_text(
    classifier: Classifier, picked: list[int], max_batch_tokens: int
) -> None:
    batched = Classifier(
        classifier.label_set, classifier.tokenizer, classifier.engine, max_batch_tokens
    )
    alone_NL = np.concatenate([classifier.predict_proba([TEXTS[index]]) for index in picked])
    together_NL = batched.predict_proba([TEXTS[index] for index in picked])
    np.testing.assert_array_equal(together_NL, alone_NL)


def test_texts_without_a_known_word_all_get_the_bias(classifier: Classifier) -> None:
    scores_NL = classifier.predict_proba(["", " \n", "zzzz qqqq", "\U0001f600"])
    np.testing.assert_array_equal(scores_NL, np.broadcast_to(scores_NL[0], scores_NL.shape))
    assert ((scores_NL > 0) & (scores_NL < 0.5)).all()


def test_ids_stand_in_the_order_of_the_text_and_cutting_keeps_its_beginning() -> None:
    names = ["cat", "dog", "dog cat", "cat dog"]
    tokenizer = TfidfTokenizer(names, max_tokens=4)
    ids = tokenizer.encode(["Dog, unknown; CAT dog", "", "cat"])
    shown = [[names[i - 1] for i in ids.window(row) if i != START] for row in range(3)]
    assert shown == [["dog", "cat", "cat dog"], [], ["cat"]]
    assert ids.n_tokens.tolist() == [5, 1, 2]  # with what a document begins with
    assert ids.lengths.tolist() == [4, 1, 2]


def test_a_cut_text_scores_as_its_beginning_does(tiny_tfidf: Path) -> None:
    folder = open_model(str(tiny_tfidf))
    long = " ".join(TEXTS[:10])
    cut = Classifier(
        folder.label_set,
        load_tokenizer(folder, max_tokens=20, windows=None),
        TfidfEngine(TfidfModel.load(folder.path)),
        MAX_TOKENS,
    )
    beginning = long[: len(long) // 4]
    assert cut.tokenizer.encode([beginning]).n_tokens[0] > 20
    np.testing.assert_array_equal(*(cut.predict_proba([text]) for text in (long, beginning)))


def test_nothing_is_padded_and_nothing_is_said_to_be(classifier: Classifier) -> None:
    classifier.stats.real_tokens = classifier.stats.padded_tokens = 0
    classifier.predict_proba(TEXTS)
    assert classifier.stats.real_tokens == sum(classifier.tokenizer.encode(TEXTS).lengths)
    assert classifier.stats.padding == 0


def test_only_what_is_returned_is_dense() -> None:
    size, labels, documents = 100_000, 2, 200
    model = TfidfModel(
        vocabulary=[f"w{number}" for number in range(size)],
        idf_F=np.ones(size, np.float32),
        weights_FL=np.ones((size, labels), np.float32),
        bias_L=np.zeros(labels, np.float32),
    )
    rng = np.random.default_rng(0)
    ids = [np.append(START, rng.integers(1, size, 50)).astype(np.int32) for _ in range(documents)]
    engine = TfidfEngine(model)
    engine.logits(ids[:1])  # imports
    tracemalloc.start()
    engine.logits(ids)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < documents * size * 4 / 20  # 80 MB, were the rows dense


def test_the_folder_holds_safetensors_and_json_alone(tiny_tfidf: Path) -> None:
    assert {file.name for file in tiny_tfidf.iterdir()} == {
        "config.json", "model.safetensors", "vocabulary.json", "canaries.json", "ray_mlc.json",
        "README.md",
    }  # fmt: skip
    card = (tiny_tfidf / "README.md").read_text()
    assert "pipeline(" not in card
    assert "transformers refuses it" in card


def test_transformers_refuses_the_folder(tiny_tfidf: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    with pytest.raises(ValueError, match="ray_mlc_tfidf"):
        AutoModelForSequenceClassification.from_pretrained(str(tiny_tfidf))
    with pytest.raises(ValueError, match="ray_mlc_tfidf"):
        pipeline("text-classification", model=str(tiny_tfidf))
    with pytest.raises((ValueError, OSError)):
        AutoTokenizer.from_pretrained(str(tiny_tfidf))


def test_canaries_are_neutral_sentences_and_pieces_of_the_vocabulary(tiny_tfidf: Path) -> None:
    from ray_mlc.model.canaries import SENTENCES

    folder = open_model(str(tiny_tfidf))
    canaries = folder.canaries()
    assert canaries is not None
    assert canaries.texts[: len(SENTENCES)] == list(SENTENCES)
    drawn = [words_and_pairs(text) for text in canaries.texts[len(SENTENCES) :]]
    tokenizer = load_tokenizer(folder, max_tokens=None, windows=None)
    known = set(tokenizer.vocabulary)
    assert all(name in known for names in drawn for name in names[::2])
    assert sum(name in known for names in drawn for name in names[1::2]) > 50  # pairs as well
    assert not set(TEXTS) & set(canaries.texts)


@pytest.mark.parametrize("part", ["weights", "bias", "idf"])
def test_a_slight_change_of_the_model_is_caught_by_every_actor(folder: Path, part: str) -> None:
    resolved = resolve_(folder)
    edit_weights(folder, part, lambda array: array * np.float32(1.01) + np.float32(0.02))
    with pytest.raises(ModelError, match="does not reproduce the canaries"):
        resolve_(folder)
    with pytest.raises(ModelError, match="does not reproduce the canaries here"):
        load_classifier(open_model(str(folder)), resolved)


def test_a_vocabulary_in_another_order_is_caught(folder: Path) -> None:
    names = json.loads((folder / VOCABULARY_FILE).read_text())
    (folder / VOCABULARY_FILE).write_text(json.dumps([*names[1:], names[0]]))
    with pytest.raises(ModelError, match="does not reproduce the canaries"):
        resolve_(folder)


def test_pairs_that_are_not_found_any_more_are_caught(
    tiny_tfidf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ray_mlc.model.tfidf.words_and_pairs", lambda text: words_and_pairs(text)[::2]
    )
    with pytest.raises(ModelError, match="does not reproduce the canaries"):
        resolve_(tiny_tfidf)


def resolve_(folder: Path, **options: Any) -> ResolvedEngine:
    engine = options.pop("engine", EngineConfig())
    batching = options.pop("batching", BatchingConfig())
    defaults: dict[str, Any] = {"cuda": False}
    return resolve(open_model(str(folder)), engine, batching, **{**defaults, **options})


def test_what_is_recorded_says_what_runs(tiny_tfidf: Path) -> None:
    resolved = resolve_(tiny_tfidf)
    assert (resolved.name, resolved.device, resolved.dtype) == ("tfidf", "cpu", "float32")
    assert resolved.packed
    assert resolved.max_tokens == resolved.max_batch_tokens == MAX_TOKENS
    assert "0 of" in resolved.canaries
    assert resolved.documents_per_s is None
    classifier = load_classifier(open_model(str(tiny_tfidf)), resolved)
    assert classifier.engine.name == "tfidf"


def test_the_speed_that_units_are_cut_by_counts_the_reading_of_words(
    tiny_tfidf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    encode = TfidfTokenizer.encode

    def slowly(self: TfidfTokenizer, texts: Sequence[str]) -> Any:
        if len(texts) == 20:
            time.sleep(0.4)
        return encode(self, texts)

    monkeypatch.setattr(TfidfTokenizer, "encode", slowly)
    resolved = resolve_(tiny_tfidf, sample=lambda **_: TEXTS[:20])
    assert resolved.documents_per_s is not None
    assert 10 < resolved.documents_per_s < 50
    assert [trial.name for trial in resolved.trials] == ["tfidf"]
    assert resolved.trials[0].tokens_per_s > 1000  # of the engine by itself
    assert resolve_(tiny_tfidf, sample=list).documents_per_s is None


@pytest.mark.parametrize(
    ("engine", "named"),
    [
        (EngineConfig(name="torch"), "torch"),
        (EngineConfig(name="openvino"), "openvino"),
        (EngineConfig(dtype="bfloat16"), "bfloat16"),
        (EngineConfig(dtype="int8"), "int8"),
    ],
)
def test_engines_of_encoders_are_refused(
    tiny_tfidf: Path, engine: EngineConfig, named: str
) -> None:
    with pytest.raises(ModelError, match=f"is a TF-IDF model.*{named} is for encoders"):
        resolve_(tiny_tfidf, engine=engine)


def test_gpus_are_refused_with_the_remedy(tiny_tfidf: Path) -> None:
    with pytest.raises(ModelError, match=r"runs on CPUs.*actors.gpus=0"):
        resolve_(tiny_tfidf, cuda=True)
    with pytest.raises(ConfigError, match="leave out device"):
        load_here(open_model(str(tiny_tfidf)), dtype="float32", device="cuda")


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_float32_and_auto_are_the_same(tiny_tfidf: Path, dtype: str) -> None:
    classifier = load_here(open_model(str(tiny_tfidf)), dtype=dtype, device="auto")
    assert (classifier.engine.name, classifier.engine.dtype) == ("tfidf", "float32")


def test_a_run_with_fewer_tokens_still_proves_itself(tiny_tfidf: Path) -> None:
    resolved = resolve_(tiny_tfidf, long=LongConfig(max_tokens=16))
    assert (resolved.max_tokens, resolved.max_batch_tokens) == (16, MAX_TOKENS)
    classifier = load_classifier(open_model(str(tiny_tfidf)), resolved)
    assert classifier.tokenizer.max_tokens == 16
    with pytest.raises(ModelError, match="max_batch_tokens is 4096, expected at least"):
        resolve_(tiny_tfidf, batching=BatchingConfig(max_batch_tokens=4096))


def test_a_folder_without_canaries_of_its_own_proves_itself_against_itself(folder: Path) -> None:
    for name in ("canaries.json", "ray_mlc.json"):
        (folder / name).unlink()
    model = open_model(str(folder))
    assert model.info.kind == "tfidf"
    assert resolve_(folder).max_tokens == MAX_TOKENS
    canaries = reference_canaries(model, load_tokenizer(model, max_tokens=None, windows=None))
    assert len(canaries.scores[0]) == len(synthetic.LABELS)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", VOCABULARY_FILE])
def test_the_digest_changes_with_every_scoring_file(folder: Path, file: str) -> None:
    before = open_model(str(folder)).digest
    with (folder / file).open("ab") as stream:
        stream.write(b" ")
    assert open_model(str(folder)).digest != before


def test_the_digest_of_an_encoder_takes_no_note_of_a_vocabulary(
    tiny_model: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (copy / VOCABULARY_FILE).write_text("[]")
    assert open_model(str(copy)).digest == open_model(str(tiny_model)).digest


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / VOCABULARY_FILE).unlink(), "vocabulary.json is missing"),
        (lambda f: (f / "ray_mlc.json").unlink(), "ray_mlc.json is missing beside canaries.json"),
        (lambda f: edit(f / "ray_mlc.json", kind="encoder"), "do not belong together"),
        (lambda f: edit(f / "config.json", model_type="bert"), "tokenizer.json is missing"),
        (lambda f: edit(f / "config.json", features={"ngram_range": [1, 3]}), "upgrade ray-mlc"),
        (lambda f: (f / VOCABULARY_FILE).write_text('["a", "a"]'), "twice"),
        (lambda f: (f / VOCABULARY_FILE).write_text('["a", 1]'), "not a list of words"),
        (lambda f: (f / VOCABULARY_FILE).write_text('["a", "b"]'), "is not for 2 words"),
        (lambda f: (f / VOCABULARY_FILE).write_text("[" * 9), "not valid JSON"),
        (lambda f: edit_weights(f, "weights", lambda w: w[:, :3]), "do not belong together"),
        (lambda f: edit_weights(f, "bias", lambda b: b.astype(np.float64)), "than float32"),
        (lambda f: save_file({"x": np.ones(1)}, f / "model.safetensors"), "lacks 'idf'"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickle"), "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(
    folder: Path, damage: Callable[[Path], object], says: str
) -> None:
    damage(folder)
    with pytest.raises(ModelError) as caught:
        resolve_(folder)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(folder))


def test_pairs_stand_between_their_words() -> None:
    names = words_and_pairs("One two, THREE x four")
    assert names[::2] == ["one", "two", "three", "four"]
    assert names[1::2] == [f"{a} {b}" for a, b in pairwise(names[::2])]
    assert words_and_pairs("x") == []
    assert words_and_pairs("xy") == ["xy"]
