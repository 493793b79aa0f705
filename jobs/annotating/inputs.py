"""Looks at what a dataset of maps is made from: the manifest's rows, which maps are asked for, and the models that make them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, cast

from promptmill.configs.model import Model
from promptmill.configs.parameters import MAX_SIDE, Defaults
from promptmill.configs.preprocessors import ANNOTATORS, MASKED, annotator_of, parse_preprocess, preprocess_name
from promptmill.configs.schema import Config, Runtime
from promptmill.configs.weights import AnnotatorWeights
from promptmill.jobs.planning.plan import PlanError, fingerprint_of
from promptmill.jobs.planning.sources import hash_of
from promptmill.manifests.checking import RowChecks
from promptmill.manifests.images import Roots, roots_of
from promptmill.manifests.repeated_ids import Ids, doubled
from promptmill.manifests.requests import Request
from promptmill.manifests.rules import Rules
from promptmill.manifests.sources import ManifestError, find_files, read_rows
from promptmill.pipelines.models.annotators import check_annotators
from promptmill.pipelines.models.compatibility import config_of
from promptmill.pipelines.models.identity import LIBRARIES, own_version, source_identity
from promptmill.pipelines.models.licences import licences_of
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.units import Placed

TAKEN = ("id", "prompt", "init_image")  # the columns of a row that count; an `image` stands for an init_image that is not given
MOST_PROBLEMS = 50  # lines


@dataclass(frozen=True)
class Wanted:
    """Names the maps of a dataset.

    Attributes:
        preprocess: How each map is made, by the endings of its files: `depth.png`.
        size: Width and height of pictures and maps in pixels; None: each picture has its own.
        shard, part: Pictures in a shard, and in what is made durable at a time.
    """

    preprocess: Mapping[str, str]
    size: tuple[int, int] | None = None
    shard: int = 256
    part: int = 16


@dataclass(frozen=True)
class Inputs:
    """Holds all that decides the bytes of a dataset of maps, and where its pictures lie.

    Attributes:
        values: What the fingerprint is over.
        annotators: The models that are needed, by name, and `threads` that they compute with.
        models: By the role of a model in words, its source with its revision, and its licence.
        rows: Number of rows.
    """

    files: tuple[str, ...]
    wanted: Wanted
    roots: Roots
    annotators: Mapping[str, AnnotatorWeights]
    threads: int
    values: Mapping[str, Any]
    models: Mapping[str, tuple[str, str]]
    rows: int

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.values)

    def shards(self) -> Iterator[list[Placed]]:
        """Yield the rows of each shard, in their order, read from the manifest again."""
        rows = _requests(self.files)
        while some := list(itertools.islice(rows, self.wanted.shard)):
            yield [Placed(row, request, file=file) for row, (request, file, _) in enumerate(some) if isinstance(request, Request)]


def parse_maps(text: str) -> dict[str, str]:
    """Read a list of preprocessors, as `depth,canny(low=50)`; return each by the ending of its files.

    Raises:
        PlanError: One line on a preprocessor that is not there, occurs twice, or is none.
    """
    found: dict[str, str] = {}
    # A comma between brackets stands between parameters.
    for one in _split(text):
        try:
            name, said = parse_preprocess(one)[0], preprocess_name(one)
        except ValueError as error:
            raise PlanError([f"--as: {error}"]) from None
        if name == "none" or said in found.values():
            raise PlanError([f"--as: {said} {'makes no map' if name == 'none' else 'is given twice'}; leave it out"])
        if name == MASKED:
            raise PlanError([f"--as: {said} needs a row's mask_image, and pictures have none here; leave it out"])
        again = sum(ending.partition("-")[0] == name for ending in found)
        found[f"{name}-{again}" if again else name] = said
    return found


def _split(text: str) -> Iterator[str]:
    depth, start = 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            yield text[start:place]
            start = place + 1
    yield text[start:]


def look(manifest: str, wanted: Wanted, config: Config | None = None) -> Inputs:
    """Read a manifest's rows once, check them, and identify the models that are needed.

    Args:
        manifest: A path, a glob or a URI.
        wanted: The maps.
        config: A config whose annotators, image roots and hosts are taken.

    Raises:
        PlanError: A line for each row that names no picture, or on an annotator that is not declared or makes no such maps.
    """
    if wanted.size and not all(8 <= side <= MAX_SIDE for side in wanted.size):
        raise PlanError([f"--size: sides are from 8 to {MAX_SIDE} pixels"])
    runtime = config.runtime if config else Runtime()
    declared, used = config.model.annotators if config else {}, dict.fromkeys(map(annotator_of, wanted.preprocess.values()))
    names = [name for name in used if name is not None]
    for name in names:
        if name not in declared:
            way = f"declare {ANNOTATORS[name]}, as model.annotators.{name} of a config, and name the config by --config"
            raise PlanError([f"--as: {name} needs a model; {way}"])
    try:
        files = tuple(find_files([manifest]))
        needed = {name: declared[name] for name in names}
        model = config.model.model_copy(update={"annotators": needed}) if config else None
        if model:
            check_annotators(model, config_of)
        values = {
            "manifest": [hash_of(file) for file in files],
            "maps": dict(wanted.preprocess),
            "size": wanted.size,
            "shards": [wanted.shard, wanted.part],
            "models": {place: source_identity(one) for place, (_, one) in (model.annotating() if model else {}).items()},
            "versions": {"promptmill": own_version(), **{name: version(name) for name in LIBRARIES}},
            "hardware": _hardware(model) if model and names else {},
        }
        rows = _check(files)
    except (ManifestError, ModelError) as error:
        raise PlanError([str(error)]) from None
    roots = replace(roots_of(files, runtime.image_roots, runtime.max_image_pixels), hosts=tuple(runtime.url_hosts))
    return Inputs(files, wanted, roots, needed, model.threads if model else 1, values, _models(model), rows)


def _hardware(model: Model) -> dict[str, str]:
    # Only where a model makes maps does the kind of hardware decide their bits.
    from promptmill.pipelines.rendering.hardware import hardware_kind

    return hardware_kind(model.threads)


def _models(model: Model | None) -> dict[str, tuple[str, str]]:
    named = model.annotating() if model else {}
    known = licences_of(named)
    return {
        role: (f"{one.source}@{one.revision}" if one.revision else one.source, known.get(place, "unknown"))
        for place, (role, one) in named.items()
    }


def _requests(files: Sequence[str]) -> Iterator[tuple[Request | tuple[str, ...], int, str]]:
    """Yield each row as a request for its picture or as what is wrong with it, with the number of its file and its name."""
    checks, places = RowChecks(files, Rules(Defaults(prompt=""))), {file: place for place, file in enumerate(files)}
    for number, row in enumerate(read_rows(files), 1):
        values = {name: row.values[name] for name in TAKEN if name in row.values}
        if "init_image" not in values and "image" in row.values:
            values["init_image"] = row.values["image"]
        checked = checks.check(number, replace(row, values=values))
        problems = checked.problems
        if not problems and checked.request and checked.request.init_image is None:
            problems = ("init_image: missing; each row names the picture that maps are made of",)
        yield problems or cast(Request, checked.request), places[row.file], row.where


def _check(files: Sequence[str]) -> int:
    """Return the number of rows; raise PlanError with a line for each that is wrong."""
    ids, wrong, rows = Ids(), list[str](), 0
    for request, _, where in _requests(files):
        rows += 1
        if isinstance(request, Request):
            ids.add(request.id)
        else:
            wrong += [f"{where}: {problem}" for problem in request]
    if rows == 0:
        raise PlanError(["the manifest has no rows"])
    if in_doubt := ids.in_doubt():
        named = ((request.id, where) for request, _, where in _requests(files) if isinstance(request, Request))
        wrong += [
            f"{where}: id: {id!r:.100} is also that of {first}; ids are unique" for id, where, first in doubled(named, in_doubt)
        ]
    if wrong:
        more = len(wrong) - MOST_PROBLEMS
        raise PlanError([*wrong[:MOST_PROBLEMS], *([f"… and {more:,} more like these"] if more > 0 else [])])
    return rows
