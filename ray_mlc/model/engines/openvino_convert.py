"""Conversion of a model to OpenVINO's form; apart from the engine, because it needs PyTorch."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from ray_mlc.errors import ModelError, first_line
from ray_mlc.model.encoder import load_classifier_model, quiet_transformers
from ray_mlc.model.engines.openvino_engine import import_openvino
from ray_mlc.model.engines.traced import TracedLogits


def convert(folder: Path, path: Path) -> None:
    """Write the model of a folder in OpenVINO's form, in float32, with shapes left open.

    Raises:
        ModelError: If OpenVINO cannot convert it.
    """
    openvino = import_openvino()
    model = TracedLogits(load_classifier_model(folder).eval())
    # two documents, so that nothing takes the batch for one
    example_BT = torch.ones((2, 8), dtype=torch.int64)
    open_shape = [([-1, -1], openvino.Type.i64)] * 2
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing: shapes that look constant to it
            converted = openvino.convert_model(
                model, example_input=(example_BT, example_BT), input=open_shape
            )
        openvino.save_model(converted, str(path), compress_to_fp16=False)
    except Exception as error:  # whatever tracing a foreign model raises
        raise ModelError(
            f"{folder}: OpenVINO cannot convert the model ({first_line(error)}): set "
            "engine.name=torch"
        ) from None
