"""Schedules that rows ask for, tried before anything renders: what diffusers fails at is a bad row, and nothing else is."""

import json
import subprocess
import sys

import pytest

from promptmill.configs.loading import load
from promptmill.configs.scheduler_options import SchedulerOptions
from promptmill.configs.schedulers import OWN, SCHEDULERS
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sources import look
from promptmill.jobs.planning.trials import MOST, SAFE_STEPS, Trials
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.scheduler_options import class_of
from promptmill.pipelines.rendering.engine import Engine
from tests.pipelines.conftest import folder, made  # noqa: F401 (fixtures)
from tests.pipelines.engines import model_of, render
from tests.pipelines.plain import JOB_SEED, MODES, request
from tests.pipelines.tiny_editors import EDITORS

NOISE = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "steps_offset": 1}
SAVED = {
    "noise": NOISE,
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "flow by size": {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
    "flow by a solver": {
        "_class_name": "DPMSolverMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
    },
    "EDM": {"_class_name": "EDMEulerScheduler"},
    "LCM": {"_class_name": "LCMScheduler"},
}


LEARNED = {"_class_name": "DDPMScheduler", "variance_type": "learned_range", "thresholding": True}


@pytest.mark.parametrize(
    ("saved", "scheduler", "steps", "said"),
    [
        ({"_class_name": "CMStochasticIterativeScheduler", "num_train_timesteps": 40}, OWN, 40, None),
        ({"_class_name": "CMStochasticIterativeScheduler", "num_train_timesteps": 40}, OWN, 41, "the model was trained with 40"),
        ({"_class_name": "DDPMWuerstchenScheduler"}, OWN, 900, None),
        (LEARNED, OWN, 300, None),
        (LEARNED, "ddpm", 300, None),
        (LEARNED, "dpmpp_2m", 300, None),
    ],
)
def test_schedules_of_pixels_of_stages_and_of_consistency_models_are_tried_as_they_are_taken(saved, scheduler, steps, said):
    answer = Trials(saved, SchedulerOptions(), "down")(scheduler, steps, None)
    assert answer is None if said is None else said in answer


@pytest.mark.parametrize("saved", SAVED)
def test_what_is_usual_is_let_pass(saved):
    # An option that changes nothing has each schedule tried.
    given = {"EDM": {"sigma_min": 0.002}, "flow by a solver": {"solver_order": 2}}.get(saved, {"shift": 3.0})
    options = SchedulerOptions(**({"prediction_type": "epsilon"} if saved in ("noise", "LCM") else given))
    if saved == "flow by size":
        options = SchedulerOptions(use_dynamic_shifting=True)
    trials = Trials(SAVED[saved], options, "down")
    rigid = ("heun", "dpmpp_2m") if saved == "flow by size" else ()
    schedulers = [name for name in (*SCHEDULERS, OWN) if class_of(name, SAVED[saved]) and name not in rigid]
    for name in schedulers:
        for steps, strength in ((1, None), (2, None), (4, 0.3), (9, 0.5), (20, None), (50, None)):
            assert trials(name, steps, strength) is None, (name, steps, strength)
    assert len(trials._tried) >= 5 * len(schedulers)


# By scheduler and options, steps, and what is said; the last by what renders though it looks like the one before.
CASES = [
    ("ddim", {"steps_offset": 100}, 20, r"its steps begin at timestep 1050, and the model knows those up to 999"),
    ("euler", {"timestep_spacing": "leading", "steps_offset": 100}, 20, "its steps begin at timestep 1050"),
    ("ddim", {"steps_offset": 100}, 4, None),
    ("lcm", {"original_inference_steps": 4}, 5, "original_inference_steps is 4, of which it takes some"),
    ("lcm", {"original_inference_steps": 5}, 5, None),
    ("tcd", {}, 51, "original_inference_steps is 50"),
    ("lcm", {}, 50, None),
    ("euler_a", {"prediction_type": "sample"}, 3, "NotImplementedError: prediction_type not implemented yet: sample"),
    ("pndm", {"prediction_type": "sample"}, 3, "ValueError: prediction_type given as sample"),
    ("ddim", {"prediction_type": "sample"}, 3, None),
    ("lcm", {"rescale_betas_zero_snr": True}, 4, "it divides by zero"),
    ("tcd", {"rescale_betas_zero_snr": True}, 4, "it divides by zero"),
    ("tcd", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, 4, None),
    ("unipc", {"lower_order_final": False}, 4, "it divides by zero"),
    ("dpmpp_2m", {"use_beta_sigmas": True}, 60, "two of them fall on one timestep"),
    ("dpmpp_2m", {"use_beta_sigmas": True}, 6, None),
    ("dpmpp_2m_karras", {"rescale_betas_zero_snr": True}, 60, "two of them fall on one timestep"),
    ("ddim", {}, 1000, "IndexError: index 1000 is out of bounds"),
    ("ddim", {}, 999, None),
]


@pytest.mark.parametrize(("scheduler", "options", "steps", "says"), CASES)
def test_a_schedule_is_refused_where_diffusers_fails_at_it_and_nowhere_else(folder, scheduler, options, steps, says):  # noqa: F811
    model = model_of(folder, controlnets={}, scheduler_options=options)
    reason = Trials.of(model, read_facts(model))(scheduler, steps, None)
    assert (reason is None) == (says is None), reason
    if says is not None:
        assert says in reason and reason.startswith(f"{scheduler} (") and f"cannot take {steps} steps" in reason
        assert "\n" not in reason and all(f"{name}: {value}" in reason for name, value in options.items())
    if steps > 100 or "model knows" in str(says) or "timestep 1050" in str(says):
        return  # long, or a step of noise that the model was not trained with, which not every scheduler fails at
    engine = Engine(model, JOB_SEED, Roots((str(folder),)))
    (outcome,) = render(engine, request(scheduler=scheduler, steps=steps, candidates=1))
    engine.close()
    failed = outcome.failure or outcome.candidates[0].failure
    assert (failed is None) == (says is None), failed


def test_a_strength_that_leaves_a_distilled_schedule_too_short_is_told(folder, made):  # noqa: F811
    base = made("lcm")
    if not base.exists():
        EDITORS["lcm"](base)
    model = model_of(folder, base=str(base), controlnets={})
    trials = Trials.of(model, read_facts(model))
    assert trials("lcm", 8, 0.5) is None
    assert trials("lcm", 8, 0.1).startswith("lcm (LCMScheduler) cannot take 8 steps at a strength of 0.1: original_inference_")
    engine = Engine(model, JOB_SEED, Roots((str(folder),)))
    begun = {**MODES["img2img"], "mode": "img2img", "steps": 8, "scheduler": "lcm"}
    fine, wrong = render(engine, *(request(f"r{strength}", **begun | {"strength": strength}) for strength in (0.5, 0.1)))
    engine.close()
    assert fine.failure is None and wrong.failure is not None


def test_such_rows_are_bad_rows_of_the_plan_and_so_are_those_whose_draft_cannot_be_taken(tmp_path):
    rows = [{"prompt": "a small red circle", "scheduler": "lcm", "steps": steps} for steps in (4, 60, 20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"manifest={tmp_path / 'rows.jsonl'}", "defaults.candidates=4"]
    with pytest.raises(PlanError) as caught:
        make_plan(look(load("embedded", given)), str(tmp_path / "out"))
    (said,) = (line for line in caught.value.problems if "cannot take" in line)
    reason = "lcm (LCMScheduler) cannot take 60 steps: original_inference_steps is 50, of which it takes some"
    assert said == f"{tmp_path / 'rows.jsonl'}, row 2: steps: {reason}"
    drafts = "ranking.drafts=[{steps: 3, keep: 3, scheduler: lcm}, {steps: 12, keep: 2, scheduler: lcm}]"
    options = "model.scheduler_options={original_inference_steps: 11}"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a small red circle", "scheduler": "lcm", "steps": 20}))
    with pytest.raises(PlanError) as caught:
        make_plan(look(load("embedded", [*given, drafts, options, "ranking.drafts_stochastic=true"])), str(tmp_path / "out"))
    assert any("cannot take 20 steps, with original_inference_steps: 11" in line for line in caught.value.problems)


def test_a_plan_without_odd_schedules_imports_no_torch(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a small red circle"}\n{"prompt": "a", "scheduler": "lcm", "steps": 8}\n')
    code = f"""
import sys
from promptmill.configs.loading import load
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.sources import look
make_plan(look(load("embedded", ["manifest={tmp_path / "rows.jsonl"}"])), {str(tmp_path / "out")!r})
print(*({{"torch", "diffusers"}} & set(sys.modules)))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "\n"


def test_a_manifest_of_a_schedule_a_row_is_not_tried_without_end(monkeypatch):
    tried = []
    monkeypatch.setattr(Trials, "_try", lambda self, *key: tried.append(key))
    trials = Trials(SAVED["noise"], SchedulerOptions(), "down")
    for steps in range(SAFE_STEPS + 1, SAFE_STEPS + 2 * MOST):
        trials("ddim", steps, None)
    assert len(tried) == len(trials._tried) == MOST
