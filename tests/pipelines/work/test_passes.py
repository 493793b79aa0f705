import json
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.drafts import Draft
from promptmill.configs.parameters import Growing
from promptmill.configs.scorers import Diversity
from promptmill.manifests.requests import from_json, to_json
from promptmill.pipelines.work.evaluations import evaluations
from promptmill.pipelines.work.passes import Course, as_draft, begin, best
from promptmill.pipelines.work.ranking import Look
from promptmill.pipelines.work.results import Candidate, Failure, Outcome, Rendered, Scored
from promptmill.pipelines.work.units import Placed, Unit, price
from tests.pipelines.plain import request
from tests.pipelines.work.courses import recipe_of, take

STEPS = 40
PIXEL = np.zeros((1, 1, 3), np.uint8)
BROKEN = Failure("non_finite", "NaN")

cascades = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=3).map(
    lambda pairs: tuple(
        Draft(steps=steps, keep=keep)
        for steps, keep in zip(sorted({s for s, _ in pairs}), sorted({k for _, k in pairs}, reverse=True), strict=False)
    )
)
growing = st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(0, 9)).map(
    lambda values: Growing(start=values[0], max=values[0] + values[1], until_score=values[2])
)


@st.composite
def requests(draw):
    grows = draw(st.none() | growing)
    candidates = grows.max if grows else draw(st.integers(1, 12))
    keep = draw(st.integers(1, min(3, candidates)))
    guided = draw(st.sampled_from([1.0, 3.0]))
    return request(steps=STEPS, candidates=candidates, keep=keep, growing=grows, guidance_scale=guided)


class Models:
    """Scores by row, candidate and steps that a seed makes, some of them none; every pass that was asked for.

    Candidates whose indices leave the same rest, divided by `kinds`, are the same picture; none are where it is None.
    """

    def __init__(self, seed, broken, kinds=None):
        self.seed, self.broken, self.kinds, self.rendered = seed, broken, kinds, []

    def looks(self, scores):
        return {} if self.kinds is None else {place: Look(np.eye(self.kinds)[place[1] % self.kinds]) for place in scores}

    def score(self, row, index, steps):
        rng = np.random.default_rng([self.seed, row, index, steps])
        return None if rng.random() < self.broken else float(rng.integers(0, 10))

    def render(self, requests, course):
        """What a generator and a scorer make of a pass: the images and the scores."""
        outcomes, scores = [], {}
        # All at one draft or all in full: else images rendered in full would have to wait for those that are drafted.
        assert len({turn.draft for turn in course.turns.values()}) == 1
        for row, turn in course.turns.items():
            asked = requests[row] if turn.draft is None else as_draft(requests[row], course.drafts[turn.draft])
            made = []
            for index in turn.candidates:
                score = self.score(row, index, asked.steps)
                self.rendered.append((row, index, asked.steps))
                made.append(
                    Candidate(
                        index, index, None if score is None else PIXEL, evaluations(asked), None if score is not None else BROKEN
                    )
                )
                if score is not None:
                    scores[row, index] = score
            outcomes.append(Outcome(row, tuple(made)))
        return Rendered(tuple(outcomes)), scores

    def through(self, requests, course, apart_at=None, kept=()):
        """The outcomes by row; from pass `apart_at` on each request goes on by itself, as after a death."""
        passes = 0
        while course.turns:
            if passes == apart_at:
                pieces = (self.through(requests, course.of(row), kept=kept) for row in requests)
                return {row: outcome for piece in pieces for row, outcome in piece.items()}
            rendered, scores = self.render(requests, course)
            kept = [*kept, rendered] if course.in_full else kept
            looks = self.looks(scores) if course.in_full else {}
            course = course.after(requests, rendered, scores, {"denoise": 1.0}, looks)
            passes += 1
            assert passes <= 12 * (1 + len(course.drafts)), "it never ends"
        assert course.seconds["denoise"] >= passes
        return {outcome.row: outcome for outcome in course.outcomes(kept)}


