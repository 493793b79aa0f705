"""Draws lines of text in any script: each run of letters in the first font that has them, right-to-left text in its order.

Latin, Greek, Cyrillic, Devanagari and Arabic letters are in fonts that are installed with promptmill. Others, such as those of
Chinese, Japanese and Korean, come from the fonts of the system, where it has some. A letter that no font has is drawn as a box.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from bidi.algorithm import get_display
from PIL import ImageDraw, ImageFont, features

OWN = ("fontpkg_noto_sans", "fontpkg_noto_sans_arabic")
FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.fonts",
    "~/.local/share/fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
)
# The system's fonts that are tried, the broadest first: opening all of its fonts could take minutes.
USUAL = (
    *("NotoSansCJK", "NotoSansJP", "NotoSansSC", "NotoSansKR", "NotoSansHebrew", "NotoSansThai", "SourceHanSans"),
    *("DroidSansFallback", "wqy-", "ipaexg", "ipag", "TakaoPGothic", "NanumGothic", "PingFang", "Hiragino", "AppleGothic"),
    *("Arial Unicode", "DejaVuSans.", "FreeSans.", "unifont", "Symbola", "NotoEmoji"),
)
ENDINGS = (".ttf", ".otf", ".ttc")
RIGHT_TO_LEFT = ("R", "AL")
ELLIPSIS = "…"


@dataclass(frozen=True)
class Run:
    """Holds successive letters of one font; the next run follows to the right."""

    text: str
    font: ImageFont.FreeTypeFont


@dataclass
class Lettering:
    """Draws and measures text with the fonts that have its letters.

    Attributes:
        size: Size of letters, in pixels.
        font: The file of a font to prefer where it has the letters.
        missing: Letters so far that no font has.
    """

    size: int
    font: Path | None = None
    missing: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._shapes = features.check("raqm")
        self._engine = ImageFont.Layout.RAQM if self._shapes else ImageFont.Layout.BASIC
        self._fonts: list[ImageFont.FreeTypeFont] = []
        self._waiting = _places(self.font)
        self._of: dict[str, ImageFont.FreeTypeFont] = {}
        if self.font is not None:
            self._next(must=True)

    def draw(self, pen: ImageDraw.ImageDraw, left: int, baseline: int, width: int, line: str) -> None:
        """Draw a line of text, at the right of its width where the line begins with a right-to-left script."""
        runs = self.runs(line)
        x = left + (width - self.width(line) if runs_left(line) else 0.0)
        for run in runs:
            pen.text((x, baseline), run.text, fill="black", font=run.font, anchor="ls")
            x += run.font.getlength(run.text)

    def width(self, line: str) -> float:
        """Return the width of a line, in pixels."""
        return sum(run.font.getlength(run.text) for run in self.runs(line))

    def runs(self, line: str) -> list[Run]:
        """Return the runs of a line, from left to right."""
        if not self._shapes:
            # Without raqm, Pillow puts letters one after the other, so they are brought into visual order first.
            return list(self._cut(str(get_display(line))))
        cut = list(self._cut(line))
        return cut[::-1] if runs_left(line) else cut

    def wrapped(self, text: str, width: int, most: int) -> list[str]:
        """Return a text in lines of a width at most, as many as `most`; the rest becomes an ellipsis."""
        lines, line = [], ""
        for piece in pieces_of(text):
            if self.width((line + piece).strip()) <= width:
                line += piece
                continue
            if line.strip():
                lines.append(line.strip())
            line = ""
            for letter in piece.lstrip():  # a word wider than a line is cut anywhere
                if line and self.width(line + letter) > width:
                    lines.append(line)
                    line = ""
                line += letter
        lines += [line.strip()] if line.strip() else []
        if len(lines) <= most:
            return lines
        last = lines[most - 1]
        while last and self.width(f"{last} {ELLIPSIS}") > width:
            last = last[:-1].rstrip()
        return [*lines[: most - 1], f"{last} {ELLIPSIS}"]

    def _cut(self, line: str) -> Iterator[Run]:
        text, font = "", None
        for letter in line:
            # A character that is no letter, such as a space or an accent, stays with the letters before it.
            own = font if font and _follows(letter) and _has(font, letter) else self._font_of(letter)
            if own is not font and text and font:
                yield Run(text, font)
                text = ""
            text, font = text + letter, own
        if text and font:
            yield Run(text, font)

    def _font_of(self, letter: str) -> ImageFont.FreeTypeFont:
        if letter not in self._of:
            font = next((font for font in self._fonts if _has(font, letter)), None)
            while font is None and (another := self._next()) is not None:
                font = another if _has(another, letter) else None
            if font is None:
                self.missing.add(letter)
                font = self._fonts[0]
            self._of[letter] = font
        return self._of[letter]

    def _next(self, must: bool = False) -> ImageFont.FreeTypeFont | None:
        """Open one more font; return None where there is no other."""
        for place in self._waiting:
            try:
                font = ImageFont.truetype(str(place), self.size, layout_engine=self._engine)
            except OSError:
                if must:
                    raise
                continue
            self._fonts.append(font)
            return font
        return None


def _places(given: Path | None) -> Iterator[Path]:
    """Yield the files of fonts: the one given, those installed with promptmill, those of the system."""
    if given is not None:
        yield given
    for package in OWN:
        if find_spec(package) is not None:
            upright = (path for path in files(package).joinpath("files").iterdir() if "Italic" not in path.name)
            yield from sorted((Path(str(path)) for path in upright if path.name.endswith(ENDINGS)), key=str)
    found = [path for folder in FOLDERS for path in sorted(Path(folder).expanduser().rglob("*")) if path.suffix.lower() in ENDINGS]
    for name in USUAL:
        several = (path for path in found if path.name.startswith(name))
        yield from sorted(several, key=lambda path: ("Regular" not in path.name, path.name))[:2]


@lru_cache(100_000)
def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Return whether a font has a letter: a letter that the font lacks looks like all others that it lacks."""
    if letter.isspace() or unicodedata.category(letter) in ("Cc", "Cf"):
        return True
    return _look(font, letter) != _look(font, "\U0010ffff")


def _look(font: ImageFont.FreeTypeFont, letter: str) -> tuple[object, ...]:
    mask, offset = font.getmask2(letter, mode="1")
    return bytes(mask), mask.size, offset


def _follows(letter: str) -> bool:
    return letter.isspace() or unicodedata.category(letter)[0] in "MPZNC"


def runs_left(line: str) -> bool:
    """Return whether a line begins with a script that runs from right to left."""
    strong = (unicodedata.bidirectional(letter) for letter in line)
    return next((kind for kind in strong if kind in ("L", *RIGHT_TO_LEFT)), "L") in RIGHT_TO_LEFT


def pieces_of(text: str) -> Sequence[str]:
    """Return the pieces between which a line may break: words with the space before them; letters in scripts without spaces."""
    pieces: list[str] = []
    for letter in " ".join(text.split()):
        wide = unicodedata.east_asian_width(letter) in "WF"
        after_wide = pieces and unicodedata.east_asian_width(pieces[-1][-1]) in "WF"
        if not pieces or letter == " " or wide or (after_wide and not _follows(letter)):
            pieces.append(letter)
        else:
            pieces[-1] += letter
    return pieces
