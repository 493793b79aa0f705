"""The engine takes fewer batches than diffusers on sorted requests, and no more rows, as `benchmarks.families` counts both."""

import pytest

from benchmarks.engine import Contender, PlainCalls, sorted_groups
from benchmarks.families import NAMES, as_jobs, counted, mixed, with_controls
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.rendering.slots import Slots


@pytest.mark.parametrize("family", NAMES)
def test_a_mixed_manifest_takes_fewer_batches_than_perfectly_sorted_groups_and_no_more_rows(folder, tmp_path, family):
    model = with_controls(family, tmp_path, batch=4)
    facts = read_facts(model)
    requests = mixed(16, facts.modes, "ddim" if "ddim" in facts.schedulers else "euler", steps=(2, 3, 4))
    assert any(one.controls for one in requests) == bool(model.controlnets)
    jobs = as_jobs(requests, folder)
    natural, rows, _ = counted(Contender(model, PlainCalls), sorted_groups(jobs))
    batches, taken, _ = counted(Contender(model, Slots), jobs)
    assert natural >= 1.5 * batches and taken <= rows
