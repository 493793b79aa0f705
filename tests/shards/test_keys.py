import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.pipelines.work.units import parse_key, sample_key
from promptmill.shards.keys import check_keys, parse

NONE = (
    "/etc/profile",
    "../../../x",
    "000000-00000-0000/../x",
    "000000-00000-0000\n",
    "000000-00000-0000.png",
    "0-0-0",
    "0000000-00000-0000",
    "000000-00000-00000",
    "000000-0000-0000",
    "٠٠٠٠٠٠-٠٠٠٠٠-٠٠٠٠",
    "+00000-00000-0000",
    "000000-00000-0000-0000",
    "000000-00000-" + "9" * 5000,
    "",
)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.none() | st.integers(0, 10**9))
def test_every_key_that_promptmill_makes_reads_back_and_is_one_of_its_shard(shard, row, candidate):
    key = sample_key(shard, row, candidate)
    assert parse(key) == (shard, row, candidate)
    check_keys(pa.chunked_array([[key]]), shard)
    with pytest.raises(ValueError, match="is no key of shard"):
        check_keys(pa.chunked_array([[key]]), shard + 1)


@pytest.mark.parametrize("text", NONE)
def test_nothing_else_is_a_key(text):
    assert parse(text) is None
    with pytest.raises(ValueError, match="not a key of a candidate"):
        parse_key(text)
    good = "000000-00000-0000"
    with pytest.raises(ValueError, match=r"^row 1: .* is no key of shard 0, which is like 000000-00003-0001$"):
        check_keys(pa.chunked_array([[good], [text, good]]), 0)


@given(st.text(alphabet="0123456789-/. \n٣", max_size=24))
def test_what_is_read_as_a_key_is_written_the_same(text):
    found = parse(text)
    assert found is None or sample_key(*found) == text


def test_a_request_as_a_whole_is_no_candidate_and_a_missing_key_is_none():
    with pytest.raises(ValueError, match="not a key of a candidate"):
        parse_key("000000-00000")
    for keys in (pa.chunked_array([[None]], pa.string()), pa.chunked_array([[7]])):
        with pytest.raises(ValueError, match=r"is no key of shard|its column key is int64"):
            check_keys(keys, 0)
