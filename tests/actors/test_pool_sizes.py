import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.actors.pool_sizes import ResourcesError, Sizes, card_shares, size_pools
from promptmill.configs.schema import Elastic, Runtime


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


@given(cpus=st.integers(1, 64), most=st.integers(1, 200), threads=st.integers(1, 4))
def test_an_elastic_pool_may_become_as_large_as_it_says_and_never_takes_the_room_of_what_comes_after(cpus, most, threads):
    sizes = size_pools([{"CPU": float(cpus)}], Runtime(generators=Elastic(min=1, max=most)), threads)
    assert sizes.generators == most
    placed = min(most, int(cpus / sizes.generator_cpus + 1e-9))
    fit = int((cpus - sizes.scorer_cpus - sizes.task_cpus) / sizes.generator_cpus + 1e-9)
    assert fit >= 1 and (placed <= fit or cpus < threads)


@pytest.mark.parametrize(
    ("nodes", "runtime", "said"),
    [
        ([{"CPU": 2.0}], {"generators": {"min": 3, "max": 9}}, "min is 3, and there is room for 2 on 0.8 CPU each"),
        ([{"CPU": 8.0, "GPU": 2.0}], {"generators": {"min": 3, "max": 9}}, "min is 3, and there is room for 2 on 0.75 GPU each"),
        ([], {"generators": {"min": 1, "max": 9}}, "too many for 0 CPUs"),
        ([{"CPU": 8.0}, {"CPU": 8.0}], {"require_gpus": True}, "no GPU on 2 nodes, and runtime.require_gpus is set"),
    ],
)
def test_fewer_than_the_least_is_said_before_anything_starts(nodes, runtime, said):
    with pytest.raises(ResourcesError, match=said):
        size_pools(nodes, Runtime(**runtime), 1)


def test_a_pool_that_may_begin_with_nothing_asks_for_what_its_nodes_will_have():
    empty = size_pools([], Runtime(generators=Elastic(min=0, max=4), require_gpus=True), 1)
    assert (empty.generators, empty.generator_gpus, empty.scorers, empty.scorer_gpus) == (4, 0.75, 1, 0.25)
    without = size_pools([], Runtime(generators=Elastic(min=0, max=4)), 2)
    assert (without.generators, without.generator_cpus, without.generator_gpus) == (4, 2.0, 0.0)


def test_an_elastic_pool_begins_with_one_scorer_and_may_have_one_for_every_two_cards_or_nodes():
    sizes = size_pools([{"CPU": 8.0, "GPU": 1.0}], Runtime(generators=Elastic(min=1, max=16)), 1)
    assert (sizes.generators, sizes.generator_gpus, sizes.scorers, sizes.most_scorers) == (16, 0.75, 1, 8)
    sizes = size_pools([{"CPU": 8.0}], Runtime(generators=Elastic(min=1, max=64)), 2)
    assert (sizes.generators, sizes.scorers, sizes.most_scorers) == (64, 1, 8)  # four generators a node
    given = size_pools([{"CPU": 8.0, "GPU": 1.0}], Runtime(generators=Elastic(min=1, max=16), scorers=3), 1)
    assert (given.scorers, given.most_scorers) == (3, 3)


@given(
    gpus=st.integers(1, 100), generator=st.sampled_from([0.3, 0.4, 0.5, 0.75, 0.95, 1.0, 2.0]), scorer=st.sampled_from([0.05, 0.25])
)
def test_scorers_may_become_so_many_that_no_generator_loses_its_place(gpus, generator, scorer):
    runtime = Runtime(generator_gpus=generator, scorer_gpus=scorer)
    try:
        sizes = size_pools([{"CPU": 64.0, "GPU": float(gpus)}], runtime, 1)
    except ResourcesError:
        return
    assert sizes.scorers == 1 <= sizes.most_scorers <= gpus
    taken = sizes.generators * generator + sizes.most_scorers * scorer
    assert taken <= gpus + 1e-9
    all_at_once = Runtime(generator_gpus=generator, scorer_gpus=scorer, scorers=sizes.most_scorers)
    assert size_pools([{"CPU": 64.0, "GPU": float(gpus)}], all_at_once, 1).generators == sizes.generators


def test_on_nodes_without_gpus_there_may_be_a_scorer_on_each():
    assert size_pools([{"CPU": 4.0}] * 3, Runtime(), 1).most_scorers == 3
    assert size_pools([{"CPU": 4.0}], Runtime(), 1).most_scorers == 1


@pytest.mark.parametrize(
    ("generators", "scorers", "most", "a_node", "served"),
    [(8, 2, 2, 8, 4), (1000, 1, 1000, 8, 8), (1000, 1, 0, 8, 1000), (3, 2, 2, 0, 2), (8, 1, 8, 8, 8)],
)
def test_a_scorers_threads_are_for_its_share_of_the_generators_and_for_one_node_where_more_scorers_may_come(
    generators, scorers, most, a_node, served
):
    assert Sizes(generators, 1.0, 0.75, scorers, 1.0, 0.25, 1.0, most, a_node).served == served


@pytest.mark.parametrize(
    ("given", "card", "scorer", "shares"),
    [
        ({}, None, None, (0.75, 0.25)),
        ({}, 80, None, (0.75, 0.25)),
        ({}, 80, 2, (0.95, 0.05)),  # a large card, and CLIP beside
        ({}, 24, 3, (0.8, 0.2)),
        ({}, 8, 6, (0.5, 0.5)),  # half of a card, at most
        ({"generator_gpus": 0.9}, 80, 2, (0.9, 0.05)),
        ({"generator_gpus": 0.9}, None, None, (0.9, 0.1)),
        ({"generator_gpus": 0.4}, None, None, (0.4, 0.2)),  # two generators a card
        ({"generator_gpus": 1.0}, None, None, (1.0, 0.25)),
        ({"scorer_gpus": 0.1}, 80, 40, (0.9, 0.1)),
        ({"scorer_gpus": 1.0}, None, None, (1.0, 1.0)),
        ({"generator_gpus": 0.6, "scorer_gpus": 0.3}, 80, 1, (0.6, 0.3)),
    ],
)
def test_a_scorer_gets_what_its_models_need_of_the_card_and_the_generator_the_rest(given, card, scorer, shares):
    billions = [None if size is None else size * 10**9 for size in (card, scorer)]
    runtime = card_shares(Runtime(**given), billions[0], None, billions[1])
    assert (runtime.generator_gpus, runtime.scorer_gpus) == shares


def test_a_model_that_cannot_fit_into_its_share_of_the_smallest_card_is_said_before_anything_starts():
    assert card_shares(Runtime(), 48 * 10**9, 45 * 10**9, 10**9).generator_gpus == 0.95
    with pytest.raises(ResourcesError, match=r"needs 46\.0 GB at least.* has 0\.95 of a card of 48\.0 GB; set model\.batch lower"):
        card_shares(Runtime(), 48 * 10**9, 46 * 10**9, 10**9)
    assert card_shares(Runtime(generator_gpus=2), 48 * 10**9, 47 * 10**9, 10**9).generator_gpus == 2


def test_the_least_is_not_more_than_the_most():
    with pytest.raises(ValueError, match="min 5 is more than max 4"):
        Elastic(min=5, max=4)
