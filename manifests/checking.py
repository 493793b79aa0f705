"""Goes through a manifest once, as a stream, and says of every row what request it makes or what is wrong with it."""

import bisect
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from configs.errors import quoted
from manifests.duplicates import Ids, doubled
from manifests.images import ImageError, Roots, UnreachableError, load, mismatch
from manifests.requests import Request, RowError, Rules, make_request
from manifests.rows import Row
from manifests.sources import read_rows

REMEMBERED_IMAGES = 16_384  # paths; rows that share an image, a control map for one, have it decoded once


@dataclass(frozen=True)
class Checked:
    """One row, counted from 1 through all files, and its request or its problems (one line each).

    Both where images could not be reached and nothing else is wrong: another try may succeed.

    Attributes:
        file: Which of the manifest's files it is in, counted from 0.
        images: SHA-256, in hex, of the files of its images by column (`init_image`, `mask_image`, `controls.0.image`, …);
            empty where they were not looked at.
    """

    number: int
    row: Row
    request: Request | None
    problems: tuple[str, ...] = ()
    images: Mapping[str, str] = field(default_factory=dict)
    file: int = 0

    def lines(self) -> list[str]:
        """The problems as a person reads them, with file and row."""
        return [f"{self.row.where}: {problem}" for problem in self.problems]


def check_rows(files: Sequence[str], rules: Rules, roots: Roots | None = None, max_images: int | None = None) -> Iterator[Checked]:
    """Check each row by itself. Ids that occur twice are `find_doubled`'s to find.

    Args:
        files: Of the manifest.
        rules: What the config says of rows.
        roots: Where images may lie, as `roots_of` these files has it; without, images are not looked at.
        max_images: Once so many have been decoded, those of later rows are not looked at; None: all are.

    Raises:
        ManifestError: A file cannot be read.
    """
    look_at = functools.lru_cache(REMEMBERED_IMAGES)(functools.partial(look, roots=roots)) if roots else None
    places = {file: place for place, file in enumerate(files)}
    # What files of one folder name is one image.
    firsts = {folder: i for i, folder in reversed(list(enumerate(roots.folders)))} if roots else {}
    for number, row in enumerate(read_rows(files), 1):
        file = places[row.file]
        try:
            request = make_request(row, number, rules)
        except RowError as error:
            yield Checked(number, row, None, error.problems, file=file)
            continue
        images: Mapping[str, str] = {}
        if roots and look_at and (max_images is None or look_at.cache_info().misses < max_images):
            first = firsts[roots.folders[file]]
            images, problems, final = check_images(request, functools.partial(look_at, file=first))
            if problems:
                yield Checked(number, row, None if final else request, tuple(problems), images, file)
                continue
        yield Checked(number, row, request, images=images, file=file)


@dataclass(frozen=True)
class Look:
    """What an image turned out to be: its file's SHA-256 in hex and its (width, height), or what is wrong with it, perhaps
    only for now."""

    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    problem: str | None = None
    final: bool = True


def look(path: str, file: int, roots: Roots) -> Look:
    """Read an image as far as a check needs it; arguments as for `load`."""
    try:
        picture = load(path, roots, file)
    except ImageError as error:
        return Look(problem=str(error), final=not isinstance(error, UnreachableError))
    return Look(picture.sha256, picture.image.size)


def check_images(request: Request, look_at: Callable[[str], Look]) -> tuple[dict[str, str], list[str], bool]:
    """The SHA-256 of a request's images by column, what is wrong with them, and whether any of that is final.

    Args:
        request: Whose images.
        look_at: What is known of the image at a path.
    """
    named = [("init_image", request.init_image), ("mask_image", request.mask_image)]
    named += [(f"controls.{i}.image", control.image) for i, control in enumerate(request.controls)]
    looks = {column: look_at(path) for column, path in named if path is not None}
    problems = [f"{column}: {found.problem}" for column, found in looks.items() if found.problem]
    final = any(found.problem and found.final for found in looks.values())
    if not problems and "init_image" in looks and "mask_image" in looks:
        wrong = mismatch(looks["init_image"].size, looks["mask_image"].size)
        problems, final = ([wrong], True) if wrong else ([], False)
    return {column: found.sha256 for column, found in looks.items() if not found.problem}, problems, final


def find_doubled(files: Sequence[str], rules: Rules, ids: Ids, bad: Sequence[int] = ()) -> Iterator[Checked]:
    """Go through the manifest again for the rows whose id an earlier row has; does nothing where no hash of `ids` occurs twice.

    Args:
        files, rules: As for `check_rows`.
        ids: Those of the rows that are good by themselves.
        bad: The numbers of the other rows, ascending: neither is their id taken, nor are they found.
    """
    in_doubt = ids.in_doubt()
    if not in_doubt:
        return
    rows = {}

    def named() -> Iterator[tuple[str, str]]:
        for checked in check_rows(files, rules):
            if checked.request and not _holds(bad, checked.number):
                rows["now"] = checked
                yield checked.request.id, checked.row.name

    for id, _, first in doubled(named(), in_doubt):
        again = rows["now"]
        said = f"id: {quoted(id)} is also that of {first}; ids are unique"
        yield Checked(again.number, again.row, None, (said,), file=again.file)


def _holds(ascending: Sequence[int], number: int) -> bool:
    at = bisect.bisect_left(ascending, number)
    return at < len(ascending) and ascending[at] == number
