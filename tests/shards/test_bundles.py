"""That an image and its control maps come out of a cell as they went in, and that a broken cell is never taken for a whole one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.columns import CONTROL_MAPS
from promptmill.shards.bundles import BundleError, encode_map, map_names, maps_in, pack, unpack, unpacked
from promptmill.shards.image_reader import read_picture
from promptmill.shards.tars import Sample, TarError, read_tar, write_tar

FILES = st.lists(st.binary(max_size=50), max_size=16)


@given(st.binary(max_size=50), FILES)
def test_an_image_and_its_maps_come_out_as_they_went_in(image, maps):
    assert unpack(pack(image, maps)) == (image, tuple(maps))
    assert unpacked(pack(image, maps), ["key", CONTROL_MAPS]) == (image, tuple(maps))
    assert unpacked(image, ["key"]) == (image, ())


@given(st.binary(max_size=50), FILES, st.data())
def test_a_cell_that_was_cut_is_none(image, maps, data):
    whole = pack(image, maps)
    with pytest.raises(BundleError):
        unpack(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(BundleError):
        unpack(whole + b"x")


def test_a_map_is_a_png_of_its_pixels_with_the_same_bytes_each_time():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    content = encode_map(pixels)
    assert encode_map(pixels.copy()) == content
    assert (np.asarray(read_picture(content, "png", 40, 24)) == pixels).all()


def test_maps_are_found_among_the_files_of_a_sample_in_the_order_of_their_controls():
    names = map_names(12)
    others = ("png", "json", "txt", "control.png", "control.0.jpg", "control.100.png")
    assert maps_in(dict.fromkeys([*sorted(names), *others], b"")) == names


def test_samples_of_a_tar_may_differ_in_their_maps_and_in_nothing_else():
    both = [
        Sample("a", {"png": b"1", "control.0.png": b"2", "control.1.png": b"3"}),
        Sample("b", {"png": b"4"}),
    ]
    assert [*read_tar(write_tar(both))] == both
    with pytest.raises(TarError, match="b: has jpg where the others have png"):
        write_tar([both[0], Sample("b", {"jpg": b"4"})])
