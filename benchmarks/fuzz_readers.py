"""Checks that every reader of promptmill's own files ends in one line, or is right, whatever a stranger has written into them.

    python -m benchmarks.fuzz_readers --minutes 10
    python -m benchmarks.fuzz_readers --case 1234       # one of them again, with its traceback

Each case forges one to three files of a small dataset (see `forging`) and has some of the commands and readers look at it, in a
process of its own batch. Commands that render do so without Ray and models (see `stand_ins`). A case fails where one of them ends
in a traceback, prints a control character, takes more than a minute, or has more than 1 GB of memory.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import random
import re
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from benchmarks.forging import forge
from benchmarks.stand_ins import no_rendering
from promptmill.jobs.calibration.trials import Notes
from promptmill.jobs.cli import main as promptmill
from promptmill.jobs.figures.ranked import look_back
from promptmill.jobs.planning.plan import PlanError, read_hardware, read_plan
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.sharing.hub_errors import PushError
from promptmill.jobs.sharing.push import finished
from promptmill.jobs.verifying.repair import clear, remembered
from promptmill.jobs.verifying.verify import Verified, verify
from promptmill.shards.commits import CommitError, last_record, read_records
from promptmill.shards.generations import failed_rows, taken_over
from promptmill.shards.lease import LeaseError, hold, holder_of
from promptmill.shards.parts import drop_broken

LONGEST_S = 60  # of one case
MOST_MEMORY = 10**9  # bytes resident
ADDRESSES = 6 * 2**30  # bytes of address space, so that a bomb ends here and not on the machine
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Nothing here has to outlive a crash, and waiting for a disk would be most of the time.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
FORGING_S = 4  # of one forgery
LOOKS = 8  # at each case
PLANNED = ("shards.size=8", "defaults.candidates=2", "shards.embeddings=all")  # the settings of the dataset that is forged
SETTINGS = tuple(word for setting in PLANNED for word in ("--set", setting))


class HungError(BaseException):
    """Reports a case that takes too long."""


def make(folder: str) -> None:
    """Make the dataset that is forged: planned for real, rendered by nobody, with all the files that a run may leave."""
    from promptmill.jobs.calibration.policies import Sight
    from promptmill.jobs.calibration.trials import Notes
    from promptmill.jobs.planning.shard_plans import read_shard
    from promptmill.shards.lease import Holder
    from tests.jobs.datasets import planned_dataset
    from tests.shards.made import shard, write_parts

    plan, output = planned_dataset(Path(folder), *PLANNED)
    out = Path(output)
    rows = shard(0).parts
    form = plan.form
    parts = tuple(tuple({k: v for k, v in row.items() if k in (*form.names, "image")} for row in part) for part in rows)
    write_parts(output, shard(0).__class__(7, parts, (), 8, 16), form, plan.fingerprint)
    (out / "lease").mkdir()
    # Of a process that is gone, or nobody else would write.
    (out / "lease" / "000001.json").write_bytes(dataclasses.replace(Holder.here(60), start_time=1).to_json())
    (out / "stats").mkdir(exist_ok=True)
    (out / "stats" / "repair.json").write_text(json.dumps({"shards": {"1": 0}, "hashes": {"data/000001.tar": ["0" * 64]}}))
    receipt = {"name": "000000-00000", "seconds": {"denoising": 1.5}, "host": "here"}
    (out / "stats" / "20260101T000000.000000-0001.jsonl").write_text((json.dumps(receipt) + "\n") * 3)
    notes = Notes(out / "trials.jsonl", {"config": {"a": 1}})
    for placed in read_shard(output, 0).requests[:3]:
        notes.add(placed, {"final": Sight([1.0, None], [4, 4])}, {"clip": [1.0, None]})


def _lookers() -> dict[str, Callable[[str, Path], object]]:
    """Return the commands and readers that look at a dataset, by name; each takes its URI and a folder to write into."""

    def command(*arguments: str) -> Callable[[str, Path], None]:
        def look(output: str, folder: Path) -> None:
            given = [one.replace("OUT", output).replace("TO", str(folder)) for one in arguments]
            with no_rendering(json.loads((folder / "hardware.json").read_bytes())):
                done = CliRunner().invoke(promptmill, given)
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise done.exception
            if raw := RAW.search(done.output):
                raise AssertionError(f"prints {raw[0]!r}: {done.output[max(0, raw.start() - 200) : raw.end() + 50]!r}")
            if done.exit_code not in (0, 1, 2, 3):
                raise AssertionError(f"exit {done.exit_code}")

        return look

    def rest(output: str, folder: Path) -> None:
        """Run a dataset that lacks a shard, as a run leaves it that was cut off."""
        for name in ("commits/000001.json", "data/000001.tar", "index.json", "_SUCCESS"):
            (Path(output) / name).unlink(missing_ok=True)
        run(output, folder)

    def refusing(*errors: type[Exception]) -> Callable[[Callable[[str], object]], Callable[[str, Path], None]]:
        def of(read: Callable[[str], object]) -> Callable[[str, Path], None]:
            def look(output: str, folder: Path) -> None:
                try:
                    read(output)
                except errors as error:
                    if "\n" in str(error) and not isinstance(error, PlanError):
                        raise AssertionError(f"more than a line: {error}") from None

            return look

        return of

    def plans(output: str) -> None:
        for number in range(3):
            read_shard(output, number).cut()

    def runs_begin(output: str) -> None:
        plan = read_plan(output)
        if plan is None:
            return
        for record in read_records(output):
            failed_rows(output, record, ["non_finite"])
            taken_over(output, record, [1], plan.form)

    def parts(output: str) -> None:
        plan = read_plan(output)
        if plan is not None:
            drop_broken(output, [path.name for path in (Path(output) / "parts").glob("*.parquet")], plan.form, plan.fingerprint)

    def backs(output: str) -> None:
        plan = read_plan(output)
        if plan is not None:
            look_back(output, plan)

    def held(output: str) -> None:
        holder_of(output)
        with hold(output, renew_s=5):
            pass

    def repairs(output: str) -> None:
        clear(output, [problem for problem in verify(output) if not isinstance(problem, Verified)])

    bounded = (PlanError, CommitError, OSError)
    run = command("run", "embedded", "--out", "OUT", "--set", "manifest=TO/manifest.jsonl", *SETTINGS)
    return {
        "run": run,
        "run of the rest": rest,
        "run --retry-failed": command(
            "run", "embedded", "--out", "OUT", "--set", "manifest=TO/manifest.jsonl", *SETTINGS, "--retry-failed"
        ),
        "regenerate": command("regenerate", "OUT", "000000-00001-0000", "--to", "TO/made.png"),
        "regenerate what failed": command("regenerate", "OUT", "000001-00001-0001"),
        "verify --repair": command("verify", "OUT", "--repair"),
        "status": command("status", "OUT"),
        "status --json": command("status", "OUT", "--json"),
        "verify": command("verify", "OUT"),
        "sheet": command("sheet", "OUT", "--to", "TO/sheet.png"),
        "sheet of a grid": command("sheet", "OUT", "--grid", "x=steps,y=guidance_scale", "--to", "TO/grid.png"),
        "report": command("report", "OUT", "--to", "TO/report.html"),
        "pairs": command("export", "OUT", "--pairs", "TO/pairs.parquet"),
        "pairs without images": command("export", "OUT", "--pairs", "TO/pairs.jsonl"),
        "manifest": command("export", "OUT", "--manifest", "TO/second.jsonl", "--conditioning", "--seeds"),
        "dedup": command("dedup", "OUT"),
        "dedup --to": command("dedup", "OUT", "--to", "TO/copy", "--json"),
        "shard plans": refusing(*bounded)(plans),
        "hardware": refusing(*bounded)(read_hardware),
        "runs": refusing(*bounded)(runs_begin),
        "parts": refusing(*bounded)(parts),
        "push": refusing(PushError, *bounded)(lambda output: finished(output, True, True)),
        "ranked": refusing(OSError, ValueError, LookupError)(backs),
        "last record": refusing(*bounded)(lambda output: last_record(output, 0)),
        "repair note": refusing()(remembered),
        "repair": refusing(*bounded)(repairs),
        "trials": refusing(*bounded)(lambda output: Notes(Path(output) / "trials.jsonl", {"config": {"a": 1}})),
        "lease": refusing(LeaseError, *bounded)(held),
    }


LOOKERS = _lookers()
# Commands import late what takes long; each case would do so anew.
LATE = (
    "report.making",
    "report.page",
    "sharing.dedup",
    "sharing.next_manifest",
    "sharing.preference_pairs",
    "sharing.row_files",
    "showing.contact_sheet",
    "running.run",
    "showing.summary",
    "verifying.mending",
    "verifying.regenerate",
    "verifying.repair_limits",
)
for late in LATE:
    importlib.import_module(f"promptmill.jobs.{late}")
importlib.import_module("pandas")  # by Arrow, where it is there
# A broken lease is watched for as long as its holder might need to renew it, which here nobody does.
hold.__wrapped__.__kwdefaults__["grace_s"] = 0.05  # type: ignore[attr-defined]
for plugin in ("PngImagePlugin", "JpegImagePlugin", "WebPImagePlugin"):
    importlib.import_module(f"PIL.{plugin}")


def case(base: Path, seed: str, number: int, whole: bool = False) -> dict[str, Any]:
    """Forge a dataset and look at it, each in a process of its own, so that neither's memory is counted as another's."""
    rng = random.Random(f"{seed} {number}")
    with tempfile.TemporaryDirectory(prefix="promptmill-fuzz-", dir=MEMORY) as name:
        out = Path(name) / "out"
        shutil.copytree(base / "out", out)
        shutil.copy(base / "manifest.jsonl", name)
        (Path(name) / "hardware.json").write_text(json.dumps(read_hardware(str(base / "out"))))
        # What takes long to forge, or dies of its own size, is looked at as far as it has come.
        forged = _apart(lambda: _forged(out, rng))
        looks = random.Random(f"{seed} {number} looks").sample(sorted(LOOKERS), LOOKS)
        found = _apart(lambda: _looked(out, Path(name), looks, whole))
    return {"case": number, "done": [], "looks": looks, "wrong": [], "peak": 0, **forged, **found}


def _forged(out: Path, rng: random.Random) -> dict[str, Any]:
    signal.alarm(FORGING_S)
    return {"done": [forge(out, rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]}


def _looked(out: Path, folder: Path, looks: Sequence[str], whole: bool) -> dict[str, Any]:
    wrong, peak = list[str](), 0
    for look in looks:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        signal.alarm(LONGEST_S)
        try:
            LOOKERS[look](str(out), folder)
        except BaseException as error:
            said = traceback.format_exc() if whole else _where(error)
            wrong.append(f"{look}: {type(error).__name__}: {said}: {str(error)[:400]}")
        signal.alarm(0)
        peak = max(peak, now := _peak())
        if now > MOST_MEMORY:
            wrong.append(f"{look}: {now / 1e9:.1f} GB")
    return {"wrong": wrong, "peak": peak}


def _apart(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of an action in a process of its own, or how the process ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        signal.signal(signal.SIGALRM, _too_long)
        with os.fdopen(writing, "w") as pipe, contextlib.suppress(BaseException):
            pipe.write(json.dumps(action()))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe, selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        said = pipe.read() if ready.select(2 * LONGEST_S) else ""
    if not said:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return json.loads(said) if said else {"wrong": [f"process: hangs or dies with {status}: {status}"]}


def _too_long(*_: object) -> None:
    raise HungError


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if ".venv" not in frame.filename and "fuzz_readers" not in frame.filename]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in ours[:-4:-1])


def _peak() -> int:
    """Return the most bytes that this process had in memory since the peak was forgotten."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


