import io

import numpy as np
import piexif
import piexif.helper
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sd_parsers import ParserManager

from promptmill.shards.image_files import DIGITAL_SOURCE_TYPE, MOST_EXIF, Provenance, encode_image, pixel_sha256

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
MADE = Provenance("a cat, on a mat", "blurry", 20, "dpmpp_2m", 7.5, 123, 64, 48, "owner/name: 1")


def encoded(form, quality=95, made=MADE):
    return Image.open(io.BytesIO(encode_image(PIXELS, form, quality, made)))


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_the_same_image_makes_the_same_bytes(form):
    assert encode_image(PIXELS, form, 90, MADE) == encode_image(PIXELS.copy(), form, 90, MADE)


@pytest.mark.parametrize(("form", "quality"), [("png", 1), ("webp", 100)])
def test_lossless_formats_keep_every_pixel(form, quality):
    assert np.array_equal(np.asarray(encoded(form, quality).convert("RGB")), PIXELS)


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_every_format_says_that_a_model_made_it(form):
    image = encoded(form)
    packet = image.info["XML:com.adobe.xmp"] if form == "png" else image.info["xmp"].decode()
    assert DIGITAL_SOURCE_TYPE in packet
    if form != "png":
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be") == MADE.parameters()


def comment_in(file):
    """What web UIs read of an image, as AUTOMATIC1111's `read_info_from_image` does."""
    exif = piexif.load(Image.open(io.BytesIO(file)).info["exif"])
    return piexif.helper.UserComment.load(exif["Exif"][piexif.ExifIFD.UserComment])


@pytest.mark.parametrize("form", ["jpg", "webp"])
@pytest.mark.parametrize("prompt", ["a cat, on a mat", "ein Kätzchen", "猫 и кот 🐈", ""])
def test_web_uis_read_the_parameters_of_a_jpg_or_webp(form, prompt):
    made = Provenance(prompt, "blurry", 20, "dpmpp_2m", 7.5, 123, 64, 48, "owner/name: 1")
    file = encode_image(PIXELS, form, 95, made)
    assert comment_in(file) == made.parameters()
    image = Image.open(io.BytesIO(file))
    assert image.getexif().get_ifd(0x8769)[0x9286] == b"UNICODE\0" + made.parameters().encode("utf-16-be")


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_a_parser_of_prompts_finds_what_an_image_was_made_with(form):
    found = ParserManager().parse(io.BytesIO(encode_image(PIXELS, form, 95, MADE)))
    assert found.full_prompt == "a cat, on a mat"
    assert found.full_negative_prompt == "blurry"
    (sampler,) = found.samplers
    assert (sampler.name, sampler.parameters["steps"], sampler.parameters["seed"]) == ("dpmpp_2m", "20", "123")


@pytest.mark.parametrize("form", ["jpg", "webp"])
def test_a_comment_that_is_too_long_for_a_file_loses_its_middle(form):
    made = Provenance("🐈" * 10_000, "🐕" * 10_000, 20, "dpmpp_2m", 7.5, 123, 64, 48, "m")
    comment, whole = comment_in(encode_image(PIXELS, form, 95, made)), made.parameters()
    head, _, last = comment.rpartition("…\n")
    assert whole.startswith(head) and whole.endswith(f"\n{last}") and last.startswith("Steps: 20")
    assert MOST_EXIF - 5000 < len(comment.encode("utf-16-be")) < MOST_EXIF


def test_png_parameters_are_in_the_words_of_web_uis():
    assert encoded("png").info["parameters"] == (
        "a cat, on a mat\n"
        "Negative prompt: blurry\n"
        'Steps: 20, Sampler: dpmpp_2m, CFG scale: 7.5, Seed: 123, Size: 64x48, Model: "owner/name: 1", Version: promptmill'
    )


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_any_prompt_survives_in_a_png(prompt):
    made = Provenance(prompt, "", 1, "ddim", 1.0, 0, 64, 48, "m")
    assert encoded("png", made=made).info["parameters"].split("\n")[0] == prompt


def test_the_hash_of_pixels_tells_shapes_and_values_apart():
    same = {pixel_sha256(PIXELS), pixel_sha256(np.asfortranarray(PIXELS))}
    assert len(same) == 1
    others = {pixel_sha256(PIXELS.reshape(64, 48, 3)), pixel_sha256(PIXELS ^ 1)}
    assert len(others | same) == 3
