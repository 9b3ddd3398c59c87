"""Choose an engine once per run, and load what was chosen ever after.

`resolve` runs where the actors will run and turns every `auto` into a fact; the run records it.
`load_classifier` loads exactly what is recorded and proves it on the canaries; it never picks
another, because two precisions in one output could not be told apart afterwards.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import Field

from ray_mlc.config import BatchingConfig, EngineConfig, LongConfig, Section, WindowsConfig
from ray_mlc.errors import ModelError, first_line
from ray_mlc.model.canaries import check_canaries, record_canaries
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.decisions import Rules
from ray_mlc.model.encoder import load_config, max_positions
from ray_mlc.model.engines.int8 import FOLDER as INT8_FOLDER
from ray_mlc.model.engines.int8 import Int8Info, read_int8, refuse_other_decision
from ray_mlc.model.engines.protocol import Engine
from ray_mlc.model.engines.race import best_budget, probe_budget, race
from ray_mlc.model.engines.tfidf_engine import TfidfEngine
from ray_mlc.model.folder import Canaries, ModelFolder
from ray_mlc.model.tfidf import MAX_TOKENS as TFIDF_BATCH_TOKENS
from ray_mlc.model.tfidf import VOCABULARY_FILE, TfidfModel, TfidfTokenizer, read_vocabulary
from ray_mlc.model.tokenization import AnyTokenizer, Tokenizer, TokenizerState

log = logging.getLogger(__name__)

CPU_BATCH_TOKENS = 4096
"""Padded tokens per CPU pass: activations of a small encoder then stay near the caches."""
CUDA_BATCH_TOKENS = 65_536
"""Padded tokens per CUDA pass; a pass that does not fit is halved."""
BUDGETS = {"cpu": (1024, 2048, 4096, 8192), "cuda": (16_384, 32_768, 65_536, 131_072, 262_144)}
"""What `max_batch_tokens: auto` tries."""
TRIAL_S = 1.0
"""About how long a candidate is timed."""
RACE_SEED = 0


class Trial(Section):
    """A candidate, and what came of it."""

    name: str
    """Library."""
    dtype: str
    """Precision."""
    packed: bool = False
    """Whether documents lie end to end, without padding."""
    max_batch_tokens: int
    """Padded tokens per forward pass."""
    tokens_per_s: float | None = None
    """Tokens of the corpus's own documents per second and process; null: not timed."""
    verdict: str
    """How its scores compare with the canaries, or why it was not tried."""


class ResolvedEngine(Section):
    """What `auto` came to: recorded in the run, reused by every resume."""

    name: str
    """Library, or `tfidf`."""
    device: str
    """`cpu` or `cuda`."""
    dtype: str
    """Precision."""
    packed: bool = False
    """Whether documents lie end to end in a batch, without padding."""
    max_batch_tokens: int
    """Padded tokens per forward pass."""
    max_tokens: int
    """Tokens kept per document, or per window of one."""
    windows: WindowsConfig | None = None
    """How long documents are read in windows; null: they are not."""
    weights: str | None = None
    """SHA-256 over the files of the quantized model; null: the engine runs the model's own."""
    canaries: str = Field(default="")
    """How the engine compares with the recorded scores."""
    documents_per_s: float | None = None
    """Documents of the corpus per second and process; null: not timed."""
    trials: list[Trial] = Field(default_factory=list)
    """What it was chosen from."""
    measured_at: str | None = None
    """When an earlier run timed the trials on this machine; null: this one did."""

    @property
    def most_tokens(self) -> int:
        """Tokens of a document that are read at most, in all its windows."""
        return self.max_tokens * (1 if self.windows is None else self.windows.max_windows)


class Sample(Protocol):
    """Fetches some documents of a corpus."""

    def __call__(self, *, max_tokens: int) -> Sequence[str]:
        """Fetch them; of each document `max_tokens` are read at most, in all its windows."""


