"""Measures the gain and the price of ranking: best-of-N, drafts beside x0 previews, thresholds, growing, and times of real runs.

    python -m benchmarks.ranking --folder /tmp/ranking

Three kinds of requests, all of scenes that training never saw: `plain`, from text, where the family is nearly always right;
`harder`, from text with a negative prompt that it never learnt, which misleads it; `pictures`, that change a picture into another
scene at a strength where that often fails. The oracle, which reads pixels and none of the models, says what is right. All intervals
are 95%, by resampling requests. What is measured stays in the folder, so the same command goes on where it was stopped.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from promptmill.configs.drafts import Draft
from promptmill.configs.loading import load
from promptmill.embedded.evaluate import scenes_for
from promptmill.embedded.oracle import is_right
from promptmill.embedded.pictures import draw as draw_pictures
from promptmill.embedded.world import describe, parse
from promptmill.jobs.calibration.gains import Gains, Measure, judged_apart, measured
from promptmill.jobs.calibration.policies import FINAL, Trial, policies, sights_of
from promptmill.jobs.calibration.sample import draw
from promptmill.jobs.calibration.saying import find_out, lines
from promptmill.jobs.calibration.trials import Notes, identity, observe
from promptmill.jobs.figures.ranking_gain import weights
from promptmill.jobs.planning.sources import look
from promptmill.manifests.requests import Request

SEED = 41
SCENES = 240  # of the plain and the pictures, by turns
STRENGTH = 0.5
NEGATIVE = "a picture"
CANDIDATES, MOST = 8, 16
ROUND = 2  # candidates
DRAFTS = {20: (6, 8, 9, 10), 40: (8, 11)}
PREVIEWS = {20: (4, 8, 12), 40: (16, 24)}
WANTED = 0.98
BUDGETS = {20: 0.60, 40: 0.42}  # shares of the price
ORACLE = "oracle"
PARTS = ("best-of", "drafts-20", "drafts-40", "growing", "wall")


def write_manifests(folder: Path) -> dict[str, Path]:
    """Write the manifests; return them by the kind of their requests, where `mixed` is the plain and the pictures together."""
    scenes, _ = scenes_for(SEED, SCENES)
    others, rng = scenes_for(SEED + 1, SCENES)
    pictures = draw_pictures(others, rng).pixels
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict]] = {"plain": [], "pictures": [], "harder": []}
    for number, scene in enumerate(scenes):
        row = {"id": f"{number:04d}", "prompt": describe(scene)}
        if number % 2:
            path = f"images/{number:04d}.png"
            Image.fromarray(pictures[number]).save(folder / path)
            row |= {"init_image": path, "strength": STRENGTH}
        rows["pictures" if number % 2 else "plain"].append(row)
    hard, _ = scenes_for(SEED + 2, SCENES)
    rows["harder"] = [{"id": f"h{n:04d}", "prompt": describe(s), "negative_prompt": NEGATIVE} for n, s in enumerate(hard)]
    rows["mixed"] = sorted([*rows["plain"], *rows["pictures"]], key=lambda row: row["id"])
    for kind, some in rows.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return {kind: folder / f"{kind}.jsonl" for kind in rows}


def settings(manifest: Path, steps: int, candidates: object, *more: str) -> list[str]:
    """Return the settings of a run over a manifest."""
    said = (f"manifest={manifest}", f"defaults.steps={steps}", f"defaults.candidates={json.dumps(candidates)}")
    return [*said, "shards.size=60", *more]


def right(request: Request, pixels: np.ndarray) -> float:
    """Return 1 where an image is right by the oracle, else 0."""
    return float(is_right(parse(request.prompt), pixels))


def seen(manifest: Path, requests: int, steps: int, candidates: int, cascades: bool) -> tuple[list[Trial], list, list]:
    """Try requests; return their trials, and the cascades of drafts and of previews that were tried, if they are wanted."""
    sources = look(load("embedded", settings(manifest, steps, candidates)))
    sample = draw(sources, requests)
    tried = policies("draft", DRAFTS[steps], sample.shapes) if cascades else []
    compared = policies("preview", PREVIEWS[steps], sample.shapes) if cascades else []
    notes = Notes(manifest.parent / f"trials-{steps}-{candidates}.jsonl", identity(sources))

    def progress(done: int, all_: int) -> None:
        if done % 20 == 0:
            click.echo(f"{manifest.stem}, {candidates} candidates, finals of {steps} steps: {done} of {all_}", err=True)

    failed = observe(sources, sample.requests, list(sights_of([*tried, *compared])), notes, {ORACLE: right}, progress)
    if failed:
        sys.exit(f"could not be rendered: {failed}")
    return [trial for placed in sample.requests if (trial := notes.trial(placed))], tried, compared


def best_of(trials: Sequence[Trial]) -> Iterator[str]:
    """Yield the best of n by CLIP, in expectation over which n of all candidates there are."""
    scores = np.array([trial.scores["clip"] for trial in trials])
    truth = np.array([trial.scores[ORACLE] for trial in trials])
    order = scores.argsort(1)
    chances = weights(scores.shape[1], scores.shape[1])
    by_clip = np.take_along_axis(truth, order, 1) @ chances
    by_oracle = np.sort(truth, 1) @ chances
    points = np.take_along_axis(scores, order, 1) @ chances
    yield "| best of | right, by CLIP | right, a perfect judge | CLIP score |"
    yield "|---:|---:|---:|---:|"
    for n in (1, 2, 4, 8, 16):
        whole = (percent(measured(of[:, n - 1])) for of in (by_clip, by_oracle))
        yield f"| {n} | {' | '.join(whole)} | {plain(measured(points[:, n - 1]))} |"


def thresholds(trials: Sequence[Trial]) -> Iterator[str]:
    """Yield how many of the best of all a minimum score leaves, and how many of those are right."""
    best = [max(range(trial.candidates), key=lambda i, t=trial: t.scores["clip"][i]) for trial in trials]
    scores = np.array([trial.scores["clip"][i] for trial, i in zip(trials, best, strict=True)])
    truth = np.array([trial.scores[ORACLE][i] for trial, i in zip(trials, best, strict=True)])
    yield "| min_score | requests that keep an image | of these right |"
    yield "|---:|---:|---:|"
    for share in (0, 0.05, 0.1, 0.25, 0.5, 0.75):
        least = float(np.quantile(scores, share))
        kept = scores >= least
        yield f"| {least:.1f} | {percent(measured(kept.astype(float)))} | {percent(measured(truth[kept]))} |"


def growing(folder: Path, few: Path, trials: Sequence[Trial], steps: int) -> Iterator[str]:
    """Yield images above a threshold for each thousand evaluations: grown by twos, and by a fixed number of candidates.

    Candidate k is the same image however many there are, so that all follows from the trials; a real run of a few requests is held
    to that.
    """
    scores = np.array([trial.scores["clip"] for trial in trials])
    prices = np.array([trial.sights[FINAL].evaluations for trial in trials], float)
    for share in (0.25, 0.5, 0.75):
        least = round(float(np.quantile(scores.max(1), 1 - share)), 3)
        needed = grown(scores, least)
        yield f"Score {least:.2f}, which the best of {MOST} reaches in {100 * share:.0f}% of requests:"
        yield ""
        yield "| candidates | requests above | evaluations a request | above for a thousand evaluations |"
        yield "|---|---:|---:|---:|"
        spent = np.where(np.arange(MOST) < needed[:, None], prices, 0.0).sum(1)
        yield rate(f"by {ROUND}, until one is above, up to {MOST}", (scores.max(1) >= least).astype(float), spent)
        for n in (1, 2, 4, 8, 16):
            yield rate(f"{n}", (scores[:, :n].max(1) >= least).astype(float), prices[:, :n].sum(1))
        yield ""
    rows = run(folder, few, "growing", steps, {"start": ROUND, "max": MOST, "until_score": least})
    own = {trial.id: place for place, trial in enumerate(trials)}
    rows = [row for row in rows if row["id"] in own]
    some = sorted({row["id"] for row in rows})
    as_many = sum(sum(row["id"] == id for row in rows) == needed[own[id]] for id in some)
    agree = sum(row["clip_score"] == scores[own[row["id"]], row["candidate_index"]] for row in rows)
    yield (
        f"A run that grows to {least:.2f}: {as_many} of {len(some)} requests have as many candidates as that,"
        f" {agree} of {len(rows)} candidates the very score."
    )


def grown(scores: np.ndarray, least: float) -> np.ndarray:
    """Return how many candidates each request renders, (R,), by the scores of its candidates, (R, N)."""
    reached = np.maximum.accumulate(scores, axis=1)[:, ROUND - 1 :: ROUND] >= least
    rounds = np.where(reached.any(1), reached.argmax(1) + 1, reached.shape[1])
    return rounds * ROUND


def rate(name: str, above: np.ndarray, price: np.ndarray) -> str:
    """Return a row of the table of growing: the share above the threshold, the price, and images a thousand evaluations."""
    drawn = np.random.default_rng(0).multinomial(len(above), np.full(len(above), 1 / len(above)), 2000)
    rates = 1000 * (drawn @ above) / (drawn @ price)
    whole = 1000 * above.sum() / price.sum()
    interval = f"{whole:.2f} ({np.quantile(rates, 0.025):.2f} – {np.quantile(rates, 0.975):.2f})"
    return f"| {name} | {percent(measured(above))} | {price.mean():.0f} | {interval} |"


def run(folder: Path, manifest: Path, name: str, steps: int, candidates: object, *more: str) -> list[dict]:
    """Return the rows of a real run, begun or gone on with; its own lines lie beside its dataset."""
    out = folder / name
    if not (out / "_SUCCESS").exists():
        options = [part for one in settings(manifest, steps, candidates, *more) for part in ("--set", one)]
        command = [sys.executable, "-m", "promptmill", "run", "embedded", "--out", str(out), *options]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        (folder / f"{name}.jsonl").write_text(done.stdout)
    return pq.read_table(out / "metadata").to_pylist()


def most_within(gains: Gains, budget: float) -> int | None:
    """Return the place of the policy that keeps most of CLIP's gain for at most so much of the price; None where all cost more."""
    if not (gains.price <= budget).any():
        return None
    return int(np.where(gains.price <= budget, gains.share("clip"), -np.inf).argmax())


