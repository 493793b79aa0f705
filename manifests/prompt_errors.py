"""Defines the error that a prompt in a syntax raises where it cannot be read."""


class PromptError(ValueError):
    """Reports a prompt that cannot be read; the message is one line, and names the column where there is one.

    Args:
        said: What is wrong.
        column: The number of the sign in the text, counted from 1; None: the text as a whole is wrong.
        place: Where the text stands, where it is not the prompt itself.
    """

    def __init__(self, said: str, column: int | None = None, place: str = ""):
        where = f"{place}: " if place else ""
        super().__init__(f"{where}{said}" if column is None else f"{where}column {column}: {said}")
