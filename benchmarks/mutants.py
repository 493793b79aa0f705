"""Tells whether the fast suite notices when the code is wrong: deliberate breaks across the layers, each in a copy of the tree.

    python -m benchmarks.mutants                            # every break, against `pytest -m quick`
    python -m benchmarks.mutants --only ranking -- -m quick -n 2
    python -m benchmarks.mutants --only tars -- tests/shards

A break replaces one text of one file. First the copy as it is has to pass; then each break has to turn the suite red. Prints a
table; exits with 1 where a break survives, with 2 where the copy as it is fails or a break does not apply any more. What stands
behind `--` is given to pytest, in place of `-m quick`.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
QUICK = ("-m", "quick")
LIMIT_S = 900  # that a suite may take; one that a break makes hang is red
LEFT_OUT = (".git", ".venv", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", "build", "dist", "runs", "site")


@dataclass(frozen=True)
class Mutant:
    """Describes one deliberate break.

    Attributes:
        file: From the repository's root.
        old, new: The text that is replaced, which occurs once, and what replaces it.
        breaks: What is wrong then, in words.
    """

    file: str
    old: str
    new: str
    breaks: str

    @property
    def name(self) -> str:
        return self.file.removesuffix(".py").rpartition("/")[2]

    def apply(self, tree: Path) -> None:
        """Damage the file of this break in a tree.

        Raises:
            click.ClickException: The text is not there, or is there more than once.
        """
        path = tree / self.file
        content = path.read_text() if path.is_file() else ""
        if content.count(self.old) != 1:
            raise click.ClickException(f"{self.file}: has {content.count(self.old)} times: {self.old.strip()}")
        path.write_text(content.replace(self.old, self.new))


MUTANTS = (
    Mutant(
        "configs/drafts.py",
        "if draft.keep >= before.keep:",
        "if draft.keep > before.keep:",
        "a config may have a draft that leaves nobody out",
    ),
    Mutant(
        "manifests/own_pictures.py",
        "_TAKEN = frozenset(KNOWN_COLUMNS) - NOT_WRITTEN - _FOLLOWING",
        '_TAKEN = frozenset(KNOWN_COLUMNS) - NOT_WRITTEN - _FOLLOWING - {"outpaint"}',
        "a column of a request is not read back from its picture",
    ),
    Mutant(
        "manifests/picture_texts.py",
        "plain = unpacking.decompress(content, self._room + 1)",
        "plain = unpacking.decompress(content)",
        "a compressed text of a picture is unpacked whole before its size is looked at",
    ),
    Mutant(
        "manifests/list_forms.py",
        "if place in values:",
        "if False:",
        "an option that a line of kohya's has twice counts once",
    ),
    Mutant(
        "manifests/repeated_ids.py",
        "hashes[1:][hashes[1:] == hashes[:-1]]",
        "hashes[2:][hashes[2:] == hashes[:-2]]",
        "an id that occurs exactly twice is not noticed",
    ),
    Mutant(
        "manifests/pixels.py",
        'ground: str = "white"',
        'ground: str = "black"',
        "what is transparent in a picture is laid on black",
    ),
    Mutant(
        "shards/tars.py",
        "mtime=0, encoder=False",
        "mtime=1, encoder=False",
        "the members of a tar are dated",
    ),
    Mutant(
        "shards/commits.py",
        "if (record.shard, record.generation) != (shard, generation):",
        "if record.shard != shard:",
        "the record of another generation is taken for the one that its name says",
    ),
    Mutant(
        "shards/lease_holder.py",
        "        if not comparable or None in (self.boot_id, self.pid_namespace, self.start_time):\n            return False\n",
        "",
        "the lease of a process on another machine is taken over as if that process had ended",
    ),
    Mutant(
        "pipelines/work/units.py",
        'f"{job_seed}\\n{candidate}\\n{request.id}"',
        'f"{job_seed}\\n{request.id}"',
        "all candidates of a request have the same seed",
    ),
    Mutant(
        "pipelines/work/ranking.py",
        "sorted((-score, index) for index, score",
        "sorted((-score, -index) for index, score",
        "of candidates with equal scores the last is first",
    ),
    Mutant(
        "pipelines/rendering/conditioning.py",
        "return np.where(mask[..., None], rendered, original)",
        "return rendered.copy()",
        "inpainting changes pixels outside of the mask",
    ),
    Mutant(
        "manifests/mask_changes.py",
        "repaint = ~repaint if edit.invert else repaint",
        "repaint = repaint",
        "a mask that is to be inverted is not",
    ),
    Mutant(
        "pipelines/rendering/grounding.py",
        "fuser.enabled = on",
        "pass",
        "rows go through the layers that read boxes as another call has left these",
    ),
    Mutant(
        "manifests/requests.py",
        'unread = "negative_prompt" in rules.ignored and (scale is None or scale <= 1.0)',
        'unread = "negative_prompt" in rules.ignored',
        "a row that is led away from a negative prompt has none",
    ),
    Mutant(
        "manifests/masks.py",
        "there = changed(before, edit)",
        "there = before",
        "a mask that repaints nothing once it is changed is taken for one that repaints something",
    ),
    Mutant(
        "pipelines/scoring/finishing.py",
        "if not (in_full and broken_limit(one, ranking))}",
        "}",
        "a request stops to grow at images that break a limit and may not be kept",
    ),
    Mutant(
        "actors/flow/lanes.py",
        "PATIENCE - 1 if as_a_whole else ticket.alone",
        "PATIENCE - 1 if as_a_whole else 1",
        "a unit is blamed for a death beside others as for one alone",
    ),
    Mutant(
        "jobs/planning/row_changes.py",
        "elif _id(old[row]) != _id(new[row]):",
        "elif False:",
        "a row that has moved is taken for an edited one",
    ),
    Mutant(
        "jobs/running/failure_budget.py",
        "sum(record.failed for record in records)",
        "0",
        "what failed in committed shards does not count against max_failed",
    ),
    Mutant(
        "jobs/verifying/shard_checks.py",
        "elif key < previous:",
        "elif False:",
        "verify does not see that rows are out of order",
    ),
    Mutant(
        "jobs/sharing/preference_pairs.py",
        'next((row for row in ranked if row["may"]), None)',
        "next(iter(ranked), None)",
        "an image that breaks a limit is the better one of a preference pair",
    ),
    Mutant(
        "jobs/showing/user_errors.py",
        "case ModelError() | ResourcesError() | ManifestError() as error:",
        "case ResourcesError() | ManifestError() as error:",
        "a model that cannot be loaded ends a command with a traceback",
    ),
    Mutant(
        "pipelines/scoring/staging.py",
        "made[STAGE0], beside = entry(image), (*beside, image)",
        "made[STAGE0] = entry(image)",
        "the image before the stages is named and does not lie beside the kept one",
    ),
    Mutant(
        "pipelines/work/stage_parts.py",
        '    return [row for row in table.to_pylist() if _row(row["key"]) in own]\n',
        "    return table.to_pylist()\n",
        "a piece of a unit takes the rows of the whole unit through a stage",
    ),
    Mutant(
        "manifests/sweeps.py",
        'f"{job_seed}\\n0\\n{base}"',
        'f"{job_seed}\\n0\\n{row.values}"',
        "cells of a sweep have seeds of their own",
    ),
    Mutant(
        "pipelines/work/units.py",
        "    return (request.variation_seed + candidate) % 2**32, request.variation_strength\n",
        "    return request.variation_seed, request.variation_strength\n",
        "all variations of a row are the same",
    ),
    Mutant(
        "jobs/cli/endings.py",
        "    for line in lines:\n        echo(line, err=True)\n",
        "    for line in lines[:1]:\n        echo(line, err=True)\n",
        "a command says only the first of several lines of what is wrong",
    ),
)


@dataclass(frozen=True)
class Verdict:
    """Holds the verdict of a suite on a tree: whether it is red, the first test that failed, and the seconds that it took."""

    red: bool
    first: str
    seconds: float


def copied(folder: Path) -> Path:
    """Copy the tree as it stands, uncommitted changes too, with its links as links."""
    return Path(shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT)))


def judged(tree: Path, arguments: tuple[str, ...]) -> Verdict:
    """Run pytest in a tree until its first failure.

    Raises:
        click.ClickException: The tests could not be run, or import promptmill from elsewhere.
    """
    # Whatever is installed, what lies in the tree is found first, by the workers of tests too.
    environment = {**os.environ, "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}", "PYTHONDONTWRITEBYTECODE": "1"}
    found = [sys.executable, "-c", "import promptmill; print(promptmill.__file__)"]
    said = subprocess.run(found, cwd=tree, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(said).is_relative_to(tree):
        raise click.ClickException(f"{said}: tests would import this, and not the copy in {tree}")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-rf",
        "--no-header",
        "--durations=0",
        "-p",
        "no:cacheprovider",
        *arguments,
    ]
    began = time.monotonic()
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return Verdict(True, "none: it hangs", LIMIT_S)
    spent = time.monotonic() - began
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode and not failed:
        raise click.ClickException(f"pytest: exited with {done.returncode}: {(done.stdout + done.stderr).strip()[-2000:]}")
    return Verdict(failed is not None, failed[1] if failed else "", spent)


@click.command()
@click.option("--only", multiple=True, help="Breaks of files of this name, such as ranking.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(only: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    """Damage the code, break by break, and tell whether the suite notices."""
    chosen = [mutant for mutant in MUTANTS if not only or mutant.name in only]
    if not chosen:
        raise click.UsageError(f"no break is of {', '.join(only)}; there are {', '.join(mutant.name for mutant in MUTANTS)}")
    with tempfile.TemporaryDirectory() as name:
        tree = copied(Path(name))
        survived = 0
        try:
            for mutant in chosen:  # before an hour is spent
                before = (tree / mutant.file).read_text()
                mutant.apply(tree)
                (tree / mutant.file).write_text(before)
            whole = judged(tree, arguments or QUICK)
            if whole.red:
                raise click.ClickException(f"fails as it is: {whole.first}")
            click.echo(f"as it is: green in {whole.seconds:.0f} s\n")
            click.echo("| file | what is broken | the suite | seconds | first to fail |\n|---|---|---|---:|---|")
            for mutant in chosen:
                before = (tree / mutant.file).read_text()
                mutant.apply(tree)
                found = judged(tree, arguments or QUICK)
                (tree / mutant.file).write_text(before)
                survived += not found.red
                verdict = "red" if found.red else "GREEN"
                click.echo(f"| {mutant.file} | {mutant.breaks} | {verdict} | {found.seconds:.0f} | {found.first} |")
        except click.ClickException as error:
            click.echo(error.format_message(), err=True)
            sys.exit(2)
    click.echo(f"\n{len(chosen) - survived} of {len(chosen)} breaks turn it red")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
