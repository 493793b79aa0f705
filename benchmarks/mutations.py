"""Checks that `verify` names every damage, and `--repair` undoes it: random mutations of a finished dataset, each of a fresh copy.

    python -m benchmarks.mutations --mutations 200 --repairs 20

Renders the quickstart at few steps by the embedded family, or takes a finished output. A mutation flips a byte, truncates, deletes,
duplicates under another valid name, swaps two files or appends bytes, over every file but stats/. A mutation counts as found if
`verify` names each file that was damaged, by that file's own name. Repairs are of damage outside plan/, which nobody can make
again; then every file but stats/ has to have the bytes that it had. Random numbers are seeded: the same command, the same damage.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from promptmill.jobs.verifying.problems import Problem
from promptmill.jobs.verifying.verify import verify

SEED = 5
KINDS = ("flip", "truncate", "delete", "duplicate", "swap", "append")
FEW = ("defaults.steps=2", "defaults.candidates=2", "model.batch=8", "shards.size=8")


@dataclass(frozen=True)
class Mutation:
    """Describes one damage.

    Attributes:
        kind: One of `KINDS`.
        touched: The path of the file that was touched, from the output.
        damaged: Paths of the files that are damaged by it, from the output.
    """

    kind: str
    touched: str
    damaged: tuple[str, ...]

    @property
    def sort(self) -> str:
        """Return the sort of the file: its folder, or its own name."""
        return self.touched.split("/")[0] + ("/" if "/" in self.touched else "")


def files_of(out: Path) -> dict[str, bytes]:
    """Return every file of a dataset, by its path in it, but for what differs between runs."""
    found = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(("stats/", "lease/"))}


def mutate(out: Path, rng: random.Random) -> Mutation:
    """Damage a dataset, in a way that shows in its bytes."""
    there = files_of(out)
    kind = rng.choice(KINDS)
    # By folder first, else most of all damage would be of plan/ or data/.
    sorts = sorted({name.split("/")[0] for name in there})
    sort = rng.choice(sorts)
    name = rng.choice([name for name in there if name.split("/")[0] == sort])
    content = there[name]
    if not content and kind in ("flip", "truncate"):
        kind = "append"
    if kind == "delete":
        (out / name).unlink()
    elif kind == "duplicate":
        copy = _free_name(out, name, rng)
        (out / copy).parent.mkdir(parents=True, exist_ok=True)
        (out / copy).write_bytes(content)
        return Mutation(kind, name, (copy,))
    elif kind == "swap":
        other = rng.choice([other for other in there if there[other] != content])
        (out / name).write_bytes(there[other])
        (out / other).write_bytes(content)
        return Mutation(kind, name, (name, other))
    else:
        (out / name).write_bytes(_altered(kind, content, rng))
    return Mutation(kind, name, (name,))


def _altered(kind: str, content: bytes, rng: random.Random) -> bytes:
    if kind == "truncate":
        return content[: rng.randrange(len(content))]
    if kind == "append":
        return content + rng.choice((b"\0" * 512, b"\n", rng.randbytes(rng.randrange(1, 600))))
    at = rng.randrange(len(content))
    # Half of them a single bit, the least that can happen.
    change = rng.choice((1 << rng.randrange(8), rng.randrange(1, 256)))
    return content[:at] + bytes([content[at] ^ change]) + content[at + 1 :]


def _free_name(out: Path, name: str, rng: random.Random) -> str:
    """Return a name that a file of a dataset might have and none has: in its own folder, or for those that have none in any."""
    folders = {"data": ".tar", "metadata": ".parquet", "commits": ".json", "plan/shards": ".json.gz"}
    folder = next((folder for folder in folders if name.startswith(f"{folder}/")), None) or rng.choice(sorted(folders))
    numbers = [f"{number:06d}" for number in range(12)]
    generations = [f"{number:06d}.{generation}" for number in range(4) for generation in (1, 2)]
    free = (f"{folder}/{number}{folders[folder]}" for number in rng.sample([*numbers, *generations], 20))
    return next(name for name in free if not (out / name).exists())


def missed(out: Path, mutation: Mutation) -> list[str]:
    """Return the damaged files that `verify` does not name."""
    named = {problem.file for problem in verify(str(out)) if isinstance(problem, Problem)}
    return [name for name in mutation.damaged if name not in named]


def can_be_repaired(mutation: Mutation) -> bool:
    """Return whether a repair can undo a mutation: it lies outside plan/, or adds a file that only has to go."""
    return not any(name.startswith("plan/") for name in mutation.damaged) or mutation.kind == "duplicate"


def repair(out: Path, was: dict[str, bytes]) -> str:
    """Run the repair; return what is wrong with the files that it left."""
    command = [sys.executable, "-m", "promptmill", "verify", str(out), "--repair"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"exit {done.returncode}: {done.stderr[-2000:]}"
    now = files_of(out)
    return ", ".join(sorted(name for name in {*was, *now} if was.get(name) != now.get(name)))


def rendered(out: Path) -> None:
    """Render the quickstart at few steps."""
    options = [part for setting in FEW for part in ("--set", setting)]
    command = [sys.executable, "-m", "promptmill", "run", "quickstart", "--out", str(out), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def report(found: Counter[tuple[str, str, str]], say: Callable[[str], None]) -> None:
    """Print a Markdown table; `found` counts (kind, sort of file, what of it)."""
    say("| damage | file | count | found | repaired |")
    say("|---|---|---:|---:|---:|")
    for kind, sort in sorted({key[:2] for key in found}):
        count, named, mended, tried = (found[kind, sort, what] for what in ("count", "found", "repaired", "tried"))
        say(f"| {kind} | {sort} | {count} | {named} | {f'{mended} of {tried}' if tried else ''} |")
    sums = {
        what: sum(number for key, number in found.items() if key[2] == what) for what in ("count", "found", "repaired", "tried")
    }
    say(f"| **all** | | {sums['count']} | {sums['found']} | {sums['repaired']} of {sums['tried']} |")


@click.command()
@click.option("--mutations", default=200, show_default=True)
@click.option("--repairs", default=20, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A finished output; it is copied.")
def main(mutations: int, repairs: int, out: Path | None) -> None:
    """Damage copies of a dataset; see what is found and mended."""
    rng, found, wrong = random.Random(SEED), Counter[tuple[str, str, str]](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        whole, copy = out or Path(folder) / "whole", Path(folder) / "copy"
        if out is None:
            rendered(whole)
        was = files_of(whole)
        waiting = repairs
        for number in range(mutations):
            shutil.copytree(whole, copy)
            mutation = mutate(copy, rng)
            key, named = (mutation.kind, mutation.sort), f"{number}: {mutation.kind} {', '.join(mutation.damaged)}"
            found[*key, "count"] += 1
            lost = missed(copy, mutation)
            found[*key, "found"] += not lost
            wrong += [f"{named}: not named: {', '.join(lost)}"] if lost else []
            # Spread over all mutations, in the order in which they come.
            if can_be_repaired(mutation) and waiting and rng.random() < 1.5 * waiting / (mutations - number):
                waiting -= 1
                began = time.monotonic()
                left = repair(copy, was)
                found[*key, "tried"] += 1
                found[*key, "repaired"] += not left
                wrong += [f"{named}: not repaired: {left}"] if left else []
                click.echo(f"{named}: repaired in {time.monotonic() - began:.1f} s", err=True)
            shutil.rmtree(copy)
    report(found, click.echo)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
