"""Weights and activations of eight bits on CPU: made once, on request, and measured before use.

The ranges of activations come from documents like those that the model was trained on
(post-training quantization by NNCF, with SmoothQuant: Xiao et al. 2022). What comes out lies in the
model folder with the figures of its agreement with float32, because these hold for those bytes
alone; runs record their digest, and other bytes are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from ray_mlc.config import Section
from ray_mlc.errors import ModelError, first_line
from ray_mlc.model.decisions import Decision
from ray_mlc.model.engines.openvino_engine import MODEL_FILE, converted, import_openvino
from ray_mlc.model.engines.protocol import pad
from ray_mlc.model.folder import Canaries, ModelFolder
from ray_mlc.model.processor import adds_int8_wide
from ray_mlc.model.tokenization import Ragged

FOLDER = "int8"
"""Folder of the quantized model in the model folder."""
INFO_FILE = "int8.json"
SCHEMA_VERSION = 1
SCRATCH = f".{FOLDER}-"
"""How the names of unfinished and replaced forms begin, in the model folder."""
STALE_S = 3600.0
"""Age from which such a folder belongs to a command that was killed."""
INSTALL = "pip install 'ray-mlc[int8]'"


class Agreement(Section):
    """How often, and at what price, eight bits decide otherwise than float32."""

    documents: int
    """Annotated documents that both scored."""
    flips: float
    """Share of their labels that come out differently, of all N × L."""
    flips_of_given: float
    """The same count over the labels that float32 gives: it does not shrink with rare labels."""
    max_difference: float
    """Largest difference of a score."""
    f1_micro: float
    """Micro-F1 of eight bits."""
    f1_micro_float32: float
    """Micro-F1 of float32."""

    @property
    def loss(self) -> float:
        """Micro-F1 that eight bits cost; negative if they gain some."""
        return self.f1_micro_float32 - self.f1_micro

    def __str__(self) -> str:
        return (
            f"on {self.documents:,} documents {self.flips_of_given:.1%} as many labels come out "
            f"differently as float32 gives ({self.flips:.2%} of all cells), micro-F1 is "
            f"{self.f1_micro:.4f} instead of {self.f1_micro_float32:.4f}"
        )


class Int8Info(Section):
    """`int8/int8.json`: what was made of which model, from what, and how well it agrees."""

    schema_version: int = SCHEMA_VERSION
    model: str
    """Digest of the model folder."""
    weights: str
    """SHA-256 over the quantized model's files."""
    calibration: list[str]
    """Examples whose texts gave the ranges of activations."""
    calibration_documents: int
    validation: list[str]
    """Examples on which the agreement was measured."""
    agreement: Agreement
    decision: Decision
    """What made labels of scores when the agreement was measured."""
    max_tokens: int
    """Tokens kept per document then, and of the canaries."""
    canaries: Canaries
    """Texts and their int8 scores, which every actor reproduces."""
    versions: dict[str, str] = Field(default_factory=dict)


@contextlib.contextmanager
def quantized(
    folder: ModelFolder, ids: Ragged, *, pad_id: int, progress: Callable[[int], None]
) -> Iterator[Path]:
    """A quantized model in a scratch folder beside its place, for the block; `install` keeps it.

    Args:
        folder: The model.
        ids: Documents that are like those it was trained on.
        pad_id: Token id to pad with.
        progress: Called with the number of documents that have been through the model.

    Raises:
        ModelError: If NNCF or OpenVINO is not installed or cannot do it, or nothing can be written.
    """
    nncf = _import_nncf()
    openvino = import_openvino()
    scratch = _scratch(folder)  # not after the work: the folder may not be ours to write

    def inputs(index: int) -> list[NDArray[np.int64]]:
        progress(1)
        return list(pad([ids.window(int(ids.firsts[index]))], pad_id))

    try:
        try:
            model = openvino.Core().read_model(str(converted(folder.path, folder.digest)))
            with contextlib.redirect_stdout(io.StringIO()):  # it shows bars of its own
                result = nncf.quantize(
                    model,
                    nncf.Dataset(range(len(ids)), inputs),
                    model_type=nncf.ModelType.TRANSFORMER,
                    subset_size=len(ids),
                    # half of the range of weights, so that no sum is clipped; what is made with all
                    # of it does not reproduce its canaries on such a CPU, and is refused there
                    advanced_parameters=nncf.AdvancedQuantizationParameters(
                        overflow_fix=None if adds_int8_wide() else nncf.OverflowFix.ENABLE
                    ),
                )
            openvino.save_model(result, str(scratch / MODEL_FILE), compress_to_fp16=False)
        except Exception as error:  # of a full disk, or whatever NNCF raises over a foreign model
            raise ModelError(
                f"{folder.name}: cannot be quantized to int8 ({first_line(error)})"
            ) from None
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch(folder: ModelFolder) -> Path:
    """A new folder in the model folder; those of killed commands go."""
    try:
        for left in folder.path.glob(f"{SCRATCH}*"):
            if time.time() - left.stat().st_mtime > STALE_S:
                shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=SCRATCH, dir=folder.path))
    except OSError as error:
        raise _unwritable(folder, error) from None


