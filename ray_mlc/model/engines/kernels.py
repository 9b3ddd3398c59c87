"""Kernels that CPU libraries keep compiled, by shape: few of them, or memory grows all night.

Batches differ in documents and length, and oneDNN compiles a kernel for each kind of layer and
shape. It keeps 1,024; PyTorch keeps as many around those, and OpenVINO 5,000. Each holds 50 to 100
kB. What keeping few saves and costs is measured by `benchmarks/bench_kernels.py`.
"""

from __future__ import annotations

import os

KEPT = 128
"""In each cache; a batch needs a dozen or two."""
OPENVINO_PROPERTY = "CPU_RUNTIME_CACHE_CAPACITY"
"""Not a public one: a version without it says that it is not supported."""
_CACHES = (
    # oneDNN's, in OpenVINO too, by its name and by the one that it had before
    ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"),
    ("LRU_CACHE_CAPACITY",),  # PyTorch's
)


def keep_few_kernels() -> None:
    """Limit what this process keeps, and those that it starts; what the environment says holds.

    For processes that are ours: commands, actors, workers. Others may run models of their own,
    which need more. It is read when the first kernel is compiled: nothing changes in a process that
    has computed before.
    """
    for names in _CACHES:
        if not any(name in os.environ for name in names):
            os.environ[names[0]] = str(KEPT)
