"""Control models of other classes than their family's ControlNet: equal to plain diffusers, and free of companions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    FluxControlNetModel,
    FluxMultiControlNetModel,
    MultiAdapter,
    T2IAdapter,
    UNet2DConditionModel,
)
from PIL import Image

from promptmill.configs.weights import ControlNetWeights
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.units import Placed, Unit
from tests.pipelines import tiny_adapters, tiny_controlnets
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.plain import CANNY, JOB_SEED, MODES, SEG, request
from tests.pipelines.plain_controlnets import render_controlled
from tests.pipelines.plain_families import FAMILIES
from tests.pipelines.plain_steered import SD, SDXL, XL, maps_of, one_or_all, render_steered, steering
from tests.pipelines.tiny_families import MAKERS
from tests.pipelines.tiny_parts import lively

NUMBERS = {"canny": 3, "seg": 5}


@pytest.fixture(scope="module")
def made_once(folder):
    """Returns an engine of a model with controls; all are closed in the end."""

    def make(base, **controls):
        given = model_of(folder, base=str(base), controlnets=controls)
        check_fits(given)
        engines.append(Engine(given, JOB_SEED, Roots((str(folder),))))
        return engines[-1], given

    engines = []
    yield make
    for one in engines:
        one.close()


@pytest.fixture(scope="module")
def union(made_once, made, folder):
    """The tiny SDXL with a ControlNet of several modes, and the ControlNet's folder."""
    place = tiny_adapters.union(made("sdxl"), folder / "union")
    controls = {name: ControlNetWeights(source=str(place), mode=number) for name, number in NUMBERS.items()}
    return *made_once(made("sdxl"), **controls), place


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_rows_of_t2i_adapters_have_previews(made_once, made, folder, model):
    base = tiny_adapters.adaptable(made("sd"), folder / "adaptable-previews") if model == "sd" else made("sdxl")
    kind = "full_adapter" if model == "sd" else "full_adapter_xl"
    place = tiny_adapters.t2i_adapter(folder / f"t2i-previews-{model}", kind=kind)
    engine, _ = made_once(base, canny=ControlNetWeights(source=str(place)))
    for scheduler in ("euler", "heun", "dpmpp_2m", "pndm"):
        one = request(mode="controlnet", controls=(CANNY,), steps=6, scheduler=scheduler, candidates=2, prompt="a small red circle")
        unit = Unit(0, 0, tuple(Placed(row, one, preview=steps) for row, steps in enumerate((3, 6, None))))
        early, late, final = (outcome.failure or outcome.candidates for outcome in engine.render(unit).outcomes)
        alone = [outcome.candidates for outcome in engine.render(Unit(0, 0, unit.requests[:1])).outcomes]
        for number, whole in enumerate(final):
            far = [abs(made[number].pixels.astype(int) - whole.pixels).mean() for made in (early, late)]
            assert far[1] < far[0] and early[number].evaluations < late[number].evaluations <= whole.evaluations, scheduler
            np.testing.assert_array_equal(alone[0][number].pixels, early[number].pixels)


def controlnet_of(base, folder):
    """A ControlNet that fits the UNet of a tiny model."""
    torch.manual_seed(3)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    lively(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 16))).eval().save_pretrained(folder)
    return folder


UNION_MODES = {"controlnet": "", "controlnet_img2img": "Img2Img", "controlnet_inpaint": "Inpaint"}


def mixed(modes, several=True):
    """Requests that differ in steps, guidance, prompt and in the strength and the kinds of their controls."""
    asked = [(2, 1.0, "a small red circle"), (3, 4.0, "a green circle and a square"), (4, 7.0, "a circle")]
    controls = [(CANNY,), (CANNY.model_copy(update={"scale": 0.3, "start": 0.2}),), (CANNY, SEG) if several else (CANNY,)]
    some = []
    for mode in modes:
        images = {name: value for name, value in MODES[mode].items() if name != "controls"}
        for (steps, scale, prompt), given in zip(asked, controls, strict=True):
            said = {"steps": steps, "guidance_scale": scale, "prompt": prompt, "controls": given, "scheduler": "euler"}
            some.append(request(f"r{len(some)}", mode=mode, **said, **images))
    return some