def install(scratch: Path, info: Int8Info, folder: ModelFolder) -> None:
    """Put a quantized model in its place in the model folder, with what is known of it.

    Raises:
        ModelError: If it cannot be written.
    """
    target = folder.path / FOLDER
    replaced = scratch.with_name(f"{scratch.name}-replaced")
    try:
        text = json.dumps(info.model_dump(mode="json"), indent=1)
        (scratch / INFO_FILE).write_text(text, encoding="utf-8")
        scratch.chmod(0o755)  # a scratch folder is its maker's alone
        if target.exists():
            target.rename(replaced)
        scratch.rename(target)
    except OSError as error:
        raise _unwritable(folder, error) from None
    shutil.rmtree(replaced, ignore_errors=True)


def _unwritable(folder: ModelFolder, error: OSError) -> ModelError:
    return ModelError(f"{folder.name}: the int8 form cannot be written there ({first_line(error)})")


def read_int8(folder: ModelFolder) -> Int8Info:
    """What the model folder says of its quantized form, checked against the files.

    Raises:
        ModelError: If there is none, it is of another model, or its files are not those measured.
    """
    remedy = f"run `ray-mlc quantize {folder.name}`"
    place = folder.path / FOLDER
    try:
        info = Int8Info.model_validate_json((place / INFO_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder.name}: has no int8 form: {remedy}") from None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ModelError(
            f"{folder.name}: {FOLDER}/{INFO_FILE} is damaged ({first_line(error)}): {remedy}"
        ) from None
    if info.model != folder.digest:
        raise ModelError(f"{folder.name}: its int8 form is of other weights: {remedy}")
    if info.weights != weights_digest(place):
        raise ModelError(f"{folder.name}: the files in {FOLDER} are damaged: {remedy}")
    return info


def refuse_other_decision(form: Int8Info, folder: ModelFolder) -> None:
    """Refuse to begin with an int8 form whose agreement is that of another decision.

    What has begun goes on: the weights are what its scores depend on.

    Raises:
        ModelError: If the model's thresholds were fitted since.
    """
    if form.decision.uncalibrated != folder.info.decision.uncalibrated:
        raise ModelError(
            f"{folder.name}: its int8 form was measured with another decision: run "
            f"`ray-mlc quantize {folder.name}`"
        )


def weights_digest(folder: Path) -> str:
    """SHA-256 over the files of a quantized model.

    Raises:
        ModelError: If one cannot be read.
    """
    digest = hashlib.sha256()
    for name in (MODEL_FILE, Path(MODEL_FILE).with_suffix(".bin").name):
        try:
            with (folder / name).open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise ModelError(f"{folder / name}: cannot be read ({first_line(error)})") from None
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what quantizes."""
    return {name: version(name) for name in ("nncf", "openvino")}


def _import_nncf() -> Any:
    """The library, without the part that reports its use to its makers.

    Raises:
        ModelError: If it is not installed, or cannot be loaded.
    """
    if find_spec("nncf") is None or find_spec("openvino") is None:
        raise ModelError(f"NNCF, which quantizes, is not installed here: {INSTALL}")
    import_openvino()  # without its reports, and so without those of NNCF
    try:
        import nncf
    except ImportError as error:
        raise ModelError(f"NNCF cannot be loaded here ({first_line(error)}): {INSTALL}") from None
    # not by its own function: that also turns down handlers that others have put there
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf
