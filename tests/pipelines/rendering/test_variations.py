"""That variations have noise between that of two seeds, and that nothing beside them changes."""

import math
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptmill.pipelines.rendering.variations import between, check_varied, generator_of
from promptmill.pipelines.work.units import candidate_seed, variation_of
from tests.pipelines.engines import BATCH, pixels, render
from tests.pipelines.plain import JOB_SEED, request


def noise(seed):
    return torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))


@given(share=st.floats(0, 1), one=st.integers(0, 99), other=st.integers(100, 199))
def test_the_noise_between_two_lies_on_the_great_circle_at_its_share(share, one, other):
    a, b = noise(one), noise(other)
    made = between(a, b, share)

    def angle(x, y):
        x, y = x.double().flatten(), y.double().flatten()
        return math.acos(min(1, max(-1, float(torch.dot(x, y) / (x.norm() * y.norm())))))

    assert angle(a, made) == pytest.approx(_turned(a, b, share), abs=2e-3)
    lengths = sorted((float(a.norm()), float(b.norm())))
    assert lengths[0] * 0.97 <= float(made.norm()) <= lengths[1] * 1.03


def _turned(a, b, share):
    """The angle of the mixed vectors, which are not quite of one length."""
    x, y = a.double().flatten(), b.double().flatten()
    angle = float(torch.acos(torch.dot(x, y) / (x.norm() * y.norm())))
    along = math.sin((1 - share) * angle) * float(x.norm()) + math.sin(share * angle) * float(y.norm()) * math.cos(angle)
    across = math.sin(share * angle) * float(y.norm()) * math.sin(angle)
    return math.atan2(across, along)


def test_the_ends_are_the_noises_themselves_and_the_same_noise_stays_what_it_is():
    a, b = noise(1), noise(2)
    assert torch.equal(between(a, b, 0.0), a) and torch.equal(between(a, b, 1.0), b) and torch.equal(between(a, a, 0.5), a)


def test_candidates_that_vary_have_one_seed_and_count_the_other_up():
    varied = request(seed=7, variation_seed=2**32 - 1, variation_strength=0.3)
    assert [candidate_seed(0, varied, k) for k in range(3)] == [7, 7, 7]
    assert [variation_of(varied, k) for k in range(3)] == [(2**32 - 1, 0.3), (0, 0.3), (1, 0.3)]
    unseeded = replace(varied, seed=None)
    assert {candidate_seed(5, unseeded, k) for k in range(3)} == {candidate_seed(5, request(), 0)}
    assert variation_of(request(), 0) is None


@pytest.fixture(params=["engine", "flux"])
def family(request):
    return request.getfixturevalue(request.param)


def test_a_share_of_none_is_the_seeds_image_and_a_share_of_all_the_others(family):
    scheduler = {"scheduler": "euler"}
    seven, nine = (pixels(render(family, request(seed=seed, candidates=1, **scheduler))[0])[0] for seed in (7, 9))
    none, all_ = (
        pixels(render(family, request(seed=7, variation_seed=9, variation_strength=share, candidates=1, **scheduler))[0])[0]
        for share in (0.0, 1.0)
    )
    assert np.array_equal(none, seven) and np.array_equal(all_, nine) and not np.array_equal(seven, nine)


def test_a_variation_is_what_plain_diffusers_makes_of_the_noise_between(engine, folder):
    row = request(seed=7, variation_seed=9, variation_strength=0.4, candidates=2, steps=4)
    plain = diffusers.StableDiffusionPipeline.from_pretrained(folder / "sd", safety_checker=None, requires_safety_checker=False)
    plain.scheduler = diffusers.DDIMScheduler.from_config(plain.scheduler.config)
    plain.set_progress_bar_config(disable=True)
    shape = (1, plain.unet.config.in_channels, 64 // plain.vae_scale_factor, 64 // plain.vae_scale_factor)

    def drawn(seed):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    made = pixels(render(engine, row)[0])
    for index, image in enumerate(made):
        latents = between(drawn(7), drawn(9 + index), 0.4).repeat(BATCH, 1, 1, 1)
        said = {"num_inference_steps": 4, "guidance_scale": 4.0, "latents": latents, "output_type": "np"}
        wanted = np.rint(plain([row.prompt] * BATCH, **said).images[0] * 255).astype(np.uint8)
        assert np.array_equal(image, wanted)


def test_companions_of_variations_have_their_own_noise_and_so_have_variations_beside_others(engine):
    varied = request("v", seed=7, variation_seed=9, variation_strength=0.5)
    others = request("o", seed=11), request("i", seed=12, mode="img2img", init_image="a.png", strength=0.7, candidates=1)
    together = [pixels(outcome) for outcome in render(engine, others[0], varied, others[1])]
    alone = [pixels(render(engine, one)[0]) for one in (others[0], varied, others[1])]
    for some, each in zip(together, alone, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(some, each, strict=True))
    first, second = alone[1]
    assert not np.array_equal(first, second)


def test_variations_of_img2img_vary_the_noise_and_not_how_the_picture_is_read(engine):
    plain = request(seed=7, mode="img2img", init_image="a.png", strength=0.7, candidates=1)
    varied = [pixels(render(engine, replace(plain, variation_seed=9, variation_strength=s))[0])[0] for s in (0.0, 0.3, 1.0)]
    assert np.array_equal(varied[0], pixels(render(engine, plain)[0])[0])
    distances = [np.abs(one.astype(int) - varied[0]).mean() for one in varied]
    assert 0 == distances[0] < distances[1] < distances[2]


def test_a_pipeline_that_draws_no_such_noise_is_said():
    with pytest.raises(ValueError, match="there are no variations of it"):
        check_varied([generator_of(1, None), generator_of(1, (2, 0.5))])
    check_varied([generator_of(1, None)])
    assert candidate_seed(JOB_SEED, request(seed=3), 2) == 5
