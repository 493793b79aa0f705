"""That the memory of GPUs is what NVIDIA's library answers: here a library of a few lines that is compiled for the test."""

import subprocess

import pytest

from promptmill.actors.local_ray import cards
from promptmill.actors.local_ray.cards import memory_of_cards, smallest_card

NVML = """
extern "C" {
struct memory { unsigned long long total, free, used; };
int nvmlInit_v2() { return FAILS; }
int nvmlDeviceGetCount_v2(unsigned *number) { *number = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(unsigned long)(index + 1); return 0; }
int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *later) { *now = *later = CUT; return 0; }
int nvmlDeviceGetMemoryInfo(void *device, memory *said) { said->total = (unsigned long)device * 24000000000ull; return 0; }
}
"""


@pytest.mark.parametrize(("fails", "cut", "found"), [(0, 0, [24 * 10**9, 48 * 10**9]), (1, 0, []), (0, 1, [])])
def test_each_gpu_says_its_memory_and_one_that_is_cut_says_none(tmp_path, fails, cut, found):
    source, library = tmp_path / "nvml.cpp", tmp_path / "libnvidia-ml.so.1"
    source.write_text(NVML)
    subprocess.run(["g++", "-shared", "-fPIC", f"-DFAILS={fails}", f"-DCUT={cut}", "-o", library, source], check=True, timeout=60)
    assert memory_of_cards(str(library)) == found


def test_without_the_library_there_are_no_cards(tmp_path):
    assert memory_of_cards(str(tmp_path / "none.so")) == []


class Nodes:
    """Stands in for Ray: each node answers with the cards that the test gives it."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def remote(self, **options):
        return lambda function: self

    def options(self, scheduling_strategy):
        self.asked.append(scheduling_strategy.node_id)
        return self._One(self.asked[-1])

    class _One:
        def __init__(self, node):
            self.remote = lambda: node

    def get(self, asked, timeout):
        return [self.answers[node] for node in asked]


@pytest.mark.parametrize(
    ("answers", "smallest"),
    [({"a": [80, 80], "b": [40]}, 40), ({"a": [80], "b": []}, None), ({}, None)],
)
def test_the_smallest_card_counts_and_a_node_that_does_not_say_leaves_it_unknown(monkeypatch, answers, smallest):
    ray = Nodes(answers)
    monkeypatch.setattr(cards, "ray", ray)
    monkeypatch.setattr(cards, "NodeAffinitySchedulingStrategy", lambda node, soft: type("At", (), {"node_id": node}))
    nodes = [{"NodeID": name, "Alive": True, "Resources": {"GPU": 1.0}} for name in answers]
    nodes += [
        {"NodeID": "plain", "Alive": True, "Resources": {"CPU": 4.0}},
        {"NodeID": "gone", "Alive": False, "Resources": {"GPU": 1}},
    ]
    assert smallest_card(nodes) == smallest
    assert ray.asked == [*answers]
