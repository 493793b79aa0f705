import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.drafts import Draft, applied
from promptmill.configs.errors import ConfigError
from promptmill.configs.loading import load

EIGHT = ("defaults.candidates=8", "defaults.scheduler=dpmpp_2m")
TWO = "ranking.drafts=[{steps: 8, keep: 4}, {steps: 12, keep: 2}]"


def loaded(*settings):
    return load("embedded", ["manifest=x", "defaults.steps=20", *settings])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("ranking.drafts=[{steps: 8, keep: 8}]",), "ranking.drafts.0.keep: 8 of 8 candidates are all"),
        (("ranking.drafts=[{steps: 8, keep: 9}]",), "ranking.drafts.0.keep: 9 of 8 candidates are all"),
        (
            ("defaults.candidates={start: 4, max: 16, until_score: 30}", TWO),
            "ranking.drafts.0.keep: 4 of 4 candidates are all",
        ),
        (
            ("ranking.drafts=[{steps: 8, keep: 4}, {steps: 9, keep: 4}]",),
            "drafts.1.keep: 4 of the 4 that the draft before it keeps",
        ),
        (
            ("ranking.drafts=[{steps: 8, keep: 4}, {steps: 9, keep: 5}]",),
            "drafts.1.keep: 5 of the 4 that the draft before it keeps",
        ),
        (("ranking.drafts=[{steps: 8, keep: 4}, {steps: 8, keep: 2}]",), "drafts.1.steps: 8 are not more than the 8 of the draft"),
        (("ranking.drafts=[{steps: 0, keep: 4}]",), "ranking.drafts.0.steps: input should be greater than or equal to 1"),
        (("ranking.drafts=[{steps: 8, kepe: 4}]",), "ranking.drafts.0.kepe: unknown key; did you mean 'keep'?"),
        ((TWO, "defaults.steps=12"), "defaults.steps: 12 are not more than the 12 of a draft"),
        ((TWO, "defaults.keep=3"), "defaults.keep: 3 are more than the 2 that ranking.drafts finish"),
        ((TWO, "defaults.scheduler=euler_a"), "defaults.scheduler: euler_a adds noise of its own at every step"),
        (
            (TWO, "defaults.scheduler=ddim", "model.scheduler_options.eta=0.5"),
            "defaults.scheduler: ddim adds noise of its own at every",
        ),
        (
            ("ranking.drafts=[{steps: 4, keep: 2, scheduler: tcd}]", "model.scheduler_options.eta=0.3"),
            "drafts.0.scheduler: tcd adds noise of its own",
        ),
        (("ranking.drafts=[{steps: 4, keep: 2, scheduler: lcm}]",), "drafts.0.scheduler: lcm adds noise of its own"),
        (("defaults.candidates={start: 4, max: 4, until_score: 3}",), "defaults.candidates: start 4 is not below max 4"),
        (("defaults.candidates={start: 4, mux: 8, until_score: 3}",), "defaults.candidates.mux: unknown key; did you mean 'max'?"),
        (
            ("defaults.candidates={start: 4, max: 8, until_score: hot}",),
            "defaults.candidates.until_score: input should be a valid number",
        ),
        (("defaults.candidates=many",), "defaults.candidates: input should be a valid integer"),
        (
            ("defaults.candidates={start: 4, max: 8, until_score: 30}", "ranking.min_score=31"),
            "defaults.candidates.until_score: 30 is below ranking.min_score 31",
        ),
        (
            ("defaults.candidates={start: 2, max: 4, until_score: 30}", "defaults.keep=5"),
            "defaults: keep 5 is more than candidates 4",
        ),
    ],
)
def test_what_is_no_cascade_or_does_not_grow_is_a_line_of_its_own(settings, says):
    with pytest.raises(ConfigError) as caught:
        loaded(*EIGHT, *settings)
    assert any(says in line for line in caught.value.problems), caught.value.problems
    assert not [line for line in caught.value.problems if "\n" in line]


def test_samplers_that_add_noise_of_their_own_are_allowed_when_asked_for():
    config = loaded(*EIGHT, "defaults.scheduler=euler_a", TWO, "ranking.drafts_stochastic=true")
    assert [draft.keep for draft in config.ranking.drafts] == [4, 2]


def test_a_sampler_that_adds_noise_with_an_eta_alone_adds_none_without():
    for eta in ((), ("model.scheduler_options.eta=0",)):
        assert loaded(*EIGHT, "defaults.scheduler=ddim", TWO, *eta).ranking.drafts


def test_without_drafts_a_config_decides_what_it_did_before_there_were_any():
    ranking = loaded().render_config()["ranking"]
    assert set(ranking) == {"model", "pretrained", "revision", "batch", "min_score"}
    assert loaded().render_config()["defaults"]["candidates"] == 4
    drafted = loaded(*EIGHT, TWO).render_config()["ranking"]
    assert drafted["drafts"] == [{"steps": 8, "keep": 4, "scheduler": None}, {"steps": 12, "keep": 2, "scheduler": None}]


def test_a_config_with_drafts_that_grows_reads_back_from_a_plan():
    config = loaded(*EIGHT, "defaults.candidates={start: 5, max: 16, until_score: 30}", TWO)
    assert type(config).model_validate(config.model_dump(mode="json")) == config


@given(st.lists(st.integers(1, 20), unique=True, max_size=5), st.integers(1, 25))
def test_a_draft_that_would_leave_nobody_out_is_passed_over(keeps, candidates):
    drafts = [Draft(steps=steps, keep=keep) for steps, keep in zip(itertools.count(1), sorted(keeps, reverse=True), strict=False)]
    living = candidates
    for number in applied(drafts, candidates):
        assert drafts[number].keep < living
        living = drafts[number].keep
    assert living == min([candidates, *keeps])
