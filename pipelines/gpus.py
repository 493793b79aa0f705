"""What GPUs this process can use."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """One GPU. Memory in bytes, of the whole device and what is free of it; `capability` as CUDA counts it, such as 9.0."""

    name: str
    capability: str
    memory: int
    free: int


def cuda_build() -> str | None:
    """The CUDA version that this torch was built for; None for a build without."""
    return torch.version.cuda


def gpus() -> list[Gpu]:
    """The GPUs that torch sees, in its order; none where CUDA cannot be used."""
    if not torch.cuda.is_available():
        return []
    return [_gpu(number) for number in range(torch.cuda.device_count())]


def _gpu(number: int) -> Gpu:
    properties = torch.cuda.get_device_properties(number)
    free, whole = torch.cuda.mem_get_info(number)
    return Gpu(properties.name, f"{properties.major}.{properties.minor}", whole, free)
