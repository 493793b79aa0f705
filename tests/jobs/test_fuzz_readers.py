"""A slice of the fuzz of all readers of our own files; `python -m benchmarks.fuzz_readers --minutes 10` is the whole."""

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from benchmarks.stand_ins import no_rendering
from promptmill.configs.own_files import ROOT
from promptmill.jobs.cli import main
from promptmill.jobs.planning.plan import read_hardware
from promptmill.shards.commits import read_records
from tests.jobs.datasets import SHARDS, planned_dataset


def test_no_reader_of_our_own_files_falls_over_what_a_stranger_wrote():
    command = [sys.executable, "-m", "benchmarks.fuzz_readers", "--minutes", "0.33"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    cases = int(done.stdout.split()[0].replace(",", ""))
    assert cases > 0 and "0 wrong" in done.stdout


def test_commands_that_render_do_all_but_render_where_stand_ins_do_it(tmp_path):
    _, output = planned_dataset(tmp_path)
    (Path(output) / "commits/000001.json").unlink()
    settings = [f"manifest={tmp_path / 'manifest.jsonl'}", "shards.size=8", "defaults.candidates=2"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    with no_rendering(read_hardware(output)):
        ran = CliRunner().invoke(main, ["run", "embedded", "--out", output, *arguments])
        assert ran.exit_code == 3 and len(read_records(output)) == SHARDS, ran.output
        assert read_records(output)[1].failed == 2 * 8
        made = CliRunner().invoke(main, ["regenerate", output, "000001-00001-0001", "--to", str(tmp_path / "made.png")])
        assert made.exit_code == 0 and (tmp_path / "made.png").stat().st_size, made.output
        (Path(output) / "data/000000.tar").unlink()
        repaired = CliRunner().invoke(main, ["verify", output, "--repair"])
        assert repaired.exit_code == 1 and "has other bytes than before" in repaired.output, repaired.output
    again = CliRunner().invoke(main, ["verify", output])
    assert again.exit_code == 0, again.output
