"""Runs in this process, over one classifier that is made once: an example takes milliseconds.

The encoder is a double whose logits follow from the token ids of each document alone, so that a
score on the wrong row shows. Some documents make it fail, some have no finite logit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ray_mlc import synthetic
from ray_mlc.config import LongConfig, ScoreJob
from ray_mlc.errors import ModelError
from ray_mlc.labels import LabelSet
from ray_mlc.model.classifier import HARMLESS, Classifier
from ray_mlc.model.decisions import Rules
from ray_mlc.model.engines.choose import ResolvedEngine
from ray_mlc.model.engines.protocol import OneByOne
from ray_mlc.model.folder import ModelFolder
from ray_mlc.model.tokenization import Tokenizer
from ray_mlc.runtime.interrupt import Stop
from ray_mlc.runtime.steps import Work, write
from ray_mlc.scoring import ledger, rescore
from ray_mlc.scoring.parts import Receipt
from ray_mlc.scoring.plan import CorpusPlan
from ray_mlc.scoring.score import score_block, tokenize_block
from ray_mlc.scoring.standing import Vitals

LABELS = LabelSet(("Spam", "spam", "news of the day", "x/y", "ü"))
THRESHOLD = 0.4
MAX_TOKENS = 12
MAX_BATCH_TOKENS = 64
_MIX_T = np.random.default_rng(0).integers(1, 2**20, size=4096)


class HashEngine(OneByOne):
    """Logits that follow from a document's ids; some documents fail, some are not finite."""

    name, device, dtype = "double", "cpu", "float32"

    def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        return np.array([self.row(row) for row in ids], np.float32)

    def row(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        hashed = int(ids.astype(np.int64) @ _MIX_T[: len(ids)]) % 1_000_003
        if hashed % 31 == 1:
            raise ValueError(f"cannot score {len(ids)} tokens\n(on purpose)")
        logits = 4 * np.sin(hashed * 0.37 * np.arange(1, len(LABELS) + 1))
        if hashed % 29 == 1:
            logits[hashed % len(LABELS)] = (np.nan, np.inf, -np.inf)[hashed % 3]
        return logits.astype(np.float32)


def make_model(folder: Path) -> Path:
    """Write a model folder; its weights are never loaded, its tokenizer is."""
    from ray_mlc.model.canaries import record_canaries
    from ray_mlc.model.decisions import Decision
    from ray_mlc.model.encoder import new_classifier_model
    from ray_mlc.model.folder import ModelInfo, write_model_folder
    from ray_mlc.model.tokenization import load_pretrained_tokenizer

    encoder = folder / "encoder"
    encoder.mkdir(parents=True)
    synthetic.write_encoder(
        encoder,
        texts=synthetic.documents(50, seed=2)["text"].to_pylist(),
        vocab_size=200,
        hidden_size=4,
        intermediate_size=4,
        max_tokens=64,
        seed=0,
    )
    tokenizer = Tokenizer.load(encoder, max_tokens=MAX_TOKENS)
    harmless = Classifier(LABELS, tokenizer, _Flat(), 4096)
    HashEngine().row(tokenizer.encode([HARMLESS]).window(0))  # must not be one of those that fail
    model = folder / "model"
    write_model_folder(
        model,
        model=new_classifier_model(encoder, LABELS, head_bias=np.zeros(len(LABELS)), seed=0),
        tokenizer=load_pretrained_tokenizer(encoder),
        info=ModelInfo(
            labels=list(LABELS.names),
            decision=Decision(threshold=THRESHOLD),
            long=LongConfig(policy="truncate", max_tokens=MAX_TOKENS),
        ),
        canaries=record_canaries(harmless),
        history=[],
    )
    return model


class _Flat(OneByOne):
    name, device, dtype = "double", "cpu", "float32"

    def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        return np.zeros((len(ids), len(LABELS)), np.float32)


@lru_cache(maxsize=64)
def tokenizer_of(model: str, max_tokens: int) -> Tokenizer:
    """The model's tokenizer; loading one takes longer than an example."""
    return Tokenizer.load(model, max_tokens=max_tokens)


def classifier_of(
    folder: ModelFolder, resolved: ResolvedEngine, *, rules: Rules | None = None
) -> Classifier:
    """Stands in for `load_classifier`; the double proves nothing, and needs no decision."""
    del rules
    tokenizer = tokenizer_of(str(folder.path), resolved.max_tokens)
    return Classifier(LABELS, tokenizer, HashEngine(), resolved.max_batch_tokens)


@contextmanager
def doubles() -> Iterator[None]:
    """Let `verify --deep` score its sample with the double as well, and spare what takes time.

    Reading the versions of packages from their metadata would be a fifth of an example.
    """
    real = rescore.load_classifier, ledger.versions
    known = ledger.versions()
    rescore.load_classifier = classifier_of  # type: ignore[assignment]
    ledger.versions = lambda: known
    try:
        yield
    finally:
        rescore.load_classifier, ledger.versions = real


class DoubleBackend:
    """Every step in this process with the double."""

    starting: str | None = None

    def resolve(self, folder: ModelFolder, plan: CorpusPlan, job: ScoreJob) -> ResolvedEngine:
        """As `model.engines.choose.resolve` does, without trying engines."""
        asked = job.batching.max_batch_tokens
        long = job.long
        max_tokens = long.max_tokens if long and long.max_tokens else MAX_TOKENS
        if max_tokens > 4096:
            raise ModelError(f"long.max_tokens is {max_tokens}, but the encoder has 4096 positions")
        budget = MAX_BATCH_TOKENS if asked == "auto" else asked
        if budget < max_tokens:
            raise ModelError(f"batching.max_batch_tokens is {budget}, expected at least max_tokens")
        return ResolvedEngine(
            name="torch",
            device="cpu",
            dtype="float32",
            max_batch_tokens=budget,
            max_tokens=max_tokens,
        )

    def actors(self, job: ScoreJob) -> int:
        """See `Backend.actors`."""
        return 1

    def start(self) -> AbstractContextManager[None]:
        """See `Backend.start`."""
        return nullcontext()

    def process(
        self,
        plan: CorpusPlan,
        works: Sequence[Work],
        reads: Sequence[NDArray[np.int64]],
        job: ScoreJob,
        *,
        scored: Callable[[Vitals], None],
        stop: Stop,
    ) -> Iterator[list[list[Receipt]]]:
        """See `Backend.process`."""
        (work,) = works
        tokenizer = tokenizer_of(work.model, work.resolved.max_tokens)
        classifier = Classifier(LABELS, tokenizer, HashEngine(), work.resolved.max_batch_tokens)
        for read in reads:
            tokens = tokenize_block(
                work.reading(plan.units_at(read)), classifier.tokenizer, policy=work.policy
            )
            block = score_block(tokens, classifier, work.rules, work.output)
            scored(Vitals(block.num_rows, actors=1))
            yield write(block, works)


def expected_score(text: str, tokenizer: Tokenizer) -> tuple[int, NDArray[np.float64] | None]:
    """Tokens before cutting, and float64 scores of a text alone; None where there are none."""
    ragged = tokenizer.encode([text])
    try:
        logits = HashEngine().row(ragged.window(0)).astype(np.float64)
    except ValueError:
        return int(ragged.n_tokens[0]), None
    if not np.isfinite(logits).all():
        return int(ragged.n_tokens[0]), None
    return int(ragged.n_tokens[0]), 1 / (1 + np.exp(-logits))