def free_of_companions(engine, some):
    together = [pixels(outcome) for outcome in render(engine, *some)]
    turned = [pixels(outcome) for outcome in render(engine, *some[::-1])][::-1]
    np.testing.assert_array_equal(together, turned)
    np.testing.assert_array_equal(together, [pixels(render(engine, one)[0]) for one in some])
    return together


def test_images_steered_by_a_union_net_are_those_of_plain_diffusers_in_mixed_units(union, made, folder):
    engine, _, place = union
    some = mixed(UNION_MODES)
    net = ControlNetUnionModel.from_pretrained(place)
    for one, ours in zip(some, free_of_companions(engine, some), strict=True):
        name = f"{XL}ControlNetUnion{UNION_MODES[one.mode]}Pipeline"
        count = SDXL.fills(one, BATCH)
        said = steering(one) | {"control_image": one_or_all(maps_of(one, count, folder)), "batch": BATCH}
        said["control_mode"] = one_or_all([NUMBERS[control.type] for control in one.controls])
        theirs = render_steered(SDXL, name, one, count, made("sdxl"), {"controlnet": net}, said, folder)
        np.testing.assert_array_equal(ours, theirs[: one.candidates], err_msg=str(one))


def test_two_union_nets_at_once_make_the_bits_of_plain_diffusers(union, made_once, made, folder):
    _, _, place = union
    other = tiny_adapters.union(made("sdxl"), folder / "another-union", seed=9)
    modes = {"canny": (place, 3), "seg": (other, 5), "depth": (place, 1)}
    controls = {name: ControlNetWeights(source=str(source), mode=mode) for name, (source, mode) in modes.items()}
    engine, _ = made_once(made("sdxl"), **controls)
    depth = CANNY.model_copy(update={"type": "depth", "image": "a.png", "scale": 1.3})
    some = [
        request(
            f"r{n}",
            mode=mode,
            controls=given,
            steps=3,
            scheduler="euler",
            **{k: v for k, v in MODES[mode].items() if k != "controls"},
        )
        for n, (mode, given) in enumerate((mode, given) for mode in UNION_MODES for given in ((CANNY, SEG, depth), (CANNY, depth)))
    ]
    for one, ours in zip(some, free_of_companions(engine, some), strict=True):
        count, kinds = SDXL.fills(one, BATCH), [control.type for control in one.controls]
        sources = [modes[kind][0] for kind in kinds]
        nets = [ControlNetUnionModel.from_pretrained(source) for source in sources]
        # One net sees all of its images at once; of several nets each sees one.
        said = steering(one) | {"control_image": one_or_all(maps_of(one, count, folder)), "batch": BATCH}
        said["control_mode"] = one_or_all([modes[kind][1] for kind in kinds])
        net = nets[0] if len({*sources}) == 1 else nets
        name = f"{XL}ControlNetUnion{UNION_MODES[one.mode]}Pipeline"
        theirs = render_steered(SDXL, name, one, count, made("sdxl"), {"controlnet": net}, said, folder)
        np.testing.assert_array_equal(ours, theirs[: one.candidates], err_msg=str(one))


def test_the_mode_of_a_union_net_matters_and_its_weights_are_loaded_once(union):
    engine, *_ = union
    assert engine.model.controlnets["canny"] is engine.model.controlnets["seg"]
    one = request(mode="controlnet", controls=(CANNY,))
    other = request(mode="controlnet", controls=(CANNY.model_copy(update={"type": "seg"}),))
    assert not np.array_equal(pixels(render(engine, one)[0]), pixels(render(engine, other)[0]))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({}, r"canny: names no mode, and .* has modes from 0 to 5: set model\.controlnets\.canny\.mode to one"),
        ({"mode": 6}, r"canny: names mode 6, and .* has modes from 0 to 5"),
    ],
)
def test_a_mode_that_a_union_net_does_not_have_is_one_line_before_anything_is_loaded(union, weights, says):
    _, given, place = union
    with pytest.raises(ModelError, match=says):
        check_fits(given.model_copy(update={"controlnets": {"canny": ControlNetWeights(source=str(place), **weights)}}))


