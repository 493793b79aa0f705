"""Renders a report as one HTML file that loads nothing and runs nothing but its own copy buttons."""

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from promptmill.configs.columns import CLIP_SCORE
from promptmill.configs.drafts import in_words
from promptmill.jobs.planning.plan import Plan
from promptmill.jobs.report import charts
from promptmill.jobs.report.making import Report
from promptmill.jobs.report.times import Times
from promptmill.jobs.running.finishing import models
from promptmill.jobs.showing.progress import duration
from promptmill.jobs.showing.summary import many, size
from promptmill.pipelines.work.results import InfrastructureError
from promptmill.shards.storage import is_local

HERE = Path(__file__).parent
LINES = 20  # of problems, hosts and runs, before the rest is only counted

STAGES = {
    "images": "reading images",
    "text": "encoding prompts",
    "denoise": "denoising",
    "control": "ControlNets",
    "steps": "schedulers",
    "decode": "decoding",
    "score": "CLIP",
    "encode": "encoding images",
    "write": "writing",
}


def page(report: Report) -> bytes:
    """Return the HTML, the same for the same report. Text from a manifest, a model or a file stays text, never markup."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    environment.filters |= {"bytes": size, "many": many, "digits": "{:,}".format, "signed": _signed}
    style, script = (Markup((HERE / name).read_text()) for name in ("page.css", "page.js"))
    html = environment.get_template("page.html").render(
        report=report,
        title=report.output.rstrip("/").rsplit("/", 1)[-1],
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        asked=_asked(report),
        charts=charts,
        models=models(report.plan),
        identities=_identities(report),
        stages=_stages(report.times),
        duration=duration,
        passing=get_args(InfrastructureError),
        lines=LINES,
        summands=" + ".join(f"{weight:g} × {name}" for name, weight in report.plan.config.ranking.summands.items()),
        score="CLIP score" if report.ranks == CLIP_SCORE else "rank score",
        verify=f"promptmill verify {shlex.quote(report.output)}",
        local=is_local(report.output),
    )
    return html.encode()


def _signed(number: float, places: int = 2) -> str:
    return f"{number:+.{places}f}".replace("-", "\N{MINUS SIGN}")


def _hash(text: str) -> str:
    """Return the hash of a text in the form of a Content-Security-Policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _asked(report: Report) -> list[tuple[str, str]]:
    """Return the plan's settings for the page, as names and words."""
    plan, facts = report.plan, report.facts
    config = plan.config
    manifests = list(config.patterns) or ["made by the config"]
    asked = [
        ("Manifest", _some(manifests)),
        ("Rows", f"{plan.counts.rows:,}" + (f", {plan.counts.bad:,} of them bad" if plan.counts.bad else "")),
        ("Candidates", f"{plan.counts.candidates:,}, at most {plan.counts.keep:,} to keep"),
        ("Growing", _growing(plan)),
        ("Drafts", in_words(config.ranking.drafts)),
        ("Modes", _counted(plan.counts.modes)),
        ("Sizes", _counted(facts.sizes)),
        ("Steps", _counted(facts.steps)),
        ("Schedulers", _counted(facts.schedulers)),
        ("Seed", str(config.seed)),
        ("Kept from", f"a CLIP score of {config.ranking.min_score:g}" if config.ranking.min_score is not None else ""),
        ("Carried columns", _some(plan.carried)),
        ("Cut prompts", f"{facts.truncated:,}: the text encoder read only their beginning" if facts.truncated else ""),
    ]
    return [(name, words) for name, words in asked if words]


def _growing(plan: Plan) -> str:
    if not plan.counts.growing:
        return ""
    unlike = " and are unlike each other" if plan.config.ranking.diversity else ""
    return f"{many(plan.counts.growing, 'request')} until enough candidates reach a score{unlike}"


def _counted(numbers: Mapping[str, int]) -> str:
    """Return counts in words, as in txt2img (6), img2img (3); a single kind needs no number."""
    if len(numbers) == 1:
        return next(iter(numbers))
    return _some([f"{name} ({number:,})" for name, number in numbers.items()])


def _some(items: Sequence[str] | Mapping[str, Any], most: int = 8) -> str:
    items = list(items)
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _identities(report: Report) -> list[tuple[str, str]]:
    """Return the inputs of the fingerprint besides the config: names and contents of the models."""
    said = report.plan.inputs.get("models")
    return [(str(name), str(identity)) for name, identity in said.items()] if isinstance(said, Mapping) else []


def _stages(times: Times) -> list[tuple[str, float, str]]:
    whole = sum(times.stages.values()) or 1.0
    return [
        (STAGES.get(name, name), seconds, f"{duration(seconds)} · {100 * seconds / whole:.0f}%")
        for name, seconds in times.stages.items()
    ]
