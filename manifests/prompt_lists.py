"""Reads prompt lists as other tools write them: a prompt a line, with A1111's options, with kohya's, or without any."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from promptmill.configs.listed_manifests import ListForm, PromptLists
from promptmill.manifests.finding import find
from promptmill.manifests.list_forms import FORMS, form_of_line
from promptmill.manifests.option_texts import OptionError
from promptmill.manifests.rows import Row

LOOKED_AT = 10_000  # lines of a list whose form is not given, the first of which that shows a form decides


class ListFile(str):
    """Names a prompt list, where the name of a file is meant.

    Attributes:
        form: The form of its lines, by the config; None: they tell.
    """

    __slots__ = ("form",)
    form: ListForm | None

    def __new__(cls, file: str, form: ListForm | None) -> "ListFile":
        self = super().__new__(cls, file)
        self.form = form
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return ListFile, (str(self), self.form)


def find_lists(manifest: PromptLists) -> list[ListFile]:
    """Return the files of a manifest of prompt lists, in the order given; those of a glob sorted by name.

    Raises:
        ManifestError: Nothing matches.
    """
    return [ListFile(file, manifest.form) for pattern in manifest.patterns for file in find(pattern)]


def form_of(lines: Iterable[str]) -> ListForm:
    """Return the form of a list by its first lines: that of the first line that shows one."""
    return next((form for line in islice(lines, LOOKED_AT) if (form := form_of_line(line))), "lines")


def rows_of_list(file: ListFile, lines: Callable[[], Iterator[str]], note: Callable[[str], None]) -> Iterator[Row]:
    """Yield a row for each line of a list that is neither empty nor a comment.

    Args:
        file: The list.
        lines: Opens the file and yields its lines with their ends.
        note: Called with one line where the lines tell the form.
    """
    name = file.form or form_of(lines())
    form, place, number = FORMS[name], str(file), 0
    if file.form is None:
        note(f"{file}: is read as {form.writer}, by its lines; `form: {name}` says so in the config")
    for at, ended in enumerate(lines(), 1):
        line = ended.rstrip("\r\n")
        if not line.strip() or (form.comments and line.startswith("#")):
            continue
        number += 1
        if "\0" in line:
            yield Row(place, number, {}, broken="holds a NUL character; is this UTF-8 text?")
            continue
        try:
            found = form.read(line)
        except OptionError as error:
            yield Row(place, number, {}, broken=f"line {at}, column {error.column}: {error}")
        else:
            yield Row(place, number, found.values, notes=found.notes)
