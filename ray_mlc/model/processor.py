"""What is known of this machine's processor, where the system says it in a file."""

from __future__ import annotations

import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
_WIDE = ("avx512_vnni", "avx_vnni", "amx_int8")


def cpu_info() -> str:
    """What Linux says of the processor; empty elsewhere."""
    return CPU_INFO.read_text(encoding="utf-8") if CPU_INFO.exists() else ""


def adds_int8_wide() -> bool:
    """Whether products of int8 are added in 32 bits (VNNI, AMX): other x86 clip sums at 16.

    Where it is not known the answer is no, which is the careful one.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    info = cpu_info()
    return any(flag in info for flag in _WIDE)
