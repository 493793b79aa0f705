"""Pipelines of modes are those of diffusers' Auto classes, which are not imported for them."""

import subprocess
import sys

import pytest
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image

from promptmill.configs.model import Model
from promptmill.configs.weights import Weights
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.pipeline_classes import INSTEAD, class_for, tables
from promptmill.pipelines.rendering.loaded_model import made_of
from promptmill.pipelines.rendering.loading import load_model
from promptmill.pipelines.work.errors import ModelError

AUTO = {
    "txt2img": AutoPipelineForText2Image,
    "controlnet": AutoPipelineForText2Image,
    "img2img": AutoPipelineForImage2Image,
    "controlnet_img2img": AutoPipelineForImage2Image,
    "inpaint": AutoPipelineForInpainting,
    "controlnet_inpaint": AutoPipelineForInpainting,
}


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux", "nine"])
def test_each_mode_has_the_class_the_components_and_the_config_that_the_auto_classes_give_it(family, folder, made):
    base = made(family)
    nets = {} if family == "flux" else {"canny": Weights(source=str(folder / "canny"))}
    model = Model(base=str(base), controlnets=nets)
    loaded, facts = load_model(model), read_facts(model)
    assert type(loaded.base) is type(AUTO[facts.modes[0]].from_pretrained(str(base)))
    for mode in facts.modes:
        parts = {"controlnet": loaded.controlnets["canny"]} if mode.startswith("controlnet") else {}
        ours = made_of(loaded.base, class_for(type(loaded.base).__name__, mode), parts)
        theirs = AUTO[mode].from_pipe(loaded.base, **parts)
        assert type(ours) is type(theirs)
        assert dict(ours.config) == dict(theirs.config)
        assert ours.components.keys() == theirs.components.keys()
        # Processors are made by each pipeline for itself; what holds weights is the same object.
        assert all(ours.components[name] is part for name, part in theirs.components.items() if hasattr(part, "state_dict"))


def test_every_family_has_a_class_for_each_of_its_modes_and_none_for_others():
    for mode, classes in tables().items():
        for family, name in classes.items():
            if family not in INSTEAD:
                assert class_for(name, mode)
    assert class_for("FluxControlPipeline", "img2img") == "FluxControlPipeline"
    with pytest.raises(ModelError, match="diffusers has no pipeline for txt2img beside FluxControlPipeline"):
        class_for("FluxControlPipeline", "txt2img")
    with pytest.raises(ModelError, match="diffusers has no pipeline for inpaint beside AuraFlowPipeline"):
        class_for("AuraFlowPipeline", "inpaint")


def test_an_engine_imports_neither_the_code_of_every_family_nor_what_no_worker_uses(tmp_path):
    program = """
import sys
from promptmill.configs.loading import load
from promptmill.pipelines.rendering.loading import load_model
model = load("quickstart", []).model
load_model(model).pipeline("controlnet_inpaint", ["canny"], "ddim")
print(*sorted(name for name in sys.modules if name in {"diffusers.pipelines.auto_pipeline", "diffusers.pipelines.flux"}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.split() == []
