import pytest
import torch

from promptmill.configs.parameters import Defaults
from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering import gpus
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.loading import load_model
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.rendering.warming import warm
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.results import Failure
from tests.pipelines import tiny_unets, tiny_unprompted
from tests.pipelines.engines import BATCH, model_of
from tests.pipelines.plain import JOB_SEED

SIZE = Defaults(width=88, height=56, scheduler="ddim")


@pytest.fixture(scope="module")
def model(folder):
    """The tiny Stable Diffusion, whose calls no engine holds."""
    return load_model(model_of(folder, controlnets={}))


def test_on_a_cpu_that_compiles_nothing_no_batch_is_rendered(folder, monkeypatch):
    monkeypatch.setattr(Slots, "run", lambda *_: pytest.fail("a batch was rendered"))
    Engine(model_of(folder, controlnets={}), JOB_SEED, Roots((str(folder),)), warmed=SIZE).close()


def test_a_batch_that_does_not_fit_is_one_line_at_the_start(model, monkeypatch):
    def full(**_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")

    path = Slots(model, BATCH)
    monkeypatch.setattr(path.denoiser, "run", full)
    try:
        with pytest.raises(ModelError, match=rf"^out of memory at batch {BATCH} of 88 x 56 pixels; set model\.batch lower$"):
            warm(path, ("txt2img",), SIZE)
    finally:
        path.close()


@pytest.mark.parametrize("mode", ["txt2img", "img2img", "inpaint"])
def test_a_batch_of_every_mode_is_full_and_has_no_failure(model, mode):
    path, failed = Slots(model, BATCH), []
    run = path.run
    path.run = lambda jobs: failed.extend(run(jobs))
    try:
        warm(path, (mode,), SIZE)
        assert not failed
        assert path.share == 1 and path.decoder.rows == BATCH * path.decoder.calls > 0
    finally:
        path.close()


@pytest.mark.parametrize(("share", "limited"), [(0.75, [0.75]), (1.0, []), (2.0, [])])
def test_a_process_is_held_to_its_share_of_a_gpus_memory(monkeypatch, share, limited):
    said = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", said.append)
    gpus.keep_to_share(share)
    assert said == limited


def test_a_model_that_draws_classes_is_warmed_with_one_of_them(folder):
    path = Slots(load_model(model_of(folder, base=str(tiny_unprompted.dit(folder / "dit-to-warm")), controlnets={})), BATCH)
    warm(path, ("txt2img",), Defaults(width=16, height=16, scheduler="ddim"))
    assert path.denoiser.calls and path.decoder.calls
    path.close()


@pytest.mark.parametrize("mode", ["txt2img", "img2img"])
def test_a_model_that_draws_in_boxes_is_warmed_with_one(folder, mode, caplog):
    base = tiny_unets.gligen(folder / f"gligen-to-warm-{mode}", 4 if mode == "txt2img" else 9)
    path = Slots(load_model(model_of(folder, base=str(base), controlnets={})), BATCH)
    warm(path, (mode,), Defaults(width=64, height=64, scheduler="ddim"))
    assert path.denoiser.calls and path.decoder.calls and "no batch was rendered" not in caplog.text
    path.close()


def test_a_batch_that_cannot_be_rendered_is_said(model, monkeypatch, caplog):
    path = Slots(model, BATCH)
    monkeypatch.setattr(path, "run", lambda jobs: [Failure("render_error", "no such scheduler")])
    try:
        warm(path, ("txt2img",), SIZE)
        assert "no batch was rendered at the start: no such scheduler" in caplog.text
    finally:
        path.close()
