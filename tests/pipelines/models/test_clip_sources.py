import json
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import open_clip
import pytest

from promptmill.configs.schema import Ranking
from promptmill.pipelines.models import clip_sources
from promptmill.pipelines.models.clip_sources import (
    embedding_width,
    known_name,
    model_folder,
    named_configs,
    tokenizer_folder,
    weights_file,
)
from promptmill.pipelines.work.errors import ModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = Ranking(model="hf-hub:owner/name", revision=COMMIT)


def folder_with(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(json.dumps({"model_cfg": {"embed_dim": 24}}))
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub: what lies in `there` can be fetched into `here`. Remembers what was asked for."""
    there, here, asked = tmp_path / "there", tmp_path / "here", []
    there.mkdir()
    here.mkdir()

    def download(repository, name, revision):
        asked.append((repository, revision, name))
        (here / name).write_bytes((there / name).read_bytes())
        return str(here / name)

    def snapshot(repository, revision, allow_patterns):
        for name in (path.name for path in there.iterdir()):
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                download(repository, name, revision)
        return str(here)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return there, asked


def test_the_names_and_widths_are_open_clips_own():
    assert set(open_clip.list_models()) <= set(named_configs())
    for name in open_clip.list_models():
        assert embedding_width(Ranking(model=name, pretrained="x")) == open_clip.get_model_config(name)["embed_dim"]


def test_a_plan_learns_the_width_without_torch():
    code = (
        "import sys\n"
        "from promptmill.configs.schema import Ranking\n"
        "from promptmill.pipelines.models.clip_sources import embedding_width\n"
        "print(embedding_width(Ranking(model='local-dir:./embedded/weights/clip')), embedding_width(Ranking()))\n"
        "assert not {'torch', 'open_clip', 'huggingface_hub'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["128", "512"]


def test_a_name_may_have_a_slash_as_in_papers():
    assert known_name("ViT-B/32") == "ViT-B-32"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vit-b-23", "vit-b-23: open_clip knows no model of this name; did you mean 'ViT-B-32'?"),
        ("laion/CLIP", "a folder is written local-dir:FOLDER, a hub repository hf-hub:owner/name"),
    ],
)
def test_an_unknown_name_hints_at_what_there_is(name, says):
    with pytest.raises(ModelError, match=says.replace("?", r"\?")):
        embedding_width(Ranking(model=name, pretrained="openai"))


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin"], "open_clip_model.safetensors"),
        (["model.safetensors", "open_clip_pytorch_model.bin"], "model.safetensors"),
        (["some.safetensors", "pytorch_model.bin"], "some.safetensors"),
    ],
)
def test_the_safetensors_are_taken_whatever_lies_beside_them(tmp_path, names, taken):
    folder = folder_with(tmp_path, *names)
    assert weights_file(folder, "m") == folder / taken


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "m: holds no .safetensors; pickles are not read"),
        (["open_clip_pytorch_model.bin", "a.pt"], "m: holds no .safetensors, only a.pt, open_clip_pytorch_model.bin; pickles"),
        (
            ["b.safetensors", "a.safetensors"],
            "m: holds several weights (a.safetensors, b.safetensors); name one of them open_clip_",
        ),
    ],
)
def test_weights_that_cannot_be_read_or_told_apart_are_refused(tmp_path, names, says):
    with pytest.raises(ModelError) as caught:
        weights_file(folder_with(tmp_path, *names), "m")
    assert str(caught.value).startswith(says)


def test_a_hub_repository_is_fetched_at_its_revision_without_pickles(hub):
    there, asked = hub
    folder_with(
        there, "open_clip_config.json", "tokenizer.json", "open_clip_model.safetensors", "model.safetensors", "a.bin", "b.py"
    )
    assert embedding_width(HUB) == 24
    assert asked == [("owner/name", COMMIT, "open_clip_config.json")]
    folder = model_folder(HUB)
    assert {path.name for path in folder.iterdir()} == {"open_clip_config.json", "tokenizer.json", "open_clip_model.safetensors"}
    assert {(repository, revision) for repository, revision, _ in asked} == {("owner/name", COMMIT)}


def test_weights_in_the_form_of_transformers_are_fetched_only_where_there_are_no_others(hub):
    there, _ = hub
    folder_with(there, "open_clip_config.json", "model.safetensors", "pytorch_model.bin")
    assert weights_file(model_folder(HUB), HUB.model).name == "model.safetensors"


def test_a_repository_that_holds_only_pickles_is_refused(hub):
    there, _ = hub
    folder_with(there, "open_clip_config.json", "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"owner/name: holds no .safetensors; pickles are not read"):
        weights_file(model_folder(HUB), HUB.model)


def test_what_the_hub_does_not_give_is_one_line(hub):
    with pytest.raises(ModelError) as caught:
        embedding_width(HUB)
    message = str(caught.value)
    assert message.startswith("owner/name: open_clip_config.json cannot be fetched from the hub: ") and "\n" not in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds no open_clip_config.json, so it is not an open_clip model"),
        ("{", "open_clip_config.json cannot be read as JSON"),
        ("\xff", "open_clip_config.json cannot be read as JSON"),
        ("[]", "open_clip_config.json holds list, not keys and values"),
        ("{}", "its open_clip_config.json has no model_cfg"),
        ('{"model_cfg": {}}', "its config gives no embed_dim"),
        ('{"model_cfg": {"embed_dim": "wide"}}', "its config gives no embed_dim"),
    ],
)
def test_a_folder_without_a_usable_config_is_one_line(tmp_path, content, says):
    if content is not None:
        Path(tmp_path / "open_clip_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError) as caught:
        embedding_width(Ranking(model=f"local-dir:{tmp_path}"))
    message = str(caught.value)
    assert message.startswith(f"local-dir:{tmp_path}: {says}") and "\n" not in message


WORDS = {"text_cfg": {"hf_tokenizer_name": "somebody/words"}}


@pytest.mark.parametrize("ranking", [HUB, Ranking(model="local-dir:./clip")])
def test_a_tokenizer_comes_from_beside_the_weights_or_not_at_all(tmp_path, ranking):
    assert tokenizer_folder(ranking, {"text_cfg": {}}, tmp_path) is tokenizer_folder(ranking, {}, tmp_path) is None
    folder_with(tmp_path, "open_clip_config.json", "tokenizer_config.json")
    with pytest.raises(ModelError) as caught:
        tokenizer_folder(ranking, WORDS, tmp_path)
    assert str(caught.value).startswith(f"{ranking.model}: its tokenizer is in another repository, somebody/words, which nothing")
    folder_with(tmp_path, "tokenizer.json")
    assert tokenizer_folder(ranking, WORDS, tmp_path) == tmp_path


def test_a_named_models_tokenizer_is_that_of_the_commit_of_its_weights(hub, monkeypatch):
    there, asked = hub
    tagged = Ranking(model="ViT-B-16-SigLIP", pretrained="webli", revision=COMMIT)
    config = clip_sources.model_config(tagged)
    folder_with(there, "open_clip_config.json", "open_clip_model.safetensors")
    with pytest.raises(ModelError, match=r"its tokenizer is in another repository, timm/ViT-B-16-SigLIP, which nothing pins"):
        tokenizer_folder(tagged, config, None)
    folder_with(there, "tokenizer.json")
    assert (tokenizer_folder(tagged, config, None) / "tokenizer.json").is_file()
    assert {(repository, revision) for repository, revision, _ in asked} == {("timm/ViT-B-16-SigLIP", COMMIT)}


def test_no_named_model_has_a_tokenizer_that_open_clip_would_fetch_unpinned():
    # Those that are called SigLIP and name no tokenizer get one from a bucket on the web.
    for name in named_configs():
        named = clip_sources.model_config(Ranking(model=name, pretrained="x"))["text_cfg"].get("hf_tokenizer_name")
        assert named or "siglip" not in name.lower()
