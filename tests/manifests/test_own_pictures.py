"""That a picture says all of its request: what is read of the picture makes the same request again."""

import io
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from promptmill.configs.loading import load
from promptmill.configs.parameters import FURTHER, MODES, Defaults
from promptmill.manifests.own_pictures import FORMAT, NOT_WRITTEN, OwnTextError, alone, read_request, request_text
from promptmill.manifests.picture_rows import values_of
from promptmill.manifests.picture_texts import read_texts
from promptmill.manifests.prompt_rules import Weighting
from promptmill.manifests.prompt_templates import expanded
from promptmill.manifests.requests import KNOWN_COLUMNS, Request, make_request
from promptmill.manifests.rows import Row, RowError
from promptmill.manifests.rules import Rules
from promptmill.pipelines.work.metadata_rows import declared_columns, hashes_in, provenance_of, request_row
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.results import Outcome
from promptmill.pipelines.work.units import Placed
from promptmill.shards.image_files import MOST_XMP, encode_image
from promptmill.shards.tables import schema

# A config of which every default is another than the values below, so that nothing comes back by a default.
DEFAULTS = Defaults(
    prompt="of the config",
    negative_prompt="also",
    width=128,
    height=128,
    steps=77,
    guidance_scale=3.3,
    guidance_rescale=0.11,
    scheduler="heun",
    strength=0.123,
    candidates=9,
    keep=3,
    true_cfg_scale=2.2,
    loras=({"name": "other", "scale": 2},),
)
RULES = Rules(
    DEFAULTS,
    controls=("canny", "depth"),
    loras=("style", "other"),
    references=("face", "style"),
    further=FURTHER,
    true_cfg=MODES,
    boxes=None,
    classes=10,
)
CONFIG = load("embedded", ["model.scheduler_options={eta: 0.5}"])
PIXELS = np.zeros((8, 8, 3), np.uint8)
SHA = "5e" * 32


def request_of(values, rules=RULES):
    return make_request(Row("m.jsonl", 1, {"class_label": 3, **values}), 1, rules)


def read_again(request, form="png", rules=RULES):
    """The request of the row that is read of a request's picture."""
    images = {column: SHA for column, _ in request.images()}
    content = encode_image(PIXELS, form, 90, provenance_of(request, CONFIG, images, (8, 8)))
    values, notes, hashes = values_of("a.png", read_texts(io.BytesIO(content)), "render", ())
    assert notes == () and hashes == images
    return make_request(Row("*", 1, values), 1, rules)


def same(one, other):
    """Compare two requests but for what no picture depends on."""
    left_out = {name: getattr(one, name) for name in NOT_WRITTEN}
    return replace(other, **left_out) == one


# For each field of a request, a row that gives it a value that no other row here has.
INIT = {"init_image": "a/b.png"}
CONTROL = {"type": "canny", "image": "c.png", "scale": 0.4, "preprocess": "canny(low=50)", "start": 0.1, "end": 0.9}
EXAMPLES = {
    "prompt": {"prompt": ' a cat,\n(on: a "mat") \\ <lora:x:1> ünï 猫\t'},
    "negative_prompt": {"negative_prompt": ""},
    "mode": {"controls": [CONTROL]},
    "init_image": INIT,
    "mask_image": {**INIT, "mask_image": "m.png"},
    "controls": {"controls": [CONTROL, {"type": "depth", "image": "d.tar::e.png"}]},
    "strength": {**INIT, "strength": 0.37},
    "width": {"width": 64},
    "height": {"height": 72},
    "steps": {"steps": 12},
    "guidance_scale": {"guidance_scale": 1.0000000000000002},
    "guidance_rescale": {"guidance_rescale": 0.0},
    "scheduler": {"scheduler": "model"},
    "seed": {"seed": 2**32 - 1},
    "loras": {"loras": []},
    "true_cfg_scale": {"true_cfg_scale": 4.5},
    "image_guidance_scale": {"image_guidance_scale": 1.25},
    "noise_level": {"noise_level": 7},
    "prior_steps": {"prior_steps": 9},
    "prior_guidance_scale": {"prior_guidance_scale": 2.5},
    "gligen_scheduled_sampling_beta": {"gligen_scheduled_sampling_beta": 0.7},
    "class_label": {"class_label": 8},
    "syntax": {"syntax": "a1111", "prompt": "a cat"},
    "prompt_template": {"prompt": "a cat", "prompt_template": "a {cat|dog}"},
    "negative_prompt_template": {"negative_prompt": "a cat", "negative_prompt_template": "a {cat|dog}"},
    "mask_edit": {**INIT, "mask_image": "m.png", "mask_edit": "invert, grow=16, blur=4"},
    "outpaint": {**INIT, "outpaint": {"left": 24, "top": 8}},
    "gligen_boxes": {"gligen_boxes": [{"phrase": "a cat", "x0": 0, "y0": 0.25, "x1": 0.5, "y1": 1}]},
    "variation_seed": {"seed": 5, "variation_seed": 11, "variation_strength": 0.5},
    "variation_strength": {"seed": 5, "variation_seed": 12, "variation_strength": 0.75},
    "references": {
        "references": [{"type": "face", "image": "f.png", "scale": 0.6, "mask": "fm.png"}, {"type": "style", "image": "s"}]
    },
}


