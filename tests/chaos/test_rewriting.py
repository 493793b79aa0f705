"""A command that rewrites prompts is killed, and goes on where it was to the same texts."""

import json
import signal
import subprocess
import sys

from click.testing import CliRunner

from promptmill.jobs.cli import main
from promptmill.pipelines.rendering.rewriting import Rewriter
from tests.pipelines.tiny_languages import COLORS, SHAPES, llama

# The command, which kills its own process once the texts of the fourth part are generated, and before they are written.
KILLED = """
import os, signal
from promptmill.jobs.cli import main
from promptmill.jobs.planning import rewritten_prompts
real, written = rewritten_prompts.write_part, []
def write_part(*given):
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(real(*given))
rewritten_prompts.write_part = write_part
main()
"""


def test_killed_amid_rewriting_the_command_goes_on_there_to_the_same_bytes(tmp_path, monkeypatch):
    model, manifest = llama(tmp_path / "llama"), tmp_path / "rows.jsonl"
    prompts = [f"{color} {shape} on {ground}" for color in COLORS for shape in SHAPES for ground in ("white", "black")]
    manifest.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    told = f"{{model: {{source: {model}}}, instruction: rewrite, max_tokens: 8, batch: 1}}"
    words = ["rewrite", "embedded", "--set", f"manifest={manifest}", "--set", f"prompts.rewrite={told}"]
    calm, killed = ([*words, "--out", str(tmp_path / name), "--to", str(tmp_path / f"{name}.jsonl")] for name in ("calm", "killed"))
    parts, calm_parts = (tmp_path / name / "rewritten" / "parts" for name in ("killed", "calm"))
    ended = subprocess.run([sys.executable, "-c", KILLED, *killed], stderr=subprocess.DEVNULL, timeout=300)
    assert ended.returncode == -signal.SIGKILL
    assert {path.name for path in parts.glob("*.parquet")} == {f"{number:06d}.parquet" for number in range(3)}
    assert not (tmp_path / "killed.jsonl").exists()

    asked, real = [], Rewriter.rewritten
    monkeypatch.setattr(Rewriter, "rewritten", lambda self, prompts, seeds: asked.extend(prompts) or real(self, prompts, seeds))
    for command in (killed, calm):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
    assert asked == [*prompts[3 * 8 :], *prompts]
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "calm.jsonl").read_bytes()
    texts, calm_texts = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (parts, calm_parts))
    assert texts == calm_texts and len(texts) == 8
