"""The fine-tuning loop: plain PyTorch, the same for one process and for many.

Every rank goes by the same plan (`training.epoch`). The loss of a step is the mean over the
annotated cells of its GLOBAL batch, so 1 and n workers follow the same curve; ranks that have fewer
passes run empty ones, masked out, so that collectives match.

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
from ray_mlc.model.batching import BATCH_COST
from ray_mlc.model.classifier import sigmoid
from ray_mlc.model.engines.protocol import pad
from ray_mlc.model.windows import Aggregate, aggregate_logits, aggregate_tensors
from ray_mlc.training.cpu_kernels import use_cpu_kernels
from ray_mlc.training.epoch import TokenizedExamples, plan_epoch, plan_passes, share_of_rank
from ray_mlc.training.losses import make_loss
from ray_mlc.training.parameters import learning_rate_factor, parameter_groups

Part = TypeVar("Part")

TRAINED_WITH: Aggregate = "max"
"""How windows are joined while training where validation is to choose."""
MODEL_STATE = "model.safetensors"
"""Weights that the model folder would get: the average, if there is one."""
TRAINED_STATE = "trained.safetensors"
"""Weights that the next step starts from, where they are others than those."""
OPTIMIZER_STATE = "optimizer.pt"
PROGRESS_STATE = "state.json"


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
    known_L: NDArray[np.bool_] | None = None
    """Labels whose part of the head came with the model; None: all are new."""

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
        shape = (len(hows), examples.label_count)

        def read(logits_WL: NDArray[np.float32], firsts: NDArray[np.int64]) -> NDArray[np.float32]:
            ways = (aggregate_logits(logits_WL, firsts, how=how, top=self._top) for how in hows)
            return np.stack([sigmoid(joined_BL) for joined_BL in ways], axis=1)

        scores = self._collected(examples, np.arange(len(examples)), shape, read)
        return {how: scores[:, place] for place, how in enumerate(hows)}

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

        def read(logits_WL: NDArray[np.float32], firsts: NDArray[np.int64]) -> NDArray[np.float32]:
            del logits_WL
            sums_BH: NDArray[np.float32] = np.add.reduceat(seen.pop(), firsts[:-1], axis=0)
            return sums_BH / np.diff(firsts).astype(np.float32)[:, None]

        handle = layer.register_forward_pre_hook(see)
        try:
            return self._collected(self.train, rows, (layer.in_features,), read)
        finally:
            handle.remove()

    def gather(self, part: Part) -> list[Part]:
        """What each rank has, on all of them."""
        if self.world_size == 1:
            return [part]
        parts = [part] * self.world_size
        torch.distributed.all_gather_object(parts, part)
        return parts

    @torch.no_grad()
    def _collected(
        self,
        examples: TokenizedExamples,
        rows: NDArray[np.intp],
        shape: tuple[int, ...],
        read: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]],
    ) -> NDArray[np.float32]:
        """Numbers for some documents, each scored by the kept model on one rank; all get them.

        Args:
            examples: Where they are.
            rows: N of them.
            shape: Of one document's numbers.
            read: What a pass gives: from the logits of its windows and where in those each document
                begins, shape [B + 1], to shape [B, *shape].

        Returns:
            Shape [N, *shape], in the order of `rows`.
        """
        self.kept.eval()
        ids, costs_N = examples.ids, examples.ids.costs[rows]
        mine = np.argsort(-costs_N, kind="stable")[self.rank :: self.world_size]
        values = np.zeros((len(mine), *shape), np.float32)
        budget = self.config.max_batch_tokens
        for batch in plan_passes(
            costs_N[mine], max_batch_tokens=budget, batch_cost=BATCH_COST["cpu"]
        ):
            some = rows[mine[batch]]
            wrapped, self.wrapped = self.wrapped, self.kept
            try:
                logits_WL = self._forward(ids.windows(ids.windows_of(some))).cpu().numpy()
            finally:
                self.wrapped = wrapped
            values[batch] = read(logits_WL, np.append(0, np.cumsum(ids.n_windows[some])))
        result = np.zeros((len(rows), *shape), np.float32)
        for places, found in self.gather((mine, values)):
            result[places] = found
        return result

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
