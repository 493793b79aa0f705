"""The command line: what a person types, and the one line they get when something is wrong."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console

from configs.errors import ConfigError
from configs.loading import json_schema, load, preset_names
from configs.schema import Config
from jobs import summary
from jobs.estimate import Estimate
from jobs.lanes import AbortError
from jobs.plan import Plan, PlanError, read_plan, read_shard
from jobs.planning import Sources, first_request, look, make_plan, with_batch
from jobs.progress import JsonLines, Tally, Terminal
from pipelines.errors import ModelError
from shards.commits import CommitError
from shards.lease import LeaseError, hold
from shards.parts import PartError
from shards.storage import StorageError, check_uri, is_local, join, local_path, names

if TYPE_CHECKING:
    from jobs.problems import Problem
    from jobs.repair import Cleared

FAILED, USAGE, SOME_FAILED, STOPPED = 1, 2, 3, 130

Command = Callable[..., Any]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="promptmill")
def main() -> None:
    """Batch rendering of synthetic image datasets: prompts in, CLIP-ranked WebDataset shards out."""


def takes_config(command: Command) -> Command:
    """CONFIG, --out and --set, for every command that takes a config."""
    options = (
        click.argument("config"),
        click.option("--out", metavar="URI", help="Where the dataset goes; else the config's output, else runs/NAME."),
        click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Override a key of the config; repeatable."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can cause ends in its line or lines and its exit status; anything else is a bug and keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        stop(STOPPED, "stopped; what is done is durable, and the same command goes on")
    except Exception as raised:
        match cause_of(raised):
            case ConfigError() | PlanError() as error:
                stop(USAGE, *error.problems)
            case ModelError() as error:
                stop(USAGE, str(error))
            case CommitError() | PartError() | AbortError() | LeaseError() as error:
                stop(FAILED, str(error))
            case OSError() as error:
                where = f"{error.filename}: " if error.filename else ""
                stop(FAILED, f"{where}{error.strerror or error}")
            case _:
                raise


def cause_of(error: BaseException) -> BaseException:
    """What lies within a group of one, or within Ray's error of a task: its own text is the whole traceback from over there."""
    while True:
        if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        elif isinstance(cause := getattr(error, "cause", None), BaseException):
            error = cause
        else:
            return error


def stop(status: int, *lines: str) -> NoReturn:
    for line in lines:
        click.echo(line, err=True)
    sys.exit(status)


def configured(config: str, out: str | None, settings: Sequence[str]) -> tuple[Config, str]:
    """The config, and the output as an absolute path or a URI: workers do not stand where we stand."""
    loaded = load(config, settings)
    output = out or loaded.output or f"runs/{Path(config).stem}"
    without_credentials(loaded.model.base)
    for manifest in [loaded.manifest] if isinstance(loaded.manifest, str) else loaded.manifest:
        without_credentials(manifest)
    return loaded, absolute(output)


def without_credentials(uri: str) -> str:
    """A URI, which says nothing that belongs into the environment."""
    try:
        check_uri(uri)
    except StorageError as error:
        raise PlanError([str(error)]) from None
    return uri


def absolute(output: str) -> str:
    """An output as an absolute path or a URI."""
    output = without_credentials(output)
    return str(local_path(output).absolute()) if is_local(output) else output.rstrip("/")


def planned(config: Config, output: str, console: Console | None, tuned: int | None = None, accept_changes: bool = False) -> Plan:
    """The plan of the output, made if it is not there."""
    sources = look(config if tuned is None else with_batch(config, tuned), output)
    # Nobody else may plan meanwhile, nor run what changes are accepted of.
    with hold(output) if accept_changes or read_plan(output) is None else nullcontext():
        return _planned(sources, output, console, tuned, accept_changes)


def _planned(sources: Sources, output: str, console: Console | None, tuned: int | None, accept_changes: bool) -> Plan:
    if console is None:
        return make_plan(sources, output, tuned_batch=tuned, accept_changes=accept_changes)
    with console.status("checking the manifest") as status:

        def progress(rows: int) -> None:
            status.update(f"checking the manifest: {rows:,} rows")

        return make_plan(sources, output, progress, tuned, accept_changes)


def tuned_batch(config: Config, output: str) -> int:
    """Try batch sizes here, show them, and return the one that pays."""
    from jobs.estimate import tried

    if read_plan(output) is not None:
        raise PlanError([f"{output} is planned already, and its batch decides its bytes; give another --out to tune"])
    sources = look(config)
    found = tried(sources.config, first_request(sources), sources.roots)
    for line in summary.tuned_lines(found):
        click.echo(line, err=True)
    return found.batch


def terminal() -> Console | None:
    """The terminal to draw on, if there is one."""
    return Console() if sys.stdout.isatty() else None


