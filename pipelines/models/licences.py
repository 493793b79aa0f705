"""Reads the licence of each set of weights from its model card, for the card of the dataset."""

from collections.abc import Mapping
from pathlib import Path

from promptmill.configs.model import Model
from promptmill.configs.schema import Ranking
from promptmill.configs.stages import StageOrCaptions, sources_of
from promptmill.configs.weights import HF_HUB, LOCAL_DIR, Adapter, OnnxFile, OpenClip, PartWeights, Weights
from promptmill.pipelines.models.clip_sources import hub_file, tag_weights
from promptmill.pipelines.models.sources import adapter_file, find_local, local_folder, part_place
from promptmill.pipelines.work.errors import ModelError

CARD = "README.md"
FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt")
LONGEST = 80  # characters of a quoted licence


def licences(model: Model, ranking: Ranking, stages: tuple[StageOrCaptions, ...] = ()) -> dict[str, str]:
    """Return the licence of each set of weights, by its place in the config; weights that state no licence are left out.

    For a local folder the source is its own card or that of the folder around it, else the first line of its LICENSE. For a hub
    repository the source is its card at the revision.

    Raises:
        ModelError: A local folder is not there.
    """
    return licences_of({**model.weights(), **ranking.sources(), **sources_of(stages)})


def licences_of(named: Mapping[str, tuple[str, Weights | OpenClip]]) -> dict[str, str]:
    """Return the licences of weights, named as by `Model.weights`, as `licences` does."""
    found = {where: _licence(weights) for where, (_, weights) in sorted(named.items())}
    return {where: said for where, said in found.items() if said}


def _licence(weights: Weights | OpenClip) -> str | None:
    if isinstance(weights, OpenClip):
        return _of_clip(weights)
    if isinstance(weights, OnnxFile):
        return _of_folder(find_local(weights.source))
    if isinstance(weights, PartWeights):
        place = part_place(weights)
    else:
        place = adapter_file(weights) if isinstance(weights, Adapter) else local_folder(weights.source)
    return _of_repository(weights.source, weights.revision) if place is None else _of_folder(place)


def _of_clip(clip: OpenClip) -> str | None:
    if clip.model.startswith(LOCAL_DIR):
        return _of_folder(find_local(clip.model.removeprefix(LOCAL_DIR)))
    if clip.model.startswith(HF_HUB):
        return _of_repository(clip.model.removeprefix(HF_HUB), clip.revision)
    return _of_repository(tag_weights(clip).repository, clip.revision)


def _of_repository(repository: str, revision: str | None) -> str | None:
    try:
        return _of_card(hub_file(repository, CARD, revision))
    except ModelError:
        return None  # there is no card, or the hub is out of reach: the weights may be in the cache all the same


def _of_folder(place: Path) -> str | None:
    folder = place if place.is_dir() else place.parent
    # Parts of one family often lie side by side below its card.
    said = _of_card(folder / CARD) or _of_card(folder.parent / CARD)
    return said or next((line for name in FILES if (line := _first_line(folder / name))), None)


def _of_card(card: Path) -> str | None:
    from huggingface_hub import metadata_load

    try:
        values = metadata_load(card) or {}
    except Exception:  # whatever a card of other people holds, it only leaves the licence unknown
        return None
    names = values.get("license_name") if values.get("license") == "other" else None
    said = names or values.get("license")
    return ", ".join(map(str, said))[:LONGEST] if isinstance(said, list) else str(said)[:LONGEST] if said else None


def _first_line(file: Path) -> str | None:
    try:
        lines = file.read_text(errors="replace").split("\n", 20)[:20]
    except OSError:
        return None
    return next((line.strip()[:LONGEST] for line in lines if line.strip()), None)
