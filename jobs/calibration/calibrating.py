"""Calibrates drafts, or a step cache: samples a manifest, renders candidates in full and so, and chooses the cheapest good way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptmill.configs.errors import ConfigError
from promptmill.configs.schedulers import scheduler_name
from promptmill.configs.schema import Config
from promptmill.configs.scorers import CLIP
from promptmill.configs.step_caches import StepCache
from promptmill.jobs.calibration.gains import Gains
from promptmill.jobs.calibration.policies import Policy, policies, sight_of, sights_of, usual_steps
from promptmill.jobs.calibration.sample import Shape, draw
from promptmill.jobs.calibration.saying import Found, find_out, noisy
from promptmill.jobs.calibration.trials import RANK, Notes, identity, observe
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sources import look
from promptmill.manifests.rules import Rules
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.work.units import Placed


@dataclass(frozen=True)
class Asked:
    """Holds the options of a calibration.

    Attributes:
        requests: Rows of the manifest to sample.
        steps: Numbers of steps of the drafts to try; None for shares of the finals' steps.
        samplers: Schedulers to try drafts by, besides the finals' own.
        gain: The share of the gain to keep, in (0, 1).
        previews: Whether to compare with x0 previews after as many steps.
        caches: The step caches to try, in place of drafts.
    """

    requests: int
    steps: Sequence[int] | None
    samplers: Sequence[str]
    gain: float
    previews: bool
    caches: Sequence[StepCache] = ()


def calibrated(
    config: Config,
    place: Path,
    asked: Asked,
    progress: Callable[[int, int], None],
) -> tuple[Found, bool]:
    """Calibrate a config; return the result, and whether the chosen drafts are by samplers that add noise of their own.

    Args:
        config: The config of the run to calibrate.
        place: The file where trials are kept, so that a calibration that was cut off goes on.
        asked: The options.
        progress: Called with the number of requests that are done, and of all.

    Raises:
        ConfigError, PlanError: One line on what does not fit, or on why nothing could be rendered.
    """
    # Ignore the configured drafts: calibration searches for drafts itself.
    ranking = config.ranking.model_copy(update={"drafts": (), "drafts_stochastic": False})
    config = config.model_copy(update={"ranking": ranking})
    if asked.caches:
        check_fits(_with_cache(config, asked.caches[0]).model)
        config = _with_cache(config, None)
    sources = look(config)
    sample = draw(sources, asked.requests)
    own = {shape.scheduler for shape in sample.shapes}
    others = dict.fromkeys(_sampler(name, sources.rules) for name in asked.samplers)
    # A scheduler that all finals use is tried anyway, as None.
    schedulers = (None, *(name for name in others if own != {name}))
    steps = asked.steps or usual_steps(sample.shapes)
    try:
        tried = [Policy("cache", (), one) for one in asked.caches] or policies("draft", steps, sample.shapes, schedulers)
        compared = policies("preview", steps, sample.shapes) if asked.previews and not asked.caches else []
    except ValueError as error:
        raise PlanError([f"no cascade with drafts of {', '.join(map(str, steps))} steps fits: {error}"]) from None
    notes = Notes(place, identity(sources))
    failed = observe(sources, sample.requests, list(sights_of([*tried, *compared])), notes, progress=progress)
    without = {**sample.broken, **failed, **({} if asked.caches else _left_out(steps, tried, sample.shapes))}
    if sample.bad:
        without["rows that make no request"] = f"{sample.bad:,}; `promptmill plan` says why"
    drafts = _judged(sample.requests, notes, tried)
    if drafts is None:
        raise PlanError([f"nothing could be rendered: {next(iter(without.values()), 'no request is left')}"])
    score = RANK if ranking.scorers else CLIP
    found = find_out(score, asked.gain, sample.rows, drafts, _judged(sample.requests, notes, compared), without)
    if found.chosen is None or asked.caches:
        return found, False
    return found, noisy(drafts.policies[found.chosen], sample.shapes, sources.rules.eta)


def _with_cache(config: Config, cache: StepCache | None) -> Config:
    kernels = config.model.kernels.model_copy(update={"cache": cache})
    return config.model_copy(update={"model": config.model.model_copy(update={"kernels": kernels})})


def _left_out(steps: Sequence[int], tried: Sequence[Policy], shapes: Sequence[Shape]) -> dict[str, str]:
    """Return the reasons why drafts of some numbers of steps are in none of the cascades, by name."""
    used, without = {stage.steps for policy in tried for stage in policy.stages}, {}
    for number in steps:
        if number not in used:
            try:
                policies("draft", [number], shapes)
            except ValueError as error:
                without[f"drafts of {number} steps"] = str(error)
    return without


def _judged(sample: Sequence[Placed], notes: Notes, some: Sequence[Policy]) -> Gains | None:
    """Return the gains of policies on the requests that were seen in all the ways the policies need.

    Policies that need a way in which at most half of the requests could be seen are left out.
    """
    trials = [trial for placed in sample if (trial := notes.trial(placed))]
    ways = {sight_of(*stage) for stage in sights_of(some)}
    seen = {way for way in ways if sum(way in trial.sights for trial in trials) > len(trials) / 2}
    usable = [policy for policy in some if {sight_of(*stage) for stage in sights_of([policy])} <= seen]
    whole = [trial for trial in trials if seen <= set(trial.sights)]
    return Gains.of(whole, usable) if whole and usable else None


def _sampler(name: str, rules: Rules) -> str:
    try:
        short = scheduler_name(name)
    except ValueError as error:
        raise ConfigError([f"--sampler: {error}"]) from None
    if short not in rules.schedulers:
        raise ConfigError([f"--sampler: {short} does not fit the model, which takes {', '.join(rules.schedulers)}"])
    if short in rules.unfit:
        raise ConfigError([f"--sampler: {rules.unfit[short]}"])
    return short