def test_a_mode_of_a_net_without_modes_is_one_line(folder):
    nets = {"canny": ControlNetWeights(source=str(folder / "canny"), mode=1)}
    with pytest.raises(ModelError, match=r"canny\.mode: .* is a ControlNetModel without modes; leave it out"):
        check_fits(model_of(folder, controlnets=nets))


def test_images_steered_by_a_flux_net_of_several_modes_are_those_of_plain_diffusers(made_once, folder):
    base = MAKERS["flux-dev"](folder / "flux-modes")
    place = tiny_adapters.flux_union(base, folder / "flux-union")
    numbers = {"canny": 0, "seg": 2}
    engine, _ = made_once(base, **{name: ControlNetWeights(source=str(place), mode=number) for name, number in numbers.items()})
    net = FluxControlNetModel.from_pretrained(place)
    forward = net.forward
    # Diffusers' img2img and inpainting give one mode for all rows of a call, and so take no call of several rows.
    net.forward = lambda *args, controlnet_mode, hidden_states, **kwargs: forward(
        *args, controlnet_mode=controlnet_mode.expand(len(hidden_states), 1), hidden_states=hidden_states, **kwargs
    )
    endings = {"controlnet": "", "controlnet_img2img": "Img2Img", "controlnet_inpaint": "Inpaint"}
    some = mixed(endings)
    for one, ours in zip(some, free_of_companions(engine, some), strict=True):
        nets = net if len(one.controls) == 1 else FluxMultiControlNetModel([net] * 2)
        said = steering(one) | {"control_image": one_or_all([2 * each - 1 for each in maps_of(one, BATCH, folder)]), "batch": BATCH}
        said["control_mode"] = one_or_all([numbers[control.type] for control in one.controls])
        name, parts = f"FluxControlNet{endings[one.mode]}Pipeline", {"controlnet": nets}
        theirs = render_steered(FAMILIES["flux-dev"], name, one, BATCH, base, parts, said, folder)
        np.testing.assert_array_equal(ours, theirs[: one.candidates], err_msg=str(one))


GUESSED = {
    "StableDiffusionControlNetPipeline": ("sd", SD),
    "StableDiffusionControlNetImg2ImgPipeline": ("sd", SD),
    "StableDiffusionXLControlNetPipeline": ("sdxl", SDXL),
}


@pytest.mark.parametrize("name", GUESSED)
def test_guess_mode_is_that_of_plain_diffusers(made_once, made, folder, name):
    model, plain = GUESSED[name]
    base = made(model)
    place = controlnet_of(base, folder / f"guess-{name}")
    net = ControlNetModel.from_pretrained(place)
    engine, _ = made_once(base, canny=ControlNetWeights(source=str(place), guess=True))
    mode = "controlnet_img2img" if "Img2Img" in name else "controlnet"
    some = [one for one in mixed([mode], several=False) if one.guidance_scale > 1]
    for one, ours in zip(some, free_of_companions(engine, some), strict=True):
        images = one_or_all(maps_of(one, BATCH, folder))
        named = {"control_image" if "Img2Img" in name else "image": images, "batch": BATCH}
        said = steering(one) | {"guess_mode": True} | named
        theirs = render_steered(plain, name, one, BATCH, base, {"controlnet": net}, said, folder)
        np.testing.assert_array_equal(ours, theirs[: one.candidates], err_msg=str(one))


def test_guess_mode_is_for_families_that_have_it(made_once, folder):
    base = MAKERS["flux-dev"](folder / "flux-guess")
    place = tiny_adapters.flux_union(base, folder / "flux-guessing")
    with pytest.raises(ModelError, match=r"canny\.guess: there is no guess mode for a FluxControlNetModel; leave it out"):
        check_fits(
            model_of(folder, base=str(base), controlnets={"canny": ControlNetWeights(source=str(place), mode=1, guess=True)})
        )


ADAPTED = {
    "sd": ("StableDiffusionAdapterPipeline", "full_adapter", SD),
    "sdxl": ("StableDiffusionXLAdapterPipeline", "full_adapter_xl", SDXL),
}


