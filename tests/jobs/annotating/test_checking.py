"""Datasets of maps as `verify` and `status` see them."""

import io
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from promptmill.jobs.annotating.checking import check
from promptmill.jobs.cli import main
from promptmill.shards.commits import CommitRecord, FileRecord
from promptmill.shards.tars import Sample, read_tar, write_tar
from tests.jobs.annotating.killed import made

PICTURES = 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    rows = [*range(PICTURES), "gone"]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"init_image": f"{row}.png"}) + "\n" for row in rows))
    return made(folder / "rows.jsonl", folder / "out", "canny,grey")


@pytest.fixture
def out(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "out")


def said(*words):
    result = CliRunner().invoke(main, [*map(str, words)])
    return result.exit_code, result.output.strip().splitlines()


def test_a_whole_dataset_has_no_problem_finished_or_not(out):
    assert said("verify", out) == (0, ["finished, and every file is as its record says: 2 shards, 7 pictures with maps"])
    (out / "_SUCCESS").unlink()
    (out / "commits" / "000001.json").unlink()
    for folder, ending in (("data", "tar"), ("metadata", "parquet")):
        (out / folder / f"000001.{ending}").unlink()
    assert said("verify", out) == (0, ["unfinished, and every file is as its record says: 1 shard, 5 pictures with maps"])


def test_status_says_how_far_a_dataset_is(out):
    assert said("status", out) == (0, ["7 pictures with maps, 1 row without a picture: finished"])
    (out / "_SUCCESS").unlink()
    (out / "commits" / "000001.json").unlink()
    going = "5 pictures with maps, 0 rows without a picture: unfinished, 3 rows left; the same `annotate` goes on"
    assert said("status", out) == (0, [going])
    (line,) = said("status", "--json", out)[1]
    assert json.loads(line) == {"rows": 8, "kept": 5, "failed": 0, "shards": 1, "finished": False}


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda out: flipped(out / "data/000001.tar"), "data/000001.tar: altered; its size or SHA-256"),
        (lambda out: flipped(out / "metadata/000000.parquet"), "metadata/000000.parquet: altered"),
        (lambda out: (out / "data/000000.tar").unlink(), "data/000000.tar: missing"),
        (lambda out: (out / "data/000000.tar").open("ab").write(b"x"), "data/000000.tar: is of "),
        (lambda out: flipped(out / "annotation.json"), "annotation.json: "),
        (lambda out: (out / "commits/000001.json").write_text("{"), "commits: commits/000001.json: "),
        (lambda out: (out / "data/000007.tar").write_text(""), "data/000007.tar: no commit record names it"),
        (lambda out: (out / "README.md").unlink(), "README.md: missing, while the dataset is marked as finished"),
        (lambda out: (out / "commits/000001.json").unlink(), "commits: the records are of 5 rows, and annotation.json says 8"),
    ],
)
def test_damage_is_named(out, damage, problem):
    damage(out)
    status, lines = said("verify", out)
    assert status == 1 and any(line.startswith(problem) for line in lines), lines


def test_a_map_that_is_not_its_rows_is_named_though_the_record_agrees_with_the_tar(out):
    tar, place = out / "data" / "000000.tar", out / "commits" / "000000.json"
    samples = [*read_tar(tar.read_bytes())]
    black = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(black, "PNG")
    other = Sample(samples[2].key, {**samples[2].files, "grey.png": black.getvalue()})
    tar.write_bytes(write_tar([*samples[:2], other, *samples[3:]]))
    record = json.loads(place.read_bytes())
    for file in record["files"]:
        if file["path"] == "data/000000.tar":
            file |= vars(FileRecord.of(file["path"], tar.read_bytes()))
    place.write_bytes(CommitRecord.from_json(json.dumps(record).encode()).to_json())
    assert [str(one) for one in check(str(out))] == [f"data/000000.tar: {other.key}: its files are not those of its row"]


def test_repair_says_in_one_line_how_a_shard_is_made_again(out):
    status, lines = said("verify", "--repair", out)
    assert status == 2 and lines == [
        f"{out}: a dataset of maps; delete the commits/ record of a damaged shard, and `promptmill annotate` makes it again"
    ]
