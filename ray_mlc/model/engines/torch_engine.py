"""PyTorch on CPU or CUDA: works for every encoder that transformers loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_mlc.errors import ModelError
from ray_mlc.model.batching import BATCH_COST
from ray_mlc.model.engines.onednn import pack_encoder
from ray_mlc.model.engines.packing import MULTIPLE, PackedModel, can_pack, on_device, pack
from ray_mlc.model.engines.protocol import OutOfMemoryError, pad
from ray_mlc.model.processor import cpu_info

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchEngine:
    """A sequence classification model in evaluation mode."""

    name = "torch"

    def __init__(
        self, model: Any, *, pad_id: int, device: str, dtype: str, packed: bool = False
    ) -> None:
        """Take over a model.

        Args:
            model: `AutoModelForSequenceClassification` model.
            pad_id: Token id to pad with.
            device: `cpu` or `cuda`.
            dtype: `float32`, `bfloat16` or `float16`.
            packed: Run documents end to end, without padding.

        Raises:
            ModelError: If this kind of encoder cannot be run packed.
        """
        self.device = device
        self.dtype = dtype
        self.depth = 2 if device == "cuda" else 1
        self.packed = packed
        self.batch_cost = BATCH_COST[device]
        self._pad_id = pad_id
        self._model = model.to(device=device, dtype=DTYPES[dtype]).eval()
        if packed and not can_pack(model):
            raise ModelError(f"{model.config.model_type} encoders cannot be run packed")
        self._packed = PackedModel(self._model) if packed else None

    @classmethod
    def load(
        cls, folder: Path, *, pad_id: int, device: str, dtype: str, packed: bool = False
    ) -> TorchEngine:
        """Load a model folder; arguments as for the class.

        Raises:
            ModelError: If the weights cannot be loaded, the device is absent, or this kind of
                encoder cannot be run packed.
        """
        from ray_mlc.model.encoder import load_classifier_model

        if device == "cuda" and not torch.cuda.is_available():
            raise ModelError("this run is recorded for CUDA, but the process sees no GPU")
        model = load_classifier_model(folder)
        engine = cls(model, pad_id=pad_id, device=device, dtype=dtype, packed=packed)
        if device == "cpu":
            pack_encoder(engine._model)
        return engine

    def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Run one batch, packed or padded to its longest document; see `Engine.logits`."""
        return self.begin(ids)()

    @torch.inference_mode()
    def begin(self, ids: Sequence[NDArray[np.int32]]) -> Callable[[], NDArray[np.float32]]:
        """Queue one batch on the GPU, with the copy of its logits; see `Engine.begin`.

        The GPU then works on the next batch while the host sorts out this one. On CPU the batch is
        done at once.
        """
        with _out_of_memory():
            # float32 before the sigmoid: between 0.5 and 1 a bfloat16 moves in steps of 2**-8,
            # enough to flip a label whose threshold was fitted in float32
            output_BL = self._run(ids).float()
            if output_BL.device.type == "cpu":
                return output_BL.numpy
            host_BL = torch.empty(output_BL.shape, dtype=torch.float32, pin_memory=True)
            host_BL.copy_(output_BL, non_blocking=True)
            copied: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()

        def fetch() -> NDArray[np.float32]:
            with _out_of_memory():
                copied.synchronize()
            logits_BL: NDArray[np.float32] = host_BL.numpy()
            return logits_BL

        return fetch

    def _run(self, ids: Sequence[NDArray[np.int32]]) -> torch.Tensor:
        if self._packed is not None:
            packed = pack(
                ids,
                pad_id=self._pad_id,
                first_position=self._packed.first_position,
                multiple=MULTIPLE if self.device == "cuda" else 1,
            )
            return self._packed(packed, device=self.device)
        input_ids_BT, mask_BT = pad(ids, self._pad_id)
        logits_BL: torch.Tensor = self._model(
            input_ids=on_device(input_ids_BT, self.device),
            attention_mask=on_device(mask_BT, self.device),
        ).logits
        return logits_BL


@contextmanager
def _out_of_memory() -> Iterator[None]:
    """Turn what PyTorch raises when memory runs out into our own error."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemoryError(str(error).splitlines()[0]) from None
    except RuntimeError as error:
        if "allocate memory" in str(error):  # what PyTorch's CPU allocator says
            raise OutOfMemoryError(str(error).splitlines()[0]) from None
        raise


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and "bf16" in cpu_info()
