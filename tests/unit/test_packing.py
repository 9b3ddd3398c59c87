"""Packed batches give what padded ones give, on CPU through the same functions as on CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.models import classifier_of

from ray_mlc.model.engines.packing import PACKABLE, can_pack, pack
from ray_mlc.model.engines.torch_engine import TorchEngine

PAD = 1


def documents(lengths: list[int], seed: int = 0) -> list[NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 50, size=length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize("model_type", sorted(PACKABLE))
def test_a_packed_batch_gives_the_logits_of_the_padded_one(model_type: str) -> None:
    # together longer than the encoder's positions
    ids = documents([30, 1, 17, 30, 2, 29, 8])
    options: dict[str, Any] = {"pad_id": PAD, "device": "cpu", "dtype": "float32"}
    padded_BL = TorchEngine(classifier_of(model_type), **options).logits(ids)
    packed_BL = TorchEngine(classifier_of(model_type), **options, packed=True).logits(ids)
    assert packed_BL.shape == (7, 3)
    assert padded_BL.std(axis=0).min() > 0.01  # else constants would be compared
    np.testing.assert_allclose(packed_BL, padded_BL, rtol=0, atol=1e-4)


def test_documents_in_a_packed_batch_do_not_see_each_other() -> None:
    engine = TorchEngine(
        classifier_of("bert"), pad_id=PAD, device="cpu", dtype="float32", packed=True
    )
    ids = documents([9, 20, 5])
    together_BL = engine.logits(ids)
    alone_BL = np.concatenate([engine.logits([row]) for row in ids])
    np.testing.assert_allclose(together_BL, alone_BL, rtol=0, atol=1e-5)
    others = engine.logits([documents([30], seed=9)[0], ids[1], documents([3], seed=8)[0]])
    np.testing.assert_allclose(others[1], together_BL[1], rtol=0, atol=1e-5)


def test_documents_lie_end_to_end_and_positions_start_anew() -> None:
    packed = pack([np.array([5, 6, 7], np.int32), np.array([8], np.int32)], pad_id=PAD)
    assert packed.input_ids_T.tolist() == [5, 6, 7, 8]
    assert packed.position_ids_T.tolist() == [0, 1, 2, 0]
    assert packed.cu_seqlens.tolist() == [0, 3, 4]
    assert (packed.cu_seqlens.dtype, packed.longest, packed.documents) == (np.int32, 3, 2)


@pytest.mark.parametrize("lengths", [[3, 1], [8], [7, 2], [1]])
def test_a_row_is_filled_up_by_a_document_that_nobody_looks_at(lengths: list[int]) -> None:
    ids = documents(lengths)
    packed = pack(ids, pad_id=PAD, first_position=2, multiple=8)
    total = sum(lengths)
    assert len(packed.input_ids_T) % 8 == 0
    assert len(packed.input_ids_T) - total < 8
    assert (packed.input_ids_T[total:] == PAD).all()
    assert packed.documents == len(lengths)
    assert packed.cu_seqlens[len(lengths)] == total
    assert packed.cu_seqlens[-1] == len(packed.input_ids_T)
    assert packed.position_ids_T.min() == 2
    assert packed.position_ids_T.max() == packed.longest + 1


def test_encoders_with_other_positions_are_not_packed() -> None:
    assert can_pack(classifier_of("bert"))
    for model_type in ("mpnet", "deberta-v2", "albert"):
        model = classifier_of(model_type)
        assert not can_pack(model), model_type
