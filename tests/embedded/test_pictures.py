import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmill.embedded.pictures import HALF_EXTENT, RGB, SIDE, canny, cover, draw, segmentation
from promptmill.embedded.world import SHAPES, parse, sample_scene

seeds = st.integers(0, 2**32 - 1)


def drawn(seed, count=1):
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    return scenes, draw(scenes, rng)


@given(seeds)
def test_the_same_seed_draws_the_same_pixels(seed):
    assert np.array_equal(drawn(seed)[1].pixels, drawn(seed)[1].pixels)


@given(seeds)
def test_objects_never_touch_each_other_or_the_frame(seed):
    _, pictures = drawn(seed)
    first, second = pictures.coverage[0] > 0
    assert not (first & second).any()
    frame = np.ones((SIDE, SIDE), bool)
    frame[2:-2, 2:-2] = False
    assert not ((first | second) & frame).any()


@settings(max_examples=20)
@given(seeds)
def test_edges_are_anti_aliased_and_insides_plain(seed):
    scenes, pictures = drawn(seed)
    for i in range(len(scenes[0].things)):
        coverage = pictures.coverage[0, i]
        assert ((coverage > 0.05) & (coverage < 0.95)).any()
        inside = pictures.pixels[0][coverage == 1]
        assert (inside == inside[0]).all()
        assert np.abs(inside[0].astype(int) - RGB[scenes[0].things[i].color]).max() <= 10


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_integrates_to_the_area_of_the_shape(shape):
    half = HALF_EXTENT["large"]
    area = {"circle": np.pi, "square": 4.0, "triangle": 2.0, "cross": 2 * 2 * 0.72 - 0.72**2}[shape] * (half * SIDE) ** 2
    covered = cover(np.array([SHAPES.index(shape)]), np.array([[0.5, 0.5]]), np.array([half])).sum()
    assert covered == pytest.approx(area, rel=0.02)


def test_segmentation_names_each_pixel_by_its_shape():
    scene = parse("a large red circle at the left and a small blue cross at the right on a white background")
    pictures = draw([scene], np.random.default_rng(0))
    labels = pictures.labels[0]
    assert set(np.unique(labels[:, :32])) == {0, 1 + SHAPES.index("circle")}
    assert set(np.unique(labels[:, 32:])) == {0, 1 + SHAPES.index("cross")}
    colors = segmentation(labels)
    assert colors.shape == (SIDE, SIDE, 3) and colors.dtype == np.uint8
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 3


@settings(max_examples=30)
@given(seeds)
def test_canny_edges_lie_on_the_outlines_and_surround_every_object(seed):
    scenes, pictures = drawn(seed)
    edges = canny(pictures.pixels[0])
    assert edges.shape == (SIDE, SIDE, 3) and set(np.unique(edges)) <= {0, 255}
    coverage = pictures.coverage[0].max(0)
    ys, xs = np.nonzero(edges[..., 0])
    for y, x in zip(ys, xs, strict=True):
        around = coverage[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
        assert around.min() < 0.5 < around.max()
    for i, _ in enumerate(scenes[0].things):
        assert edges[..., 0][pictures.coverage[0, i] > 0].any()
