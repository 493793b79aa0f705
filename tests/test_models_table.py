"""The tables of docs/models.md are those that their command makes."""

import re

import pytest

from benchmarks.model_licences import LICENCES, PERMISSIVE, UNREAD
from benchmarks.models_table import PAGE, ROWS, TABLES, pipeline_of, plain_of, written
from benchmarks.unpinned_models import UNPINNED
from promptmill.configs.loading import load, preset_names
from promptmill.configs.own_files import ROOT
from promptmill.pipelines.models.families import FAMILIES as SERVED
from tests.pipelines.plain_families import FAMILIES, UNETS


def test_the_page_has_the_tables_that_the_command_makes():
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "python -m benchmarks.models_table writes them anew"


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_was_edited_or_lost_its_comments_is_found(name):
    page = PAGE.read_text(encoding="utf-8")
    (inside,) = re.findall(rf"<!-- table of {name}, .*? -->(.*?)<!-- end of table of {name} -->", page, re.DOTALL)
    lines = inside.strip().splitlines()
    assert len(lines) > 10
    edited = page.replace(inside, inside.replace(lines[5], lines[5].replace(lines[5][2:5], "xyz", 1)))
    assert edited != page and written(edited) == page
    with pytest.raises(ValueError, match=f"table of {name}"):
        written(page.replace(f"<!-- end of table of {name} -->", ""))


def test_the_tests_that_the_tables_name_are_there():
    named = {name for make in TABLES.values() for name in re.findall(r"`(test_\w+)`", make())}
    assert named == {"test_families", "test_equality", "test_control_classes", "test_family_controlnets"}
    assert all((ROOT / "tests" / "pipelines" / "rendering" / f"{name}.py").is_file() for name in named)


def test_every_family_and_preset_has_its_place():
    assert sorted(row.plain for row in ROWS) == sorted([*FAMILIES, *UNETS])
    shown = [name for row in ROWS for name in row.presets]
    assert sorted([*shown, "embedded", "quickstart"]) == preset_names()
    classes = {name for row in ROWS for name in plain_of(row).pipelines.values()}
    assert all(any(name.startswith(begin) for name in classes) for begin in SERVED)
    assert all(pipeline_of(row) for row in ROWS)


def test_a_preset_stands_beside_weights_of_its_family():
    for row in ROWS:
        for name in row.presets:
            model = load(name).model
            sources = {model.base, *([model.denoiser.source] if model.denoiser else [])}
            assert sources & {*row.weights} or model.base.startswith("./"), name


def test_a_family_has_a_preset_or_stands_among_those_without_one_and_a_model_is_in_one_of_both():
    without = {model.family for model in UNPINNED}
    assert all(row.presets or row.plain in without for row in ROWS)
    presets = {(row.plain, load(name).model.base) for row in ROWS for name in row.presets}
    assert not presets & {(model.family, model.base) for model in UNPINNED}
    assert all(model.base in row.weights for model in UNPINNED for row in ROWS if row.plain == model.family)


def test_each_licence_is_of_weights_that_the_page_or_a_preset_names():
    named = {source for row in ROWS for source in row.weights} | {load(name).model.base for name in preset_names()}
    assert LICENCES.keys() == named and named >= UNREAD and {*LICENCES.values()} > PERMISSIVE
    card = (ROOT / "embedded" / "weights" / "README.md").read_text()
    for own in (source for source in LICENCES if source.startswith("./")):
        assert f"license: {LICENCES[own].lower()}\n" in card
