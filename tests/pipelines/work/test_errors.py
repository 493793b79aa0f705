"""What torch, cuDNN and CUDA say, as their sources have it: which of it ends a process, and which is memory's fault."""

import pytest
import torch

from promptmill.pipelines.work.errors import is_fatal, is_out_of_memory

MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("Unable to find an engine to execute this computation"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("No valid execution plans built."),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]
BROKEN = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA driver error: unspecified launch failure"),
    RuntimeError("Triton Error [CUDA]: misaligned address"),
    RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"),
    torch.AcceleratorError("an uncorrectable ECC error"),
]
ORDINARY = [
    RuntimeError("The size of tensor a (77) must match the size of tensor b (154)"),
    ValueError("the prompt 'a CUDA error, out of memory' is no list"),
    KeyError("unet"),
]


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_where_memory_ran_out_the_process_ends_and_the_batch_is_at_fault(error):
    assert is_out_of_memory(error) and is_fatal(error)


@pytest.mark.parametrize("error", BROKEN, ids=str)
def test_a_broken_gpu_ends_the_process_and_the_batch_is_not_at_fault(error):
    assert is_fatal(error) and not is_out_of_memory(error)


@pytest.mark.parametrize("error", ORDINARY, ids=str)
def test_what_one_request_causes_ends_nothing(error):
    assert not is_fatal(error)


def test_where_the_hosts_memory_does_not_suffice_for_a_tensor_the_process_ends_too():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    assert is_out_of_memory(raised.value) and is_fatal(raised.value)
