"""Finds an open_clip model: its config, its weights, their place on the hub. Free of torch, so that a plan can use this module."""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptmill.configs.errors import nearest
from promptmill.configs.weights import HF_HUB, LOCAL_DIR, Adapter, OpenClip
from promptmill.pipelines.models.sources import adapter_file, find_local
from promptmill.pipelines.work.errors import ModelError

CONFIG = "open_clip_config.json"
# The names that open_clip gives to weights, then the one that transformers gives.
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
NO_PICKLES = "pickles are not read, since they can run code"
# One of these is in every tokenizer's folder, whatever its kind.
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
WORDS = ("*.json", "*.txt", "*.model")  # the files of a model that are not weights
HUB_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class TagWeights:
    """Holds the place of the weights behind an open_clip tag.

    Attributes:
        repository: The hub repository.
        file: The safetensors file in the repository.
        entry: The weights' entry in open_clip's table: how images are prepared, whether the model wants QuickGELU.
    """

    repository: str
    file: str
    entry: Mapping[str, Any]


def embedding_width(clip: OpenClip) -> int:
    """Return the width of the model's embeddings, from its config alone; only a hub repository's config has to be fetched.

    Raises:
        ModelError: There is no such model, or its config cannot be read.
    """
    width = model_config(clip).get("embed_dim")
    if not isinstance(width, int) or width < 1:
        raise ModelError(f"{clip.model}: its config gives no embed_dim")
    return width


def model_config(clip: OpenClip) -> dict[str, Any]:
    """Return the architecture in open_clip's words: `embed_dim`, `vision_cfg`, `text_cfg`, …

    Raises:
        ModelError: There is no such model, or its config cannot be read.
    """
    if clip.model.startswith(LOCAL_DIR):
        path = model_folder(clip) / CONFIG
    elif clip.model.startswith(HF_HUB):
        path = hub_file(clip.model.removeprefix(HF_HUB), CONFIG, clip.revision)
    else:
        return _read_json(named_configs()[known_name(clip.model)], clip.model)
    if not path.is_file():
        raise ModelError(f"{clip.model}: holds no {CONFIG}, so it is not an open_clip model")
    config = _read_json(path, clip.model).get("model_cfg")
    if not isinstance(config, dict):
        raise ModelError(f"{clip.model}: its {CONFIG} has no model_cfg")
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
    """Return the config files of the models that open_clip knows by name."""
    package = importlib.util.find_spec("open_clip")  # importing it would import torch
    if package is None or not package.submodule_search_locations:
        raise ModelError("open_clip is not installed: pip install open_clip_torch")
    folder = Path(package.submodule_search_locations[0]) / "model_configs"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def known_name(model: str) -> str:
    """Return a model's name as open_clip writes it: ViT-B/32 is ViT-B-32.

    Raises:
        ModelError: open_clip knows no such model.
    """
    name, names = model.replace("/", "-"), named_configs()
    if name in names:
        return name
    others = f"a folder is written {LOCAL_DIR}FOLDER, a hub repository {HF_HUB}owner/name"
    raise ModelError(f"{model}: open_clip knows no model of this name{nearest(name, names)}; {others}")


def model_folder(clip: OpenClip) -> Path:
    """Return the folder of a `local-dir:` model, or that of an `hf-hub:` model, fetched at its revision.

    Raises:
        ModelError: There is no such folder or repository.
    """
    if clip.model.startswith(LOCAL_DIR):
        return find_local(clip.model.removeprefix(LOCAL_DIR))
    repository = clip.model.removeprefix(HF_HUB)
    folder = hub_folder(repository, clip.revision, [*WORDS, "open_clip*.safetensors"])
    # Repositories often hold the weights twice, the second time in the form of transformers.
    return folder if list(folder.glob("*.safetensors")) else hub_folder(repository, clip.revision, ["*.safetensors"])