def within(drafts: Gains, previews: Gains, budget: float) -> Iterator[str]:
    """Yield the best of both kinds within a budget, and the same choice made on four fifths of the requests, judged on the rest."""
    title = f"for at most {100 * budget:.0f}% of the price"
    yield f"| {title} | price | gain by CLIP | by the oracle | CLIP, chosen apart | oracle, chosen apart |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, gains in (("drafts", drafts), ("x0 previews", previews)):
        place = most_within(gains, budget)
        if place is None:
            yield f"| {name}: none of those tried | | | | | |"
            continue
        apart = judged_apart(gains, lambda some: most_within(some, budget))
        figures = [gains.measures["clip"][place], gains.measures[ORACLE][place], apart.gains["clip"], apart.gains[ORACLE]]
        shown = [gains.gain(score).low > 0 for score in ("clip", ORACLE)] * 2
        cells = " | ".join(percent(figure) if there else "no gain shown" for figure, there in zip(figures, shown, strict=True))
        yield f"| {name}: {gains.policies[place]} | {100 * gains.price[place]:.1f}% | {cells} |"


def wall(folder: Path, manifest: Path, drafts: Sequence[Draft], steps: int, repeats: int) -> Iterator[str]:
    """Yield the times of real runs with a cascade and without, by turns, against the price, and that what is finished is the same.

    Machines slow down and speed up meanwhile, so each run without drafts is held to the mean of those before and after it.
    """
    cascade = f"ranking.drafts={json.dumps([draft.model_dump(exclude_none=True) for draft in drafts])}"
    drafted = run(folder, manifest, f"drafts-{steps}-0", steps, CANDIDATES, cascade)
    times = [seconds(folder / f"drafts-{steps}-0.jsonl")]
    shares = []
    for number in range(1, repeats + 1):
        whole = run(folder, manifest, f"full-{steps}-{number}", steps, CANDIDATES)
        drafted = run(folder, manifest, f"drafts-{steps}-{number}", steps, CANDIDATES, cascade)
        times += [seconds(folder / f"{kind}-{steps}-{number}.jsonl") for kind in ("full", "drafts")]
        shares.append((times[-3] + times[-1]) / 2 / times[-2])
    price = sum(row["unet_evaluations"] for row in drafted) / sum(row["unet_evaluations"] for row in whole)
    pixels = {row["key"]: row["pixel_sha256"] for row in whole}
    files = {row["key"]: row["sha256"] for row in whole if row["status"] == "kept"}
    finished = [row for row in drafted if row["status"] != "drafted"]
    same = sum(row["pixel_sha256"] == pixels[row["key"]] for row in finished)
    both = [row for row in finished if row["status"] == "kept" and row["key"] in files]
    images = sum(row["sha256"] == files[row["key"]] for row in both)
    yield (
        f"Runs of {len({row['id'] for row in whole})} requests, finals of {steps} steps: {100 * price:.1f}% of the evaluations,"
        f" {' and '.join(f'{100 * share:.1f}%' for share in shares)} of the seconds from the first model loaded to the last unit"
        f" (by turns with drafts and without: {', '.join(f'{time:.0f}' for time in times)}). Of {len(finished)} finished candidates"
        f" {same} have the pixels, of {len(both)} kept by both {images} the file that they have without drafts."
    )


