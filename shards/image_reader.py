"""Opens the images of a dataset, which may be somebody else's: as the format that their name says, and no other.

Pillow knows dozens of formats, and tries all of them where it is not told which. One of them starts Ghostscript on the file.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from promptmill.configs.parameters import MAX_SIDE
from promptmill.shards.image_files import FORMATS

ENDINGS = {ending: form.pillow for ending, form in FORMATS.items()}


class PictureError(ValueError):
    """An image that is not what its row says, or cannot be decoded; the message goes on after `its image`."""


def is_of(content: bytes, ending: str) -> bool:
    """Return whether a file begins as those of the format do that its ending names."""
    return ending in FORMATS and FORMATS[ending].begins(content)


@contextmanager
def open_picture(content: bytes, ending: str, width: int | None, height: int | None) -> Iterator[Image.Image]:
    """Open an image of a dataset without decoding it; decoding inside of the block raises nothing but PictureError.

    Args:
        content: The whole file.
        ending: Of its name, without the dot.
        width, height: In pixels, as its row says.

    Raises:
        PictureError: It is of another format or size, is larger than any request may be, or cannot be decoded.
    """
    if ending not in ENDINGS or not is_of(content, ending):
        raise PictureError(f"is no {ENDINGS.get(ending, 'image')}")
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is another than ours, and odd metadata does not concern the pixels.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=(ENDINGS[ending],)) as image:
                _check(image, ENDINGS[ending], width, height)
                yield image
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"is no {ENDINGS[ending]}") from None
    except Image.DecompressionBombError:
        raise PictureError("has many more pixels than can be decoded safely") from None
    except Exception as error:  # Pillow's decoders raise nearly anything at broken files
        raise PictureError(f"cannot be decoded: {' '.join(str(error).split())[:200] or type(error).__name__}") from None


def read_picture(
    content: bytes, ending: str, width: int | None, height: int | None, draft: tuple[int, int] | None = None
) -> Image.Image:
    """Return an image of a dataset, decoded, in mode RGB; arguments and errors as in `open_picture`.

    Args:
        draft: A JPEG may be decoded smaller, but no smaller than this width and height, which is faster.
    """
    with open_picture(content, ending, width, height) as image:
        if draft:
            image.draft("RGB", draft)
        return image.convert("RGB")


def _check(image: Image.Image, format_: str, width: int | None, height: int | None) -> None:
    if image.format != format_:  # a JPEG of several images is another format to Pillow
        raise PictureError(f"is no {format_}")
    if image.size != (width, height):
        raise PictureError(f"is {image.width}x{image.height}, its row says {width}x{height}")
    if max(image.size) > MAX_SIDE:
        raise PictureError(f"is {image.width}x{image.height}, and no side of an image may be of more than {MAX_SIDE:,} pixels")
