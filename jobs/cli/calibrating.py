"""The command that finds the cheapest drafts: calibrate."""

import json
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import click

from configs.errors import ConfigError
from configs.parameters import MAX_STEPS
from configs.schedulers import scheduler_name
from configs.schema import Config
from jobs.calibration.gains import Gains
from jobs.calibration.policies import policies, sight_of, sights_of, usual_steps
from jobs.calibration.sample import draw
from jobs.calibration.saying import Found, config_with, facts, find_out, lines, stochastic
from jobs.calibration.trials import RANK, Notes, identity, observe
from jobs.cli.arguments import configured, takes_settings
from jobs.cli.endings import FAILED, USAGE, one_line_errors, stop
from jobs.plan import PlanError
from jobs.planning import look
from jobs.progress import duration

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
@click.option("--requests", type=click.IntRange(2, 100_000), default=200, show_default=True, help="Rows of the manifest to sample.")
@click.option("--drafts", "steps", type=Steps(), help="Steps of the drafts to try.  [default: 15, 20, 30, 40, 50% of the finals']")
@click.option("--sampler", "samplers", multiple=True, metavar="NAME", help="Try drafts by this sampler too; repeatable.")
@click.option("--gain", type=click.FloatRange(1, 100), default=98.0, show_default=True, help="Percent of the gain to keep.")
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
        if target and target.exists():
            stop(USAGE, f"{target} is there already; name a new file for --to")
        loaded, _ = configured(config, None, settings)
        place = place or Path("runs") / f"{Path(config).stem}-trials.jsonl"
        found, noisy = calibrated(loaded, place, requests, steps, samplers, gain / 100, previews)
        if as_json:
            click.echo(json.dumps(facts(found)))
        else:
            for line in lines(found):
                click.echo(line)
        if found.chosen is None:
            sys.exit(FAILED)
        if noisy:
            click.echo(
                "warning: these drafts are by samplers that add noise of their own; ranking.drafts_stochastic allows them", err=True
            )
        if target:
            target.write_text(config_with(found, config, settings, noisy), encoding="utf-8")
            click.echo(f"written to {target}; `promptmill run {target}` renders with it", err=as_json)


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
    schedulers = (None, *dict.fromkeys(_sampler(name, sources.rules.schedulers) for name in samplers))
    sample, rows = draw(sources, requests)
    asked = [placed.request for placed in sample]
    steps = steps or usual_steps(asked)
    tried = policies("draft", steps, asked, schedulers)
    if not tried:
        shortest = min(request.steps for request in asked)
        raise PlanError([f"--drafts: no cascade with drafts of {', '.join(map(str, steps))} steps fits finals of {shortest}"])
    compared = policies("preview", steps, asked) if with_previews else []
    notes = Notes(place, identity(sources))
    failed = observe(sources, sample, list(sights_of([*tried, *compared])), notes, progress=_Said())
    trials = [trial for request in asked if (trial := notes.trial(request))]
    if not trials:
        raise PlanError([f"none of {len(sample)} requests could be rendered: {next(iter(failed.values()))}"])
    everywhere = set.intersection(*(set(trial.sights) for trial in trials))
    kept = {
        kind: [p for p in some if all(sight_of(p.kind, s) in everywhere for s in p.stages)]
        for kind, some in (("draft", tried), ("preview", compared))
    }
    if not kept["draft"]:
        raise PlanError([f"drafts could not be rendered: {next(iter(failed.values()))}"])
    found = find_out(
        RANK if ranking.scorers else next(iter(trials[0].scores)),
        wanted,
        rows,
        Gains.of(trials, kept["draft"]),
        Gains.of(trials, kept["preview"]) if kept["preview"] else None,
        failed,
    )
    own = [request.scheduler for request in asked]
    return found, found.chosen is not None and stochastic(found.drafts.policies[found.chosen], own)


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
        click.echo(f"{done:,} of {all_:,} requests{left}", err=True)
