"""The fine-tuning loop: plain PyTorch, the same for one process and for many.

Every rank derives the same global plan from lengths and seed: which documents form an optimizer
step, which rank takes which of them, in how many forward passes. The loss of a step is the mean
over the annotated cells of its GLOBAL batch, so 1 and n workers follow the same curve; ranks that
have fewer passes run empty ones, masked out, so that collectives match.

The same examples, settings, seed, number of workers and threads, machine and library versions give
the same weights bit by bit on CPU. On CUDA some kernels add up in no fixed order, so that two runs
differ in the last bits and drift apart from there. Another number of workers sums in another order
as well, and draws other dropout masks; without dropout the curves agree to rounding.

Nothing here knows Ray: `runtime.ray_train` wraps the model for several processes, stores
checkpoints and reports.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ray_mlc.config import TrainingConfig, WindowsConfig
from ray_mlc.errors import ModelError
from ray_mlc.model.batching import BATCH_COST, plan_batches
from ray_mlc.model.classifier import sigmoid
from ray_mlc.model.encoder import encoder_layers
from ray_mlc.model.engines.protocol import pad
from ray_mlc.model.tokenization import Ragged
from ray_mlc.model.windows import Aggregate, aggregate_logits, aggregate_tensors
from ray_mlc.training.cpu_kernels import use_cpu_kernels
from ray_mlc.training.losses import make_loss

Part = TypeVar("Part")

BUCKET_STEPS = 50
"""Steps whose documents are sorted by length together: little padding, and still a random order."""
PASS_COST = 1024
"""What a forward and backward pass costs besides its tokens, in tokens: most is Python's."""
TRAINED_WITH: Aggregate = "max"
"""How windows are joined while training where validation is to choose."""
MODEL_STATE = "model.safetensors"
"""Weights that the model folder would get: the average, if there is one."""
TRAINED_STATE = "trained.safetensors"
"""Weights that the next step starts from, where they are others than those."""
OPTIMIZER_STATE = "optimizer.pt"
PROGRESS_STATE = "state.json"


