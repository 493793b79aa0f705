"""What a run says of the hardware that a generator has come up on."""

from types import SimpleNamespace

import pytest

from promptmill.configs.loading import load
from promptmill.jobs.running.rendering import Run


@pytest.mark.parametrize(
    ("kind", "dtype", "times"),
    [({"gpu": "H200"}, "float32", 1), ({"gpu": "H200"}, "bfloat16", 0), ({"cpu": "x86_64"}, "float32", 0)],
    ids=["slow", "fast", "cpu"],
)
def test_float32_on_a_gpu_is_said_once_however_many_generators_come_up(kind, dtype, times):
    said, loaded = [], []
    told = SimpleNamespace(loaded=lambda: loaded.append(1))
    plan = SimpleNamespace(config=load("embedded", [f"model.dtype={dtype}"]))
    run = SimpleNamespace(plan=plan, told=told, say=said.append, check_hardware=lambda kind: None, _slow_said=False)
    for _ in range(3):
        Run.generator_loaded(run, kind)
    assert len(loaded) == 3 and len(said) == times
    assert all(line.startswith("model.dtype float32 leaves a GPU") for line in said)


@pytest.mark.parametrize(("compiles", "lines"), [("true", 1), ("false", 0)])
def test_that_blocks_are_compiled_is_said_while_actors_load(compiles, lines):
    said = []
    plan = SimpleNamespace(config=load("embedded", [f"model.kernels.compile={compiles}"]))
    Run._say_what_loading_takes(SimpleNamespace(plan=plan, say=said.append))
    assert len(said) == lines and all("compiles the model's blocks first" in line for line in said)
