"""Says exactly which weights and which libraries a dataset is made with; both are part of a plan's fingerprint."""

import hashlib
from importlib.metadata import version
from pathlib import Path

from configs.schema import LOCAL_DIR, Model, Ranking
from pipelines.errors import ModelError
from pipelines.sources import find_local, local_folder

# Those whose versions decide pixels, scores or file bytes.
LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "open_clip_torch", "peft", "numpy", "pillow", "pyarrow")
WEIGHT_ENDINGS = (".safetensors", ".json", ".txt", ".model")


def library_versions() -> dict[str, str]:
    """The installed version of every library that decides bytes."""
    return {name: version(name) for name in LIBRARIES}


def model_identity(model: Model, ranking: Ranking) -> dict[str, str]:
    """For each set of weights, by its place in the config, what it is: repository@revision, or the SHA-256 of a folder.

    Raises:
        ModelError: A local folder is not there or holds no weights.
    """
    named = {"model.base": (model.base, model.revision)}
    if model.vae:
        named["model.vae"] = (model.vae.source, model.vae.revision)
    named |= {f"model.controlnets.{name}": (w.source, w.revision) for name, w in model.controlnets.items()}
    named |= {f"model.loras.{w.name}": (w.source, w.revision) for w in model.loras}
    named |= {f"model.textual_inversions.{w.token}": (w.source, w.revision) for w in model.textual_inversions}
    identity = {where: source_identity(source, revision) for where, (source, revision) in sorted(named.items())}
    return {**identity, "ranking.model": _ranking_identity(ranking)}


def source_identity(source: str, revision: str | None) -> str:
    """What a source of weights holds, by content where it is a folder, by commit where it is a repository."""
    folder = local_folder(source)
    return f"{source}@{revision}" if folder is None else _folder_identity(folder, source)


def _folder_identity(folder: Path, source: str) -> str:
    if folder.is_file():
        return f"sha256:{_sha256(folder)}"
    files = sorted(path for path in folder.rglob("*") if path.suffix in WEIGHT_ENDINGS and path.is_file())
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelError(f"{source}: holds no .safetensors; pickles are not read, since they can run code")
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.relative_to(folder).as_posix()} {_sha256(path)}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ranking_identity(ranking: Ranking) -> str:
    if ranking.model.startswith(LOCAL_DIR):
        return _folder_identity(find_local(ranking.model.removeprefix(LOCAL_DIR)), ranking.model)
    return f"{ranking.model}/{ranking.pretrained}@{ranking.revision}"
