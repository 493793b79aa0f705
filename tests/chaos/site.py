"""A place where drivers of stand-in work run, are killed, and are started again; and what they leave is compared."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from unittest import mock

import fsspec

from promptmill.configs.loading import load
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.sources import look
from promptmill.jobs.verifying.verify import verify
from promptmill.shards.storage import get, is_local, names
from tests.warm import ROOT, Forked, parent

HERE = "here"  # in place of an address: the workers are in the driver
Driver = Forked | subprocess.Popen[str]
PUBLISHED = ("data", "metadata", "commits")
LEFT_ALONE_S = 180  # a driver that takes longer hangs


def plan(
    folder: Path,
    units: int,
    shard_size: int = 12,
    prompts: Callable[[int], str] = "prompt {}".format,
    requests: int = 3,
    candidates: int = 2,
    settings: Sequence[str] = (),
    work: int | None = None,
) -> Path:
    """Plan an output of so many units of so many requests and candidates each; returns it. With drafts or growing candidates among
    the settings a request is so much `work` of a unit, its price by its passes."""
    manifest = folder / "manifest.jsonl"
    rows = ({"id": f"r{i}", "prompt": prompts(i)} for i in range(requests * units))
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = [f"shards.size={shard_size}", f"defaults.candidates={candidates}"]
    sizes += ["defaults.steps=1", "defaults.guidance_scale=1", "model.batch=1"]
    out = folder / "template"
    with mock.patch("promptmill.pipelines.work.units.UNIT_EVALUATIONS", requests * (work or candidates)):
        made = make_plan(look(load("embedded", [f"manifest={manifest}", *sizes, *settings])), str(out))
    assert made.counts.units == units
    return out


def everything(out: Path | str) -> dict[str, bytes]:
    """All files of an output by path, on any storage."""
    system, place = fsspec.core.url_to_fs(str(out))
    system.invalidate_cache()
    return {path.removeprefix(f"{place}/"): system.cat_file(path) for path in system.find(place)}


def published(out: Path | str) -> dict[str, bytes]:
    """Every published byte, by path."""
    files = everything(out).items()
    return {path: content for path, content in files if path.split("/")[0] in (*PUBLISHED, "index.json", "README.md")}


def upload(template: Path, output: str) -> None:
    """A planned output put onto another storage."""
    system, _ = fsspec.core.url_to_fs(output)
    system.put(f"{template}/", f"{output}/", recursive=True)


@contextmanager
def never_torn(out: str, wrong: list[str]) -> Iterator[None]:
    """Watch an output as a reader would: what a commit record names is there, whole, at every moment; else it goes to `wrong`."""
    over = threading.Event()

    def watch() -> None:
        system, place = fsspec.core.url_to_fs(out)
        while not over.wait(0.05 if is_local(out) else 0.5):
            for record in names(f"{out}/commits"):
                for file in json.loads(get(f"{out}/commits/{record}"))["files"]:
                    system.invalidate_cache()
                    try:
                        size = system.size(f"{place}/{file['path']}")
                    except FileNotFoundError:
                        size = None
                    if size != file["size"]:
                        wrong.append(f"{out}: the record {record} is there before {file['path']} is")
                        return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def problems(out: str) -> list[str]:
    return [str(found) for found in verify(out) if not hasattr(found, "totals")]


@dataclass
class Ended:
    """A driver's end: exit status (negative: the signal), what it said, and the seconds it took."""

    status: int
    said: str
    errors: str
    seconds: float