def by_the_book(models, row, one, drafts):
    """What becomes of one request, said plainly: by candidate its draft scores, its price, and whether it was finished."""
    found, good, begun = {}, set(), 0
    while True:
        living = list(range(begun, min(begun + one.at_a_time, one.candidates)))
        begun += len(living)
        found |= {index: ([], 0, False) for index in living}
        for stage, draft in enumerate(drafts):
            if len(living) <= draft.keep:
                continue
            scores = {index: models.score(row, index, draft.steps) for index in living}
            for index in living:
                before, paid, _ = found[index]
                passed_over = [None] * (stage - len(before))
                found[index] = ([*before, *passed_over, scores[index]], paid + evaluations(as_draft(one, draft)), False)
            ranked = sorted((-score, index) for index, score in scores.items() if score is not None)
            living = sorted(index for _, index in ranked[: draft.keep])
        for index in living:
            before, paid, _ = found[index]
            found[index] = (before, paid + evaluations(one), True)
            score = models.score(row, index, one.steps)
            if one.growing and score is not None and score >= one.growing.until_score:
                good.add(index if models.kinds is None else index % models.kinds)
        enough = len(good) >= one.keep
        if not one.growing or enough or begun == one.candidates:
            return found


@given(
    st.lists(requests(), min_size=1, max_size=4),
    cascades,
    st.integers(0, 99),
    st.sampled_from([0.0, 0.0, 0.3, 1.0]),
    st.integers(0, 6),
    st.none() | st.integers(1, 4),
)
def test_a_course_does_what_the_book_says_however_its_unit_is_cut(some, drafts, seed, broken, apart_at, kinds):
    asked = dict(enumerate(some))
    course = begin(asked, drafts, Diversity(embedding=0.5) if kinds else None)
    if course is None:
        assert all(one.growing is None and all(draft.keep >= one.candidates for draft in drafts) for one in some)
        return
    models = Models(seed, broken, kinds)
    whole = models.through(asked, course)
    assert len(set(models.rendered)) == len(models.rendered)
    assert models.through(asked, course, apart_at) == whole
    for row, one in asked.items():
        wanted = by_the_book(models, row, one, drafts)
        made = {
            candidate.index: (list(candidate.draft_scores), candidate.evaluations, (row, candidate.index, STEPS) in models.rendered)
            for candidate in whole[row].candidates
        }
        assert made == wanted
        assert [candidate.index for candidate in whole[row].candidates] == list(range(len(wanted)))
        for candidate in whole[row].candidates:
            assert candidate.failure is None or candidate.pixels is None
        paid = sum(candidate.evaluations for candidate in whole[row].candidates)
        assert paid <= price(one, drafts)
        if not one.growing and not broken:
            assert paid == price(one, drafts)


@given(st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 9))
def test_the_best_go_on_and_of_equals_the_first(scores, keep):
    chosen = best(dict(enumerate(scores)), keep)
    assert list(chosen) == sorted(chosen)
    assert len(chosen) == min(keep, sum(score is not None for score in scores))
    for index, score in enumerate(scores):
        if score is not None and index not in chosen:
            assert all((scores[other], -other) > (score, -index) for other in chosen)


def test_without_drafts_that_leave_anybody_out_and_without_growing_there_is_no_course():
    drafts = (Draft(steps=5, keep=2),)
    assert begin({0: request(candidates=2), 1: request(candidates=1)}, drafts) is None
    assert begin({0: request(candidates=9)}, ()) is None
    assert isinstance(begin({0: request(candidates=2), 1: request(candidates=3)}, drafts), Course)


class Rising:
    """A clip that likes later candidates better: 10, 11, 12, …"""

    def score(self, prompts, images):
        return [Scored(10.0 + image[0, 0, 0], np.ones(4, np.float32) / 2) for image in images]


def paint(unit):
    """A pass of a unit: pixels that say which candidate they are of."""
    outcomes = []
    for placed, indices in unit.next_pass():
        pixels = {index: np.full((8, 8, 3), index, np.uint8) for index in indices}
        outcomes.append(Outcome(placed.row, tuple(Candidate(index, index, pixels[index], 1) for index in indices)))
    return Rendered(tuple(outcomes), {"denoise": 1.0})


