import json

from click.testing import CliRunner

from promptmill.configs.own_files import ROOT
from promptmill.jobs.cli import main
from promptmill.jobs.planning.shard_plans import read_shard
from tests.pipelines import tiny_families


def test_rows_that_ask_for_what_the_model_ignores_are_counted_in_a_line_each(tmp_path):
    tiny_families.flux(tmp_path / "model", guided=False)
    rows = [
        {"prompt": "a", "negative_prompt": "blue"},
        {"prompt": "b", "guidance_scale": 3},
        {"prompt": "c", "negative_prompt": "x"},
    ]
    (tmp_path / "m.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = {
        "manifest": str(tmp_path / "m.jsonl"),
        "output": str(tmp_path / "out"),
        "model": {"base": str(tmp_path / "model")},
        "defaults": {"width": 64, "height": 64, "scheduler": "euler"},
        "ranking": {"model": f"local-dir:{ROOT}/embedded/weights/clip"},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    done = CliRunner().invoke(main, ["plan", str(tmp_path / "config.yaml"), "--no-measure"])
    assert done.exit_code == 0, done.output
    notes = [line for line in done.output.splitlines() if "has no effect" in line]
    assert len(notes) == 2
    assert any("negative_prompt: has no effect without a true_cfg_scale above 1" in line and "2 rows" in line for line in notes), (
        notes
    )
    assert any("guidance_scale: has no effect, since the model takes none" in line for line in notes), notes
    # The metadata come from the plan's requests: they say what the images are made with.
    requests = [placed.request for placed in read_shard(str(tmp_path / "out"), 0).requests]
    assert {(one.negative_prompt, one.guidance_scale) for one in requests} == {("", 1.0)}
