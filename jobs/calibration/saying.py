"""Prints the result of a calibration: a table for a person, a mapping for a program, a config to go on with."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from promptmill.configs.drafts import Draft, applied
from promptmill.configs.errors import describe
from promptmill.configs.loading import find, override, read
from promptmill.configs.schedulers import scheduler_kind
from promptmill.configs.schema import Config
from promptmill.configs.step_caches import StepCache
from promptmill.configs.yaml_values import dump
from promptmill.jobs.calibration.gains import Gains, HeldOut, Measure, fewest, held_out
from promptmill.jobs.calibration.policies import Policy
from promptmill.jobs.calibration.sample import Shape
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.showing.progress import duration

SAY_EVERY_S = 15.0

ROWS = 12  # of a table


@dataclass(frozen=True)
class Found:
    """Holds the result of a calibration.

    Attributes:
        score: The name of the score that ranks.
        wanted: The share of the gain to keep, in (0, 1).
        rows: Rows of the manifest that could have been drawn.
        drafts, previews: The gains of the cascades of each kind; previews are None where none could be tried. Where step caches
            were tried, `drafts` has their gains.
        chosen: The index among the drafts' policies of the cheapest that keeps enough; None where none does.
        apart: How the choice does on requests that had no part in it.
        without: By name, what could not be rendered or tried, and why.
    """

    score: str
    wanted: float
    rows: int
    drafts: Gains
    previews: Gains | None
    chosen: int | None
    apart: HeldOut | None
    without: Mapping[str, str]

    @property
    def cache(self) -> StepCache | None:
        """Return the chosen step cache; None where none is chosen, or drafts were tried."""
        return self.drafts.policies[self.chosen].cache if self.chosen is not None else None

    @property
    def tried(self) -> str:
        """Return the word for what was tried."""
        return "cascade" if self.drafts.policies[0].kind == "draft" else "step cache"

    @property
    def cascade(self) -> tuple[Draft, ...]:
        """Return the stages of the chosen cascade."""
        return self.drafts.policies[self.chosen].stages if self.chosen is not None else ()

    @property
    def best_preview(self) -> int | None:
        """Return the index of the cheapest cascade of previews that keeps enough."""
        return self.previews.cheapest(self.score, self.wanted) if self.previews else None


def find_out(score: str, wanted: float, rows: int, drafts: Gains, previews: Gains | None, without: Mapping[str, str]) -> Found:
    """Choose the cheapest drafts that keep enough, and judge the choice."""
    chosen = drafts.cheapest(score, wanted)
    apart = held_out(drafts, score, wanted) if chosen is not None else None
    return Found(score, wanted, rows, drafts, previews, chosen, apart, without)


def lines(found: Found) -> Iterator[str]:
    """Yield the result as lines for a person."""
    drafts, names = found.drafts, list(found.drafts.gains)
    candidates = f"{drafts.full_price.sum():,.0f} evaluations of the denoiser with all candidates in full"
    yield f"sample       {drafts.requests:,} of {found.rows:,} requests, {candidates}"
    for what, why in found.without.items():
        yield f"left out     {what}: {why}"
    for name in names:
        gain = drafts.gain(name)
        yield f"gain         {gain.value:.3f} ({gain.low:.3f} to {gain.high:.3f}) by {name}: the kept less the mean of all"
    yield ""
    yield from _table("drafts" if found.tried == "cascade" else "step caches", drafts, found, names)
    if found.previews:
        yield ""
        yield from _table("x0 previews", found.previews, found, names)
    yield ""
    yield from _verdict(found)


def _table(title: str, gains: Gains, found: Found, names: Sequence[str]) -> Iterator[str]:
    places = _shown(gains, found)
    if not places:
        yield f"{title}: none keeps anything for less than all in full"
        return
    words = {place: str(gains.policies[place]) for place in places}
    wide = max(len(title), *(len(some) for some in words.values()))
    yield f"{title:<{wide}}   price   " + "   ".join(f"{f'gain by {name}':<22}" for name in names).rstrip()
    for place in places:
        measures = (f"{_share(gains, name, place):<22}" for name in names)
        mark = "  <- chosen" if gains is found.drafts and place == found.chosen else ""
        yield f"{words[place]:<{wide}}  {100 * gains.price[place]:5.1f}%   {'   '.join(measures).rstrip()}{mark}"


def _shown(gains: Gains, found: Found) -> list[int]:
    """Return the indices of the policies to show: the cheapest for each share of the gain near the wanted one; the chosen one."""
    frontier = gains.frontier(found.score)
    shares = gains.share(found.score)
    enough = [place for place in frontier if shares[place] >= found.wanted]
    less = [place for place in frontier if shares[place] < found.wanted]
    some = [*less[-(ROWS - min(len(enough), ROWS // 2)) :], *enough[: ROWS // 2]]
    chosen = found.chosen if gains is found.drafts else found.best_preview
    return sorted({*some, *([chosen] if chosen is not None else [])}, key=lambda place: gains.price[place])


def _verdict(found: Found) -> Iterator[str]:
    drafts, score = found.drafts, found.score
    if found.chosen is None:
        if drafts.gain(score).low <= 0:
            yield f"ranking by {score} is not shown to gain anything here, so there is nothing that a {found.tried} could keep"
            return
        if drafts.requests < (needed := fewest(found.wanted)):
            most, wanted = 100 * drafts.requests / (drafts.requests + 1), f"{100 * found.wanted:g}%"
            yield f"{drafts.requests:,} requests can show {most:.1f}% at most, whatever they keep; {wanted} needs {needed:,}"
        yield f"no {found.tried} is shown to keep {100 * found.wanted:g}% of the gain by {score} for less than the full price"
        other = "other --drafts" if found.tried == "cascade" else "another --cache"
        if frontier := drafts.frontier(score):
            yield f"the most is  {_told(drafts, score, frontier[-1])}; try more --requests or {other}"
        return
    yield f"chosen       {_told(drafts, score, found.chosen)}"
    if found.apart:
        kept = ", ".join(f"{_percent(measure)} by {name}" for name, measure in found.apart.gains.items() if _gained(drafts, name))
        price = f"{100 * found.apart.price:.1f}% of the price"
        yield f"held out     chosen likewise on four fifths of the sample, on the other fifths: {kept} for {price}"
        if found.apart.gains[score].value < found.wanted:
            yield "warning      held out it keeps less than is wanted; more --requests would tell"
    if found.previews:
        place = found.best_preview
        yield f"previews     {'none is shown to keep as much' if place is None else _told(found.previews, score, place)}"


def _told(gains: Gains, score: str, place: int) -> str:
    """Return a policy's result in words: 6 steps keep 2: 98.4% (97.1 to 99.2) of the gain by clip for 55.0% of the price."""
    kept = _percent(gains.measures[score][place])
    return f"{gains.policies[place]}: {kept} of the gain by {score} for {100 * gains.price[place]:.1f}% of the price"