@main.command()
@takes_config
@click.option(
    "--measure/--no-measure", default=None, help="Render a batch here to estimate time and disk.  [default: if it is quick]"
)
@click.option("--tune", is_flag=True, help="Try batch sizes on the real model here, and plan with the one that pays.")
@click.option("--json", "as_json", is_flag=True, help="Say it as one JSON object.")
def plan(config: str, out: str | None, settings: tuple[str, ...], measure: bool | None, tune: bool, as_json: bool) -> None:
    """Check everything, and say what a run would render and cost. Writes nothing but the plan."""
    with one_line_errors():
        loaded, output = configured(config, out, settings)
        made = planned(loaded, output, terminal(), tuned_batch(loaded, output) if tune else None)
        estimate = None
        if measure is not False:
            estimate = estimated(made, output, asked=measure is True)
        if as_json:
            click.echo(json.dumps({"output": output, **summary.plan_facts(made, estimate)}))
            return
        for line in summary.plan_lines(made, estimate):
            click.echo(line)
        click.echo(f"plan         {output}/plan; `promptmill run` with the same arguments renders it")


def estimated(plan: Plan, output: str, asked: bool) -> Estimate | None:
    """What the plan will cost, by rendering a batch of it here, unless that would itself cost much and nobody asked for it."""
    from jobs.estimate import measure, worth_measuring

    reason = None if asked else worth_measuring(plan)
    if reason:
        click.echo(f"no estimate of the time: {reason}; --measure renders a batch all the same", err=True)
        return None
    shards = (read_shard(output, number) for number in range(plan.shards))
    estimate = measure(plan, next(shard for shard in shards if shard.requests))
    if estimate is None:
        click.echo("no estimate of the time: the request that was tried could not be rendered", err=True)
    return estimate


@main.command()
@takes_config
@click.option("--address", help="The Ray cluster; without it and without runtime.address, this machine by itself.")
@click.option("--retry-failed", is_flag=True, help="Try again what failed by infrastructure: deaths, deadlines, memory.")
@click.option("--accept-changes", is_flag=True, help="Go on though the plan changed; committed shards stay as they are.")
def run(
    config: str, out: str | None, settings: tuple[str, ...], address: str | None, retry_failed: bool, accept_changes: bool
) -> None:
    """Plan if needed, then render, or go on where an earlier run was cut off."""
    with one_line_errors():
        loaded, output = configured(config, out, [*settings, *([f"runtime.address={address}"] if address else [])])
        console = terminal()
        made = planned(loaded, output, console, accept_changes=accept_changes)
        if accept_changes:
            for line in summary.accepted_lines(made):
                click.echo(line, err=True)
        sys.exit(rendered(made, output, console, retry_failed))


def rendered(
    plan: Plan, output: str, console: Console | None, retry_failed: bool = False, generations: Mapping[int, int] | None = None
) -> int:
    """Run a plan, showing how it goes; returns the exit status."""
    # Ray takes a second to import, which only this command has to wait for.
    from actors.pools import ResourcesError
    from jobs.cluster import ClusterError
    from jobs.lanes import StartError
    from jobs.running import StoppedError
    from jobs.running import run as run_plan

    tally = Tally(plan.counts.candidates)
    shown = Terminal(tally, console) if console else JsonLines(tally)
    try:
        with shown:
            totals = run_plan(plan, output, shown, shown.say, retry_failed, generations)
    except StoppedError:
        click.echo(f"stopped; what is done is durable, and the same command goes on: {output}", err=True)
        return STOPPED
    except ResourcesError as error:
        click.echo(str(error), err=True)
        return USAGE
    except (ClusterError, StartError) as error:
        click.echo(str(error), err=True)
        return FAILED
    status = SOME_FAILED if totals.failed or totals.failed_requests else 0
    if isinstance(shown, JsonLines):
        spent = {name: round(seconds, 3) for name, seconds in tally.seconds().items()}
        shown.event("done", exit=status, output=output, totals=dataclasses.asdict(totals), seconds=spent)
    for line in summary.run_lines(totals, tally, output):
        click.echo(line, err=console is None)
    return status


@main.command()
@click.argument("out")
@click.option("--json", "as_json", is_flag=True, help="Say it as one JSON object.")
def status(out: str, as_json: bool) -> None:
    """What is done, failed and left, from the records alone."""
    with one_line_errors():
        without_credentials(out)
        found = summary.status(out)
        if found is None:
            stop(USAGE, f"{out}: nothing was planned there")
        if as_json:
            click.echo(json.dumps(summary.status_facts(found)))
            return
        for line in summary.status_lines(found):
            click.echo(line)


