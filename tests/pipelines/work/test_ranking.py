import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.schema import Ranking
from promptmill.pipelines.work.ranking import choose, non_finite, rank, rank_score
from promptmill.pipelines.work.results import Scored

SCORES = st.lists(st.none() | st.floats(-100, 100) | st.sampled_from([20.0, 20.5]), max_size=12)
KEEPS = st.integers(1, 14)
MINIMA = st.none() | st.floats(-100, 100) | st.just(20.0)


@given(SCORES)
def test_those_with_a_score_have_the_ranks_from_1_and_the_others_none(scores):
    ranks = rank(scores)
    assert [r is None for r in ranks] == [s is None for s in scores]
    assert sorted(r for r in ranks if r) == list(range(1, 1 + sum(s is not None for s in scores)))


@given(SCORES)
def test_a_better_rank_has_a_higher_score_or_the_same_and_a_lower_index(scores):
    order = sorted((r, index) for index, r in enumerate(rank(scores)) if r)
    for (_, better), (_, worse) in pairwise(order):
        assert scores[better] > scores[worse] or (scores[better] == scores[worse] and better < worse)


@given(st.lists(st.floats(-100, 100), unique=True, max_size=12), st.randoms())
def test_without_ties_the_order_of_candidates_does_not_matter(scores, random):
    order = random.sample(range(len(scores)), len(scores))
    ranks = rank(scores)
    assert rank([scores[i] for i in order]) == [ranks[i] for i in order]


@given(SCORES, st.integers(0, 12))
def test_a_failed_candidate_changes_nothing_for_the_others(scores, place):
    ranks = rank(scores)
    ranks.insert(place, None)
    assert rank([*scores[:place], None, *scores[place:]]) == ranks


def test_scores_may_be_of_numpy():
    assert rank([np.float32(21.5), None, np.float32(23)]) == [2, None, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_a_score_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        rank([1.0, bad])


# Rankings by several scores, with limits, and of candidates that are alike.

DECLARED = Ranking(
    scorers=(
        {"name": "pick", "kind": "preference", "source": "./p"},
        {"name": "taste", "kind": "head", "source": "./t.safetensors", "floor": 5},
        {"name": "unsafe", "kind": "head", "source": "./u.safetensors", "ceiling": 0.5},
    ),
    weights={"clip": 1, "pick": 2, "taste": 0.25},
    min_score=20,
)
NOISE = np.random.default_rng(0).integers(0, 256, (8, 24, 24, 3), dtype=np.uint8)


def one(clip, pick=20.0, taste=6.0, unsafe=0.1, embedding=(1, 0)):
    return Scored(clip, np.array(embedding, np.float32), {"pick": pick, "taste": taste, "unsafe": unsafe})


def reasons(chosen):
    return [choice.rejected_for for choice in chosen]


CANDIDATES = st.lists(
    st.none()
    | st.builds(one, *[st.sampled_from([19.0, 20.0, 21.0])] * 2, st.sampled_from([4.0, 5.0]), st.sampled_from([0.4, 0.6])),
    max_size=10,
)


@given(CANDIDATES, KEEPS)
def test_the_best_by_the_weighted_sum_that_break_no_limit_are_kept(scored, keep):
    chosen = choose(scored, list(NOISE) * 2, keep, DECLARED)
    sums = [c and c.score + 2 * c.others["pick"] + c.others["taste"] / 4 for c in scored]
    order = sorted((-value, index) for index, value in enumerate(sums) if value is not None)
    fits = [index for _, index in order if limits(scored[index])]
    assert [choice.rank for choice in chosen] == [
        next((r for r, (_, i) in enumerate(order, 1) if i == n), None) for n in range(len(scored))
    ]
    assert [choice.kept for choice in chosen] == [index in fits[:keep] for index in range(len(scored))]
    assert [choice.score for choice in chosen] == sums
    for index, (candidate, choice) in enumerate(zip(scored, chosen, strict=True)):
        assert (choice.rejected_for is None) == (candidate is None or choice.kept)
        assert (choice.rejected_for == "outranked") == (index in fits[keep:])


def limits(scored):
    return scored.score >= 20 and scored.others["taste"] >= 5 and scored.others["unsafe"] <= 0.5


def test_a_limit_that_is_broken_is_named():
    scored = [one(25), one(19), one(30, taste=4.9), one(40, unsafe=0.6), one(24), None]
    assert reasons(choose(scored, list(NOISE), 1, DECLARED)) == [
        None, "floor_clip", "floor_taste", "ceiling_unsafe", "outranked", None
    ]  # fmt: skip


@given(SCORES, KEEPS, MINIMA)
def test_without_scorers_clip_ranks_and_kept_are_exactly_the_best_that_reach_the_minimum(scores, keep, minimum):
    scored = [None if score is None else Scored(float(np.float32(score)), np.zeros(2)) for score in scores]
    minimum = None if minimum is None else float(np.float32(minimum))
    chosen = choose(scored, [NOISE[0]] * len(scored), keep, Ranking(min_score=minimum))
    assert [choice.rank for choice in chosen] == rank([one and one.score for one in scored])
    for one, choice in zip(scored, chosen, strict=True):
        assert choice.kept == (choice.rank is not None and choice.rank <= keep and (minimum is None or one.score >= minimum))
    reaching = sum(one is not None and (minimum is None or one.score >= minimum) for one in scored)
    assert sum(choice.kept for choice in chosen) == min(keep, reaching)


def test_clip_alone_ranks_where_no_weight_is_given():
    unweighted = DECLARED.model_copy(update={"weights": {}})
    assert [choice.rank for choice in choose([one(25, 99), one(26, 0)], list(NOISE), 1, unweighted)] == [2, 1]


def test_a_sum_is_rounded_to_fp32_and_equals_go_by_their_index():
    weights = DECLARED.model_copy(update={"weights": {"clip": 0.1}})
    assert rank_score(one(21), weights) == float(np.float32(2.1))
    assert [c.rank for c in choose([one(21), one(np.nextafter(21, 22))], list(NOISE), 1, weights)] == [1, 2]


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        (one(20.0), None),
        (one(20.0, taste=math.nan), "taste_score is nan"),
        (one(20.0, unsafe=-math.inf), "unsafe_score is -inf"),
        (one(20.0, pick=3e38), "rank_score is inf"),
    ],
)
def test_a_score_that_is_no_number_is_named(candidate, says):
    assert non_finite(candidate, DECLARED) == says


