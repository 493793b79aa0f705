"""What goes wrong with a model as a whole; what goes wrong with one request is a `results.Failure`."""

MEMORY = "out of memory"
MISFIT = f"{MEMORY} at batch"  # how a FatalError begins where the denoising batch does not fit, whatever is in it


class ModelError(RuntimeError):
    """Reports a model that cannot be loaded; the message is one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class FatalError(RuntimeError):
    """This process cannot go on (memory ran out, the GPU is in an undefined state): it has to be replaced."""
