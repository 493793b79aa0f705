"""Defines the world of the embedded family: scenes of flat shapes, and the prompts that describe them.

A scene is words only; `embedded.pictures` draws a scene as pixels. One prompt describes one scene, and `parse` is the inverse of
`describe`. A tenth of all scenes, chosen by a hash of their words, is held out: training never sees a held-out scene, evaluation
sees no other.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

SIZES = ("small", "large")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = ("left", "right", "top", "bottom", "center")

# Two objects stand on one axis; a place stands opposite its partner.
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}

FORM = "a {size} {color} {shape} at the {place} [and a {size} {color} {shape} at the {place}] on a {color} background"


class PromptError(ValueError):
    """Reports a prompt that the grammar of the world does not allow; the message names the word and what would do."""


@dataclass(frozen=True)
class Thing:
    """Holds one object; a size or place of None means that the prompt does not say, and any will do."""

    shape: str
    color: str
    size: str | None
    place: str | None


@dataclass(frozen=True)
class Scene:
    """Holds one or two objects on a plain background, in the order in which the prompt names them."""

    things: tuple[Thing, ...]
    background: str


def sample_scene(rng: np.random.Generator, things: int | None = None, held_out: bool = False) -> Scene:
    """Draw a scene uniformly over its words.

    Args:
        rng: The only source of randomness.
        things: 1 or 2 objects; None draws either with equal chance.
        held_out: Draw from the tenth that training never sees, else from the rest.
    """
    while True:
        scene = _draw(rng, things or int(rng.integers(1, 3)))
        if is_held_out(scene) == held_out:
            return scene


def _draw(rng: np.random.Generator, things: int) -> Scene:
    background = int(rng.integers(len(COLORS)))
    if things == 1:
        places = [PLACES[rng.integers(len(PLACES))]]
    else:
        first = tuple(OPPOSITE)[rng.integers(len(OPPOSITE))]
        places = [first, OPPOSITE[first]]
    drawn = []
    for place in places:
        color = (background + int(rng.integers(1, len(COLORS)))) % len(COLORS)
        shape, size = SHAPES[rng.integers(len(SHAPES))], SIZES[rng.integers(len(SIZES))]
        drawn.append(Thing(shape, COLORS[color], size, place))
    return Scene(tuple(drawn), COLORS[background])


def is_held_out(scene: Scene) -> bool:
    """Return whether training must not see this scene; the order in which the prompt names the objects does not matter."""
    words = sorted(f"{t.size} {t.color} {t.shape} {t.place}" for t in scene.things)
    return zlib.crc32(" / ".join([*words, scene.background]).encode()) % 10 == 0


def describe(scene: Scene) -> str:
    """Return the prompt of a scene, word for word; an attribute that is None goes unsaid."""
    return " and ".join(_describe_thing(t) for t in scene.things) + f" on a {scene.background} background"


def _describe_thing(thing: Thing) -> str:
    size = f"{thing.size} " if thing.size else ""
    place = f" at the {thing.place}" if thing.place else ""
    return f"a {size}{thing.color} {thing.shape}{place}"


def without(scene: Scene, *attributes: str) -> Scene:
    """Return the scene with `"size"`, `"place"` or both left unsaid, its objects named in reading order (left or top first)."""
    named = sorted(scene.things, key=lambda t: t.place in ("right", "bottom"))
    unsaid: dict[str, Any] = dict.fromkeys(attributes)
    return Scene(tuple(replace(t, **unsaid) for t in named), scene.background)


def edits(scene: Scene) -> Iterator[Scene]:
    """Yield every scene that differs in one attribute: a size, colour, shape or place of one object, or the background.

    Of two objects neither can move alone, so for two objects the one attribute is the arrangement: exchanged, or on the other axis.
    """
    for i, thing in enumerate(scene.things):
        for changed in _thing_edits(thing, scene, alone=len(scene.things) == 1):
            yield replace(scene, things=(*scene.things[:i], changed, *scene.things[i + 1 :]))
    if len(scene.things) == 2:
        first, second = scene.things
        for place, partner in OPPOSITE.items():
            moved = (replace(first, place=place), replace(second, place=partner))
            if set(moved) != set(scene.things):  # two alike can be exchanged, and nothing has changed
                yield replace(scene, things=moved)
    for color in COLORS:
        if color != scene.background and all(t.color != color for t in scene.things):
            yield replace(scene, background=color)


def _thing_edits(thing: Thing, scene: Scene, alone: bool) -> Iterator[Thing]:
    yield from (replace(thing, size=size) for size in SIZES if size != thing.size)
    yield from (replace(thing, color=color) for color in COLORS if color not in (thing.color, scene.background))
    yield from (replace(thing, shape=shape) for shape in SHAPES if shape != thing.shape)
    if alone:
        yield from (replace(thing, place=place) for place in PLACES if place != thing.place)


def parse(prompt: str) -> Scene:
    """Read a prompt of the world; sizes and places may go unsaid.

    Raises:
        PromptError: The prompt has an unknown or missing word, or describes a scene that cannot be (an object of the background's
            colour, two objects that are not opposite each other).
    """
    reader = _Reader(prompt)
    things = [_read_thing(reader)]
    if reader.take("and"):
        things.append(_read_thing(reader))
    reader.expect("on")
    reader.expect("a")
    background = reader.one_of("background colour", COLORS)
    reader.expect("background")
    reader.end()
    for thing in things:
        if thing.color == background:
            raise PromptError(f"{prompt!r}: the {thing.shape} is {background} on a {background} background; give it another colour")
    if len(things) == 2 and OPPOSITE.get(things[0].place or "") != things[1].place and any(t.place for t in things):
        pairs = "left and right, or top and bottom"
        raise PromptError(f"{prompt!r}: two objects stand {pairs}, not {things[0].place} and {things[1].place}")
    return Scene(tuple(things), background)


def prompt_pattern() -> str:
    """Return the regular expression of the prompts that `parse` reads, their words apart by one space each."""

    def thing(number: int, place: str) -> str:
        return f"a (?:(?:{'|'.join(SIZES)}) )?(?P<color{number}>{'|'.join(COLORS)}) (?:{'|'.join(SHAPES)}){place}"

    one = thing(1, f"(?: at the (?:{'|'.join(PLACES)}))?")
    # Two stand opposite each other, or nothing is said of the second one's place.
    opposite = "|".join(f"(?<=at the {place} and )(?=.* at the {partner} on )" for place, partner in OPPOSITE.items())
    unsaid = r"(?<! at the left and )(?<! at the right and )(?<! at the top and )(?<! at the bottom and )(?!.* at the )"
    two = f" and (?:{opposite}|{unsaid}){thing(2, f'(?: at the (?:{chr(124).join(PLACES)}))?')}"
    unlike = r"(?!(?P=color1) )(?(color2)(?!(?P=color2) ))"
    return f"{one}(?:{two})? on a {unlike}(?:{'|'.join(COLORS)}) background"


def _read_thing(reader: "_Reader") -> Thing:
    reader.expect("a")
    size = reader.take(*SIZES)
    color = reader.one_of("colour" if size else "size or colour", COLORS)
    shape = reader.one_of("shape", SHAPES)
    place = None
    if reader.take("at"):
        reader.expect("the")
        place = reader.one_of("place", PLACES)
    return Thing(shape, color, size, place)


class _Reader:
    """Walks over the words of a prompt; every complaint names the word and its position."""

    def __init__(self, prompt: str):
        self.prompt, self.words, self.at = prompt, prompt.split(), 0

    def take(self, *wanted: str) -> str | None:
        if self.at < len(self.words) and self.words[self.at] in wanted:
            self.at += 1
            return self.words[self.at - 1]
        return None

    def one_of(self, what: str, wanted: tuple[str, ...]) -> str:
        return self.take(*wanted) or self.fail(f"a {what} ({', '.join(wanted)})")

    def expect(self, word: str) -> str:
        return self.take(word) or self.fail(repr(word))

    def end(self) -> None:
        if self.at < len(self.words):
            self.fail("nothing more")

    def fail(self, wanted: str) -> str:
        found = f"{self.words[self.at]!r} (word {self.at + 1})" if self.at < len(self.words) else "the end"
        raise PromptError(f"{self.prompt!r}: found {found} where {wanted} belongs; the form is: {FORM}")