def resolve(
    folder: ModelFolder,
    engine: EngineConfig,
    batching: BatchingConfig,
    *,
    cuda: bool,
    long: LongConfig | None = None,
    threads: int | None = None,
    sample: Sample | None = None,
) -> ResolvedEngine:
    """Turn every `auto` into a fact, on the hardware that will score.

    The candidates that hold on the canaries are timed on the sample, and the fastest is taken.
    Where float32 is asked for there is no race: PyTorch, which `predict` and `evaluate` use too,
    gives the same scores everywhere.

    Args:
        folder: The model.
        engine: What the job asks for.
        batching: The same.
        cuda: Whether the actors have a GPU.
        long: What happens to long documents as the job says; None: as the model says.
        threads: CPU threads; None: PyTorch's default.
        sample: Fetches documents like those that will be scored, so much of each as will be read;
            None: nothing is timed, and the first candidate that holds is taken, with the default
            batch size.

    Raises:
        ModelError: If what is named does not hold on the canaries or cannot be loaded, or the model
            cannot take so many tokens.
    """
    long = folder.long(long)
    max_tokens = long.max_tokens or folder.max_tokens
    tokenizer = load_tokenizer(folder, max_tokens=max_tokens, windows=long.windows)
    device = "cuda" if cuda else "cpu"
    library, wanted = str(engine.name), engine.dtype
    if folder.info.kind == "tfidf":
        _refuse_for_tfidf(folder, engine, cuda=cuda)
        library, wanted, default = "tfidf", "float32", TFIDF_BATCH_TOKENS
    else:
        positions = max_positions(load_config(folder.path))
        if positions is not None and tokenizer.max_tokens > positions:
            raise ModelError(
                f"{folder.name}: long.max_tokens is {tokenizer.max_tokens}, but the encoder has "
                f"{positions} positions: lower it"
            )
        default = CUDA_BATCH_TOKENS if cuda else CPU_BATCH_TOKENS
    if cuda and library == "openvino":
        raise ModelError(
            "engine.name is openvino, which runs on CPUs, but actors have GPUs: set actors.gpus=0"
        )
    asked = batching.max_batch_tokens
    budget = max(default, tokenizer.max_tokens) if asked == "auto" else asked
    if budget < tokenizer.max_tokens:
        raise ModelError(
            f"batching.max_batch_tokens is {budget}, expected at least max_tokens "
            f"({tokenizer.max_tokens}): the longest document must fit into a batch"
        )
    weights, own = None, folder.max_tokens
    if wanted == "int8":
        if cuda:
            raise ModelError(
                "engine.dtype is int8, which runs on CPUs, but actors have GPUs: set actors.gpus=0"
            )
        form = read_int8(folder)
        refuse_other_decision(form, folder)
        weights, canaries, own = form.weights, form.canaries, form.max_tokens
    else:
        canaries = reference_canaries(folder, tokenizer, threads=threads)
    trials: list[Trial] = []
    for dtype in [wanted] if wanted != "auto" else _auto_dtypes(device):
        holding: list[tuple[ResolvedEngine, Engine]] = []
        candidates = _candidates(library, device, dtype, named=wanted == dtype)
        for name, packed in candidates:
            chosen = ResolvedEngine(
                name=name,
                device=device,
                dtype=dtype,
                packed=packed,
                max_batch_tokens=budget,
                max_tokens=tokenizer.max_tokens,
                windows=tokenizer.windows,
                weights=weights,
            )
            try:
                loaded, verdict = _try(folder, chosen, tokenizer, canaries, own, threads)
            except Exception as error:  # whatever a library raises that cannot run the model
                if (name, packed) == ("torch", False) or len(candidates) == 1:
                    raise  # there is nothing left that could
                log.warning("%s cannot be used: %s", _shown(chosen), first_line(error))
                loaded, verdict = None, first_line(error)
            trial = Trial(
                name=name,
                dtype=dtype,
                packed=packed,
                max_batch_tokens=budget,
                verdict=verdict,
            )
            trials.append(trial)
            if loaded is not None:
                holding.append((chosen.model_copy(update={"canaries": verdict}), loaded))
                if sample is None:
                    break
        if holding:
            if sample is None:
                return holding[0][0].model_copy(update={"trials": trials})
            # nothing is padded in TF-IDF's batches: the largest costs no more than others
            probe = asked == "auto" and library != "tfidf"
            windows = tokenizer.windows.max_windows if tokenizer.windows else 1
            try:
                texts = sample(max_tokens=windows * tokenizer.max_tokens)
                return _fastest(holding, trials, tokenizer, texts, probe=probe)
            except Exception as error:  # scoring finds the guilty document, and names it
                log.warning("nothing is timed: %s", first_line(error))
                return holding[0][0].model_copy(update={"trials": trials})
    remedy = "train or copy the model again"
    if wanted == "int8":
        remedy = "run `ray-mlc quantize` again, on a machine like this one"
    raise ModelError(
        f"{folder.name}: {_shown(trials[-1])} on {device}: {trials[-1].verdict}: {remedy}, or set "
        "engine.dtype=float32"
    )


