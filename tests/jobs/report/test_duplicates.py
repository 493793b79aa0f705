import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from promptmill.jobs.report import duplicates
from promptmill.jobs.report.duplicates import SIMILAR, by_embedding, by_hash, equal, perceptual_hash

few = st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=12)


def groups(found):
    return [list(group.members) for group in found]


@given(few, st.integers(1, 5))
def test_a_group_is_what_is_like_its_first_and_in_no_other(vectors, strip):
    made = np.array(vectors, np.float32)
    free, expected = set(range(len(made))), []
    for first in range(len(made)):
        a = made[first]
        like = [i for i in sorted(free) if a.any() and made[i].any() and cosine(a, made[i]) >= SIMILAR - 1e-6]
        if first in free and len(like) > 1:
            expected.append(like)
            free -= set(like)
        free.discard(first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "STRIP", strip)
        assert groups(by_embedding(made.astype(np.float16))) == sorted(expected, key=lambda group: -len(group))


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_embeddings_that_are_not_there_are_like_nothing():
    assert by_embedding(np.full((3, 4), np.nan, np.float16)) == []


@given(st.lists(st.integers(0, 5), max_size=20))
def test_equal_values_are_groups(values):
    expected = [[i for i, v in enumerate(values) if v == value] for value in set(values)]
    expected = sorted((group for group in expected if len(group) > 1), key=lambda group: (-len(group), group[0]))
    assert groups(equal(np.array(values, np.uint64))) == expected


def drawn(color, box, side=96, noise=0, form="PNG"):
    image = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(image).ellipse([side * place // 96 for place in box], fill=color)
    pixels = np.asarray(image, np.int16) + np.random.default_rng(noise).integers(-noise, noise + 1, (side, side, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, form, quality=85)
    return perceptual_hash(Image.open(file).convert("RGB"))


def test_a_hash_knows_a_picture_again_and_tells_colours_and_places_apart():
    left, right = (8, 30, 44, 66), (52, 30, 88, 66)
    again = [drawn("red", left), drawn("red", left, noise=2), drawn("red", left, side=192), drawn("red", left, form="JPEG")]
    others = [drawn("blue", left), drawn("red", right), drawn("red", (8, 30, 26, 48)), drawn("white", left)]
    assert groups(by_hash(np.stack([*again, *others]))) == [[0, 1, 2, 3]]
    flat = [perceptual_hash(Image.new("RGB", (32, 32), color)) for color in ("red", "blue", "black", "white", "red")]
    assert groups(by_hash(np.stack(flat))) == [[0, 4]]
