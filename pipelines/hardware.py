"""The kind of hardware that a process computes on: with the same kind, the same bits."""

import platform

import torch


def hardware_kind(threads: int) -> dict[str, str]:
    """What of this machine decides bits: GPU model and driver, or the CPU's instruction set and the number of threads."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        return {"gpu": name, "cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {"cpu": platform.machine(), "instructions": torch.backends.cpu.get_cpu_capability(), "threads": str(threads)}