def _refuse_for_tfidf(folder: ModelFolder, engine: EngineConfig, *, cuda: bool) -> None:
    """Refuse what only encoders can be run on.

    Raises:
        ModelError: If something else is asked for than the one engine there is.
    """
    if cuda:
        raise ModelError(
            f"{folder.name}: is a TF-IDF model, which runs on CPUs, but actors have GPUs: set "
            "actors.gpus=0"
        )
    if engine.name != "auto" or engine.dtype not in ("auto", "float32"):
        asked = engine.name if engine.name != "auto" else engine.dtype
        raise ModelError(
            f"{folder.name}: is a TF-IDF model, which has an engine of its own, in float32: "
            f"{asked} is for encoders: leave it out"
        )


def _try(
    folder: ModelFolder,
    chosen: ResolvedEngine,
    tokenizer: AnyTokenizer,
    canaries: Canaries,
    own: int | None,
    threads: int | None,
) -> tuple[Engine | None, str]:
    """Load a candidate and check it: the engine if it may be used, and why or why not.

    `own` is the token limit that the canaries were recorded with.
    """
    rules = folder.info.decision.rules(folder.label_set)
    classifier = _load(folder, chosen, tokenizer, threads)
    report = check_canaries(_with_limit(classifier, folder, own), canaries, rules)
    if report.holds:
        return classifier.engine, str(report)
    log.warning("%s does not hold on the canaries: %s", _shown(chosen), report)
    return None, f"does not reproduce the canaries: {report}"


def _shown(trial: Trial | ResolvedEngine) -> str:
    """An engine in three words."""
    return f"{trial.name} {trial.dtype}{' packed' if trial.packed else ''}"


def _fastest(
    holding: Sequence[tuple[ResolvedEngine, Engine]],
    trials: Sequence[Trial],
    tokenizer: AnyTokenizer,
    texts: Sequence[str],
    *,
    probe: bool,
) -> ResolvedEngine:
    """Time the candidates, if there are documents to do so with; the winner, with the table.

    Where the batch size is open, they race with the smallest, and the winner tries larger ones.
    """
    best, engine = holding[0]
    if not texts:
        return best.model_copy(update={"trials": list(trials)})
    started = time.perf_counter()
    ids = tokenizer.encode(texts)
    tokenize_s = (time.perf_counter() - started) / len(texts)
    budgets = [best.max_batch_tokens]
    if probe:
        budgets = [n for n in BUDGETS[best.device] if n >= best.max_tokens] or budgets
    options: dict[str, Any] = {"seconds": TRIAL_S, "seed": RACE_SEED}
    speeds = race([engine for _, engine in holding], ids, max_batch_tokens=budgets[0], **options)
    table = {
        _shown(chosen): {"max_batch_tokens": budgets[0], "tokens_per_s": round(speed, 1)}
        for (chosen, _), speed in zip(holding, speeds, strict=True)
    }
    timed = [trial.model_copy(update=table.get(_shown(trial), {})) for trial in trials]
    best, engine = holding[int(np.argmax(speeds))]
    found = probe_budget(engine, ids, budgets, first=max(speeds), **options)
    timed += [
        Trial(
            name=best.name,
            dtype=best.dtype,
            packed=best.packed,
            max_batch_tokens=budget,
            tokens_per_s=round(speed, 1),
            verdict="batch size",
        )
        for budget, speed in found.items()
        if budget != budgets[0]
    ]
    chosen = best_budget(found)
    document_s = len(ids.values) / len(ids) / found[chosen]
    if best.device == "cpu":  # beside GPUs, others tokenize
        document_s += tokenize_s
    return best.model_copy(
        update={
            "max_batch_tokens": chosen,
            "documents_per_s": round(1 / document_s, 2),
            "trials": timed,
        }
    )


def describe_trials(resolved: ResolvedEngine) -> str | None:
    """What was measured, in one line; None if nothing was."""
    timed = [trial for trial in resolved.trials if trial.tokens_per_s is not None]
    if not timed:
        return None
    shown = " · ".join(
        f"{_shown(trial)} {trial.tokens_per_s:,.0f} at {trial.max_batch_tokens:,}"
        for trial in timed
    )
    of_whom = "on documents of this corpus"
    if resolved.measured_at is not None:
        of_whom = f"as measured {resolved.measured_at} (engine.remember=false measures anew)"
    return f"tokens/s of one process {of_whom}, by tokens in a batch: {shown}"


