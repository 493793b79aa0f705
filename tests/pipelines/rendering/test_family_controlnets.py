"""ControlNets of the families without a UNet: equal to plain diffusers, and free of companions, in mixed units."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from promptmill.configs.weights import Weights
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.plain import CANNY, JOB_SEED, MODES, SEG, request
from tests.pipelines.plain_controlnets import CONTROLLED, render_controlled
from tests.pipelines.plain_families import FAMILIES
from tests.pipelines.tiny_controlnets import controlnet
from tests.pipelines.tiny_families import MAKERS


@pytest.fixture(scope="module")
def models(folder):
    """Returns a family's engine, its model and its ControlNets' folders."""

    @cache
    def model(family):
        place = folder / f"controlled-{family}"
        base = MAKERS[CONTROLLED[family].of or family](place / "base")
        nets = {name: controlnet(family, base, place / name, seed) for seed, name in ((3, "canny"), (4, "seg"))}
        given = model_of(folder, base=str(base), controlnets={name: Weights(source=str(net)) for name, net in nets.items()})
        check_fits(given)
        engine = Engine(given, JOB_SEED, Roots((str(folder),)))
        made.append(engine)
        return engine, given, base, nets

    made = []
    yield model
    for one in made:
        one.close()


def mixed(family):
    """Requests that differ in steps, guidance, prompt and strength of their controls; some with two, where the family takes two."""
    how = CONTROLLED[family]
    plain = FAMILIES[how.of or family]
    window = {} if how.timed else {"start": 0.0, "end": 1.0}
    one = (replace_(CANNY, **window),)
    controls = [one, (replace_(SEG, **window),), (*one, replace_(SEG, **window)) if how.several else one]
    scheduler = plain.schedulers[0]
    asked = [(2, 1.0, "a small red circle"), (3, 4.0, "a green circle and a square"), (4, 7.0, "a circle")]
    some = []
    for mode in how.pipelines:
        images = {name: value for name, value in MODES[mode].items() if name != "controls"}
        if how.of and "init_image" in images:
            images["strength"] = None  # as a plan leaves it out, since images begin with noise
        for (steps, scale, prompt), given in zip(asked, controls, strict=True):
            if how.repaints:
                given = tuple(replace_(control, image=images["init_image"]) for control in given)
            said = {"steps": steps, "guidance_scale": scale, "prompt": prompt, "controls": given, "scheduler": scheduler}
            led = {"true_cfg_scale": 3.0, "negative_prompt": "blue"} if mode in how.led and steps == 3 else {}
            some.append(request(f"r{len(some)}", mode=mode, **said, **images, **led))
    return some


def replace_(control, **values):
    return control.model_copy(update=values)


@pytest.mark.parametrize("family", CONTROLLED)
def test_images_with_controls_are_those_of_plain_diffusers_in_mixed_units(models, folder, family):
    engine, _, base, nets = models(family)
    some = mixed(family)
    for one, outcome in zip(some, render(engine, *some), strict=True):
        count = FAMILIES[CONTROLLED[family].of or family].fills(one, BATCH)
        theirs, rows = render_controlled(family, one, count, base, nets, folder, BATCH)
        np.testing.assert_array_equal(pixels(outcome), theirs[: one.candidates], err_msg=str(one))
        assert {candidate.evaluations for candidate in outcome.candidates} == {rows}, one
        without = replace(one, controls=tuple(replace_(control, scale=0.0) for control in one.controls))
        assert not np.array_equal(pixels(render(engine, without)[0]), pixels(outcome)), "the controls do nothing"


@pytest.mark.parametrize("family", CONTROLLED)
def test_companions_never_matter_to_images_with_controls(models, family):
    engine, *_ = models(family)
    some = mixed(family)
    together = [pixels(outcome) for outcome in render(engine, *some)]
    turned = [pixels(outcome) for outcome in render(engine, *some[::-1])][::-1]
    alone = [pixels(render(engine, one)[0]) for one in some]
    np.testing.assert_array_equal(together, turned)
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("family", CONTROLLED)
def test_the_modes_with_controls_are_those_that_diffusers_has_pipelines_for(models, family):
    _, given, *_ = models(family)
    facts, how = read_facts(given), CONTROLLED[family]
    assert {mode for mode in facts.modes if mode.startswith("controlnet")} == set(CONTROLLED[family].pipelines)
    for can in facts.steering.values():
        kind = f"{how.net} that repaints" if how.repaints else how.net
        assert (can.kind, can.several, can.timed, can.repaints) == (kind, how.several, how.timed, how.repaints)
        assert can.from_noise == (("controlnet_inpaint",) if how.net == "ZImageControlNetModel" or how.repaints else ())


def test_a_controlnet_of_another_family_is_one_line_before_anything_is_loaded(models, folder):
    _, flux, *_ = models("flux-dev")
    _, sd3, *_ = models("sd3")
    with pytest.raises(ModelError, match=r"controlnets\.canny: .* is a FluxControlNetModel, which is not served; only a SD3Con"):
        check_fits(sd3.model_copy(update={"controlnets": flux.controlnets}))
    pixart = model_of(folder, base=str(MAKERS["pixart-alpha"](folder / "uncontrolled")), controlnets=flux.controlnets)
    with pytest.raises(ModelError, match="there are no ControlNets for PixArtAlphaPipeline that promptmill can load"):
        read_facts(pixart)


def test_a_net_that_has_no_channels_for_a_mask_does_not_repaint(models):
    modes = {name: {mode for can in read_facts(models(name)[1]).steering.values() for mode in can.modes} for name in CONTROLLED}
    assert modes["z-image"] == {"controlnet"} and modes["z-image of version 2"] == {"controlnet", "controlnet_inpaint"}
    assert modes["sd3"] == {"controlnet"} and modes["sd3 that repaints"] == {"controlnet_inpaint"}
