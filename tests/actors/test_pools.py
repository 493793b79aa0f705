import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.pools import ResourcesError, size_pools
from configs.schema import Runtime


@given(cpus=st.integers(1, 200), threads=st.integers(1, 8))
def test_without_gpus_everything_fits_in_the_cpus_at_once(cpus, threads):
    sizes = size_pools([{"CPU": float(cpus)}], Runtime(), threads)
    asked = sizes.generators * sizes.generator_cpus + sizes.scorers * sizes.scorer_cpus + sizes.task_cpus
    assert asked <= cpus + 1e-9
    assert sizes.generators == max(1, cpus // threads)
    assert sizes.generator_gpus == sizes.scorer_gpus == 0


@given(nodes=st.lists(st.integers(1, 64), min_size=1, max_size=6), threads=st.integers(1, 16))
def test_on_several_nodes_what_an_actor_asks_for_fits_node_by_node(nodes, threads):
    sizes = size_pools([{"CPU": float(cpus)} for cpus in nodes], Runtime(), threads)
    room = [int((cpus - sizes.task_cpus - sizes.scorer_cpus) / sizes.generator_cpus + 1e-9) for cpus in nodes]
    assert sum(room) >= sizes.generators


@given(gpus=st.integers(1, 100), cpus=st.integers(1, 1000), share=st.sampled_from([0.1, 0.25, 0.5]))
def test_on_gpus_everything_fits_card_by_card(gpus, cpus, share):
    runtime = Runtime(generator_gpus=1 - share, scorer_gpus=share)
    sizes = size_pools([{"CPU": float(cpus), "GPU": float(gpus)}], runtime, 1)
    assert sizes.generators >= gpus
    assert sizes.generators * sizes.generator_gpus <= gpus - sizes.scorers * share + 1e-9
    assert sizes.scorers <= gpus
    assert sizes.generators * sizes.generator_gpus + sizes.scorers * sizes.scorer_gpus <= gpus + 1e-9
    assert sizes.generators * sizes.generator_cpus + sizes.scorers * sizes.scorer_cpus + sizes.task_cpus <= cpus + 1e-9


def test_numbers_given_are_taken_as_they_are():
    sizes = size_pools([{"CPU": 2.0}], Runtime(generators=3, scorers=2), 1)
    assert (sizes.generators, sizes.scorers) == (3, 2)
    assert 3 * sizes.generator_cpus + 2 * sizes.scorer_cpus + sizes.task_cpus <= 2


def test_a_whole_gpu_for_each_generator_leaves_one_for_the_scorer():
    sizes = size_pools([{"CPU": 16.0, "GPU": 4.0}], Runtime(generator_gpus=1.0, scorer_gpus=0.25), 1)
    assert (sizes.generators, sizes.scorers) == (3, 1)


@pytest.mark.parametrize(
    ("resources", "runtime", "said"),
    [
        ({"CPU": 8.0, "GPU": 1.0}, {"generators": 4}, "4 generators on 0.75 GPU each and 1 scorers on 0.25 do not fit on 1 GPUs"),
        ({"CPU": 8.0, "GPU": 1.0}, {"generator_gpus": 1.0}, "do not fit"),
        ({"CPU": 2.0}, {"generators": 100}, "100 generators and 1 scorers are too many for 2 CPUs"),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_waits_for_it(resources, runtime, said):
    with pytest.raises(ResourcesError, match=said):
        size_pools([resources], Runtime(**runtime), 1)
