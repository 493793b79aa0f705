"""Defines manifests of pictures, whose metadata say what made them, and of prompt lists as other tools write them."""

from typing import Annotated, Literal

from pydantic import Field

from promptmill.configs.parameters import MAX_PATH, Closed

MOST_PATTERNS = 1000

Use = Literal["render", "vary", "init_image"]
ListForm = Literal["lines", "a1111", "kohya"]


_Path = Annotated[str, Field(min_length=1, max_length=MAX_PATH)]
Patterns = _Path | Annotated[tuple[_Path, ...], Field(min_length=1, max_length=MOST_PATTERNS)]


class Pictures(Closed):
    """Declares a manifest of pictures: each picture is a row, by the prompt and the parameters in the picture's metadata.

    Attributes:
        pictures: A folder, a glob, or several of these.
        use: `render` makes each picture again, with its seed; `vary` makes others of the same parameters; `init_image` begins with
            the picture itself.
    """

    pictures: Patterns
    use: Use = "render"

    @property
    def patterns(self) -> tuple[str, ...]:
        """Return the folders and globs."""
        return (self.pictures,) if isinstance(self.pictures, str) else self.pictures


class PromptLists(Closed):
    """Declares a manifest of prompt lists, of a prompt a line with the options of another tool.

    Attributes:
        lists: A path, a glob, or several of these.
        form: How lines are written. Where it is not given, each file's own lines tell, and the plan says how a file was read.
    """

    lists: Patterns
    form: ListForm | None = None

    @property
    def patterns(self) -> tuple[str, ...]:
        """Return the paths and globs."""
        return (self.lists,) if isinstance(self.lists, str) else self.lists
