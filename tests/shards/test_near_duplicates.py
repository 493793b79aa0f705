import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from promptmill.shards import near_duplicates
from promptmill.shards.near_duplicates import Pictures, Twin, find_twins

RNG = np.random.default_rng(0)


def pictures(number, **more):
    names = [str(i) for i in range(number)]
    values = {"keys": names, "scores": [0.0] * number, "files": [f"f{n}" for n in names], "pixels": [f"p{n}" for n in names]}
    return Pictures(**values | more)


def turned(*degrees):
    """Unit vectors of 8 numbers."""
    angles = np.radians(degrees)
    return np.pad(np.stack([np.cos(angles), np.sin(angles)], -1), ((0, 0), (0, 6))).astype(np.float16)


def twins(*arguments, **more):
    return find_twins(*arguments, **more)[0]


def test_the_same_file_or_the_same_pixels_are_twins_of_the_one_with_the_best_score():
    some = pictures(5, scores=[1.0, 3.0, 2.0, 3.0, 0.0], files=["a", "a", "b", "c", "a"], pixels=["x", "y", "y", "z", "w"])
    assert twins(some, None, None) == {0: Twin(1, "file"), 2: Twin(1, "pixels"), 4: Twin(1, "file")}


def test_a_chain_is_not_taken_for_one_picture_and_a_twin_is_of_one_that_is_kept():
    # Each is 10 degrees from the next, and 12 are allowed to be near_duplicates.
    some = pictures(4, scores=[4.0, 3.0, 2.0, 1.0], embeddings=turned(0, 10, 20, 30))
    found = twins(some, float(np.cos(np.radians(12))), None)
    assert {number: (twin.of, twin.by) for number, twin in found.items()} == {1: (0, "embedding"), 3: (2, "embedding")}
    assert abs(found[1].cosine - np.cos(np.radians(10))) < 1e-3


def test_a_cosine_at_the_limit_is_allowed_and_a_picture_without_embedding_is_like_none():
    vectors = np.eye(8, dtype=np.float32)[[0, 0, 1, 2, 3]] * np.array([1, 2, 1, 0, 0], np.float32)[:, None]
    some = pictures(5, embeddings=vectors)
    assert twins(some, 0.0, None).keys() == {1}
    assert twins(some, 1.0, None) == {}


@given(st.lists(st.integers(0, 2**12 - 1), max_size=40), st.integers(0, 6))
def test_hashes_within_so_many_bits_are_twins_and_none_is_missed(hashes, bits):
    spread = np.array([sum((h >> i & 1) << 5 * i for i in range(12)) for h in hashes], np.uint64)
    found = twins(pictures(len(hashes), hashes=spread, colours=np.zeros((len(hashes), 48), np.int16)), None, bits)
    kept = []
    for number, whole in enumerate(hashes):
        near = [((whole ^ hashes[other]).bit_count(), other) for other in kept]
        closest = min((pair for pair in near if pair[0] <= bits), default=None)
        if closest:
            assert found[number] == Twin(closest[1], "hash", hamming=closest[0])
        else:
            assert number not in found
            kept.append(number)


def test_of_pictures_with_near_hashes_those_of_other_colours_are_no_twins():
    colours = np.zeros((3, 48), np.int16)
    colours[1, 7] = 200
    assert twins(pictures(3, hashes=np.zeros(3, np.uint64), colours=colours), None, 0) == {2: Twin(0, "hash", hamming=0)}


def crowd(number, width=32):
    """Vectors of which a third are near another, as float16."""
    apart = RNG.standard_normal((number - number // 3, width))
    near = apart[RNG.integers(0, len(apart), number // 3)] + 0.05 * RNG.standard_normal((number // 3, width))
    return np.concatenate([apart, near]).astype(np.float16)


def test_across_blocks_the_nearest_kept_picture_is_found(monkeypatch):
    monkeypatch.setattr(near_duplicates, "AGAINST", 300)
    vectors = crowd(2600)
    scores = RNG.random(2600).tolist()
    found = twins(pictures(2600, embeddings=vectors, scores=scores), 0.95, None)
    unit = vectors.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    kept = sorted(set(range(2600)) - found.keys())
    among = unit[kept] @ unit[kept].T - np.eye(len(kept))
    assert among.max() <= 0.95
    for number, twin in found.items():
        assert twin.of in kept and scores[twin.of] >= scores[number]
        assert float(unit[number] @ unit[twin.of]) > 0.95
        better = [other for other in kept if (-scores[other], other) < (-scores[number], number)]
        assert twin.of == better[int((unit[better] @ unit[number]).argmax())]
    assert 700 < len(found) < 900


def test_the_graph_of_neighbours_finds_nearly_all_and_the_same_each_time():
    some = pictures(2600, embeddings=crowd(2600), scores=RNG.random(2600).tolist())
    exact, nothing_missed = find_twins(some, 0.95, None)
    graph, all_found = find_twins(some, 0.95, None, exact_up_to=1000)
    assert (nothing_missed, all_found) == (True, False)
    assert len(graph.keys() & exact.keys()) > 0.98 * len(exact)
    assert twins(some, 0.95, None, exact_up_to=1000) == graph