def test_a_request_grows_until_it_has_its_images_and_the_winner_may_be_of_any_round():
    grows = [Growing(start=2, max=9, until_score=until) for until in (10, 14, 99)]
    some = [request(str(n), candidates=9, keep=2, growing=one) for n, one in enumerate(grows)]
    unit = Unit(0, 0, tuple(Placed(row, one) for row, one in enumerate(some)))
    rows, passes = take(paint, unit, recipe_of(growing=True), Rising())
    assert passes == 5
    of = [[row for row in rows if row["id"] == one.id] for one in some]
    # 10 and 11 are enough at once; 14 and 15 are candidates 4 and 5; 99 is never reached.
    assert [len(one) for one in of] == [2, 6, 9]
    assert [{row["candidates_spared"] for row in one} for one in of] == [{7}, {3}, {0}]
    assert [[row["candidate_index"] for row in one if row["selected"]] for one in of] == [[0, 1], [4, 5], [7, 8]]
    for row in rows:
        assert (row["image"] is not None) == row["selected"]
        assert len(row["pixel_sha256"]) == 64


class Pairs(Rising):
    """Scores like `Rising`, and sees candidates 2k and 2k + 1 as the same picture, unlike all others."""

    def score(self, prompts, images):
        return [
            replace(one, embedding=np.eye(8, dtype=np.float32)[int(one.score - 10) // 2]) for one in super().score(prompts, images)
        ]


def test_a_request_grows_until_its_images_above_the_score_are_unlike_each_other():
    def grown(start, keep, until, *settings):
        one = request(candidates=9, keep=keep, growing=Growing(start=start, max=9, until_score=until))
        recipe = recipe_of("shards.embeddings=none", *settings, growing=True)
        rows, _ = take(paint, Unit(0, 0, (Placed(0, one),)), recipe, Pairs())
        return len(rows), [row["candidate_index"] for row in rows if row["selected"]]

    unlike = "ranking.diversity={embedding: 0.9}"
    assert grown(2, 2, 10) == (2, [0, 1])
    assert grown(2, 2, 10, unlike) == (4, [1, 3])
    # Of 2, 3 and 4 the first two are one: a round of one at a time looks at those of the rounds before.
    assert grown(1, 2, 12) == (4, [2, 3])
    assert grown(1, 2, 12, unlike) == (5, [3, 4])
    # The two that a draft leaves of four are one, and so are those of the next four.
    drafts = "ranking.drafts=[{steps: 2, keep: 2}]"
    assert grown(4, 2, 10, drafts) == (4, [2, 3])
    assert grown(4, 2, 10, drafts, unlike) == (8, [3, 7])
    # Another sign by which all are one; and who breaks a limit counts as little as without diversity.
    assert grown(2, 2, 10, "ranking.diversity={hash: 0}") == (9, [8])
    assert grown(2, 2, 13, "ranking.min_score=13", unlike) == (6, [3, 5])
    # At most so many are unlike: it ends with the most that it may have.
    assert grown(3, 6, 10, unlike) == (9, [1, 3, 5, 7, 8])


def test_how_a_request_grows_depends_on_nothing_but_its_own_scores():
    grows = Growing(start=2, max=9, until_score=14)
    one = request("x", candidates=9, growing=grows)
    other = request("y", candidates=4, growing=None)
    recipe = recipe_of("shards.embeddings=none", growing=True)
    alone, _ = take(paint, Unit(0, 0, (Placed(0, one),)), recipe, Rising())
    together, _ = take(paint, Unit(0, 0, (Placed(0, one), Placed(1, other))), recipe, Rising())
    assert [row for row in together if row["id"] == "x"] == alone
    assert [row["candidates_spared"] for row in together if row["id"] == "y"] == [0] * 4


def test_a_growing_request_survives_json_and_others_are_written_as_before_there_were_any():
    grows = request(candidates=9, growing=Growing(start=2, max=9, until_score=14))
    assert from_json(json.loads(json.dumps(to_json(grows)))) == grows
    assert "growing" not in to_json(replace(grows, growing=None))
