"""Checks the counts of a plan."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.columns import DECIDING, OF_ROWS, by_name
from promptmill.configs.parameters import MODES
from promptmill.jobs.planning.counts import EARLIER, Counts, read_counts
from promptmill.jobs.planning.shard_making import added
from promptmill.manifests.requests import Request

NUMBERS = st.integers(0, 9)
COUNTS = st.builds(
    Counts,
    rows=NUMBERS,
    staged=NUMBERS,
    modes=st.dictionaries(st.sampled_from(MODES), st.integers(1, 9)),
    columns=st.dictionaries(st.sampled_from(DECIDING), st.integers(1, 9)),
    steered=st.dictionaries(st.sampled_from(["1", "2", "10"]), st.integers(1, 9)),
    maps=st.dictionaries(st.sampled_from(["depth", "pose"]), st.integers(1, 9)),
)


@given(COUNTS, COUNTS)
def test_what_is_added_and_taken_away_again_leaves_the_counts(some, more):
    both = added(some, more)
    assert both.rows == some.rows + more.rows
    assert both.columns == {name: some.columns.get(name, 0) + more.columns.get(name, 0) for name in {*some.columns, *more.columns}}
    assert added(both, more, -1) == some


@given(COUNTS, COUNTS)
def test_counts_have_one_order_whatever_was_added_to_which(some, more):
    said = [
        [list(value) for value in vars(made).values() if isinstance(value, dict)] for made in (added(some, more), added(more, some))
    ]
    assert said[0] == said[1]
    assert list(added(some, more).modes) == [mode for mode in MODES if mode in {*some.modes, *more.modes}]


def test_plans_of_earlier_versions_say_the_same_columns():
    said = {"rows": 9, "references": 0, "mask_edits": 2, "outpaints": 0, "boxes": 3, "variations": 1}
    assert read_counts(said) == Counts(rows=9, columns={"mask_edit": 2, "gligen_boxes": 3, "variation_seed": 1})
    assert {*EARLIER.values()} <= {*DECIDING}


def test_a_count_of_no_column_that_rows_decide_on_is_refused():
    with pytest.raises(ValueError, match=r"^prompt: no column that rows decide on$"):
        read_counts({"columns": {"prompt": 1}})


def test_every_column_that_rows_decide_on_is_a_value_of_a_request():
    assert {*OF_ROWS, *DECIDING} <= {*dir(Request), *Request.__dataclass_fields__}
    assert {by_name()[name].if_rows_have for name in OF_ROWS} == {*DECIDING}