def test_each_field_of_a_request_is_written_or_named_as_what_no_picture_depends_on():
    assert set(EXAMPLES) | NOT_WRITTEN == {field.name for field in fields(Request)}
    assert not set(EXAMPLES) & NOT_WRITTEN


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_field_of_a_request_is_read_back_from_its_picture(name, form):
    request = request_of(EXAMPLES[name])
    assert getattr(request, name) != getattr(request_of({}), name)
    one = alone(request, 0, 123 if request.seed is None else request.seed)
    assert same(one, read_again(one, form))


numbers = st.floats(0, 10).map(lambda value: value + 0.0)  # no -0.0
paths = st.sampled_from(["a.png", "b/c.jpg", "ä ö.png", "d.tar::e.png", "x.parquet::image/3"])
controls = st.builds(
    lambda type, image, scale, span, preprocess: {
        "type": type,
        "image": image,
        "scale": scale,
        "preprocess": preprocess,
        "start": min(span),
        "end": max(span),
    },
    st.sampled_from(["canny", "depth"]),
    paths,
    numbers,
    st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True),
    st.sampled_from(["none", "canny", "canny(low=50, high=60)", "blur"]),
)
references = st.fixed_dictionaries(
    {"type": st.sampled_from(["face", "style"]), "image": paths, "scale": numbers}, optional={"mask": paths}
)
boxes = st.just({"phrase": 'a "dog"', "x0": 0.1, "y0": 0.0, "x1": 0.3, "y1": 0.9})
begun = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"init_image": paths, "strength": st.floats(0.5, 1)}),
    st.fixed_dictionaries(
        {"init_image": paths, "mask_image": paths}, optional={"mask_edit": st.just("grow=8"), "strength": st.just(0.9)}
    ),
    st.fixed_dictionaries({"init_image": paths, "outpaint": st.just({"left": 16, "overlap": 8})}),
)  # fmt: skip
plain = st.fixed_dictionaries(
    {"prompt": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=60)},
    optional={
        "negative_prompt": st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff"), max_size=20),
        "width": st.sampled_from([64, 96, 128]),
        "height": st.sampled_from([64, 80]),
        "steps": st.integers(4, 50),
        "guidance_scale": numbers,
        "guidance_rescale": st.floats(0, 1),
        "true_cfg_scale": numbers,
        "image_guidance_scale": numbers,
        "noise_level": st.integers(0, 900),
        "prior_steps": st.integers(1, 60),
        "prior_guidance_scale": numbers,
        "gligen_scheduled_sampling_beta": st.floats(0, 1),
        "class_label": st.integers(0, 9),
        "scheduler": st.sampled_from(["euler", "ddim", "model", "dpmpp_2m_karras"]),
        "seed": st.integers(0, 2**32 - 1),
        "controls": st.lists(controls, min_size=1, max_size=3),
        "references": st.lists(references, min_size=1, max_size=2),
        "gligen_boxes": st.lists(boxes, min_size=1, max_size=2),
        "candidates": st.integers(3, 6),
        "topic": st.just("pets"),
        "loras": st.lists(st.just({"name": "style", "scale": 0.5}), max_size=1),
    },
)
varied = st.one_of(
    st.just({}), st.fixed_dictionaries({"variation_seed": st.integers(0, 2**32 - 1), "variation_strength": st.just(0.2)})
)