@pytest.mark.parametrize("model", ADAPTED)
def test_images_steered_by_t2i_adapters_are_those_of_plain_diffusers_in_mixed_units(made_once, made, folder, model):
    name, kind, plain = ADAPTED[model]
    base = tiny_adapters.adaptable(made("sd"), folder / "adaptable") if model == "sd" else made("sdxl")
    # The one for edges has one channel, as those for sketches and edges have.
    places = {"canny": tiny_adapters.t2i_adapter(folder / f"{model}-edges", kind=kind, channels=1)}
    places["seg"] = tiny_adapters.t2i_adapter(folder / f"{model}-segments", seed=4, kind=kind)
    engine, given = made_once(base, **{name: ControlNetWeights(source=str(place)) for name, place in places.items()})
    can = read_facts(given).steering["seg"]
    assert (can.kind, can.modes, can.timed, can.multiple) == ("T2IAdapter", ("controlnet",), False, 16 if model == "sdxl" else 8)
    some = [
        replace(one, controls=tuple(c.model_copy(update={"start": 0.0, "end": 1.0}) for c in one.controls))
        for one in [*mixed(["controlnet"]), replace(mixed(["controlnet"])[1], id="seg", controls=(SEG,))]
    ]
    for one, ours in zip(some, free_of_companions(engine, some), strict=True):
        count = plain.fills(one, BATCH)
        maps = [
            grey(folder / c.image, count) if c.type == "canny" else each
            for c, each in zip(one.controls, maps_of(one, count, folder), strict=True)
        ]
        adapters = [in_batches(T2IAdapter.from_pretrained(places[c.type])) for c in one.controls]
        parts = {"adapter": adapters[0] if len(adapters) == 1 else MultiAdapter(adapters)}
        said = steering(one, "adapter_conditioning_scale", timed=False) | {"image": one_or_all(maps), "batch": BATCH}
        theirs = render_steered(plain, name, one, count, base, parts, said, folder)
        np.testing.assert_array_equal(ours, theirs[: one.candidates], err_msg=str(one))
        (without,) = render(engine, replace(one, controls=tuple(c.model_copy(update={"scale": 0.0}) for c in one.controls)))
        assert not np.array_equal(pixels(without), ours), "the adapter does nothing"


def grey(file, count):
    """A picture's luminance, (count, 1, H, W) in 0 … 1."""
    return torch.from_numpy(np.array(Image.open(file).convert("L"))).float().div(255).repeat(count, 1, 1, 1)


def in_batches(adapter):
    """An adapter that reads as many pictures at once as the engine's does."""
    forward = adapter.forward
    adapter.forward = lambda x: [torch.cat(level) for level in zip(*(forward(some) for some in x.split(BATCH)), strict=True)]
    return adapter


@pytest.mark.parametrize("refiner", ["control_layers", "control_noise_refiner"])
def test_images_steered_by_a_z_image_net_that_scales_inside_are_those_of_plain_diffusers(made_once, folder, refiner):
    base, place = MAKERS["z-image"](folder / f"z-{refiner}"), folder / f"z-{refiner}-net"
    torch.manual_seed(3)
    options = {"add_control_noise_refiner": refiner, "control_refiner_layers_places": [0]}
    lively(tiny_controlnets.z_image(base, **options)).eval().save_pretrained(place)
    engine, _ = made_once(base, canny=ControlNetWeights(source=str(place)))
    some = [
        replace(one, controls=tuple(c.model_copy(update={"start": 0.0}) for c in one.controls))
        for one in mixed(["controlnet"], several=False)
    ]
    for one, ours in zip(some, free_of_companions(engine, some), strict=True):
        count = FAMILIES["z-image"].fills(one, BATCH)
        theirs, _ = render_controlled("z-image", one, count, base, {"canny": place}, folder, BATCH)
        np.testing.assert_array_equal(ours, theirs[: one.candidates], err_msg=str(one))


def test_a_t2i_adapter_for_another_base_is_one_line(folder):
    place = tiny_adapters.t2i_adapter(folder / "fits")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "channels": [8, 32]}))
    with pytest.raises(
        ModelError, match=r"canny: .*fits is for another base model: its channels are \[8, 32\], the base's \[8, 16\]"
    ):
        check_fits(model_of(folder, controlnets={"canny": ControlNetWeights(source=str(place))}))


def test_the_facts_say_what_each_type_can_do(union):
    facts = read_facts(union[1])
    assert facts.steering["canny"].kind == "ControlNetUnionModel"
    assert facts.steering["canny"].modes == tuple(UNION_MODES)