def diverse(**diversity):
    return Ranking(diversity=diversity)


def at(degrees, score):
    return Scored(score, np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], np.float32))


def test_of_candidates_with_near_embeddings_the_best_is_kept_and_fewer_where_no_others_are_left():
    # The third is near the second, which is rejected; it is not near the first, so it stays.
    scored = [at(0, 30.0), at(15, 29.0), at(30, 28.0), None, at(31, 27.0)]
    chosen = choose(scored, list(NOISE), 3, diverse(embedding=0.95))
    assert [choice.kept for choice in chosen] == [True, False, True, False, False]
    assert reasons(chosen) == [None, "near_duplicate", None, None, "near_duplicate"]
    assert [choice.near_duplicate_of for choice in chosen] == [None, 0, None, None, 2]
    assert [choice.kept for choice in choose(scored, list(NOISE), 3, diverse(embedding=0.97))] == [True, True, True, False, False]


def test_of_candidates_that_look_alike_the_best_is_kept():
    images = [NOISE[0], NOISE[1], np.clip(NOISE[0].astype(int) + 2, 0, 255).astype(np.uint8), 255 - NOISE[2], NOISE[2]]
    scored = [at(90 * index, 20.0 + index) for index in range(5)]
    chosen = choose(scored, images, 5, diverse(hash=6))
    assert [choice.near_duplicate_of for choice in chosen] == [2, None, None, None, None]
    # The same shape in another colour is another picture.
    red, green = (np.pad(np.full((12, 12, 1), 255, np.uint8), ((6, 6), (6, 6), (c, 2 - c))) for c in (0, 1))
    assert all(choice.kept for choice in choose(scored[:2], [red, green], 2, diverse(hash=31)))
    assert not all(choice.kept for choice in choose(scored[:2], [red, red], 2, diverse(hash=0)))
