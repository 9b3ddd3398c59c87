from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fitters import (
    VOCABULARY,
    examples,
    fitter_of,
    pack,
    settings_of,
    tiny_bert,
    tiny_mean,
)

from ray_mlc.model.engines.protocol import pad
from ray_mlc.model.windows import AGGREGATES, Aggregate, aggregate_tensors
from ray_mlc.training import cpu_kernels
from ray_mlc.training.epoch import TokenizedExamples, plan_epoch
from ray_mlc.training.linear_probe import fit_head
from ray_mlc.training.loop import MODEL_STATE, TRAINED_STATE, Fitter, load_weights, read_progress
from ray_mlc.training.parameters import learning_rate_factor


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Passes of a dozen tokens: more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def curve(fitter: Fitter) -> list[float]:
    """The loss of every step of all epochs."""
    losses: list[float] = []
    for epoch in range(fitter.config.epochs):
        fitter.run_epoch(epoch, on_step=lambda _, loss: losses.append(loss))
    return losses


# A step


def plain_losses(train: TokenizedExamples, **changes: Any) -> list[float]:
    """The same training as a reader would write it: one padded batch per step, one process."""
    config = settings_of(**changes)
    model = tiny_bert().train()
    encoder = {id(p) for name, p in model.named_parameters() if "bert." in name}
    head = {id(p) for name, p in model.named_parameters() if "classifier" in name or "pool" in name}
    groups = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        in_head = id(parameter) in head
        assert in_head or id(parameter) in encoder
        peak = config.head_learning_rate if in_head else config.learning_rate
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.append({"params": [parameter], "lr": peak, "peak": peak, "weight_decay": decay})
    optimizer = torch.optim.AdamW(groups)
    lengths_N = train.ids.lengths
    total = math.ceil(len(train) / config.batch_size) * config.epochs
    losses = []
    for epoch in range(config.epochs):
        for batch in plan_epoch(
            lengths_N, batch_size=config.batch_size, seed=config.seed, epoch=epoch
        ):
            factor = learning_rate_factor(
                len(losses), total=total, warmup=config.warmup, schedule=config.schedule
            )
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            ids, mask = map(torch.from_numpy, pad(train.ids.windows(batch), 0))
            targets = torch.from_numpy(train.targets_BL(batch))
            logits = model(input_ids=ids, attention_mask=mask).logits
            known = ~targets.isnan()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits[known], targets[known]
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("unannotated", [False, True])
def test_the_curve_is_that_of_a_plain_loop_with_one_big_batch(unannotated: bool) -> None:
    train = examples(60, unannotated=unannotated)
    np.testing.assert_allclose(curve(fitter_of(train)), plain_losses(train), atol=1e-5)


def test_training_learns() -> None:
    losses = curve(fitter_of(examples(200), epochs=4))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


@pytest.mark.parametrize("budget", [8, 12, 30])
def test_many_small_passes_give_the_curve_of_one_large_pass(budget: int) -> None:
    train = examples(40, unannotated=True)
    whole, cut = (curve(fitter_of(train, max_batch_tokens=size)) for size in (4096, budget))
    np.testing.assert_allclose(cut, whole, atol=1e-4)


def test_cells_that_nobody_annotated_have_no_influence() -> None:
    rng = np.random.default_rng(1)
    documents = [rng.integers(3, VOCABULARY, size=6).astype(np.int32) for _ in range(6)]
    labels = [[0], [], [1, 2], [2], [0, 1], []]
    nobody = [*[[]] * 4, [0, 1, 2], [0, 1, 2]]
    masked, without = pack(documents, labels, nobody), pack(documents[:4], labels[:4], [[]] * 4)
    losses, gradients = [], []
    for train in (masked, without):
        fitter = fitter_of(train, epochs=1, batch_size=6)
        losses.append(fitter.run_epoch(0, on_step=lambda *_: None))
        # after one step AdamW's running mean is a tenth of the gradient
        state = fitter.optimizer.state
        gradients.append([state[p]["exp_avg"] for p in fitter.model.parameters() if p in state])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_a_label_in_a_masked_cell_is_not_read() -> None:
    documents = [np.array([4, 5, 6], np.int32)] * 4
    said = [pack(documents, [[0, 1]] * 4, [[1]] * 4), pack(documents, [[0]] * 4, [[1]] * 4)]
    one, other = (curve(fitter_of(train)) for train in said)
    assert one == other


# Options


