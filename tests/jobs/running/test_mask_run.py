"""Changed masks and widened pictures through a whole run of the embedded family."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from promptmill.configs.columns import Role, roles_in
from promptmill.configs.loading import load
from promptmill.configs.mask_edits import parse_mask_edit, parse_outpaint
from promptmill.configs.own_files import ROOT
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError, ShardPlan
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.planning.sources import look
from promptmill.jobs.sharing.next_manifest import Pass, export_manifest
from promptmill.jobs.verifying.regenerate import regenerate
from promptmill.manifests.mask_changes import softened, widened_mask
from promptmill.manifests.masks import prepare_mask
from promptmill.manifests.sources import read_rows
from promptmill.shards.finished import images
from tests.jobs.running.test_run import HERE, problems, rendered, rows, run_by_command

IMAGES = ROOT / "configs" / "presets" / "quickstart" / "images"
MASKED = {"init_image": "inpaint-01-init.png", "mask_image": "inpaint-01-mask.png"}
INIT = {"init_image": "inpaint-01-init.png"}
SMALL = {"init_image": "small.png"}  # of the size that the widened sides leave
SEG = [{"type": "seg", "image": "seg-01-segments.png"}]
WAYS = [
    MASKED,
    {**MASKED, "mask_edit": "invert"},
    {**MASKED, "mask_edit": {"grow": 6}},
    {**MASKED, "mask_edit": "grow=2, blur=2"},
    {**SMALL, "outpaint": {"left": 16, "bottom": 24}},
    {**SMALL, "outpaint": "left=16, bottom=24, overlap=0", "mask_edit": "blur=2"},
    {**INIT, "outpaint": "top=8, right=8, overlap=4", "strength": 0.7},
    {**SMALL, "outpaint": "left=16, bottom=24", "controls": SEG},
    {**MASKED, "mask_edit": "only_masked, padding=4, blur=1"},
]


def written(folder, ways):
    lines = [{"id": str(number), "prompt": "a small red circle", **way} for number, way in enumerate(ways)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    for name in (*MASKED.values(), SEG[0]["image"]):
        shutil.copy(IMAGES / name, folder / name)
    Image.open(IMAGES / MASKED["init_image"]).crop((10, 7, 58, 47)).save(folder / "small.png")
    written(folder, WAYS)
    few = ("model.batch=4", "shards.size=4", "defaults.steps=2", "defaults.candidates=1", HERE)
    return folder, [f"manifest={folder / 'rows.jsonl'}", *few]


@pytest.fixture(scope="module")
def out(settings, tmp_path_factory):
    return run_by_command(settings[1], tmp_path_factory.mktemp("run") / "out")


@pytest.fixture(scope="module")
def pixels(out):
    """The kept images by their ids."""
    return {row["id"]: np.asarray(image) for _, image, row in images(str(out))}


def test_every_row_says_how_its_mask_was_changed_and_by_how_much_its_picture_was_widened(out):
    assert problems(out) == []
    found = rows(out, "mode, mask_edit, outpaint FROM RUNS WHERE selected ORDER BY id")
    left = "left=16, bottom=24"
    assert found == [
        ("inpaint", None, None),
        ("inpaint", "invert", None),
        ("inpaint", "grow=6", None),
        ("inpaint", "grow=2, blur=2", None),
        ("inpaint", None, left),
        ("inpaint", "blur=2", f"{left}, overlap=0"),
        ("inpaint", None, "top=8, right=8, overlap=4"),
        ("controlnet_inpaint", None, left),
        ("inpaint", "blur=1, only_masked, padding=4", None),
    ]
    said = roles_in(pq.read_schema(out / "metadata" / "000000.parquet"))
    assert said["mask_edit"] is said["outpaint"] is Role.INPUT


def test_pixels_outside_of_a_changed_mask_are_the_init_images_own_and_inside_are_others(settings, pixels):
    init = np.asarray(Image.open(settings[0] / MASKED["init_image"]).convert("RGB"))
    for number in (0, 1, 2, 3, 8):
        edit = parse_mask_edit(WAYS[number].get("mask_edit"))
        mask = prepare_mask(Image.open(settings[0] / MASKED["mask_image"]), 64, 64, edit=edit)
        share = softened(mask, edit)
        kept = ~mask if share is None else share == 0
        made = pixels[str(number)]
        assert 0 < kept.sum() < kept.size and np.array_equal(made[kept], init[kept])
        assert (made[mask] != init[mask]).any(-1).mean() > 0.5


def test_pixels_of_a_widened_init_image_stay_as_they_are_but_for_the_overlap(settings, pixels):
    small = np.asarray(Image.open(settings[0] / "small.png").convert("RGB"))
    for number in (4, 5, 7):
        edit, sides = parse_mask_edit(WAYS[number].get("mask_edit")), parse_outpaint(WAYS[number]["outpaint"])
        mask = widened_mask(sides, 64, 64)
        share = softened(mask, edit, sides)
        kept = (~mask if share is None else share == 0)[:40, 16:]
        made = pixels[str(number)]
        assert kept.any() and np.array_equal(made[:40, 16:][kept], small[kept])
        assert len(np.unique(made[mask], axis=0)) > 100


def test_every_image_is_made_again_alone_to_its_bits(out):
    for (key,) in rows(out, "key FROM RUNS ORDER BY key"):
        assert regenerate(str(out), key).same, key


def test_the_output_is_the_manifest_of_a_second_pass(settings, out, tmp_path):
    folder, given = settings
    second = [setting for setting in given if not setting.startswith("manifest=")]
    second += [f"manifest={out}/metadata/*.parquet", f"runtime.image_roots=[{folder}]"]
    totals, _ = rendered(load("embedded", second), tmp_path / "second")
    assert (totals.requests, totals.failed) == (len(WAYS), 0)
    hashes = "pixel_sha256 FROM RUNS WHERE selected ORDER BY pixel_sha256"
    assert rows(tmp_path / "second", hashes) == rows(out, hashes)


def test_an_export_of_widened_images_does_not_widen_them_again_but_keeps_what_their_controls_began_with(out, tmp_path):
    for kind in ("img2img", "control"):
        file = tmp_path / f"{kind}.jsonl"
        assert export_manifest(str(out), file, Pass(kind, conditioning=True)) == len(WAYS)
        made = {row.values["source_id"]: row.values for row in read_rows([str(file)])}
        there = [[name for name in ("mask_edit", "outpaint") if made[str(n)].get(name)] for n in range(len(WAYS))]
        masks = [[], ["mask_edit"], ["mask_edit"], ["mask_edit"]]
        wide = [["outpaint"], ["mask_edit", "outpaint"], ["outpaint"], ["outpaint"]]
        assert there == [*masks, *(wide if kind == "control" else [[]] * 4), ["mask_edit"]]
    assert export_manifest(str(out), tmp_path / "plain.jsonl", Pass()) == len(WAYS)
    assert not any(row.values.get(name) for row in read_rows([str(tmp_path / "plain.jsonl")]) for name in ("mask_edit", "outpaint"))


WIDE = "left=60, right=9"
ODD = [("mask_edit", "grow=99999"), ("mask_edit", "left=9"), ("mask_edit", 7), ("outpaint", WIDE), ("outpaint", "left=x")]


@pytest.mark.parametrize(("name", "said"), ODD)
def test_a_plan_that_asks_for_what_no_row_may_ask_for_is_refused(out, name, said):
    values = json.loads(read_shard(str(out), 1).requests_json()) | {"units": []}
    asked = values["requests"][0]["request"]
    assert ShardPlan.from_json(json.dumps(values).encode()).requests[0].request.outpaint == asked["outpaint"]
    asked[name] = said
    with pytest.raises((ValueError, TypeError), match=r"whole number of pixels|not known|no value of its kind|leave nothing of"):
        ShardPlan.from_json(json.dumps(values).encode())


def test_a_dataset_without_such_rows_has_no_such_columns_and_takes_no_rows_that_have(settings, tmp_path):
    folder = shutil.copytree(settings[0], tmp_path / "in")
    written(folder, WAYS[:1])
    given = [setting.replace(str(settings[0]), str(folder)) for setting in settings[1]]
    rendered(load("embedded", given), tmp_path / "out")
    names = pq.read_schema(tmp_path / "out" / "metadata" / "000000.parquet").names
    assert "mask_image" in names and not {"mask_edit", "outpaint"} & set(names)
    written(folder, WAYS[:2])
    with pytest.raises(PlanError, match="mask_edit in rows: False in the shards that are committed, True now; give another --out"):
        make_plan(look(load("embedded", given)), str(tmp_path / "out"), accept_changes="rerender")
