"""Defines the problem that is reported of a file that is not as it should be."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Names one thing that is wrong; as a string it is the line for people.

    Attributes:
        file: The path of the file that has it, from the output.
        text: What is wrong with the file.
        shard: The shard that has to be made again because of it; None where the file only has to go, or to be written anew from the
            records, or where no shard would mend it.
        surplus: Whether the file only has to go.
    """

    file: str
    text: str
    shard: int | None = None
    surplus: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"
