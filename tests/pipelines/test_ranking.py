import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ranking import Ranked, rank

SCORES = st.lists(st.none() | st.floats(-100, 100) | st.sampled_from([20.0, 20.5]), max_size=12)
KEEPS = st.integers(1, 14)
MINIMA = st.none() | st.floats(-100, 100) | st.just(20.0)


@given(SCORES, KEEPS, MINIMA)
def test_those_with_a_score_have_the_ranks_from_1_and_the_others_none(scores, keep, minimum):
    ranks = [ranked.rank for ranked in rank(scores, keep, minimum)]
    assert [r is None for r in ranks] == [s is None for s in scores]
    assert sorted(r for r in ranks if r) == list(range(1, 1 + sum(s is not None for s in scores)))


@given(SCORES, KEEPS, MINIMA)
def test_a_better_rank_has_a_higher_score_or_the_same_and_a_lower_index(scores, keep, minimum):
    ranked = rank(scores, keep, minimum)
    order = sorted((r.rank, index) for index, r in enumerate(ranked) if r.rank)
    for (_, better), (_, worse) in pairwise(order):
        assert scores[better] > scores[worse] or (scores[better] == scores[worse] and better < worse)


@given(SCORES, KEEPS, MINIMA)
def test_kept_are_exactly_the_best_that_reach_the_minimum(scores, keep, minimum):
    ranked = rank(scores, keep, minimum)
    for score, r in zip(scores, ranked, strict=True):
        assert r.kept == (r.rank is not None and r.rank <= keep and (minimum is None or score >= minimum))
    reaching = sum(s is not None and (minimum is None or s >= minimum) for s in scores)
    assert sum(r.kept for r in ranked) == min(keep, reaching)


@given(st.lists(st.floats(-100, 100), unique=True, max_size=12), KEEPS, MINIMA, st.randoms())
def test_without_ties_the_order_of_candidates_does_not_matter(scores, keep, minimum, random):
    order = random.sample(range(len(scores)), len(scores))
    ranked = rank(scores, keep, minimum)
    assert rank([scores[i] for i in order], keep, minimum) == [ranked[i] for i in order]


@given(SCORES, KEEPS, MINIMA, st.integers(0, 12))
def test_a_failed_candidate_changes_nothing_for_the_others(scores, keep, minimum, place):
    ranked = rank(scores, keep, minimum)
    ranked.insert(place, Ranked(None, False))
    assert rank([*scores[:place], None, *scores[place:]], keep, minimum) == ranked


def test_scores_may_be_of_numpy():
    assert rank([np.float32(21.5), None, np.float32(23)], 1, 22.0) == [Ranked(2, False), Ranked(None, False), Ranked(1, True)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_a_score_or_minimum_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        rank([1.0, bad], 1, None)
    with pytest.raises(ValueError, match="finite"):
        rank([1.0], 1, bad)


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_less_than_one_is_refused(keep):
    with pytest.raises(ValueError, match="keep is at least 1"):
        rank([1.0], keep, None)
