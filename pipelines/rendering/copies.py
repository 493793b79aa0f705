"""Copies tensors from a GPU to the host without stopping either: pinned memory, an event, and a wait that comes later."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Copy:
    """Holds tensors on their way to the host, whose values may be read once `done`, or after `wait`.

    Attributes:
        tensors: Tensors on the host.
        event: Recorded behind the copying; None where there was nothing to copy.
    """

    tensors: tuple[torch.Tensor, ...]
    event: torch.cuda.Event | None = None

    @property
    def done(self) -> bool:
        return self.event is None or self.event.query()

    def wait(self) -> None:
        if self.event is not None:
            self.event.synchronize()


def to_host(*tensors: torch.Tensor) -> Copy:
    """Start copying tensors of one device to the host."""
    if not tensors[0].is_cuda:
        return Copy(tensors)
    pinned = tuple(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors)
    for mine, theirs in zip(pinned, tensors, strict=True):
        mine.copy_(theirs, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return Copy(pinned, event)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a host tensor on a device; to a GPU from pinned memory, so that the host does not wait for the GPU's earlier work."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
