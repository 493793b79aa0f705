"""What a plan, a record or a name claims costs no more than what is there; what is no JSON of ours is one line."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from promptmill.configs import json_values
from promptmill.jobs.calibration.trials import Notes
from promptmill.jobs.cli import main
from promptmill.jobs.planning import shard_plans
from promptmill.jobs.planning.plan import PlanError, ShardPlan, fingerprint_of, read_hardware, read_plan
from promptmill.jobs.planning.sealed_json import SEAL, sealed
from promptmill.jobs.planning.shard_plans import MOST_SHARD, read_shard, unpacked
from promptmill.jobs.running.repair_note import Cleared, remembered
from promptmill.manifests.requests import Request
from promptmill.pipelines.work.units import Placed
from promptmill.shards.commits import CommitError, FileRecord, parse_shard_name, read_record, read_records
from promptmill.shards.lease import Holder, holder_of
from promptmill.shards.published import read_metadata
from promptmill.shards.storage import StorageError, get, join, put
from promptmill.shards.tables import encode_table, read_table
from tests.jobs.finished import problems_of

LARGE = b"[" + b"[]," * 6_000_000 + b"[]]"
DEEP = b"[" * 200_000 + b"]" * 200_000
QUICK_S = 20  # a claim of a thousand million would take minutes and all memory


def said(*arguments: str) -> list[str]:
    """Run a command; return its lines. It may fail, but not with a traceback, and not late."""
    began = time.monotonic()
    done = CliRunner().invoke(main, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert time.monotonic() - began < QUICK_S
    return done.output.splitlines()


def forged(output: str, **values) -> None:
    """Write a plan that says something else, with the hashes that go with it."""
    plan = json.loads(get(join(output, "plan/plan.json"))) | values
    plan["fingerprint"] = fingerprint_of(plan["inputs"])
    put(join(output, "plan/plan.json"), sealed({name: value for name, value in plan.items() if name != SEAL}))


@pytest.mark.parametrize("shards", [10**6, 10**9, 10**12, 10**30])
def test_a_plan_of_more_shards_than_there_are_is_one_problem(planned, shards):
    forged(planned, shards=shards)
    lines = said("verify", planned)
    assert 0 < len(lines) < 10 and any(line.startswith("plan/plan.json: ") and "shards" in line for line in lines)
    assert said("status", planned)
    assert said("report", planned, "--to", f"{planned}/../report.html")
    assert len(said("verify", planned, "--repair")) < 20


@pytest.mark.parametrize(
    "values",
    [
        {"shards": "3"},
        {"shards": -1},
        {"shards": True},
        {"counts": {"rows": "24"}},
        {"counts": {"rows": -1}},
        {"counts": {"modes": {"txt2img": "x"}}},
        {"counts": []},
        {"embedding": 0},
        {"embedding": 10**9},
        {"embedding": "4"},
        {"carried": {"topic": "code"}},
        {"carried": {"key": "str"}},
        {"carried": [["topic", "str"]]},
        {"roots": {"folders": [1]}},
        {"roots": []},
        {"accepted": {"../../../etc/passwd": ["x"]}},
        {"accepted": {"f" * 64: [1]}},
        {"accepted": []},
        {"licences": {"model.base": 1}},
        {"inputs": []},
        {"tuned_batch": "8"},
        {"config": []},
    ],
)
def test_a_plan_with_a_value_of_another_type_is_one_line_in_every_command(planned, values):
    forged(planned, **values)
    with pytest.raises(PlanError, match=r"plan\.json: not a plan: .") as raised:
        read_plan(planned)
    assert "\n" not in str(raised.value)
    for command in ("status", "report", "verify"):
        assert any("plan.json" in line for line in said(command, planned))


@pytest.mark.parametrize("name", ["999999999", "000000.9999", "123456789.9999"])
def test_a_record_with_a_large_number_in_its_name_costs_nothing(planned, name):
    for plan in Path(planned, "plan/shards").iterdir():
        plan.unlink()
    for file in ("plan.json", "hardware.json"):
        Path(planned, "plan", file).unlink()
    shard, generation = parse_shard_name(name)
    record = json.loads(get(join(planned, "commits/000000.json"))) | {"shard": shard, "generation": generation}
    put(join(planned, f"commits/{name}.json"), json.dumps(record).encode())
    index = json.loads(get(join(planned, "index.json")))
    index["shards"].append(record)
    put(join(planned, "index.json"), json.dumps(index).encode())
    assert 0 < len(said("verify", planned)) < 110_000


@pytest.mark.parametrize("name", ["9999999999", "1" * 200, "000000.99999", "٠٠٠٠٠٠", "0000001", "-00001"])
def test_names_that_no_run_makes_are_none(name):
    assert parse_shard_name(name) is None


def test_a_records_numbers_are_within_what_columns_hold(planned):
    whole = json.loads(get(join(planned, "commits/000000.json")))
    for values in (
        {"candidates": "a\nb\x1b[31m"},
        {"kept": -1, "rejected": whole["rejected"] + whole["kept"] + 1},
        {"requests": 10**30},
        {"fingerprint": 1},
    ):
        put(join(planned, "commits/000000.json"), json.dumps(whole | values).encode())
        with pytest.raises(CommitError, match="not a commit record: ") as raised:
            read_record(planned, 0)
        assert "\n" not in str(raised.value)
    for file in ({"path": 1}, {"size": -1}, {"size": "1"}, {"sha256": None}):
        put(join(planned, "commits/000000.json"), json.dumps(whole | {"files": [whole["files"][0] | file]}).encode())
        with pytest.raises(CommitError, match="not a commit record: "):
            read_record(planned, 0)
        assert said("status", planned) and said("verify", planned)


@pytest.mark.parametrize("key", [None, "", "a-b-c", "000000", "000000-00000-0000\n", "../../x", "٠٠٠٠٠٠-00000-0000"])
def test_a_row_without_a_key_of_ours_is_one_line(planned, key):
    record = read_record(planned, 0)
    (path,) = (file.path for file in record.files if file.path.startswith("metadata/"))
    table = read_table(get(join(planned, path)))
    content = encode_table(table.set_column(0, table.schema.field("key"), pa.array([key, *table["key"].to_pylist()[1:]])))
    put(join(planned, path), content)
    files = tuple(FileRecord.of(path, content) if file.path == path else file for file in record.files)
    put(join(planned, "commits/000000.json"), dataclasses.replace(record, files=files).to_json())
    with pytest.raises(CommitError, match=r"is no key of shard|is not string"):
        read_metadata(planned, read_record(planned, 0))
    for command in (["verify", planned], ["report", planned, "--to", f"{planned}/r.html"], ["dedup", planned]):
        assert said(*command)


def test_a_shards_plan_is_not_decompressed_beyond_what_one_may_have(tmp_path):
    code = """