@dataclass
class Site:
    """An output under attack, and the notes of who rendered what.

    Args:
        out: A copy of a planned output, local or not.
        notes: A folder of this site's own.
        address: Of a Ray cluster, or `HERE`; each driver starts its own Ray without.
    """

    out: str
    notes: Path
    address: str | None = None
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, template: Path, folder: Path, address: str | None = None, *options: str, bucket: str | None = None) -> "Site":
        """A fresh site in a folder, its output a copy of a planned one: there, or under the folder's name in a bucket."""
        notes = folder / "notes"
        notes.mkdir(parents=True)
        if bucket is not None:
            upload(template, f"{bucket}/{folder.name}")
            return cls(f"{bucket}/{folder.name}", notes, address, options)
        shutil.copytree(template, folder / "out")
        return cls(str(folder / "out"), notes, address, options)

    @property
    def arguments(self) -> list[str]:
        """Of `tests.chaos.driver`."""
        address = ["--here"] if self.address == HERE else ["--address", self.address] if self.address else []
        return [self.out, str(self.notes), *self.options, *address]

    def start(self, options: Sequence[str], said: IO[str], errors: IO[str], environment: dict[str, str]) -> Driver:
        """Start a driver, forked from one that has imported everything."""
        return parent("driver").fork("driver", [*self.arguments, *options], said, errors, environment)

    @contextmanager
    def driver(self, *options: str) -> Iterator[Driver]:
        """A running driver; killed if it is still there at the end."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **self.environment}
        # To files, since a pipe that nobody reads stops who writes.
        with (self.notes / "said").open("a+") as said, (self.notes / "errors").open("a+") as errors:
            process = self.start(options, said, errors, environment)
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def run(self, *options: str, attack: Callable[[int], None] = lambda pid: None) -> Ended:
        """Run a driver to its end; once it renders, `attack` is called with its process number."""
        said_before, errors_before = self._length("said"), self._length("errors")
        started = time.monotonic()
        with self.driver(*options) as process:
            while process.poll() is None and '"loaded"' not in self._said("said", said_before):
                time.sleep(0.02)
                assert time.monotonic() - started < LEFT_ALONE_S, self._said("errors", errors_before)
            if process.poll() is None:
                attack(process.pid)
            try:
                process.wait(LEFT_ALONE_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)  # says where it hangs
                process.wait(20)
                hangs = self._said("errors", errors_before)[-6000:]
                raise AssertionError(f"{self.out}: hangs: {self._said('said', said_before)[-1500:]}\n{hangs}") from None
        spent = time.monotonic() - started
        return Ended(process.returncode, self._said("said", said_before), self._said("errors", errors_before), spent)

    def finish(self, *options: str) -> int:
        """Start drivers until one ends well; returns how many it took."""
        for number in range(1, 6):
            ended = self.run(*options)
            if ended.status in (0, 3):
                return number
        raise AssertionError(f"{self.out}: does not end: {ended.status}\n{ended.said[-2000:]}\n{ended.errors[-4000:]}")

    def rendered(self) -> int:
        """Requests that were rendered so far, those rendered twice counted twice."""
        log = self.notes / "rendered"
        return sum(int(line.split()[1]) for line in log.read_text().splitlines()) if log.exists() else 0

    @property
    def fired(self) -> bool:
        return (self.notes / "fired").exists()

    def _length(self, name: str) -> int:
        path = self.notes / name
        return path.stat().st_size if path.exists() else 0

    def _said(self, name: str, start: int) -> str:
        return (self.notes / name).read_bytes()[start:].decode()


@dataclass
class Fresh(Site):
    """A site whose drivers are processes of their own from the start, as where their memory or their start is measured."""

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.chaos.driver", *self.arguments]

    def start(self, options: Sequence[str], said: IO[str], errors: IO[str], environment: dict[str, str]) -> Driver:
        return subprocess.Popen([*self.command, *options], cwd=ROOT, stdout=said, stderr=errors, text=True, env=environment)


def workers(title: str, root: int) -> list[int]:
    """The Ray workers with this title that descend from a process."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
                if (entry / "cmdline").read_bytes().startswith(title.encode()) and fields[0] != "Z":
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # gone in between

    def descends(pid: int) -> bool:
        while pid > 1 and pid != root:
            pid = parents.get(pid, 0)
        return pid == root

    return [pid for pid in found if descends(pid)]


def kill_one(title: str, root: int, rng: random.Random, within_s: float = 30.0, later_s: float = 0.0) -> bool:
    """SIGKILL one of the workers with this title, so much later than there is one; waits until there is. Whether there was."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if found := workers(title, root):
            time.sleep(later_s)
            if not (still := sorted({*found} & {*workers(title, root)})):
                continue
            try:
                os.kill(rng.choice(still), signal.SIGKILL)
                return True
            except ProcessLookupError:
                pass
        time.sleep(0.01)
    return False
