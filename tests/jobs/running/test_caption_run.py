"""Runs whose kept images get captions, from the command line: what is planned, written, verified, mended and refused."""

import io
import json
import shutil

import datasets
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import promptmill
from promptmill.configs.errors import ConfigError
from promptmill.configs.loading import load
from promptmill.embedded.oracle import read
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sources import look
from promptmill.jobs.verifying.regenerate import regenerate
from promptmill.pipelines.rendering.captioning import Captioner
from promptmill.pipelines.work.results import Failure
from promptmill.shards.tars import read_tar
from tests.jobs.running.test_run import HERE, problems, published, rendered
from tests.pipelines.tiny_languages import gpt2, trained_llava

COLORS = (("red", "white"), ("blue", "yellow"), ("green", "black"), ("purple", "white"), ("yellow", "blue"), ("black", "green"))
UPSCALE = "stages=[{kind: upscale, source: ./embedded/weights/upscaler, scale: 2}]"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = trained_llava(tmp_path_factory.mktemp("language") / "llava")
    (folder / "LICENSE").write_text("MIT License\n")
    return folder


def config_of(folder, model, *settings):
    rows = [
        {"id": f"r{at}", "prompt": f"a large {thing} {shape} at the center on a {ground} background", "seed": at}
        for at, ((thing, ground), shape) in enumerate(zip(COLORS, ("circle", "square", "circle") * 2, strict=True))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    some = ("model.batch=4", "defaults.steps=8", "defaults.candidates=2", "defaults.scheduler=euler", HERE)
    captions = (f"captions={{model: {{source: {model}}}, max_tokens: 8, batch: 4}}",) if model else ()
    return load("embedded", [f"manifest={folder / 'rows.jsonl'}", *some, *captions, *settings])


@pytest.fixture(scope="module")
def captioned(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("captions")
    record, _ = rendered(config_of(folder, model, "shards.image_format=webp"), folder / "out")
    assert (record.kept, record.rejected, record.failed) == (6, 6, 0)
    return folder / "out"


def test_each_kept_image_has_a_caption_that_names_the_colours_that_are_there(captioned):
    assert problems(captioned) == []
    right = 0
    for _, image, row in promptmill.open(captioned).images():
        seen = read(np.array(image.convert("RGB")))
        (thing,) = seen.seen
        right += row["caption"] == f"{thing.color} on a {seen.background} background"
    assert right >= 5
    rejected = [row for row in promptmill.open(captioned).table().to_pylist() if row["status"] == "rejected"]
    assert len(rejected) == 6 and {row["caption"] for row in rejected} == {None}
    assert not list((captioned / "parts").glob("*"))


def test_a_caption_lies_beside_its_image_as_a_file_of_text_and_in_its_json_and_the_card_says_so(captioned, model):
    (tar,) = (captioned / "data").glob("*.tar")
    samples = list(read_tar(tar.read_bytes()))
    assert len(samples) == 6
    for sample in samples:
        assert sorted(sample.files) == ["caption.txt", "json", "txt", "webp"]
        assert json.loads(sample.files["json"])["caption"] == sample.files["caption.txt"].decode() != ""
        assert "stages" not in json.loads(sample.files["json"])
    card = (captioned / "README.md").read_text()
    assert f"| writer of captions | `{model}` |  | `MIT License` |" in card
    assert "| `caption` | `string` | what a model has written of the kept image |" in card
    loaded = datasets.load_dataset(str(captioned), split="train", cache_dir=str(captioned.parent / "cache"))
    assert loaded[0]["caption.txt"] == samples[0].files["caption.txt"].decode()


def test_a_caption_that_was_altered_is_found_and_a_damaged_shard_is_made_again_to_the_same_bytes(captioned, tmp_path):
    out = shutil.copytree(captioned, tmp_path / "out")
    (tar,), before = (out / "data").glob("*.tar"), published(out)
    whole = tar.read_bytes()
    caption = next(read_tar(whole)).files["caption.txt"]
    # The member of the caption comes first, before the JSON that has the caption too.
    tar.write_bytes(whole.replace(caption, caption[::-1], 1))
    assert any("its caption is not that of its row" in problem for problem in problems(out))
    tar.write_bytes(b"")
    done = CliRunner().invoke(main, ["verify", "--repair", str(out)])
    assert done.exit_code == 0, done.output
    assert published(out) == before
    key = next(row["key"] for row in promptmill.open(out).table().to_pylist() if row["status"] == "kept")
    assert regenerate(str(out), key).same


def test_with_captions_the_images_are_those_of_a_run_without_and_captions_come_after_the_stages(tmp_path, model):
    rendered(config_of(tmp_path, model, UPSCALE), tmp_path / "out")
    rendered(config_of(tmp_path, None, UPSCALE), tmp_path / "plain")
    assert problems(tmp_path / "out") == []
    with_, without = (
        {
            row["id"]: (row["pixel_sha256"], row["width"], row["stages"])
            for row in promptmill.open(tmp_path / name).table().to_pylist()
        }
        for name in ("out", "plain")
    )
    assert with_ == without
    assert {row["caption"] is not None for _, _, row in promptmill.open(tmp_path / "out").images()} == {True}


def test_an_image_without_a_caption_is_a_failed_candidate_with_the_reason(tmp_path, model, monkeypatch):
    def failing(self, pictures, seeds):
        # All but the caption that is tried when the model is loaded.
        first = [Failure("render_error", "no such word")] if self.model.settings.max_tokens > 1 else ["a"]
        return [*first, *["a"] * (len(pictures) - 1)]

    monkeypatch.setattr(Captioner, "captions", failing)
    rendered(config_of(tmp_path, model), tmp_path / "out")
    assert problems(tmp_path / "out") == []
    (failed,) = [row for row in promptmill.open(tmp_path / "out").table().to_pylist() if row["status"] == "failed"]
    assert (failed["error"], failed["error_message"]) == ("render_error", "stage captions: no such word")
    assert (failed["caption"], failed["sha256"]) == (None, None)


def test_the_plan_says_the_captions_and_the_model_decides_the_fingerprint(tmp_path, model):
    config = config_of(tmp_path, model)
    plan = make_plan(look(config), str(tmp_path / "out"))
    assert plan.inputs["models"]["captions.model"].startswith("sha256:")
    words = ["--set", f"manifest={tmp_path / 'rows.jsonl'}", "--set", f"captions={{model: {{source: {model}}}}}"]
    said = CliRunner().invoke(main, ["plan", "embedded", *words, "--no-measure", "--out", str(tmp_path / "said")]).output
    assert f"captions     of the kept images, by {model}, of 128 tokens at most\n" in said
    # Without captions nothing of a plan is what it was not before there were captions.
    assert "captions" not in config_of(tmp_path, None).render_config()
    changed = config_of(tmp_path, model, "captions.max_tokens=9")
    with pytest.raises(PlanError, match="planned from something else"):
        make_plan(look(changed), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("captions", "problem"),
    [
        ("{model: {source: owner/name}}", "captions.model: owner/name is a hub repository and needs a revision"),
        ("{prompt: x}", "captions.model: "),
        ("{model: {source: ./a}, max_tokens: 0}", "captions.max_tokens: input should be greater than or equal to 1 (found 0)"),
        ("{model: {source: ./a}, max_tokens: 100000}", "captions.max_tokens: input should be less than or equal to 4096"),
        ("{model: {source: ./a}, top_p: 0.9}", "captions: top_p is for drawn tokens; set temperature, or leave top_p out"),
        ("{model: {source: ./a}, temprature: 1}", "captions.temprature: unknown key; did you mean 'temperature'?"),
    ],
)
def test_captions_that_are_none_are_refused_with_their_key(tmp_path, captions, problem):
    with pytest.raises(ConfigError) as raised:
        config_of(tmp_path, None, f"captions={captions}")
    assert problem in str(raised.value)


def altered(model, folder, lost=(), **values):
    """Return a copy of a model without some files, and with other values in its config."""
    shutil.copytree(model, folder)
    for name in lost:
        (folder / name).unlink()
    (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **values}))
    return folder


