import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from promptmill.configs.model import LoraWeights, TextualInversion
from promptmill.configs.parameters import Lora
from promptmill.configs.schedulers import SCHEDULERS
from promptmill.configs.weights import Weights
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.preparing import prepare_request
from promptmill.pipelines.rendering.text_limits import Tokenizers
from promptmill.pipelines.work.errors import FatalError, ModelError
from promptmill.pipelines.work.evaluations import evaluations
from promptmill.pipelines.work.units import Placed, Unit
from tests.pipelines import tiny
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.plain import JOB_SEED, MODES, render_plain, request


@pytest.mark.parametrize("mode", MODES)
def test_a_request_is_bit_equal_to_what_plain_diffusers_makes_of_it_at_the_same_batch_shape(engine, folder, mode):
    wanted = request(candidates=BATCH, negative_prompt="blue", **{"mode": mode, **MODES[mode]})
    (outcome,) = render(engine, wanted)
    nets = {name: folder / name for name in ("canny", "seg")}
    np.testing.assert_array_equal(pixels(outcome), render_plain(wanted, BATCH, folder / "sd", nets, folder))


@pytest.mark.parametrize("mode", MODES)
def test_an_image_depends_neither_on_its_companions_nor_on_its_place_in_the_batch(engine, mode):
    values = MODES[mode]
    some = [request(f"r{i}", prompt=f"a {color} circle", **{"mode": mode, **values}) for i, color in enumerate(("red", "blue"))]
    together = [pixels(outcome) for outcome in render(engine, *some)]
    alone = [pixels(render(engine, one)[0]) for one in reversed(some)][::-1]
    np.testing.assert_array_equal(together, alone)
    assert not np.array_equal(together[0], together[1])


def test_a_row_with_a_seed_counts_up_from_it_and_the_first_candidates_stay_when_there_are_more(engine):
    (outcome,) = render(engine, request(seed=2**32 - 1, candidates=2))
    assert [c.seed for c in outcome.candidates] == [2**32 - 1, 0]
    few, many = (pixels(render(engine, request(candidates=n))[0]) for n in (2, 5))
    np.testing.assert_array_equal(few, many[:2])


def test_units_of_one_picture_share_its_control_map(engine):
    mode = {"mode": "controlnet", **MODES["controlnet"]}
    render(engine, request(width=80, **mode))
    made = engine._maps.made
    for seed in (1, 2):
        render(engine, request(seed=seed, width=80, candidates=2, **mode))
    assert engine._maps.made == made
    render(engine, request(width=72, **mode))
    assert engine._maps.made == made + 1


def test_an_image_that_is_long_in_coming_stops_no_other_unit(engine, monkeypatch):
    arrived, asked = threading.Event(), threading.Event()

    def slow(placed, *rest):
        if placed.request.init_image:
            asked.set()
            assert arrived.wait(60)
        return prepare_request(placed, *rest)

    monkeypatch.setattr("promptmill.pipelines.rendering.engine.prepare_request", slow)
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(render, engine, request("image", mode="img2img", init_image="a.png", strength=0.7))
        assert asked.wait(60)
        assert pixels(threads.submit(render, engine, request("text")).result(60)[0])
        assert not waiting.done()
        arrived.set()
        assert pixels(waiting.result(60)[0])


def test_a_scheduler_is_made_once_and_each_call_has_its_own(engine, monkeypatch):
    made, model = [], engine.model
    build = type(model)._made_scheduler
    monkeypatch.setattr(type(model), "_made_scheduler", lambda self, name: made.append(name) or build(self, name))
    monkeypatch.setattr(model, "_schedulers", {})
    one, other = model.scheduler("kdpm2"), model.scheduler("kdpm2")
    one.set_timesteps(3)
    assert made == ["kdpm2"] and one is not other
    assert len(other.timesteps) != len(one.timesteps)
    render(engine, request(scheduler="kdpm2"), request("other", scheduler="kdpm2", steps=4))
    assert made == ["kdpm2"]


def test_a_broken_or_changed_image_fails_its_request_and_no_other(engine, folder):
    good = request("good", mode="img2img", init_image="a.png", strength=0.7)
    cut = replace(good, id="cut", init_image="cut.png")
    sha = hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()
    placed = (Placed(0, cut), Placed(1, good, {"init_image": sha}), Placed(2, good, {"init_image": "0" * 64}))
    broken, whole, changed = engine.render(Unit(0, 0, placed)).outcomes
    assert broken.failure.code == "bad_image"
    assert "init_image: cut.png" in broken.failure.message
    assert changed.failure.code == "image_changed"
    assert len(pixels(whole)) == 2
    assert whole.images == {"init_image": sha}


