from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.drafts import Draft, check_cascade
from promptmill.jobs.calibration.policies import FINAL, Policy, outcome, policies, sight_of, sights_of, usual_steps
from promptmill.pipelines.work.evaluations import evaluations
from promptmill.pipelines.work.passes import as_draft, begin
from promptmill.pipelines.work.results import Candidate, Outcome, Rendered
from promptmill.pipelines.work.units import price
from tests.jobs.calibration.made import REQUEST, SHAPE, STEPS, trial
from tests.pipelines.work.test_passes import BROKEN, PIXEL

ALL = policies("draft", STEPS, [SHAPE])


def run(trial, drafts):
    """Which candidates the real passes finish, the best of them, and the price, where all is as a trial saw it."""
    requests = {0: replace(REQUEST, keep=trial.keep)}
    course = begin(requests, drafts)
    scored, passes = {}, []
    while course.turns:
        turn = course.turns[0]
        draft = None if turn.draft is None else drafts[turn.draft]
        asked = as_draft(REQUEST, draft) if draft else REQUEST
        sight = trial.sights[sight_of("draft", draft) if draft else FINAL]
        made = tuple(
            Candidate(i, i, None, evaluations(asked), BROKEN)
            if sight.ranks[i] is None
            else Candidate(i, i, PIXEL, evaluations(asked))
            for i in turn.candidates
        )
        rendered = Rendered((Outcome(0, made),))
        scores = {(0, i): sight.ranks[i] for i in turn.candidates if sight.ranks[i] is not None}
        if draft is None:
            passes.append(rendered)
            scored = {index: score for (_, index), score in scores.items()}
        course = course.after(requests, rendered, scores, {})
    (settled,) = course.outcomes(passes)
    ranked = sorted(scored, key=lambda index: (-scored[index], index))
    return set(ranked[: trial.keep]), sum(candidate.evaluations for candidate in settled.candidates)


@given(st.integers(0, 2**31), st.sampled_from(ALL), st.sampled_from([0.0, 0.3]), st.integers(1, 2))
def test_what_calibration_says_of_a_cascade_is_what_a_run_does_with_it(seed, policy, broken, keep):
    some = trial(seed, broken=broken, keep=keep)
    kept, price_ = outcome(some, policy)
    assert (set(kept), price_) == run(some, policy.stages)


@given(st.integers(0, 2**31), st.sampled_from(ALL))
def test_the_price_of_a_cascade_is_that_of_the_plan(seed, policy):
    assert outcome(trial(seed), policy)[1] == price(REQUEST, policy.stages)
    assert outcome(trial(seed), None)[1] == price(REQUEST, ())


@given(st.integers(0, 2**31), st.sampled_from(policies("preview", STEPS, [SHAPE])))
def test_who_goes_on_after_a_preview_pays_only_for_the_steps_that_are_left(seed, policy):
    some = trial(seed)
    living, behind, paid = 8, 0, 0
    for stage in policy.stages:
        paid += living * 2 * (stage.steps - behind)
        living, behind = stage.keep, stage.steps
    assert outcome(some, policy)[1] == paid + living * 2 * (20 - behind) < outcome(some, None)[1]


def test_every_policy_is_a_cascade_that_a_config_takes_and_all_requests_go_through():
    some = [replace(SHAPE, keep=2), replace(SHAPE, steps=9), replace(SHAPE, candidates=4), SHAPE]
    found = policies("draft", (4, 6, 10), some)
    assert found
    for policy in found:
        check_cascade(policy.stages, False)
        assert min(stage.keep for stage in policy.stages) >= 2
        assert max(stage.steps for stage in policy.stages) < 9
    assert Policy("draft", (Draft(steps=4, keep=6), Draft(steps=6, keep=2))) in found


@pytest.mark.parametrize(
    ("steps", "shapes", "said"),
    [
        ((20,), [SHAPE], "steps: 20 are not more than the 20 of a draft"),
        ((4,), [SHAPE, replace(SHAPE, candidates=1)], "leave nobody out of defaults.candidates 1"),
        ((4,), [replace(SHAPE, keep=8), SHAPE], "leave nobody out of defaults.candidates 8 that is not kept"),
        (range(1, 400), [replace(SHAPE, steps=999)], "more than 5,000; name fewer steps"),
    ],
)
def test_where_no_cascade_fits_it_says_what_stands_in_the_way(steps, shapes, said):
    with pytest.raises(ValueError, match=said):
        policies("draft", steps, shapes)


def test_drafts_too_short_for_a_strength_are_not_tried():
    weak = replace(SHAPE, strength=0.2)
    assert {policy.stages[0].steps for policy in policies("draft", (3, 4, 5, 6), [weak, SHAPE])} == {5, 6}


def test_each_sight_that_policies_need_is_named_once():
    names = [sight_of(*stage) for stage in sights_of(ALL)]
    assert sorted(names) == sorted(f"draft {steps}" for steps in STEPS)
    other = policies("draft", (4,), [SHAPE], (None, "euler"))
    assert [sight_of(*stage) for stage in sights_of(other)] == ["draft 4", "draft 4 euler"]


def test_the_usual_drafts_are_shorter_than_the_shortest_finals():
    assert usual_steps([SHAPE, replace(SHAPE, steps=40)]) == [3, 4, 6, 8, 10]
    assert usual_steps([replace(SHAPE, steps=2)]) == [1]
