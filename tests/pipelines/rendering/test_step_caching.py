"""Step caching: a cached step is what the whole denoiser makes of older inner blocks, bit for bit, whoever else is in the batch."""

import inspect
from dataclasses import replace
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from pydantic import ValidationError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from promptmill.configs.model import Kernels, LoraWeights, Model
from promptmill.configs.parameters import Lora
from promptmill.configs.schedulers import SCHEDULERS
from promptmill.configs.step_caches import StepCache
from promptmill.configs.weights import RefinerWeights
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.cached_blocks import TRANSFORMERS, UNET
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.step_caching import INNER, Shortened
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.evaluations import cached_evaluations, steps_of
from promptmill.pipelines.work.units import Placed, Unit
from tests.pipelines import tiny
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.every_tiny import TINY
from tests.pipelines.plain import JOB_SEED, MODES, render_plain, request
from tests.pipelines.plain_calls import render_family
from tests.pipelines.plain_families import FAMILIES
from tests.pipelines.rendering.test_families import mixed
from tests.pipelines.rendering.test_merging import fused
from tests.pipelines.rendering.test_references import adapters_of
from tests.pipelines.rendering.test_references import mixed as with_references

EVERY = StepCache(every=2, first=0.2)
CACHED = Kernels(cache=EVERY)
FEW = ("sd3", "flux-dev", "qwen-image", "cogview4", "pixart-sigma", "sana", "kolors", "kandinsky22")


