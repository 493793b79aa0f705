from promptmill.configs.model import Kernels
from promptmill.pipelines.work.metadata_rows import kernels


def test_the_kernels_of_a_row_are_the_kind_of_attention_and_every_switch_that_is_on():
    assert kernels(Kernels()) == "sdpa"
    assert kernels(Kernels(attention="plain", merge_loras=True, compile=True)) == "plain+compile+merge_loras"
    assert (
        kernels(Kernels(cache={"every": 3, "first": 0.5, "last": 0.25}, compile=True))
        == "sdpa+compile+cache every 3 from 0.5 to 0.75"
    )
