"""Finds an open_clip model: its config, its weights, their place on the hub. Free of torch, so that a plan can ask."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.errors import nearest
from configs.schema import HF_HUB, LOCAL_DIR, Ranking
from pipelines.errors import ModelError
from pipelines.sources import find_local

CONFIG = "open_clip_config.json"
# The names that open_clip gives to weights, then the one that transformers gives.
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
NO_PICKLES = "pickles are not read, since they can run code"


def embedding_width(ranking: Ranking) -> int:
    """The width of the model's embeddings, from its config alone; only a hub repository's config has to be fetched.

    Raises:
        ModelError: There is no such model, or its config cannot be read.
    """
    width = model_config(ranking).get("embed_dim")
    if not isinstance(width, int) or width < 1:
        raise ModelError(f"{ranking.model}: its config gives no embed_dim")
    return width


def model_config(ranking: Ranking) -> dict[str, Any]:
    """The architecture in open_clip's words: `embed_dim`, `vision_cfg`, `text_cfg`, …

    Raises:
        ModelError: There is no such model, or its config cannot be read.
    """
    if ranking.model.startswith(LOCAL_DIR):
        path = model_folder(ranking) / CONFIG
    elif ranking.model.startswith(HF_HUB):
        path = hub_file(ranking.model.removeprefix(HF_HUB), CONFIG, ranking.revision)
    else:
        return _read_json(named_configs()[known_name(ranking.model)], ranking.model)
    if not path.is_file():
        raise ModelError(f"{ranking.model}: holds no {CONFIG}, so it is not an open_clip model")
    config = _read_json(path, ranking.model).get("model_cfg")
    if not isinstance(config, dict):
        raise ModelError(f"{ranking.model}: its {CONFIG} has no model_cfg")
    return config


def _read_json(path: Path, model: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{model}: {path.name} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{model}: {path.name} holds {type(content).__name__}, not keys and values")
    return content


def named_configs() -> dict[str, Path]:
    """The config files of the models that open_clip knows by name."""
    package = importlib.util.find_spec("open_clip")  # importing it would import torch
    if package is None or not package.submodule_search_locations:
        raise ModelError("open_clip is not installed: pip install open_clip_torch")
    folder = Path(package.submodule_search_locations[0]) / "model_configs"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def known_name(model: str) -> str:
    """The name as open_clip writes it: ViT-B/32 is ViT-B-32.

    Raises:
        ModelError: open_clip knows no such model.
    """
    name, names = model.replace("/", "-"), named_configs()
    if name in names:
        return name
    others = f"a folder is written {LOCAL_DIR}FOLDER, a hub repository {HF_HUB}owner/name"
    raise ModelError(f"{model}: open_clip knows no model of this name{nearest(name, names)}; {others}")


def model_folder(ranking: Ranking) -> Path:
    """The folder of a `local-dir:` model, or that of an `hf-hub:` model, fetched at its revision.

    Raises:
        ModelError: There is no such folder or repository.
    """
    if ranking.model.startswith(LOCAL_DIR):
        return find_local(ranking.model.removeprefix(LOCAL_DIR))
    from huggingface_hub import snapshot_download

    repository = ranking.model.removeprefix(HF_HUB)

    def fetch(*patterns: str) -> Path:
        wanted = list(patterns)
        return Path(_from_hub(lambda: snapshot_download(repository, revision=ranking.revision, allow_patterns=wanted), repository))

    folder = fetch("*.json", "*.txt", "*.model", "open_clip*.safetensors")
    # Repositories often hold the weights twice, the second time in the form of transformers.
    return folder if list(folder.glob("*.safetensors")) else fetch("*.safetensors")


def weights_file(folder: Path, model: str) -> Path:
    """The safetensors in a model's folder.

    Raises:
        ModelError: There are none, or several of which none has a name of `WEIGHTS`.
    """
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    for name in [*WEIGHTS, *(found if len(found) == 1 else ())]:
        if name in found:
            return folder / name
    if found:
        raise ModelError(f"{model}: holds several weights ({', '.join(found)}); name one of them {WEIGHTS[0]}")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pth", ".pt", ".ckpt"))
    only = f", only {', '.join(pickles)}" if pickles else ""
    raise ModelError(f"{model}: holds no .safetensors{only}; {NO_PICKLES}")


def hub_file(repository: str, name: str, revision: str | None) -> Path:
    """One file of a hub repository, from the cache where it is there.

    Raises:
        ModelError: It cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    return Path(_from_hub(lambda: hf_hub_download(repository, name, revision=revision), f"{repository}: {name}"))


def _from_hub(fetch: Callable[[], str], what: str) -> str:
    try:
        return fetch()
    except Exception as error:  # the client's errors share no base, and each means that the model cannot be had
        raise ModelError(f"{what} cannot be fetched from the hub: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """What an exception says, in at most 300 characters; its kind where it says nothing."""
    text = " ".join(str(error).split())
    return f"{text[:299]}…" if len(text) > 300 else text or type(error).__name__
