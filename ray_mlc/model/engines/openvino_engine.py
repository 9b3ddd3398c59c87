"""OpenVINO on CPU: the extra `[openvino]`; the fastest there for small encoders.

The model is converted once per machine, from the same weights, and kept in the user's cache under
the model's digest: a model folder may lie on storage that nobody may write to. Conversion traces
the PyTorch model; that nothing is lost on the way is for the canaries to show.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import ModelError, first_line
from ray_mlc.model.cache import cache_folder, cache_name
from ray_mlc.model.engines.kernels import KEPT, OPENVINO_PROPERTY
from ray_mlc.model.engines.protocol import OneByOne, OutOfMemoryError, pad

PRECISIONS = {
    "float32": "f32",
    "bfloat16": "bf16",
    # what is not quantized; the rest says itself what it is
    "int8": "f32",
}
"""OpenVINO's names."""
MODEL_FILE = "openvino_model.xml"
INSTALL = (
    "install the extra with `pip install 'ray-mlc[openvino]'`, or set engine.name=torch for a new "
    "output"
)


def available() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None


class OpenVinoEngine(OneByOne):
    """A sequence classification model, compiled for this CPU."""

    name = "openvino"
    device = "cpu"

    def __init__(self, compiled: Any, *, pad_id: int, dtype: str) -> None:
        """Take over a compiled model with the inputs `input_ids` and `attention_mask`.

        Args:
            compiled: `openvino.CompiledModel`.
            pad_id: Token id to pad with.
            dtype: `float32`, `bfloat16` or `int8`, as it was compiled.
        """
        self.dtype = dtype
        self._pad_id = pad_id
        self._request = compiled.create_infer_request()

    @classmethod
    def load(
        cls, folder: Path, *, digest: str, pad_id: int, dtype: str, threads: int | None = None
    ) -> OpenVinoEngine:
        """Load a model folder, converting it if that has not been done on this machine.

        Args:
            folder: The model folder.
            digest: Of the model: names the conversion in the cache.
            pad_id: Token id to pad with.
            dtype: `float32` or `bfloat16`.
            threads: CPU threads; None: as many as OpenVINO finds right.

        Raises:
            ModelError: If OpenVINO is not installed, or cannot convert the model.
        """
        if not available():
            raise ModelError(f"engine openvino: OpenVINO is not installed here: {INSTALL}")
        try:
            path = converted(folder, digest)
        except OSError as error:
            raise ModelError(
                f"{folder}: the converted model cannot be kept in {cache_name()} "
                f"({first_line(error)}): set XDG_CACHE_HOME, or engine.name=torch"
            ) from None
        return cls.of_file(path, pad_id=pad_id, dtype=dtype, threads=threads)

    @classmethod
    def of_file(cls, path: Path, *, pad_id: int, dtype: str, threads: int | None) -> OpenVinoEngine:
        """Compile a model in OpenVINO's form; arguments as for `load`.

        Raises:
            ModelError: If OpenVINO is not installed, or cannot compile it.
        """
        core = import_openvino().Core()
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "INFERENCE_NUM_THREADS": threads or 0,
            "NUM_STREAMS": 1,
            # or every process of a pool would pin its threads to the same first cores
            "ENABLE_CPU_PINNING": False,
        }
        try:
            compiled = _compile(core, path, options)
        except RuntimeError as error:
            raise ModelError(
                f"{path.parent}: OpenVINO cannot compile the model ({first_line(error)}): set "
                "engine.name=torch"
            ) from None
        return cls(compiled, pad_id=pad_id, dtype=dtype)

    def logits(self, ids: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Pad one batch to its longest document and run it; see `Engine.logits`."""
        input_ids_BT, mask_BT = pad(ids, self._pad_id)
        try:
            outputs = self._request.infer([input_ids_BT, mask_BT], share_inputs=True)
        except RuntimeError as error:
            if "bad_alloc" in str(error) or "allocate" in str(error):
                raise OutOfMemoryError(first_line(error)) from None
            raise
        logits_BL: NDArray[np.float32] = outputs[0]
        return logits_BL


def _compile(core: Any, path: Path, options: dict[str, Any]) -> Any:
    try:
        return core.compile_model(str(path), "CPU", options | {OPENVINO_PROPERTY: KEPT})
    except RuntimeError as error:
        if OPENVINO_PROPERTY not in str(error):
            raise
        return core.compile_model(str(path), "CPU", options)  # memory grows then


def import_openvino() -> Any:
    """The library, without the part that reports its use to its makers.

    Raises:
        ModelError: If it is installed, but cannot be loaded.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise ModelError(
            f"engine openvino: OpenVINO cannot be loaded here ({first_line(error)}): install it "
            "again, or set engine.name=torch for a new output"
        ) from None
    return openvino


def converted(folder: Path, digest: str) -> Path:
    """The model in OpenVINO's form, made if it is not there; processes wait for one another."""
    from filelock import FileLock

    cache = cache_folder("openvino")
    target = cache / f"{digest[:32]}-{version('openvino')}"
    if not (target / MODEL_FILE).is_file():
        with FileLock(f"{target}.lock"):
            if not (target / MODEL_FILE).is_file():
                _convert_into(folder, target)
    return target / MODEL_FILE


def _convert_into(folder: Path, target: Path) -> None:
    """Convert in a folder beside, and rename it: a killed conversion leaves nothing half-made."""
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
    try:
        # brings PyTorch along, which a process that only scores with OpenVINO does without
        from ray_mlc.model.engines.openvino_convert import convert

        convert(folder, scratch / MODEL_FILE)
        os.replace(scratch, target)  # noqa: PTH105 - a folder
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
