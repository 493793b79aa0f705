"""Identifies the weights and the libraries that a dataset is made with; both are part of a plan's fingerprint."""

import hashlib
import os
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from promptmill.configs.model import Model
from promptmill.configs.own_files import PROJECT
from promptmill.configs.schema import Config, Ranking
from promptmill.configs.scorers import OpenClipScorer
from promptmill.configs.stages import StageOrCaptions, sources_of
from promptmill.configs.weights import (
    GGUF,
    HF_HUB,
    LOCAL_DIR,
    SAFETENSORS,
    Adapter,
    Layout,
    OnnxFile,
    OpenClip,
    PartWeights,
    Weights,
)
from promptmill.pipelines.models.capabilities import class_saved
from promptmill.pipelines.models.clip_sources import commit_of, tag_weights
from promptmill.pipelines.models.families import family_of
from promptmill.pipelines.models.sources import adapter_file, check_fetched, find_local, local_folder, part_place
from promptmill.pipelines.work.errors import ModelError

Named = TypeVar("Named", bound=OpenClip)

# Libraries whose versions decide pixels, scores or file bytes.
LIBRARIES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "tokenizers",
    "open_clip_torch",
    "peft",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
    "resvg_py",
)
WEIGHT_ENDINGS = (SAFETENSORS, ".json", ".txt", ".model", ".jinja")


def library_versions(model: Model, stages: tuple[StageOrCaptions, ...] = ()) -> dict[str, str]:
    """Return the version of every library that decides the bytes that a model and stages make, and of promptmill itself.

    Raises:
        ModelError: The model needs a library that is not installed.
    """
    networks = {name: version(name) for stage in stages for name in stage.libraries}
    always = {name: version(name) for name in LIBRARIES}
    return {"promptmill": own_version(), **always, **_of_family(model), **_quantisers(model), **networks}


def _of_family(model: Model) -> dict[str, str]:
    """Return the versions of the libraries by which a family reads prompts, beside those of every family."""
    family = family_of(class_saved(model) or "")
    names = [*([family.package] if family.package else []), *family.libraries]
    # Without its package a model is refused by its name.
    return {name: version(name) for name in names if find_spec(name) is not None}


def _quantisers(model: Model) -> dict[str, str]:
    """Return the versions of the libraries that a model's smaller weights need."""
    wanted = {"torchao": ("model.kernels.fp8", "fp8")} if model.kernels.fp8 else {}
    for name, kind in model.quantize.items():
        wanted["bitsandbytes" if kind == "nf4" else "torchao"] = (f"model.quantize.{name}", "quantize")
    if model.denoiser and (model.denoiser.weight_name or model.denoiser.source).endswith(GGUF):
        wanted["gguf"] = ("model.denoiser", "quantize")
    found = {}
    for library, (where, extra) in wanted.items():
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            raise ModelError(f"{where} needs {library}: pip install 'promptmill[{extra}]'") from None
    return found


def own_version() -> str:
    """Return the version of this copy of promptmill, which need not be the installed one."""
    return tomllib.loads(PROJECT.read_text())["project"]["version"] if PROJECT.is_file() else version("promptmill")


def pinned(ranking: Ranking, before: Ranking | None = None) -> Ranking:
    """Return the ranking with the commits of its weights: a tag without a revision gets its repository's present commit.

    Args:
        ranking: The config's ranking.
        before: The ranking of the existing plan; its commits still hold for the same weights, whatever the hub has now.

    Raises:
        ModelError: open_clip has no such weights, or the hub cannot be asked and the weights are not in its cache.
    """
    earlier = {(clip.model, clip.pretrained): clip.revision for clip in _tagged(before)} if before is not None else {}
    scorers = tuple(_pinned(scorer, earlier) if isinstance(scorer, OpenClipScorer) else scorer for scorer in ranking.scorers)
    return _pinned(ranking.model_copy(update={"scorers": scorers}), earlier)


def _tagged(ranking: Ranking) -> list[OpenClip]:
    return [ranking, *(scorer for scorer in ranking.scorers if isinstance(scorer, OpenClipScorer))]


def _pinned(clip: Named, earlier: Mapping[tuple[str, str | None], str | None]) -> Named:
    if clip.revision or clip.model.startswith((LOCAL_DIR, HF_HUB)):
        return clip
    revision = earlier.get((clip.model, clip.pretrained))
    if revision is None:
        weights = tag_weights(clip)
        revision = commit_of(weights.repository, weights.file)
    return clip.model_copy(update={"revision": revision})


def model_identity(model: Model, ranking: Ranking, stages: tuple[StageOrCaptions, ...] = ()) -> dict[str, str]:
    """Return for each set of weights, by its place in the config, repository@revision or the SHA-256 of local content.

    Raises:
        ModelError: A local folder is not there or holds no weights; or as `pinned`.
    """
    named = [*sorted(model.weights().items()), *sorted(ranking.sources().items()), *sources_of(stages).items()]
    return {where: _clip_identity(one) if isinstance(one, OpenClip) else source_identity(one) for where, (_, one) in named}


def config_identity(config: Config) -> dict[str, str]:
    """Return the identity of every set of weights of a config, as `model_identity` does."""
    rewriting = {where: source_identity(one) for where, (_, one) in config.rewriting_sources().items()}
    return {**model_identity(config.model, config.ranking, config.all_stages), **rewriting}


def source_identity(weights: Weights) -> str:
    """Return the identity of a set of weights: by content where it is local, by commit where it is a repository."""
    if isinstance(weights, Adapter):
        file = adapter_file(weights)
        return f"sha256:{_sha256(file)}" if file else f"{weights.source}@{weights.revision}/{weights.file}"
    if isinstance(weights, OnnxFile):
        return f"sha256:{_sha256(find_local(weights.source))}"
    if isinstance(weights, PartWeights):
        place, inside = part_place(weights), [part for part in (weights.subfolder, weights.weight_name) if part]
    else:
        place, inside = local_folder(weights.source), []
    if place is None:
        return "/".join([f"{weights.source}@{weights.revision}", *inside])
    return _folder_identity(place, weights.source, needs_weights=not isinstance(weights, Layout))


def _folder_identity(folder: Path, source: str, needs_weights: bool = True) -> str:
    if folder.is_file():
        return f"sha256:{_sha256(folder)}"
    files = sorted(_files(folder))
    if needs_weights and not any(path.suffix == SAFETENSORS for path in files):
        raise ModelError(f"{source}: holds no {SAFETENSORS}; pickles are not read, since they can run code")
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.relative_to(folder).as_posix()} {_sha256(path)}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files that the loaders may open: through links, which they follow, but no hidden files (the hub client's notes)."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place) / name for name in names if name.endswith(WEIGHT_ENDINGS) and not name.startswith("."))


def _sha256(path: Path) -> str:
    check_fetched(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clip_identity(clip: OpenClip) -> str:
    if clip.model.startswith(LOCAL_DIR):
        return _folder_identity(find_local(clip.model.removeprefix(LOCAL_DIR)), clip.model)
    if clip.model.startswith(HF_HUB):
        return f"{clip.model}@{clip.revision}"
    weights = tag_weights(clip)
    return f"{clip.model}/{clip.pretrained}: {weights.repository}@{_pinned(clip, {}).revision}/{weights.file}"
