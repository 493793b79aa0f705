from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.stages import Upscale
from promptmill.manifests.requests import Request
from promptmill.pipelines.work.evaluations import Counting, evaluations
from promptmill.pipelines.work.units import (
    UNIT_EVALUATIONS,
    UNIT_PIXELS,
    Placed,
    candidate_seed,
    cut,
    kind_of,
    parse_key,
    sample_key,
    work,
)


def request(id, steps=5, candidates=1, seed=None):
    numbers = {
        "steps": steps,
        "guidance_scale": 3.0,
        "guidance_rescale": 0.0,
        "candidates": candidates,
        "keep": 1,
        "width": 64,
        "height": 64,
        "strength": None,
    }
    images = {"init_image": None, "mask_image": None, "controls": (), "loras": ()}
    return Request(
        id=id, prompt="", negative_prompt="", mode="txt2img", scheduler="ddim", seed=seed, carried={}, **numbers, **images
    )


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), max_size=60), st.integers(1, 16))
def test_every_request_is_in_exactly_one_unit_of_its_kind(rows, batch):
    placed = [Placed(row, request(str(row), steps, candidates)) for row, (steps, candidates) in enumerate(rows)]
    units = list(cut(3, placed, batch))
    assert sorted(p.row for unit in units for p in unit.requests) == list(range(len(rows)))
    assert [unit.number for unit in units] == list(range(len(units)))
    for unit in units:
        assert len({kind_of(p.request) for p in unit.requests}) == 1
        assert [p.row for p in unit.requests] == sorted(p.row for p in unit.requests)
        whole = sum(p.request.candidates * work(p.request) for p in unit.requests)
        assert whole <= UNIT_EVALUATIONS * batch or len(unit.requests) == 1


def test_a_unit_has_no_more_pixels_behind_its_stages_than_any_unit():
    placed = [Placed(row, request(str(row), steps=1)) for row in range(1200)]
    large = Upscale(kind="upscale", source="./x.safetensors", scale=8)
    assert [len(unit.requests) for unit in cut(0, placed, 64)] == [1200]
    assert [len(unit.requests) for unit in cut(0, placed, 64, stages=[large])] == [512, 512, 176]
    assert UNIT_PIXELS == 512 * 512 * 512


@given(st.integers(0, 2**32 - 1), st.text(), st.integers(0, 9999))
def test_a_seed_has_32_bits_and_depends_on_nothing_but_the_job_the_request_and_the_candidate(seed, id, candidate):
    made = candidate_seed(seed, request(id, steps=5), candidate)
    assert 0 <= made < 2**32
    assert made == candidate_seed(seed, request(id, steps=9, candidates=7), candidate)


def test_candidates_of_different_requests_and_jobs_do_not_share_noise():
    seeds = {candidate_seed(job, request(str(id)), k) for job in range(5) for id in range(50) for k in range(8)}
    assert len(seeds) == 5 * 50 * 8


def test_a_seed_of_the_row_counts_up_and_wraps():
    assert [candidate_seed(1, request("x", seed=2**32 - 2), k) for k in range(3)] == [2**32 - 2, 2**32 - 1, 0]


@given(st.integers(0, 999_999), st.integers(0, 99_999), st.integers(0, 9999))
def test_a_key_says_shard_row_and_candidate_and_sorts_like_them(shard, row, candidate):
    key = sample_key(shard, row, candidate)
    assert parse_key(key) == (shard, row, candidate)
    assert sample_key(shard, row, None) < key


@pytest.mark.parametrize(("scale", "held", "each"), [(3.0, None, 2), (1.0, None, 1), (3.0, 1.0, 3), (3.0, 0.9, 1), (1.0, 2.0, 1)])
def test_a_step_is_priced_by_the_parts_of_its_guidance(scale, held, each):
    asked = replace(request("x", steps=5), guidance_scale=scale, image_guidance_scale=held)
    assert evaluations(asked, Counting(guided=2 if held is None else 3)) == work(asked) == 5 * each
