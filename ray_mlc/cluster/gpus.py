"""Where GPUs are found: labels of Kubernetes nodes, and instance types of clouds."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

GpuType = Literal["T4", "L4", "A10G", "L40S", "A100", "H100", "any"]
"""Names of Ray's accelerator types."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    products: tuple[str, ...]
    """Label `nvidia.com/gpu.product`, which NVIDIA's feature discovery sets anywhere."""
    gke: tuple[str, ...] = ()
    """Label `cloud.google.com/gke-accelerator`."""
    aws_name: str | None = None
    """Label `karpenter.k8s.aws/instance-gpu-name`; on EKS Auto Mode, `eks.amazonaws.com/…`."""
    aws: dict[int, str] = field(default_factory=dict)
    """Instance type by GPUs."""
    gcp: dict[int, str] = field(default_factory=dict)
    """Machine type by GPUs."""


GPUS = {
    "T4": Gpu(
        ("Tesla-T4",),
        ("nvidia-tesla-t4",),
        "t4",
        {1: "g4dn.2xlarge", 4: "g4dn.12xlarge", 8: "g4dn.metal"},
    ),
    "L4": Gpu(
        ("NVIDIA-L4",),
        ("nvidia-l4",),
        "l4",
        {1: "g6.2xlarge", 4: "g6.12xlarge", 8: "g6.48xlarge"},
        {1: "g2-standard-8", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"},
    ),
    "A10G": Gpu(
        ("NVIDIA-A10G",), (), "a10g", {1: "g5.2xlarge", 4: "g5.12xlarge", 8: "g5.48xlarge"}
    ),
    "L40S": Gpu(
        ("NVIDIA-L40S",), (), "l40s", {1: "g6e.2xlarge", 4: "g6e.12xlarge", 8: "g6e.48xlarge"}
    ),
    "A100": Gpu(
        (
            "NVIDIA-A100-SXM4-40GB",
            "NVIDIA-A100-SXM4-80GB",
            "NVIDIA-A100-PCIE-40GB",
            "NVIDIA-A100-80GB-PCIe",
        ),
        ("nvidia-tesla-a100", "nvidia-a100-80gb"),
        "a100",
        {8: "p4d.24xlarge"},
        {1: "a2-highgpu-1g", 2: "a2-highgpu-2g", 4: "a2-highgpu-4g", 8: "a2-highgpu-8g"},
    ),
    "H100": Gpu(
        ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL"),
        ("nvidia-h100-80gb", "nvidia-h100-mega-80gb"),
        "h100",
        {8: "p5.48xlarge"},
        {1: "a3-highgpu-1g", 2: "a3-highgpu-2g", 4: "a3-highgpu-4g", 8: "a3-highgpu-8g"},
    ),
}
_CPUS_PER_GPU = {"a2-highgpu": 12, "a3-highgpu": 26}


def gcp_cpus(machine: str) -> int | None:
    """CPUs of a Google machine type by its name; None where that does not say."""
    if match := re.fullmatch(r"(a\d-highgpu)-(\d+)g", machine):
        per_gpu = _CPUS_PER_GPU.get(match[1])
        return per_gpu * int(match[2]) if per_gpu else None
    match = re.fullmatch(r"[a-z]\w*-[a-z]+-(\d{1,3})", machine)
    return int(match[1]) if match else None