def test_the_same_settings_give_the_same_weights_bit_by_bit() -> None:
    train = examples(40, unannotated=True)
    runs = []
    for noise in (1, 2):
        torch.manual_seed(noise)  # what the process drew before must not matter
        fitter = fitter_of(train, model=tiny_bert(dropout=0.3, layers=2), **OPTIONS)
        runs.append((curve(fitter), fitter))
    (losses, one), (other_losses, other) = runs
    assert losses == other_losses
    for model, twin in ((one.model, other.model), (one.kept, other.kept)):
        for name, value in model.state_dict().items():
            assert torch.equal(value, twin.state_dict()[name])
    reseeded = fitter_of(train, model=tiny_bert(dropout=0.3, layers=2), **OPTIONS, seed=1)
    assert curve(reseeded) != losses


def test_the_head_learns_alone_at_first_and_then_the_encoder_rises() -> None:
    train = examples(80)  # ten steps an epoch
    fitter = fitter_of(train, head_warmup=0.25, warmup=0.2)
    encoder = [value.clone() for value in fitter.model.bert.encoder.parameters()]
    head = fitter.model.classifier.weight.clone()
    moved, rates = [], []

    def on_step(step: int, loss: float) -> None:
        del step, loss
        now = fitter.model.bert.encoder.parameters()
        moved.append(any(not torch.equal(a, b) for a, b in zip(encoder, now, strict=True)))
        rates.append(fitter.learning_rate)
        if len(moved) == 1:
            assert not torch.equal(head, fitter.model.classifier.weight)
            seen = {id(p) for p in fitter.optimizer.state}
            assert not any(id(p) in seen for p in fitter.model.bert.encoder.parameters())

    for epoch in range(2):
        fitter.run_epoch(epoch, on_step=on_step)
    assert moved == [False] * 5 + [True] * 15
    assert rates[:5] == [0.0] * 5
    assert rates[5:9] == pytest.approx([5e-3 / 3, 5e-3 * 2 / 3, 5e-3, 5e-3])
    assert all(high > low for high, low in pairwise(rates[8:]))