def _gained(gains: Gains, name: str) -> bool:
    """Return whether a gain by this score is shown, so that a share of the gain means something."""
    return gains.gain(name).low > 0


def _share(gains: Gains, name: str, place: int) -> str:
    return _percent(gains.measures[name][place]) if _gained(gains, name) else "no gain shown"


def _percent(measure: Measure) -> str:
    return f"{100 * measure.value:.1f}% ({100 * measure.low:.1f} to {100 * measure.high:.1f})"


def facts(found: Found) -> dict[str, Any]:
    """Return the result for a program: every policy that was tried, with its figures; null where no gain is shown."""
    drafts, chosen, apart = found.drafts, found.chosen, found.apart
    return {
        "score": found.score,
        "wanted": found.wanted,
        "requests": drafts.requests,
        "of": found.rows,
        "full_price": int(drafts.full_price.sum()),
        "gain": {name: _figures(drafts.gain(name)) for name in drafts.gains},
        "drafts": _policies(drafts) if found.tried == "cascade" else [],
        **({"caches": _policies(drafts)} if found.tried != "cascade" else {}),
        "previews": _policies(found.previews) if found.previews else [],
        "chosen": _policy(drafts, chosen) if chosen is not None else None,
        "held_out": {"price": apart.price, "gain": {n: _figures(m) for n, m in apart.gains.items()}} if apart else None,
        "without": dict(found.without),
    }


def _figures(measure: Measure) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(measure).items()}


def _policies(gains: Gains) -> list[dict[str, Any]]:
    return [_policy(gains, place) for place in sorted(range(len(gains.policies)), key=lambda place: gains.price[place])]


def _policy(gains: Gains, place: int) -> dict[str, Any]:
    kept = {name: _figures(of[place]) for name, of in gains.measures.items()}
    policy = gains.policies[place]
    what = {"cache": policy.cache.model_dump()} if policy.cache else {"stages": _stages(policy.stages)}
    return {**what, "price": float(gains.price[place]), "gain": kept}


def _stages(stages: Sequence[Draft]) -> list[dict[str, Any]]:
    return [stage.model_dump(exclude_none=True) for stage in stages]


def noisy(policy: Policy, shapes: Sequence[Shape], eta: float = 0.0) -> bool:
    """Return whether a cascade for requests of these shapes has samplers that add noise of their own, given the config's eta."""
    own = {shape.scheduler for shape in shapes if applied(policy.stages, shape.candidates)}
    return any(
        scheduler_kind(name).adds_noise(eta) for name in own | {stage.scheduler for stage in policy.stages if stage.scheduler}
    )


def config_with(found: Found, config: str, settings: Sequence[str], stochastic: bool) -> str:
    """Return the config as YAML with the chosen cascade or step cache in it, under a comment that says where the cascade came from.

    Args:
        found: The result, with something chosen.
        config: The config's file or preset.
        settings: Overrides, `key=value`, as given for the config.
        stochastic: Whether drafts by samplers that add noise of their own are to be allowed.

    Raises:
        PlanError: The config with these drafts would be refused.
    """
    content = read(find(config))
    for setting in settings:
        override(content, setting)
    assert found.chosen is not None
    if found.cache:
        content.setdefault("model", {}).setdefault("kernels", {})["cache"] = found.cache.model_dump()
    else:
        ranking = content.setdefault("ranking", {})
        ranking["drafts"] = _stages(found.cascade)
        ranking.pop("drafts_stochastic", None)
        if stochastic:
            ranking["drafts_stochastic"] = True
    said = _told(found.drafts, found.score, found.chosen)
    what = "the step cache" if found.cache else "the drafts"
    try:
        Config.model_validate(content)
    except ValidationError as error:
        reasons = "; ".join(describe(error, Config))
        raise PlanError([f"the config with {what} would not do: {reasons}"]) from None
    head = f"# {config} with {what} that `promptmill calibrate` found on {found.drafts.requests} requests:\n# {said}.\n"
    return head + dump(content)


class SaysProgress:
    """Says now and then how far a calibration has come.

    Args:
        say: Called with each line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
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
        self._say(f"{done:,} of {all_:,} requests{left}")
