from __future__ import annotations

import platform
from pathlib import Path

import pytest

from ray_mlc.model import processor


@pytest.mark.parametrize(
    ("machine", "flags", "wide"),
    [
        ("x86_64", "sse2 avx2 fma", False),
        ("x86_64", "avx2 avx512f avx512bw", False),
        ("x86_64", "avx2 avx_vnni", True),
        ("x86_64", "avx512f avx512_vnni", True),
        ("x86_64", "amx_bf16 amx_tile amx_int8", True),
        ("x86_64", None, False),  # not known
        ("AMD64", None, False),
        ("aarch64", "asimddp", True),
    ],
)
def test_int8_is_added_wide_where_the_processor_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    flags: str | None,
    wide: bool,
) -> None:
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"model name\t: X\nflags\t\t: {flags}\n")
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert processor.adds_int8_wide() == wide
    assert (processor.cpu_info() == "") == (flags is None)