def test_a_candidate_that_is_not_finite_or_constant_fails_alone(engine, monkeypatch):
    decode = engine.model.base.vae.decode

    def broken(latents, *args, **kwargs):
        made = decode(latents, *args, **kwargs)
        made[0][0] = torch.nan
        made[0][1] = -1
        return made

    monkeypatch.setattr(engine.model.base.vae, "decode", broken)
    (outcome,) = render(engine, request(candidates=3))
    assert [c.failure and c.failure.code for c in outcome.candidates] == ["non_finite", "constant_image", None]
    assert [c.pixels is None for c in outcome.candidates] == [True, True, False]


def test_a_request_that_makes_the_library_raise_fails_alone(engine, monkeypatch):
    tokenize = engine.model.base.tokenizer.__call__

    def raising(texts, *args, **kwargs):
        if "boom" in texts and isinstance(texts, list):
            raise ValueError("cannot be said")
        return tokenize(texts, *args, **kwargs)

    monkeypatch.setattr(type(engine.model.base.tokenizer), "__call__", lambda self, *args, **kwargs: raising(*args, **kwargs))
    first, boom, last = render(engine, request("a"), request("b", prompt="boom"), request("c"))
    assert boom.failure.code == "render_error"
    assert "cannot be said" in boom.failure.message
    assert len(pixels(first)) == len(pixels(last)) == 2


def test_memory_that_runs_out_ends_the_process_with_the_batch_to_lower(engine, monkeypatch):
    def raising(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine.path.denoiser, "run", raising)
    with pytest.raises(FatalError, match=r"batch 3; set model.batch lower"):
        render(engine, request())


@pytest.mark.parametrize(
    ("values", "evaluations"),
    [
        ({}, 2 * 3),
        ({"guidance_scale": 1.0}, 3),
        ({"scheduler": "heun"}, 2 * 5),
        ({"scheduler": "pndm", "steps": 5}, 2 * 6),
        ({"mode": "img2img", "init_image": "a.png", "strength": 0.5, "steps": 10}, 2 * 5),
    ],
)
def test_the_price_is_what_the_denoiser_was_evaluated(engine, values, evaluations):
    (outcome,) = render(engine, request(candidates=4, **values))
    assert {c.evaluations for c in outcome.candidates} == {evaluations}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_allowed_scheduler_renders_candidates_that_stand_alone(engine, name):
    some = [request(f"r{i}", scheduler=name, steps=4, candidates=1, prompt=p) for i, p in enumerate(("red", "blue"))]
    outcomes = render(engine, *some)
    together = [pixels(outcome) for outcome in outcomes]
    np.testing.assert_array_equal(together[1], pixels(render(engine, some[1])[0]))
    assert {c.evaluations for outcome in outcomes for c in outcome.candidates} == {evaluations(some[0])}


@pytest.mark.parametrize("name", ["ddim", "heun", "kdpm2", "kdpm2_a", "pndm", "dpmpp_2s", "dpmpp_sde", "lcm", "tcd"])
def test_of_a_strength_the_steps_are_counted_that_are_run(engine, name):
    values = {"mode": "img2img", "init_image": "a.png", "strength": 0.7, "steps": 9, "guidance_scale": 1.0}
    (outcome,) = render(engine, request(scheduler=name, candidates=1, **values))
    assert outcome.candidates[0].evaluations == evaluations(request(scheduler=name, **values)) < SCHEDULERS[name].evaluations(9)


def test_a_scheduler_does_not_inherit_what_an_earlier_one_was_told(engine):
    plain = pixels(render(engine, request(scheduler="dpmpp_2m", steps=5))[0])
    render(engine, request(scheduler="dpmpp_2m_karras", steps=5))
    np.testing.assert_array_equal(pixels(render(engine, request(scheduler="dpmpp_2m", steps=5))[0]), plain)


def test_each_distinct_text_is_encoded_once(folder):
    engine = Engine(model_of(folder, controlnets={}), 0, Roots((str(folder),)))
    (text,) = engine.path.texts
    render(engine, *(request(f"r{i}", prompt="same", candidates=5) for i in range(3)))
    # The prompt, and for the negative one the empty prompt.
    assert text.joined.rows == 2
    render(engine, request(prompt="same"), request("s", prompt="other"))
    assert text.joined.rows == 3


