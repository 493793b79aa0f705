"""Names what goes wrong with a model as a whole; what goes wrong with one request is a `results.Failure`."""


class ModelError(RuntimeError):
    """A model that cannot be loaded; the message is one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class FatalError(RuntimeError):
    """Says that this process cannot go on (memory ran out, the GPU is in an undefined state), and has to be replaced."""


class MisfitError(FatalError):
    """Says that the denoising batch does not fit into memory, whatever is in it."""

    @classmethod
    def of(cls, batch: int) -> "MisfitError":
        """Return the error of a batch of this many candidates."""
        return cls(f"out of memory at batch {batch}; set model.batch lower")
