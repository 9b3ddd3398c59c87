"""Choose an engine once per run, and load what was chosen ever after.

`resolve` runs where the actors will run and turns every `auto` into a fact; the run records it.
`load_classifier` loads exactly what is recorded and proves it on the canaries; it never picks
another, because two precisions in one output could not be told apart afterwards.
"""

from __future__ import annotations

import logging

from pydantic import Field

from ray_mlc.config import BatchingConfig, EngineConfig, Section
from ray_mlc.errors import ModelError
from ray_mlc.model.canaries import check_canaries, record_canaries
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.encoder import load_config, max_positions
from ray_mlc.model.engines.protocol import Engine
from ray_mlc.model.folder import Canaries, ModelFolder
from ray_mlc.model.tokenization import Tokenizer

log = logging.getLogger(__name__)

CPU_BATCH_TOKENS = 4096
"""Padded tokens per CPU pass: activations of a small encoder then stay near the caches."""
CUDA_BATCH_TOKENS = 65_536
"""Padded tokens per CUDA pass; a pass that does not fit is halved."""


class ResolvedEngine(Section):
    """What `auto` came to: recorded in the run, reused by every resume."""

    name: str
    """Library."""
    device: str
    """`cpu` or `cuda`."""
    dtype: str
    """Precision."""
    max_batch_tokens: int
    """Padded tokens per forward pass."""
    max_tokens: int
    """Tokens kept per document."""
    canaries: str = Field(default="")
    """How the engine compares with the recorded scores."""


def resolve(
    folder: ModelFolder,
    engine: EngineConfig,
    batching: BatchingConfig,
    *,
    cuda: bool,
    max_tokens: int | None,
    threads: int | None = None,
) -> ResolvedEngine:
    """Turn every `auto` into a fact, on the hardware that will score.

    Args:
        folder: The model.
        engine: What the job asks for.
        batching: The same.
        cuda: Whether the actors have a GPU.
        max_tokens: Tokens kept per document as the job says; None: as the model says.
        threads: CPU threads; None: PyTorch's default.

    Raises:
        ModelError: If a named dtype does not hold on the canaries, or the model cannot take so
            many tokens.
    """
    set_threads(threads)
    tokenizer = Tokenizer.load(folder.path, max_tokens=max_tokens or folder.max_tokens)
    positions = max_positions(load_config(folder.path))
    if positions is not None and tokenizer.max_tokens > positions:
        raise ModelError(
            f"{folder.name}: long.max_tokens is {tokenizer.max_tokens}, but the encoder has "
            f"{positions} positions: lower it"
        )
    device = "cuda" if cuda else "cpu"
    asked = batching.max_batch_tokens
    default = max(CUDA_BATCH_TOKENS if cuda else CPU_BATCH_TOKENS, tokenizer.max_tokens)
    budget = default if asked == "auto" else asked
    if budget < tokenizer.max_tokens:
        raise ModelError(
            f"batching.max_batch_tokens is {budget}, expected at least max_tokens "
            f"({tokenizer.max_tokens}): the longest document must fit into a batch"
        )
    canaries = reference_canaries(folder, tokenizer)
    candidates = [engine.dtype] if engine.dtype != "auto" else _auto_dtypes(device)
    for dtype in candidates:
        chosen = ResolvedEngine(
            name="torch",
            device=device,
            dtype=dtype,
            max_batch_tokens=budget,
            max_tokens=tokenizer.max_tokens,
        )
        classifier = _load(folder, chosen, tokenizer)
        report = check_canaries(
            _with_own_limit(classifier, folder),
            canaries,
            folder.info.decision.thresholds_L(folder.label_set),
        )
        if report.holds:
            return chosen.model_copy(update={"canaries": str(report)})
        log.warning("%s %s does not hold on the canaries: %s", device, dtype, report)
    raise ModelError(
        f"{folder.name}: {candidates[-1]} on {device} does not reproduce the canaries: {report}; "
        "train or copy the model again, or set engine.dtype=float32"
    )


def load_classifier(
    folder: ModelFolder, resolved: ResolvedEngine, *, threads: int | None = None
) -> Classifier:
    """Load what a run recorded, and prove it on the canaries.

    Raises:
        ModelError: If this process cannot run it, or the canaries do not hold.
    """
    set_threads(threads)
    tokenizer = Tokenizer.load(folder.path, max_tokens=resolved.max_tokens)
    classifier = _load(folder, resolved, tokenizer)
    canaries = folder.canaries()
    if canaries is not None:
        thresholds_L = folder.info.decision.thresholds_L(folder.label_set)
        report = check_canaries(_with_own_limit(classifier, folder), canaries, thresholds_L)
        if not report.holds:
            raise ModelError(
                f"{folder.name}: {resolved.dtype} on {resolved.device}, which this run is recorded "
                f"for, does not reproduce the canaries here: {report}"
            )
    classifier.stats.real_tokens = classifier.stats.padded_tokens = 0
    return classifier


def reference_canaries(folder: ModelFolder, tokenizer: Tokenizer) -> Canaries:
    """The recorded canaries; scored here in float32 for a folder that has none.

    Args:
        folder: The model.
        tokenizer: With the run's token limit: that of a folder without canaries.
    """
    recorded = folder.canaries()
    if recorded is not None:
        return recorded
    exact = ResolvedEngine(
        name="torch",
        device="cpu",
        dtype="float32",
        max_batch_tokens=max(CPU_BATCH_TOKENS, tokenizer.max_tokens),
        max_tokens=tokenizer.max_tokens,
    )
    return record_canaries(_load(folder, exact, tokenizer))


def set_threads(threads: int | None) -> None:
    """Limit PyTorch's CPU threads in this process."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _load(folder: ModelFolder, resolved: ResolvedEngine, tokenizer: Tokenizer) -> Classifier:
    from ray_mlc.model.engines.torch_engine import TorchEngine

    engine: Engine = TorchEngine.load(
        folder.path, pad_id=tokenizer.pad_id, device=resolved.device, dtype=resolved.dtype
    )
    return Classifier(folder.label_set, tokenizer, engine, resolved.max_batch_tokens)


def _with_own_limit(classifier: Classifier, folder: ModelFolder) -> Classifier:
    """The classifier with the model's own token limit, which the canaries were recorded with."""
    own = folder.max_tokens
    if own is None or own == classifier.tokenizer.max_tokens:
        return classifier
    tokenizer = Tokenizer.load(folder.path, max_tokens=own)
    budget = max(classifier.max_batch_tokens, own)
    return Classifier(classifier.label_set, tokenizer, classifier.engine, budget)


def _auto_dtypes(device: str) -> list[str]:
    """Precisions to try, best first."""
    import torch

    from ray_mlc.model.engines.torch_engine import cpu_has_bfloat16

    has_bfloat16 = torch.cuda.is_bf16_supported() if device == "cuda" else cpu_has_bfloat16()
    return ["bfloat16", "float32"] if has_bfloat16 else ["float32"]
