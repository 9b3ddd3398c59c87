"""Load encoders: a hub id or folder to fine-tune, a model folder to score with."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_mlc.errors import ModelError, first_line
from ray_mlc.labels import LabelSet
from ray_mlc.model.cache import cache_folder

POOLED_TYPE = "ray_mlc_pooling"
"""`model_type` of models of our own class: transformers knows none of that name, and refuses it."""


def fetch(encoder: str) -> Path:
    """The local folder of an encoder or model: a folder as it is, a hub id downloaded first.

    Args:
        encoder: Folder, URI of a folder (`s3://…`), or hub id with an optional `@revision`.

    Raises:
        ModelError: If there is no such folder and the hub has it not, or cannot be reached.
    """
    from ray_mlc.storage import local_path, scheme_of

    if scheme_of(encoder) != "file":
        return _download_uri(encoder)
    path = local_path(encoder)
    if path is not None and path.is_dir():
        return path
    looks_like_path = encoder.startswith((".", "/", "~")) or encoder.count("/") > 1
    if looks_like_path:
        raise ModelError(f"{encoder}: there is no such folder")
    return _download_hub(encoder)


def hub_id(encoder: str) -> str | None:
    """The hub's name of an encoder, without a revision; None for a folder or URI of one."""
    from ray_mlc.storage import local_path, scheme_of

    if scheme_of(encoder) != "file":
        return None
    path = local_path(encoder)
    if path is not None and path.is_dir():
        return None
    return encoder.partition("@")[0]


def _download_hub(encoder: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = encoder.partition("@")
    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "int8/*"]
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=wanted))
    except HFValidationError:
        raise ModelError(f"{encoder}: there is no such folder, and it is no hub id") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{encoder}: there is no such folder, and the hub has no such model (or it is private: "
            "log in with `hf auth login`)"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{encoder}: the hub has the model, but not revision {revision}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError):
        raise ModelError(
            f"{encoder}: the Hugging Face hub cannot be reached and there is no folder of that "
            "name: download the model where there is a network and name its folder instead"
        ) from None


def _download_uri(uri: str) -> Path:
    """Copy a remote model folder to the user's cache, once for all processes of this machine.

    The copy is named after what the store lists: another content gets another copy, and one that
    processes have open is not touched. It appears whole: its folder is renamed when all is there.
    """
    import hashlib
    import shutil
    import tempfile

    import pyarrow.fs as pa_fs
    from filelock import FileLock

    from ray_mlc.storage import filesystem_of

    filesystem, root = filesystem_of(uri)
    try:
        found = filesystem.get_file_info(pa_fs.FileSelector(root, recursive=True))
        root = root.rstrip("/")
        files = {
            info.path[len(root) + 1 :]: info
            for info in found
            # `_checkpoints` and the like are no part of a model
            if info.is_file and not info.path[len(root) + 1 :].startswith(("_", "."))
        }
        listed = [(name, files[name].size, files[name].mtime_ns) for name in sorted(files)]
        digest = hashlib.sha256(repr((uri.rstrip("/"), listed)).encode()).hexdigest()[:16]
        folder = cache_folder("models")
        target = folder / digest
        if target.is_dir():
            return target
        with FileLock(folder / f"{digest}.lock"):
            if target.is_dir():  # another process has copied it meanwhile
                return target
            scratch = Path(tempfile.mkdtemp(prefix=f"{digest}-", dir=folder))
            try:
                for name, info in files.items():
                    copy = scratch / name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    with filesystem.open_input_stream(info.path) as source, copy.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 8 * 2**20)
                    if copy.stat().st_size != info.size:
                        raise ModelError(f"{uri}: {name} changed while it was copied: try again")
                scratch.chmod(0o755)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{uri}: cannot be copied ({first_line(error)})") from None
    return target


