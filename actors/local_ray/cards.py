"""Asks the nodes of a cluster how much memory their GPUs have, by NVIDIA's own library, so that no node has to load torch."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LIBRARY = "libnvidia-ml.so.1"
PATIENCE_S = 60.0  # for all nodes at once: a worker process starts first


class _Memory(ctypes.Structure):
    """Holds a GPU's memory as `nvmlDeviceGetMemoryInfo` says it, in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def memory_of_cards(library: str = LIBRARY) -> list[int]:
    """Return the bytes of memory of each NVIDIA GPU of this machine.

    Args:
        library: The name of NVIDIA's library.

    Returns:
        Nothing where the library is not there or fails, and where a GPU is cut into MIG devices, whose memory is less than its own.
    """
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return []
    number = ctypes.c_uint()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(number)):
        return []
    found = []
    for index in range(number.value):
        device, memory = ctypes.c_void_p(), _Memory()
        now, later = ctypes.c_uint(), ctypes.c_uint()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
            return []
        # The call fails on a GPU that cannot be cut, and sets nothing then.
        nvml.nvmlDeviceGetMigMode(device, ctypes.byref(now), ctypes.byref(later))
        if now.value or nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)):
            return []
        found.append(int(memory.total))
    return found


def smallest_card(nodes: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the bytes of memory of the smallest GPU of a cluster.

    Args:
        nodes: As `ray.nodes()` has them.

    Returns:
        None where no node has a GPU, or where one of those that have some does not say.
    """
    with_gpus = [node["NodeID"] for node in nodes if node["Alive"] and node["Resources"].get("GPU")]
    if not with_gpus:
        return None
    ask = ray.remote(num_cpus=0, max_retries=1)(memory_of_cards)
    asked = [ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in with_gpus]
    try:
        answers = ray.get(asked, timeout=PATIENCE_S)
    except exceptions.RayError:  # a node that has gone, or does not answer in time
        return None
    return min((min(cards) for cards in answers), default=None) if all(answers) else None
