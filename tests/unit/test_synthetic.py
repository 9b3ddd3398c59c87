import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_mlc.config import TrainingConfig
from ray_mlc.errors import DataError
from ray_mlc.synthetic import (
    DEMO_TRAINING,
    LABELS,
    documents,
    write_corpus,
    write_encoder,
    write_examples,
)

TINY = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_tokens": 64,
}


@pytest.fixture(scope="module")
def many() -> pa.Table:
    """Enough documents to see the rate of the rarest label."""
    return documents(8_000, seed=3)


@pytest.fixture(scope="module")
def encoder(many: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder folder, as training would get it from the hub."""
    folder = tmp_path_factory.mktemp("encoder")
    write_encoder(folder, texts=many["text"].slice(0, 1_000).to_pylist(), seed=0, **TINY)
    return folder


def targets(table: pa.Table) -> np.ndarray:
    rows = [set(labels) for labels in table["labels"].to_pylist()]
    return np.array([[name in labels for name in LABELS.names] for labels in rows])


def test_a_seed_gives_one_corpus_and_another_seed_another() -> None:
    assert documents(50, seed=1).equals(documents(50, seed=1))
    other = documents(50, seed=2)
    assert not set(documents(50, seed=1)["text"].to_pylist()) & set(other["text"].to_pylist())


def test_documents_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = (
        "from ray_mlc.synthetic import documents; print(documents(20, seed=1)['text'].to_pylist())"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2])},
    ).stdout
    assert said.strip() == str(documents(20, seed=1)["text"].to_pylist())


def test_a_longer_table_begins_with_the_shorter_one() -> None:
    assert documents(5_000, seed=1).slice(0, 60).equals(documents(60, seed=1))


def test_importing_the_module_does_not_import_torch_or_pyarrow() -> None:
    code = (
        "import sys, ray_mlc.synthetic; "
        "print({'torch', 'transformers', 'tokenizers', 'pyarrow'} & set(sys.modules))"
    )
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    ).stdout
    assert said.strip() == "set()"


def test_label_rates_run_from_a_quarter_down_to_one_or_two_in_a_hundred(many: pa.Table) -> None:
    rates = targets(many).mean(axis=0)
    assert len(LABELS) >= 8
    assert LABELS.names == tuple(sorted(LABELS.names))
    assert 0.2 < rates.max() < 0.3
    assert 0.01 < rates.min() < 0.025
    assert 0.2 < (targets(many).sum(axis=1) == 0).mean() < 0.4


@pytest.mark.parametrize(
    ("name", "companion"), [("energy", "climate"), ("finance", "trade"), ("trade", "transport")]
)
def test_companions_are_together_far_more_often_than_by_chance(
    many: pa.Table, name: str, companion: str
) -> None:
    one, other = (targets(many)[:, LABELS.index[label]] for label in (name, companion))
    assert (one & other).mean() > 2 * one.mean() * other.mean()


def test_lengths_in_words_are_log_normal(many: pa.Table) -> None:
    words = np.array([len(text.split()) for text in many["text"].to_pylist()])
    logs = np.log(words)
    assert 36 < np.median(words) < 44
    assert 0.65 < logs.std() < 0.9
    skew = ((logs - logs.mean()) ** 3).mean() / logs.std() ** 3
    assert abs(skew) < 0.4
    assert words.max() < 450


def test_texts_are_sentences(many: pa.Table) -> None:
    for text in many["text"].slice(0, 200).to_pylist():
        assert text[0].isupper()
        assert text.endswith(".")
        assert not any(text.count(odd) for odd in ("  ", " ,", " .", ",.", "..", ",,"))


def test_fresh_documents_bring_new_forms_of_words(many: pa.Table) -> None:
    seen = {word for text in many["text"].to_pylist() for word in text.lower().split()}
    fresh = " ".join(documents(200, seed=4)["text"].to_pylist()).lower().split()
    new = [word for word in fresh if word not in seen]
    assert len(set(new)) > 0.1 * len(set(fresh))


def test_examples_are_three_files_without_a_common_text(tmp_path: Path) -> None:
    write_examples(tmp_path, train=60, validation=30, test=40, seed=1)
    tables = {path.stem: pq.read_table(path) for path in tmp_path.glob("*.parquet")}
    assert {name: len(table) for name, table in tables.items()} == {
        "train": 60,
        "validation": 30,
        "test": 40,
    }
    for table in tables.values():
        assert table.schema.equals(documents(1, seed=1).schema)
        assert {name for row in table["labels"].to_pylist() for name in row} <= set(LABELS.names)
    texts = [text for table in tables.values() for text in table["text"].to_pylist()]
    texts += documents(60, seed=1)["text"].to_pylist()
    ids = [identity for table in tables.values() for identity in table["id"].to_pylist()]
    assert len(set(texts)) == len(texts)
    assert len(set(ids)) == len(ids)


def test_a_corpus_is_its_documents_with_a_few_blank_ones(tmp_path: Path) -> None:
    write_corpus(tmp_path, rows=2_500, files=3, seed=1, row_group_rows=400)
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == [f"part-{number:05}.parquet" for number in range(3)]
    assert {pq.ParquetFile(path).metadata.row_group(0).num_rows for path in paths} == {400}
    corpus = pa.concat_tables([pq.read_table(path) for path in paths])
    truth = documents(2_500, seed=1)
    assert corpus.column_names == ["id", "url", "text"]
    assert corpus["id"].to_pylist() == truth["id"].to_pylist()
    texts = corpus["text"].to_pylist()
    nulls = sum(text is None for text in texts)
    blanks = sum(text is not None and not text.strip() for text in texts)
    assert (nulls, blanks) == (3, 3)
    same = sum(
        ours == theirs for ours, theirs in zip(texts, truth["text"].to_pylist(), strict=True)
    )
    assert same == 2_500 - nulls - blanks


def test_more_files_than_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 rows do not fill 3 files"):
        write_corpus(tmp_path, rows=2, files=3, seed=1)


def test_the_encoder_folder_loads_with_another_number_of_labels(encoder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForSequenceClassification.from_pretrained(
        encoder,
        num_labels=5,
        problem_type="multi_label_classification",
        ignore_mismatched_sizes=True,
    )
    batch = tokenizer(
        ["No energy.", "any sign of it " * 40], padding=True, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = model(**batch).logits
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == TINY["max_tokens"] == batch["input_ids"].shape[1]
    assert logits.shape == (2, 5)
    assert torch.isfinite(logits).all()
    assert (encoder / "model.safetensors").exists()


def test_fresh_documents_have_hardly_an_unknown_piece(encoder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder)
    ids = tokenizer(documents(100, seed=9)["text"].to_pylist())["input_ids"]
    pieces = [piece for row in ids for piece in row]
    assert [row[0] for row in ids] == [tokenizer.cls_token_id] * 100
    assert [row[-1] for row in ids] == [tokenizer.sep_token_id] * 100
    assert pieces.count(tokenizer.unk_token_id) < 0.001 * len(pieces)


def test_the_weights_of_an_encoder_depend_on_its_seed_alone(encoder: Path, tmp_path: Path) -> None:
    import torch

    before = torch.get_rng_state()
    texts = documents(1_000, seed=3)["text"].to_pylist()
    for seed in (0, 1):
        write_encoder(tmp_path / str(seed), texts=texts, seed=seed, **TINY)
    weights = (encoder / "model.safetensors").read_bytes()
    assert (tmp_path / "0" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "1" / "model.safetensors").read_bytes() != weights
    assert torch.equal(torch.get_rng_state(), before)


def test_the_demo_settings_are_settings_of_training() -> None:
    assert TrainingConfig.model_validate(dict(DEMO_TRAINING)).epochs == DEMO_TRAINING["epochs"]