import resource, sys
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.shard_plans import read_shard
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_shard(sys.argv[1], 0)
except PlanError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    put(join(str(tmp_path), "plan/shards/000000.json.gz"), gzip.compress(b" " * (5 * MOST_SHARD), compresslevel=1))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    problem, grown = done.stdout.splitlines()
    assert "000000.json.gz: damaged (has more than" in problem and int(grown) < 1.5 * MOST_SHARD / 2**20


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: c + b"x", lambda c: c + c, lambda c: b"x" + c, lambda c: b""])
def test_what_is_not_one_gzip_file_is_no_plan(damage):
    with pytest.raises(ValueError, match=r"truncated|follow|header"):
        unpacked(damage(gzip.compress(b"{}")))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("units",), [[0, 10**9]]),
        (("units",), [["0"]]),
        (("requests", 0, "row"), 10**9),
        (("requests", 0, "row"), "0"),
        (("requests", 0, "request", "candidates"), 10**9),
        (("requests", 0, "request", "candidates"), 0),
        (("requests", 0, "request", "keep"), 3),
        (("requests", 0, "request", "width"), 10**6),
        (("requests", 0, "request", "steps"), 10**6),
        (("requests", 0, "request", "prompt"), None),
        (("requests", 0, "request", "prompt"), "\ud800"),
        (("requests", 0, "request", "carried"), []),
        (("requests", 0, "images"), {"init_image": 1}),
        (("requests", 0), None),
        (("bad",), [{"row": 0, "id": 1, "prompt": None, "message": ""}]),
        (("shard",), 1),
        (("requests", 0, "request", "controls"), [json.loads("[" * 90 + "]" * 90)]),
    ],
)
def test_a_shards_plan_that_asks_for_what_no_row_may_is_one_line(planned, path, value):
    file = join(planned, "plan/shards/000000.json.gz")
    whole = json.loads(gzip.decompress(get(file)))
    inner = whole
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    put(file, gzip.compress(json.dumps(whole).encode(), compresslevel=1, mtime=0))
    with pytest.raises(PlanError, match=r"000000\.json\.gz: damaged \(") as raised:
        read_shard(planned, 0)
    assert "\n" not in str(raised.value)
    assert any(line.startswith("plan/shards/000000.json.gz: altered: ") for line in said("verify", planned))


