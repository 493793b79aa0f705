import pytest
import torch

from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.rendering.tuning import Trial, choose, tune
from promptmill.pipelines.work.units import Placed
from tests.pipelines.engines import model_of
from tests.pipelines.plain import JOB_SEED, MODES, request


def test_the_smallest_batch_that_is_about_as_fast_as_the_best_pays():
    assert choose([Trial(1, 1.0), Trial(2, 1.9), Trial(4, 2.0), Trial(8, None)]).batch == 2
    assert choose([Trial(1, 1.0), Trial(2, 2.0), Trial(4, 4.0)]).batch == 4
    with pytest.raises(ValueError, match="not even a batch of 1 fits"):
        choose([Trial(1, None)])


def test_batches_are_tried_on_the_real_model_until_one_does_not_fit(folder, monkeypatch):
    real = Slots.step

    def step(self):
        if self.decoder.shape >= 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self)

    monkeypatch.setattr(Slots, "step", step)
    placed = Placed(0, request(mode="img2img", **MODES["img2img"]))
    tuned = tune(model_of(folder), placed, JOB_SEED, Roots((str(folder),)))
    assert [trial.batch for trial in tuned.trials] == [1, 2, 4]
    assert [trial.images_s is None for trial in tuned.trials] == [False, False, True]
    assert tuned.batch in (1, 2)


def test_a_request_that_cannot_be_rendered_says_so(folder):
    placed = Placed(0, request(mode="img2img", init_image="cut.png", strength=0.5))
    with pytest.raises(ValueError, match=r"init_image: cut\.png"):
        tune(model_of(folder), placed, JOB_SEED, Roots((str(folder),)))


def test_a_family_without_a_unet_is_timed_too(folder, made):
    model = model_of(folder, base=str(made("flux")), controlnets={})
    placed = Placed(0, request(width=16, height=16, scheduler="euler", guidance_scale=1.0))
    tuned = tune(model, placed, JOB_SEED, Roots((str(folder),)), batches=(1, 2))
    assert [trial.batch for trial in tuned.trials if trial.images_s] == [1, 2]
