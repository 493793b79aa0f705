"""Checks a manifest row by row, as a stream: each row makes a request or a list of problems."""

import bisect
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from PIL import Image

from promptmill.configs.columns import SYNTAX
from promptmill.configs.errors import quoted, shown
from promptmill.configs.mask_edits import SHARP, MaskEdit, parse_mask_edit, parse_outpaint
from promptmill.configs.parameters import MAX_PATH
from promptmill.manifests.embeddings import load_embedding
from promptmill.manifests.images import (
    ImageError,
    NotThereError,
    Roots,
    UnreachableError,
    elongation,
    load,
    mismatch,
    narrowness,
)
from promptmill.manifests.masks import Effect, effect_of
from promptmill.manifests.prompt_syntax import notes_on, notes_on_signs
from promptmill.manifests.prompt_templates import expanded
from promptmill.manifests.repeated_ids import Ids, doubled
from promptmill.manifests.requests import OWN_IMAGES, Request, Shapes, make_request
from promptmill.manifests.row_values import FLAT_CONTROL
from promptmill.manifests.rows import Row, RowError
from promptmill.manifests.rules import Rules, ignored
from promptmill.manifests.sources import read_rows
from promptmill.manifests.sweeps import swept

REMEMBERED_IMAGES = 16_384  # paths; rows that share an image, a control map for one, have it decoded once
MASKS = ("mask_image", ".mask")  # what the columns of masks end with: the init image's, and those of references
TOO_LONG = "prompt: is longer than a text encoder of the model reads, which leaves out its end"
IN_CHUNKS = "; prompts.long encodes all of it"  # where the model reads chunks
IMAGE_COLUMNS = frozenset({*OWN_IMAGES, "controls", "references", *FLAT_CONTROL})


@dataclass(frozen=True)
class Checked:
    """Holds one row, counted from 1 through all files, with its request or its problems (one line each).

    A row has both where its images could not be reached and nothing else is wrong: another try may succeed.

    Attributes:
        file: Index of the row's file in the manifest, counted from 0.
        images: SHA-256, in hex, of the row's image files by column (`init_image`, `mask_image`, `controls.0.image`, …); empty where
            images were not looked at.
        notes: Remarks for a person though nothing is wrong, without the row's place.
        advice: By problem, more words for a terminal, where places of this machine may be named.
        lacks_image: Whether an image that the row names is in none of the folders where it may lie.
    """

    number: int
    row: Row
    request: Request | None
    problems: tuple[str, ...] = ()
    images: Mapping[str, str] = field(default_factory=dict)
    file: int = 0
    notes: tuple[str, ...] = ()
    advice: Mapping[str, str] = field(default_factory=dict)
    lacks_image: bool = False

    def lines(self) -> list[str]:
        """Return the problems as a person reads them, with file and row."""
        return [f"{self.row.where}: {problem}{self.advice.get(problem, '')}" for problem in self.problems]


