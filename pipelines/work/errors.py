"""Defines the errors of a model as a whole, and tells those of the hardware; an error of one request is a `results.Failure`."""


class ModelError(RuntimeError):
    """Reports a model that cannot be loaded; the message is one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class FatalError(RuntimeError):
    """Reports a process that cannot go on (memory ran out, the GPU is in an undefined state) and has to be replaced."""


class MisfitError(FatalError):
    """Reports a denoising batch that does not fit into memory, whatever is in it."""

    @classmethod
    def of(cls, batch: int) -> "MisfitError":
        """Return the error of a batch of this many candidates."""
        return cls(f"out of memory at batch {batch}; set model.batch lower")


# What torch, cuDNN and CUDA's driver say, in small letters, where memory ran out: a convolution finds no engine that has room.
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",  # torch's own allocator on a CPU
    "alloc_failed",
    "unable to find an engine",
    "no valid execution plans",
)
# What they say where the GPU's context is in an undefined state, so that every later call on it fails too.
BROKEN = ("cuda error", "cudnn error", "cuda driver error", "cublas_status", "triton error [cuda]", "hip error")
OF_ACCELERATORS = "AcceleratorError"  # a class of torch


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the GPU or on the host."""
    return isinstance(error, MemoryError) or _says(error, OUT_OF_MEMORY)


def is_fatal(error: BaseException) -> bool:
    """Return whether the process cannot go on: memory ran out, or the GPU is in an undefined state."""
    return is_out_of_memory(error) or _says(error, BROKEN) or any(kind.__name__ == OF_ACCELERATORS for kind in type(error).__mro__)


def _says(error: BaseException, any_of: tuple[str, ...]) -> bool:
    # Torch raises RuntimeError; another error may quote a prompt that says the same.
    said = str(error).lower() if isinstance(error, RuntimeError) else ""
    return any(one in said for one in any_of)