def whole_with_older(kind, one, left="down", calls=1):
    """The forward of a class of denoisers that always runs all blocks, and then takes what its inner blocks made at an older step.

    Args:
        kind: The class.
        one: The request that is rendered.
        left: How many steps a strength leaves.
        calls: How often a pipeline calls it a step.
    """
    whole = kind.forward
    steps = steps_of(one.steps, one.strength, left) * SCHEDULERS[one.scheduler].order if one.scheduler in SCHEDULERS else one.steps

    def forward(self, *args, **kwargs):
        state = vars(self).setdefault("older", {"calls": 0, "parts": {}})
        step, number = divmod(state["calls"], calls)
        state["calls"] += 1
        older = state["parts"].get(number) if EVERY.answers(step, steps) else None
        if kind.__name__ == UNET:

            def into_last(block, given, named):
                if older is None:
                    state["parts"][number] = named["hidden_states"]
                    return None
                return given, {**named, "hidden_states": older}

            hooks = [self.up_blocks[-1].register_forward_pre_hook(into_last, with_kwargs=True)]
        else:
            how = TRANSFORMERS[kind.__name__]
            blocks = [block for name in how.lists for block in getattr(self, name)]
            place, seen = how.returns.index("picture"), []

            def into_second(block, given, named):
                seen.append(named["hidden_states"] if "hidden_states" in named else given[0])

            def out_of_last(block, given, named, made):
                parts = list(made) if isinstance(made, tuple) else [made]
                if older is None:
                    state["parts"][number] = parts[place] - seen[0]
                    return None
                parts[place] = seen[0] + older
                return tuple(parts) if isinstance(made, tuple) else parts[0]

            hooks = [
                blocks[1].register_forward_pre_hook(into_second, with_kwargs=True),
                blocks[-1].register_forward_hook(out_of_last, with_kwargs=True),
            ]
        try:
            return whole(self, *args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    forward.__signature__ = inspect.signature(whole)
    return forward


@pytest.fixture(scope="module")
def cached(folder):
    """The tiny Stable Diffusion with its ControlNets, half of whose steps are cached."""
    return Engine(model_of(folder, kernels=CACHED), JOB_SEED, Roots((str(folder),)))


@pytest.fixture(scope="module")
def engines(folder):
    @cache
    def engine(name):
        base = TINY[name](folder / f"cached-{name}")
        return Engine(model_of(folder, base=str(base), controlnets={}, kernels=CACHED), JOB_SEED, Roots((str(folder),))), base

    return engine


def asked_of_sd():
    """Requests that differ in mode, steps, scheduler and guidance."""
    kinds = [("ddim", 5, 4.0), ("dpmpp_2m", 4, 1.0), ("heun", 3, 4.0), ("euler", 6, 7.0)]
    return [
        request(f"{mode} {name}", scheduler=name, steps=steps, guidance_scale=scale, **{"mode": mode, **MODES[mode]})
        for number, mode in enumerate(MODES)
        for name, steps, scale in (kinds[number % 4], kinds[(number + 1) % 4])
    ]


def test_an_image_is_what_plain_diffusers_makes_of_older_inner_blocks_in_every_mode(cached, folder, monkeypatch):
    some = asked_of_sd()
    nets = {name: folder / name for name in ("canny", "seg")}
    for one, outcome in zip(some, render(cached, *some), strict=True):
        with monkeypatch.context() as patch:
            patch.setattr(diffusers.UNet2DConditionModel, "forward", whole_with_older(diffusers.UNet2DConditionModel, one))
            full = BATCH if one.guidance_scale > 1 else 2 * BATCH
            theirs = render_plain(one, full, folder / "sd", nets, folder, decoded=BATCH)
        np.testing.assert_array_equal(pixels(outcome), theirs[: one.candidates], err_msg=one.id)


@pytest.mark.parametrize("name", FEW)
def test_so_it_is_in_other_families_in_mixed_units(engines, folder, monkeypatch, name):
    engine, base = engines(name)
    plain, some = FAMILIES[name], mixed(name)
    kind, family = type(engine.model.denoiser), engine.model.family
    assert len({one.steps for one in some}) > 1
    for one, outcome in zip(some, render(engine, *some), strict=True):
        apart = plain.rows == 1 and (one.is_led or (plain.negative and one.guidance_scale > 1))
        left = family.steps_left if plain.has_strength(one.mode) else "all"
        with monkeypatch.context() as patch:
            patch.setattr(kind, "forward", whole_with_older(kind, one, left, 2 if apart else 1))
            theirs, rows = render_family(plain, one, plain.fills(one, BATCH), base, folder, BATCH)
        np.testing.assert_array_equal(pixels(outcome), theirs[: one.candidates], err_msg=str(one))
        planned = one if plain.has_strength(one.mode) else replace(one, strength=None)
        cached = cached_evaluations(planned, EVERY, read_facts(model_of(folder, base=str(base), controlnets={})).counting)
        assert {(made.evaluations, made.cached) for made in outcome.candidates} == {(rows, cached)}, one


def test_a_row_is_the_same_alone_in_another_order_and_beside_previews(cached):
    some = asked_of_sd()
    together = [pixels(outcome) for outcome in render(cached, *some)]
    backwards = [pixels(outcome) for outcome in render(cached, *some[::-1])][::-1]
    placed = [Placed(row, one, preview=2 if row % 2 else None) for row, one in enumerate(some)]
    beside = cached.render(Unit(0, 0, tuple(placed))).outcomes
    for row, one in enumerate(some):
        alone = pixels(render(cached, one)[0])
        np.testing.assert_array_equal(together[row], alone, err_msg=one.id)
        np.testing.assert_array_equal(backwards[row], alone, err_msg=one.id)
        if row % 2 == 0:
            np.testing.assert_array_equal(pixels(beside[row]), alone, err_msg=one.id)
        else:
            seen = cached.render(Unit(0, 0, (placed[row],))).outcomes[0]
            np.testing.assert_array_equal(pixels(beside[row]), pixels(seen), err_msg=one.id)


def test_the_cached_evaluations_are_those_of_the_schedule_and_without_any_the_bits_are_the_usual_ones(cached, engine, folder):
    one = request(steps=10, guidance_scale=4.0, scheduler="ddim")
    for asked, rows in ((one, 2), (replace(one, guidance_scale=1.0), 1)):
        (outcome,) = render(cached, asked)
        wanted = sum(EVERY.answers(step, 10) for step in range(10))
        assert {(made.evaluations, made.cached) for made in outcome.candidates} == {(10 * rows, wanted * rows)}
    never = Engine(model_of(folder, kernels=Kernels(cache=StepCache(every=2, first=1.0))), JOB_SEED, Roots((str(folder),)))
    some = asked_of_sd()
    for one, made, usual in zip(some, render(never, *some), render(engine, *some), strict=True):
        np.testing.assert_array_equal(pixels(made), pixels(usual), err_msg=one.id)
        assert not any(candidate.cached for candidate in made.candidates)
    assert not np.array_equal(pixels(render(cached, some[0])[0]), pixels(render(engine, some[0])[0]))


def test_the_share_of_the_work_is_counted_without_weights_and_is_that_of_the_blocks_that_run():
    shares, given = (
        [],
        {
            "hidden_states": torch.randn(2, 16, 8, 8),
            "timestep": torch.tensor([9.0, 500.0]),
            "encoder_hidden_states": torch.randn(2, 7, 4096),
            "pooled_projections": torch.randn(2, 2048),
        },
    )
    for dtype in (torch.bfloat16, torch.float32):
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=8,
            num_layers=8,
            attention_head_dim=32,
            num_attention_heads=2,
            caption_projection_dim=64,
            pos_embed_max_size=8,
        )
        torch.nn.Module.to(transformer, dtype)
        shortened, ran, counts = Shortened(transformer, transformer.forward), [], []
        for number, block in enumerate(transformer.transformer_blocks):
            block.register_forward_hook(lambda *_, ran=ran, number=number: ran.append(number))
        inner, alike = None, {name: value.to(dtype) for name, value in given.items()}
        for _ in range(2):
            # Step by step, since the counter does not know a CPU's fused attention.
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                _, inner = shortened(**alike, **{INNER: inner})
            counts.append(counter.get_total_flops())
        assert ran == [*range(8), 0]
        shares.append(shortened.share)
    assert shares[0] == shares[1] == counts[1] / counts[0]
    assert 1 / 8 < shares[0] < 1 / 2


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_plan_counts_the_cached_evaluations_that_are_made_by_every_scheduler(cached, scheduler):
    for mode, steps in (("txt2img", 6), ("img2img", 7)):
        one = request(mode=mode, steps=steps, scheduler=scheduler, candidates=1, **MODES[mode])
        (made,) = render(cached, one)[0].candidates
        assert made.cached == cached_evaluations(one, EVERY) > 0


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_the_first_block_of_a_transformer_alone_takes_what_controlnets_add_behind_it_and_no_more(kind):
    torch.manual_seed(0)
    if kind == "sd3":
        sizes = {"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16, "joint_attention_dim": 16}
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=8, in_channels=4, num_layers=4, pooled_projection_dim=16, pos_embed_max_size=8, **sizes
        )
    else:
        sizes = {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (2, 2, 4)}
        transformer = diffusers.FluxTransformer2DModel(
            in_channels=4, num_layers=2, num_single_layers=3, pooled_projection_dim=16, **sizes
        )

    def given():
        said = {"timestep": torch.tensor([9.0, 500.0]), "encoder_hidden_states": torch.randn(2, 7, 16)}
        said["pooled_projections"] = torch.randn(2, 16)
        if kind == "sd3":
            added = [torch.randn(2, 16, 16) for _ in range(2)]
            return said | {"hidden_states": torch.randn(2, 4, 8, 8), "block_controlnet_hidden_states": added}
        said |= {"hidden_states": torch.randn(2, 16, 4), "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(7, 3)}
        return said | {
            "controlnet_block_samples": [torch.randn(2, 16, 16)],
            "controlnet_single_block_samples": [torch.randn(2, 16, 16)],
        }

    how = TRANSFORMERS[type(transformer).__name__]
    blocks = [block for name in how.lists for block in getattr(transformer, name)]
    shortened = Shortened(transformer.eval(), transformer.forward)
    with torch.no_grad():
        _, older = shortened(**given(), **{INNER: None})
        now, seen = given(), []
        place = how.returns.index("picture")

        def out_of_last(block, args, named, made):
            return tuple(seen[0] + older if number == place else part for number, part in enumerate(made))

        hooks = [
            blocks[1].register_forward_pre_hook(lambda b, a, named: seen.append(named["hidden_states"]), with_kwargs=True),
            blocks[-1].register_forward_hook(out_of_last, with_kwargs=True),
        ]
        wanted = transformer(**now).sample
        for hook in hooks:
            hook.remove()
        assert torch.equal(shortened(**now, **{INNER: older})[0].sample, wanted)


@pytest.mark.parametrize("features", ["residuals", "adapter", "neither"])
@pytest.mark.parametrize("first", ["DownBlock2D", "CrossAttnDownBlock2D"])
def test_the_outer_blocks_of_a_unet_alone_make_what_they_make_beside_the_inner_ones(first, features):
    """Of three levels, of sides that are no multiples, with what ControlNets and adapters add."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=[8, 16, 16],
        layers_per_block=2,
        sample_size=8,
        down_block_types=(first, "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D" if first.startswith("Cross") else "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()

    def given():
        sample = torch.randn(2, 4, 10, 14)
        said = {"sample": sample, "timestep": torch.tensor([9.0, 500.0]), "encoder_hidden_states": torch.randn(2, 7, 16)}
        levels = [(8, 10, 14)] * 3 + [(8, 5, 7)] + [(16, 5, 7)] * 2 + [(16, 3, 4)] * 3
        if features == "residuals":
            said["down_block_additional_residuals"] = tuple(torch.randn(2, *level) for level in levels)
            said["mid_block_additional_residual"] = torch.randn(2, 16, 3, 4)
        if features == "adapter":
            inner = [(8, 10, 14) if first.startswith("Cross") else (8, 5, 7), (16, 5, 7), (16, 3, 4)]
            said["down_intrablock_additional_residuals"] = [torch.randn(2, *level) for level in inner]
        return said

    run = Shortened(unet, unet.forward)
    with torch.no_grad():
        _, older = run(**given(), **{INNER: None})
        now = given()
        features_now = {name: list(value) for name, value in now.items() if isinstance(value, list)}
        hook = unet.up_blocks[-1].register_forward_pre_hook(lambda b, a, k: (a, {**k, "hidden_states": older}), with_kwargs=True)
        wanted = unet(**now | features_now).sample
        hook.remove()
        ran = []
        for block in (*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]):
            block.register_forward_hook(lambda *_: ran.append(1))
        made, _ = run(**now, **{INNER: older})
        assert torch.equal(made.sample, wanted) and not ran
        unet(**given())
        assert len(ran) == 5, "the blocks are the UNet's own again"


def test_loras_merged_or_beside_the_weights_go_with_it(folder, tmp_path, monkeypatch):
    lora = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "conv1"], init_lora_weights=False)
    torch.manual_seed(0)
    unet = tiny.unet()
    unet.add_adapter(lora)
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path / "style", unet_lora_layers=get_peft_model_state_dict(unet))
    styles = (LoraWeights(name="style", source=str(tmp_path / "style")),)
    used = (Lora(name="style", scale=0.7),)
    fused(folder / "sd", used, styles).save_pretrained(tmp_path / "fused")
    plainly, adapted = request(steps=5, candidates=BATCH), request("adapted", steps=5, candidates=BATCH, loras=used)
    forward = whole_with_older(diffusers.UNet2DConditionModel, plainly)
    for merge in (True, False):
        model = model_of(folder, loras=styles, controlnets={}, kernels=Kernels(cache=EVERY, merge_loras=merge))
        styled = Engine(model, JOB_SEED, Roots((str(folder),)))
        made = [pixels(outcome) for outcome in render(styled, adapted, plainly)]
        for one, some in zip((adapted, plainly), made, strict=True):
            np.testing.assert_array_equal(some, pixels(render(styled, one)[0]))
        if merge:
            with monkeypatch.context() as patch:
                patch.setattr(diffusers.UNet2DConditionModel, "forward", forward)
                theirs = [
                    render_plain(one, BATCH, base, {}, folder)
                    for one, base in ((adapted, tmp_path / "fused"), (plainly, folder / "sd"))
                ]
            np.testing.assert_array_equal(made, theirs)
        assert not np.array_equal(*made)
        styled.close()


def test_reference_images_go_with_it(folder):
    rng = np.random.default_rng(5)
    Image.fromarray(rng.integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(folder / "wide.png")
    adapters = adapters_of(folder / "sd", folder / "adapters-cached")
    referring = Engine(model_of(folder, references=adapters, kernels=CACHED), JOB_SEED, Roots((str(folder),)))
    some = [replace(one, steps=one.steps + 2) for one in with_references("txt2img", "controlnet")]
    together = render(referring, *some)
    for one, outcome in zip(some, together, strict=True):
        np.testing.assert_array_equal(pixels(outcome), pixels(render(referring, one)[0]), err_msg=str(one))
        assert all(candidate.cached for candidate in outcome.candidates)
    referring.close()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"refiner": RefinerWeights(source="./refiner")}, "a refiner does not go with kernels.cache"),
        ({"offload": True}, "kernels.cache does not go with offload"),
    ],
)
def test_what_it_does_not_go_with_is_refused(more, reason):
    with pytest.raises(ValidationError, match=reason):
        Model(base="./a", kernels=CACHED, **more)


def test_a_family_without_known_blocks_is_refused_at_the_plan_by_one_line(folder):
    base = TINY["hunyuandit"](folder / "cached-hunyuandit")
    model = model_of(folder, base=str(base), controlnets={}, kernels=CACHED)
    with pytest.raises(
        ModelError, match=r"^model\.kernels\.cache: .* has a HunyuanDiT2DModel, with which a step cache does not go"
    ):
        check_fits(model)
    check_fits(model_of(folder, kernels=CACHED))


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 50])
@pytest.mark.parametrize("every", [2, 3, 5])
def test_a_schedule_begins_whole_keeps_its_ends_and_runs_all_blocks_each_so_many_steps(steps, every):
    for first, last in ((0.0, 0.0), (0.25, 0.0), (0.5, 0.25), (1.0, 0.0), (0.0, 1.0)):
        schedule = StepCache(every=every, first=first, last=last)
        cached = [schedule.answers(step, steps) for step in range(steps)]
        assert not cached[0]
        assert not any(cached[: round(first * steps)]) and not any(cached[steps - round(last * steps) :])
        runs = "".join("c" if one else "w" for one in cached).strip("w").split("w")
        assert max(map(len, runs)) <= every - 1
        if steps - round(last * steps) > max(1, round(first * steps)):
            assert any(cached)


def test_off_it_says_nothing_and_so_changes_no_fingerprint():
    assert "cache" not in Kernels().model_dump()
    assert Kernels(cache=EVERY).model_dump()["cache"] == {"every": 2, "first": 0.2, "last": 0.0}
