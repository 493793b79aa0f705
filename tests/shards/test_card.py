import re

import datasets
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmill.configs.columns import COLUMNS, Need
from promptmill.shards.card import Made, ModelMade, card
from promptmill.shards.index import Totals
from promptmill.shards.sidecars import json_form
from promptmill.shards.tables import schema

TOTALS = Totals(shards=2, bytes=5_250_000, requests=2001, kept=1990, rejected=5990, failed=24, failed_requests=3)
MODELS = (ModelMade("base", "owner/base", "a" * 40, "openrail++"), ModelMade("ControlNet canny", "./control|net"))
FORM = schema({"topic": pa.string()}, 4)
MODES = {"txt2img": 1500, "controlnet": 501}
MADE = Made(TOTALS, FORM, "jpg", 93, MODELS, MODES, "f" * 64, asked={"steps": "8", "clip_score at least": "20"})


def front_matter(made):
    _, front, _ = card(made).decode().split("---\n", 2)
    return yaml.safe_load(front)


def features_of(made):
    return datasets.Features._from_yaml_list(front_matter(made)["dataset_info"]["features"])


def test_the_same_arguments_make_the_same_bytes():
    assert card(MADE) == card(MADE)


def test_people_learn_what_it_is_and_how_it_was_made():
    text = card(MADE).decode()
    for said in (
        "| 2,001 | 8,004 | 1,990 | 5,990 | 24 | 2 | 5.2 MB |",
        "3 requests came to nothing",
        "Requests by mode: controlnet (501), txt2img (1,500).",
        f"| base | `owner/base` | `{'a' * 40}` | `openrail++` |",
        "| ControlNet canny | `./control\\|net` |  | unknown |",
        "Where a request said nothing else: steps `8`, clip_score at least `20`.",
        "jpg at quality 93",
        "f" * 64,
        "trainedAlgorithmicMedia",
        "| `topic` | `string` | carried over from the manifest |",
        "| `clip_embedding` | `fixed_size_list<",
    ):
        assert said in text


def test_only_the_tars_are_the_default_config_and_the_licence_is_left_to_the_owner_in_the_first_line():
    front = front_matter(MADE)
    assert front["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.tar"}]}]
    assert front["license"] == "other" and card(MADE).decode().splitlines()[1].startswith("license: other # the owner's to choose")
    assert {"synthetic", "ai-generated"} <= set(front["tags"])


@pytest.mark.parametrize(
    ("kept", "says"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**6, "1M<n<10M"), (10**12, "n>1T")],
)
def test_the_size_is_in_the_words_of_the_hub(kept, says):
    totals = Totals(**{**vars(TOTALS), "kept": kept})
    assert front_matter(Made(totals, FORM, "png", 90, MODELS))["size_categories"] == [says]


def test_every_column_of_ours_is_explained():
    whole = schema({}, 4, drafts=True, growing=True, declared=[column for column in COLUMNS if column.need is Need.DECLARED])
    page = card(Made(TOTALS, whole, "jpg", 93, MODELS)).decode()
    assert whole.names == [column.name for column in COLUMNS]
    for column in COLUMNS:
        if column.name != "status":  # of datasets with drafts
            assert re.search(rf"\n\| `{column.name}` \| `[^|]+` \| {re.escape(column.meaning)} \|\n", page), column.name


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_the_image_column_is_named_by_the_files_ending(form):
    features = features_of(Made(TOTALS, FORM, form, 90, MODELS))
    assert list(features) == [form, "json", "txt", "__key__", "__url__"] and features[form] == datasets.Image()


def test_widths_of_floats_are_said_as_the_hub_says_them():
    said = {column["name"]: column.get("dtype") for column in front_matter(MADE)["dataset_info"]["features"][1]["struct"]}
    assert (said["guidance_scale"], said["clip_score"]) == ("float64", "float32")


kinds = st.recursive(
    st.sampled_from([pa.string(), pa.bool_(), pa.int8(), pa.int64(), pa.uint32(), pa.float32(), pa.float64(), pa.null()]),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        st.dictionaries(st.sampled_from(["a", "b c", "ä"]), inner, min_size=1).map(lambda fields: pa.struct(list(fields.items()))),
    ),
    max_leaves=4,
)


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(["topic", "or: not", "#", "null", "1"]), kinds, max_size=3))
def test_the_features_declared_are_the_types_that_the_json_has(carried):
    form = schema(carried, 4)
    assert features_of(Made(TOTALS, form, "png", 90, MODELS))["json"] == dict(datasets.Features.from_arrow_schema(json_form(form)))


def test_a_carried_column_named_like_markdown_does_not_break_the_table():
    text = card(Made(TOTALS, schema({"a|b\n`c`": pa.string()}, None), "png", 90, MODELS)).decode()
    assert "| `a\\|b 'c'` | `string` | carried over from the manifest |" in text
