"""That prompt lists and pictures of other tools are planned, and that the plan says how they were read and what was not."""

import json

import pytest
from click.testing import CliRunner

from promptmill.configs.errors import ConfigError
from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError, read_plan
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.planning.sources import hash_of, look
from promptmill.manifests.prompt_lists import ListFile
from tests.manifests.pictures import A1111, of_each_tool, png
from tests.manifests.test_prompt_lists import EXPECTED, LISTS


def planned(manifest, output, *settings):
    return make_plan(look(load("embedded", [f"manifest={json.dumps(manifest)}", *settings])), str(output))


def requests_of(plan, output):
    shards = (read_shard(str(output), number) for number in range(plan.shards))
    return [placed.request for shard in shards for placed in shard.requests]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_prompt_list_is_planned_and_the_plan_says_its_form(name, tmp_path):
    plan = planned({"lists": str(LISTS / f"{name}.txt")}, tmp_path)
    form, rows = EXPECTED[name]
    assert plan.counts.rows == len(rows) + (2 if name == "kohya-seeds" else 0) and plan.counts.bad == 0
    assert any(f"`form: {form}`" in note for note in plan.notes)


def test_all_lists_are_planned_as_one_manifest_in_order(tmp_path):
    plan = planned({"lists": str(LISTS / "*.txt")}, tmp_path)
    assert plan.counts.rows == sum(len(rows) for _, rows in EXPECTED.values()) + 2
    assert read_plan(str(tmp_path)) == plan
    again = planned({"lists": str(LISTS / "*.txt")}, tmp_path)
    assert again == plan


def test_faults_of_a_list_are_lines_of_the_plans_refusal(tmp_path):
    (tmp_path / "p.txt").write_text('--prompt "a" --stepz 5\n--prompt "b"\n--prompt a --width 513\n')
    with pytest.raises(PlanError) as raised:
        planned({"lists": str(tmp_path / "p.txt")}, tmp_path / "out")
    first, second = raised.value.problems
    assert first.startswith(f"{tmp_path}/p.txt, row 1: line 1, column 14: '--stepz' is no option of A1111's lists; did you mean")
    assert second.startswith(f"{tmp_path}/p.txt, row 3: width: ")


def test_another_form_is_another_manifest_and_none_is_the_files_own(tmp_path):
    file = str(LISTS / "kohya-crlf.txt")
    assert hash_of(ListFile(file, None)) == hash_of(file)
    assert len({hash_of(ListFile(file, form)) for form in ("lines", "kohya", "a1111", None)}) == 4


def test_pictures_are_planned_and_what_was_not_read_is_said(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, content in of_each_tool().items():
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("x")
    plan = planned({"pictures": str(folder)}, tmp_path / "out")
    requests = requests_of(plan, tmp_path / "out")
    assert [request.id for request in requests] == sorted(of_each_tool())
    assert {request.candidates for request in requests} == {1} and "picture_unread" in plan.carried
    notes = "\n".join(plan.notes)
    for said in ("its Clip skip is not taken over", "a LoRA that the config does not declare", "1 file is no picture", "(…:1.2)"):
        assert said in notes
    (folder / "plain.png").write_bytes(png({}))
    with pytest.raises(PlanError, match=f"^{folder}/plain.png: has no metadata of a tool that is known"):
        planned({"pictures": str(folder)}, tmp_path / "other")
    recorded = planned({"pictures": str(folder)}, tmp_path / "other", "runtime.on_bad_row=record")
    assert recorded.counts.bad == 1 and read_shard(str(tmp_path / "other"), 0).bad[0].id == "plain.png"
    assert "(13 rows, the first: a1111-umlaut.png)" in notes or "(4 rows, the first: a1111-umlaut.png)" in notes


def test_pictures_to_begin_with_are_planned_with_their_hashes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.png").write_bytes(png({"parameters": A1111.replace("512x768", "64x64")}, (64, 64)))
    plan = planned({"pictures": str(tmp_path / "**/*.png"), "use": "init_image"}, tmp_path / "out")
    (placed,) = read_shard(str(tmp_path / "out"), 0).requests
    assert plan.counts.modes == {"img2img": 1} and placed.request.init_image == "a/b.png" and set(placed.images) == {"init_image"}
    assert (placed.request.seed, placed.request.candidates) == (None, 4)


def test_the_config_refuses_words_that_it_does_not_know():
    for manifest, words in (
        ({"pictures": "a", "use": "begin"}, "manifest.use: input should be 'render', 'vary' or 'init_image'"),
        ({"lists": "a", "form": "invoke"}, "manifest.form: input should be 'lines', 'a1111' or 'kohya'"),
        ({"pictures": []}, "manifest.pictures"),
        ({"lists": "a", "use": "render"}, "manifest.use: unknown key"),
    ):
        with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
            load("embedded", [f"manifest={json.dumps(manifest)}"])


def test_a_command_for_made_manifests_says_that_these_are_none(tmp_path):
    manifest, file = f"manifest={{lists: {LISTS}/a1111-shapes.txt}}", tmp_path / "x.jsonl"
    done = CliRunner().invoke(main, ["manifest", "embedded", "--set", manifest, "--to", str(file)])
    assert done.exit_code != 0 and "this command is for one that is made" in done.output and not file.exists()