def seconds(said: Path) -> float:
    """Return the seconds that a run rendered, by the JSON lines that it printed."""
    events = [json.loads(line) for line in said.read_text().splitlines()]
    return next(event for event in events if event["event"] == "done")["seconds"]["rendering"]


def percent(measure: Measure) -> str:
    """Return a measure in percent, with its interval."""
    return f"{100 * measure.value:.1f}% ({100 * measure.low:.1f} – {100 * measure.high:.1f})"


def plain(measure: Measure) -> str:
    """Return a measure as it is, with its interval."""
    return f"{measure.value:.2f} ({measure.low:.2f} – {measure.high:.2f})"


@click.command()
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where everything is kept.")
@click.option(
    "--requests", default=200, show_default=True, help=f"Of the harder, and of the two other kinds together; at most {SCENES}."
)
@click.option("--timed", default=110, show_default=True, help="Requests of real runs.")
@click.option("--repeats", default=2, show_default=True, help="Of timed runs without drafts, each between two with them.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS))
@click.option("--kind", "kinds", multiple=True, type=click.Choice(["harder", "plain", "pictures"]), help="Of the drafts.")
def main(folder: Path, requests: int, timed: int, repeats: int, parts: tuple[str, ...], kinds: tuple[str, ...]) -> None:
    """Measure all parts of the benchmark, or some."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    manifests = write_manifests(folder)
    wanted = set(parts or PARTS)
    if wanted & {"best-of", "growing"}:
        trials, _, _ = seen(manifests["mixed"], requests, 20, MOST, cascades=False)
        if "best-of" in wanted:
            for name, some in {
                "plain and pictures": trials,
                "plain": trials_of(trials, 0),
                "pictures": trials_of(trials, 1),
            }.items():
                say(f"Best of N, {name}: {len(some)} requests, 20 steps", best_of(some))
            say(f"Thresholds on the best of {MOST}", thresholds(trials))
        if "growing" in wanted:
            say("Growing to a threshold", growing(folder, first(manifests["mixed"], timed), trials, 20))
    for steps in (20, 40):
        for kind in kinds or ("harder", "plain", "pictures"):
            if f"drafts-{steps}" in wanted or ("wall" in wanted and kind == "harder"):
                some = requests if kind == "harder" else requests // 2
                trials, tried, compared = seen(manifests[kind], some, steps, CANDIDATES, cascades=True)
                found = find_out("clip", WANTED, len(trials), Gains.of(trials, tried), Gains.of(trials, compared), {})
                if f"drafts-{steps}" in wanted:
                    said = ["```", *lines(found), "```"]
                    say(f"Drafts, {kind}: best of {CANDIDATES}, finals of {steps} steps", iter(said))
                    assert found.previews is not None
                    say(f"Within a budget, {kind}", within(found.drafts, found.previews, BUDGETS[steps]))
                if "wall" in wanted and kind == "harder":
                    place = most_within(found.drafts, BUDGETS[steps])
                    assert place is not None
                    cascade = found.drafts.policies[place].stages
                    few = first(manifests[kind], timed)
                    say(f"Wall time, finals of {steps} steps", wall(folder, few, cascade, steps, repeats))


def first(manifest: Path, rows: int) -> Path:
    """Write a manifest of the first rows of another, and return its path."""
    few = manifest.with_name(f"{manifest.stem}-few.jsonl")
    few.write_text("".join(manifest.read_text().splitlines(keepends=True)[:rows]))
    return few


def trials_of(trials: Sequence[Trial], odd: int) -> list[Trial]:
    """Return the trials of requests with an odd id, or with an even one."""
    return [trial for trial in trials if int(trial.id) % 2 == odd]


def say(title: str, told: Iterator[str]) -> None:
    """Print a part of the report."""
    click.echo(f"\n### {title}\n")
    for line in told:
        click.echo(line)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
