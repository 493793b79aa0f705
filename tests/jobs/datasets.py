"""Datasets with their plans for tests: planned from a real manifest, of shards that nobody had to render."""

import dataclasses
import json

from promptmill.configs.loading import load
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import put_hardware, write_plan
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.planning.sources import look
from promptmill.jobs.running.finishing import finish, made_of
from promptmill.pipelines.rendering.hardware import hardware_kind
from promptmill.shards.assembly import Assembly, assemble
from promptmill.shards.commits import read_records
from promptmill.shards.parts import part_name, write_part
from tests.shards.made import assembled, shard

SHARDS = 3
ROWS = 8  # a shard


def planned_dataset(folder, *settings, **columns):
    """A finished dataset of three shards in folder/out, the second without a kept image; returns the plan and the URI.

    Each row of its manifest has the columns, too.
    """
    manifest, output = folder / "manifest.jsonl", str(folder / "out")
    rows = [{"prompt": f"a “cat”, number {row}", "topic": "cats", "weight": 7.5, **columns} for row in range(SHARDS * ROWS)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load("embedded", [f"manifest={manifest}", f"shards.size={ROWS}", "defaults.candidates=2", *settings])
    plan = dataclasses.replace(make_plan(look(config), output), embedding=4)
    write_plan(output, plan)
    put_hardware(output, hardware_kind(config.model.threads))
    commit_planned(output, plan, range(SHARDS))
    finish(plan, output, read_records(output))
    return plan, output


def commit_planned(output, plan, shards, generations=None):
    """What a run would do with these shards of the dataset, at no cost; the same bytes each time."""
    for number in shards:
        made = shard(number, statuses=("rejected", "failed") if number == 1 else ("kept", "rejected"))
        # Of the plan's carried columns, lists are none.
        parts = tuple(tuple({k: v for k, v in row.items() if k != "tags"} for row in part) for part in made.parts)
        more = {"fingerprint": plan.fingerprint, "generation": (generations or {}).get(number, 0)}
        assembled(output, dataclasses.replace(made, parts=parts), form=made_of(plan, []).form, **more)


def rendered_here(config, output):
    """What a run of a config makes, by the calls that its actors make, without actors; returns the plan."""
    from promptmill.pipelines.rendering.engine import Engine
    from promptmill.pipelines.rendering.loading import device_here
    from promptmill.pipelines.scoring.clip import load_clip
    from promptmill.pipelines.scoring.finishing import finish as finished

    plan = make_plan(look(config), output)
    put_hardware(output, hardware_kind(config.model.threads))
    config, form = plan.config, plan.form
    recipe = plan.recipe(output)
    engine, clip = (
        Engine(config.model, config.seed, plan.roots, prompts=config.prompts),
        load_clip(config.ranking, device_here(), threads=1),
    )
    for number in range(plan.shards):
        planned = read_shard(output, number)
        for unit in planned.cut():
            rows = finished(unit, engine.render(unit), clip, recipe).rows
            write_part(output, part_name(unit.name), rows, form, plan.fingerprint)
        parts = [part_name(unit.name) for unit in planned.cut()]
        image_format, requests = config.shards.image_format, len(planned.requests)
        gathered = Assembly(number, parts, [], requests, planned.candidates)
        assemble(output, gathered, form, image_format, plan.fingerprint)
    finish(plan, output, read_records(output))
    return plan