def load_classifier(
    folder: ModelFolder,
    resolved: ResolvedEngine,
    *,
    rules: Rules | None = None,
    threads: int | None = None,
) -> Classifier:
    """Load what a run recorded, and prove it on the canaries.

    Args:
        folder: The model.
        resolved: How it is run.
        rules: Decision by which labels of the canaries are compared; None: the folder's.
        threads: CPU threads; None: PyTorch's default.

    Raises:
        ModelError: If this process cannot run it, or the canaries do not hold.
    """
    try:
        return _load_proven(folder, resolved, rules, threads)
    except ModelError as error:
        if resolved.measured_at is None:
            raise
        # nobody has tried it since: a new output would recall it again
        raise ModelError(
            f"{error} (an engine that was remembered: a new output with engine.remember=false "
            "finds another)"
        ) from None


def _load_proven(
    folder: ModelFolder, resolved: ResolvedEngine, rules: Rules | None, threads: int | None
) -> Classifier:
    tokenizer = load_tokenizer(folder, max_tokens=resolved.max_tokens, windows=resolved.windows)
    classifier = _load(folder, resolved, tokenizer, threads)
    if resolved.dtype == "int8":
        # once more after loading: the form may have been replaced meanwhile
        form = _recorded_int8(folder, resolved)
        canaries: Canaries | None = form.canaries
        own: int | None = form.max_tokens
    else:
        canaries, own = folder.canaries(), folder.max_tokens
    if canaries is not None:
        rules = rules or folder.info.decision.rules(folder.label_set)
        report = check_canaries(_with_limit(classifier, folder, own), canaries, rules)
        if not report.holds:
            raise ModelError(
                f"{folder.name}: {resolved.dtype} on {resolved.device}, which this run is recorded "
                f"for, does not reproduce the canaries here: {report}"
            )
    classifier.stats.real_tokens = classifier.stats.padded_tokens = 0
    return classifier


def load_tokenizer(
    folder: ModelFolder, *, max_tokens: int | None, windows: WindowsConfig | None
) -> AnyTokenizer:
    """The tokenizer of a model folder.

    Raises:
        ModelError: If windows are asked of a model that has no use for them.
    """
    if folder.info.kind == "tfidf":
        if windows is not None:
            raise ModelError(
                f"{folder.name}: long.policy is windows, but TF-IDF reads whole documents: leave "
                "it out"
            )
        return TfidfTokenizer(read_vocabulary(folder.path), max_tokens=max_tokens)
    return load_encoder_tokenizer(folder, max_tokens=max_tokens, windows=windows)


def digest_of_ids(folder: ModelFolder) -> str:
    """SHA-256 over what the ids of an uncut text depend on: alike for models of one encoder."""
    if folder.info.kind == "tfidf":
        return hashlib.sha256((folder.path / VOCABULARY_FILE).read_bytes()).hexdigest()
    state = TokenizerState.load(folder.path, digest=folder.tokenizer_digest)
    return hashlib.sha256(f"{state.cuts_left} {state.backend}".encode()).hexdigest()


def load_encoder_tokenizer(
    folder: ModelFolder, *, max_tokens: int | None, windows: WindowsConfig | None
) -> Tokenizer:
    """The tokenizer of an encoder, which need not be read by transformers every time."""
    digest = folder.tokenizer_digest
    return Tokenizer.load(folder.path, max_tokens=max_tokens, windows=windows, digest=digest)


def reference_canaries(
    folder: ModelFolder, tokenizer: AnyTokenizer, *, threads: int | None = None
) -> Canaries:
    """The recorded canaries; scored here in float32 for a folder that has none.

    Args:
        folder: The model.
        tokenizer: With the run's token limit: that of a folder without canaries.
        threads: CPU threads; None: PyTorch's default.
    """
    recorded = folder.canaries()
    if recorded is not None:
        return recorded
    exact = ResolvedEngine(
        name="tfidf" if folder.info.kind == "tfidf" else "torch",
        device="cpu",
        dtype="float32",
        max_batch_tokens=max(CPU_BATCH_TOKENS, tokenizer.max_tokens),
        max_tokens=tokenizer.max_tokens,
    )
    return record_canaries(_load(folder, exact, tokenizer, threads))


