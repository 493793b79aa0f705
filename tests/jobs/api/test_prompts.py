"""A dataset of prompts in A1111's syntax: from templates to words beside images, made again alone and in a second pass."""

import json
import tarfile

import pytest
from click.testing import CliRunner

import promptmill
from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sources import look
from promptmill.jobs.showing.summary import plan_lines

FEW = {"defaults": {"steps": 2, "candidates": 2, "guidance_scale": 3}, "runtime": {"workers": "here"}}
TEMPLATE = "a small (__colours__:1.3) {circle|square} [at the left:0.5]"
SAID = [f"a small {colour} {shape} at the left" for colour in ("red", "blue") for shape in ("circle", "square")]
LONG = "a small red circle at the left of a large blue square on a black background, " * 2 + "small"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "wildcards").mkdir()
    (folder / "wildcards" / "colours.txt").write_text("red\nblue\n")
    return folder


def prompts_of(folder, **more):
    return {"syntax": "a1111", "wildcards": str(folder / "wildcards"), **more}


@pytest.fixture(scope="module")
def dataset(folder):
    rows = [
        {"id": "all", "prompt": TEMPLATE, "negative_prompt": "(dark)"},
        {"id": "words", "prompt": "a (large blue square", "syntax": "plain"},
        {"id": "long", "prompt": LONG},
    ]
    prompts = prompts_of(folder, expand="combinatorial", long=True)
    return promptmill.render(rows, out=folder / "out", progress=False, prompts=prompts, **FEW)


def test_templates_become_rows_with_words_for_captions_and_scores(dataset, folder):
    table = dataset.table(["id", "prompt", "prompt_words", "prompt_template", "syntax", "prompt_tokens_lost", "selected", "status"])
    rows = {row["id"]: row for row in table.to_pylist() if row["selected"]}
    assert [rows[f"all/prompt={n}"]["prompt_words"] for n in (1, 2, 3, 4)] == SAID
    assert {rows[f"all/prompt={n}"]["prompt_template"] for n in (1, 2, 3, 4)} == {TEMPLATE}
    assert rows["all/prompt=1"]["prompt"] == "a small (red:1.3) circle [at the left:0.5]"
    assert (rows["words"]["syntax"], rows["words"]["prompt_words"]) == (None, None)
    assert {row["prompt_tokens_lost"] for row in rows.values()} == {0}
    assert set(table["status"].to_pylist()) == {"kept", "rejected"}
    assert dataset.verify() == []


def test_an_image_is_made_again_alone(dataset, tmp_path):
    for key in ("000000-00000-0000", "000000-00005-0001"):  # with weights, and in chunks
        said = CliRunner().invoke(main, ["regenerate", dataset.output, key, "--to", str(tmp_path / f"{key}.png")])
        assert said.exit_code == 0, said.output
        assert "same" in said.output or "equal" in said.output, said.output


def test_what_a_kept_image_says_in_its_caption_are_the_words(dataset, folder):
    (tar,) = (folder / "out" / "data").glob("*.tar")
    with tarfile.open(tar) as members:
        texts = [members.extractfile(one).read().decode() for one in members if one.name.endswith(".txt")]
    assert sorted(texts) == sorted([*SAID, "a (large blue square", LONG])


def test_a_second_pass_makes_the_same_images(dataset, folder):
    again = promptmill.render(
        manifest=str(folder / "out" / "metadata" / "*.parquet"),
        out=folder / "again",
        progress=False,
        prompts=prompts_of(folder, long=True),
        **{**FEW, "defaults": {**FEW["defaults"], "candidates": 1}},
    )
    first = {row["key"]: row["pixel_sha256"] for row in dataset.table(["key", "pixel_sha256"]).to_pylist()}
    second = {row["id"]: row["pixel_sha256"] for row in again.table(["id", "pixel_sha256"]).to_pylist()}
    assert second == {key: first[key] for key in second} and len(second) == 6


def planned(folder, rows, *settings):
    manifest = folder / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load("embedded", [f"manifest={manifest}", *settings])
    return look(config), config


def test_the_plan_counts_rows_that_are_too_long_and_names_the_switch(folder, tmp_path):
    rows = [{"prompt": LONG}, {"prompt": "a (red:1.2) circle"}, {"prompt": LONG + "again"}]
    sources, _ = planned(folder, rows)
    lines = "\n".join(plan_lines(make_plan(sources, str(tmp_path / "out")), None))
    assert "prompts.long encodes all of it (2 rows, the first: " in lines
    assert "prompts: {syntax: a1111} in the config, or a1111 in the row's column syntax, has it read" in lines
    sources, _ = planned(folder, rows, "prompts.long=true", "prompts.syntax=a1111")
    lines = "\n".join(plan_lines(make_plan(sources, str(tmp_path / "other")), None))
    assert "prompts" not in lines


def test_a_bad_prompt_is_a_line_with_file_and_row_of_a_plan(folder, tmp_path):
    sources, _ = planned(folder, [{"prompt": "a"}, {"prompt": "a (b"}, {"prompt": "__colors__"}], "prompts.syntax=a1111",
                         f"prompts.wildcards={folder / 'wildcards'}")  # fmt: skip
    with pytest.raises(PlanError) as raised:
        make_plan(sources, str(tmp_path / "out"))
    place = folder / "m.jsonl"
    assert list(raised.value.problems[:2]) == [
        f"{place}, row 2: prompt: column 3: ( is not closed",
        f"{place}, row 3: prompt: column 1: wildcard 'colors': no such file in the folder of wildcards; did you mean 'colours'?",
    ]


def test_a_changed_wildcard_makes_another_plan_and_an_absent_folder_none(folder, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "c.txt").write_text("a\n")
    settings = ["prompts.syntax=a1111", f"prompts.wildcards={tmp_path / 'w'}"]
    before = planned(folder, [{"prompt": "__c__"}], *settings)[0].inputs
    assert planned(folder, [{"prompt": "__c__"}], *settings)[0].inputs == before
    (tmp_path / "w" / "c.txt").write_text("b\n")
    assert planned(folder, [{"prompt": "__c__"}], *settings)[0].inputs != before
    with pytest.raises(PlanError, match=r"prompts\.wildcards: .*: no such folder"):
        planned(folder, [{"prompt": "a"}], "prompts.syntax=a1111", f"prompts.wildcards={tmp_path / 'gone'}")


def test_a_family_that_reads_no_long_prompts_or_weights_says_so(folder, tmp_path):
    (folder / "m.jsonl").write_text('{"prompt": "a (red:1.2) circle", "syntax": "a1111"}\n')
    given = [f"manifest={folder / 'm.jsonl'}"]
    with pytest.raises(
        PlanError, match=r"^prompts\.long: \w+ reads no long prompts in chunks; models of Stable Diffusion and SDXL do$"
    ):
        look(load("embedded-flow", [*given, "prompts.long=true"]))
    with pytest.raises(PlanError, match=r"row 1: prompt: column 3: weights are not read by this model; models of "):
        make_plan(look(load("embedded-flow", given)), str(tmp_path / "out"))


def test_a_config_without_prompts_has_the_fingerprint_that_it_had(folder):
    _, config = planned(folder, [{"prompt": "a"}])
    assert "prompts" not in config.render_config()
