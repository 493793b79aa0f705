"""Goes through a manifest once, as a stream, and says of every row what request it makes or what is wrong with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from manifests.duplicates import Ids, doubled
from manifests.images import ImageError, Roots, locate, read_image
from manifests.requests import Request, RowError, Rules, make_request
from manifests.sources import Row, read_rows


@dataclass(frozen=True)
class Checked:
    """One row, counted from 1 through all files, and its request or its problems (one line each)."""

    number: int
    row: Row
    request: Request | None
    problems: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The problems as a person reads them, with file and row."""
        return [f"{self.row.where}: {problem}" for problem in self.problems]


def check_rows(files: Sequence[str], rules: Rules, roots: Roots | None = None) -> Iterator[Checked]:
    """Check each row by itself; where `roots` is given, its images too. Ids that occur twice are `find_doubled`'s to find."""
    for number, row in enumerate(read_rows(files), 1):
        try:
            request = make_request(row, number, rules)
        except RowError as error:
            yield Checked(number, row, None, error.problems)
            continue
        problems = tuple(check_images(request, roots)) if roots else ()
        yield Checked(number, row, None if problems else request, problems)


def check_images(request: Request, roots: Roots) -> Iterator[str]:
    """What is wrong with the images that a request names."""
    read: dict[str, Image.Image] = {}
    named = [("init_image", request.init_image), ("mask_image", request.mask_image)]
    named += [(f"controls.{i}.image", control.image) for i, control in enumerate(request.controls)]
    for column, path in named:
        if path is not None:
            try:
                read[column] = read_image(locate(path, roots), roots)
            except ImageError as error:
                yield f"{column}: {error}"
    source, mask = read.get("init_image"), read.get("mask_image")
    if source and mask and source.size != mask.size:
        yield f"mask_image: {mask.width} x {mask.height} pixels, but the init_image has {source.width} x {source.height}"


def find_doubled(files: Sequence[str], rules: Rules, ids: Ids) -> Iterator[Checked]:
    """Go through the manifest again for the rows whose id an earlier row has; does nothing where no hash of `ids` occurs twice."""
    in_doubt = ids.in_doubt()
    if not in_doubt:
        return
    rows = {}

    def named() -> Iterator[tuple[str, str]]:
        for checked in check_rows(files, rules):
            if checked.request:
                rows["now"] = checked
                yield checked.request.id, checked.row.where

    for id, _, first in doubled(named(), in_doubt):
        again = rows["now"]
        yield Checked(again.number, again.row, None, (f"id: {id!r} is also that of {first}; ids are unique",))