def test_on_cpu_a_model_and_its_average_have_the_dropout_and_attention_of_cpus() -> None:
    fitter = fitter_of(examples(20), model=tiny_bert(dropout=0.1), average="ema")
    for model in (fitter.model, fitter.averaged):
        kinds = {type(module) for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert kinds == {cpu_kernels.Dropout}
        assert model.base_model.config._attn_implementation == cpu_kernels.ATTENTION


def test_the_average_is_the_moving_average_of_the_weights_and_is_what_is_kept(
    tmp_path: Path,
) -> None:
    from safetensors.torch import load_file

    train, validation = examples(40), examples(9, seed=3)
    fitter = fitter_of(train, average="ema", average_decay=0.5)
    plain = fitter_of(train)
    expected = {name: value.clone() for name, value in fitter.model.state_dict().items()}
    steps = 0

    def on_step(step: int, loss: float) -> None:
        nonlocal steps
        del step, loss
        decay = min(0.5, (1 + steps) / (10 + steps))
        for name, value in fitter.model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
        steps += 1

    for epoch in range(2):
        fitter.run_epoch(epoch, on_step=on_step)
        plain.run_epoch(epoch, on_step=lambda *_: None)
    for name, value in fitter.kept.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        # training itself does not notice
        assert torch.equal(fitter.model.state_dict()[name], plain.model.state_dict()[name])
    scores_NL = fitter.predict(validation)["max"]
    assert np.abs(scores_NL - plain.predict(validation)["max"]).max() > 1e-4
    plain.model.load_state_dict(expected)
    np.testing.assert_allclose(scores_NL, plain.predict(validation)["max"], atol=1e-5)
    fitter.save(tmp_path, {})
    kept, trained = load_file(tmp_path / MODEL_STATE), load_file(tmp_path / TRAINED_STATE)
    assert torch.equal(kept["classifier.weight"], fitter.kept.classifier.weight)
    assert torch.equal(trained["classifier.weight"], fitter.model.classifier.weight)
    assert not torch.equal(kept["classifier.weight"], trained["classifier.weight"])


def test_the_first_weights_leave_the_average_within_a_dozen_steps() -> None:
    share = math.prod(min(0.999, (1 + step) / (10 + step)) for step in range(12))
    assert share < 1e-5


def test_a_checkpoint_without_an_average_holds_the_weights_once(tmp_path: Path) -> None:
    fitter_of(examples(3)).save(tmp_path, {})
    assert not (tmp_path / TRAINED_STATE).exists()


# Several processes


OPTIONS = {"layer_decay": 0.7, "head_warmup": 0.3, "average": "ema", "average_decay": 0.9}


def _train_in_a_group(rank: int, port: int, folder: str, changes: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    fitter = fitter_of(
        examples(30, unannotated=True, windowed=True),
        wrap=torch.nn.parallel.DistributedDataParallel,
        rank=rank,
        world_size=2,
        **changes,
    )
    losses = curve(fitter)
    scores_NL = fitter.predict(examples(11, seed=7, windowed=True))["max"]
    optioned = fitter_of(
        examples(30, unannotated=True),
        model=tiny_mean(),
        wrap=torch.nn.parallel.DistributedDataParallel,
        rank=rank,
        world_size=2,
        **changes,
        **OPTIONS,
    )
    probed = fitter_of(
        examples(30, unannotated=True, windowed=True),
        model=tiny_mean(),
        wrap=torch.nn.parallel.DistributedDataParallel,
        rank=rank,
        world_size=2,
        **changes,
    )
    fit_head(probed)
    np.savez(
        Path(folder) / f"{rank}.npz",
        head=probed.model.classifier.weight.detach().numpy(),
        losses=losses,
        scores=scores_NL,
        optioned_losses=curve(optioned),
        optioned_scores=optioned.predict(examples(11, seed=7))["max"],
    )
    torch.distributed.barrier()
    # PyTorch 2.13 now and then waits for ever when a group is taken down: a gloo thread wants the
    # interpreter's lock, which the destructor holds
    os._exit(0)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of two processes saw: starting them costs most, so all tests share one run."""
    folder = tmp_path_factory.mktemp("group")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        # 3 documents per step and small passes: ranks differ in passes, and some are empty
        arguments = (port, str(folder), {"batch_size": 3, "max_batch_tokens": 14})
        torch.multiprocessing.spawn(_train_in_a_group, arguments, nprocs=2)
    return [np.load(folder / f"{rank}.npz") for rank in range(2)]


def test_two_workers_follow_the_curve_of_one(two_workers: list[Any]) -> None:
    train = examples(30, unannotated=True, windowed=True)
    validation = examples(11, seed=7, windowed=True)
    alone = fitter_of(train, batch_size=3, max_batch_tokens=14)
    losses = curve(alone)
    assert losses[0] != pytest.approx(losses[-1], abs=1e-2)
    for rank in range(2):
        np.testing.assert_allclose(two_workers[rank]["losses"], losses, atol=1e-4)
        np.testing.assert_allclose(
            two_workers[rank]["scores"], alone.predict(validation)["max"], atol=1e-4
        )


def test_two_workers_fit_the_head_that_one_fits(two_workers: list[Any]) -> None:
    alone = fitter_of(
        examples(30, unannotated=True, windowed=True),
        model=tiny_mean(),
        batch_size=3,
        max_batch_tokens=14,
    )
    random = alone.model.classifier.weight.detach().numpy().copy()
    fit_head(alone)
    head = alone.model.classifier.weight.detach().numpy()
    assert (np.abs(head - random) > 1e-3).all()
    assert np.array_equal(two_workers[0]["head"], two_workers[1]["head"])
    np.testing.assert_allclose(two_workers[0]["head"], head, atol=1e-4)


def test_two_workers_follow_the_curve_of_one_with_every_option_on(two_workers: list[Any]) -> None:
    alone = fitter_of(
        examples(30, unannotated=True),
        model=tiny_mean(),
        batch_size=3,
        max_batch_tokens=14,
        **OPTIONS,
    )
    losses, scores_NL = curve(alone), alone.predict(examples(11, seed=7))["max"]
    assert losses[0] != pytest.approx(losses[-1], abs=1e-2)
    for rank in range(2):
        np.testing.assert_allclose(two_workers[rank]["optioned_losses"], losses, atol=1e-4)
        np.testing.assert_allclose(two_workers[rank]["optioned_scores"], scores_NL, atol=1e-4)


def test_every_rank_reports_the_same_loss_and_scores(two_workers: list[Any]) -> None:
    one, other = two_workers
    for name in ("losses", "scores", "optioned_losses", "optioned_scores"):
        assert one[name].tolist() == other[name].tolist()


# Prediction


def test_predictions_stand_in_the_order_of_the_examples_and_keep_the_mode() -> None:
    validation = examples(20, seed=3)
    fitter = fitter_of(examples(8), max_batch_tokens=30, model=tiny_bert(dropout=0.5))
    scores_NL = fitter.predict(validation)["max"]
    for row in range(20):
        ids = torch.from_numpy(validation.ids.window(row).astype(np.int64))[None]
        with torch.no_grad():
            alone = torch.sigmoid(fitter.model.eval()(input_ids=ids).logits)[0]
        np.testing.assert_allclose(scores_NL[row], alone.numpy(), atol=1e-6)


# Windows


@pytest.mark.parametrize("how", AGGREGATES)
def test_a_step_learns_from_the_joined_logits_of_whole_documents(how: Aggregate) -> None:
    train = examples(9, seed=4, windowed=True)
    fitter = fitter_of(train, windows={"aggregate": how, "top": 2}, batch_size=9)
    rows = np.arange(9)
    expected = 0.0
    targets = torch.from_numpy(train.targets_BL(rows))
    for row in rows:
        logits = [
            fitter.model.eval()(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
            for ids in train.ids.windows(train.ids.windows_of(rows[[row]]))
        ]
        joined = aggregate_tensors(torch.stack(logits), [len(logits)], how=how, top=2)[0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(joined, targets[row])
        expected += float(loss.detach()) / 9
    assert fitter.run_epoch(0, on_step=lambda *_: None) == pytest.approx(expected, abs=1e-5)
    found = fitter.predict(train, AGGREGATES)
    assert set(found) == set(AGGREGATES)
    np.testing.assert_array_equal(found[how], fitter.predict(train, (how,))[how])
    assert sum(np.array_equal(found[how], other) for other in found.values()) == 1


def test_windows_change_nothing_for_documents_that_fit_into_one() -> None:
    plain = curve(fitter_of(examples(20)))
    assert curve(fitter_of(examples(20), windows={"aggregate": "noisy_or"})) == plain


def test_a_pass_holds_no_more_padded_tokens_than_asked_unless_one_document_has_more() -> None:
    train = examples(40, longest=30, windowed=True)
    fitter = fitter_of(train, max_batch_tokens=24, batch_size=20)
    seen: list[int] = []
    forward = fitter._forward

    def spy(ids: list[Any]) -> torch.Tensor:
        seen.append(len(ids) * max(map(len, ids)))
        return forward(ids)

    fitter._forward = spy  # type: ignore[method-assign]
    fitter.run_epoch(0, on_step=lambda *_: None)
    costs_N = train.ids.costs
    beyond = costs_N[costs_N > 24]
    assert len(beyond) > 3
    assert sorted(size for size in seen if size > 24) == sorted(beyond)  # each by itself
    seen.clear()
    fitter.predict(train)
    assert sorted(size for size in seen if size > 24) == sorted(beyond)


# Checkpoints


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize("stop_at", [(0, 3), (1, 0), (1, 4)])
def test_a_run_that_stops_and_resumes_equals_one_that_did_not(
    stop_at: tuple[int, int], options: dict[str, Any], tmp_path: Path
) -> None:
    """Dropout included: each step has a seed of its own."""
    train = examples(44)
    whole: dict[tuple[int, int], float] = {}
    stopped = fitter_of(train, model=tiny_bert(dropout=0.3), **options)
    for epoch in range(2):

        def on_step(step: int, loss: float, epoch: int = epoch) -> None:
            whole[epoch, step] = loss
            if divmod(epoch * 6 + step + 1, 6) == stop_at:
                stopped.save(tmp_path, {"epoch": stop_at[0], "step": stop_at[1]})

        stopped.run_epoch(epoch, on_step=on_step)
    torch.manual_seed(99)
    resumed = fitter_of(train, model=tiny_bert(dropout=0.3), **options)
    for model in (resumed.model, resumed.kept):
        for parameter in model.parameters():
            parameter.data.zero_()
    progress = resumed.load(tmp_path)
    assert (progress["epoch"], progress["step"]) == stop_at
    rest: dict[tuple[int, int], float] = {}
    first = progress["step"]
    for epoch in range(progress["epoch"], 2):
        resumed.run_epoch(
            epoch,
            first_step=first,
            on_step=lambda step, loss, epoch=epoch: rest.__setitem__((epoch, step), loss),
        )
        first = 0
    assert rest == {key: loss for key, loss in whole.items() if key >= stop_at}
    for one, other in ((resumed.model, stopped.model), (resumed.kept, stopped.kept)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])


class Tied(torch.nn.Module):
    """Two names for one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(4, 3)
        self.output = torch.nn.Linear(3, 4)
        self.output.weight = self.embedding.weight
        self.base_model_prefix = "embedding"


def test_tied_weights_are_saved_once_and_loaded_into_both(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = Tied()
    fitter = fitter_of(examples(3), model=model)
    fitter.save(tmp_path, {"epoch": 1})
    saved = load_file(tmp_path / MODEL_STATE)
    assert set(saved) == {"embedding.weight", "output.bias"}
    other = Tied()
    load_weights(other, tmp_path / MODEL_STATE)
    assert torch.equal(other.output.weight, model.embedding.weight)
    assert other.output.weight is other.embedding.weight
    assert read_progress(tmp_path) == {"epoch": 1}


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    fitter = fitter_of(examples(3))
    fitter.save(tmp_path, {})
    weights = load_file(tmp_path / MODEL_STATE)
    del weights["classifier.bias"]
    save_file(weights, tmp_path / MODEL_STATE)
    with pytest.raises(RuntimeError, match=r"lacks classifier.bias"):
        fitter.load(tmp_path)
