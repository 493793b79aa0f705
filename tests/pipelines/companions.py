"""What requests that share a unit may not change: the latents and the pixels of each of their images."""

from contextlib import contextmanager

import numpy as np
import pytest

from promptmill.pipelines.rendering import calls
from tests.pipelines.engines import pixels, render


@contextmanager
def pixels_before_rounding():
    """Yields the same of a model without a VAE: the pixels of each image as the pipeline makes them."""
    seen, previewed = [], calls._previewed

    def called(*args):
        made = previewed(*args)
        seen.extend(np.asarray(one).tobytes() for one in made.images)
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calls, "_previewed", called)
        yield seen


@contextmanager
def latents(engine):
    """Yields the latents that are decoded meanwhile, of each image its bytes: pixels hide what is less than a level."""
    vae, seen = engine.model.vae, []
    if vae is None:
        with pixels_before_rounding() as seen:
            yield seen
        return
    held = vae.decode

    def decode(given, *args, **kwargs):
        seen.extend(one.numpy().tobytes() for one in given)
        return held(given, *args, **kwargs)

    vae.decode = decode
    yield seen
    vae.decode = held


def the_same_latents_whatever_the_companions(engine, some, outcomes, together):
    """Compare the images and latents of requests that made one unit with those in another order and of each alone."""
    images = [pixels(outcome) for outcome in outcomes]
    with latents(engine) as turned:
        for mine, wanted in zip(render(engine, *some[::-1])[::-1], images, strict=True):
            np.testing.assert_array_equal(pixels(mine), wanted)
    with latents(engine) as alone:
        for one, wanted in zip(some, images, strict=True):
            np.testing.assert_array_equal(pixels(render(engine, one)[0]), wanted, err_msg=str(one))
    assert sorted(together) == sorted(turned) == sorted(alone)
    assert len(set(together)) == len(together) == sum(one.candidates for one in some)


def made_the_same_whatever_the_companions(engine, some):
    """The pictures of requests in one unit, checked to be those in another order and alone, which costs a quarter more calls."""
    before = engine.path.denoiser.calls
    together = [pixels(outcome) for outcome in render(engine, *some)]
    shared = engine.path.denoiser.calls - before
    np.testing.assert_array_equal(together, [pixels(outcome) for outcome in render(engine, *some[::-1])][::-1])
    before = engine.path.denoiser.calls
    np.testing.assert_array_equal(together, [pixels(render(engine, one)[0]) for one in some])
    assert shared < 0.8 * (engine.path.denoiser.calls - before)
    return together
