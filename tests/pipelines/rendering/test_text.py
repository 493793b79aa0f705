from types import SimpleNamespace

import pytest
import torch

from promptmill.pipelines.rendering import text
from promptmill.pipelines.rendering.text import TextEncoder

WIDTH = 16


class StableDiffusionLike:
    """Encodes a text as its length; counts how many it is asked for."""

    components = {"unet": None}  # noqa: RUF012

    def __init__(self):
        self.encoded = []

    def encode_prompt(self, prompt, negative_prompt=None, **options):
        self.encoded += dict.fromkeys(negative_prompt or prompt)
        made = torch.tensor([[float(len(t))] * WIDTH for t in negative_prompt or prompt]).reshape(len(prompt), 1, WIDTH)
        return made, made


@pytest.fixture
def base():
    return StableDiffusionLike()


@pytest.fixture
def encoder(base):
    return TextEncoder(SimpleNamespace(base=base, clip_skip=0, device="cpu"), 4)


def held(encoder):
    return sum(part.numel() * part.element_size() for parts in encoder._kept.values() for part in parts)


def test_no_more_is_kept_than_so_many_bytes(encoder, base, monkeypatch):
    monkeypatch.setattr(text, "KEPT", 5 * WIDTH * 4)
    for number in range(1, 30):
        made = encoder.arguments(["x" * number] * 3, ["ugly"] * 3, (), guided=True)
        assert made["prompt_embeds"].shape == (3, 1, WIDTH) and (made["prompt_embeds"] == number).all()
        assert held(encoder) == encoder._bytes <= 5 * WIDTH * 4
    # The latest are there still, and what every call needs never goes.
    assert base.encoded.count("ugly") == 1
    encoder.arguments(["x" * 29], ["ugly"], (), guided=True)
    assert base.encoded.count("x" * 29) == 1
    encoder.arguments(["x"], ["ugly"], (), guided=True)
    assert base.encoded.count("x") == 2


def test_one_call_may_need_more_than_is_kept(encoder, monkeypatch):
    monkeypatch.setattr(text, "KEPT", 2 * WIDTH * 4)
    prompts = ["x" * number for number in range(1, 10)]
    assert encoder.arguments(prompts, prompts, (), guided=False)["prompt_embeds"][:, 0, 0].tolist() == list(range(1, 10))
    assert held(encoder) == 2 * WIDTH * 4
