"""A base of SDXL with its refiner: equal to the two pipelines of plain diffusers, free of companions, refused where it misfits."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from transformers import CLIPTextModelWithProjection

from promptmill.configs.loading import load
from promptmill.configs.model import LoraWeights
from promptmill.configs.parameters import Lora
from promptmill.configs.weights import PartWeights, RefinerWeights
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.models.identity import model_identity
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.evaluations import evaluations
from promptmill.pipelines.work.units import Placed, Unit
from tests.pipelines import tiny, tiny_unets
from tests.pipelines.companions import latents
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.plain import JOB_SEED, MODES, request
from tests.pipelines.plain_calls import Plain, asked, loaded, pixels_of

SDXL = Plain({"txt2img": "StableDiffusionXLPipeline", "img2img": "StableDiffusionXLImg2ImgPipeline"})
SWITCH = 0.7

# Steps, guidance scale and rescale, prompt, negative prompt and scheduler; some noise is drawn at every step.
ASKED = [
    (5, 1.0, 0.0, "a small red circle", "blue", "euler"),
    (6, 4.0, 0.0, "a green circle at the left", "", "euler_a"),
    (6, 4.0, 0.0, "a square", "", "euler_a"),
    (9, 7.0, 0.5, "a large blue square at the left of a small green circle", "blue and red", "ddim"),
    (7, 7.0, 0.0, "a circle", "red", "dpmpp_2m"),
    (8, 3.0, 0.0, "a circle and a square", "", "model"),
    (10, 4.0, 0.0, "a small red circle", "", "dpmpp_2m_sde_karras"),
]
MIXED = [
    request(
        f"r{number}",
        steps=steps,
        guidance_scale=scale,
        guidance_rescale=rescale,
        prompt=prompt,
        negative_prompt=negative,
        scheduler=scheduler,
    )
    for number, (steps, scale, rescale, prompt, negative, scheduler) in enumerate(ASKED)
]
MIXED += [replace(MIXED[n], id=f"img2img {n}", mode="img2img", **MODES["img2img"]) for n in (1, 3, 5)]


@pytest.fixture(scope="module")
def refiner(folder, made):
    """A refiner with the base's scheduler, as published ones are, and without what is the base's."""
    place = tiny_unets.refiner(folder / "refiner")
    shutil.copy(made("sdxl") / "scheduler" / "scheduler_config.json", place / "scheduler")
    edit(place / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])
    for part in ("text_encoder_2", "vae"):
        shutil.rmtree(place / part)
    return place


def refined(folder, base, refiner, **options):
    weights = RefinerWeights(source=str(refiner), switch=SWITCH)
    return model_of(folder, **{"base": str(base), "controlnets": {}, "refiner": weights, **options})


@pytest.fixture(scope="module")
def engine(folder, made, refiner):
    return Engine(refined(folder, made("sdxl"), refiner), JOB_SEED, Roots((str(folder),)))


def render_refined(one, base, refiner, folder, dtype=torch.float32, lora=None, **more):
    """Candidates that fill a batch by the two pipelines as diffusers documents them, the rows of each, and of a candidate."""
    count = SDXL.fills(one, BATCH)
    first, rows = loaded(SDXL.pipelines[one.mode], base, one, BATCH, dtype=dtype)
    shared = {"vae": first.vae, "text_encoder_2": first.text_encoder_2}
    second, later = loaded("StableDiffusionXLImg2ImgPipeline", refiner, one, BATCH, dtype=dtype, **shared)
    if one.loras:
        first.load_lora_weights(lora, adapter_name="style")
        first.set_adapters(["style"], [one.loras[0].scale])
    said = asked(SDXL, one, count, folder) | {"guidance_rescale": one.guidance_rescale} | more
    sized = {} if one.init_image else {"width": one.width, "height": one.height}
    whole = {name: value for name, value in said.items() if name not in ("width", "height")} | sized
    latents = first(**whole | {"output_type": "latent"}, denoising_end=SWITCH).images
    said = {name: value for name, value in said.items() if name not in ("width", "height", "strength", "image")}
    images = second(**said, image=latents, denoising_start=SWITCH).images
    return pixels_of(images, one, folder), sum(rows) // count, sum(later) // count


def test_a_mixed_unit_makes_the_bits_and_takes_the_rows_of_the_two_pipelines(engine, folder, made, refiner):
    counting = read_facts(refined(folder, made("sdxl"), refiner)).counting
    for one, outcome in zip(MIXED, render(engine, *MIXED), strict=True):
        theirs, before, after = render_refined(one, made("sdxl"), refiner, folder)
        np.testing.assert_array_equal(pixels(outcome), theirs[: one.candidates], err_msg=str(one))
        assert before and after
        assert {made.evaluations for made in outcome.candidates} == {before + after} == {evaluations(one, counting)}, one


def test_by_every_scheduler_that_fits_too(engine, folder, made, refiner):
    facts = read_facts(refined(folder, made("sdxl"), refiner))
    left = [name for name in facts.schedulers if name not in {one.scheduler for one in MIXED}]
    some = [request(name, scheduler=name, steps=10 + number % 2, candidates=1) for number, name in enumerate(left)]
    for one, outcome in zip(some, render(engine, *some), strict=True):
        theirs, before, after = render_refined(one, made("sdxl"), refiner, folder)
        np.testing.assert_array_equal(pixels(outcome), theirs[:1], err_msg=one.scheduler)
        assert before and before + after == evaluations(one, facts.counting), one.scheduler


def test_companions_never_matter(engine):
    with latents(engine) as together:
        images = [pixels(outcome) for outcome in render(engine, *MIXED)]
    with latents(engine) as turned:
        np.testing.assert_array_equal([pixels(outcome) for outcome in render(engine, *MIXED[::-1])][::-1], images)
    with latents(engine) as alone:
        for one, wanted in zip(MIXED, images, strict=True):
            np.testing.assert_array_equal(pixels(render(engine, one)[0]), wanted, err_msg=str(one))
    assert sorted(together) == sorted(turned) == sorted(alone)
    assert len(set(together)) == len(together) == sum(one.candidates for one in MIXED)


def test_in_bf16_and_at_sizes_that_are_no_squares_images_are_those_of_plain_diffusers(folder, made, refiner):
    narrow = Engine(refined(folder, made("sdxl"), refiner, dtype="bfloat16"), JOB_SEED, Roots((str(folder),)))
    some = [replace(one, width=64, height=32, candidates=1) for one in MIXED[:2]]
    for one, outcome in zip(some, render(narrow, *some), strict=True):
        theirs, *_ = render_refined(one, made("sdxl"), refiner, folder, torch.bfloat16)
        np.testing.assert_array_equal(pixels(outcome), theirs[:1])


def test_the_refiner_changes_images_and_has_the_texts_that_the_base_has(engine, folder, made):
    some = [replace(one, id=f"{one.id} again", prompt=f"{one.prompt}, again") for one in MIXED]
    alone = Engine(model_of(folder, base=str(made("sdxl")), controlnets={}), JOB_SEED, Roots((str(folder),)))
    encoded = [text.joined.rows for text in engine.path.texts]
    for with_it, without in zip(render(engine, *some), render(alone, *some), strict=True):
        assert (np.array(pixels(with_it)) != pixels(without)).any()
    more = [text.joined.rows - before for text, before in zip(engine.path.texts, encoded, strict=True)]
    assert 0 < max(more) <= max(text.joined.rows for text in alone.path.texts)


def test_both_denoisers_have_full_batches(engine):
    some = [replace(MIXED[n % len(MIXED)], id=f"r{n}", candidates=1, steps=5 + n % 4) for n in range(24)]
    joined = (engine.path.denoiser, *engine.path.refiners)
    for one in joined:
        one.rows = one.calls = 0
    assert all(outcome.failure is None for outcome in render(engine, *some))
    for one in joined:
        assert one.rows / (one.calls * one.shape) > 0.8
    assert engine.path.share > 0.85


def test_a_schedule_that_leaves_one_of_the_two_no_step_fails_its_request_alone(engine):
    (fine, alone), wrong = (
        MIXED[:2],
        (
            replace(MIXED[0], id="one", steps=1),
            replace(MIXED[0], id="few", steps=3, scheduler="lcm"),
            replace(MIXED[-1], id="weak", strength=0.3),
        ),
    )
    outcomes = render(engine, fine, *wrong, alone)
    assert [outcome.failure and outcome.failure.message for outcome in outcomes] == [
        None,
        "ValueError: of 1 steps none is before model.refiner.switch 0.7; take more steps, or another switch",
        "ValueError: of 3 steps none is after model.refiner.switch 0.7; take more steps, or another switch",
        "ValueError: of 2 steps none is before model.refiner.switch 0.7; take more steps, a higher strength, or another switch",
        None,
    ]


@pytest.mark.parametrize("mode", ["txt2img", "img2img"])
def test_previews_before_the_switch_are_the_bases_and_later_ones_come_to_the_image(engine, folder, made, mode):
    wanted = replace(MIXED[1], mode=mode, **MODES[mode], scheduler="euler", steps=12, candidates=1)
    alone = Engine(model_of(folder, base=str(made("sdxl")), controlnets={}), JOB_SEED, Roots((str(folder),)))

    def taken(steps):
        return int(steps * (wanted.strength or 1))

    def previewed(engine, steps):
        (outcome,) = engine.render(Unit(0, 0, (Placed(0, wanted, preview=steps),))).outcomes
        assert [made.evaluations for made in outcome.candidates] == [2 * taken(steps or wanted.steps)]
        return pixels(outcome)[0].astype(int)

    before = engine.model.refiner.steps_before(engine.model.scheduler("euler"), wanted.steps, wanted.strength)
    last = max(steps for steps in range(wanted.steps) if taken(steps) == before)
    assert 3 < last < wanted.steps - 2
    for steps in (3, last):
        np.testing.assert_array_equal(previewed(engine, steps), previewed(alone, steps))
    final = previewed(engine, None)
    # The last step of Euler's takes the prediction itself.
    assert abs(previewed(engine, wanted.steps) - final).max() <= 1
    assert 0 < abs(previewed(engine, last + 2) - final).mean() < abs(previewed(engine, 3) - final).mean()


def saved_lora(base, place):
    """A LoRA of the UNet and of the second text encoder, which the refiner shares."""
    parts = {"unet": UNet2DConditionModel, "text_encoder_2": CLIPTextModelWithProjection}
    layers = {}
    for name, kind in parts.items():
        part = kind.from_pretrained(base, subfolder=name)
        torch.manual_seed(9)
        part.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v", "q_proj", "v_proj"], init_lora_weights=False))
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(part)
    StableDiffusionXLPipeline.save_lora_weights(place, **layers)
    return place


def test_loras_adapt_the_base_and_the_text_encoder_that_both_share(folder, made, refiner, tmp_path):
    place = saved_lora(made("sdxl"), tmp_path / "style")
    model = refined(folder, made("sdxl"), refiner, loras=(LoraWeights(name="style", source=str(place)),), clip_skip=1)
    check_fits(model)
    adapted = Engine(model, JOB_SEED, Roots((str(folder),)))
    scales = (None, 1.0, 0.4)
    some = [
        replace(MIXED[n], id=f"{n} {scale}", loras=(Lora(name="style", scale=scale),) if scale else ())
        for n in (1, 3)
        for scale in scales
    ]
    images = []
    for one, outcome in zip(some, render(adapted, *some), strict=True):
        theirs, *_ = render_refined(one, made("sdxl"), refiner, folder, lora=str(place), clip_skip=1)
        np.testing.assert_array_equal(pixels(outcome), theirs[: one.candidates], err_msg=one.id)
        images += [picture.tobytes() for picture in theirs]
    assert len({*images}) == len(images)


def test_what_the_refiner_predicts_is_its_own_and_the_schedule_is_the_bases(folder, made, refiner):
    base = shutil.copytree(made("sdxl"), folder / "velocity")
    edit(base / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    (outcome,) = render(Engine(refined(folder, base, refiner), JOB_SEED, Roots((str(folder),))), MIXED[5])
    theirs, *_ = render_refined(MIXED[5], base, refiner, folder)
    np.testing.assert_array_equal(pixels(outcome), theirs[:2])
    spaced = shutil.copytree(refiner, folder / "spaced")
    edit(spaced / "scheduler" / "scheduler_config.json", timestep_spacing="trailing", _class_name="DDIMScheduler")
    (same,) = render(Engine(refined(folder, base, spaced), JOB_SEED, Roots((str(folder),))), MIXED[5])
    np.testing.assert_array_equal(pixels(same), theirs[:2])


def edit(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_base_with_a_refiner_begins_with_text_and_takes_the_schedulers_whose_steps_can_be_divided(folder, made, refiner):
    model = refined(folder, made("sdxl"), refiner)
    check_fits(model)
    facts = read_facts(model)
    assert facts.modes == facts.rescaled == ("txt2img", "img2img")
    without = read_facts(model_of(folder, base=str(made("sdxl")), controlnets={})).schedulers
    assert {*without} - {*facts.schedulers} == {"heun", "kdpm2", "kdpm2_a", "pndm"}
    base = shutil.copytree(made("sdxl"), folder / "heun")
    edit(base / "scheduler" / "scheduler_config.json", _class_name="HeunDiscreteScheduler")
    edit(base / "model_index.json", scheduler=["diffusers", "HeunDiscreteScheduler"])
    assert "model" not in read_facts(refined(folder, base, refiner)).schedulers


# By the part whose config differs, what is other in it, and what is said.
MISFITS = {
    ("refiner", "model_index.json", "_class_name", "FluxPipeline"): "refiner is a FluxPipeline, and only SDXL's refiner is served",
    ("refiner", "model_index.json", "requires_aesthetics_score", False): "takes no aesthetics score, .*; is it a base",
    ("refiner", "unet/config.json", "cross_attention_dim", 32): "takes text embeddings of 32 values, and those of .* have 16",
    ("refiner", "unet/config.json", "addition_time_embed_dim", 4): "takes embeddings of 36 values for whole texts, .* have 16",
    ("refiner", "unet/config.json", "in_channels", 9): "takes latents of 9 channels, and those of .* have 4",
    ("refiner", "scheduler/scheduler_config.json", "beta_end", 0.02): "its beta_end is 0.02, the base's is 0.012",
    (
        "base",
        "model_index.json",
        "_class_name",
        "StableDiffusionPipeline",
    ): "for a base of SDXL, .* is a StableDiffusionPipeline",
    ("base", "model_index.json", "requires_aesthetics_score", True): "for a base of SDXL, and .* is a refiner itself; leave",
    ("base", "scheduler/scheduler_config.json", "_class_name", "EDMEulerScheduler"): "has not the noise that SDXL's refiner",
    ("base", "unet/config.json", "time_cond_proj_dim", 8): "the base is distilled from guidance",
}


@pytest.mark.parametrize("other", MISFITS, ids=lambda other: f"{other[0]}-{other[2]}")
def test_a_refiner_that_does_not_fit_is_one_line_before_anything_is_loaded(folder, made, refiner, tmp_path, other):
    which, file, key, value = other
    place = shutil.copytree({"base": made("sdxl"), "refiner": refiner}[which], tmp_path / which)
    edit(place / file, **{key: value})
    both = {"base": made("sdxl"), "refiner": refiner} | {which: place}
    with pytest.raises(ModelError, match=f"^model.refiner: .*{MISFITS[other]}"):
        check_fits(refined(folder, **both))


def test_a_folder_that_is_no_model_and_a_distilled_denoiser_are_one_line_too(folder, made, refiner, tmp_path):
    with pytest.raises(ModelError, match=r"model\.refiner: .* has no model_index.json"):
        check_fits(refined(folder, made("sdxl"), refiner / "unet"))
    tiny.unet(**tiny.SDXL_UNET, time_cond_proj_dim=8).save_pretrained(tmp_path / "lcm")
    with pytest.raises(ModelError, match=r"model\.refiner: the base is distilled from guidance"):
        check_fits(refined(folder, made("sdxl"), refiner, denoiser=PartWeights(source=str(tmp_path / "lcm"))))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("controlnets", {"canny": {"source": "./canny"}}),
        ("quantize", {"text_encoder_2": "int8"}),
        ("references", {"style": {"source": "./style", "weight_name": "style.safetensors"}}),
    ],
)
def test_what_does_not_go_with_a_refiner_is_said_by_the_config(folder, made, refiner, name, value):
    with pytest.raises(ValueError, match=f"a refiner does not go with {name} yet"):
        refined(folder, made("sdxl"), refiner, **{name: value})


def test_a_refiner_is_told_by_its_content_and_its_switch_and_changes_no_plan_that_has_none(folder, made, refiner):
    model, ranking = refined(folder, made("sdxl"), refiner), load("embedded", []).ranking
    assert model.weights()["model.refiner"] == ("refiner", model.refiner)
    identity = model_identity(model, ranking)
    assert identity["model.refiner"] != identity["model.base"]
    assert model.model_dump()["refiner"]["switch"] == SWITCH
    assert "refiner" not in model_of(folder).model_dump()
