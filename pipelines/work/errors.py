"""Defines the errors of a model as a whole; an error of one request is a `results.Failure`."""


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