def load_classifier_model(folder: Path) -> Any:
    """The float32 model of a model folder, of whichever class it is.

    Raises:
        ModelError: If it cannot be loaded, or weights are missing.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        with quiet_transformers():
            if pooling_of(folder) is not None:
                from ray_mlc.model.pooling import PooledClassifier

                return PooledClassifier.load(folder)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype="float32", output_loading_info=True, trust_remote_code=False
            )
    except _loading_errors() as error:
        raise ModelError(f"{folder}: the model cannot be loaded ({first_line(error)})") from None
    if report["missing_keys"]:
        missing = min(report["missing_keys"])
        raise ModelError(f"{folder}: the weights lack {missing!r}: is this a fine-tuned model?")
    return model


def new_classifier_model(
    encoder: Path,
    label_set: LabelSet,
    *,
    head_bias: NDArray[np.float64] | None,
    seed: int,
    pooling: str = "auto",
    vocabulary_size: int | None = None,
) -> Any:
    """An encoder with a new classification head for multi-label training, in float32.

    Args:
        encoder: Checkpoint folder.
        label_set: Labels; their order is that of the head's outputs.
        head_bias: First bias of the head, shape [L]; None: 0.
        seed: Seed of the new weights.
        pooling: What the head sees: `auto` (as transformers' class has it), `cls` or `mean`. A
            `PooledClassifier` where that class cannot do it.
        vocabulary_size: Token ids that the tokenizer gives; embeddings that are missing are drawn
            from the mean and covariance of the others (Hewitt 2021), which is transformers' way.
            None: the checkpoint's own.

    Raises:
        ModelError: If it cannot be loaded, or not pooled so.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from ray_mlc.model.pooling import PooledClassifier, stock_options

    torch.manual_seed(seed)
    names = dict(enumerate(label_set.names))
    own = pooling_of(encoder) is not None
    options = None if own else stock_options(load_config(encoder), pooling)
    model: Any
    try:
        with quiet_transformers():
            if options is None:
                model = PooledClassifier.start(encoder, label_set.names, pooling=pooling)
            else:
                model = AutoModelForSequenceClassification.from_pretrained(
                    encoder,
                    dtype="float32",
                    trust_remote_code=False,
                    num_labels=len(label_set),
                    id2label=names,
                    label2id={name: column for column, name in names.items()},
                    problem_type="multi_label_classification",
                    ignore_mismatched_sizes=True,
                    **options,
                )
            base = model.base_model
            if vocabulary_size and vocabulary_size > base.get_input_embeddings().num_embeddings:
                base.resize_token_embeddings(vocabulary_size)
    except _loading_errors() as error:
        raise ModelError(f"{encoder}: the encoder cannot be loaded ({first_line(error)})") from None
    layer = output_layer(model, len(label_set))
    if layer is not None:
        with torch.no_grad():
            # the head of a checkpoint with as many outputs has been loaded: `trained_head` tells
            # which of it is kept
            layer.weight.normal_(std=getattr(model.config, "initializer_range", 0.02))
            if layer.bias is not None:
                bias_L = np.zeros(len(label_set)) if head_bias is None else head_bias
                layer.bias.copy_(torch.from_numpy(bias_L))
    return model


def pooling_of(folder: Path) -> str | None:
    """`cls` or `mean` for a folder that only ray_mlc loads; None for one of transformers' own."""
    content = _config_json(folder)
    return content.get("pooling") if content.get("model_type") == POOLED_TYPE else None


def _config_json(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint; empty if there is none that can be read."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def labels_of(folder: Path) -> list[str] | None:
    """Labels that a checkpoint's configuration names, in column order; None if it has none."""
    named = _config_json(folder).get("id2label")
    return [named[key] for key in sorted(named, key=int)] if named else None


def problem_type_of(folder: Path) -> str | None:
    """What a checkpoint's configuration says that its head was trained for; None: nothing."""
    found = _config_json(folder).get("problem_type")
    return found if isinstance(found, str) else None


def output_layer(model: Any, label_count: int) -> Any:
    """The last linear layer with one output per label; None if there is none."""
    import torch

    layers = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == label_count
    ]
    return layers[-1] if layers else None


def load_config(folder: str | Path) -> Any:
    """The configuration of an encoder, or of the encoder in a model of our own class.

    Raises:
        ModelError: If it cannot be loaded.
    """
    from transformers import AutoConfig

    content = _config_json(Path(folder))
    try:
        if content.get("model_type") == POOLED_TYPE:
            return AutoConfig.for_model(**content["encoder"])
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: the encoder cannot be loaded ({first_line(error)})") from None


def encoder_layers(base: Any) -> Any:
    """The list of an encoder's layers, from the input up: a `ModuleList`.

    Found by what it is, for encoders of any kind: the one list, in no other list, that has as many
    members of one class as the configuration says that there are layers.

    Raises:
        ModelError: If there is no such list (layers that share their weights), or several (an
            encoder with a decoder).
    """
    import torch

    count = getattr(base.config, "num_hidden_layers", None)
    found: dict[str, Any] = {}
    for name, module in base.named_modules():
        if (
            isinstance(module, torch.nn.ModuleList)
            and len(module) == count
            and len({type(layer) for layer in module}) == 1
            and not any(name.startswith(f"{outer}.") for outer in found)
        ):
            found[name] = module
    if len(found) != 1:
        why = "lie in several lists" if found else "cannot be told apart"
        raise ModelError(
            f"training.layer_decay is set, but the layers of an encoder of type "
            f"{base.config.model_type} {why}: set training.layer_decay=1"
        )
    return next(iter(found.values()))


_POSITIONS_AFTER_PADDING = {
    *("camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm"),
    *("mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}
"""RoBERTa and its kin count positions from `pad_token_id` + 1, and have two that no token takes."""


def max_positions(config: Any) -> int | None:
    """Most tokens that the encoder's positions allow; None if it has no such limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    return positions - 2 if config.model_type in _POSITIONS_AFTER_PADDING else positions


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence loading reports: the head is new on purpose, and we check missing weights."""
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def _loading_errors() -> tuple[type[Exception], ...]:
    """What `from_pretrained` raises for files that are wrong."""
    from safetensors import SafetensorError

    return OSError, ValueError, KeyError, RuntimeError, SafetensorError
