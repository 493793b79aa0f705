"""The tables of `tests/speed.py` name files and tests that are there."""

from pathlib import Path

import pytest

from tests.speed import GROUPS, LONGEST_FIRST, SLOW, group_of, is_quick

ROOT = Path(__file__).parents[1]
LAYERS = ("configs", "manifests", "shards", "pipelines", "actors", "jobs", "embedded")


@pytest.mark.parametrize("name", sorted({*SLOW, *LONGEST_FIRST, *(file for files in GROUPS.values() for file in files)}))
def test_what_is_named_is_there(name):
    file, _, test = name.partition("[")[0].partition("::")
    assert (ROOT / file).exists()
    assert not test or f"\ndef {test}(" in (ROOT / file).read_text()


def test_a_test_is_slow_by_its_folder_its_file_or_its_name():
    by_name = next(slow for slow in SLOW if "::" in slow)
    assert not is_quick("tests/chaos/test_any.py::test_any") and not is_quick(by_name) and not is_quick(f"{by_name}[case]")
    assert is_quick("tests/chaotic/test_any.py::test_any") and is_quick(f"{by_name}_too")


def test_a_file_is_a_group_of_its_own_where_no_group_has_it():
    for name, files in GROUPS.items():
        assert {group_of(f"{file}::test_any") for file in files} == {name}
    assert group_of("tests/x.py::test_any[a::b]") == "tests/x.py"


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_has_quick_tests(layer):
    files = (ROOT / "tests" / layer).rglob("test_*.py")
    assert any(is_quick(f"{file.relative_to(ROOT)}::test_any") for file in files)
