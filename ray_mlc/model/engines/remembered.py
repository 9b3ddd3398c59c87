"""What `auto` came to on this machine, kept in its cache for a week.

Trying engines takes about ten seconds: nothing to a night over a million documents, most of the
wait for the first rows of a small one. A choice is taken again for the same model, decision,
settings, libraries and processor, and documents about as long. It is proven on the canaries all the
same: every actor does that when it loads the model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from ray_mlc.errors import first_line
from ray_mlc.model.cache import cache_folder, write_into_cache
from ray_mlc.model.processor import cpu_info

log = logging.getLogger(__name__)

FRESH_S = 7 * 24 * 3600.0
"""Seconds for which a choice is taken again: one that was made in a busy moment must not last."""
LENGTH_STEP = 1.25
"""Width of the bins, as a ratio, in which mean lengths count as alike."""
_LIBRARIES = ("ray-mlc", "torch", "transformers", "tokenizers", "openvino")
_ABOUT_THE_PROCESSOR = ("model name", "flags", "CPU implementer", "CPU part", "Features")


def key_of(asked: Mapping[str, Any], texts: Sequence[str]) -> str:
    """A name for all that a choice hangs on.

    Args:
        asked: The model's digest and what the job says, as JSON can hold it.
        texts: Documents of the corpus, so much of each as will be read.
    """
    length = float(np.mean([len(text) for text in texts])) if texts else 0.0
    named = {
        "asked": asked,
        "length": round(math.log(max(1.0, length), LENGTH_STEP)),
        "processor": _processor(),
        "versions": {name: _version(name) for name in _LIBRARIES},
    }
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def remember(key: str, choice: Mapping[str, Any]) -> None:
    """Keep a choice; a cache that cannot be written costs the next run its ten seconds."""
    try:
        folder = cache_folder("engines")
        for left in folder.iterdir():
            with suppress(OSError):  # another process may sweep, too
                if time.time() - left.stat().st_mtime > FRESH_S:
                    left.unlink()
        text = json.dumps({"at": time.time(), "choice": choice})
        write_into_cache(folder / f"{key[:32]}.json", text)
    except OSError as error:
        log.info("the choice of an engine is not kept: %s", first_line(error))


def recall(key: str) -> tuple[float, dict[str, Any]] | None:
    """When a choice was made, in seconds since 1970, and the choice; None: there is none."""
    try:
        kept = json.loads((cache_folder("engines") / f"{key[:32]}.json").read_bytes())
        at, choice = float(kept["at"]), dict(kept["choice"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (at, choice) if 0 <= time.time() - at < FRESH_S else None


def _processor() -> str:
    """What is known of this machine's processor."""
    lines = cpu_info().splitlines()
    about = {line for line in lines if line.split(":")[0].strip() in _ABOUT_THE_PROCESSOR}
    return "\n".join([platform.machine(), platform.processor(), *sorted(about)])


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
