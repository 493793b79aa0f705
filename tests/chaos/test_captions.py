"""Kills in the middle of captions, of stand-in work: units whose images are chosen, enlarged, and on their way to be described."""

import os
import signal
import time
from pathlib import Path

import duckdb

from promptmill.shards.storage import names
from tests.chaos.site import HERE, Site, plan, problems, published
from tests.chaos.test_stages import passes
from tests.pipelines.tiny_languages import llava

UNITS = 6


def test_a_driver_that_is_killed_amid_captions_goes_on_there_to_the_same_bytes(tmp_path):
    model = llava(tmp_path / "llava")
    stages = "stages=[{kind: hires, scale: 2, strength: 1}]"
    settings = (stages, f"captions={{model: {{source: {model}}}}}", "shards.image_format=webp")
    template = plan(tmp_path, UNITS, settings=settings)
    calm = Site.of(template, tmp_path / "calm", HERE, "--seconds", "0")
    assert calm.finish() == 1 and problems(calm.out) == []
    # Rendered, enlarged and captioned, each once.
    assert set(passes(calm).values()) == {3}
    rows = duckdb.sql(
        f"SELECT selected, width, count(DISTINCT caption), count(*) FROM '{calm.out}/metadata/*.parquet' GROUP BY ALL"
    )
    assert sorted(rows.fetchall()) == [(False, 64, 0, 18), (True, 128, 18, 18)]

    site = Site.of(template, tmp_path / "killed", HERE, "--seconds", "0.2")

    def attack(driver):
        while not (site.notes / "captioned").exists():
            time.sleep(0.02)
        os.kill(driver, signal.SIGKILL)

    assert site.run(attack=attack).status == -signal.SIGKILL
    begun, there = passes(site), {*names(f"{site.out}/parts")}
    assert any("-stage-0001" in name for name in there)
    site.finish()
    assert published(Path(site.out)) == published(Path(calm.out)) and problems(site.out) == []
    # A unit whose images waited for captions was neither rendered nor enlarged again: its captions alone were.
    waiting = [name for name in begun if any(part.startswith(f"{name}-stage-0001") for part in there)]
    assert waiting and all(passes(site)[name] - begun[name] <= 1 for name in waiting)
    assert [*names(f"{site.out}/parts")] == []