@main.command()
@click.argument("out")
@click.option("--repair", is_flag=True, help="Make damaged shards again, and no others, to the same bytes.")
def verify(out: str, repair: bool) -> None:
    """Reopen every file, check every hash, count, key and orphan. Exits with 1 where anything is wrong."""
    from jobs.repair import check_repairable, clear, remembered

    with one_line_errors():
        without_credentials(out)
        if not any(name for folder in ("plan", "commits") for name in names(join(out, folder))):
            stop(USAGE, f"{out}: nothing was planned there")
        if not repair:
            if found := found_wrong(out):
                stop(FAILED, f"{out}: {summary.many(len(found), 'problem')}")
            return
        output = absolute(out)
        with hold(output):
            found = found_wrong(output)
            if not found and not remembered(output).shards:
                return
            check_repairable(output, found)
            cleared = clear(output, found)
        if cleared.shards or not all(problem.surplus for problem in found):
            made_again(output, cleared)
        elif found_wrong(output):
            stop(FAILED, f"{out}: not repaired")
        click.echo(repaired(output, cleared))


def found_wrong(output: str) -> "list[Problem]":
    """Verify an output, say each thing that is wrong with it, or that nothing is."""
    from jobs.verify import Verified
    from jobs.verify import verify as problems_of

    started = time.monotonic()
    found = []
    for problem in problems_of(output):
        if not isinstance(problem, Verified):
            click.echo(str(problem))
            found.append(problem)
        elif not problem.problems:
            totals, sort = problem.totals, "finished" if problem.finished else "unfinished"
            what = f"{summary.many(totals.shards, 'shard')}, {summary.many(totals.kept, 'image')}, {summary.size(totals.bytes)}"
            click.echo(f"{sort}, and every file is as its record says: {what} ({time.monotonic() - started:.1f} s)")
    return found


def made_again(output: str, cleared: "Cleared") -> None:
    """Render what was cleared away, and whatever else is missing, by the output's own plan; stops where that does not end well."""
    made = read_plan(output)
    assert made is not None
    status = rendered(made, output, terminal(), generations=cleared.shards)
    if status not in (0, SOME_FAILED):
        sys.exit(status)
    if found := found_wrong(output):
        stop(FAILED, f"{output}: {summary.many(len(found), 'problem')} left")


def repaired(output: str, cleared: "Cleared") -> str:
    """How a repair ended; stops where bytes are others than they were."""
    from jobs.repair import differing

    lines = differing(output, cleared)
    if lines:
        stop(FAILED, *lines)
    if not cleared.shards:
        return "repaired: no shard had to be made again"
    same = "; of some nothing told what they were" if cleared.unknown else ", the same bytes as before"
    return f"repaired: {summary.many(len(cleared.shards), 'shard')} made again{same}"


@main.command()
@click.argument("out")
@click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False), default=Path("sheet.png"), show_default=True)
@click.option("--most", type=click.IntRange(1), default=28, show_default=True, help="Images to show.")
@click.option("--columns", type=click.IntRange(1), default=7, show_default=True)
def sheet(out: str, file: Path, most: int, columns: int) -> None:
    """A contact sheet of the kept images, as one PNG, JPEG or WebP."""
    from jobs.sheet import ENDINGS, SheetError, kept_images
    from jobs.sheet import sheet as sheet_of

    with one_line_errors():
        if file.suffix.lower() not in ENDINGS:
            stop(USAGE, f"{file}: no ending of an image; use one of {' '.join(ENDINGS)}")
        try:
            without_credentials(out)
            shown = list(kept_images(out, most))
        except SheetError as error:
            stop(FAILED, f"{error}; `promptmill verify {out}` says what else is wrong")
        if not shown:
            stop(FAILED, f"{out}: nothing is kept there yet")
        sheet_of(shown, columns).save(file)
        click.echo(f"{len(shown)} images in {file}")


@main.command()
@click.argument("out")
@click.argument("key")
@click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False), help="Where the image goes; else KEY beside you.")
def regenerate(out: str, key: str, file: Path | None) -> None:
    """Make one image again, alone, and compare it. Exits with 1 where its pixels are others."""
    from jobs.regenerate import regenerate as made_again

    with one_line_errors():
        without_credentials(out)
        made = made_again(out, key)
        place = file or Path(f"{key}.{made.ending}")
        place.write_bytes(made.image)
        if not made.same:
            why = f": made on {made.hardware}" if made.hardware else ""
            stop(FAILED, f"{place}: not the pixels of {out}{why}")
        click.echo(f"{place}: the same pixels, bit for bit")


@main.command()
def doctor() -> None:
    """What this machine has: GPU, versions, model caches, Ray."""
    from jobs.doctor import doctor as look_around

    findings = look_around()
    for finding in findings:
        click.echo(f"{finding.level:5}{finding.subject:20}{finding.text}")
    if any(finding.level == "fail" for finding in findings):
        sys.exit(FAILED)


@main.command()
def schema() -> None:
    """The JSON Schema of a config, for editors."""
    click.echo(json_schema(), nl=False)


@main.command()
def presets() -> None:
    """The configs that come with promptmill, by name."""
    for name in preset_names():
        click.echo(name)