def weights_file(folder: Path, model: str) -> Path:
    """Return the safetensors file in a model's folder.

    Raises:
        ModelError: There is none, or there are several of which none has a name of `WEIGHTS`.
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


def tag_weights(clip: OpenClip) -> TagWeights:
    """Return the place of the weights behind a named model's tag. Imports open_clip, and torch with it, whose table is code.

    Raises:
        ModelError: open_clip has no such model or tag, or only as a pickle.
    """
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    name, tag = known_name(clip.model), clip.pretrained or ""
    entry, tags = get_pretrained_cfg(name, tag), list_pretrained_tags_by_model(name)
    if not entry:
        known = f"; tags: {', '.join(tags)}" if tags else "; it has none, so take another model"
        raise ModelError(f"{clip.model}: open_clip has no weights {tag!r} for it{nearest(tag, tags)}{known}")
    repository, file = os.path.split(entry.get("hf_hub", ""))
    if not repository:
        raise ModelError(f"{clip.model}: open_clip has {tag} as a pickle only; {NO_PICKLES}; take another tag")
    # Where open_clip's table names a pickle, the same weights lie beside it.
    return TagWeights(repository, f"{Path(file).stem}.safetensors" if file else HF_SAFE_WEIGHTS_NAME, entry)


def commit_of(repository: str, file: str) -> str:
    """Return the commit of a repository's main; where the hub cannot be asked, the commit of a cached file.

    Raises:
        ModelError: The hub cannot be asked and no file is cached.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        commit = HfApi().model_info(repository, timeout=HUB_TIMEOUT_S).sha
    except Exception as error:  # the client's errors share no base, and each means that the hub does not say
        cached = try_to_load_from_cache(repository, file)
        if not isinstance(cached, str):
            need = "set ranking.revision, or fetch it where there is a network"
            raise ModelError(f"{repository}: its commit cannot be asked of the hub: {one_line(error)}; {need}") from error
        return Path(cached).relative_to(_snapshots(Path(cached))).parts[0]
    if not commit:
        raise ModelError(f"{repository}: the hub names no commit; set ranking.revision")
    return commit


def _snapshots(file: Path) -> Path:
    """Return the folder of a cached file's repository that holds one folder for each commit."""
    return next(folder for folder in file.parents if folder.name == "snapshots")


def tokenizer_folder(clip: OpenClip, config: Mapping[str, Any], folder: Path | None) -> Path | None:
    """Return the folder of a tokenizer that is not open_clip's own: that of the weights, since another repository is not pinned.

    Args:
        clip: The model.
        config: The model's architecture, from `model_config`.
        folder: The folder of the model; None for a named model, whose tokenizer is fetched from beside its weights.

    Returns:
        None where the tokenizer is open_clip's own.

    Raises:
        ModelError: There is no tokenizer beside the weights.
    """
    named = config.get("text_cfg", {}).get("hf_tokenizer_name")
    if not named:
        return None
    if folder is None:
        folder = hub_folder(tag_weights(clip).repository, clip.revision, WORDS)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(f"{clip.model}: its tokenizer is in another repository, {named}, which nothing pins; take another model")
    return folder


def fetched_file(weights: Adapter) -> Path:
    """Return the one file of an adapter, a head or a network, fetched where it is on the hub.

    Raises:
        ModelError: The file is not there.
    """
    return adapter_file(weights) or hub_file(weights.source, weights.file, weights.revision)


def hub_file(repository: str, name: str, revision: str | None) -> Path:
    """Return one file of a hub repository, from the cache where the file is there.

    Raises:
        ModelError: The file cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    return Path(_from_hub(lambda: hf_hub_download(repository, name, revision=revision), f"{repository}: {name}"))


def hub_folder(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return a folder with the files of a hub repository that fit these patterns, from the cache where they are there.

    Raises:
        ModelError: The files cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    wanted = list(patterns)
    return Path(_from_hub(lambda: snapshot_download(repository, revision=revision, allow_patterns=wanted), repository))


def _from_hub(fetch: Callable[[], str], what: str) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return fetch()
    except GatedRepoError as error:
        said = f": {error.server_message}" if error.server_message else ""
        access = "ask for access on its page on the hub, and give a token that has it (HF_TOKEN, or `hf auth login`)"
        raise ModelError(f"{what} cannot be fetched: the repository is gated; {access}{said}") from error
    except RepositoryNotFoundError as error:
        private = "a private one needs a token (HF_TOKEN, or `hf auth login`)"
        raise ModelError(f"{what} cannot be fetched: the hub has no such repository, or it is private; {private}") from error
    except Exception as error:  # the client's errors share no base, and each means that the model cannot be had
        raise ModelError(f"{what} cannot be fetched from the hub: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """Return the text of an exception on one line of at most 300 characters; its class name where it has no text."""
    text = " ".join(str(error).split())
    return f"{text[:299]}…" if len(text) > 300 else text or type(error).__name__
