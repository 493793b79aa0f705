"""Prompts that a model rewrites before anything is planned: what becomes of them, what is durable, and what is refused."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import promptmill
from promptmill.configs.errors import ConfigError
from promptmill.configs.loading import load
from promptmill.embedded.world import sample_scene
from promptmill.jobs.cli import main
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.planned import planned
from promptmill.jobs.planning.rewriting import RewritingDueError, due, rewrite
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.planning.sources import look
from promptmill.pipelines.rendering.rewriting import Rewriter
from promptmill.pipelines.work.errors import FatalError
from promptmill.pipelines.work.results import Failure
from tests.jobs.running.test_run import HERE, problems
from tests.pipelines.tiny_languages import briefly, llava, trained_llama

ROWS = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return trained_llama(tmp_path_factory.mktemp("language") / "llama")


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(9)
    return [briefly(sample_scene(rng, 1, held_out=True)) for _ in range(ROWS)]


def manifest_of(folder, scenes, *more, **values):
    rows = [{"id": f"r{at}", "prompt": brief, "seed": at, "topic": "shapes", **values} for at, (brief, _) in enumerate(scenes)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*rows, *more)))
    return folder / "rows.jsonl"


def config_of(manifest, model, *settings):
    told = f"prompts.rewrite={{model: {{source: {model}}}, instruction: 'rewrite {{prompt}}', max_tokens: 16, batch: 2}}"
    return load("embedded", [f"manifest={manifest}", "model.batch=4", "shards.size=1000", told, HERE, *settings])


def requests(out):
    return [placed.request for placed in read_shard(str(out), 0).requests]


def parts(out):
    return {path.name: path.read_bytes() for path in sorted((out / "rewritten" / "parts").iterdir())}


def counted(monkeypatch):
    """The prompts that a model is asked for from now on."""
    asked, real = [], Rewriter.rewritten
    monkeypatch.setattr(Rewriter, "rewritten", lambda self, prompts, seeds: asked.extend(prompts) or real(self, prompts, seeds))
    return asked


@pytest.fixture(scope="module")
def done(tmp_path_factory, scenes, model):
    """An output whose prompts are rewritten and planned, with its config."""
    folder = tmp_path_factory.mktemp("rewritten")
    config = config_of(manifest_of(folder, scenes), model)
    planned(config, str(folder / "out"))
    return folder / "out", config


def test_prompts_are_rewritten_and_rows_keep_their_ids_seeds_and_columns(done, scenes):
    out, _ = done
    made = requests(out)
    assert [(one.id, one.seed) for one in made] == [(f"r{at}", at) for at in range(ROWS)]
    assert [one.carried for one in made] == [{"topic": "shapes", "original_prompt": brief} for brief, _ in scenes]
    assert sum(one.prompt == told for one, (_, told) in zip(made, scenes, strict=True)) >= 0.8 * ROWS


def test_a_run_renders_the_rewritten_prompts_and_has_those_of_the_manifest_as_a_column(tmp_path, scenes, model):
    manifest = manifest_of(tmp_path, scenes[:3])
    told = f"{{model: {{source: {model}}}, instruction: 'rewrite {{prompt}}', max_tokens: 16, batch: 2}}"
    words = ["run", "embedded", "--set", f"manifest={manifest}", "--set", f"prompts.rewrite={told}", "--set", "defaults.steps=2"]
    said = CliRunner().invoke(main, [*words, "--set", HERE, "--out", str(tmp_path / "out")])
    assert said.exit_code == 0, said.output
    assert problems(str(tmp_path / "out")) == []
    rows = {row["id"]: row for _, _, row in promptmill.open(tmp_path / "out").images()}
    assert [rows[f"r{at}"]["original_prompt"] for at in range(3)] == [brief for brief, _ in scenes[:3]]
    assert all(row["prompt"].startswith("a ") and row["prompt"].endswith(" background") for row in rows.values())
    assert "rewriter of prompts" in (tmp_path / "out" / "README.md").read_text()


def test_a_plan_says_that_the_step_is_due_without_the_model_and_writes_nothing(tmp_path, scenes, model, monkeypatch):
    monkeypatch.setattr(Rewriter, "rewritten", None)
    manifest, out = manifest_of(tmp_path, scenes), tmp_path / "out"
    told = f"{{model: {{source: {model}}}, instruction: shorter}}"
    words = ["plan", "embedded", "--set", f"manifest={manifest}", "--set", f"prompts.rewrite={told}", "--out", str(out)]
    said = CliRunner().invoke(main, words)
    assert said.exit_code == 0, said.output
    line = f"the prompts of 40 of 40 rows are to be rewritten by {model}; `promptmill run` and `promptmill rewrite` do so"
    assert said.output == f"rewriting    {line}\n"
    as_json = json.loads(CliRunner().invoke(main, [*words, "--json"]).output)
    assert as_json == {"output": str(out), "rewriting": {"rows": 40, "of": 40, "model": str(model)}}
    assert not (out / "plan").exists() and not (out / "rewritten").exists()
    with pytest.raises(promptmill.Error, match="the prompts of 40 of 40 rows are to be rewritten by"):
        promptmill.plan(config="embedded", out=out, manifest=str(manifest), prompts__rewrite={"model": {"source": str(model)},
                        "instruction": "shorter"})  # fmt: skip


def test_a_step_that_was_cut_off_goes_on_where_it_was_to_the_same_bytes(tmp_path, scenes, model, done, monkeypatch):
    config, out = config_of(manifest_of(tmp_path, scenes), model), tmp_path / "out"
    real, left = Rewriter.rewritten, [1]

    def cut_off(self, prompts, seeds):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return real(self, prompts, seeds)

    with monkeypatch.context() as patch:
        patch.setattr(Rewriter, "rewritten", cut_off)
        with pytest.raises(KeyboardInterrupt):
            planned(config, str(out))
    assert [*parts(out)] == ["000000.parquet"] and not (out / "plan" / "plan.json").exists()
    assert due(look(config, str(out))).rows == ROWS - 16
    asked = counted(monkeypatch)
    planned(config, str(out))
    assert asked == [brief for brief, _ in scenes[16:]]
    assert parts(out) == parts(done[0]) and requests(out) == requests(done[0])
    # A part that is damaged is made anew, and a plan that is there asks for none.
    (out / "rewritten" / "parts" / "000001.parquet").write_bytes(b"PAR1")
    asked.clear()
    planned(config, str(out))
    assert asked == []
    shutil.rmtree(out / "plan")
    planned(config, str(out))
    assert asked == [brief for brief, _ in scenes[16:32]] and parts(out) == parts(done[0])


def test_several_processes_write_the_texts_of_one(tmp_path, scenes, model, done, monkeypatch):
    monkeypatch.setattr(Rewriter, "rewritten", None)  # in this process
    out, seen = tmp_path / "out", []
    sources = look(config_of(manifest_of(tmp_path, scenes), model), str(out))
    rewrite(sources, str(out), seen.append, workers=2)
    assert parts(out) == parts(done[0]) and seen == [16, 32, 40]


@pytest.mark.parametrize("workers", ["0", "257", "two"])
def test_a_number_of_processes_that_is_none_is_refused_in_one_line(workers):
    said = CliRunner().invoke(main, ["rewrite", "embedded", "--workers", workers])
    assert said.exit_code == 2 and said.output == f"--workers {workers!r}: is a number of processes from 1 to 256, or auto\n"


def test_a_manifest_that_grows_has_its_new_rows_rewritten_and_another_instruction_all(tmp_path, scenes, model, monkeypatch):
    out, asked = tmp_path / "out", counted(monkeypatch)
    planned(config_of(manifest_of(tmp_path, scenes[:16]), model), str(out))
    asked.clear()
    grown = config_of(manifest_of(tmp_path, scenes[:20]), model)
    with pytest.raises(PlanError, match="rewritten yet"):
        planned(grown, str(out))
    assert asked == []
    planned(grown, str(out), accept_changes=True)
    assert asked == [brief for brief, _ in scenes[16:20]]
    asked.clear()
    other = config_of(manifest_of(tmp_path, scenes[:20]), model, "prompts.rewrite.max_tokens=15")
    planned(other, str(out), accept_changes=True)
    assert len(asked) == 20


def test_what_the_model_makes_nothing_of_is_a_bad_row_in_one_line_and_other_rows_stay(tmp_path, scenes, model, monkeypatch):
    said = {scenes[1][0]: "", scenes[2][0]: Failure("render_error", "is of 9 tokens")}
    monkeypatch.setattr(Rewriter, "rewritten", lambda self, prompts, seeds: [said.get(one, f"a {one}") for one in prompts])
    manifest = manifest_of(tmp_path, scenes[:4], {"id": "bare", "topic": "none"})
    with pytest.raises(PlanError) as raised:
        planned(config_of(manifest, model, "defaults.prompt=a white cross"), str(tmp_path / "out"))
    assert raised.value.problems == (
        f"{manifest}, row 2: prompt: was rewritten by {model} as nothing",
        f"{manifest}, row 3: prompt: was not rewritten by {model}: is of 9 tokens",
    )
    plan = planned(config_of(manifest, model, "defaults.prompt=a white cross", "runtime.on_bad_row=record"), str(tmp_path / "out"))
    assert (plan.counts.rows, plan.counts.bad) == (5, 2)
    shard = read_shard(str(tmp_path / "out"), 0)
    assert [(row.row, row.id, row.prompt) for row in shard.bad] == [(1, "r1", scenes[1][0]), (2, "r2", scenes[2][0])]
    # A row without a prompt has that of the defaults, which is not rewritten.
    assert [placed.request.prompt for placed in shard.requests] == [f"a {scenes[0][0]}", f"a {scenes[3][0]}", "a white cross"]


def test_rows_that_make_no_request_are_refused_before_the_model_is_loaded(tmp_path, scenes, model, monkeypatch):
    monkeypatch.setattr("promptmill.pipelines.rendering.rewriting.load_rewriter", None)
    manifest = manifest_of(
        tmp_path, scenes[:1], {"id": "x", "prompt": "a", "steps": "many"}, {"id": "y", "prompt": "b", "syntax": "a1111"},
        {"id": "z", "prompt": "c", "original_prompt": "d"},
    )  # fmt: skip
    with pytest.raises(PlanError) as raised:
        planned(config_of(manifest, model), str(tmp_path / "out"))
    assert len(raised.value.problems) == 3 and "row 2: steps:" in raised.value.problems[0]
    assert "row 3: syntax: prompts that are rewritten are plain" in raised.value.problems[1]
    assert "row 4: original_prompt: is the column of prompts before they are rewritten" in raised.value.problems[2]


def test_strict_configs_take_the_column_of_prompts_as_they_were(tmp_path, scenes, model):
    config = config_of(manifest_of(tmp_path, scenes[:1]), model, "runtime.strict=true")
    with pytest.raises(PlanError, match="topic: unknown column") as raised:
        planned(config, str(tmp_path / "out"))
    assert len(raised.value.problems) == 1


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_command_writes_a_manifest_of_the_rewritten_rows(tmp_path, scenes, model, done, ending):
    out, file = tmp_path / "out", tmp_path / f"new.{ending}"
    shutil.copytree(done[0] / "rewritten", out / "rewritten")
    manifest = manifest_of(tmp_path, scenes)
    told = f"{{model: {{source: {model}}}, instruction: 'rewrite {{prompt}}', max_tokens: 16, batch: 2}}"
    words = ["rewrite", "embedded", "--set", f"manifest={manifest}", "--set", f"prompts.rewrite={told}", "--out", str(out)]
    said = CliRunner().invoke(main, [*words, "--set", "model.batch=4", "--to", str(file)])
    assert said.exit_code == 0 and said.output == f"40 rows in {file}\n"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if ending == "jsonl" else pq.read_table(file).to_pylist()
    assert [(row["id"], row["prompt"], row["original_prompt"], row["seed"], row["topic"]) for row in rows] == [
        (one.id, one.prompt, one.carried["original_prompt"], one.seed, "shapes") for one in requests(done[0])
    ]
    # The new manifest is one like any other.
    plan = planned(load("embedded", [f"manifest={file}", "shards.size=1000", HERE]), str(tmp_path / "again"))
    assert plan.counts.rows == ROWS and requests(tmp_path / "again")[0].carried["original_prompt"] == scenes[0][0]


def test_the_command_is_for_configs_that_rewrite(tmp_path):
    said = CliRunner().invoke(main, ["rewrite", "embedded", "--set", "manifest=x.txt", "--out", str(tmp_path / "out")])
    assert said.exit_code == 2 and said.output.startswith("prompts.rewrite: is not there; ")


def test_drawn_texts_follow_each_rows_own_seed(tmp_path, scenes, model):
    (tmp_path / "b").mkdir()
    drawn = "prompts.rewrite.temperature=3"
    out = planned_texts(tmp_path / "a", manifest_of(tmp_path, scenes[:8]), model, drawn)
    moved = planned_texts(tmp_path / "c", manifest_of(tmp_path / "b", [*reversed(scenes[:8])]), model, drawn)
    assert out == planned_texts(tmp_path / "d", manifest_of(tmp_path, scenes[:8]), model, drawn) and len(set(out)) > 4
    # At other places, with other seeds, the same prompts become others.
    assert out != moved[::-1]


def planned_texts(out, manifest, model, *settings):
    planned(config_of(manifest, model, *settings), str(out))
    return [one.prompt for one in requests(out)]


def test_memory_that_runs_out_is_one_line(tmp_path, scenes, model, monkeypatch):
    def out_of_memory(self, prompts, seeds):
        raise FatalError("CUDA out of memory, while generating text; set batch lower")

    monkeypatch.setattr(Rewriter, "rewritten", out_of_memory)
    config = config_of(manifest_of(tmp_path, scenes), model)
    with pytest.raises(PlanError, match=r"^prompts\.rewrite: CUDA out of memory, while generating text; set batch lower$"):
        rewrite(look(config, str(tmp_path / "out")), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("prompts", "problem"),
    [
        (
            "{rewrite: {model: {source: owner/name}, instruction: x}}",
            "prompts.rewrite.model: owner/name is a hub repository",
        ),
        ("{rewrite: {model: {source: ./a}}}", "prompts.rewrite.instruction: "),
        ("{rewrite: {model: {source: ./a}, instruction: ' '}}", "prompts.rewrite.instruction: says nothing; say how prompts"),
        ("{rewrite: {model: {source: ./a}, instruction: x, max_tokens: 9999}}", "prompts.rewrite.max_tokens: "),
        ("{syntax: a1111, rewrite: {model: {source: ./a}, instruction: x}}", "prompts: rewrite is for plain prompts"),
    ],
)
def test_a_rewriting_that_is_none_is_refused_with_its_key(tmp_path, prompts, problem):
    with pytest.raises(ConfigError) as raised:
        load("embedded", [f"prompts={prompts}"])
    assert problem in str(raised.value)


def test_a_model_that_rewrites_nothing_is_refused_by_the_plan_in_one_line(tmp_path, scenes, model):
    pickled = shutil.copytree(model, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    silent = shutil.copytree(model, tmp_path / "silent")
    (silent / "tokenizer.json").unlink()
    refused = {
        llava(tmp_path / "llava"): "is a LlavaForConditionalGeneration; needed is a causal language model of transformers",
        pickled: "holds no .safetensors; pickles are not read",
        silent: "holds no tokenizer",
        tmp_path / "nowhere": "no such folder",
    }
    manifest = manifest_of(tmp_path, scenes)
    for folder, problem in refused.items():
        with pytest.raises(PlanError) as raised:
            planned(config_of(manifest, folder), str(tmp_path / "out"), rewrites=False)
        assert len(raised.value.problems) == 1 and problem in raised.value.problems[0]
        assert not isinstance(raised.value, RewritingDueError)


def test_a_config_without_the_key_keeps_its_fingerprint(tmp_path, scenes):
    plain = load("embedded", [f"manifest={manifest_of(tmp_path, scenes)}", HERE])
    assert "prompts" not in plain.render_config()
    with_others = load("embedded", [f"manifest={tmp_path / 'rows.jsonl'}", HERE, "prompts={long: true}"])
    assert "rewrite" not in with_others.render_config()["prompts"]
