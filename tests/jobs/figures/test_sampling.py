from hypothesis import given
from hypothesis import strategies as st

from promptmill.jobs.figures.sampling import FEWEST_SHARDS, sample, spread
from promptmill.shards.commits import CommitRecord


def record(shard, candidates):
    return CommitRecord(shard, 0, (), "f", requests=candidates, kept=candidates)


@given(st.lists(st.integers()), st.integers(1, 50))
def test_spread_takes_as_many_as_asked_one_from_each_stretch(items, number):
    places = spread(range(len(items)), number)
    assert len(places) == min(number, len(items))
    if number < len(items):
        width = len(items) / number
        assert all(i * width - 1 < place < (i + 1) * width for i, place in enumerate(places))
    assert spread(items, number) == [items[place] for place in places]
    assert spread(range(9), 3) == [1, 4, 7]


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 500))
def test_a_sample_is_all_that_is_few_and_about_as_many_of_more(sizes, most):
    records = [record(shard, size) for shard, size in enumerate(sizes)]
    seen = sample(records, most)
    assert (seen.shards, seen.candidates) == (len(sizes), sum(sizes))
    if sum(sizes) <= most:
        assert seen.whole and list(seen.records) == records
    else:
        fair = most / sum(sizes) * len(sizes)
        assert len(seen.records) == min(len(sizes), max(FEWEST_SHARDS, int(fair)))
    assert [one.shard for one in seen.records] == sorted({one.shard for one in seen.records})
    assert sample(records, most) == seen
