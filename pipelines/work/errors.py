"""Defines the errors of a model as a whole; an error of one request is a `results.Failure`."""

MEMORY = "out of memory"
MISFIT = f"{MEMORY} at batch"  # how a FatalError begins where the denoising batch does not fit, whatever is in it


class ModelError(RuntimeError):
    """Reports a model that cannot be loaded; the message is one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class FatalError(RuntimeError):
    """Reports a process that cannot go on (memory ran out, the GPU is in an undefined state) and has to be replaced."""
