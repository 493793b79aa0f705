"""Declares the command `calibrate`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from promptmill.configs.loading import ENDINGS
from promptmill.configs.parameters import MAX_STEPS
from promptmill.configs.printing import echo
from promptmill.configs.step_caches import StepCache
from promptmill.jobs.calibration.calibrating import Asked, calibrated
from promptmill.jobs.calibration.saying import SaysProgress, config_with, facts, lines
from promptmill.jobs.cli.arguments import takes_settings
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.planning.config_and_output import configured
from promptmill.jobs.showing.exit_statuses import FAILED, USAGE


class Steps(click.ParamType):
    """Parses numbers of steps, written as 4,6,8."""

    name = "STEPS"

    def convert(self, value: str | Sequence[int], param: click.Parameter | None, ctx: click.Context | None) -> Sequence[int]:
        if not isinstance(value, str):
            return value
        parts = value.split(",")
        if not all(part.strip().isdecimal() and 1 <= int(part) <= MAX_STEPS for part in parts):
            self.fail(f"{value!r} are no numbers of steps; write them as 4,6,8", param, ctx)
        return sorted({int(part) for part in parts})


class Cache(click.ParamType):
    """Parses a step cache, written as EVERY,FIRST or EVERY,FIRST,LAST."""

    name = "EVERY,FIRST"

    def convert(self, value: str | StepCache, param: click.Parameter | None, ctx: click.Context | None) -> StepCache:
        if not isinstance(value, str):
            return value
        try:
            every, first, *last = value.split(",")
            return StepCache(every=int(every), first=float(first), **({"last": float(*last)} if last else {}))
        except (ValueError, TypeError):
            self.fail(f"{value!r} is no step cache; write it as 2,0.25: every second step, after a quarter of them", param, ctx)


@click.command()
@takes_settings
@click.option("--requests", type=click.IntRange(2, 10_000), default=200, show_default=True, help="Rows of the manifest to sample.")
@click.option("--drafts", "steps", type=Steps(), help="Steps of the drafts to try.  [default: 15, 20, 30, 40, 50% of the finals']")
@click.option("--sampler", "samplers", multiple=True, metavar="NAME", help="Try drafts by this sampler too; repeatable.")
@click.option(
    "--gain", type=click.FloatRange(1, 100, max_open=True), default=98.0, show_default=True, help="Percent of the gain to keep."
)
@click.option("--previews/--no-previews", default=True, help="Compare with x0 previews after as many steps.")
@click.option("--cache", "caches", type=Cache(), multiple=True, help="Try this step cache, in place of drafts; repeatable.")
@click.option("--to", "target", type=click.Path(path_type=Path, dir_okay=False), help="Write the config with what was chosen here.")
@click.option(
    "--trials",
    "place",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where trials are kept.  [default: runs/NAME-trials.jsonl]",
)
@click.option("--json", "as_json", is_flag=True, help="Say it as one JSON object.")
def calibrate(
    config: str,
    settings: tuple[str, ...],
    requests: int,
    steps: Sequence[int] | None,
    samplers: tuple[str, ...],
    gain: float,
    previews: bool,
    caches: tuple[StepCache, ...],
    target: Path | None,
    place: Path | None,
    as_json: bool,
) -> None:
    """Find the cheapest drafts, or step cache, that keep the gain by ranking: render a sample in full and so, and compare.

    Exits with 1 where nothing is shown to keep enough.
    """
    with one_line_errors():
        if caches and (steps or samplers):
            stop(USAGE, "--cache tries step caches in place of drafts; calibrate drafts by the config that it writes with --to")
        if target:
            _check_new(target)
        loaded, _ = configured(config, None, settings)
        place = place or Path("runs") / f"{Path(config).stem}-trials.jsonl"
        asked = Asked(requests, steps, samplers, gain / 100, previews, tuple(dict.fromkeys(caches)))
        found, stochastic = calibrated(loaded, place, asked, SaysProgress(lambda line: echo(line, err=True)))
        if as_json:
            echo(json.dumps(facts(found), allow_nan=False))
        else:
            for line in lines(found):
                echo(line)
        if found.chosen is None:
            if target:
                echo(f"{target}: not written", err=True)
            sys.exit(FAILED)
        if stochastic:
            echo("warning: these drafts are by samplers that add noise of their own; drafts_stochastic allows them", err=True)
        if target:
            content = config_with(found, config, settings, stochastic)
            with target.open("x", encoding="utf-8") as file:
                file.write(content)
            echo(f"written to {target}; `promptmill run {target}` renders with it", err=as_json)


def _check_new(target: Path) -> None:
    if target.exists():
        stop(USAGE, f"{target} is there already; name a new file for --to")
    if not target.parent.is_dir():
        stop(USAGE, f"{target.parent} is no folder, so --to cannot write there")
    if target.suffix not in ENDINGS:
        stop(USAGE, f"{target}: a config ends in .yaml; name the file for --to so")