def test_a_prompt_longer_than_the_text_encoder_reads_is_said_to_be_truncated(engine):
    short, long = render(engine, request(), request("long", prompt="a red circle " * 30))
    assert (short.prompt_truncated, long.prompt_truncated) == (False, True)
    # Three words thirty times, with a beginning and an end, and the encoder reads 77 tokens.
    words = len(engine.model.base.tokenizer("a red circle " * 30).input_ids)
    assert (short.tokens_lost, long.tokens_lost) == (0, words - engine.model.base.tokenizer.model_max_length)


def test_any_of_several_text_encoders_may_read_only_the_beginning(folder):
    engine = Engine(model_of(folder, base=str(tiny.flux(folder / "two-encoders")), controlnets={}), JOB_SEED, Roots((str(folder),)))
    prompt = "a small red circle at the left"
    assert not engine.tokenizers.lost(prompt)
    tokenizer = engine.model.base.tokenizer
    most, tokenizer.model_max_length = tokenizer.model_max_length, 5
    assert Tokenizers(engine.model.base).lost(prompt)
    tokenizer.model_max_length = 10_000
    assert not Tokenizers(engine.model.base).lost(prompt) and Tokenizers(engine.model.base).lost(prompt * 100)
    tokenizer.model_max_length = most
    # What the pipeline itself gives its encoder of long texts is less than that could read.
    assert Tokenizers(engine.model.base).limits[1].most == 512
    engine.close()


def test_one_set_of_weights_serves_every_mode(engine):
    for mode, values in MODES.items():
        render(engine, request(**{"mode": mode, **values}))
    assert len({id(pipeline.unet) for pipeline in engine.model._pipelines.values()}) == 1
    assert {pipeline.unet.dtype for pipeline in engine.model._pipelines.values()} == {torch.float32}


def test_shared_weights_keep_their_bf16_through_every_mode(folder):
    engine = Engine(model_of(folder, dtype="bfloat16"), JOB_SEED, Roots((str(folder),)))
    for mode, values in MODES.items():
        assert len(pixels(render(engine, request(**{"mode": mode, **values}))[0])) == 2
    assert engine.model.base.unet.dtype == torch.bfloat16
    assert engine.model.controlnets["canny"].dtype == torch.bfloat16


def test_outside_the_mask_the_picture_stays_as_it_was(engine, folder):
    values = MODES["inpaint"]
    original = np.array(Image.open(folder / "a.png"))
    keep = np.array(Image.open(folder / "mask.png")) < 128
    for made in pixels(render(engine, request(mode="inpaint", **values))[0]):
        np.testing.assert_array_equal(made[keep], original[keep])
        assert not np.array_equal(made[~keep], original[~keep])


def test_sdxl_goes_through_the_same_code(folder, made):
    engine = Engine(model_of(folder, base=str(made("sdxl")), controlnets={}), JOB_SEED, Roots((str(folder),)))
    for mode in ("txt2img", "img2img", "inpaint"):
        values = MODES[mode]
        some = [
            request(f"r{i}", mode=mode, prompt=p, negative_prompt=n, **values) for i, (p, n) in enumerate((("a", ""), ("b", "c")))
        ]
        together = [pixels(outcome) for outcome in render(engine, *some)]
        np.testing.assert_array_equal(together[1], pixels(render(engine, some[1])[0]))

    wanted = request(candidates=BATCH)
    theirs = render_plain(wanted, BATCH, made("sdxl"), {}, folder, family="StableDiffusionXL")
    np.testing.assert_array_equal(pixels(render(engine, wanted)[0]), theirs)


def test_a_family_without_a_unet_goes_through_the_same_code(folder, made, flux):
    facts = read_facts(model_of(folder, base=str(made("flux")), controlnets={}))
    assert (facts.schedulers, facts.pipeline) == (("euler", "model"), "FluxPipeline")
    for mode in ("txt2img", "img2img"):
        values = MODES[mode]
        some = [request(f"r{i}", mode=mode, prompt=p, scheduler="euler", **values) for i, p in enumerate(("a red", "blue circle"))]
        together = [pixels(outcome) for outcome in render(flux, *some)]
        np.testing.assert_array_equal(together[1], pixels(render(flux, some[1])[0]))


