"""Every family through the whole job: planned, rendered, scored, published, verified, and made again, by tiny models."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from promptmill.configs.loading import load
from promptmill.configs.own_files import ROOT
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.planning.sources import look
from promptmill.jobs.verifying.regenerate import regenerate
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.scoring import scorers
from promptmill.pipelines.work.evaluations import evaluations
from tests.jobs.running.test_run import problems, rows
from tests.pipelines.engines import beside
from tests.pipelines.every_tiny import TINY
from tests.pipelines.plain import paint
from tests.pipelines.plain_families import FAMILIES, UNETS
from tests.pipelines.tiny_readers import small_inputs

EVERY = UNETS | FAMILIES
PROMPTS = ("a small red circle", "a large blue square at the left of a green circle")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paint(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_clip():
    """All runs score with one CLIP model, which is loaded once."""
    load, loaded = scorers.load_clip, []

    def once(*args):
        loaded[:] = loaded or [load(*args)]
        return loaded[0]

    with pytest.MonkeyPatch.context() as patched, small_inputs():
        patched.setattr(scorers, "load_clip", once)
        yield


def asked(name):
    """Two rows of a family: in its first mode and its last one, with another prompt, scheduler and guidance scale."""
    plain = EVERY[name]
    modes = list(plain.pipelines)
    for number, mode in enumerate((modes[0], modes[-1])):
        images = {key: value for key, value in plain.values(number, mode).items() if key != "strength"}
        scale = {"guidance_scale": (4.0, plain.unguided)[number]} if plain.guided else {}
        yield {
            "id": f"{name}-{number}",
            **({"prompt": plain.prompt(PROMPTS[number])} if plain.prompted else {}),
            "mode": mode,
            "scheduler": plain.solvers(mode)[-number],
            **scale,
            **images,
        }


def config_of(base, manifest):
    return {
        "manifest": str(manifest),
        "model": {"base": str(base), "batch": 2, **{name: one.model_dump() for name, one in beside(base).items()}},
        "defaults": {"width": 64, "height": 64, "steps": 2, "candidates": 2},
        "ranking": {"model": f"local-dir:{ROOT}/embedded/weights/clip", "batch": 4},
        "runtime": {"workers": "here"},
    }


@pytest.mark.parametrize("name", EVERY)
def test_a_family_goes_through_the_whole_job(name, pictures, tmp_path):
    manifest, out = pictures / f"{name}.jsonl", tmp_path / "out"
    manifest.write_text("".join(json.dumps(row, default=dict) + "\n" for row in asked(name)))
    config = str(tmp_path / "config.yaml")
    Path(config).write_text(yaml.safe_dump(config_of(TINY[name](tmp_path / "model"), manifest)))
    done = CliRunner().invoke(main, ["run", config, "--out", str(out)])
    assert done.exit_code == 0 and "has no effect" not in done.output, done.output
    assert rows(out, "id, count(*), count(*) FILTER (status = 'kept') FROM RUNS GROUP BY id ORDER BY id") == [
        (f"{name}-0", 2, 1),
        (f"{name}-1", 2, 1),
    ]
    assert problems(out) == []
    assert rows(out, "count(*) FROM RUNS WHERE len(pixel_sha256) = 64 AND clip_score IS NOT NULL") == [(4,)]
    counting = read_facts(load(config).model).counting
    planned = [placed.request for placed in read_shard(str(out), 0).requests]
    assert rows(out, "DISTINCT id, unet_evaluations FROM RUNS ORDER BY id") == [(r.id, evaluations(r, counting)) for r in planned]
    ((key,),) = rows(out, "key FROM RUNS WHERE selected ORDER BY key LIMIT 1")
    assert regenerate(str(out), key).same


def test_rows_with_several_pictures_go_through_the_whole_job(pictures, tmp_path):
    further = [{"type": "image", "image": f"{name}.png"} for name in ("b", "a")]
    shown = {"one": [], "two": further[:1], "three": further, "turned": further[::-1]}
    lines = [{"id": name, "prompt": PROMPTS[0], "init_image": "a.png", "references": some} for name, some in shown.items()]
    lines += [{"id": "alone", "prompt": PROMPTS[0], "references": further}, {"id": "none", "prompt": PROMPTS[1]}]
    wrong = [
        {"id": "scaled", "prompt": "x", "init_image": "a.png", "references": [{**further[0], "scale": 0.5}]},
        {"id": "gone", "prompt": "x", "init_image": "a.png", "references": [{"type": "image", "image": "gone.png"}]},
    ]
    manifest, out, config = pictures / "several.jsonl", tmp_path / "out", tmp_path / "config.yaml"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines + wrong))
    given = config_of(TINY["flux2-klein-distilled"](tmp_path / "model"), manifest)
    given["runtime"]["on_bad_row"] = "record"
    given["defaults"]["scheduler"] = "euler"
    config.write_text(yaml.safe_dump(given))
    done = CliRunner().invoke(main, ["run", str(config), "--out", str(out)])
    assert done.exit_code == 3, done.output  # some rows have no image
    assert problems(out) == []
    failed = dict(rows(out, "id, error_message FROM RUNS WHERE status = 'failed'"))
    assert failed.keys() == {"scaled", "gone"} and all("references" in message for message in failed.values())
    digests = {name: hashlib.sha256((pictures / f"{name}.png").read_bytes()).hexdigest() for name in "ab"}
    said = '[[r.image, r.sha256] FOR r IN "references"], mode FROM RUNS WHERE selected'
    assert {id: (mode, images) for id, images, mode in rows(out, f"id, {said}")} == {
        line["id"]: (
            "img2img" if "init_image" in line else "txt2img",
            [[one["image"], digests[one["image"][0]]] for one in line.get("references", [])],
        )
        for line in lines
    }
    listed = 'FROM (SELECT unnest("references") AS r FROM RUNS WHERE selected)'
    assert rows(out, f"DISTINCT r.type, r.scale, r.mask, r.embedding {listed}") == [("image", None, None, None)]
    for (key,) in rows(out, "key FROM RUNS WHERE selected ORDER BY key"):
        assert regenerate(str(out), key).same, key
    made = dict(rows(out, "id, pixel_sha256 FROM RUNS WHERE candidate_index = 0"))
    assert len({made[line["id"]] for line in lines}) == len(lines)
    # Shards with the column and shards without it are of no one dataset.
    manifest.write_text("".join(json.dumps({**line, "references": []}) + "\n" for line in lines + wrong))
    said = r"references in rows: True in the shards that are committed, False now; give another --out"
    with pytest.raises(PlanError, match=said):
        make_plan(look(load(str(config))), str(out), accept_changes="rerender")
    # The output is the manifest of a second pass.
    given |= {"manifest": f"{out}/metadata/*.parquet"}
    given["runtime"] = {"workers": "here", "image_roots": [str(pictures)]}
    given["defaults"]["candidates"] = 1
    config.write_text(yaml.safe_dump(given))
    again = CliRunner().invoke(main, ["run", str(config), "--out", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    same = 'list_sort(list(pixel_sha256)) FROM RUNS WHERE selected AND len("references") > 1'
    assert rows(tmp_path / "again", same) == rows(out, same)


def test_every_family_of_the_table_goes_through():
    assert EVERY.keys() == TINY.keys()
