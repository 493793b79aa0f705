"""Whatever a stranger has written, no command prints a raw control character, a line end or what turns a line around."""

import dataclasses
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from promptmill import jobs
from promptmill.configs.errors import UNSAFE, escaped
from promptmill.configs.printing import log_line
from promptmill.jobs.cli import job, main
from promptmill.jobs.clusters.following import Follower
from promptmill.jobs.clusters.jobs_api import Job
from promptmill.jobs.showing.progress import JsonLines, Tally, Terminal
from promptmill.shards.commits import FileRecord, read_record
from promptmill.shards.published import read_metadata
from promptmill.shards.storage import get, join, put
from promptmill.shards.tables import encode_table
from tests.jobs.datasets import planned_dataset

EVIL = "\x1b[31m\x07a\nb\r\u202e\u2028\x9b\x7f[red]"
ALLOWED = "\n"  # what ends a line of ours


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset in a folder, of a manifest with a column, and with rows, files and messages that are named to do harm."""
    folder = tmp_path_factory.mktemp("evil")
    _, plain = planned_dataset(folder, **{EVIL: 1})
    output = str(folder / EVIL)
    Path(plain).rename(output)
    record = read_record(output, 0)
    table = read_metadata(output, record)
    for name in ("id", "prompt", "error_message", "mode", "scheduler", EVIL):
        table = table.set_column(table.column_names.index(name), name, pa.array([EVIL] * len(table)))
    content = encode_table(table)
    put(join(output, "metadata/000000.parquet"), content)
    files = (*(file for file in record.files if file.path.startswith("data/")), FileRecord.of("metadata/000000.parquet", content))
    put(join(output, "commits/000000.json"), dataclasses.replace(record, files=files).to_json())
    for place in ("commits", "data", "metadata", "parts", "plan/shards", "stats"):
        put(join(output, place, f"{EVIL}.json"), b"{")
        put(join(output, place, f"{EVIL}.jsonl"), json.dumps({"seconds": {EVIL: 1}, "host": EVIL}).encode())
    broken = get(join(output, "commits/000002.json")).replace(b'"kept"', json.dumps(EVIL).encode())
    put(join(output, "commits/000002.1.json"), broken)
    put(join(output, "lease/000001.json"), b"{")
    return output


COMMANDS = (
    "status OUT",
    "status OUT --json",
    "verify OUT",
    "sheet OUT --to TO/sheet.png",
    "sheet OUT --to TO/EVIL.gif",
    "report OUT --to TO/report.html",
    "push OUT a/EVIL",
    "export OUT --pairs TO/EVIL.parquet",
    "export OUT --pairs TO/EVIL.jsonl --margin x",
    "export OUT --manifest TO/EVIL.jsonl --drop EVIL",
    "regenerate OUT EVIL",
    "regenerate OUT 000009-00000-0000 --image-root EVIL",
    "run EVIL",
    "run embedded --set EVIL=1",
    "run embedded --out OUT --set manifest=EVIL",
    "plan embedded --out OUT --set manifest=MANIFEST --set runtime.strict=true --set shards.size=8 --no-measure",
    "plan embedded --out TO/new --set manifest=MANIFEST --set shards.size=8 --no-measure",
    "plan embedded --out TO/new --set manifest=MANIFEST --set shards.size=8 --no-measure --json",
    "calibrate EVIL --to EVIL",
    "job status EVIL --address EVIL",
    "EVIL",
    "--EVIL",
    "status",
    "status --EVIL",
    "sheet OUT --most EVIL",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_prints_what_steers_a_terminal(dataset, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = {"OUT": dataset, "TO": str(tmp_path), "EVIL": EVIL, "MANIFEST": str(Path(dataset).parent / "manifest.jsonl")}
    given_ = [re.sub("|".join(words), lambda found: words[found[0]], one) for one in command.split()]
    done = CliRunner().invoke(main, given_)
    assert done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert not UNSAFE.search(done.output.replace(ALLOWED, "")), done.output
    # Nothing of the text begins a line of its own.
    assert not any(line.startswith("b") and "202e" in line for line in done.output.splitlines())


class Elsewhere:
    """A cluster's dashboard that says what it likes."""

    address = f"http://{EVIL}"

    def __init__(self, address: str):
        pass

    def jobs(self):
        return [Job(EVIL, EVIL, 0, EVIL, EVIL)]

    def job(self, id):
        return Job(EVIL, "FAILED", None, EVIL, EVIL)

    def logs(self, id):
        return f"one\r\n\x1b[36m(pid=1)\x1b[0m two\tthree\n{EVIL}"

    async def lines(self, id):
        for line in ('{"event": "progress"}', '{"event": "ready", "a": []}', json.dumps({"event": "note", "text": EVIL}), EVIL):
            yield line


@pytest.mark.parametrize("command", ["list", "status x", "status x --json", "logs x", "attach x"])
def test_what_a_dashboard_or_a_jobs_log_says_is_printed_safely(monkeypatch, command):
    monkeypatch.setattr(job, "Remote", Elsewhere)
    done = CliRunner().invoke(main, ["job", *command.split(), "--address", "http://127.0.0.1:8265"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert not UNSAFE.search(re.sub("[\n\t]", "", done.output)), done.output
    if command == "logs x":
        assert done.output.splitlines()[:2] == ["one", "(pid=1) two\tthree"]


@given(st.text(st.characters(exclude_categories=())))
def test_a_line_of_a_log_stays_a_line_without_controls(text):
    assert not UNSAFE.search(log_line(text).replace("\t", ""))


@given(st.text(st.characters(exclude_categories=())))
def test_a_json_line_has_no_control_and_says_the_same(text):
    stream = io.StringIO()
    JsonLines(Tally(1), stream).say(text)
    (line,) = stream.getvalue().removesuffix("\n").split("\n")
    assert not UNSAFE.search(line) and json.loads(line) == {"event": "note", "text": text}


@pytest.mark.parametrize("text", [EVIL, "[/red] of s3://bucket/[bold]", "[link=http://a]b[/link]", "[/]"])
def test_the_live_line_takes_brackets_for_text_and_shows_no_control(text):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=False, width=300)
    with Terminal(Tally(1), console) as shown:
        shown.say(text)
    assert not UNSAFE.search(stream.getvalue().replace("\n", ""))
    assert escaped(text) in stream.getvalue()


@pytest.mark.parametrize("event", ["progress", "ready", "stopping", "note"])
@pytest.mark.parametrize("more", [{}, {"candidates": "x", "units": EVIL, "text": [EVIL]}, {"worst": {}, "kept": None}])
def test_what_only_looks_like_an_event_of_a_run_is_a_line_of_its_log(event, more):
    stream = io.StringIO()
    with Follower(Console(file=stream, force_terminal=False, width=400)) as follower:
        follower.line(json.dumps({"event": event, **more}))
        follower.line("[" * 100_000)
    assert not UNSAFE.search(stream.getvalue().replace("\n", ""))


def test_nothing_in_jobs_prints_by_itself():
    folder = Path(jobs.__file__).parent
    # The landing looks for the libraries that printing needs.
    own = {folder / "cli" / "landing.py"}
    for file in {*folder.rglob("*.py")} - own:
        text = file.read_text()
        assert not re.search(r"click\.s?echo\(|\bstd(out|err)\.write\(", text), file
        assert not re.search(r"\bprint\((?!escaped\()", re.sub(r"_console\.print\(log_line\(", "", text)), file
