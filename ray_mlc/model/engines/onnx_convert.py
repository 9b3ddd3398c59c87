"""A model as an ONNX graph, and ONNX Runtime to prove it with: the extra `[onnx]`.

PyTorch's own exporter (`dynamo=True`) is used, which exports the program. The older one records a
run: of transformers' attention masks it keeps what they were in that run, and the graph then takes
padding for text.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_mlc.errors import ModelError, first_line
from ray_mlc.model.encoder import load_classifier_model, quiet_transformers
from ray_mlc.model.engines.protocol import OneByOne, pad
from ray_mlc.model.engines.traced import TracedLogits

MODEL_FILE = "model.onnx"
OPSET = 18
"""Version of the operators: the first that PyTorch's exporter writes without a conversion."""
INLINE_BYTES = 1 << 30
"""Weights up to this lie in the graph's own file, which cannot hold 2 GiB; larger ones beside."""
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "logits"
INSTALL = "install the extra with `pip install 'ray-mlc[onnx]'`"


def missing() -> str | None:
    """A package of the extra that is not installed; None if all are."""
    needed = ("onnx", "onnxscript", "onnxruntime")
    return next((name for name in needed if find_spec(name) is None), None)


def convert(folder: Path, path: Path) -> None:
    """Write the model of a folder as ONNX, in float32, with batch and length left open.

    Raises:
        ModelError: If PyTorch cannot export it.
    """
    model = TracedLogits(load_classifier_model(folder).eval())
    # neither size is 1, which would be taken for a constant; nor are they one tensor, which would
    # be taken for one input
    example_BT, mask_BT = (torch.ones((2, 8), dtype=torch.int64) for _ in range(2))
    large = sum(weight.nbytes for weight in model.parameters()) > INLINE_BYTES
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    open_shape = {0: batch, 1: length}
    try:
        with quiet_transformers(), _quiet_exporter():
            torch.onnx.export(
                model,
                (example_BT, mask_BT),
                str(path),
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_shapes=(open_shape, open_shape),
                opset_version=OPSET,
                dynamo=True,
                external_data=large,
                verbose=False,
            )
    except Exception as error:  # whatever exporting a foreign model raises
        raise ModelError(
            f"{folder}: PyTorch cannot export the model to ONNX ({first_line(error)}): try "
            "--format openvino"
        ) from None


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says of its steps, and of torchvision that is not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class OnnxEngine(OneByOne):
    """A graph in ONNX Runtime on CPU, to check an export with."""

    name, device, dtype = "onnxruntime", "cpu", "float32"

    def __init__(self, path: Path, *, pad_id: int) -> None:
        """Load a graph that `convert` wrote."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(str(path), options)
        self._pad_id = pad_id

    def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Pad one batch to its longest document and run it; see `Engine.logits`."""
        inputs = dict(zip(INPUTS, pad(ids, self._pad_id), strict=True))
        logits_BL: NDArray[np.float32] = self._session.run([OUTPUT], inputs)[0]
        return logits_BL
