"""Gives every hostile dataset to every command that reads a dataset, and takes down what each says."""

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import huggingface_hub
from click.testing import CliRunner
from PIL import Image

from promptmill.jobs.cli import main
from promptmill.jobs.planning.plan import Plan, read_plan
from promptmill.jobs.running.finishing import finish
from promptmill.shards.commits import read_records
from tests.forge.hostile import HOSTILE, KEY
from tests.jobs.datasets import SHARDS, commit_planned
from tests.jobs.sharing.hub import TOKEN, Hub

COMMANDS = {
    "verify": ("verify", "{out}"),
    "status": ("status", "{out}"),
    "sheet": ("sheet", "{out}", "--to", "{to}/sheet.png"),
    "report": ("report", "{out}", "--to", "{to}/report.html"),
    "dedup --to": ("dedup", "{out}", "--to", "{to}/copy"),
    "push": ("push", "{out}", "pictures", "--stats"),
    "export --manifest": ("export", "{out}", "--manifest", "{to}/again.jsonl"),
    "export --pairs": ("export", "{out}", "--pairs", "{to}/pairs.jsonl"),
    "regenerate": ("regenerate", "{out}", KEY, "--to", "{to}/made.png"),
    "verify --repair": ("verify", "{out}", "--repair"),
}
SECRET = b'{"fingerprint": "secret"}'


@dataclass(frozen=True)
class Answer:
    """What a command did with a dataset.

    Attributes:
        status: Its exit status.
        said: The first line of what went wrong, else the last of what it said; places by OUT, TO and OUTSIDE.
        lines: All that it said.
        raised: What it raised but SystemExit.
        untouched: Whether the folder outside holds what it held, and `secret` is as it was.
        around: What lies beside the output then.
        opened: The formats whose plugins were asked to open an image.
        hub: The content of all files that the Hub was sent.
    """

    status: int
    said: str
    lines: tuple[str, ...]
    raised: BaseException | None
    untouched: bool
    around: tuple[str, ...]
    opened: frozenset[str]
    hub: bytes


def forged(clean: Path, folder: Path, name: str) -> tuple[Path, Path]:
    """A hostile dataset in a folder, made of a sound one; the output, and the folder outside of it."""
    out, outside = folder / "out", folder / "outside"
    shutil.copytree(clean, out)
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    HOSTILE[name].make(out, outside)
    return out, outside


def answer(clean: Path, plan: Plan, folder: Path, name: str, command: str, hub: Hub) -> Answer:
    """What a command says to a hostile dataset, which is made for it alone."""
    out, outside = forged(clean, folder, name)
    before = _names(outside)
    to = folder / "to"
    to.mkdir()
    places = {"out": out, "to": to}
    with _opened() as opened, _rendering(plan):
        result = CliRunner().invoke(main, [word.format(**places) for word in COMMANDS[command]])
    lines = [_plain(line, folder) for line in (*result.stderr.splitlines(), *result.stdout.splitlines())]
    errors, said = result.stderr.splitlines(), result.stdout.splitlines()
    # Of what verify finds, and a report lacks, the first is said; push says last what ended it.
    wrong = (said or errors) if command == "verify" else errors[::-1] if command == "push" else errors
    words = (wrong or said[::-1] or [""])[0] if result.exit_code else said[-1]
    return Answer(
        status=result.exit_code,
        said=_plain(words, folder),
        lines=tuple(lines),
        raised=None if isinstance(result.exception, SystemExit) else result.exception,
        untouched=before == _names(outside) and (outside / "secret").read_bytes() == SECRET,
        around=tuple(_names(folder)),
        opened=frozenset(opened),
        hub=b"".join(content for branch in _branches(hub) for content in branch.values()),
    )


def _branches(hub: Hub) -> Iterator[dict[str, bytes]]:
    for repository in hub.repositories.values():
        yield from repository["branches"].values()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _plain(line: str, folder: Path) -> str:
    """A line as a page can have it: without places, hashes, times and sizes of this machine."""
    for name, place in {"OUTSIDE": folder / "outside", "OUT": folder / "out", "TO": folder / "to"}.items():
        line = line.replace(str(place), name)
    line = re.sub(r"[0-9a-f]{16,}|[0-9]{1,3}(,[0-9]{3})+", "…", line)
    line = re.sub(r"http://127[^ :]*:[0-9]+", "https://huggingface.co", line)
    return re.sub(r"\b[0-9]+(\.[0-9]+)? ([kM]?B|s)\b", r"… \2", line)


@contextlib.contextmanager
def _opened() -> Iterator[list[str]]:
    """The formats whose plugins Pillow asks, while it lasts."""
    asked: list[str] = []
    Image.init()

    def noting(name, factory):
        return lambda file, filename=None: asked.append(name) or factory(file, filename)

    noted = {name: (noting(name, factory), accept) for name, (factory, accept) in Image.OPEN.items()}
    with patch.dict(Image.OPEN, noted):
        yield asked


@contextlib.contextmanager
def _rendering(plan: Plan) -> Iterator[None]:
    """A repair renders at no cost, and asks Ray for no room."""

    def rendered(there, output, console, generations):
        commit_planned(output, plan, set(generations) - {record.shard for record in read_records(output)}, generations)
        if len(read_records(output)) == SHARDS:
            finish(read_plan(output), output, read_records(output))
        return 3  # as some rows of it failed

    with (
        patch("promptmill.jobs.verifying.mending.rendered", rendered),
        patch("promptmill.jobs.cli.verify.ready", lambda config, output: contextlib.nullcontext()),
    ):
        yield


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """This process's client of the Hub goes to this one."""
    file = url + "/{repo_id}/resolve/{revision}/{filename}"
    said = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": file, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    with patch.multiple(huggingface_hub.constants, **said), patch.dict(os.environ, HF_TOKEN=TOKEN):
        huggingface_hub.close_session()
        yield
    huggingface_hub.close_session()


def page(answers: dict[tuple[str, str], Answer]) -> str:
    """What docs/security.md says of hostile datasets, by the answers to each by each command."""
    parts = []
    for name, hostile in HOSTILE.items():
        rows = [(answers[name, command].status, _short(command, answers[name, command]), command) for command in COMMANDS]
        rows.sort(key=lambda row: (row[0] == 0, row[:2]))
        lines = [f"### {name.replace('_', ' ')}", "", hostile.what, "", "| command | exit | says |", "|---|---|---|"]
        for (status, said), some in itertools.groupby(rows, key=lambda row: row[:2]):
            commands = ", ".join(f"`{row[2]}`" for row in some)
            lines.append(f"| {commands} | {status} | {said} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _short(command: str, made: Answer) -> str:
    """What a command says, without the place of the output and the hint at the end, where commands say the same otherwise."""
    if made.status == 0 and not command.startswith("verify"):
        return "as of a sound dataset"
    said = re.sub(r"; `promptmill verify( --repair| OUT)?` (says|makes) .*", "", made.said.removeprefix("OUT/"))
    return f"`` {said} ``"


BEGIN, END = "<!-- python -m tests.forge writes what follows -->\n", "<!-- python -m tests.forge wrote what stands above -->\n"


def written(text: str) -> tuple[str, str, str]:
    """A page taken apart: what stands before the answers, these, and what stands behind."""
    before, _, rest = text.partition(BEGIN)
    between, _, after = rest.partition(END)
    return before + BEGIN, between, END + after
