import json
import shutil

import huggingface_hub
import pytest

from promptmill.configs.model import LoraWeights, Model, TextualInversion
from promptmill.configs.own_files import ROOT
from promptmill.configs.schema import Ranking
from promptmill.configs.weights import Weights
from promptmill.pipelines.models import identity
from promptmill.pipelines.models.identity import library_versions, model_identity, pinned, source_identity
from promptmill.pipelines.work.errors import ModelError

COMMIT, OTHER = "a" * 40, "b" * 40
TAG = Ranking(model="ViT-L-14", pretrained="openai")
REPOSITORY = "timm/vit_large_patch14_clip_224.openai"
CLIP = Ranking(model="local-dir:./embedded/weights/clip")
BASE = Model(base="./embedded/weights/pipeline")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub, whose repositories are at the commit in `says`; unreachable where that is None."""
    says, asked = {"commit": COMMIT}, []

    class Api:
        def model_info(self, repository, timeout):
            asked.append(repository)
            if says["commit"] is None:
                raise OSError("no network\nhere")
            return huggingface_hub.hf_api.ModelInfo(id=repository, sha=says["commit"])

    cache = {}
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: cache.get((repository, file)))
    return says, asked, cache


def test_a_tag_is_pinned_to_what_its_repository_holds_now(hub):
    says, asked, _ = hub
    assert pinned(TAG) == TAG.model_copy(update={"revision": COMMIT})
    assert asked == [REPOSITORY]
    assert f"{REPOSITORY}@{COMMIT}" in model_identity(BASE, TAG)["ranking.model"]
    says["commit"] = OTHER
    assert f"{REPOSITORY}@{OTHER}" in model_identity(BASE, TAG)["ranking.model"]


@pytest.mark.parametrize(
    "ranking",
    [CLIP, Ranking(model="hf-hub:owner/name", revision=OTHER), TAG.model_copy(update={"revision": OTHER})],
)
def test_what_is_pinned_already_asks_nobody(hub, ranking):
    assert pinned(ranking) == ranking
    assert model_identity(BASE, ranking) == model_identity(BASE, pinned(ranking))
    assert hub[1] == []


def test_a_plans_commit_holds_although_the_hub_has_another(hub):
    before = TAG.model_copy(update={"revision": OTHER})
    assert pinned(TAG.model_copy(update={"min_score": 3.0}), before).revision == OTHER
    assert hub[1] == []
    others = [Ranking(), before.model_copy(update={"pretrained": "laion2b_s32b_b82k"}), TAG]
    assert [pinned(TAG, other).revision for other in others] == [COMMIT] * 3


def test_without_a_network_the_cached_commit_is_taken(hub, tmp_path):
    says, _, cache = hub
    says["commit"] = None
    cache[REPOSITORY, "open_clip_model.safetensors"] = str(tmp_path / "snapshots" / OTHER / "open_clip_model.safetensors")
    assert pinned(TAG).revision == OTHER


def test_without_a_network_and_a_cached_file_it_is_one_line(hub):
    hub[0]["commit"] = None
    with pytest.raises(ModelError) as caught:
        pinned(TAG)
    message = str(caught.value)
    assert message.startswith(f"{REPOSITORY}: its commit cannot be asked of the hub: no network here; set ranking.revision")


@pytest.mark.parametrize("library", ["opencv-python-headless", "tokenizers", "scipy", "promptmill", "open_clip_torch", "torch"])
def test_the_versions_are_of_all_that_decides_bytes(library):
    assert library_versions(Model(base="./any"))[library]


def test_promptmills_version_is_that_of_this_copy(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "9.8"\n')
    monkeypatch.setattr(identity, "PROJECT", tmp_path / "pyproject.toml")
    assert library_versions(Model(base="./any"))["promptmill"] == "9.8"


@pytest.fixture
def lora(tmp_path):
    folder = tmp_path / "lora"
    folder.mkdir()
    for name in ("pytorch_lora_weights.safetensors", "b.safetensors", "a.bin"):
        (folder / name).write_text(name)
    return folder


def test_a_lora_is_the_file_that_is_loaded_and_nothing_beside_it(lora):
    usual, named = LoraWeights(name="x", source=str(lora)), LoraWeights(name="x", source=str(lora), weight_name="b.safetensors")
    first, second = source_identity(usual), source_identity(named)
    assert first != second
    (lora / "a.bin").write_text("other")
    (lora / "config.json").write_text("{}")
    (lora / "b.safetensors").write_text("other")
    assert source_identity(usual) == first and source_identity(named) != second
    alone = LoraWeights(name="x", source=str(lora / "b.safetensors"))
    assert source_identity(alone) == source_identity(named)


@pytest.mark.parametrize("kind", [LoraWeights, TextualInversion])
def test_a_file_that_is_no_safetensors_is_refused_whatever_it_is_called(tmp_path, kind):
    (tmp_path / "weights.model").write_text("x")
    name = {"name": "x"} if kind is LoraWeights else {"token": "x"}
    with pytest.raises(ModelError, match=r"weights.model is no .safetensors file, and others are not read: pickles can run code"):
        source_identity(kind(source=str(tmp_path / "weights.model"), **name))


@pytest.mark.parametrize(
    ("left", "says"),
    [
        ([], "has no pytorch_lora_weights.safetensors, nor any .safetensors"),
        (["b.safetensors", "c.safetensors"], "it has b.safetensors, c.safetensors: name one of them as weight_name"),
    ],
)
def test_a_lora_that_is_not_there_or_cannot_be_told_from_others_is_refused(lora, left, says):
    shutil.rmtree(lora)
    lora.mkdir()
    for name in left:
        (lora / name).write_text(name)
    with pytest.raises(ModelError, match=says):
        source_identity(LoraWeights(name="x", source=str(lora)))


def test_weights_behind_a_link_count_and_what_cannot_be_loaded_does_not(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(ROOT / "embedded/weights/pipeline", folder)
    shutil.move(folder / "unet", tmp_path / "elsewhere")
    (folder / "unet").symlink_to(tmp_path / "elsewhere")
    model = Model(base=str(folder))

    def whole():
        return model_identity(model, CLIP)["model.base"]

    first = whole()
    assert first == model_identity(BASE, CLIP)["model.base"]
    (folder / "unet" / "diffusion_pytorch_model.bin").write_text("a pickle")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "notes.json").write_text("{}")
    assert whole() == first
    config = tmp_path / "elsewhere" / "config.json"
    config.write_text(config.read_text() + " ")
    assert whole() != first


def test_what_makes_a_text_of_a_prompt_is_part_of_what_a_folder_is(tmp_path):
    # A chat template of a language model decides what the model reads; a folder without one is what it was before.
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    without = source_identity(Weights(source=str(tmp_path)))
    (tmp_path / "chat_template.jinja").write_text("{{ prompt }}")
    first = source_identity(Weights(source=str(tmp_path)))
    (tmp_path / "chat_template.jinja").write_text("Draw {{ prompt }}")
    assert len({without, first, source_identity(Weights(source=str(tmp_path)))}) == 3


def saved_as(folder, name):
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    return Model(base=str(folder))


@pytest.mark.parametrize(
    ("name", "further"),
    [("KolorsPipeline", {"sentencepiece"}), ("PRXPipeline", {"ftfy"}), ("StableDiffusionPipeline", set())],
)
def test_the_versions_are_also_of_what_reads_the_prompts_of_a_family_alone(tmp_path, name, further):
    usual, its = library_versions(Model(base="./any")), library_versions(saved_as(tmp_path / "base", name))
    assert its.keys() - usual.keys() == further and all(its[library] for library in further)