def check_rows(
    files: Sequence[str],
    rules: Rules,
    roots: Roots | None = None,
    max_images: int | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Iterator[Checked]:
    """Check each row by itself. Ids that occur twice are found by `find_doubled`.

    Args:
        files, rules, roots, max_images: As for `RowChecks`.
        note: Called with one line for each file that was left out since it has no rows.

    Raises:
        ManifestError: A file cannot be read.
    """
    return itertools.starmap(RowChecks(files, rules, roots, max_images).check, enumerate(rows_of(files, rules, note), 1))


def rows_of(files: Sequence[str], rules: Rules, note: Callable[[str], None] = lambda line: None) -> Iterator[Row]:
    """Yield the rows of a manifest; errors as `read_rows`.

    Prompts are rewritten first, where the config says so. In the place of rows that are swept over columns come those of their
    cells, in the place of templates what they expand to.
    """
    return expanded(swept(rules.rewritten(read_rows(files, note)), rules.defaults.sweep, rules.seed), rules)


class RowChecks:
    """Checks rows of a manifest one by one; remembered images and requests make later rows faster and change no result.

    Args:
        files: The manifest's files.
        rules: The config's rules for rows.
        roots: Where images may lie, as `roots_of` these files has it; without roots, images are not looked at.
        max_images: Images decoded at most; images of later rows are not looked at. None: all are.
    """

    def __init__(self, files: Sequence[str], rules: Rules, roots: Roots | None = None, max_images: int | None = None):
        self._rules, self._roots, self._most = rules, roots, max_images
        self._look_at = Looks(roots, REMEMBERED_IMAGES) if roots else None
        self._places = {file: place for place, file in enumerate(files)}
        # What files of one folder name is one image.
        self._firsts = {folder: i for i, folder in reversed(list(enumerate(roots.folders)))} if roots else {}
        self._shapes: Shapes = {}

    def looks(self, row: Row) -> bool:
        """Return whether a row's images have to be looked at; such rows have to be checked in their order."""
        return self._looking() is not None and not IMAGE_COLUMNS.isdisjoint(row.values)

    def _looking(self) -> "Looks | None":
        if self._look_at and (self._most is None or self._look_at.decoded < self._most):
            return self._look_at
        return None

    def check(self, number: int, row: Row) -> Checked:
        """Check one row, counted from 1 through all files."""
        file = self._places[row.file]
        try:
            request = make_request(row, number, self._rules, self._shapes)
        except RowError as error:
            return Checked(number, row, None, error.problems, file=file)
        notes = (*row.notes, *self._notes_on_text(request, row), *ignored(request, row.values, self._rules))
        without = request.mode == "txt2img" and not request.references
        if without or self._roots is None or (look_at := self._looking()) is None:
            return Checked(number, row, request, file=file, notes=notes)
        # A file that holds images may be a link, and named by its own rows alone.
        first = file if row.file.lower().endswith((".tar", ".parquet")) else self._firsts[self._roots.folders[file]]
        found = check_images(request, functools.partial(look_at, file=first), self._rules.faces, self._rules.pictures > 1)
        changed = [column for column, sha256 in found.sha256.items() if row.images.get(column, sha256) != sha256]
        notes = (*notes, *(f"{column}: is another file than the picture was made with" for column in changed))
        made = None if found.problems and found.final else request
        lacks = NotThereError in found.kinds.values()
        return Checked(number, row, made, tuple(found.problems), found.sha256, file, (*notes, *found.notes), found.advice, lacks)

    def _notes_on_text(self, request: Request, row: Row) -> tuple[str, ...]:
        notes: tuple[str, ...] = ()
        texts = (("prompt", request.prompt, request.words), ("negative_prompt", request.negative_prompt, request.negative_words))
        for column, text, words in texts:
            if request.syntax is not None:
                notes += notes_on_signs(text, words, column)
            elif row.values.get(SYNTAX) is None:  # a row that says itself that its prompts are plain means what they say
                notes += notes_on(text, column)
        if self._rules.lost is not None and request.lost(self._rules.lost):
            notes += (f"{TOO_LONG}{IN_CHUNKS if self._rules.weighting.parts else ''}",)
        return notes


@dataclass(frozen=True)
class Look:
    """Holds the result of reading one image: its file's SHA-256 in hex and its (width, height) in pixels, or its problem.

    Attributes:
        problem: What is wrong with the image, in one line, or None.
        final: Whether the problem stays; False where another try may succeed.
    """

    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    problem: str | None = None
    final: bool = True
    advice: str = ""
    kind: type[ImageError] = ImageError
    transparent: bool = False
    effect: Effect = field(default_factory=Effect)


@dataclass(frozen=True)
class AsMask:
    """Holds how a mask is looked at: the size in pixels that is rendered, how the mask is changed, perhaps the init path."""

    width: int
    height: int
    edit: MaskEdit = SHARP
    init: str | None = None


def look(path: str, file: int, roots: Roots, known: bool = False, mask: AsMask | None = None, face: bool = False) -> Look:
    """Read an image, or a face's embedding, as far as a check needs it; path, file, roots and known are those of `load`."""
    try:
        if face:
            embedding = load_embedding(path, roots, file, known)
            return Look(embedding.sha256, (len(embedding.values), 1))
        picture = load(path, roots, file, known)
        if mask is None:
            return Look(picture.sha256, picture.image.size, transparent=_is_transparent(picture.image))
        init = load(mask.init, roots, file, known).image if mask.init is not None else None
    except ImageError as error:
        return Look(problem=str(error), final=not isinstance(error, UnreachableError), advice=error.advice, kind=type(error))
    try:
        effect = effect_of(picture.image, mask.width, mask.height, init, mask.edit)
    except Exception as error:  # Pillow cannot bring every image to levels
        return Look(problem=f"{shown(path)}: cannot be read as a mask: {shown(' '.join(str(error).split()), 300)}")
    return Look(picture.sha256, picture.image.size, effect=effect)


class Looks:
    """Looks at images as `look` does, and remembers what it saw; of long drawings in rows, which would fill the memory, nothing.

    Args:
        roots: Where images may lie.
        most: How many looks are remembered.
    """

    def __init__(self, roots: Roots, most: int):
        self._anew = functools.partial(look, roots=roots)
        self._remembering = functools.lru_cache(most)(self._anew)
        self._long = 0

    @property
    def decoded(self) -> int:
        """Return how many images were read so far."""
        return self._long + self._remembering.cache_info().misses

    def __call__(self, path: str, file: int, known: bool = False, mask: AsMask | None = None, face: bool = False) -> Look:
        """Return the look at an image; the arguments are those of `look`."""
        if max(len(path), len(mask.init or "") if mask else 0) <= MAX_PATH:
            return self._remembering(path, file, known=known, mask=mask, face=face)
        self._long += 1
        return self._anew(path, file, known=known, mask=mask, face=face)


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data or image.mode.startswith(("I", "F")):
        return False
    return int(np.asarray(image.convert("RGBA").getchannel("A")).min()) < 128


@dataclass(frozen=True)
class Found:
    """Holds the results of reading a request's images.

    Attributes:
        sha256: SHA-256 of the files of the usable images, in hex, by column.
        problems: Problems of the images, a line each.
        final: Whether any problem stays however often the image is read.
        notes, advice: As `Checked` has them.
        kinds: The type of error by problem.
    """

    sha256: dict[str, str]
    problems: list[str]
    final: bool
    notes: tuple[str, ...] = ()
    advice: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, type[ImageError]] = field(default_factory=dict)


