"""Reference images through the whole job, by the embedded family with two tiny adapters of random weights."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from promptmill.configs.loading import load
from promptmill.configs.own_files import ROOT
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError, read_plan
from promptmill.jobs.planning.sources import look
from promptmill.jobs.verifying.regenerate import regenerate
from tests.jobs.running.test_run import HERE, problems, rendered, rows, run_by_command
from tests.pipelines import tiny_adapters, tiny_transformer_adapters

BASE = ROOT / "embedded" / "weights" / "pipeline"
IMAGES = ROOT / "configs" / "presets" / "quickstart" / "images"
STYLE, INIT = "seg-01-segments.png", "img2img-01-init.png"
WAYS = [
    {},
    {"references": [{"type": "style", "image": STYLE}]},
    {"references": [{"type": "style", "image": INIT, "scale": 0.4}], "steps": 3, "guidance_scale": 1.0},
    {"references": [{"type": "content", "image": STYLE}, {"type": "style", "image": INIT}], "init_image": INIT},
    {"references": [{"type": "content", "image": INIT}], "controls": [{"type": "seg", "image": STYLE}]},
    {"references": [{"type": "style", "image": STYLE, "mask": "left.png"}, {"type": "style", "image": INIT, "mask": "right.png"}]},
    {"references": [{"type": "style", "image": STYLE}, {"type": "style", "image": INIT}]},
    {"references": [{"type": "face", "embedding": "face.npy", "scale": 0.5}, {"type": "style", "image": INIT}]},
    {"references": [{"type": "pictured", "embedding": "face.npy", "image": INIT}]},
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    tiny_adapters.image_encoder(folder / "image_encoder")
    tiny_adapters.ip_adapter(BASE, folder / "plain.safetensors")
    tiny_adapters.ip_adapter(BASE, folder / "plus.safetensors", seed=4, plus=True)
    for name in (STYLE, INIT):
        shutil.copy(IMAGES / name, folder / name)
    tiny_adapters.face_adapter(BASE, folder / "face.safetensors", lora=True)
    tiny_adapters.face_plus_adapter(BASE, folder / "pictured.safetensors")
    np.save(folder / "face.npy", np.random.default_rng(1).standard_normal(8).astype(np.float32))
    for name, some in (("left", slice(0, 25)), ("right", slice(25, 64))):
        mask = np.zeros((64, 64), np.uint8)
        mask[:, some] = 255
        Image.fromarray(mask).save(folder / f"{name}.png")
    lines = [{"id": str(number), "prompt": "a small red circle", **way} for number, way in enumerate(WAYS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    adapters = {"style": "plain.safetensors", "content": "plus.safetensors"}
    references = {name: {"source": str(folder), "weight_name": file} for name, file in adapters.items()}
    references["face"] = {"source": str(folder), "weight_name": "face.safetensors", "kind": "face"}
    pictured = {"source": str(folder), "weight_name": "pictured.safetensors", "kind": "face_plus", "shortcut_scale": 0.7}
    references["pictured"] = pictured
    return folder, [
        f"manifest={folder / 'rows.jsonl'}",
        f"model.references={json.dumps(references)}",
        "model.batch=3",
        "shards.size=3",
        "defaults.steps=2",
        "defaults.candidates=2",
        HERE,
    ]


@pytest.fixture(scope="module")
def out(settings, tmp_path_factory):
    return run_by_command(settings[1], tmp_path_factory.mktemp("run") / "out")


def test_every_row_is_kept_and_says_which_references_made_it(out):
    assert problems(out) == []
    said = "r.type || ':' || coalesce(r.image, r.embedding) || ':' || r.scale"
    found = rows(out, f'id, [{said} FOR r IN "references"] FROM RUNS WHERE selected ORDER BY id')
    assert [kinds for _, kinds in found] == [
        [],
        [f"style:{STYLE}:1.0"],
        [f"style:{INIT}:0.4"],
        [f"content:{STYLE}:1.0", f"style:{INIT}:1.0"],
        [f"content:{INIT}:1.0"],
        *[[f"style:{STYLE}:1.0", f"style:{INIT}:1.0"]] * 2,
        ["face:face.npy:0.5", f"style:{INIT}:1.0"],
        [f"pictured:{INIT}:1.0"],
    ]
    listed = '(SELECT unnest("references") AS r FROM RUNS)'
    assert rows(out, f"count(*) FROM {listed} WHERE len(r.sha256) <> 64") == [(0,)]
    faces = rows(out, f"DISTINCT r.type, r.embedding, len(r.embedding_sha256) FROM {listed} WHERE r.embedding <> '' ORDER BY 1")
    assert faces == [("face", "face.npy", None), ("pictured", "face.npy", 64)]
    masks = rows(out, f"DISTINCT r.mask, len(r.mask_sha256) FROM {listed} ORDER BY r.mask")
    assert masks == [("left.png", 64), ("right.png", 64), (None, None)]


def test_every_image_is_made_again_alone_to_its_bits(out):
    for (key,) in rows(out, "key FROM RUNS ORDER BY key"):
        assert regenerate(str(out), key).same, key


def test_adapters_and_their_images_are_part_of_the_fingerprint(settings, out, tmp_path):
    folder, given = settings
    plan = read_plan(str(out))
    models = plan.inputs["models"]
    assert {"model.references.style", "model.references.content", "model.image_encoder"} <= models.keys()
    assert all(identity.startswith("sha256:") for name, identity in models.items() if "references" in name)
    assert "references" not in load("embedded", ["manifest=x"]).render_config()["model"]
    # Another picture of the same name makes another plan.
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    moved = [setting.replace(str(folder / "rows.jsonl"), str(other / "rows.jsonl")) for setting in given]
    assert make_plan(look(load("embedded", moved)), str(tmp_path / "same")).fingerprint == plan.fingerprint
    shutil.copy(other / INIT, other / STYLE)
    assert make_plan(look(load("embedded", moved)), str(tmp_path / "changed")).fingerprint != plan.fingerprint


def test_an_output_with_references_is_the_manifest_of_a_second_pass(settings, out, tmp_path):
    folder, given = settings
    second = [setting for setting in given if not setting.startswith("manifest=")]
    second += [f"manifest={out}/metadata/*.parquet", f"runtime.image_roots=[{folder}]", "defaults.candidates=1"]
    totals, _ = rendered(load("embedded", second), tmp_path / "second")
    assert (totals.requests, totals.failed) == (len(WAYS), 0)
    again = rows(tmp_path / "second", 'pixel_sha256 FROM RUNS WHERE selected AND len("references") > 0')
    assert sorted(again) == sorted(rows(out, 'pixel_sha256 FROM RUNS WHERE selected AND len("references") > 0'))


def test_a_dataset_without_adapters_has_no_such_column(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "0", "prompt": "a small red circle"}\n')
    few = (f"manifest={tmp_path / 'rows.jsonl'}", "model.batch=2", "defaults.steps=2", "defaults.candidates=1", HERE)
    plan = make_plan(look(load("embedded", few)), str(tmp_path / "plain"))
    assert "references" not in plan.form.names


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model.kernels.attention=plain", "references go with kernels.attention sdpa"),
        ("model.references={}", "image_encoder is for references"),
    ],
)
def test_a_config_that_does_not_go_together_is_one_line(settings, change, says):
    from promptmill.configs.errors import ConfigError

    more = ["model.image_encoder={source: ./x}"] if "image_encoder" in says else []
    with pytest.raises(ConfigError, match=says):
        load("embedded", [*settings[1], *more, change])


@pytest.fixture(scope="module")
def flow(settings):
    """Rows for the embedded family of a transformer, with and without a picture, and settings with a tiny adapter for it."""
    folder, given = settings
    base = load("embedded-flow", given).model.base
    tiny_transformer_adapters.siglip(folder / "flow" / "image_encoder")
    tiny_transformer_adapters.sd3(ROOT / base, folder / "flow" / "adapter.safetensors")
    style = {"type": "style", "image": STYLE}
    ways = [{}, {"references": [style]}, {"references": [{**style, "image": INIT, "scale": 0.4}]}]
    lines = [{"id": str(number), "prompt": "a small red circle", **way} for number, way in enumerate(ways)]
    (folder / "flow.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    references = {"style": {"source": str(folder / "flow"), "weight_name": "adapter.safetensors"}}
    rest = [setting for setting in given if not setting.startswith(("manifest=", "model.references="))]
    return folder, [*rest, f"manifest={folder / 'flow.jsonl'}", f"model.references={json.dumps(references)}"]


def test_the_whole_job_with_an_adapter_of_a_transformer(flow, tmp_path):
    folder, given = flow
    plan = make_plan(look(load("embedded-flow", given)), str(tmp_path / "plan"))
    assert {"model.references.style", "model.image_encoder"} <= plan.inputs["models"].keys()
    out = run_by_command(given, tmp_path / "out", "embedded-flow")
    assert problems(out) == []
    found = rows(out, "id, [r.image || ':' || r.scale FOR r IN \"references\"] FROM RUNS WHERE selected ORDER BY id")
    assert found == [("0", []), ("1", [f"{STYLE}:1.0"]), ("2", [f"{INIT}:0.4"])]
    assert len(rows(out, "DISTINCT pixel_sha256 FROM RUNS")) == 6
    for (key,) in rows(out, "key FROM RUNS ORDER BY key"):
        assert regenerate(str(out), key).same, key
    # Another image processor beside the encoder makes other pixels.
    other = tmp_path / "flow"
    shutil.copytree(folder / "flow", other)
    file = other / "image_encoder" / "preprocessor_config.json"
    file.write_text(file.read_text().replace('"resample": 3', '"resample": 2'))
    moved = [setting.replace(str(folder / "flow") + '"', str(other) + '"') for setting in given]
    assert make_plan(look(load("embedded-flow", moved)), str(tmp_path / "other")).fingerprint != plan.fingerprint


def test_adapters_that_a_transformer_does_not_take_are_one_line_before_anything_renders(settings, flow):
    unet = json.dumps({"style": {"source": str(settings[0]), "weight_name": "plain.safetensors"}})
    encoder = json.dumps({"source": str(flow[0] / "flow" / "image_encoder")})
    for more, says in (
        ([], r"model\.image_encoder: .* is a CLIPVisionModelWithProjection, and adapters read images through a Siglip"),
        (
            [f"model.image_encoder={encoder}"],
            r"model\.references\.style: plain\.safetensors is no IP-Adapter of Stable Diffusion 3",
        ),
    ):
        with pytest.raises(PlanError, match=says):
            look(load("embedded-flow", [*flow[1], f"model.references={unet}", *more]))
