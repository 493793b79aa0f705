"""Tiny models, each made once a session, and engines of them, each loaded once."""

from functools import cache

import pytest

from promptmill.configs.model import Model
from promptmill.configs.own_files import ROOT
from promptmill.configs.weights import Weights
from promptmill.manifests.images import Roots
from tests.pipelines.engines import model_of
from tests.pipelines.plain import JOB_SEED, paint


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Tiny models, and the pictures that requests name."""
    from tests.pipelines import tiny

    folder = tmp_path_factory.mktemp("models")
    tiny.stable_diffusion(folder / "sd")
    tiny.controlnet(folder / "canny")
    tiny.controlnet(folder / "seg", seed=4)
    paint(folder)
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:500])
    return folder


@pytest.fixture(scope="session")
def made(folder):
    """Returns the folder of a tiny model by its name, which is made when it is first asked for."""
    from tests.pipelines import tiny

    makers = {
        "sd2": lambda place: tiny.stable_diffusion(place, "v_prediction", use_linear_projection=True),
        "distilled": lambda place: tiny.stable_diffusion(place, time_cond_proj_dim=8),  # LCM's: guidance is an input
        "nine": tiny.inpainting,
        "sdxl": tiny.sdxl,
        "playground": tiny.playground,
        "flux": tiny.flux,
    }
    return cache(lambda name: makers[name](folder / name) if name in makers else folder / name)


def _engine(model, folder):
    from promptmill.pipelines.rendering.engine import Engine

    return Engine(model, JOB_SEED, Roots((str(folder),)))


@pytest.fixture(scope="session")
def engine(folder):
    """The tiny Stable Diffusion, by slots."""
    return _engine(model_of(folder), folder)


@pytest.fixture(scope="session")
def flux(folder, made):
    """A family without a UNet."""
    return _engine(model_of(folder, base=str(made("flux")), controlnets={}), folder)


@pytest.fixture(scope="session")
def shapes(folder):
    """The embedded family, whose pictures become something."""
    weights = ROOT / "embedded" / "weights"
    nets = {name: Weights(source=str(weights / f"controlnet-{name}")) for name in ("canny", "seg")}
    return _engine(Model(base=str(weights / "pipeline"), batch=4, controlnets=nets), folder)