def _recorded_int8(folder: ModelFolder, resolved: ResolvedEngine) -> Int8Info:
    """The int8 form, if it is the one that the run is recorded for.

    Raises:
        ModelError: If there is none, or another.
    """
    form = read_int8(folder)
    if form.weights != resolved.weights:
        raise ModelError(
            f"{folder.name}: was quantized again since this run began: its scores would not be "
            "of one model: start a new output"
        )
    return form


def load_int8_engine(place: Path, *, pad_id: int, threads: int | None) -> Engine:
    """The engine of a quantized model, in the model folder or not there yet.

    Raises:
        ModelError: If OpenVINO is not installed, or cannot compile it.
    """
    from ray_mlc.model.engines.openvino_engine import MODEL_FILE, OpenVinoEngine

    path = place / MODEL_FILE
    return OpenVinoEngine.of_file(path, pad_id=pad_id, dtype="int8", threads=threads)


def _load(
    folder: ModelFolder, resolved: ResolvedEngine, tokenizer: AnyTokenizer, threads: int | None
) -> Classifier:
    engine: Engine
    if resolved.name == "tfidf":
        engine = TfidfEngine(TfidfModel.load(folder.path))
        return Classifier(folder.label_set, tokenizer, engine, resolved.max_batch_tokens)
    assert isinstance(tokenizer, Tokenizer)  # an encoder's
    if resolved.dtype == "int8":
        _recorded_int8(folder, resolved)
        place = folder.path / INT8_FOLDER
        engine = load_int8_engine(place, pad_id=tokenizer.pad_id, threads=threads)
    elif resolved.name == "openvino":
        from ray_mlc.model.engines.openvino_engine import OpenVinoEngine

        engine = OpenVinoEngine.load(
            folder.path,
            digest=folder.digest,
            pad_id=tokenizer.pad_id,
            dtype=resolved.dtype,
            threads=threads,
        )
    else:
        import torch

        from ray_mlc.model.engines.torch_engine import TorchEngine

        if threads is not None:
            torch.set_num_threads(threads)
        engine = TorchEngine.load(
            folder.path,
            pad_id=tokenizer.pad_id,
            device=resolved.device,
            dtype=resolved.dtype,
            packed=resolved.packed,
        )
    return Classifier(folder.label_set, tokenizer, engine, resolved.max_batch_tokens)


def _candidates(asked: str, device: str, dtype: str, *, named: bool) -> list[tuple[str, bool]]:
    """Libraries to try, and whether packed; without a race the first that holds is taken.

    Args:
        asked: Library that the job names, or `auto`.
        device: `cpu` or `cuda`.
        dtype: Precision.
        named: Whether the job names it; else it is what the hardware has.
    """
    if device == "cuda":
        # the varlen kernels know no float32
        return [("torch", True), ("torch", False)] if dtype != "float32" else [("torch", False)]
    if dtype == "int8":
        return [("openvino", False)]
    if asked == "tfidf":
        return [(asked, True)]
    if asked != "auto":
        return [(asked, False)]
    if dtype == "bfloat16" or (dtype == "float32" and not named):
        from ray_mlc.model.engines import openvino_engine

        if openvino_engine.available():
            return [("torch", False), ("openvino", False)]
    return [("torch", False)]


def _with_limit(classifier: Classifier, folder: ModelFolder, own: int | None) -> Classifier:
    """The classifier with the limit and windows that canaries were recorded with.

    `own` is that limit; None: they were recorded with the run's, and without windows.
    """
    now = classifier.tokenizer
    if own is None or (own, folder.windows) == (now.max_tokens, now.windows):
        return classifier
    tokenizer = load_tokenizer(folder, max_tokens=own, windows=folder.windows)
    budget = max(classifier.max_batch_tokens, own)
    return Classifier(classifier.label_set, tokenizer, classifier.engine, budget)


def _auto_dtypes(device: str) -> list[str]:
    """Precisions to try, best first."""
    import torch

    from ray_mlc.model.engines.torch_engine import cpu_has_bfloat16

    has_bfloat16 = torch.cuda.is_bf16_supported() if device == "cuda" else cpu_has_bfloat16()
    return ["bfloat16", "float32"] if has_bfloat16 else ["float32"]