def test_a_model_that_writes_no_captions_is_refused_by_the_plan_in_one_line(tmp_path, model):
    refused = {
        gpt2(tmp_path / "gpt2"): "is a GPT2LMHeadModel, which writes nothing of images; needed is a vision-language model",
        altered(model, tmp_path / "lost", ["tokenizer.json"]): "holds no tokenizer",
        altered(model, tmp_path / "blind", ["processor_config.json"]): "holds no image processor",
        altered(model, tmp_path / "pickled", ["model.safetensors"]): "holds no .safetensors; pickles are not read",
        altered(
            model, tmp_path / "code", model_type="mine", auto_map={"AutoModel": "a.B"}
        ): "brings code of its own, which is not run",
        altered(model, tmp_path / "many", num_experts=4): "is a mixture of experts",
        tmp_path / "nowhere": "no such folder",
    }
    for folder, problem in refused.items():
        with pytest.raises(PlanError) as raised:
            make_plan(look(config_of(tmp_path, folder)), str(tmp_path / "out"))
        assert len(raised.value.problems) == 1 and problem in raised.value.problems[0], (folder, raised.value.problems)
        assert "\n" not in raised.value.problems[0]
    assert not (tmp_path / "out" / "plan").exists()


def test_an_images_caption_is_no_second_image_of_its_sample(captioned):
    (tar,) = (captioned / "data").glob("*.tar")
    files = next(read_tar(tar.read_bytes())).files
    assert Image.open(io.BytesIO(files["webp"])).size == (64, 64)
    loaded = load("embedded", [f"manifest={tar}", "defaults.strength=0.5", HERE])
    plan = make_plan(look(loaded), str(captioned.parent / "second"))
    assert plan.counts.rows == 6 and plan.counts.bad == 0