def check_images(
    request: Request,
    look_at: Callable[..., Look],
    faces: Mapping[str, int | None] = MappingProxyType({}),
    pictures: bool = False,
) -> Found:
    """Check the images of a request.

    Args:
        request: The request whose images are checked.
        look_at: Returns the `Look` at the image of a path; with `mask` given, the `Look` at that image as a mask.
        faces: By type of references, of how many values their embeddings have to be, where that is known.
        pictures: Whether references are further pictures, and no adapter's.
    """
    looks: dict[str, Look] = {}
    edit = parse_mask_edit(request.mask_edit)
    for column, path in request.images():
        if not column.endswith(MASKS):
            looks[column] = look_at(path, face=True) if column.endswith(".embedding") else look_at(path)
            continue
        as_mask = AsMask(request.width, request.height, edit if column == "mask_image" else SHARP)
        mask = look_at(path, mask=as_mask)
        if column == "mask_image" and mask.effect.unsure and "init_image" in looks and not looks["init_image"].problem:
            mask = look_at(path, mask=replace(as_mask, init=request.init_image))
        looks[column] = mask
    wrong = {f"{column}: {found.problem}": found.advice for column, found in looks.items() if found.problem}
    kinds = {f"{column}: {found.problem}": found.kind for column, found in looks.items() if found.problem}
    final = any(found.problem and found.final for found in looks.values())
    if not wrong and "mask_image" in looks and "init_image" in looks:
        unlike = mismatch(looks["init_image"].size, looks["mask_image"].size)
        nothing = looks["mask_image"].effect.problem
        wrong = {unlike: ""} if unlike else {f"mask_image: {shown(request.mask_image or '')}: {nothing}": ""} if nothing else {}
        final = bool(wrong)
    if not wrong:
        idle = {column: found.effect.selects for column, found in looks.items() if column.startswith("references.")}
        for number, one in enumerate(request.references):
            if (picture := looks.get(f"references.{number}.image")) is not None:
                idle[f"references.{number}.image"] = (elongation if pictures else narrowness)(picture.size)
            embedding, width = looks.get(f"references.{number}.embedding"), faces.get(one.type)
            if embedding is not None and width not in (None, embedding.size[0]):
                idle[f"references.{number}.embedding"] = f"{embedding.size[0]} values, and {quoted(one.type)} reads {width}"
        paths = dict(request.images())
        wrong = {f"{column}: {shown(paths[column])}: {nothing}": "" for column, nothing in idle.items() if nothing}
        final = bool(wrong)
    hashes = {column: found.sha256 for column, found in looks.items() if not found.problem}
    return Found(hashes, [*wrong], final, _notes(request, looks), {problem: said for problem, said in wrong.items() if said}, kinds)


def _notes(request: Request, looks: Mapping[str, Look]) -> tuple[str, ...]:
    notes = []
    if request.outpaint and "init_image" in looks and not looks["init_image"].problem:
        (wide, high), size = parse_outpaint(request.outpaint).within(request.width, request.height), looks["init_image"].size
        if size != (wide, high):
            said = f"is scaled and cropped to the {wide} x {high} that width and height leave for it"
            notes.append(f"outpaint: the init_image of {size[0]} x {size[1]} pixels {said}")
    if "mask_image" in looks and looks["mask_image"].effect.everything:
        notes.append("mask_image: repaints everything, as img2img does without a mask")
    if "init_image" in looks and "mask_image" not in looks and looks["init_image"].transparent:
        notes.append("init_image: has a hole, which is laid on white; named as mask_image too, the image has its hole repainted")
    return tuple(notes)


def find_doubled(files: Sequence[str], rules: Rules, ids: Ids, bad: Sequence[int] = ()) -> Iterator[Checked]:
    """Yield the rows whose id an earlier row has, by a second pass over the manifest.

    Nothing is read where no hash of `ids` occurs twice.

    Args:
        files, rules: As for `check_rows`.
        ids: The ids of the rows that are good by themselves.
        bad: The numbers of the other rows, ascending: such rows neither take an id nor are found.
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
