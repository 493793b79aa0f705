"""What is left out of imports is there as soon as it is used; each in a process of its own, where nothing is imported yet."""

import subprocess
import sys


def says(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


LOADED = """
import sys
from promptmill.configs.loading import load
from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.scoring.scorers import load_scorers
config = load("quickstart", ["defaults.steps=2"])
engine = Engine(config.model, 0, None)
for mode in ("txt2img", "controlnet_inpaint"):
    engine.model.pipeline(mode, ["canny"] if "control" in mode else [], "dpmpp_2m")
load_scorers(config.ranking, "cpu", 1)
"""


def test_loading_the_models_imports_nothing_of_what_is_left_out_and_each_is_the_module_itself_as_soon_as_it_is_used():
    modules = "torch._dynamo torch._inductor scipy.integrate scipy.optimize scipy.stats torchvision.datasets timm boto3 torchao"
    modules += " diffusers.pipelines.auto_pipeline diffusers.models.transformers.transformer_flux"
    program = f"""{LOADED}
print("imported:", *(name for name in {modules.split()!r} if name in sys.modules))
import scipy, scipy.optimize, scipy.stats, torch, torchvision
import transformers.loss.loss_for_object_detection as loss
print(*loss.linear_sum_assignment([[4, 1], [1, 4]])[1], scipy.stats.norm.cdf(0), torchvision.datasets.MNIST.__name__)
print(scipy.stats is sys.modules["scipy.stats"], torch._dynamo is sys.modules["torch._dynamo"], bool(scipy.stats.__file__))
engine.close()
"""
    assert says(program) == ["imported:", "1", "0", "0.5", "MNIST", "True", "True", "True"]


def test_before_anything_is_compiled_torch_knows_the_classes_that_diffusers_marked():
    program = """
from promptmill.pipelines.rendering.libraries import diffusers, of_diffusers
of_diffusers("UNet2DConditionModel")
from promptmill.pipelines.work import lean_imports
marked = list(lean_imports._to_allow)
lean_imports.for_compiling()
of_diffusers("FluxTransformer2DModel")
import torch._dynamo.trace_rules as rules
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_flux import FluxTransformerBlock
known = lambda kind: id(kind) in rules._allowed_callable_ids.function_ids
print(len(marked) > 0, all(map(known, marked)), known(BasicTransformerBlock), known(FluxTransformerBlock))
"""
    assert says(program) == ["True", "True", "True", "True"]


def test_packages_are_found_by_their_distributions_as_ever():
    program = """
import importlib.metadata
from promptmill.pipelines.work.lean_imports import lean_imports
plain = importlib.metadata.packages_distributions()
with lean_imports():
    lean = importlib.metadata.packages_distributions()
print(dict(lean) == plain, lean["PIL"] == plain["PIL"], importlib.metadata.packages_distributions() == plain)
"""
    assert says(program) == ["True", "True", "True"]
