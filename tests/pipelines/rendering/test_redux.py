"""Reference images beside Flux (Redux): each row's own, equal to diffusers' prior and pipeline, and free of companions."""

from dataclasses import replace
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessor

from promptmill.configs.parameters import Defaults, Reference
from promptmill.configs.weights import ReferenceWeights
from promptmill.manifests.images import Roots
from promptmill.manifests.requests import make_request
from promptmill.manifests.rows import Row, RowError
from promptmill.manifests.rules import Rules
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.redux import ReduxReferences
from promptmill.pipelines.rendering.tuning import tune
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.units import Placed
from tests.pipelines import tiny_adapters
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.in_pieces import in_pieces
from tests.pipelines.plain import JOB_SEED, MODES, request
from tests.pipelines.plain_calls import asked, loaded, pixels_of
from tests.pipelines.plain_families import FAMILIES
from tests.pipelines.tiny_families import MAKERS

FIRST, SECOND = Reference(type="redux", image="a.png", scale=1.0), Reference(type="more", image="b.png", scale=0.4)
GIVEN = [(FIRST,), (), (SECOND,), (FIRST, SECOND), (FIRST.model_copy(update={"image": "b.png", "scale": 0.7}),)]
LED = {"true_cfg_scale": 2.0, "negative_prompt": "blue"}
TEXTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


@pytest.fixture(scope="module")
def base(folder):
    return MAKERS["flux-dev"](folder / "flux-for-redux")


@pytest.fixture(scope="module")
def model(folder, base):
    redux = tiny_adapters.redux(folder / "redux")
    given = model_of(folder, base=str(base), controlnets={})
    references = dict.fromkeys(("redux", "more"), ReferenceWeights(source=str(redux)))
    return given.model_copy(update={"references": references})


@pytest.fixture(scope="module")
def engine(folder, model):
    check_fits(model)
    engine = Engine(model, JOB_SEED, Roots((str(folder),)))
    yield engine
    engine.close()


def mixed():
    """Requests of all modes that differ in steps, prompts, and in how many references they have, of which images and scales."""
    return [
        request(f"{mode}-{n}", mode=mode, references=given, steps=2 + n % 2, scheduler="euler", **MODES[mode])
        for mode in ("txt2img", "img2img", "inpaint")
        for n, given in enumerate(GIVEN)
    ] + [request(f"led-{n}", references=given, steps=2, scheduler="euler", **LED) for n, given in enumerate(GIVEN)]


def plainly(one, base, redux, folder):
    """The candidates of a request by diffusers' prior, with the text encoders of the base, and its pipeline."""
    plain = FAMILIES["flux-dev"]
    pipeline, _ = loaded(plain.pipelines[one.mode], base, one, BATCH)
    said = asked(plain, one, BATCH, folder)
    if one.references:
        prior = diffusers.FluxPriorReduxPipeline.from_pretrained(redux, **{name: getattr(pipeline, name) for name in TEXTS})
        images, scales = zip(*((Image.open(folder / given.image), given.scale) for given in one.references), strict=True)
        texts = {"prompt": [said.pop("prompt")[0]] * len(images)}
        prior.image_encoder.forward = in_pieces(prior.image_encoder.forward, 1)
        prior.image_embedder.forward = in_pieces(prior.image_embedder.forward, 1)
        made = prior([*images], **texts, prompt_embeds_scale=[*scales], pooled_prompt_embeds_scale=[*scales])
        said |= {name: torch.cat([value] * BATCH) for name, value in made.items()}
    return pixels_of(pipeline(**said).images, one, folder)[: one.candidates]


def test_images_with_references_are_those_of_plain_diffusers_in_a_mixed_unit(engine, base, folder):
    some = mixed()
    for one, outcome in zip(some, render(engine, *some), strict=True):
        np.testing.assert_array_equal(pixels(outcome), plainly(one, base, folder / "redux", folder), err_msg=str(one))


def test_where_plain_diffusers_raises_beside_true_guidance_a_row_is_refused(model, base, folder):
    facts = read_facts(model)
    for mode in ("txt2img", "img2img", "inpaint"):
        images = {name: value for name, value in MODES[mode].items() if name != "strength"}
        row = {"prompt": "a", "references": [FIRST.model_dump(exclude_none=True)], **LED, **images}
        rules = Rules(Defaults(width=64, height=64, scheduler="euler"), references=("redux",), reading=facts.reading)
        rules = replace(rules, true_cfg=facts.true_cfg, further=facts.further, modes=facts.modes)
        one = request(mode=mode, references=(FIRST,), steps=2, scheduler="euler", **LED, **MODES[mode])
        if mode == "txt2img":
            assert make_request(Row("m", 1, row), 1, rules).is_led
            continue
        with pytest.raises(RowError, match="true_cfg_scale: with references of a Redux only in txt2img"):
            make_request(Row("m", 1, row), 1, rules)
        with pytest.raises(RuntimeError, match="must match the size"):
            plainly(one, base, folder / "redux", folder)


def test_companions_never_matter_to_images_with_references(engine):
    some = mixed()
    together = [pixels(outcome) for outcome in render(engine, *some)]
    np.testing.assert_array_equal(together, [pixels(outcome) for outcome in render(engine, *some[::-1])][::-1])
    np.testing.assert_array_equal(together, [pixels(render(engine, one)[0]) for one in some])


def test_a_reference_and_its_scale_have_an_effect(engine):
    some = [request(f"r{n}", seed=1, candidates=1, steps=2, scheduler="euler", references=given) for n, given in enumerate(GIVEN)]
    made = {pixels(outcome)[0].tobytes() for outcome in render(engine, *some)}
    assert len(made) == len(GIVEN)


def test_what_is_no_redux_or_for_another_base_is_refused_in_one_line(model, base, folder):
    for weights, said in (
        (ReferenceWeights(source=str(base)), "is no Redux: name the folder of a FluxPriorReduxPipeline, without a weight_name"),
        (
            ReferenceWeights(source=str(folder / "redux"), weight_name="a.safetensors"),
            "adapters read images through a CLIPVision",
        ),
        (ReferenceWeights(source=str(tiny_adapters.redux(folder / "wider", 64))), "is for another base model: its txt_in_features"),
    ):
        with pytest.raises(ModelError, match=said):
            check_fits(model.model_copy(update={"references": {"redux": weights}}))


def test_a_batch_is_tuned_with_a_row_that_has_references(folder, model):
    placed = Placed(0, request(references=(FIRST,), scheduler="euler"))
    found = tune(model, placed, JOB_SEED, Roots((str(folder),)), (1,))
    assert found.batch == 1 and found.trials[0].images_s > 0


def test_flux_reads_no_embeddings_of_faces(model):
    redux = ReferenceWeights(source=model.references["redux"].source, kind="face")
    with pytest.raises(ModelError, match=r"no embeddings of faces; set model\.references\.redux\.kind to image"):
        check_fits(model.model_copy(update={"references": {"redux": redux}}))


def test_priors_that_read_pictures_of_different_kinds_are_one_line(model):
    sides = {"one": {"height": 32, "width": 32}, "other": {"height": 64, "width": 64}}
    priors = {name: SimpleNamespace(feature_extractor=SiglipImageProcessor(size=side)) for name, side in sides.items()}
    with pytest.raises(ModelError, match=r"^model\.references: one, other: read pictures of different kinds"):
        ReduxReferences(priors, torch.device("cpu"))
    assert ReduxReferences({"one": priors["one"], "same": priors["one"]}, torch.device("cpu"))
