from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.loading import load
from promptmill.jobs.planning.plan import BadRow, ShardPlan
from promptmill.jobs.planning.row_changes import RowChanges, as_ranges
from promptmill.pipelines.work.units import Placed
from tests.pipelines.work.test_units import request

CONFIG = load("embedded", ["manifest=x"])


def planned(*ids, bad=()):
    """A shard of plain requests, row by row."""
    requests = tuple(Placed(row, request(name)) for row, name in enumerate(ids))
    return ShardPlan(0, requests, (tuple(range(len(ids))),), bad)


def changes(then, now, committed=True):
    found = RowChanges()
    found.see(then, now, CONFIG, CONFIG, committed)
    return found


def test_the_same_rows_are_no_change():
    assert not changes(planned("a", "b"), planned("a", "b"))


def test_a_row_with_another_id_at_its_place_has_moved_and_was_not_edited():
    found = changes(planned("a", "b", "c"), planned("new", "a", "c"))
    assert (found.edited, found.added, found.removed, found.moved) == (0, 0, 0, 2)
    assert not found.committed and not found.only_added
    assert found.first_moved == "shard 000000, row 0 was a, is new"


def test_rows_behind_the_last_were_added_and_rows_that_lack_were_removed():
    more, fewer = changes(planned("a"), planned("a", "b", "c")), changes(planned("a", "b"), planned("a"))
    assert (more.edited, more.added, more.removed, more.moved, more.only_added) == (0, 2, 0, 0, True)
    assert (fewer.edited, fewer.added, fewer.removed, fewer.moved, fewer.only_added) == (0, 0, 1, 0, False)


def test_an_edited_row_is_named_with_what_it_was_and_is_and_only_where_it_is_committed_asked_about():
    now = planned("a", "b")
    now = replace(now, requests=(now.requests[0], Placed(1, replace(now.requests[1].request, prompt="another"))))
    found = changes(planned("a", "b"), now)
    assert found.committed == {0: ((1, 1),)} and found.committed_rows == 1
    assert found.lines()[1:] == ["  b (shard 000000, row 1, committed): prompt was '', is 'another'"]
    assert changes(planned("a", "b"), now, committed=False).committed == {}


def test_a_row_that_has_gone_bad_or_was_mended_is_edited():
    bad = (BadRow(1, "b", "prompt", "steps: -1"),)
    assert changes(planned("a", "b"), planned("a", bad=bad)).edited == 1
    assert changes(planned("a", bad=bad), planned("a", "b")).edited == 1
    assert not changes(planned("a", bad=bad), planned("a", bad=bad))


@given(st.sets(st.integers(0, 40)))
def test_ranges_hold_the_numbers_and_no_others_and_none_touches_the_next(numbers):
    ranges = as_ranges(sorted(numbers))
    assert {number for first, last in ranges for number in range(first, last + 1)} == numbers
    assert all(last + 1 < following for (_, last), (following, _) in pairwise(ranges))
