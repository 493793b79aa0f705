"""Lists the GPUs that this process can use."""

import ctypes
import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """Holds one GPU; memory and free memory in bytes, of the whole device; `capability` as CUDA counts it, such as 9.0."""

    name: str
    capability: str
    memory: int
    free: int


def cuda_build() -> str | None:
    """Return the CUDA version that this torch was built for; None for a build without CUDA."""
    return torch.version.cuda


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, by the library that comes with it; None where there is no driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    said = ctypes.create_string_buffer(80)
    if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(said, len(said)):
        return None
    return said.value.decode()


def gpus() -> list[Gpu]:
    """Return the GPUs that torch sees, in its order; none where CUDA cannot be used."""
    if not torch.cuda.is_available():
        return []
    return [_gpu(number) for number in range(torch.cuda.device_count())]


def alike() -> list[str]:
    """Return the GPUs of the first one's kind, each as it stands in CUDA_VISIBLE_DEVICES; none where CUDA cannot be used.

    No GPU is set up for this process.
    """
    if not torch.cuda.is_available():
        return []
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    cards = [one.strip() for one in seen] if any(seen) else [str(number) for number in range(len(names))]
    return [card for card, name in zip(cards, names, strict=False) if name == names[0]]


def keep_to_share(share: float) -> None:
    """Limit the memory that this process takes of its first GPU to a share, since other processes have the rest.

    Args:
        share: 0 … 1; Ray counts shares of a GPU, and does not hold a process to its own. Nothing is limited where the process has
            whole GPUs, or none.
    """
    if share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


def _gpu(number: int) -> Gpu:
    properties = torch.cuda.get_device_properties(number)
    free, whole = torch.cuda.mem_get_info(number)
    return Gpu(properties.name, f"{properties.major}.{properties.minor}", whole, free)
