"""Prompts with weights, parts, changes and many words render as plain diffusers does with compel's embeddings, bit for bit."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from compel import Compel, CompelForFlux, CompelForSD, EmbeddingsProvider, ReturnedEmbeddingsType

from promptmill.configs.prompts import Prompts
from promptmill.manifests.a1111_prompts import read
from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.weighting_encoders import encoders_of
from promptmill.pipelines.work.units import Placed, Unit, candidate_seed
from tests.pipelines.companions import made_the_same_whatever_the_companions
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.plain import JOB_SEED, MODES, request, scheduler_of

LONG = "a small red circle at the left of a large blue square, with a green triangle in front. " * 4


@pytest.fixture(scope="module")
def long_engine(folder):
    return Engine(model_of(folder), JOB_SEED, Roots((str(folder),)), prompts=Prompts(long=True))


@pytest.fixture(scope="module")
def sdxl_engine(folder, made):
    model = model_of(folder, base=str(made("sdxl")), controlnets={})
    return Engine(model, JOB_SEED, Roots((str(folder),)), prompts=Prompts(long=True))


def a1111(prompt, **values):
    return request(prompt=prompt, syntax="a1111", candidates=BATCH, **values)


def plain_pipeline(kind, base, one):
    """Diffusers' own pipeline, whose text encoders compute at the fixed batch shape, as an engine's do."""
    more = {"safety_checker": None, "requires_safety_checker": False} if kind is diffusers.StableDiffusionPipeline else {}
    plain = kind.from_pretrained(base, **more)
    if one.scheduler != "model":
        plain.scheduler = scheduler_of(one.scheduler, plain.scheduler.config)
    plain.set_progress_bar_config(disable=True)
    for name in ("text_encoder", "text_encoder_2"):
        if (encoder := plain.components.get(name)) is not None:
            encoder.forward = at_the_batch_shape(encoder.forward)
    return plain


def at_the_batch_shape(forward):
    def wide(input_ids, attention_mask=None, **more):
        rows = len(input_ids)
        assert rows == 1
        mask = attention_mask if attention_mask is None else attention_mask.repeat(BATCH, 1)
        said = forward(input_ids.repeat(BATCH, 1), mask, **more)
        return type(said)(**{name: cut(value) for name, value in said.items()})

    def cut(value):
        return tuple(map(cut, value)) if isinstance(value, tuple) else value[:1]

    return wide


def drawn(plain, one, said, **more):
    generators = [torch.Generator().manual_seed(candidate_seed(JOB_SEED, one, k)) for k in range(BATCH)]
    said = {name: value.repeat(BATCH, *[1] * (value.ndim - 1)) for name, value in said.items()}
    with torch.no_grad():
        made = plain(
            **said,
            **more,
            num_inference_steps=one.steps,
            guidance_scale=one.guidance_scale,
            generator=generators,
            output_type="np",
            width=one.width,
            height=one.height,
        )
    return np.rint(made.images * 255).astype(np.uint8)


@torch.no_grad()
def sd_embeddings(plain, prompt, negative=""):
    said = CompelForSD(plain)([prompt], [negative])
    return {"prompt_embeds": said.embeds, "negative_prompt_embeds": said.negative_embeds}


@pytest.mark.parametrize(
    ("prompt", "negative", "as_compel", "negative_as_compel"),
    [
        ("a small (red:1.5) circle", "", "a small (red)1.5 circle", ""),
        ("a small (red:0.4) circle", "(blue) square", "a small (red)0.4 circle", "(blue)1.1 square"),
        (r"a \(small\) circle BREAK a (blue:1.3) square", "", r'("a \(small\) circle", "a (blue)1.3 square").and()', ""),
        ("a red circle AND a blue square:0.5", "", '("a red circle", "a blue square").and(1,0.5)', ""),
    ],
)
def test_weights_and_parts_are_those_of_compel(folder, engine, prompt, negative, as_compel, negative_as_compel):
    one = a1111(prompt, negative_prompt=negative)
    plain = plain_pipeline(diffusers.StableDiffusionPipeline, folder / "sd", one)
    made = drawn(plain, one, sd_embeddings(plain, as_compel, negative_as_compel))
    np.testing.assert_array_equal(pixels(render(engine, one)[0]), made)
    # And the weights do something.
    assert (made != pixels(render(engine, replace(one, prompt=one.words))[0])).any()


def test_a_prompt_of_words_renders_the_same_in_either_syntax(engine):
    words, same = request(prompt="a (small circle", candidates=BATCH), a1111(r"a \(small circle")
    np.testing.assert_array_equal(pixels(render(engine, words)[0]), pixels(render(engine, same)[0]))


def test_a_long_prompt_is_encoded_in_the_chunks_of_compel(folder, long_engine, engine):
    one = request(prompt=LONG, negative_prompt="dark", candidates=BATCH)
    plain = plain_pipeline(diffusers.StableDiffusionPipeline, folder / "sd", one)
    embeddings = sd_embeddings(plain, LONG, "dark")
    assert embeddings["prompt_embeds"].shape[1] > plain.tokenizer.model_max_length
    outcome = render(long_engine, one)[0]
    np.testing.assert_array_equal(pixels(outcome), drawn(plain, one, embeddings))
    cut = render(engine, one)[0]
    assert (outcome.tokens_lost, cut.tokens_lost > 0) == (0, True)
    short = request(prompt="a red circle", candidates=BATCH)
    np.testing.assert_array_equal(pixels(render(long_engine, short)[0]), pixels(render(engine, short)[0]))


def test_no_tokens_are_lost_of_parts_that_are_encoded_each_by_itself(engine):
    words = LONG[: len(LONG) // 4]
    while not engine.tokenizers.lost(f"{words} {words}"):
        words += " circle"
    assert not engine.tokenizers.lost(words)
    one = replace(a1111(f"{words} BREAK {words}"), candidates=1)
    parts, longer = render(engine, one, replace(one, id="longer", prompt=f"{words} {words} BREAK {words}"))
    assert parts.tokens_lost == 0 < longer.tokens_lost


def test_images_do_not_depend_on_companions_with_other_texts(long_engine):
    some = [
        a1111("a (red:1.3) circle"),
        request("plain", prompt="a red circle"),
        request("long", prompt=LONG),
        replace(a1111("a circle", negative_prompt="(dark:1.4)"), id="negative"),
        replace(a1111("a [red|blue] [circle:square:0.5]"), id="changing"),
        replace(a1111("a circle BREAK a square"), id="parts"),
    ]
    some = [replace(one, candidates=1) for one in some]
    made_the_same_whatever_the_companions(long_engine, some)


def test_equal_texts_are_encoded_once(engine):
    encoder = engine.path.texts[0].joined
    before = encoder.rows
    render(engine, a1111("one (thing:1.2) never said before"))
    first = encoder.rows - before
    render(engine, replace(a1111("one (thing:1.2) never said before"), id="again"))
    assert first > 0 and encoder.rows == before + first


@pytest.mark.parametrize("negative", ["", "a (dark:1.2) picture"])
@pytest.mark.parametrize("prompt", ["a small (red:1.5) circle", LONG])
def test_both_encoders_of_sdxl_take_weights_and_long_texts(made, sdxl_engine, prompt, negative):
    one = a1111(prompt, negative_prompt=negative)
    plain = plain_pipeline(diffusers.StableDiffusionXLPipeline, made("sdxl"), one)
    kind = ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
    pairs = ((plain.tokenizer, plain.text_encoder), (plain.tokenizer_2, plain.text_encoder_2))
    sides = [Compel(*pair, truncate_long_prompts=False, returned_embeddings_type=kind) for pair in pairs]
    pooling = EmbeddingsProvider(*pairs[1])
    texts = [prompt.replace(":1.5)", ")1.5"), negative.replace(":1.2)", ")1.2")]
    with torch.no_grad():
        both = torch.cat([side(texts) for side in sides], dim=-1)
        pooled = [pooling.get_pooled_embeddings([words]) for words in (one.words, one.negative_words)]
    said = {"prompt_embeds": both[:1], "pooled_prompt_embeds": pooled[0]}
    if negative:
        said |= {"negative_prompt_embeds": both[1:], "negative_pooled_prompt_embeds": pooled[1]}
    np.testing.assert_array_equal(pixels(render(sdxl_engine, one)[0]), drawn(plain, one, said))


def test_the_long_encoder_of_flux_takes_weights(made, flux):
    one = a1111("a small (red:1.5) circle", scheduler="model")
    plain = plain_pipeline(diffusers.FluxPipeline, made("flux"), one)
    plain.tokenizer_2.model_max_length = 512
    with torch.no_grad():
        said = CompelForFlux(plain)(["a small (red)1.5 circle"], [one.words])
    embeddings = {"prompt_embeds": said.embeds, "pooled_prompt_embeds": said.pooled_embeds}
    np.testing.assert_array_equal(pixels(render(flux, one)[0]), drawn(plain, one, embeddings))


@pytest.mark.parametrize("scheduler", ["ddim", "heun"])
def test_words_that_change_between_steps_do_so_in_the_loop_of_diffusers(folder, engine, scheduler):
    one = a1111("a [red:blue:0.5] [circle|square]", steps=4, scheduler=scheduler)
    plain = plain_pipeline(diffusers.StableDiffusionPipeline, folder / "sd", one)
    states = ["a red circle", "a red square", "a blue circle", "a blue square"]
    said = [sd_embeddings(plain, text) for text in states]
    order = plain.scheduler.order

    def change(running, turn, timestep, tensors):
        following = (turn + 1) // order
        if following == len(states):
            return tensors
        rows = [said[following][name].repeat(BATCH, 1, 1) for name in ("negative_prompt_embeds", "prompt_embeds")]
        return {**tensors, "prompt_embeds": torch.cat(rows)}

    tensors = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    np.testing.assert_array_equal(pixels(render(engine, one)[0]), drawn(plain, one, said[0], **tensors))


@pytest.mark.parametrize("mode", MODES)
def test_weights_change_images_in_every_mode_and_match_those_rendered_alone(engine, mode):
    texts = ("a (red:1.5) circle", "a red circle")
    some = [replace(a1111(text, **given(mode)), id=text, candidates=1) for text in texts]
    weighted, words = (pixels(outcome) for outcome in render(engine, *some))
    np.testing.assert_array_equal(weighted, pixels(render(engine, some[0])[0]))
    assert (np.array(weighted) != np.array(words)).any()


def given(mode):
    return {"mode": mode, **MODES[mode]}


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("skip", [0, 1])
def test_words_without_weights_are_embedded_as_diffusers_does_whatever_layers_are_skipped(made, family, skip):
    kind = diffusers.StableDiffusionPipeline if family == "sd" else diffusers.StableDiffusionXLPipeline
    plain = kind.from_pretrained(made(family))
    plain.text_encoder.__dict__.setdefault("text_model", plain.text_encoder)  # where diffusers looks for the last norm
    encoders = encoders_of(plain, "clip", skip, False, torch.device("cpu"))
    with torch.no_grad():
        embeddings, pooled = encoders.embedded(read("a small red circle").at(1, 1))
        said = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False, "clip_skip": skip or None}
        theirs = plain.encode_prompt("a small red circle", **said)
    # The text encoder is called with a mask of ones in place of none, which changes the last bits at most.
    torch.testing.assert_close(embeddings, theirs[0], rtol=0, atol=1e-5)
    assert (pooled is None) == (family == "sd")
    if pooled is not None:
        torch.testing.assert_close(pooled, theirs[2], rtol=0, atol=1e-5)


def test_an_inversion_of_several_vectors_is_all_of_its_tokens(made):
    plain = diffusers.StableDiffusionPipeline.from_pretrained(made("sd"))
    plain.tokenizer.add_tokens(["<thing>", "<thing>_1", "<thing>_2"])
    (provider,) = encoders_of(plain, "clip", 0, False, torch.device("cpu")).providers
    numbers = plain.tokenizer.convert_tokens_to_ids(["<thing>", "<thing>_1", "<thing>_2"])
    (tokens,) = provider.get_token_ids(["a <thing>"], include_start_and_end_markers=False)
    assert tokens[-3:] == numbers and len(tokens) == 4


def test_a_preview_ends_a_call_whose_words_change(engine):
    one = a1111("a [red:blue:0.5] circle", steps=4)
    job = Placed(0, one, preview=2)
    unit = Unit(0, 0, (job,))
    assert pixels(engine.render(unit).outcomes[0])
