import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.actors.flow.actor_slots import AbortError
from promptmill.configs.loading import load
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.sources import look
from promptmill.jobs.running.failure_budget import FailureBudget
from promptmill.jobs.running.run import run
from promptmill.shards.commits import CommitRecord
from tests.jobs.running.test_run import HERE, Watching, published


@given(st.integers(0, 1000), st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_share_is_spent_once_more_than_it_has_failed_exactly(tenths, failed, planned):
    budget = FailureBudget(f"{tenths // 10}.{tenths % 10}%", planned, failed)
    assert budget.spent == (1000 * failed > tenths * planned)
    assert FailureBudget(tenths, planned, failed).spent == (failed > tenths)
    assert not FailureBudget(None, planned, failed).spent


def test_what_failed_in_committed_shards_counts_too():
    records = [CommitRecord(shard, 0, (), "f" * 64, requests=4, failed=shard) for shard in (1, 2)]
    budget = FailureBudget.beside(3, 8, records)
    assert (budget.failed, budget.spent) == (3, False)
    budget.add(1, {"died": 1})
    assert budget.spent


def test_a_run_stops_once_more_has_failed_than_it_may_and_goes_on_when_it_may(tmp_path):
    """Rows 3 to 6 lose their images behind the plan's back; bad rows do not count."""
    prompt = "a small red circle at the left on a black background"
    rows = [{"id": f"r{n}", "prompt": prompt, **({"init_image": f"gone-{n}.png"} if 3 <= n < 7 else {})} for n in range(24)]
    rows += [{"id": f"bad{n}", "prompt": prompt, "steps": 0} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        f"manifest={tmp_path / 'rows.jsonl'}",
        "defaults.steps=2",
        "defaults.candidates=2",
        "model.batch=4",
        "shards.size=3",
    ]
    settings += ["runtime.on_bad_row=record", "runtime.check_images=at_run", HERE]

    def rendered(out, *more):
        plan = make_plan(look(load("embedded", [*settings, *more])), str(out))
        watching = Watching()
        return watching, lambda: run(plan, str(out), watching)

    _, whole = rendered(tmp_path / "whole")
    totals = whole()
    assert totals.failed == 8

    out = tmp_path / "out"
    watching, begun = rendered(out, "runtime.max_failed=10%")
    with pytest.raises(AbortError) as stopped:
        begun()
    failed = sum(receipt.failed for receipt in watching.receipts)
    assert 4.8 < failed <= 8
    assert sum(receipt.candidates for receipt in watching.receipts) < 40
    (line,) = str(stopped.value).splitlines()
    assert line.startswith(
        f"runtime.max_failed 10%: {failed} of 48 candidates have failed (in this run: bad_image {failed // 2}); "
    )
    assert not (out / "_SUCCESS").exists()

    # What has failed stays counted, in the shards that were committed.
    watching, again = rendered(out, "runtime.max_failed=4")
    with pytest.raises(AbortError, match=r"^runtime.max_failed 4: [5-8] of 48 candidates have failed"):
        again()
    _, on = rendered(out, "runtime.max_failed=8")
    assert on() == totals
    assert published(out) == published(tmp_path / "whole")
