import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.drafts import Draft
from jobs.calibration.gains import Gains, held_out, measured
from jobs.calibration.policies import FINAL, Policy, Sight, Trial, policies
from tests.jobs.calibration.made import REQUEST, STEPS, trial

ALL = policies("draft", STEPS, [REQUEST])


def trials(count=60, **options):
    return [trial(seed, **options) for seed in range(count)]


def by_hand(ranks, drafted):
    """A trial whose finals and whose only draft are given."""
    sights = {FINAL: Sight(ranks, [40] * len(ranks)), "draft 4": Sight(drafted, [8] * len(ranks))}
    return Trial("x", 1, sights, {"clip": ranks})


def test_gain_and_price_are_what_a_person_counts():
    # All in full gain 4 - 2.5 and 8 - 2; the draft misleads the first request to the second best, and not the second.
    some = [by_hand([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 9.0, 4.0]), by_hand([0.0, 8.0, 0.0, 0.0], [0.0, 5.0, 4.0, 0.0])]
    gains = Gains.of(some, [Policy("draft", (Draft(steps=4, keep=1),))])
    assert gains.full["clip"].tolist() == [1.5, 6.0]
    assert gains.gains["clip"].tolist() == [[0.5, 6.0]]
    assert gains.share("clip")[0] == pytest.approx(6.5 / 7.5)
    assert gains.price[0] == pytest.approx((4 * 8 + 40) / 160)


def test_a_candidate_that_failed_is_neither_kept_nor_counted():
    gains = Gains.of([by_hand([None, 2.0, 4.0], [9.0, 1.0, 2.0])], [Policy("draft", (Draft(steps=4, keep=2),))])
    assert (gains.full["clip"].tolist(), gains.gains["clip"].tolist()) == ([1.0], [[1.0]])
    nothing = Gains.of([by_hand([None, 2.0, 4.0], [9.0, 1.0, 2.0])], [Policy("draft", (Draft(steps=4, keep=1),))])
    assert nothing.gains["clip"].tolist() == [[0.0]]


def test_drafts_that_know_everything_keep_all_the_gain_and_blind_ones_none():
    sharp, blind = Gains.of(trials(noise=0.0), ALL), Gains.of(trials(200, noise=1e6), ALL)
    np.testing.assert_allclose(sharp.share("clip"), 1.0)
    alone = [place for place, policy in enumerate(ALL) if [stage.keep for stage in policy.stages] == [1]]
    assert alone
    assert np.abs(blind.share("clip")[alone]).max() < 0.15
    assert blind.cheapest("clip", 0.9) is None


def test_the_cheapest_is_the_cheapest_whose_whole_interval_is_enough():
    gains = Gains.of(trials(noise=0.8), ALL)
    place = gains.cheapest("clip", 0.95)
    low, high = gains.interval("clip")
    assert low[place] >= 0.95
    assert all(low[other] < 0.95 for other in range(len(ALL)) if gains.price[other] < gains.price[place])
    assert ((low <= gains.share("clip")) & (gains.share("clip") <= high)).all()
    assert gains.cheapest("clip", 1.01) is None


def test_what_costs_as_much_as_all_in_full_is_never_chosen():
    dear = [Policy("draft", (Draft(steps=10, keep=6),))]
    gains = Gains.of(trials(noise=0.0), dear)
    assert gains.price[0] > 1
    assert gains.cheapest("clip", 0.5) is None
    assert gains.frontier("clip") == []


def test_each_of_the_frontier_keeps_more_than_all_that_are_cheaper():
    gains = Gains.of(trials(noise=1.0), ALL)
    frontier, shares = gains.frontier("clip"), gains.share("clip")
    assert len(frontier) > 2
    for place in frontier:
        assert all(shares[other] < shares[place] for other in range(len(ALL)) if gains.price[other] < gains.price[place])


@settings(max_examples=4)
@given(st.integers(0, 2**31))
def test_about_95_of_100_intervals_hold_what_was_drawn_from(seed):
    rng = np.random.default_rng(seed)
    held = [bool(m.low <= 3 <= m.high) for m in (measured(rng.normal(3, 1, 100)) for _ in range(40))]
    assert 0.75 < np.mean(held) <= 1


def test_a_choice_is_judged_on_requests_that_had_no_part_in_it():
    """Drafts say nothing here: the one that looks best on some requests keeps nothing of the others' gain."""
    some = trials(40, noise=1e6)
    gains = Gains.of(some, ALL)
    shares = gains.share("clip")
    flattered = shares[[p for p, policy in enumerate(ALL) if policy.stages[-1].keep == 1]].max()
    apart = held_out(gains, "clip", -10.0)
    assert apart.gains["clip"].value < flattered
    assert apart.price < 1
    assert held_out(Gains.of(some[:9], ALL), "clip", 0.9) is None


def test_a_fold_without_a_choice_is_rendered_in_full():
    apart = held_out(Gains.of(trials(20, noise=1e6), ALL), "clip", 0.99)
    assert (apart.price, apart.gains["clip"].value) == (1.0, 1.0)


def test_all_scorers_are_measured_on_what_the_rank_keeps():
    gains = Gains.of(trials(noise=0.0, extra=("aesthetic",)), ALL)
    assert set(gains.gains) == {"clip", "aesthetic"}
    assert gains.gain("aesthetic").value > 0
    np.testing.assert_allclose(gains.share("aesthetic"), 1.0)
