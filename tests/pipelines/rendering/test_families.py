"""Every family without a UNet, by tiny models: equal to plain diffusers, and free of companions, in mixed units."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from promptmill.manifests.images import Roots
from promptmill.pipelines.models import families, family_sizes
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.rendering.conditioning import prepare
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.work.evaluations import evaluations, steps_of
from promptmill.pipelines.work.units import Placed, Unit
from tests.pipelines import plain_calls
from tests.pipelines.companions import latents, the_same_latents_whatever_the_companions
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.every_tiny import TINY
from tests.pipelines.plain import JOB_SEED, MODES, request
from tests.pipelines.plain_calls import Plain, render_family
from tests.pipelines.plain_families import FAMILIES
from tests.pipelines.plain_families import UNETS as FAMILIES_OF_UNETS
from tests.pipelines.tiny_readers import small_inputs

# Steps, guidance scale, prompt and negative prompt of the requests in each mode. Two may go through one call, with texts of lengths
# that transformers do not round up to the same.
ASKED = [
    (2, 1.0, "a small red circle", "blue"),
    (3, 4.0, "a green circle and " * 10 + "a square", ""),
    (3, 4.0, "a circle", ""),
    (5, 7.0, "a large blue square at the left of a small green circle", "blue and red"),
]


@pytest.fixture(scope="module")
def whole_sizes():
    """The sizes that two of diffusers' pipelines make of an aspect, before tests make them smaller."""
    from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_inpaint

    return pipeline_longcat_image_edit.calculate_dimensions, pipeline_qwenimage_edit_inpaint.calculate_dimensions


@pytest.fixture(scope="module", autouse=True)
def inputs_are_small(whole_sizes):
    with small_inputs():
        yield


@pytest.fixture(scope="module")
def engines(folder):
    """Returns the engine of a family by its name, and the folder of its model."""

    @cache
    def engine(name):
        base = TINY[name](folder / name)
        return Engine(model_of(folder, base=str(base), controlnets={}), JOB_SEED, Roots((str(folder),))), base

    return engine


def mixed(name):
    """Requests of all modes, steps, guidance scales, prompts and schedulers of a family, in one unit."""
    plain = FAMILIES[name]
    scales = [*ASKED, (2, plain.unguided, "a square", "")] if plain.unguided < 1 else ASKED
    asked = [(mode, *values) for values in scales for mode in plain.pipelines]
    return [
        request(
            f"r{number}",
            mode=mode,
            prompt=plain.prompt(prompt),
            negative_prompt=negative if plain.negative or (plain.values(number, mode).get("true_cfg_scale") or 0) > 1 else "",
            steps=steps,
            guidance_scale=scale,
            scheduler=plain.solvers(mode)[number % len(plain.solvers(mode))],
            **plain.values(number, mode),
        )
        for number, (mode, steps, scale, prompt, negative) in enumerate(asked)
    ]


@pytest.fixture(scope="module")
def units(engines):
    """Returns the outcomes of a family's mixed unit by the family's name, and the latents that were decoded."""

    @cache
    def unit(name):
        engine, _ = engines(name)
        with latents(engine) as together:
            return render(engine, *mixed(name)), together

    return unit


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mixed_unit_makes_the_bits_and_takes_the_rows_of_plain_diffusers(engines, units, folder, name):
    engine, base = engines(name)
    plain, some = FAMILIES[name], mixed(name)
    assert engine.path.denoiser.shape == plain.rows * BATCH
    counting = read_facts(model_of(folder, base=str(base), controlnets={})).counting
    for one, outcome in zip(some, units(name)[0], strict=True):
        theirs, rows = render_family(plain, one, plain.fills(one, BATCH), base, folder, BATCH)
        # A plan leaves out a strength that has no effect.
        assert evaluations(one if plain.has_strength(one.mode) else replace(one, strength=None), counting) == rows, one
        np.testing.assert_array_equal(pixels(outcome), theirs[: one.candidates], err_msg=str(one))
        assert {candidate.evaluations for candidate in outcome.candidates} == {rows}, one