def test_an_inpainting_unet_of_nine_channels_serves_inpainting_and_nothing_else(folder, made):
    model = model_of(folder, base=str(made("nine")), controlnets={})
    assert read_facts(model).modes == ("inpaint",)
    engine = Engine(model, JOB_SEED, Roots((str(folder),)))
    values = MODES["inpaint"]
    some = [request(f"r{i}", mode="inpaint", prompt=p, **values) for i, p in enumerate(("red", "blue"))]
    together = [pixels(outcome) for outcome in render(engine, *some)]
    np.testing.assert_array_equal(together[1], pixels(render(engine, some[1])[0]))


def test_a_lora_acts_on_the_requests_that_name_it_and_on_no_other(engine, folder):
    from peft import LoraConfig, get_peft_model_state_dict

    unet = tiny.unet()
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    diffusers.StableDiffusionPipeline.save_lora_weights(folder / "lora", unet_lora_layers=get_peft_model_state_dict(unet))
    styled = Engine(
        model_of(folder, loras=(LoraWeights(name="style", source=str(folder / "lora")),)), JOB_SEED, Roots((str(folder),))
    )
    plain, with_it = request(), request(loras=(Lora(name="style", scale=1.0),))
    before = pixels(render(engine, plain)[0])
    assert not np.array_equal(pixels(render(styled, with_it)[0]), before)
    np.testing.assert_array_equal(pixels(render(styled, plain)[0]), before)
    weak = pixels(render(styled, replace(with_it, loras=(Lora(name="style", scale=0.1),)))[0])
    assert not np.array_equal(weak, pixels(render(styled, with_it)[0]))


def test_another_vae_a_textual_inversion_and_clip_skip_change_the_picture(engine, folder):
    from safetensors.torch import save_file

    other = tiny.vae()
    torch.nn.init.normal_(other.post_quant_conv.weight)
    other.save_pretrained(folder / "vae")
    torch.manual_seed(0)
    save_file({"emb_params": torch.randn(1, 16)}, folder / "token.safetensors")
    before = pixels(render(engine, request(prompt="a <token>"))[0])
    inversion = TextualInversion(token="<token>", source=str(folder / "token.safetensors"))
    for options in ({"vae": Weights(source=str(folder / "vae"))}, {"textual_inversions": (inversion,)}, {"clip_skip": 1}):
        changed = Engine(model_of(folder, **options), JOB_SEED, Roots((str(folder),)))
        assert not np.array_equal(pixels(render(changed, request(prompt="a <token>"))[0]), before), options


def test_what_the_safety_checker_refuses_is_an_outcome_of_its_own(folder):
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**part, "image_size": 32, "patch_size": 16, "projection_dim": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=part, vision_config=vision, projection_dim=8))
    checker.concept_embeds_weights.data.fill_(-2)  # any cosine is over this, so it refuses everything
    parts = diffusers.StableDiffusionPipeline.from_pretrained(folder / "sd", safety_checker=None).components
    whole = {**parts, "safety_checker": checker, "feature_extractor": CLIPImageProcessor(size=32, crop_size=32)}
    diffusers.StableDiffusionPipeline(**whole).save_pretrained(folder / "checked")
    for runs, code in ((True, "refused_content"), (False, None)):
        model = model_of(folder, base=str(folder / "checked"), controlnets={}, safety_checker=runs)
        assert read_facts(model).safety_checker
        (outcome,) = render(Engine(model, JOB_SEED, Roots((str(folder),))), request())
        assert {c.failure and c.failure.code for c in outcome.candidates} == {code}


def test_a_model_that_cannot_be_loaded_is_one_line(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no model_index.json; is it a model in diffusers' format"):
        Engine(model_of(folder, base=str(tmp_path / "empty")), 0, Roots(()))
    with pytest.raises(ModelError, match="cannot be loaded: ") as caught:
        Engine(model_of(folder, controlnets={"canny": Weights(source=str(tmp_path / "empty"))}), 0, Roots(()))
    assert "\n" not in str(caught.value)


def test_a_unit_whose_images_are_still_read_as_the_engine_closes_is_not_waited_for_in_vain(folder, monkeypatch):
    engine, asked, closed = Engine(model_of(folder), JOB_SEED, Roots((str(folder),))), threading.Event(), threading.Event()

    def slow(*given):
        asked.set()
        assert closed.wait(60)
        return prepare_request(*given)

    monkeypatch.setattr("promptmill.pipelines.rendering.engine.prepare_request", slow)
    with ThreadPoolExecutor() as threads:
        submitted = threads.submit(engine.submit, Unit(0, 0, (Placed(0, request()),)))
        assert asked.wait(60)
        engine.close()
        closed.set()
        with pytest.raises(FatalError, match="the engine was closed"):
            submitted.result(60).result(5)
