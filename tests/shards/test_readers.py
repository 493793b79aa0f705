"""Opens a dataset of ours with code that is not ours, as people will."""

import io
import json
import re

import datasets
import duckdb
import numpy as np
import pandas
import pytest
import webdataset
from PIL import Image

from promptmill.shards.image_files import DIGITAL_SOURCE_TYPE
from promptmill.shards.tars import read_tar
from tests.shards.made import SIDE, pixels_of, provenance, publish, shard

KEYS = [f"{number:06d}-{row:05d}-0000" for number in (1, 2) for row in range(7)]
WEIGHTS = [7.0] * 5 + [7.5] * 2


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Three shards, the first without a kept image; 7.0 in the samples that datasets would guess types from, 7.5 behind them."""
    folder = tmp_path_factory.mktemp("out")
    publish(str(folder), [shard(0, statuses=("rejected", "failed")), shard(1), shard(2)])
    return folder


@pytest.fixture(scope="module")
def loaded(output, tmp_path_factory):
    return datasets.load_dataset(str(output), cache_dir=str(tmp_path_factory.mktemp("cache")))


def test_datasets_opens_the_folder_with_images_texts_and_keys(loaded):
    assert list(loaded) == ["train"]
    train = loaded["train"]
    assert list(train["__key__"]) == KEYS
    assert train.features["png"] == datasets.Image()
    for sample in train:
        assert np.array_equal(np.asarray(sample["png"]), pixels_of(sample["__key__"]))
        assert sample["txt"] == sample["json"]["prompt"]


def test_datasets_takes_the_types_of_the_json_from_the_card(loaded):
    train = loaded["train"]
    kinds = train.features["json"]
    said = {"weight": "float64", "guidance_scale": "float64", "clip_score": "float32", "strength": "float64", "steps": "int32"}
    assert {name: kinds[name].dtype for name in said} == said
    assert kinds["controls"].feature["scale"].dtype == "float64" and kinds["tags"] == datasets.List(datasets.Value("string"))
    rows = list(train["json"])
    assert [row["weight"] for row in rows] == WEIGHTS * 2 and [row["guidance_scale"] for row in rows] == WEIGHTS * 2
    assert rows[0]["controls"] == [] and rows[1]["controls"][0]["type"] == "canny"
    assert [row["topic"] for row in rows[:3]] == [None, "cats", "cats"] and rows[0]["seed"] == 2**32 - 1


def test_datasets_streams_it(output):
    stream = datasets.load_dataset(str(output), split="train", streaming=True)
    samples = list(stream)
    assert [sample["__key__"] for sample in samples] == KEYS
    assert samples[6]["json"]["weight"] == 7.5 and samples[6]["png"].size == (SIDE, SIDE)


def test_datasets_opens_the_metadata(output, tmp_path):
    files = str(output / "metadata" / "*.parquet")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert rows.num_rows == 3 * (7 * 2 + 1)
    assert [row["key"] for row in rows if row["selected"]] == KEYS
    assert rows.features["clip_embedding"] == datasets.List(datasets.Value("float16"), length=4)


def test_webdataset_opens_the_tars(output):
    tars = sorted(str(path) for path in (output / "data").glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == KEYS
    for sample in samples:
        assert {name for name in sample if not name.startswith("__")} == {"png", "txt", "json"}
        assert np.array_equal(np.asarray(sample["png"]), pixels_of(sample["__key__"]))
        assert sample["txt"] == sample["json"]["prompt"] and isinstance(sample["json"]["weight"], float)


def test_duckdb_counts_and_unnests_the_metadata(output):
    files = f"'{output}/metadata/*.parquet'"
    counted = duckdb.sql(f"SELECT status, count(*) FROM {files} GROUP BY status ORDER BY status").fetchall()
    assert counted == [("failed", 10), ("kept", 14), ("rejected", 21)]
    whole = duckdb.sql(f"SELECT sum(candidates) FROM {files} WHERE candidate_index IS NULL AND error = 'bad_row'").fetchall()
    assert whole == [(6,)]
    controls = duckdb.sql(f"SELECT DISTINCT c.type, c.scale FROM (SELECT unnest(controls) AS c FROM {files})").fetchall()
    assert controls == [("canny", 1.0)]
    embedding = duckdb.sql(f"SELECT clip_embedding FROM {files} WHERE key = '{KEYS[2]}'").fetchall()
    assert list(embedding[0][0]) == [0.5, 0.5, 0.5, 0.25]


def test_pandas_opens_the_metadata(output):
    frame = pandas.read_parquet(output / "metadata")
    kept = frame[frame.selected]
    assert kept.key.tolist() == KEYS and kept.weight.tolist() == WEIGHTS * 2
    assert kept.clip_embedding.iloc[2].tolist() == [0.5, 0.5, 0.5, 0.25]
    assert frame[frame.candidate_index.isna()].error.tolist() == ["bad_row"] * 3


def test_pillow_reads_in_each_image_how_it_was_made(output):
    for sample in read_tar((output / "data/000001.tar").read_bytes()):
        image = Image.open(io.BytesIO(sample.files["png"]))
        row = json.loads(sample.files["json"])
        assert image.info["parameters"] == provenance(row).parameters()
        assert row["prompt"] in image.info["parameters"] and f"Seed: {row['seed']}" in image.info["parameters"]
        assert DIGITAL_SOURCE_TYPE in image.info["XML:com.adobe.xmp"]


@pytest.mark.parametrize("form", ["jpg", "webp"])
def test_the_other_formats_open_too(tmp_path, form):
    publish(str(tmp_path / "out"), [shard(0, image_format=form)], form)
    train = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert train.features[form] == datasets.Image() and train[0][form].size == (SIDE, SIDE)
    (sample, *_) = webdataset.WebDataset(str(tmp_path / "out/data/000000.tar"), shardshuffle=False).decode("pil")
    assert sample[form].size == (SIDE, SIDE)


def test_what_the_card_says_to_type_works(output, tmp_path, monkeypatch, capsys):
    # A cache of its own: datasets reads the place of its cache once, when it is imported.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    card = (output / "README.md").read_text().replace("FOLDER", str(output))
    snippets = re.findall(r"```(python|sql)\n(.*?)```", card, re.DOTALL)
    assert [language for language, _ in snippets] == ["python", "python", "sql"]
    for language, snippet in snippets:
        names: dict = {}
        if language == "python":
            exec(snippet, names)
            assert names.get("candidates") is None or names["candidates"].num_rows == 45
        else:
            assert duckdb.sql(snippet).fetchall() == [("controlnet", 6, 25.0), ("txt2img", 8, 25.0)]
    assert "a “cat”, number 0 25.0" in capsys.readouterr().out
    assert any(tmp_path.iterdir())
