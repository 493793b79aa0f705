import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from promptmill.configs.schema import Ranking
from promptmill.pipelines.models.identity import model_identity, pinned
from promptmill.pipelines.models.scorer_sources import check_scorers
from promptmill.pipelines.scoring.clip import load_clip
from promptmill.pipelines.scoring.head import Concepts
from promptmill.pipelines.scoring.scorers import load_scorers
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines.models.test_identity import BASE
from tests.pipelines.scoring import tiny_clip, tiny_preference

BATCH = 4
RNG = np.random.default_rng(0)
IMAGES = [
    RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(32, 32), (40, 32), (64, 100), (32, 32), (17, 90), (24, 24)]
]
PROMPTS = ["a cat", "a dog", "a small red circle at the left", "a cat", "", "word " * 40]
WIDTH = tiny_clip.CONFIG["embed_dim"]


def laion(width, activation=nn.Identity):
    """The network of christophschuhmann/improved-aesthetic-predictor."""
    sizes = [(width, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]
    between = [[nn.Linear(*size), activation(), nn.Dropout(0.2)] for size in sizes[:3]]
    layers = [layer for some in between for layer in some if not isinstance(layer, nn.Identity)]
    return nn.Sequential(*layers, nn.Linear(*sizes[3]), activation(), nn.Linear(*sizes[4])).eval()


def as_laion_saves(network):
    return {f"layers.{name}": tensor for name, tensor in network.state_dict().items()}


def concepts(width):
    names = ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights")
    generator = torch.Generator().manual_seed(3)
    # Thresholds that some random directions reach and others do not.
    made = [torch.randn(17, width, generator=generator), torch.linspace(0.5, 0.9, 17), torch.randn(3, width, generator=generator)]
    return dict(zip(names, [*made, torch.full((3,), 0.2)], strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and heads of every kind."""
    place = tmp_path_factory.mktemp("scorers")
    tiny_clip.save(place / "clip")
    tiny_clip.save(place / "other", tiny_clip.OBLONG)
    tiny_preference.save(place / "pick")
    torch.manual_seed(1)
    mlp, line = laion(WIDTH), nn.Linear(WIDTH, 1)
    save_file(as_laion_saves(mlp), place / "mlp.safetensors")
    save_file({name: tensor.half() for name, tensor in line.state_dict().items()}, place / "line.safetensors")
    save_file({**concepts(tiny_preference.WIDTH), "vision_model.weight": torch.zeros(2)}, place / "concepts.safetensors")
    return place


def ranking(folder, *scorers, **more):
    declared = [{"name": f"s{number}", **scorer} for number, scorer in enumerate(scorers)]
    return Ranking(model=f"local-dir:{folder / 'clip'}", batch=BATCH, scorers=declared, **more)


def head(file, **more):
    return {"kind": "head", "source": str(file), **more}


def everything(folder):
    return ranking(
        folder,
        head(folder / "mlp.safetensors"),
        {"kind": "preference", "source": str(folder / "pick")},
        head(folder / "line.safetensors", reads="s3", output="sigmoid"),
        {"kind": "open_clip", "model": f"local-dir:{folder / 'other'}"},
        head(folder / "concepts.safetensors", reads="s1"),
    )


@pytest.fixture(scope="module")
def scorers(folder):
    return load_scorers(everything(folder), "cpu")


@pytest.fixture(scope="module")
def scored(scorers):
    return scorers.score(PROMPTS, IMAGES)


def column(scored, name):
    return np.array([one.others[name] for one in scored], np.float32)


def padded(items):
    """In batches of the fixed shape, the last filled up with its last."""
    filled = [*items, *[items[-1]] * (-len(items) % BATCH)]
    return [filled[at : at + BATCH] for at in range(0, len(filled), BATCH)]


def test_clip_is_scored_as_without_others(folder, scored):
    alone = load_scorers(ranking(folder), "cpu").score(PROMPTS, IMAGES)
    assert [one.score for one in alone] == [one.score for one in scored]
    assert all(one.others == {} for one in alone)
    assert all(np.array_equal(a.embedding, b.embedding) for a, b in zip(alone, scored, strict=True))


def test_another_open_clip_model_scores_as_it_would_rank(folder, scored):
    alone = load_clip(Ranking(model=f"local-dir:{folder / 'other'}", batch=BATCH), "cpu").score(PROMPTS, IMAGES)
    assert column(scored, "s3").tolist() == [np.float32(one.score) for one in alone]


def test_a_preference_score_is_what_plain_transformers_gives_at_the_same_batch_shape(folder, scorers, scored):
    model = CLIPModel.from_pretrained(folder / "pick").eval()
    processor = CLIPProcessor.from_pretrained(folder / "pick")
    pictures, words = [], []
    with torch.no_grad():
        for some in padded(IMAGES):
            pixels = torch.cat([processor(images=image, return_tensors="pt")["pixel_values"] for image in some])
            pictures.append(model.get_image_features(pixel_values=pixels).pooler_output)
        distinct = list(dict.fromkeys(PROMPTS))
        tokens = processor.tokenizer(
            [*distinct, *[distinct[-1]] * (16 - len(distinct))],
            padding="max_length", truncation=True, max_length=tiny_preference.LENGTH, return_tensors="pt",
        )  # fmt: skip
        words = nn.functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
        pictures = nn.functional.normalize(torch.cat(pictures)[: len(IMAGES)], dim=-1)
        wanted = model.logit_scale.exp() * (words[[distinct.index(prompt) for prompt in PROMPTS]] * pictures).sum(-1)
    assert np.array_equal(scorers.models["s1"].embed_images(IMAGES), pictures.numpy())
    assert column(scored, "s1") == pytest.approx(wanted.numpy(), rel=1e-6)
    assert abs(wanted).max() > 1


def test_prompts_score_as_padded_to_the_longest_of_a_batch(folder, scored):
    model, processor = CLIPModel.from_pretrained(folder / "pick").eval(), CLIPProcessor.from_pretrained(folder / "pick")
    made = processor(
        text=PROMPTS[:3], images=IMAGES[:3], padding=True, truncation=True, max_length=tiny_preference.LENGTH, return_tensors="pt"
    )
    with torch.no_grad():
        assert column(scored, "s1")[:3] == pytest.approx(model(**made).logits_per_image.diag().numpy(), abs=1e-4)


def test_an_aesthetic_head_is_its_network_on_the_unit_embedding(folder, scorers, scored):
    torch.manual_seed(1)
    mlp, line = laion(WIDTH), nn.Linear(WIDTH, 1).half().float()
    clip, other = (torch.from_numpy(model.embed_images(IMAGES)) for model in (scorers.clip, scorers.models["s3"]))
    with torch.no_grad():
        wanted = torch.cat([mlp(torch.stack(some)) for some in padded(list(clip))])[: len(IMAGES), 0]
        assert np.array_equal(column(scored, "s0"), wanted.numpy())
        assert column(scored, "s2") == pytest.approx(torch.sigmoid(line(other))[:, 0].numpy(), abs=1e-6)


def test_relu_stands_between_the_layers(folder):
    torch.manual_seed(1)
    network = laion(WIDTH, nn.ReLU)
    # Their relu variants keep the numbers of the layers, with gaps.
    save_file(as_laion_saves(network), folder / "relu.safetensors")
    loaded = load_scorers(ranking(folder, head(folder / "relu.safetensors", activation="relu")), "cpu")
    with torch.no_grad():
        wanted = network(torch.from_numpy(loaded.clip.embed_images(IMAGES)))[:, 0].numpy()
    assert column(loaded.score(PROMPTS, IMAGES), "s0") == pytest.approx(wanted, abs=1e-6)


def test_concepts_are_what_diffusers_safety_checker_takes_for_unsafe(scorers, scored):
    width = tiny_preference.WIDTH
    config = CLIPConfig(
        vision_config={"hidden_size": width, "num_attention_heads": 2, "num_hidden_layers": 1}, projection_dim=width
    )
    checker = StableDiffusionSafetyChecker(config)
    checker.load_state_dict(concepts(width), strict=False)
    # Only what comes behind the tower is compared.
    checker.vision_model, checker.visual_projection = Pooled(), nn.Identity()
    embeddings = torch.nn.functional.normalize(torch.randn(200, width, generator=torch.Generator().manual_seed(0)))
    _, unsafe = checker.forward_onnx(embeddings, torch.zeros(200, 1, 1, 3))
    head = scorers.heads["s4"][1]
    ours = head.score(embeddings.numpy())
    assert np.array_equal(ours > 0, unsafe.numpy())
    assert 20 < unsafe.sum() < 180
    careless = dataclasses.replace(head, network=Concepts({n: t for n, t in concepts(width).items() if "special" not in n}))
    assert (careless.score(embeddings.numpy()) < ours).any()
    assert np.array_equal(column(scored, "s4"), head.score(scorers.models["s1"].embed_images(IMAGES)))


class Pooled(nn.Module):
    def forward(self, embeddings):
        return None, embeddings


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2], [1, 0, 1], [4, 4, 4, 4, 5]])
def test_scores_do_not_depend_on_companions(scorers, scored, order):
    again = scorers.score([PROMPTS[i] for i in order], [IMAGES[i] for i in order])
    assert [one.others for one in again] == [scored[i].others for i in order]
    assert scorers.score([], []) == []


def test_what_is_declared_is_identified_by_its_content(folder, tmp_path):
    before = model_identity(BASE, everything(folder))
    assert {name: value[:7] for name, value in before.items() if "scorers" in name} == dict.fromkeys(
        (f"ranking.scorers.s{number}" for number in range(5)), "sha256:"
    )
    torch.manual_seed(2)
    save_file(as_laion_saves(laion(WIDTH)), tmp_path / "mlp.safetensors")
    other = ranking(folder, head(tmp_path / "mlp.safetensors"))
    assert model_identity(BASE, other)["ranking.scorers.s0"] != before["ranking.scorers.s0"]
    assert pinned(other) == other
    assert set(model_identity(BASE, ranking(folder))) == {"model.base", "ranking.model"}


def saved(place, tensors):
    save_file(tensors, place)
    return head(place)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda at: saved(at, nn.Linear(99, 1).state_dict()), "s0: AT takes embeddings of 99 numbers, and those of clip have 24"),
        (lambda at: saved(at, concepts(99)), "takes embeddings of 99 numbers"),
        (lambda at: {**saved(at, concepts(WIDTH)), "output": "sigmoid"}, "activation and output are for layers"),
        (lambda at: saved(at, nn.Linear(WIDTH, 2).state_dict()), "its last layer has 2 outputs"),
        (lambda at: saved(at, {"0.weight": torch.zeros(3, WIDTH), "2.weight": torch.zeros(1, 4)}), "2.weight of shape 1x4 does"),
        (lambda at: saved(at, {"weight": torch.zeros(1, WIDTH), "norm": torch.zeros(3)}), "holds norm; a head is linear layers"),
        (lambda at: saved(at, {"bias": torch.zeros(1)}), "holds bias"),
        (lambda at: (at.write_bytes(pickle.dumps({})), head(at))[1], "is not a .safetensors file"),
        (lambda at: head(at), "no such folder"),
        (lambda at: {"kind": "preference", "source": str(at.parent)}, "holds no config.json"),
    ],
)  # fmt: skip
def test_a_head_that_does_not_fit_is_refused_at_the_plan_in_one_line(folder, tmp_path, made, says):
    at = tmp_path / "head.safetensors"
    with pytest.raises(ModelError) as caught:
        check_scorers(ranking(folder, made(at)))
    assert says.replace("AT", str(at)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda place: (place / "model.safetensors").rename(place / "pytorch_model.bin"), "pickles are not read"),
        (lambda place: (place / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda place: (place / "processor_config.json").unlink(), "holds no preprocessor_config.json"),
        (lambda place: (place / "config.json").write_text(json.dumps({"model_type": "blip"})), "is of the kind 'blip'"),
        (lambda place: (place / "config.json").write_text("{"), "config.json cannot be read"),
    ],
)  # fmt: skip
def test_a_preference_model_that_is_not_whole_is_refused_at_the_plan_in_one_line(folder, tmp_path, change, says):
    change(tiny_preference.save(tmp_path / "pick"))
    with pytest.raises(ModelError, match=says):
        check_scorers(ranking(folder, {"kind": "preference", "source": str(tmp_path / "pick")}))


def test_a_damaged_head_is_refused(folder, tmp_path):
    layer = nn.Linear(WIDTH, 1).state_dict()
    layer["weight"][0, 3] = torch.nan
    with pytest.raises(ModelError, match="weight holds numbers that are not finite"):
        load_scorers(ranking(folder, saved(tmp_path / "head.safetensors", layer)), "cpu")


def test_all_that_fits_is_found_to(folder):
    check_scorers(everything(folder))
