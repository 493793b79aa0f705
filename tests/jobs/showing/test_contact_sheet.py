import shutil

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from PIL import Image

from promptmill.jobs.cli import main
from promptmill.jobs.showing.contact_sheet import GAP, TEXT, TILE, SheetError, Shown, kept_images, sheet
from tests.forge.forging import forge, table_of
from tests.shards.made import pixels_of, publish, shard


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A dataset of two shards of seven kept images each, and one of none between them."""
    folder = tmp_path_factory.mktemp("clean") / "out"
    publish(str(folder), [shard(0), shard(1, statuses=("rejected", "failed")), shard(2)])
    return folder


@pytest.fixture
def output(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "out")


def invoke(*arguments):
    return CliRunner().invoke(main, ["sheet", *map(str, arguments)])


KEYS = [f"{number:06d}-{row:05d}-0000" for number in (0, 2) for row in range(7)]


@pytest.mark.parametrize("most", [1, 7, 8, 14, 99])
def test_the_first_kept_images_are_shown_in_the_order_of_the_dataset(clean, most):
    shown = list(kept_images(str(clean), most))
    assert len(shown) == min(most, 14)
    for one, key in zip(shown, KEYS, strict=False):
        assert np.array_equal(np.asarray(one.image), pixels_of(key))
        assert one.prompt == f"a “cat”, number {int(key.split('-')[1])}" and one.score == 25.0


def test_each_image_stands_in_its_tile_enlarged_as_it_is_with_its_words_below(clean):
    shown = list(kept_images(str(clean), 5))
    whole = np.asarray(sheet(shown, 3))
    assert whole.shape == (2 * (TILE + TEXT + GAP) + GAP, 3 * (TILE + GAP) + GAP, 3)
    for number, one in enumerate(shown):
        top, left = GAP + number // 3 * (TILE + TEXT + GAP), GAP + number % 3 * (TILE + GAP)
        tile = whole[top : top + TILE, left : left + TILE]
        assert np.array_equal(tile, np.asarray(one.image).repeat(TILE // 16, 0).repeat(TILE // 16, 1))
        assert (whole[top + TILE : top + TILE + TEXT, left : left + TILE] < 128).any()
    assert (whole[-TEXT - TILE - GAP :, -TILE - GAP :] == 255).all()


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "PNG"])
def test_the_command_writes_one_image(clean, tmp_path, ending):
    file = tmp_path / f"sheet.{ending}"
    result = invoke(clean, "--to", file, "--columns", 2, "--most", 3)
    assert result.exit_code == 0 and result.output == f"3 images in {file}\n"
    assert Image.open(file).width == 2 * (TILE + GAP) + GAP


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--columns", 0), "0 is not in the range x>=1"),
        (("--most", 0), "0 is not in the range x>=1"),
        (("--to", "x.foo"), "x.foo: no ending of an image; use one of .png .jpg .jpeg .webp"),
        (("--to", "sheet"), "sheet: no ending of an image"),
    ],
)
def test_wrong_usage_is_exit_2(clean, options, says):
    result = invoke(clean, *options)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert says in result.output


def test_a_folder_that_is_not_there_and_a_dataset_without_images_are_one_line(clean, tmp_path):
    for arguments in ((tmp_path / "nowhere",), (clean, "--to", tmp_path / "nowhere" / "sheet.png")):
        result = invoke(*arguments)
        assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
        (line,) = result.output.splitlines()
        assert line.startswith(f"{tmp_path}/nowhere")


@pytest.mark.parametrize(
    ("path", "damage", "says"),
    [
        ("data/000000.tar", lambda c: c[:700], "data/000000.tar: missing or altered"),
        ("data/000000.tar", None, "data/000000.tar: missing or altered"),
        ("metadata/000002.parquet", lambda c: c[:-9], "metadata/000002.parquet: missing or altered"),
        (
            "data/000000.tar",
            lambda c: c.replace(b"IHDR", b"ABCD"),
            "data/000000.tar: missing or altered",
        ),
        ("data/000002.tar", lambda c: c.replace(b"000002-00003-", b"000002-00033-"), "data/000002.tar: missing or altered"),
    ],
)
def test_a_broken_shard_is_one_line(output, tmp_path, path, damage, says):
    file = output / path
    content = file.read_bytes()
    file.unlink()
    if damage:
        file.write_bytes(damage(content))
    with pytest.raises(SheetError, match=says):
        list(kept_images(str(output), 99))
    result = invoke(output, "--to", tmp_path / "sheet.png")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    (line,) = result.output.splitlines()
    assert line.startswith(f"{output}/{says}") and line.endswith(f"`promptmill verify {output}` says what else is wrong")


def test_rows_without_mode_prompt_or_score_are_drawn_with_what_they_have(planned):
    forge(planned, 0, table=without(table_of(planned, 0), "mode", "prompt", "clip_score"))
    shown = list(kept_images(planned, 3))
    assert [(one.mode, one.prompt, one.score) for one in shown] == [("", "", None)] * 3
    assert sheet(shown, 3).size[0] > TILE
    assert Shown(shown[0].image, "txt2img", "", 7.0).line == "txt2img · 7.0"


def without(table, *columns):
    for name in columns:
        table = table.set_column(table.column_names.index(name), table.schema.field(name), pa.nulls(len(table), table[name].type))
    return table