@pytest.mark.parametrize("content", [DEEP, b"{" * 300_000, LARGE, b"\xff", b"", b"null", b"[1]", b'{"a": "\\ud800"}'])
def test_json_that_is_deep_large_or_something_else_is_one_line_in_each_of_our_files(planned, content):
    files = ("plan/plan.json", "plan/hardware.json", "commits/000000.json", "index.json", "stats/repair.json", "lease/000001.json")
    for file in (*files, "stats/20260101T000000.000000-0001.jsonl"):
        put(join(planned, file), content)
    for read, error in ((read_plan, PlanError), (read_hardware, PlanError), (read_records, CommitError)):
        with pytest.raises(error) as raised:
            read(planned)
        assert "\n" not in str(raised.value)
    assert remembered(planned) == Cleared() and holder_of(planned) is None
    assert all("\n" not in line for line in problems_of(planned))
    for command in ("status", "verify", "report"):
        assert said(command, planned, *(["--to", f"{planned}/r.html"] if command == "report" else []))
    put(join(planned, "trials.jsonl"), content + b"\n")
    with pytest.raises(PlanError, match="not a file of trials"):
        Notes(Path(planned, "trials.jsonl"), {})


@pytest.mark.parametrize("special", ["pipe", "zeros"])
@pytest.mark.parametrize("file", ["plan/plan.json", "plan/hardware.json", "stats/repair.json", "plan/shards/000000.json.gz"])
def test_a_device_or_a_pipe_in_place_of_a_file_is_one_line(planned, file, special):
    place = Path(planned, file)
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    if special == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    readers = {
        "plan/plan.json": read_plan,
        "plan/hardware.json": read_hardware,
        "stats/repair.json": remembered,
        "plan/shards/000000.json.gz": lambda output: read_shard(output, 0),
    }
    with pytest.raises(StorageError, match=r"not a regular file"):
        readers[file](planned)


def test_a_lease_that_would_last_for_ever_is_a_broken_one():
    holder = Holder.here(1e300)
    assert Holder.from_json(holder.to_json()) is None
    assert Holder.from_json(Holder.here(600).to_json()) is not None


def test_a_shards_plan_that_is_written_can_be_read_and_one_of_too_many_values_is_refused_by_name(tmp_path, monkeypatch):
    request = Request(
        "r", "a, b: c, d, " * 20, "", "txt2img", None, None, (), None, 64, 64, 2, 3.0, 0.0, "dpmpp_2m", None, 1, 1, (), {}
    )
    shard = ShardPlan(0, tuple(Placed(row, request) for row in range(10)), ((*range(10),),))
    for module in (json_values, shard_plans):
        monkeypatch.setattr(module, "MOST_VALUES", 1000)
    # The prompts alone have more commas than that.
    shard_plans.write_shard(str(tmp_path), shard)
    assert read_shard(str(tmp_path), 0) == shard
    many = dataclasses.replace(shard, requests=tuple(Placed(row, request) for row in range(100)))
    with pytest.raises(PlanError, match=r"^shards\.size: shard 000000 would have rows of more than 1,000 values; set it lower$"):
        shard_plans.write_shard(str(tmp_path), many)