@pytest.mark.parametrize("name", FAMILIES)
def test_in_bf16_and_at_sizes_that_are_no_squares_images_are_those_of_plain_diffusers(engines, folder, name):
    _, base = engines(name)
    plain = FAMILIES[name]
    mode = next(iter(plain.pipelines))
    side = plain.side or 64
    wide = {"width": max(side, 2 * plain.multiple), "height": max(side // 2, plain.multiple)}
    size = wide if mode == "txt2img" and not plain.fixed else {}
    some = [
        request(
            f"r{n}",
            prompt=plain.prompt(prompt),
            mode=mode,
            steps=n + 2,
            scheduler=plain.schedulers[0],
            candidates=1,
            **plain.values(n, mode) | size,
        )
        for n, prompt in enumerate(("a small red circle", "a green circle at the right"))
    ]
    engine = Engine(model_of(folder, base=str(base), controlnets={}, dtype="bfloat16"), JOB_SEED, Roots((str(folder),)))
    for one, outcome in zip(some, render(engine, *some), strict=True):
        theirs, _ = render_family(plain, one, plain.fills(one, BATCH), base, folder, BATCH, torch.bfloat16)
        np.testing.assert_array_equal(pixels(outcome), theirs[:1])


@pytest.mark.parametrize("name", FAMILIES)
def test_companions_never_matter(engines, units, name):
    engine, _ = engines(name)
    the_same_latents_whatever_the_companions(engine, mixed(name), *units(name))


def test_where_a_call_has_one_mask_rows_that_widen_their_pictures_have_calls_of_their_own(engines):
    engine, _ = engines("kandinsky22-inpainting")
    sides = ["left=16", "right=16", "top=16, overlap=0"]
    prior = {"prior_steps": 2, "prior_guidance_scale": 4.0}
    ways = {"mode": "inpaint", "init_image": "a.png", "steps": 3, "scheduler": "ddpm", **prior}
    some = [request(f"r{number}", outpaint=one, seed=number, **ways) for number, one in enumerate(sides)]
    with latents(engine) as together:
        outcomes = render(engine, *some)
    the_same_latents_whatever_the_companions(engine, some, outcomes, together)


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_share_a_call_unless_its_texts_are_padded_to_the_longest_or_it_makes_one_image(engines, name, monkeypatch):
    engine, _ = engines(name)
    sizes = []
    render_group = engine.path._render
    monkeypatch.setattr(engine.path, "_render", lambda group: sizes.append(len(group.members)) or render_group(group))
    plain = FAMILIES[name]
    scheduler = plain.schedulers[0]
    mode = next(iter(plain.pipelines))
    some = [
        request(f"r{n}", prompt=plain.prompt(prompt), candidates=1, scheduler=scheduler, mode=mode, **plain.values(0, mode))
        for n, prompt in enumerate(("a red square", "a"))
    ]
    assert all(outcome.failure is None for outcome in render(engine, *some))
    assert sizes == ([1, 1] if FAMILIES[name].apart or FAMILIES[name].single else [2])


@pytest.mark.parametrize("name", ["qwen-image-edit"])
def test_language_models_that_read_pictures_read_each_rows_own(engines, folder, name):
    engine, base = engines(name)
    sizes = [{"width": 64, "height": 32}, {"width": 32, "height": 64}]
    some = [
        request(f"{file}-{n}", mode="img2img", init_image=file, steps=2, scheduler="euler", seed=1, candidates=1, **size)
        for file in ("a.png", "b.png")
        for n, size in enumerate(sizes)
    ]
    made = [pixels(outcome)[0] for outcome in render(engine, *some)]
    assert (made[0] != made[2]).any()
    for one, mine in zip(some, made, strict=True):
        cut = folder / f"{one.width}-{one.init_image}"  # as a row's picture is brought to the row's size
        Image.fromarray(prepare(Image.open(folder / one.init_image), one.width, one.height)).save(cut)
        theirs, _ = render_family(FAMILIES[name], replace(one, init_image=cut.name), 1, base, folder, BATCH)
        np.testing.assert_array_equal(mine, theirs[0], err_msg=one.id)


def test_texts_in_quotes_are_read_by_letters_and_have_a_guider_of_their_own(engines, folder):
    engine, base = engines("hunyuan-image")
    prompts = ("a red circle", 'a red "circle"', 'a red "square"')
    some = [request(prompt, prompt=prompt, steps=4, seed=1, scheduler="model", candidates=1) for prompt in prompts]
    made = [pixels(outcome)[0] for outcome in render(engine, *some)]
    assert (made[1] != made[0]).any() and (made[1] != made[2]).any()
    for one, mine in zip(some, made, strict=True):
        theirs, _ = render_family(FAMILIES["hunyuan-image"], one, BATCH, base, folder, BATCH)
        np.testing.assert_array_equal(mine, theirs[0], err_msg=one.id)


def test_plain_hidream_renders_one_number_of_pixels_unless_its_attribute_says_another(engines, folder):
    _, base = engines("hidream")
    plain, asked = FAMILIES["hidream"], request(width=64, height=32, steps=1, scheduler="euler")
    assert render_family(plain, asked, 1, base, folder, 1)[0].shape == (1, 32, 64, 3)
    bent = replace(plain, sets={"default_sample_size": lambda request: 8})
    assert render_family(bent, asked, 1, base, folder, 1)[0].shape == (1, 32, 80, 3)


def test_the_size_that_a_pipeline_makes_of_another_is_known(whole_sizes):
    of_longcat, of_qwen = whole_sizes
    for size in [(1024, 1024), (1376, 768), (64, 64), (512, 768), (2048, 16), (720, 1280), (1008, 1040)]:
        assert family_sizes.about_a_million_pixels(*size) == of_longcat(1024 * 1024, size[0] / size[1])
        assert family_sizes.a_million_pixels(*size) == of_qwen(1024 * 1024, size[0] / size[1])[:2]


@pytest.mark.parametrize("name", FAMILIES)
def test_in_every_family_a_preview_costs_its_steps_and_the_last_one_is_the_image(engines, folder, name):
    engine, base = engines(name)
    plain = FAMILIES[name]
    counting = read_facts(model_of(folder, base=str(base), controlnets={})).counting
    scheduler = "euler" if "euler" in plain.fitting else "model"
    for mode in plain.pipelines:
        prompt = plain.prompt("a small red circle")
        one = request(prompt=prompt, mode=mode, scheduler=scheduler, steps=6, candidates=1, **plain.values(0, mode))
        one = one if plain.has_strength(mode) else replace(one, strength=None)  # as a plan leaves it out
        unit = Unit(0, 0, tuple(Placed(row, one, preview=steps) for row, steps in enumerate((3, 6, None))))
        outcomes = engine.render(unit).outcomes
        early, late, final = [outcome.failure or outcome.candidates[0] for outcome in outcomes]
        left = engine.model.family.steps_left
        # A preview's prior has all of its steps.
        prior = evaluations(one, counting) - evaluations(replace(one, prior_steps=None), replace(counting, inner=0))
        made_after = ((early, 3), (late, 6), (final, 6))
        taken = [(made.evaluations - prior) / steps_of(steps, one.strength, left) for made, steps in made_after]
        assert taken[0] == taken[1] == taken[2], taken
        # The last step of Euler's is the prediction. In inpainting the picture around the mask is put back after it.
        far = [abs(made.pixels.astype(int) - final.pixels).mean() for made in (early, late)]
        assert far[1] < far[0] and (far[1] < 1 or mode == "inpaint"), (mode, far)


def test_texts_that_captions_ask_for_are_drawn_and_read_as_pictures(engines, folder):
    engine, base = engines("bria-fibo-2")
    asked = [["red"], ["blue"], ["red", "a large blue circle"]]
    captions = [{"short_description": "a circle", "text_render": [{"text": text} for text in some]} for some in asked]
    some = [
        request(f"r{n}", prompt=json.dumps(caption), steps=3, seed=1, scheduler="euler", candidates=1)
        for n, caption in enumerate(captions)
    ]
    made = [pixels(outcome)[0] for outcome in render(engine, *some)]
    assert len({image.tobytes() for image in made}) == 3
    for one, mine in zip(some, made, strict=True):
        theirs, _ = render_family(FAMILIES["bria-fibo-2"], one, 1, base, folder, BATCH)
        np.testing.assert_array_equal(mine, theirs[0], err_msg=one.prompt)


def test_every_family_of_the_table_has_a_tiny_model_and_the_other_way_round():
    classes = {name for plain in FAMILIES.values() for name in plain.pipelines.values()}
    entries = {max((begin for begin in families.FAMILIES if name.startswith(begin)), key=len, default=name) for name in classes}
    assert entries == families.FAMILIES.keys()


def test_chromas_inpainting_is_refused_since_plain_diffusers_raises(engines, folder):
    _, base = engines("chroma")
    inpainting = Plain({"inpaint": "ChromaInpaintPipeline"}, rows=1)
    with pytest.raises(AttributeError, match="guidance_embeds"):
        render_family(inpainting, request(mode="inpaint", scheduler="model", **MODES["inpaint"]), 1, base, folder, 1)


@pytest.mark.parametrize("name", ["krea2", "longcat", "ernie", "bria", "prx", "flux-control"])
def test_sides_are_multiples_of_what_the_vae_and_a_token_of_two_latents_make_of_them(engines, folder, name):
    _, base = engines(name)
    assert read_facts(model_of(folder, base=str(base), controlnets={})).multiple == 8 * 2


def test_plain_prx_makes_one_image_a_call_with_guidance(engines, folder, monkeypatch):
    _, base = engines("prx")
    monkeypatch.setattr(plain_calls, "with_a_timestep_each", lambda forward: forward)
    some = request(steps=2, scheduler="model", guidance_scale=4.0)
    assert len(render_family(FAMILIES["prx"], some, 1, base, folder, BATCH)[0]) == 1
    with pytest.raises(RuntimeError, match="must match the size"):
        render_family(FAMILIES["prx"], some, 3, base, folder, BATCH)


def test_priors_and_decoders_have_full_batches(engines):
    engine, _ = engines("kandinsky22")
    values = FAMILIES["kandinsky22"].values(0, "txt2img") | {"candidates": 1, "scheduler": "model"}
    some = [request(f"r{n}", **values | {"steps": 3 + n % 4, "prior_steps": 2 + n % 3}) for n in range(24)]
    joined = (*engine.path.priors, engine.path.denoiser)
    for one in joined:
        one.calls = one.rows = 0
    assert all(outcome.failure is None for outcome in render(engine, *some))
    assert len(joined) == 2 and all(one.rows > 0.85 * one.calls * one.shape for one in joined)


def test_kandinskys_img2img_takes_a_width_for_the_height_so_it_is_given_the_one_for_the_other(engines, folder):
    engine, base = engines("kandinsky22")
    plain = FAMILIES["kandinsky22"]
    Image.open(folder / "a.png").resize((32, 16)).save(folder / "wide.png")
    values = plain.values(0, "img2img") | {"init_image": "wide.png", "height": 16}
    one = request(mode="img2img", scheduler="model", candidates=1, **values)
    turned = replace(one, width=one.height, height=one.width)
    theirs, _ = render_family(plain, turned, plain.fills(one, BATCH), base, folder, BATCH)
    np.testing.assert_array_equal(pixels(render(engine, one)[0]), theirs[:1])
    assert theirs[0].shape == (16, 32, 3)


def test_below_a_guidance_scale_of_1_ldm_has_none(engines):
    engine, _ = engines("ldm")
    none, less = render(engine, *(request(f"r{n}", seed=7, scheduler="model", guidance_scale=n) for n in (1.0, 0.5)))
    np.testing.assert_array_equal(pixels(none), pixels(less))
    assert {made.evaluations for outcome in (none, less) for made in outcome.candidates} == {3}


@pytest.mark.parametrize("name", ["pixart-sigma", "hunyuandit"])
def test_schedulers_of_noise_make_the_bits_of_diffusers_in_transformers_too(engines, folder, name):
    engine, base = engines(name)
    solvers = ("dpmpp_sde", "kdpm2_a", "tcd", "dpmpp_2s_karras", "sa_solver", "unipc_karras")
    some = [request(solver, scheduler=solver, steps=4, candidates=1) for solver in solvers]
    for one, outcome in zip(some, render(engine, *some), strict=True):
        theirs, _ = render_family(FAMILIES[name], one, FAMILIES[name].fills(one, BATCH), base, folder, BATCH)
        np.testing.assert_array_equal(pixels(outcome), theirs[:1], err_msg=one.scheduler)


FLOWS = [name for name, plain in FAMILIES.items() if plain.follows_flow]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_schedulers_that_fit_are_those_that_the_mixed_units_have(engines, folder, name):
    _, base = engines(name)
    facts = read_facts(model_of(folder, base=str(base), controlnets={}))
    assert facts.schedulers == FAMILIES[name].fitting
    assert facts.modes == tuple(FAMILIES[name].pipelines)
    assert facts.ignored == FAMILIES[name].ignored
    assert facts.pictures == FAMILIES[name].pictures


@pytest.mark.parametrize("name", FAMILIES_OF_UNETS)
def test_what_fits_and_is_ignored_is_known_of_the_families_that_others_compare(made, folder, name):
    facts, plain = read_facts(model_of(folder, base=str(made(name)), controlnets={})), FAMILIES_OF_UNETS[name]
    assert (facts.schedulers, facts.modes, facts.ignored) == (plain.fitting, tuple(plain.pipelines), plain.ignored)


@pytest.mark.parametrize("name", FLOWS)
def test_dynamic_shifting_is_for_families_whose_pipelines_tell_schedulers_the_size(engines, folder, name):
    _, base = engines(name)
    plain, sized = FAMILIES[name], families.family_of(FAMILIES[name].pipelines[next(iter(FAMILIES[name].pipelines))]).sized

    def render_all():
        for mode in plain.pipelines:
            asked = request(mode=mode, prompt=plain.prompt("a circle"), scheduler="euler", steps=2, **MODES[mode])
            render_family(plain, asked, 1, base, folder, 1, options={"use_dynamic_shifting": True})

    if sized:
        render_all()
    elif not name.startswith("sd3"):  # whose pipelines with ControlNets do not
        with pytest.raises(ValueError, match="mu"):
            render_all()


# The pipelines of FLUX.2 and of Ovis can call dpmpp_2m, too, but only where the schedule depends on the size.
LEFT_OUT = [(name, solver) for name in FLOWS for solver in ("heun", "dpmpp_2m", "unipc") if solver not in FAMILIES[name].schedulers]
LEFT_OUT = [(name, solver) for name, solver in LEFT_OUT if not (name.startswith(("flux2", "ovis")) and solver == "dpmpp_2m")]


@pytest.mark.parametrize(("name", "solver"), LEFT_OUT)
def test_of_solvers_that_are_left_out_plain_diffusers_raises_in_some_mode(engines, folder, name, solver):
    _, base = engines(name)
    plain = FAMILIES[name]

    def render_all():
        for mode in plain.pipelines:
            asked = request(mode=mode, prompt=plain.prompt("a circle"), scheduler=solver, steps=2, **MODES[mode])
            render_family(plain, asked, 1, base, folder, 1)

    with pytest.raises((ValueError, AttributeError, TypeError, AssertionError)):
        render_all()


@pytest.mark.parametrize("name", ["sd3", "sana", "auraflow", "lumina", "lumina2", "flux-kontext", "flux2-klein"])
def test_all_solvers_of_a_flow_arrive_at_one_image(engines, name):
    engine, _ = engines(name)
    solvers = FAMILIES[name].schedulers
    some = [request(f"r{n}", seed=7, steps=32, candidates=1, scheduler=solver) for n, solver in enumerate(solvers)]
    first, *others = (pixels(outcome)[0].astype(float) for outcome in render(engine, *some))
    (another,) = pixels(render(engine, request(seed=8, steps=8, candidates=1, scheduler="euler"))[0])
    for solver, made in zip(solvers[1:], others, strict=True):
        assert abs(made - first).mean() < 0.1 * abs(another - first).mean(), solver


@pytest.mark.parametrize("name", [name for name, plain in FAMILIES.items() if plain.prompted])
def test_texts_are_kept_by_their_tokens_whatever_encodes_them(engines, name):
    engine, _ = engines(name)
    some = mixed(name)[:3]
    render(engine, *some)
    encoded = [text.joined.rows for text in engine.path.texts]
    render(engine, *some, *(replace(one, id=f"{one.id}-again", steps=one.steps + 1) for one in some))
    assert encoded and [text.joined.rows for text in engine.path.texts] == encoded


@pytest.mark.parametrize("name", ["lumina2", "cogview4", "qwen-image", "flux-kontext", "flux2-klein"])
def test_calls_of_several_shapes_fill_batches(engines, name):
    engine, _ = engines(name)
    prompts = ("a red circle", "a large green circle at the left", "a " * 40)
    modes = list(FAMILIES[name].pipelines)
    some = []
    for n in range(18):
        mode = modes[n % len(modes)]
        values = {"mode": mode, "prompt": prompts[n % 3], "steps": 2 + n % 4, "scheduler": "model", "candidates": 1}
        some.append(request(f"r{n}", **values, **MODES[mode]))
    engine.path.denoiser.calls = engine.path.denoiser.rows = 0
    render(engine, *some)
    assert engine.path.share > 0.75
