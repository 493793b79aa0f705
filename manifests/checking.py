"""Goes through a manifest once, as a stream, and says of every row what request it makes or what is wrong with it."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from configs.errors import shown
from manifests.duplicates import Ids, doubled
from manifests.images import ImageError, Roots, load
from manifests.requests import Request, RowError, Rules, make_request
from manifests.rows import Row
from manifests.sources import read_rows

REMEMBERED_IMAGES = 16_384  # paths; rows that share an image, a control map for one, have it decoded once


@dataclass(frozen=True)
class Checked:
    """One row, counted from 1 through all files, and its request or its problems (one line each).

    Attributes:
        images: SHA-256, in hex, of the files of its images by column (`init_image`, `mask_image`, `controls.0.image`, …);
            empty where they were not looked at.
    """

    number: int
    row: Row
    request: Request | None
    problems: tuple[str, ...] = ()
    images: Mapping[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The problems as a person reads them, with file and row."""
        return [f"{self.row.where}: {problem}" for problem in self.problems]


def check_rows(files: Sequence[str], rules: Rules, roots: Roots | None = None, max_images: int | None = None) -> Iterator[Checked]:
    """Check each row by itself. Ids that occur twice are `find_doubled`'s to find.

    Args:
        files: Of the manifest.
        rules: What the config says of rows.
        roots: Where images may lie; without, images are not looked at.
        max_images: Once so many have been decoded, those of later rows are not looked at; None: all are.

    Raises:
        ManifestError: A file cannot be read.
    """
    look_at = functools.lru_cache(REMEMBERED_IMAGES)(functools.partial(look, roots=roots)) if roots else None
    for number, row in enumerate(read_rows(files), 1):
        try:
            request = make_request(row, number, rules)
        except RowError as error:
            yield Checked(number, row, None, error.problems)
            continue
        images: Mapping[str, str] = {}
        if look_at and (max_images is None or look_at.cache_info().misses < max_images):
            images, problems = check_images(request, look_at)
            if problems:
                yield Checked(number, row, None, tuple(problems))
                continue
        yield Checked(number, row, request, images=images)


@dataclass(frozen=True)
class Look:
    """What an image turned out to be: its file's SHA-256 in hex and its (width, height), or what is wrong with it."""

    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    problem: str | None = None


def look(path: str, roots: Roots) -> Look:
    """Read an image as far as a check needs it."""
    try:
        picture = load(path, roots)
    except ImageError as error:
        return Look(problem=str(error))
    return Look(picture.sha256, picture.image.size)


def check_images(request: Request, look_at: Callable[[str], Look]) -> tuple[dict[str, str], list[str]]:
    """The SHA-256 of a request's images by column, and what is wrong with them.

    Args:
        request: Whose images.
        look_at: What is known of the image at a path.
    """
    named = [("init_image", request.init_image), ("mask_image", request.mask_image)]
    named += [(f"controls.{i}.image", control.image) for i, control in enumerate(request.controls)]
    looks = {column: look_at(path) for column, path in named if path is not None}
    problems = [f"{column}: {found.problem}" for column, found in looks.items() if found.problem]
    if not problems and request.init_image is not None and request.mask_image is not None:
        source, mask = looks["init_image"].size, looks["mask_image"].size
        if source != mask:
            problems = [f"mask_image: {mask[0]} x {mask[1]} pixels, but the init_image has {source[0]} x {source[1]}"]
    return {column: found.sha256 for column, found in looks.items()}, problems


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
        yield Checked(again.number, again.row, None, (f"id: {shown(id)!r} is also that of {first}; ids are unique",))
