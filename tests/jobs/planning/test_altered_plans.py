import dataclasses
import json

import pytest

from promptmill.configs.loading import load
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError, read_plan, write_plan
from promptmill.jobs.planning.shard_plans import read_shard, with_shard_hashes, write_shard
from promptmill.jobs.planning.sources import look
from promptmill.jobs.running.run import run
from promptmill.jobs.verifying.regenerate import regenerate
from promptmill.shards.storage import delete, get, join, names, put
from tests.jobs.finished import FIRST
from tests.jobs.running.test_run import HERE, Watching

NOT_ASKED = "altered: what it asks for is not what the plan's fingerprint is over"


def with_another_prompt(output, shard):
    """Alter one shard's plan as somebody would who can write there: whole, and with all that the file itself says being right."""
    plan = read_shard(output, shard)
    first = plan.requests[0]
    write_shard(
        output,
        dataclasses.replace(
            plan, requests=(dataclasses.replace(first, request=dataclasses.replace(first.request, prompt="x")), *plan.requests[1:])
        ),
    )


@pytest.fixture
def unfinished(tmp_path):
    """A planned output of two shards; returns the config, the plan, and the URI."""
    manifest, output = tmp_path / "m.txt", str(tmp_path / "out")
    manifest.write_text("a small red circle at the left on a black background\n" * 2)
    few = ("shards.size=1", "defaults.steps=1", "defaults.candidates=1", "model.batch=1", HERE)
    config = load("embedded", [f"manifest={manifest}", *few])
    return config, make_plan(look(config), output), output


def test_a_shards_plan_that_was_altered_is_not_rendered_and_with_it_brought_back_the_run_goes_on(unfinished):
    config, plan, output = unfinished
    whole = get(join(output, "plan/shards/000001.json.gz"))
    with_another_prompt(output, 1)
    watching = Watching()
    with pytest.raises(PlanError, match=rf"plan/shards/000001.json.gz: {NOT_ASKED}"):
        run(make_plan(look(config), output), output, watching)
    assert all(receipt.shard == 0 for receipt in watching.receipts)
    put(join(output, "plan/shards/000001.json.gz"), whole)
    assert run(plan, output, Watching()).kept == 2


def test_of_a_plan_without_its_shards_hashes_all_shards_are_looked_at_before_anything_starts(unfinished):
    _, plan, output = unfinished
    write_plan(output, dataclasses.replace(plan, shard_hashes=()))
    older = read_plan(output)
    assert older.shard_hashes == () and older.fingerprint == plan.fingerprint
    assert with_shard_hashes(output, older) == plan
    with_another_prompt(output, 1)
    with pytest.raises(PlanError, match="plan/shards: altered: what the shards are asked for"):
        run(older, output, Watching())
    assert [*names(join(output, "stats"))] == []


def test_a_shards_plan_that_is_missing_damaged_or_without_its_units_is_one_line(unfinished):
    _, plan, output = unfinished
    path = join(output, "plan/shards/000001.json.gz")
    write_shard(output, dataclasses.replace(read_shard(output, 1), units=()))
    with pytest.raises(PlanError, match="its units do not hold each of its requests once"):
        read_shard(output, 1, plan)
    for content in (b"no gzip", get(path)[:-9], get(path)[:20]):
        put(path, content)
        with pytest.raises(PlanError, match="damaged") as caught:
            read_shard(output, 1, plan)
        assert len(str(caught.value).splitlines()) == 1
    delete(path)
    with pytest.raises(PlanError, match="missing"):
        read_shard(output, 1, plan)


def test_hashes_of_shards_that_are_not_those_of_the_fingerprint_are_refused(unfinished):
    _, plan, output = unfinished
    for hashes in (plan.shard_hashes[::-1], plan.shard_hashes[:1]):
        write_plan(output, dataclasses.replace(plan, shard_hashes=hashes))
        with pytest.raises(PlanError, match="its fingerprint is not over the hashes of its shards"):
            read_plan(output)


def test_an_image_of_an_altered_shard_is_not_made_again(planned):
    with_another_prompt(planned, 0)
    with pytest.raises(PlanError, match=rf"plan/shards/000000.json.gz: {NOT_ASKED}"):
        regenerate(planned, FIRST)


def test_changes_are_not_accepted_of_a_committed_shard_whose_plan_was_altered(clean_planned, planned):
    """Else the new plan's fingerprint would be over what somebody put there."""
    plan, first = clean_planned
    manifest = first.removesuffix("/out") + "/manifest.jsonl"
    config = plan.config.model_copy(update={"seed": plan.config.seed + 1})
    assert len(json.loads(get(join(planned, "index.json")))["shards"]) == 3
    with_another_prompt(planned, 1)
    with pytest.raises(PlanError, match=rf"plan/shards/000001.json.gz: {NOT_ASKED}"):
        make_plan(look(config.model_copy(update={"manifest": manifest})), planned, accept_changes=True)


def test_the_fingerprint_of_an_earlier_plan_is_no_path(clean_planned, planned, tmp_path):
    put(str(tmp_path / "plan.json"), get(join(planned, "plan/plan.json")))
    (tmp_path / "out" / "plan" / "earlier").mkdir()
    assert read_plan(planned, "../../../plan") is None
