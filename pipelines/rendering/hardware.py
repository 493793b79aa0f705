"""Names the kind of hardware that a process computes on: with the same kind, the same bits."""

import os
import platform
from pathlib import Path

import torch

from promptmill.pipelines.rendering.gpus import driver_version

CPUINFO = Path("/proc/cpuinfo")
# Fields that name a processor: its brand, and, since virtual machines hide the brand, its maker's numbers; ARM has numbers only.
CPU_KEYS = ("vendor_id", "model name", "cpu family", "model", "CPU implementer", "CPU part")

# Variables of the environment by which CUDA's libraries and torch choose other kernels.
CUDA_SETTINGS = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_CUDNN_SDPA_DEPRIORITIZED")
# Set by each process before it computes, and part of the kind, which may be asked for before: cuBLAS is reproducible only with a
# workspace of fixed size.
WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def hardware_kind(threads: int) -> dict[str, str]:
    """Return the properties of this machine that decide bits: GPU model and driver, or CPU, instruction set and threads.

    A CPU's model counts beside its instruction set, since oneDNN chooses its kernels by the model.
    """
    if torch.cuda.is_available():
        return {
            **{name.lower(): value for name, value in {**WORKSPACE, **os.environ}.items() if name in CUDA_SETTINGS},
            "gpu": torch.cuda.get_device_name(0),
            "driver": driver_version() or "unknown",
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
        }
    return {
        "cpu": platform.machine(),
        "processor": processor(CPUINFO),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(threads),
    }


def processor(cpuinfo: Path) -> str:
    """Return vendor and model of the first processor in this file of Linux; without the file, Python's name of the processor."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    found: dict[str, str] = {}
    for key, _, value in (line.partition(":") for line in lines):
        found.setdefault(key.strip(), value.strip())
    named = [found[key] if key in CPU_KEYS[:2] else f"{key} {found[key]}" for key in CPU_KEYS if found.get(key)]
    return ", ".join(named) or platform.processor() or platform.machine()
