import json

import pytest
from click.testing import CliRunner

from promptmill.configs.model import Model
from promptmill.jobs.cli import main
from promptmill.pipelines.models.known_prompts import known_prompts
from promptmill.pipelines.work.errors import ModelError

KNOWN = [
    "a small red circle at the left on a green background",
    "a  red cross   on a black background",
    "A Red Cross on a BLACK background",  # the tokenizer reads small letters, so this one is the same prompt
]
UNKNOWN = ["a cat on a sofa", "a red circle on a red background", "a small red circle at the left on a green background, 8k"]


def planned(tmp_path, prompts, *options):
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    settings = ["--set", f"manifest={tmp_path / 'prompts.txt'}", "--out", str(tmp_path / "out"), "--set", "shards.size=2"]
    done = CliRunner().invoke(main, ["plan", "embedded", *settings, "--no-measure", *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_prompts_beyond_what_the_model_can_draw_are_counted_with_what_would_do(tmp_path):
    said = planned(tmp_path, [*UNKNOWN, *KNOWN])
    (line,) = [line for line in said.splitlines() if line.startswith("warning")]
    assert "3 of 6 prompts are beyond what ./embedded/weights/pipeline can draw, as 'a cat on a sofa' is" in line
    assert "on a {color} background" in line and "sd15" in line


def test_programs_are_told_too(tmp_path):
    found = json.loads(planned(tmp_path, [*KNOWN, *UNKNOWN], "--json"))["unknown_prompts"]
    assert (found["unknown"], found["looked_at"], found["example"]) == (3, 6, UNKNOWN[0])


def test_of_prompts_that_are_known_nothing_is_said(tmp_path):
    assert "beyond" not in planned(tmp_path, KNOWN)


def test_of_a_long_plan_the_first_requests_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("promptmill.jobs.planning.unknown_prompts.LOOKED_AT", 4)
    assert "1 of 4 prompts are beyond" in planned(tmp_path, [*KNOWN, *UNKNOWN])


def test_a_model_that_says_nothing_of_its_prompts_knows_any_and_a_broken_word_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    model = Model(base=str(tmp_path / "model"))
    assert known_prompts(model) is None
    assert known_prompts(Model(base="owner/name", revision="0" * 40)) is None
    (tmp_path / "model.prompts.json").write_text('{"form": "x", "pattern": "("}')
    with pytest.raises(ModelError, match=r"model.prompts.json: cannot be read: "):
        known_prompts(model)