@dataclass(frozen=True)
class TokenizedExamples:
    """Examples as the loop needs them: numbers only, cheap to share between processes."""

    ids: Ragged
    """Token ids of N documents."""
    positive_offsets: NDArray[np.int64]
    """Where each document's labels begin in `positive_columns`, shape [N + 1]."""
    positive_columns: NDArray[np.int32]
    """Columns of the labels that are given."""
    unannotated_offsets: NDArray[np.int64]
    """The same for cells that nobody annotated."""
    unannotated_columns: NDArray[np.int32]
    label_count: int
    """L."""

    def __len__(self) -> int:
        return len(self.ids)

    def label_rates(self) -> NDArray[np.float64]:
        """Share of the annotated documents that have each label, shape [L]."""
        positives_L = np.bincount(self.positive_columns, minlength=self.label_count)
        missing_L = np.bincount(self.unannotated_columns, minlength=self.label_count)
        return positives_L / np.maximum(len(self) - missing_L, 1)

    def targets_BL(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Targets of some documents: 0, 1, or NaN where nobody annotated."""
        targets = np.zeros((len(rows), self.label_count), np.float32)
        for position, row in enumerate(rows.tolist()):
            low, high = self.positive_offsets[row], self.positive_offsets[row + 1]
            targets[position, self.positive_columns[low:high]] = 1
            low, high = self.unannotated_offsets[row], self.unannotated_offsets[row + 1]
            targets[position, self.unannotated_columns[low:high]] = np.nan
        return targets


def plan_epoch(
    lengths_N: NDArray[np.int64], *, batch_size: int, seed: int, epoch: int
) -> list[NDArray[np.intp]]:
    """The global batches of an epoch: each document once, neighbors of like length.

    Args:
        lengths_N: Tokens per document.
        batch_size: Documents per optimizer step over all workers; the last step may have fewer.
        seed: Seed of the order.
        epoch: Counts from 0; another order each time.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths_N))
    batches: list[NDArray[np.intp]] = []
    bucket = batch_size * BUCKET_STEPS
    for start in range(0, len(order), bucket):
        rows = order[start : start + bucket]
        rows = rows[np.argsort(lengths_N[rows], kind="stable")]
        batches += [rows[low : low + batch_size] for low in range(0, len(rows), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def plan_passes(
    costs_N: NDArray[np.int64], *, max_batch_tokens: int, batch_cost: int
) -> list[NDArray[np.intp]]:
    """As `plan_batches`, with a pass of its own for each document that is beyond the budget.

    A document cannot be divided: the gradient of its joined logits needs all its windows at once.
    That it is larger than the budget is no reason for the batches of others to be.
    """
    within_N = costs_N <= max_batch_tokens
    alone, others = np.flatnonzero(~within_N), np.flatnonzero(within_N)
    planned = plan_batches(
        costs_N[others], max_batch_tokens=max_batch_tokens, batch_cost=batch_cost
    )
    largest_first = alone[np.argsort(-costs_N[alone], kind="stable")]
    return [*largest_first[:, None], *(others[rows] for rows in planned)]


def share_of_rank(
    batch: NDArray[np.intp],
    lengths_N: NDArray[np.int64],
    *,
    rank: int,
    world_size: int,
    max_batch_tokens: int,
) -> list[NDArray[np.intp]]:
    """The forward passes of one rank for one step.

    Documents are dealt by length, so that ranks have like work. All ranks get the same number of
    passes; those without documents are empty arrays.
    """
    dealt = batch[np.argsort(-lengths_N[batch], kind="stable")]
    passes = []
    for other in range(world_size):
        rows = dealt[other::world_size]
        planned = plan_passes(
            lengths_N[rows], max_batch_tokens=max_batch_tokens, batch_cost=PASS_COST
        )
        passes.append([rows[index] for index in planned])
    longest = max(map(len, passes))
    empty = np.zeros(0, np.intp)
    return passes[rank] + [empty] * (longest - len(passes[rank]))


def learning_rate_factor(step: int, *, total: int, warmup: float, schedule: str) -> float:
    """Factor on the peak rate at a step: a rise over `warmup`, then the schedule's fall."""
    rise = max(1, round(total * warmup)) if warmup else 0
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, total - rise)
    match schedule:
        case "linear":
            return max(0.0, 1.0 - progress)
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        case _:
            return 1.0


def head_bias(
    setting: str | float | None, rates_L: NDArray[np.float64], rows: int
) -> NDArray[np.float64] | None:
    """First bias of the classification head.

    `prior` is the log-odds of each label's rate, so that training does not begin with unlearning
    a score of one half for everything (Lin et al. 2017, section 3.3, do it with one constant).
    """
    if setting is None:
        return None
    if not isinstance(setting, str):
        return np.full(len(rates_L), float(setting))
    # a label never or always seen would have infinite odds: count half a document more each way
    smoothed = (rates_L * rows + 0.5) / (rows + 1)
    odds: NDArray[np.float64] = np.log(smoothed / (1 - smoothed))
    return odds


def parameter_groups(model: Any, config: TrainingConfig) -> list[dict[str, Any]]:
    """AdamW groups: head and encoder rates, those of lower layers smaller, decay on matrices only.

    Raises:
        ModelError: If `layer_decay` is set and the encoder's layers cannot be told apart.
    """
    base = getattr(model, model.base_model_prefix, None)
    encoder = {
        id(parameter)
        for name, parameter in (base.named_parameters() if base is not None else ())
        if "pooler" not in name
    }
    scales = layer_scales(base, config.layer_decay)
    head_rate = config.head_learning_rate or config.learning_rate
    groups: dict[tuple[bool, bool, float], list[Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            in_encoder = id(parameter) in encoder
            scale = scales.get(id(parameter), 1.0) if in_encoder else 1.0
            groups.setdefault((in_encoder, parameter.ndim > 1, scale), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": (config.learning_rate if in_encoder else head_rate) * scale,
            "peak": (config.learning_rate if in_encoder else head_rate) * scale,
            "weight_decay": config.weight_decay if decays else 0.0,
            "in_encoder": in_encoder,
        }
        for (in_encoder, decays, scale), parameters in groups.items()
    ]


def layer_scales(base: Any, decay: float) -> dict[int, float]:
    """Factor on the learning rate of an encoder's parameters, by their `id`.

    The top layer has 1, each one below it `decay` times that of the one above, and what all layers
    build on (all that is declared before them, and embeddings such as of relative positions) is one
    below the lowest. Discriminative fine-tuning: Howard and Ruder 2018 (ULMFiT), section 3.2; a
    factor per layer of a transformer: Sun et al. 2019, "How to fine-tune BERT", section 5.3.3, who
    found 0.95 best; Clark et al. 2020 (ELECTRA) take 0.8 to 0.9.

    Args:
        base: The encoder; None if the model does not say which part of it that is.
        decay: 1: no scales, for encoders of any kind.

    Raises:
        ModelError: If its layers cannot be told apart.
    """
    if decay == 1:
        return {}
    if base is None:
        raise ModelError("training.layer_decay is set, but the model has no encoder: set it to 1")
    layers = encoder_layers(base)
    scales: dict[int, float] = {}
    for below, layer in enumerate(reversed(layers)):
        scales.update((id(parameter), decay**below) for parameter in layer.parameters())
    embeddings = {
        id(parameter)
        for module in base.modules()
        if isinstance(module, torch.nn.Embedding)
        for parameter in module.parameters()
    }
    lowest, seen_layers = decay ** len(layers), False
    for parameter in base.parameters():
        if id(parameter) in scales:
            seen_layers = True
        else:
            deep = not seen_layers or id(parameter) in embeddings
            scales[id(parameter)] = lowest if deep else 1.0
    return scales


def freeze_unused(model: Any, vocabulary_id: int = 1) -> list[str]:
    """Freeze parameters that no logit depends on, and name them.

    Several processes wait for the gradient of every trainable parameter; a pooler that the head
    does not use would make them wait for ever.
    """
    ids = torch.full((1, 4), vocabulary_id)
    was_training = model.training
    model.eval()
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    frozen = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.requires_grad_(False)
            frozen.append(name)
        parameter.grad = None
    model.train(was_training)
    return frozen


@dataclass
class Fitter:
    """One rank's side of the training.

    With `average: ema` the weights that are evaluated, saved and shipped are an exponential moving
    average over the steps (Polyak and Juditsky 1992; for deep networks Tarvainen and Valpola 2017).
    A fixed decay would drag the first weights along for thousands of steps, more than most
    fine-tuning has: it is at most (1 + t) / (10 + t) at step t, counted from 0, as in TensorFlow's
    `ExponentialMovingAverage` with `num_updates`. The average then reaches over the last tenth of
    the steps done, until `average_decay` caps it, and the first weights are gone after a dozen. All
    ranks have the same weights after each step, and so the same average without telling each other.

    With `head_warmup` the head learns alone at first, on the encoder as it was pretrained: what a
    random head sends back would distort it (Kumar et al. 2022, "Fine-tuning can distort pretrained
    features"). The linear rise of `warmup` is what Goyal et al. 2017 call gradual warm-up.
    """

    model: Any
    """The bare model."""
    wrapped: Any
    """The model as `forward` is called: the bare one, or DistributedDataParallel around it."""
    train: TokenizedExamples
    config: TrainingConfig
    pad_id: int
    device: torch.device
    amp_dtype: torch.dtype | None
    """Autocast precision; None: float32."""
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.device.type == "cpu":
            use_cpu_kernels(self.model)
        # fused: the default makes a dozen passes over all weights, which on CPU costs as much as
        # the forward pass of a small batch
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, self.config), fused=True)
        rates_L = self.train.label_rates()
        windows = self.config.windows or WindowsConfig()
        self._aggregate = TRAINED_WITH if windows.aggregate == "auto" else windows.aggregate
        self._top = windows.top
        self._loss = make_loss(self.config.loss, rates_L=rates_L, rows=len(self.train))
        self.steps_per_epoch = math.ceil(len(self.train) / self.config.batch_size)
        self.total_steps = self.steps_per_epoch * self.config.epochs
        self.learning_rate = 0.0
        """Of the encoder's top layer, in the last step."""
        self.averaged = None
        if self.config.average is not None:
            self.averaged = copy.deepcopy(self.model).requires_grad_(False)

    @property
    def kept(self) -> Any:
        """The model to evaluate and to ship: the average, if there is one."""
        return self.model if self.averaged is None else self.averaged

    def run_epoch(
        self, epoch: int, *, first_step: int = 0, on_step: Callable[[int, float], None]
    ) -> float:
        """Train one epoch, or the rest of it.

        Args:
            epoch: Counts from 0.
            first_step: Step of the epoch to begin with.
            on_step: Called after each step with its number in the epoch and its loss.

        Returns:
            Mean loss over the steps done here; the same on every rank.
        """
        self.wrapped.train()
        costs_N = self.train.ids.costs
        plan = plan_epoch(
            costs_N, batch_size=self.config.batch_size, seed=self.config.seed, epoch=epoch
        )
        losses = []
        for step in range(first_step, len(plan)):
            # a seed per step: a run resumed within an epoch draws the same dropout
            torch.manual_seed(
                (self.config.seed * 1_000_003 + epoch * self.steps_per_epoch + step) * 1009
                + self.rank
            )
            losses.append(self._step(plan[step], costs_N, epoch * self.steps_per_epoch + step))
            on_step(step, losses[-1])
        return float(np.mean(losses)) if losses else math.nan

    def _step(self, batch: NDArray[np.intp], costs_N: NDArray[np.int64], step: int) -> float:
        head_alone = self._set_learning_rates(step)
        cells = self._annotated_cells(batch)
        passes = share_of_rank(
            batch,
            costs_N,
            rank=self.rank,
            world_size=self.world_size,
            max_batch_tokens=self.config.max_batch_tokens,
        )
        total = torch.zeros((), device=self.device)
        for index, rows in enumerate(passes):
            last = index == len(passes) - 1
            with self._unsynchronized(active=not last):
                loss = self._loss_sum(rows) / cells
                # DistributedDataParallel averages gradients over ranks; the loss is a sum
                (loss * self.world_size).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if head_alone:
            self._drop_encoder_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.averaged is not None:
            decay = min(self.config.average_decay, (1 + step) / (10 + step))
            average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            average(list(self.averaged.parameters()), list(self.model.parameters()), step)
        if self.world_size > 1:
            torch.distributed.all_reduce(total)
        return float(total)

    def _set_learning_rates(self, step: int) -> bool:
        """Rates of a step; whether the head learns alone in it."""
        alone = int(self.total_steps * self.config.head_warmup)
        warmup, schedule = self.config.warmup, self.config.schedule
        head = learning_rate_factor(step, total=self.total_steps, warmup=warmup, schedule=schedule)
        encoder = 0.0
        if step >= alone:
            encoder = learning_rate_factor(
                step - alone, total=self.total_steps - alone, warmup=warmup, schedule=schedule
            )
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * (encoder if group["in_encoder"] else head)
        self.learning_rate = self.config.learning_rate * encoder
        return step < alone

    def _drop_encoder_gradients(self) -> None:
        """As if the encoder were frozen: neither AdamW's moments nor the clipping see it.

        Parameters that are frozen in earnest would change what DistributedDataParallel waits for.
        """
        for group in self.optimizer.param_groups:
            if group["in_encoder"]:
                for parameter in group["params"]:
                    parameter.grad = None

    def _annotated_cells(self, batch: NDArray[np.intp]) -> int:
        offsets = self.train.unannotated_offsets
        missing = int((offsets[batch + 1] - offsets[batch]).sum())
        return max(1, len(batch) * self.train.label_count - missing)

    def _loss_sum(self, rows: NDArray[np.intp]) -> torch.Tensor:
        """Sum of the loss over a pass's annotated cells; 0 for an empty pass."""
        ids = self.train.ids
        if not len(rows):
            return self._forward([ids.window(0)[:1]]).sum() * 0.0
        logits = aggregate_tensors(
            self._forward(ids.windows(ids.windows_of(rows))),
            ids.n_windows[rows].tolist(),
            how=self._aggregate,
            top=self._top,
        )
        targets = torch.from_numpy(self.train.targets_BL(rows)).to(self.device)
        known = ~torch.isnan(targets)
        cells = self._loss(logits, torch.where(known, targets, 0.0))
        return torch.where(known, cells, 0.0).sum()

    def _forward(self, ids: list[NDArray[np.int32]]) -> torch.Tensor:
        input_ids_BT, mask_BT = pad(ids, self.pad_id)
        enabled = self.amp_dtype is not None
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=enabled):
            output = self.wrapped(
                input_ids=torch.from_numpy(input_ids_BT).to(self.device),
                attention_mask=torch.from_numpy(mask_BT).to(self.device),
            )
        logits: torch.Tensor = output.logits.float()
        return logits

    @contextlib.contextmanager
    def _unsynchronized(self, *, active: bool) -> Iterator[None]:
        """Keep gradients to this rank until the last pass of a step."""
        if active and self.world_size > 1:
            with self.wrapped.no_sync():
                yield
        else:
            yield

    @torch.no_grad()
    def predict(
        self, examples: TokenizedExamples, hows: Sequence[Aggregate] = ("max",)
    ) -> dict[Aggregate, NDArray[np.float32]]:
        """Scores of all examples; each is computed on one rank, all ranks get it.

        Args:
            examples: N documents.
            hows: Ways to join the logits of a document's windows.

        Returns:
            Shape [N, L] for each way.
        """
        share = range(self.rank, len(examples), self.world_size)
        mine = np.zeros(len(share), np.intp)
        scores = np.zeros((len(hows), len(share), examples.label_count), np.float32)
        low = 0
        for rows, logits_WL, firsts in self._scored(examples, np.arange(len(examples))):
            high = low + len(rows)
            mine[low:high] = rows
            for place, how in enumerate(hows):
                joined_BL = aggregate_logits(logits_WL, firsts, how=how, top=self._top)
                scores[place, low:high] = sigmoid(joined_BL)
            low = high
        result = np.zeros((len(hows), len(examples), examples.label_count), np.float32)
        for rows, values in self.gather((mine, scores)):
            result[:, rows] = values
        return dict(zip(hows, result, strict=True))

    @torch.no_grad()
    def head_inputs(self, layer: Any, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """What a linear layer of the kept model is given, for some training documents.

        Args:
            layer: Of `kept`; it sees one vector of H numbers a document or window.
            rows: N documents; each is read on one rank, all ranks get them all.

        Returns:
            Shape [N, H]; of a document in windows the mean.
        """
        seen: list[NDArray[np.float32]] = []

        def see(module: Any, given: tuple[torch.Tensor, ...]) -> None:
            del module
            seen.append(given[0].float().cpu().numpy())

        share = range(self.rank, len(rows), self.world_size)
        mine = np.zeros(len(share), np.intp)
        means = np.zeros((len(share), layer.in_features), np.float32)
        handle, low = layer.register_forward_pre_hook(see), 0
        try:
            for some, _, firsts in self._scored(self.train, rows):
                high = low + len(some)
                mine[low:high] = some
                np.add.reduceat(seen.pop(), firsts[:-1], axis=0, out=means[low:high])
                means[low:high] /= np.diff(firsts)[:, None]
                low = high
        finally:
            handle.remove()
        place = np.zeros(len(self.train), np.intp)
        place[rows] = np.arange(len(rows))
        result = np.zeros((len(rows), layer.in_features), np.float32)
        for some, values in self.gather((mine, means)):
            result[place[some]] = values
        return result

    def gather(self, part: Part) -> list[Part]:
        """What each rank has, on all of them."""
        if self.world_size == 1:
            return [part]
        parts = [part] * self.world_size
        torch.distributed.all_gather_object(parts, part)
        return parts

    def _scored(
        self, examples: TokenizedExamples, rows: NDArray[np.intp]
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.int64]]]:
        """This rank's share of some documents, by the kept model, a pass at a time.

        Yields:
            Rows of B documents, logits of their windows, and where in those each one begins,
            shape [B + 1].
        """
        self.kept.eval()
        ids, costs_N = examples.ids, examples.ids.costs
        mine = rows[np.argsort(-costs_N[rows], kind="stable")][self.rank :: self.world_size]
        budget = self.config.max_batch_tokens
        for batch in plan_passes(
            costs_N[mine], max_batch_tokens=budget, batch_cost=BATCH_COST["cpu"]
        ):
            some = mine[batch]
            wrapped, self.wrapped = self.wrapped, self.kept
            try:
                logits_WL = self._forward(ids.windows(ids.windows_of(some))).cpu().numpy()
            finally:
                self.wrapped = wrapped
            yield some, logits_WL, np.append(0, np.cumsum(ids.n_windows[some]))

    def save(self, folder: Path, progress: dict[str, Any]) -> None:
        """Write a checkpoint: weights, optimizer, and where training stands."""
        _save_weights(self.kept, folder / MODEL_STATE)
        if self.averaged is not None:
            _save_weights(self.model, folder / TRAINED_STATE)
        torch.save(self.optimizer.state_dict(), folder / OPTIMIZER_STATE)
        (folder / PROGRESS_STATE).write_text(json.dumps(progress), encoding="utf-8")

    def load(self, folder: Path) -> dict[str, Any]:
        """Take up a checkpoint; where training stands."""
        load_weights(self.kept, folder / MODEL_STATE)
        if self.averaged is not None:
            load_weights(self.model, folder / TRAINED_STATE)
        state = torch.load(folder / OPTIMIZER_STATE, weights_only=True, map_location=self.device)
        self.optimizer.load_state_dict(state)
        return read_progress(folder)


