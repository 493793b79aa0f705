"""A prompt is said to be truncated where a text encoder is not given its last word, in every way in which pipelines cut texts."""

import pytest
import torch

from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering.engine import Engine
from tests.pipelines.engines import model_of, pixels, render
from tests.pipelines.every_tiny import TINY
from tests.pipelines.plain import JOB_SEED, MODES, request
from tests.pipelines.plain_families import FAMILIES, UNETS
from tests.pipelines.tiny_readers import small_inputs

EVERY = {**UNETS, **FAMILIES}
# One of each way: by tokenizers, by a parameter, by an attribute, by numbers in code, with an instruction or a chat around prompts.
NAMES = (
    *("sdxl", "sd3", "flux-dev", "pixart-sigma", "sana", "hunyuandit", "lumina", "lumina2", "chroma", "cogview4", "bria-fibo"),
    *("hidream", "kandinsky3", "flux2-klein", "prx-pixel", "kandinsky21", "stable-cascade", "if"),
)


def given_to(engine):
    """What goes into each text encoder from now on: lists of tokens, by the number of the encoder."""
    seen = {}
    for number, encoder in enumerate(engine.path.texts):

        def run(_run=encoder.joined.run, _number=number, **said):
            whole = (value for value in said.values() if isinstance(value, torch.Tensor) and not value.is_floating_point())
            seen.setdefault(_number, []).extend(said.get("input_ids", next(whole)).tolist())
            return _run(**said)

        encoder.joined.run = run
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_the_last_word_is_lost_to_an_encoder_where_tokens_are_said_to_be_lost(name, folder):
    plain = EVERY[name]
    base = TINY[name](folder / f"limits-{name}")
    with small_inputs():
        engine = Engine(model_of(folder, base=str(base), controlnets={}), JOB_SEED, Roots((str(folder),)))
        mode = next(iter(plain.pipelines))
        tokenizers = [limit.tokenizer for limit in engine.tokenizers.limits]
        told = {token for one in tokenizers for token in one("square", add_special_tokens=False).input_ids}
        told -= {token for one in tokenizers for token in one("circle", add_special_tokens=False).input_ids}

        def text(words):
            return plain.prompt(" ".join([*["circle"] * (words - 1), "square"]))

        most, least = 1, 5000
        while least - most > 1:
            middle = (most + least) // 2
            most, least = (middle, least) if not engine.tokenizers.lost(text(middle)) else (most, middle)
        seen, has = given_to(engine), {}
        for words in (most, least):
            seen.clear()
            more = {"mode": mode, "scheduler": plain.solvers(mode)[0], **MODES[mode], **plain.values(1, mode)}
            outcome = render(engine, request(prompt=text(words), steps=2, guidance_scale=1.0, candidates=1, **more))[0]
            assert pixels(outcome) and outcome.tokens_lost == (words == least)
            has[words] = [any(told & set(row) for row in rows) for rows in seen.values()]
        assert all(has[most]) and not all(has[least]), has
        engine.close()
