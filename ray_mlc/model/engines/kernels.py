"""Kernels that CPU libraries keep compiled, by shape: few of them, or memory grows all night.

Batches differ in documents and length, and oneDNN compiles a kernel for each layer and shape. It
keeps 1,024; PyTorch keeps as many of its own around those, and OpenVINO 5,000. Each holds 50 to 100
kB, and a shape hardly comes again before it is dropped: what they save is 1 % of a small encoder's
time, and what they take is half a gigabyte a process (benchmarks/results/2026-11-30-kernels.md).
"""

from __future__ import annotations

import os

KEPT = 128
"""Of each library; more than one batch needs, which are a dozen or two."""
OPENVINO_PROPERTY = "CPU_RUNTIME_CACHE_CAPACITY"
"""Not a public one: a version without it says that it is not supported."""
_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def keep_few_kernels() -> None:
    """Limit what this process keeps, where the user has not said how much.

    oneDNN, that in OpenVINO too, and PyTorch read it when they compile their first kernel: nothing
    changes in a process that has computed before.
    """
    for variable in _VARIABLES:
        os.environ.setdefault(variable, str(KEPT))
