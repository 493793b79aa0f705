"""Finds the local folders that configs name as sources of weights."""

from pathlib import Path

from promptmill.configs.errors import nearest
from promptmill.configs.own_files import ROOT
from promptmill.configs.weights import GGUF, SAFETENSORS, Adapter, PartWeights, is_folder
from promptmill.manifests.pointers import HEAD, pointer
from promptmill.pipelines.work.errors import ModelError


def local_folder(source: str) -> Path | None:
    """Return the place of a source of weights on this machine; None for a hub repository, owner/name.

    Raises:
        ModelError: As `find_local`; or the source is a file, but no safetensors.
    """
    if not is_folder(source):
        return None
    place = find_local(source)
    if place.is_file():
        _check_weights(place.name, source)
        check_fetched(place)
    return place


def check_fetched(file: Path) -> None:
    """Raise ModelError where a file of weights is a pointer to a content that was not fetched."""
    if not file.is_file():
        raise ModelError(f"{file}: is a folder, and a file of weights is meant")
    with file.open("rb") as stream:
        found = pointer(stream.read(HEAD))
    if found:
        raise ModelError(f"{file}: {found}")


def _check_weights(name: str, source: str) -> None:
    # Where a file of GGUF may stand, the config's schema says.
    if not name.endswith(GGUF):
        _check_safetensors(name, source)


def _check_safetensors(name: str, source: str) -> None:
    if not name.endswith(SAFETENSORS):
        raise ModelError(f"{source}: {name} is no {SAFETENSORS} file, and others are not read: pickles can run code")


def adapter_file(weights: Adapter) -> Path | None:
    """Return the one file of a local LoRA or textual inversion; None for a hub repository.

    The file's name is checked here again, since diffusers unpickles a file of any other name, whatever its options say.

    Raises:
        ModelError: As `local_folder`; or there is no such file, or the folder holds several of which none has the usual name.
    """
    _check_safetensors(weights.file, weights.source)
    place = local_folder(weights.source)
    if place is None or place.is_file():
        return place
    found = sorted(path.name for path in place.glob(f"*{SAFETENSORS}"))
    name = weights.weight_name or (found[0] if len(found) == 1 else weights.file)
    if not (place / name).is_file():
        there = f"; it has {', '.join(found)}: name one of them as weight_name" if found else f", nor any {SAFETENSORS}"
        raise ModelError(f"{weights.source}: has no {name}{there}")
    check_fetched(place / name)
    return place / name


def part_place(weights: PartWeights) -> Path | None:
    """Return the folder or the one file of a local part of a model; None for a hub repository.

    Raises:
        ModelError: As `local_folder`; or the source has no such folder or file.
    """
    place = local_folder(weights.source)
    inside = "/".join(filter(None, (weights.subfolder, weights.weight_name)))
    if place is None or not inside:
        return place
    if not (place / inside).exists():
        raise ModelError(f"{weights.source}: has no {inside}")
    if weights.weight_name:
        _check_weights(weights.weight_name, weights.source)
        check_fetched(place / inside)
    return place / inside


def find_local(name: str) -> Path:
    """Return the absolute path of a folder or file; a relative one is tried from the current folder, then from promptmill's root.

    Raises:
        ModelError: Neither place has the folder or file.
    """
    tried = [Path.cwd() / name, ROOT / name]  # an absolute name stays what it is
    for path in tried:
        if path.exists():
            return path
    beside = [path.name for folder in (path.parent for path in tried) if folder.is_dir() for path in folder.iterdir()]
    where = "" if Path(name).is_absolute() else f" in {' or '.join(dict.fromkeys(map(str, (Path.cwd(), ROOT))))}"
    raise ModelError(f"{name}: no such folder{where}{nearest(Path(name).name, beside)}")
