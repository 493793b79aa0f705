import shutil
from dataclasses import replace

import pytest

from promptmill.actors.assembler import assemble_shard
from promptmill.configs.loading import load
from promptmill.pipelines.work.recipe import Recipe
from promptmill.shards.assembly import Assembly
from promptmill.shards.commits import read_records
from promptmill.shards.parts import PartError
from tests.shards.made import FINGERPRINT, FORM, shard, write_parts

MADE = shard(0)


@pytest.fixture
def arguments(tmp_path):
    recipe = Recipe(load("embedded", ["manifest=x"]), FORM, str(tmp_path), FINGERPRINT)
    return recipe, Assembly(0, write_parts(str(tmp_path), MADE), MADE.failed, MADE.requests, MADE.planned)


def parts_left(tmp_path):
    return sorted(path.name for path in (tmp_path / "parts").iterdir())


def test_parts_go_once_their_shard_is_committed_and_another_try_finds_it_done(tmp_path, arguments):
    record = assemble_shard(*arguments)
    assert read_records(str(tmp_path)) == [record] and parts_left(tmp_path) == []
    assert assemble_shard(*arguments) == record


def test_a_truncated_part_goes_so_that_the_next_run_heals_it_and_the_whole_ones_stay(tmp_path, arguments):
    whole = shutil.copytree(tmp_path / "parts", tmp_path / "copy")
    first, second = arguments[1].parts
    (tmp_path / "parts" / first).write_bytes((whole / first).read_bytes()[:-9])
    with pytest.raises(PartError) as caught:
        assemble_shard(*arguments)
    said = "truncated or altered; deleted: run again, and what it held is rendered again"
    assert str(caught.value) == f"{tmp_path}/parts/{first}: {said}"
    assert parts_left(tmp_path) == [second] and not read_records(str(tmp_path))
    shutil.copy(whole / first, tmp_path / "parts")
    assert assemble_shard(*arguments).shard == 0


def test_all_broken_parts_of_a_shard_go_at_once(tmp_path, arguments):
    for name in arguments[1].parts:
        (tmp_path / "parts" / name).write_bytes(b"")
    with pytest.raises(PartError, match=r"altered \(and 1 more parts of its shard\); deleted"):
        assemble_shard(*arguments)
    assert parts_left(tmp_path) == []


def test_parts_of_another_plan_are_not_published(tmp_path, arguments):
    with pytest.raises(PartError, match=f"is of another plan, {'f' * 16}"):
        assemble_shard(replace(arguments[0], fingerprint="e" * 64), arguments[1])
    assert not read_records(str(tmp_path)) and parts_left(tmp_path) == []
