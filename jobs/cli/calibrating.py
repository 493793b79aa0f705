"""The command that finds the cheapest drafts: calibrate."""

import json
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import click

from promptmill.configs.errors import ConfigError
from promptmill.configs.loading import ENDINGS
from promptmill.configs.parameters import MAX_STEPS
from promptmill.configs.printing import echo
from promptmill.configs.schedulers import scheduler_name
from promptmill.configs.schema import Config
from promptmill.configs.scorers import CLIP
from promptmill.jobs.calibration.gains import Gains
from promptmill.jobs.calibration.policies import Policy, policies, sight_of, sights_of, usual_steps
from promptmill.jobs.calibration.sample import Shape, draw
from promptmill.jobs.calibration.saying import Found, config_with, facts, find_out, lines, noisy
from promptmill.jobs.calibration.trials import RANK, Notes, identity, observe
from promptmill.jobs.cli.arguments import configured, takes_settings
from promptmill.jobs.cli.endings import FAILED, USAGE, one_line_errors, stop
from promptmill.jobs.planning.making import look
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.showing.progress import duration
from promptmill.pipelines.work.units import Placed

SAY_EVERY_S = 15.0


class Steps(click.ParamType):
    """4,6,8: numbers of steps."""

    name = "STEPS"

    def convert(self, value: str | Sequence[int], param: click.Parameter | None, ctx: click.Context | None) -> Sequence[int]:
        if not isinstance(value, str):
            return value
        parts = value.split(",")
        if not all(part.strip().isdecimal() and 1 <= int(part) <= MAX_STEPS for part in parts):
            self.fail(f"{value!r} are no numbers of steps; write them as 4,6,8", param, ctx)
        return sorted({int(part) for part in parts})


@click.command()
@takes_settings
@click.option("--requests", type=click.IntRange(2, 10_000), default=200, show_default=True, help="Rows of the manifest to sample.")
@click.option("--drafts", "steps", type=Steps(), help="Steps of the drafts to try.  [default: 15, 20, 30, 40, 50% of the finals']")
@click.option("--sampler", "samplers", multiple=True, metavar="NAME", help="Try drafts by this sampler too; repeatable.")
@click.option(
    "--gain", type=click.FloatRange(1, 100, max_open=True), default=98.0, show_default=True, help="Percent of the gain to keep."
)
@click.option("--previews/--no-previews", default=True, help="Compare with x0 previews after as many steps.")
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
    target: Path | None,
    place: Path | None,
    as_json: bool,
) -> None:
    """Find the cheapest drafts that keep what ranking gains: render a sample in full and as drafts, and compare. Exits with 1 where
    no cascade is shown to keep enough."""
    with one_line_errors():
        if target:
            _check_new(target)
        loaded, _ = configured(config, None, settings)
        place = place or Path("runs") / f"{Path(config).stem}-trials.jsonl"
        found, stochastic = calibrated(loaded, place, requests, steps, samplers, gain / 100, previews)
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


def calibrated(
    config: Config,
    place: Path,
    requests: int,
    steps: Sequence[int] | None,
    samplers: Sequence[str],
    wanted: float,
    with_previews: bool,
) -> tuple[Found, bool]:
    """Sample, observe, choose. Also returns whether the chosen drafts are by samplers that add noise of their own."""
    # Whatever drafts there are, these are to be found; and rows are held to none while they are not.
    ranking = config.ranking.model_copy(update={"drafts": (), "drafts_stochastic": False})
    sources = look(config.model_copy(update={"ranking": ranking}))
    sample = draw(sources, requests)
    own = {shape.scheduler for shape in sample.shapes}
    others = dict.fromkeys(_sampler(name, sources.rules.schedulers) for name in samplers)
    # One that all finals are by is tried anyway.
    schedulers = (None, *(name for name in others if own != {name}))
    steps = steps or usual_steps(sample.shapes)
    try:
        tried = policies("draft", steps, sample.shapes, schedulers)
        compared = policies("preview", steps, sample.shapes) if with_previews else []
    except ValueError as error:
        raise PlanError([f"no cascade with drafts of {', '.join(map(str, steps))} steps fits: {error}"]) from None
    notes = Notes(place, identity(sources))
    failed = observe(sources, sample.requests, list(sights_of([*tried, *compared])), notes, progress=_Said())
    without = {**sample.broken, **failed, **_left_out(steps, tried, sample.shapes)}
    if sample.bad:
        without["rows that make no request"] = f"{sample.bad:,}; `promptmill plan` says why"
    drafts = _judged(sample.requests, notes, tried)
    if drafts is None:
        raise PlanError([f"nothing could be rendered: {next(iter(without.values()), 'no request is left')}"])
    score = RANK if ranking.scorers else CLIP
    found = find_out(score, wanted, sample.rows, drafts, _judged(sample.requests, notes, compared), without)
    return found, found.chosen is not None and noisy(drafts.policies[found.chosen], sample.shapes)


def _left_out(steps: Sequence[int], tried: Sequence[Policy], shapes: Sequence[Shape]) -> dict[str, str]:
    """Why drafts of so many steps are in none of the cascades."""
    used, without = {stage.steps for policy in tried for stage in policy.stages}, {}
    for number in steps:
        if number not in used:
            try:
                policies("draft", [number], shapes)
            except ValueError as error:
                without[f"drafts of {number} steps"] = str(error)
    return without


def _judged(sample: Sequence[Placed], notes: Notes, some: Sequence[Policy]) -> Gains | None:
    """What becomes of these policies on the requests that were seen in all the ways they need; of ways in which hardly any
    request could be seen, the policies are left out instead."""
    trials = [trial for placed in sample if (trial := notes.trial(placed))]
    ways = {sight_of(*stage) for stage in sights_of(some)}
    seen = {way for way in ways if sum(way in trial.sights for trial in trials) > len(trials) / 2}
    usable = [policy for policy in some if {sight_of(policy.kind, stage) for stage in policy.stages} <= seen]
    whole = [trial for trial in trials if seen <= set(trial.sights)]
    return Gains.of(whole, usable) if whole and usable else None


def _sampler(name: str, fitting: Collection[str]) -> str:
    try:
        short = scheduler_name(name)
    except ValueError as error:
        raise ConfigError([f"--sampler: {error}"]) from None
    if short not in fitting:
        raise ConfigError([f"--sampler: {short} does not fit the model, which takes {', '.join(fitting)}"])
    return short


class _Said:
    """Says now and then how far it has come."""

    def __init__(self) -> None:
        self._began, self._said, self._first = time.monotonic(), 0.0, 0

    def __call__(self, done: int, all_: int) -> None:
        now = time.monotonic()
        if not self._said:
            self._first = done
        elif done == all_ or now - self._said < SAY_EVERY_S:
            return
        self._said = now
        rate = (done - self._first) / (now - self._began) if done > self._first else 0.0
        left = f", about {duration((all_ - done) / rate)} left" if rate else ""
        echo(f"{done:,} of {all_:,} requests{left}", err=True)
