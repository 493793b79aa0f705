import itertools
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.jobs.figures.ranking_gain import bought, weights

scores = st.lists(st.integers(-100, 100).map(lambda n: n / 4), min_size=1, max_size=7)
requests = st.lists(st.lists(st.tuples(st.integers(-100, 100), st.booleans()), min_size=1, max_size=6), min_size=1, max_size=8)


def best_of(some, n):
    """By drawing every subset there is."""
    return statistics.fmean(max(subset) for subset in itertools.combinations(some, n))


@given(scores)
def test_weights_give_the_mean_of_the_best_over_all_subsets(some):
    expected = [best_of(some, n) for n in range(1, len(some) + 1)]
    assert np.sort(some) @ weights(len(some), len(some)) == pytest.approx(expected)


@pytest.mark.parametrize(("count", "most"), [(1, 1), (64, 64), (5_000, 64), (9_999, 3)])
def test_weights_are_chances_however_many_candidates_there_are(count, most):
    made = weights(count, most)
    assert np.isfinite(made).all() and (made >= 0).all()
    assert made.sum(axis=0) == pytest.approx(np.ones(most))


@given(requests)
def test_what_ranking_bought_is_what_plain_loops_say(some):
    flat = [(number, score, kept) for number, one in enumerate(some) for score, kept in one]
    number, score, kept = (np.array(column) for column in zip(*flat, strict=True))
    made = bought(number, score.astype(np.float32), kept.astype(bool))
    ranked = [one for one in some if len(one) > 1 and any(kept for _, kept in one)]
    if not ranked:
        assert made is None
        return
    pairs = [(statistics.fmean(s for s, k in one if k), statistics.fmean(s for s, _ in one)) for one in ranked]
    assert made.requests == len(ranked)
    assert made.gain == pytest.approx(statistics.fmean(best - mean for best, mean in pairs))
    assert (made.kept, made.mean) == pytest.approx(tuple(map(statistics.fmean, zip(*pairs, strict=True))))
    best = [max(s for s, _ in one) for one in some]
    for share, least in made.yields.items():
        assert sum(b > least for b in best) < share * len(best) <= sum(b >= least for b in best)
    most = len(made.curve)
    enough = [[s for s, _ in one] for one in some if len(one) >= most]
    assert made.curve_requests == len(enough) >= len(some) / 2 > sum(len(one) > most for one in some)
    assert made.curve == pytest.approx([statistics.fmean(best_of(one, n) for one in enough) for n in range(1, most + 1)])


def test_a_single_candidate_buys_nothing():
    assert bought(np.arange(3), np.ones(3, np.float32), np.ones(3, bool)) is None
    assert bought(np.array([], int), np.array([], np.float32), np.array([], bool)) is None