@click.command()
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--seed", default="1", show_default=True)
@click.option("--case", "single", type=int, help="One case alone, with its tracebacks.")
def main(minutes: float, seed: str, single: int | None) -> None:
    """Forge datasets for some minutes, and have everything look at them."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="promptmill-fuzz-", dir=MEMORY) as name:
        # Apart, since torch is imported for it.
        here = {variable: value for variable, value in os.environ.items() if variable != "PYTHONSAFEPATH"}
        # `tests` first: promptmill takes the working folder out of the path.
        command = [sys.executable, "-c", f"import tests; from benchmarks.fuzz_readers import make; make({name!r})"]
        subprocess.run(command, check=True, env=here)
        until = time.monotonic() + 60 * minutes
        if single is not None:
            found.append(case(Path(name), seed, single, whole=True))
        while single is None and time.monotonic() < until:
            found.append(case(Path(name), seed, len(found)))
            for problem in found[-1]["wrong"]:
                click.echo(f"case {found[-1]['case']}: {problem!r}", err=True)  # in case this is cut off
    wrong, examples = Counter[str](), dict[str, str]()
    for one in found:
        for problem in one["wrong"]:
            kind = ": ".join(problem.split(": ")[1:3])
            wrong[kind] += 1
            examples.setdefault(kind, f"case {one['case']}, {'; '.join(one['done'])!r}: {problem!r}" if single is None else problem)
    for kind, number in wrong.most_common():
        click.echo(f"{number} x {examples[kind]}")
    peak, looks = max((one["peak"] for one in found), default=0) / 1e9, sum(len(one["looks"]) for one in found)
    click.echo(f"{len(found):,} cases, {looks:,} looks: {wrong.total():,} wrong in {len(wrong)} ways; {peak:.2f} GB at most")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