@given(plain, begun, varied, st.integers(0, 2), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_what_is_read_of_any_picture_makes_the_request_that_the_picture_was_made_by(columns, image, noise, index, seed):
    try:
        request = request_of({**columns, **image, **noise})
    except RowError:
        assume(False)
    one = alone(request, index, seed)
    assert same(one, read_again(one))


def test_words_stay_words_where_the_config_reads_other_prompts_in_a_syntax():
    one = alone(request_of({"prompt": "a (cat)"}), 0, 1)
    assert same(one, read_again(one, rules=replace(RULES, syntax="a1111")))


@pytest.mark.parametrize(("prompt", "syntax"), [("a (cat)", "plain"), ("a [cat:dog:2] {red|red}", "a1111")])
def test_a_picture_that_is_begun_with_keeps_the_syntax_of_its_prompt(prompt, syntax):
    rules = replace(RULES, syntax=syntax, weighting=Weighting(True, True, True))
    (row,) = expanded([Row("m.jsonl", 1, {"prompt": prompt, "class_label": 3})], rules)
    one = alone(make_request(row, 1, rules), 0, 1)
    content = encode_image(PIXELS, "png", 90, provenance_of(one, CONFIG, {}, (8, 8)))
    values, _, _ = values_of("a.png", read_texts(io.BytesIO(content)), "init_image", ())
    # By a config of the other syntax.
    other = replace(rules, syntax="a1111" if syntax == "plain" else "plain")
    (again,) = expanded([Row("*", 1, {**values, "class_label": 3})], other)
    begun = make_request(again, 1, other)
    names = ("prompt", "negative_prompt", "syntax", "prompt_template", "words")
    assert begun.init_image == "a.png" and begun.seed is None
    assert [getattr(begun, name) for name in names] == [getattr(one, name) for name in names]


def test_the_columns_that_the_property_draws_are_all_that_a_row_may_have():
    drawn = {name for part in (EXAMPLES.values()) for name in part}
    assert set(KNOWN_COLUMNS) - drawn - NOT_WRITTEN <= {
        "mode",
        "control_type",
        "control_image",
        "control_preprocess",
        "control_scale",
    }


def test_a_candidate_alone_has_its_own_seeds():
    request = request_of({"seed": 5, "variation_seed": 2**32 - 1, "variation_strength": 0.5, "candidates": 3, "keep": 2})
    one = alone(request, 2, 5)
    assert (one.seed, one.variation_seed, one.candidates, one.keep, one.growing) == (5, 1, 1, 1, None)


def test_images_are_named_by_path_and_sha256_and_the_model_by_what_the_config_says():
    request = request_of(EXAMPLES["references"] | EXAMPLES["controls"] | EXAMPLES["mask_image"] | {"seed": 1})
    images = {column: f"{number:064x}" for number, (column, _) in enumerate(request.images(), 1)}
    said = provenance_of(request, CONFIG, images | {"controls.0.map": "f 1"}, (8, 8)).request
    assert all(f'"{column}": "{sha256}"' in said for column, sha256 in images.items()) and "controls.0.map" not in said
    assert '"eta": 0.5' in said and '"c.png"' in said


def test_hashes_of_images_are_found_in_a_row_of_the_metadata():
    given = {
        "init_image": "i.png",
        "mask_image": "m.png",
        "controls": [CONTROL],
        "references": [
            {"type": "face", "image": "f.png", "mask": "fm.png"},
            {"type": "style", "embedding": "e.npy"},
            {"type": "other", "image": "o.png", "embedding": "o.npy"},
        ],
    }
    rules = replace(RULES, references=("face", "style", "other"), faces={"style": None, "other": None}, pictured_faces=("other",))
    request = request_of(given, rules)
    images = {column: f"{number:064x}" for number, (column, _) in enumerate(request.images(), 1)}
    recipe = Recipe(CONFIG, schema({}, 2, declared=declared_columns(CONFIG, ("references",))))
    row = request_row(recipe, 0, Placed(0, request), Outcome(0, (), images=images))
    found = hashes_in(row)
    assert {column: found.get(column) for column, _ in request.images()} == images


def test_a_request_that_does_not_fit_into_a_jpeg_leaves_what_web_uis_read_and_is_said():
    drawing = f"<svg xmlns='http://www.w3.org/2000/svg'>{'<g></g>' * 10_000}</svg>"
    request = alone(request_of({"prompt": "a cat", "seed": 7, "controls": [{"type": "canny", "image": drawing}]}), 0, 7)
    said = provenance_of(request, CONFIG, {}, (8, 8))
    assert len(said.xmp(MOST_XMP)) < 2000 < MOST_XMP < len(said.xmp())
    values, notes, _ = values_of("a.jpg", read_texts(io.BytesIO(encode_image(PIXELS, "jpg", 90, said))), "render", ())
    assert (values["prompt"], values["seed"]) == ("a cat", 7) and "controls" not in values
    assert ["did not fit into a JPEG" in note for note in notes if "promptmill" in note or "JPEG" in note] == [True]
    assert same(request, read_again(request, "webp"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON any more"),
        ("[]", "was altered"),
        ('{"promptmill": true}', "was altered"),
        ('{"promptmill": 99}', "later promptmill, whose format 99"),
        ('{"promptmill": 1, "request": 3}', "did not fit"),
        ("[" * 100_000, "no JSON any more"),
    ],
)  # fmt: skip
def test_a_text_that_is_not_ours_is_said_in_a_line(text, words):
    with pytest.raises(OwnTextError, match=words):
        read_request(text)


def test_a_column_of_a_later_promptmill_is_left_out_and_named():
    assert FORMAT == 1
    own = read_request('{"promptmill": 1, "request": {"prompt": "a", "id": "x", "mode": "txt2img", "of_tomorrow": 1}}')
    assert (dict(own.values), own.unknown) == ({"prompt": "a", "syntax": "plain"}, ("id", "of_tomorrow"))


def test_a_text_holds_nothing_that_is_not_said():
    request = alone(request_of({"prompt": "a", "topic": "private"}), 0, 1)
    text = request_text(request, {}, {})
    assert "private" not in text and '"id"' not in text
