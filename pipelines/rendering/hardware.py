"""The kind of hardware that a process computes on: with the same kind, the same bits."""

import platform
from pathlib import Path

import torch

from promptmill.pipelines.rendering.gpus import driver_version

CPUINFO = Path("/proc/cpuinfo")
# What names a processor: by brand, and, since virtual machines hide that, by its maker's numbers; ARM has numbers only.
CPU_KEYS = ("vendor_id", "model name", "cpu family", "model", "CPU implementer", "CPU part")


def hardware_kind(threads: int) -> dict[str, str]:
    """What of this machine decides bits: GPU model and driver, or the CPU, its instruction set and the number of threads.

    A CPU's model counts beside its instruction set, since oneDNN chooses its kernels by it.
    """
    if torch.cuda.is_available():
        return {
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
    """Vendor and model of the first processor that Linux lists in this file; what Python knows where there is none."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    found: dict[str, str] = {}
    for key, _, value in (line.partition(":") for line in lines):
        found.setdefault(key.strip(), value.strip())
    named = [found[key] if key in CPU_KEYS[:2] else f"{key} {found[key]}" for key in CPU_KEYS if found.get(key)]
    return ", ".join(named) or platform.processor() or platform.machine()
