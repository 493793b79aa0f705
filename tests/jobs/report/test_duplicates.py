import io
import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from promptmill.jobs.report.duplicates import Hashes, by_embedding, by_hash, equal
from promptmill.shards.near_duplicates import COSINE, HASH_BITS, Pictures, find_twins
from promptmill.shards.perceptual_hash import colours, phash

few = st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=12)


def groups(found):
    return [list(group.members) for group in found]


@given(few)
def test_a_group_is_like_its_first_and_no_two_firsts_are_alike(vectors):
    made = np.array(vectors, np.float32)
    found = groups(by_embedding(made.astype(np.float16)))
    assert all(cosine(made[first], made[other]) > COSINE - 1e-6 for first, *others in found for other in others)
    grouped = {other for _, *others in found for other in others}
    kept = [i for i in range(len(made)) if i not in grouped and made[i].any()]
    assert all(cosine(made[a], made[b]) <= COSINE + 1e-6 for a, b in itertools.combinations(kept, 2))
    assert len(grouped) == sum(len(others) for _, *others in found)
    assert [len(group) for group in found] == sorted(map(len, found), reverse=True)


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@given(few)
def test_a_report_calls_near_duplicates_what_dedup_leaves_out(vectors):
    made = np.array(vectors, np.float32)
    names = [str(i) for i in range(len(made))]
    twins, _ = find_twins(Pictures(names, [0.0] * len(made), names, names, embeddings=made), COSINE, HASH_BITS)
    assert {other for _, *others in groups(by_embedding(made)) for other in others} == set(twins)


def test_embeddings_that_are_not_there_are_like_nothing():
    assert by_embedding(np.full((3, 4), np.nan, np.float16)) == []


@given(st.lists(st.integers(0, 5), max_size=20))
def test_equal_values_are_groups(values):
    expected = [[i for i, v in enumerate(values) if v == value] for value in set(values)]
    expected = sorted((group for group in expected if len(group) > 1), key=lambda group: (-len(group), group[0]))
    assert groups(equal(np.array(values, np.uint64))) == expected


def hashes_of(image):
    return Hashes(phash(image), colours(image))


def drawn(color, box, side=96, noise=0, form="PNG"):
    image = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(image).ellipse([side * place // 96 for place in box], fill=color)
    pixels = np.asarray(image, np.int16) + np.random.default_rng(noise).integers(-noise, noise + 1, (side, side, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, form, quality=85)
    return hashes_of(Image.open(file))


def test_a_hash_knows_a_picture_again_and_tells_colours_and_places_apart():
    left, right = (8, 30, 44, 66), (52, 30, 88, 66)
    again = [drawn("red", left), drawn("red", left, noise=2), drawn("red", left, side=192), drawn("red", left, form="JPEG")]
    others = [drawn("blue", left), drawn("red", right), drawn("red", (8, 30, 26, 48)), drawn("white", left)]
    assert groups(by_hash([*again, *others])) == [[0, 1, 2, 3]]
    flat = [hashes_of(Image.new("RGB", (32, 32), color)) for color in ("red", "blue", "black", "white", "red")]
    assert groups(by_hash(flat)) == [[0, 4]]