def read_progress(folder: Path) -> dict[str, Any]:
    """Where the training of a checkpoint stands."""
    return dict(json.loads((folder / PROGRESS_STATE).read_text(encoding="utf-8")))


def _save_weights(model: Any, file: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in _unshared(model).items()}, file)


def load_weights(model: Any, file: Path) -> None:
    """Load safetensors weights into a model of the same shape."""
    from safetensors.torch import load_file

    result = model.load_state_dict(load_file(file), strict=False)
    expected = set(_unshared(model))
    if missing := expected & set(result.missing_keys):
        raise RuntimeError(f"{file}: lacks {min(missing)}")


def _unshared(model: Any) -> dict[str, torch.Tensor]:
    """State dict without the second name of tensors that share memory (tied weights)."""
    seen: dict[int, str] = {}
    unique = {}
    for name, value in model.state_dict().items():
        if seen.setdefault(value.data_ptr(), name) == name or value.numel() == 0:
            unique[name] = value
    return unique


def training_dtype(setting: str, device: torch.device) -> torch.dtype | None:
    """Autocast precision: bfloat16 where the hardware multiplies it; None for float32."""
    from ray_mlc.model.engines.torch_engine import cpu_has_bfloat16

    if setting == "float32":
        return None
    if setting == "auto":
        has = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bfloat16()
        return torch.bfloat16 if has else None
    return torch.bfloat16
