import ast
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from promptmill.configs.parameters import MAX_SIDE
from promptmill.shards.image_reader import ENDINGS, PictureError, is_of, read_picture
from tests.forge.pictures import EPS, huge_png

ROOT = Path(__file__).parents[2]
SAVED = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "tif": "TIFF", "bmp": "BMP", "ppm": "PPM", "ico": "ICO"}
MADE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))


def saved(ending: str) -> bytes:
    file = io.BytesIO()
    MADE.save(file, SAVED[ending], quality=90)
    return file.getvalue()


@pytest.fixture
def opened(monkeypatch):
    """The formats whose plugins are asked to open a file."""
    asked = []
    Image.init()

    def noting(name, factory):
        return lambda file, filename=None: asked.append(name) or factory(file, filename)

    for name, (factory, accept) in list(Image.OPEN.items()):
        monkeypatch.setitem(Image.OPEN, name, (noting(name, factory), accept))
    return asked


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_image_of_its_format_and_size_is_decoded(ending, opened):
    image = read_picture(saved(ending), ending, 24, 16)
    assert (image.mode, image.size, opened) == ("RGB", (24, 16), [ENDINGS[ending]])
    if ending == "png":
        assert np.array_equal(np.asarray(image), np.asarray(MADE))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("content", [EPS, *(saved(ending) for ending in SAVED)], ids=["eps", *SAVED])
def test_no_other_format_is_asked_whatever_is_in_the_file(content, ending, opened):
    if content == saved(ending):
        return
    assert not is_of(content, ending)
    with pytest.raises(PictureError, match=f"^is no {ENDINGS[ending]}$"):
        read_picture(content, ending, 24, 16)
    assert opened == []


def test_an_ending_that_no_dataset_has_is_no_image(opened):
    for ending in ("eps", "gif", "PNG", "png.exe", ""):
        with pytest.raises(PictureError, match=r"^is no image$"):
            read_picture(EPS, ending, 24, 16)
    assert opened == []


@pytest.mark.parametrize(
    ("width", "height", "says"),
    [
        (16, 24, "is 24x16, its row says 16x24"),
        (None, None, "is 24x16, its row says NonexNone"),
        (-24, -16, "is 24x16, its row says -24x-16"),
    ],
)
def test_another_size_than_the_rows_is_found_before_anything_is_decoded(width, height, says, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decodes"))
    with pytest.raises(PictureError, match=f"^{says}$"):
        read_picture(saved("png"), "png", width, height)


@pytest.mark.parametrize("side", [MAX_SIDE + 8, 60_000])
def test_a_row_that_says_a_huge_size_does_not_allow_it(side, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decodes"))
    with pytest.raises(PictureError, match=r"no side of an image may be of more than 8,192|many more pixels than can be"):
        read_picture(huge_png(side, side), "png", side, side)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_breaks_off_is_said_to(ending):
    for size in (12, 40, len(saved(ending)) // 2):
        with pytest.raises(PictureError, match=r"^(cannot be decoded: |is no )"):
            read_picture(saved(ending)[:size], ending, 24, 16)


def test_a_jpeg_of_several_images_is_no_jpeg_of_a_dataset():
    file = io.BytesIO()
    MADE.save(file, "MPO", save_all=True, append_images=[MADE])
    with pytest.raises(PictureError, match="is no JPEG"):
        read_picture(file.getvalue(), "jpg", 24, 16)


def test_a_large_jpeg_may_be_decoded_smaller_and_others_are_not():
    file = io.BytesIO()
    MADE.resize((1024, 512)).save(file, "JPEG")
    assert read_picture(file.getvalue(), "jpg", 1024, 512, draft=(256, 256)).size == (512, 256)
    assert read_picture(saved("png"), "png", 24, 16, draft=(8, 8)).size == (24, 16)


def test_images_are_opened_in_three_places_alone():
    """Those of datasets here, those that rows name in `manifests.images`, and what the renderer makes of drawings, as PNG, in
    `manifests.drawings`; all say which formats they take.
    """
    found = {}
    for folder in ("actors", "configs", "embedded", "jobs", "manifests", "pipelines", "shards"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                    found[str(file.relative_to(ROOT))] = [keyword.arg for keyword in node.keywords]
    places = ("shards/image_reader.py", "manifests/images.py", "manifests/drawings.py")
    assert found == {place: ["formats"] for place in places}
