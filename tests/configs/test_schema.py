import pytest
from pydantic import ValidationError

from promptmill.configs.model import Kernels, LoraWeights, TextualInversion
from promptmill.configs.schema import Ranking

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"batch": 5},
        {"model": "ViT-B-32"},
        {"model": "ViT-B-32", "pretrained": "openai"},
        {"model": "ViT-L/14", "pretrained": "openai", "revision": COMMIT},
        {"model": "local-dir:./clip"},
        {"model": "local-dir:clip"},
        {"model": "hf-hub:owner/name", "revision": COMMIT},
    ],
)
def test_a_ranking_model_is_a_name_with_a_tag_or_a_folder_or_a_pinned_repository(given):
    ranking = Ranking(**given)
    assert Ranking.model_validate(ranking.model_dump(mode="json")) == ranking


def test_only_the_default_model_has_default_weights():
    assert Ranking().pretrained == Ranking(model="ViT-B-32").pretrained == "laion2b_s34b_b79k"
    assert Ranking(model="local-dir:./clip").pretrained is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": "ViT-L-14"}, "model ViT-L-14 needs pretrained, the open_clip tag of its weights"),
        ({"pretrained": None}, "model ViT-B-32 needs pretrained"),
        ({"model": "./clip"}, "model ./clip is a folder, which is written local-dir:./clip"),
        ({"model": "/clip", "pretrained": "openai"}, "which is written local-dir:/clip"),
        ({"model": "local-dir:"}, "model local-dir: names no folder"),
        ({"model": "local-dir:./clip", "pretrained": "openai"}, "pretrained openai is for a model given by name"),
        ({"model": "local-dir:./clip", "revision": COMMIT}, "local-dir:./clip is a local folder"),
        ({"model": "hf-hub:owner/name"}, "hf-hub:owner/name is a hub repository and needs a revision"),
        ({"model": "hf-hub:owner/name", "revision": "main"}, "string should match pattern"),
        ({"model": "hf-hub:owner/name", "revision": COMMIT.upper()}, "string should match pattern"),
        ({"model": "hf-hub:owner/name", "revision": COMMIT, "pretrained": "x"}, "pretrained x is for a model given by name"),
        ({"model": "hf-hub:name", "revision": COMMIT}, "not of the form hf-hub:owner/name; a folder is written local-dir:name"),
        ({"model": "hf-hub:./a", "revision": COMMIT}, "not of the form hf-hub:owner/name"),
        ({"model": ""}, "at least 1 character"),
        ({"min_score": float("nan")}, "finite number"),
        ({"batch": 0}, "greater than or equal to 1"),
    ],
)
def test_a_ranking_model_that_cannot_be_meant_is_refused_with_what_would_do(given, says):
    with pytest.raises(ValidationError) as caught:
        Ranking(**given)
    assert says.lower() in str(caught.value).lower()


ADAPTERS = {LoraWeights: {"name": "x"}, TextualInversion: {"token": "<x>"}}


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"weight_name": "x.bin"}, "only .safetensors files are read; pickles can run code"),
        ({"weight_name": "x.safetensors.bin"}, "only .safetensors files are read"),
        ({"weight_name": "x.SAFETENSORS"}, "only .safetensors files are read"),
        ({"weight_name": ""}, "only .safetensors files are read"),
        ({"weight_name": "../x.safetensors"}, "a file inside the source is meant"),
        ({"weight_name": "/x.safetensors"}, "a file inside the source is meant"),
        ({"source": "./x.bin"}, "only .safetensors files are read"),
        ({"source": "./x.pt"}, "only .safetensors files are read"),
    ],
)
def test_a_lora_or_inversion_that_is_no_safetensors_is_refused(kind, given, says):
    with pytest.raises(ValidationError) as caught:
        kind(**{"source": "./folder", **ADAPTERS[kind], **given})
    assert says in str(caught.value)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_lora_or_inversion_may_be_a_file_or_lie_in_a_folder(kind):
    assert kind(source="./x.safetensors", **ADAPTERS[kind]).file.endswith(".safetensors")
    assert kind(source="./x", weight_name="a/b.safetensors", **ADAPTERS[kind]).file == "a/b.safetensors"


def test_a_switch_of_kernels_is_of_a_plan_where_it_is_on():
    assert "merge_loras" not in Kernels().model_dump()
    assert Kernels(merge_loras=True).model_dump()["merge_loras"] is True
