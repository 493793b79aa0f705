"""Reads prompts in A1111's syntax: weights, BREAK, AND, words that change between steps, LoRA tags, escapes.

stable-diffusion-webui states the syntax in its wiki ("Features": Attention/emphasis, Prompt editing, Alternating Words, Composable
Diffusion) and in the docstrings of its prompt parser. Brackets that are not balanced are an error here, and there are words.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from promptmill.configs.errors import shown
from promptmill.configs.parameters import MAX_NAME, Lora
from promptmill.manifests.prompt_errors import PromptError

UP, DOWN = 1.1, 1 / 1.1
MOST_WEIGHT = 10.0
MOST_DEPTH = 40
MOST_PARTS = 32  # that BREAK and AND make of a prompt: each is encoded by itself
MOST_STATES = 150  # different texts that a prompt whose words change is at its steps

_SIGN = re.compile(r"\\.|[()\[\]|:]|\b(?:BREAK|AND)\b|(?:(?!\b(?:BREAK|AND)\b)[^\\()\[\]|:])+|\\", re.DOTALL)
_NUMBER = re.compile(r"\s*([+-]?(?:\d{1,9}\.?\d{0,9}|\.\d{1,9}))\s*")
_TAG = re.compile(r"<([A-Za-z]+):([^<>]*)>")
_HAS_SYNTAX = re.compile(r"[()\[\]\\]|\b(?:BREAK|AND)\b")


@dataclass(frozen=True)
class Words:
    """Holds text without syntax in it."""

    text: str


@dataclass(frozen=True)
class Weighted:
    """Holds nodes whose weights a factor multiplies."""

    nodes: "tuple[Node, ...]"
    factor: float
    column: int


@dataclass(frozen=True)
class Scheduled:
    """Holds nodes that others follow at a step; below 1, `when` is a share of the steps."""

    before: "tuple[Node, ...]"
    after: "tuple[Node, ...]"
    when: float
    column: int


@dataclass(frozen=True)
class Alternating:
    """Holds nodes of which each step has the next."""

    options: "tuple[tuple[Node, ...], ...]"
    column: int


@dataclass(frozen=True)
class Break:
    """Ends a chunk of the text encoder."""


Node = Words | Weighted | Scheduled | Alternating | Break
Nodes = tuple[Node, ...]
Fragments = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Part:
    """Holds one of the prompts that AND joins, with its weight.

    Attributes:
        chunks: What BREAK divides; of each, texts and their weights.
        words: All words of it.
    """

    chunks: tuple[Fragments, ...]
    weight: float = 1.0
    words: str = ""

    @property
    def texts(self) -> list[str]:
        """Return the texts of the chunks, each of which is encoded by itself."""
        return [" ".join(text for text, _ in fragments) for fragments in self.chunks]


@dataclass(frozen=True)
class Uses:
    """Holds the columns where the constructs of the syntax begin that a prompt uses; None of one that it does not use."""

    weights: int | None = None
    breaks: int | None = None
    ands: int | None = None
    changes: int | None = None


@dataclass(frozen=True)
class Prompt:
    """Holds a prompt that was read.

    Attributes:
        parts: The trees of what AND joins, each with its weight.
        uses: What of the syntax it uses.
    """

    parts: tuple[tuple[Nodes, float], ...]
    uses: Uses

    @classmethod
    def of_words(cls, text: str) -> "Prompt":
        """Return the prompt of a text that is in no syntax."""
        return cls((((Words(text),) if text.strip() else (), 1.0),), Uses())

    def at(self, step: int, steps: int) -> tuple[Part, ...]:
        """Return the prompt as it is at a step, counted from 1, of so many."""
        return tuple(_part(nodes, weight, step, steps) for nodes, weight in self.parts)

    def states(self, steps: int) -> list[tuple[int, tuple[Part, ...]]]:
        """Return the states of the prompt, one after another: each with the number of the last step at which it holds."""
        if self.uses.changes is None:
            return [(steps, self.at(1, steps))]
        made: list[tuple[int, tuple[Part, ...]]] = []
        for step in range(1, steps + 1):
            here = self.at(step, steps)
            if made and made[-1][1] == here:
                made[-1] = (step, here)
            else:
                made.append((step, here))
        return made

    def texts(self, steps: int) -> set[tuple[Part, ...]]:
        """Return the different states of the prompt, each of which is encoded once."""
        return {parts for _, parts in self.states(steps)}

    def words(self, steps: int) -> str:
        """Return the words alone: those of the last of so many steps, and all that alternate."""
        said = " ".join("".join(_said(nodes, steps)) for nodes, _ in self.parts)
        return _tidy(said)


def words_of(prompt: str, steps: int) -> str:
    """Return the words of a prompt at the last of so many steps, without brackets, weights and escapes.

    Of a prompt that cannot be read, this is its text.
    """
    try:
        return read(prompt).words(steps)
    except PromptError:
        return prompt


@lru_cache(maxsize=4096)
def read(text: str) -> Prompt:
    """Read a prompt, whose LoRA tags were taken out.

    Raises:
        PromptError: Brackets are not balanced, a weight is out of range, or there are too many parts.
    """
    if not _HAS_SYNTAX.search(text):
        return Prompt((((Words(_tidy(text)),) if _tidy(text) else (), 1.0),), Uses())
    return _Reader(text).whole()


class _Reader:
    """Reads one prompt by descent."""

    def __init__(self, text: str):
        self._signs = [(found[0], found.start() + 1) for found in _SIGN.finditer(text)]
        self._at = 0
        self._depth = 0
        self._uses: dict[str, int] = {}
        self._breaks = 0

    def whole(self) -> Prompt:
        parts: list[tuple[Nodes, float]] = []
        while True:
            nodes = self._nodes("")
            sign, column = self._here()
            if sign in (")", "]"):
                raise PromptError(f"{sign} closes no bracket", column)
            nodes, weight = _weight_at_end(nodes) if sign == "AND" or parts else (nodes, 1.0)
            if not 0 <= weight <= MOST_WEIGHT:
                raise PromptError(f"a weight of {weight:g} behind AND; weights are in 0 … {MOST_WEIGHT:g}", column or None)
            parts.append((nodes, weight))
            if len(parts) + self._breaks > MOST_PARTS:
                raise PromptError(f"BREAK and AND make more than {MOST_PARTS} parts", column or None)
            if sign != "AND":
                break
            self._note("ands", column)
            self._at += 1
        for nodes, _ in parts:
            _check_products(nodes, 1.0)
        return Prompt(tuple(parts), Uses(**self._uses))

    def _here(self) -> tuple[str, int]:
        return self._signs[self._at] if self._at < len(self._signs) else ("", 0)

    def _note(self, use: str, column: int) -> None:
        self._uses.setdefault(use, column)

    def _nodes(self, ends: str) -> Nodes:
        """Return the nodes up to a sign that ends them, which stays, or to the end of the text."""
        nodes: list[Node] = []
        while (sign := self._here()[0]) and not (sign in ")]" or (len(sign) == 1 and sign in ends)):
            _, column = self._here()
            if sign == "AND":
                if self._depth:
                    raise PromptError("AND within brackets; it joins whole prompts", column)
                break
            if sign in ("(", "["):
                self._depth += 1
                if self._depth > MOST_DEPTH:
                    raise PromptError(f"more than {MOST_DEPTH} brackets within each other", column)
                self._at += 1
                nodes.append(self._round(column) if sign == "(" else self._square(column))
                self._depth -= 1
                continue
            self._at += 1
            if sign == "BREAK":
                self._note("breaks", column)
                self._breaks += 1
                nodes.append(Break())
            else:
                nodes.append(Words(sign[1:] if sign.startswith("\\") else sign))
        return _joined(nodes)

    def _close(self, sign: str, column: int) -> None:
        found, at = self._here()
        if found != sign:
            opening = "(" if sign == ")" else "["
            raise PromptError(f"{opening} is not closed" if not found else f"{found} where {sign} would close", at or column)
        self._at += 1

    def _round(self, column: int) -> Node:
        nodes = self._nodes("")
        self._close(")", column)
        self._note("weights", column)
        inner, weight = _weight_at_end(nodes)
        if inner is nodes:
            return Weighted(nodes, UP, column)
        if not 0 <= weight <= MOST_WEIGHT:
            raise PromptError(f"a weight of {weight:g}; weights are in 0 … {MOST_WEIGHT:g}", column)
        return Weighted(inner, weight, column)

    def _square(self, column: int) -> Node:
        options, colons = [[self._nodes(":|")]], 0
        while (sign := self._here()[0]) in ("|", ":"):
            self._at += 1
            if sign == "|":
                options.append([self._nodes(":|")])
            else:
                colons += 1
                options[-1].append(self._nodes(":|"))
        self._close("]", column)
        whole = [_joined([node for nodes in _with_colons(one) for node in nodes]) for one in options]
        if len(options) > 1:
            self._note("changes", column)
            return Alternating(tuple(whole), column)
        fields = options[0]
        when = _number(fields[-1]) if 2 <= len(fields) <= 3 else None
        if when is not None and when >= 0:
            self._note("changes", column)
            before, after = (fields[0], fields[1]) if len(fields) == 3 else ((), fields[0])
            return Scheduled(before, after, when, column)
        self._note("weights", column)
        return Weighted(whole[0], DOWN, column)


def _check_products(nodes: Nodes, weight: float) -> None:
    """Raise PromptError where brackets within each other make a weight that is too large."""
    for node in nodes:
        match node:
            case Weighted():
                if (product := weight * node.factor) > MOST_WEIGHT:
                    raise PromptError(f"a weight of {product:g}; weights are in 0 … {MOST_WEIGHT:g}", node.column)
                _check_products(node.nodes, product)
            case Scheduled():
                _check_products((*node.before, *node.after), weight)
            case Alternating():
                for option in node.options:
                    _check_products(option, weight)


def _with_colons(fields: Iterable[Nodes]) -> Iterator[Nodes]:
    for number, nodes in enumerate(fields):
        if number:
            yield (Words(":"),)
        yield nodes


def _joined(nodes: Iterable[Node]) -> Nodes:
    made: list[Node] = []
    for node in nodes:
        if isinstance(node, Words) and made and isinstance(made[-1], Words):
            made[-1] = Words(made[-1].text + node.text)
        else:
            made.append(node)
    return tuple(made)


def _number(nodes: Nodes) -> float | None:
    if len(nodes) == 1 and isinstance(nodes[0], Words) and (found := _NUMBER.fullmatch(nodes[0].text)):
        return float(found[1])
    return None


def _weight_at_end(nodes: Nodes) -> tuple[Nodes, float]:
    """Return nodes without the weight behind their last colon, and the weight; the same nodes and 1 where there is none."""
    if nodes and isinstance(last := nodes[-1], Words):
        text, colon, said = last.text.rpartition(":")
        if colon and (found := _NUMBER.fullmatch(said)):
            return (*nodes[:-1], Words(text)), float(found[1])
    return nodes, 1.0


def _part(nodes: Nodes, of_all: float, step: int, steps: int) -> Part:
    """Return a part at a step, with the chunks that BREAK divides."""
    chunks: list[list[tuple[str, float]]] = [[]]
    said = []
    for text, weight in _flat(nodes, 1.0, step, steps):
        said.append(" " if text is None else text)
        if text is None:
            chunks.append([])
        elif chunks[-1] and chunks[-1][-1][1] == weight:
            chunks[-1][-1] = (chunks[-1][-1][0] + text, weight)
        else:
            chunks[-1].append((text, weight))
    return Part(tuple(_spaced(fragments) for fragments in chunks), of_all, _tidy("".join(said)))


def _spaced(fragments: list[tuple[str, float]]) -> Fragments:
    """Return fragments without those that are white space, which no tokenizer reads, and of equal weights as one."""
    made: list[tuple[str, float]] = []
    for text, weight in fragments:
        if not text.strip():
            if made:
                made[-1] = (f"{made[-1][0]} ", made[-1][1])
        elif made and made[-1][1] == weight:
            made[-1] = (made[-1][0] + text, weight)
        else:
            made.append((text, weight))
    return tuple((_tidy(text), weight) for text, weight in made)


def _flat(nodes: Nodes, weight: float, step: int, steps: int) -> Iterator[tuple[str | None, float]]:
    for node in nodes:
        match node:
            case Words():
                yield node.text, weight
            case Break():
                yield None, weight
            case Weighted():
                yield from _flat(node.nodes, weight * node.factor, step, steps)
            case Scheduled():
                yield from _flat(node.before if step <= _last_before(node, steps) else node.after, weight, step, steps)
            case Alternating():
                yield from _flat(node.options[(step - 1) % len(node.options)], weight, step, steps)


def _said(nodes: Nodes, steps: int) -> Iterator[str]:
    for node in nodes:
        match node:
            case Words():
                yield node.text
            case Break():
                yield " "
            case Weighted():
                yield from _said(node.nodes, steps)
            case Scheduled():
                yield from _said(node.before if steps <= _last_before(node, steps) else node.after, steps)
            case Alternating():
                for number, option in enumerate(node.options):
                    yield " " if number else ""
                    yield from _said(option, steps)


def _last_before(node: Scheduled, steps: int) -> int:
    """Return the last of so many steps, counted from 1, that still has what stands first; 0: none has."""
    return int(min(steps, node.when * steps if node.when < 1 else node.when))


def _tidy(text: str) -> str:
    return " ".join(text.split())


def without_loras(text: str) -> tuple[str, tuple[tuple[Lora, int], ...]]:
    """Return a prompt without its tags <lora:name:weight>, and the LoRAs that they name, each with the column of its tag.

    Raises:
        PromptError: A tag is no LoRA's, or has no usable weight, or names a LoRA again.
    """
    loras: dict[str, tuple[Lora, int]] = {}
    for found in _TAG.finditer(text):
        column = found.start() + 1
        kind, said = found[1].lower(), [one.strip() for one in found[2].split(":")]
        if kind not in ("lora", "lyco"):
            if kind == "hypernet":
                raise PromptError("<hypernet:…> is not read; LoRAs are", column)
            continue
        name, weights = said[0], said[1:]
        numbers = [_NUMBER.fullmatch(one) for one in weights]
        if not name or len(weights) > 2 or not all(numbers):
            raise PromptError(f"{shown(found[0], 60)}: write it as <lora:name:weight>", column)
        values = {float(one[1]) for one in numbers if one} or {1.0}
        if len(values) > 1:
            raise PromptError(f"{shown(found[0], 60)}: has two weights, and a LoRA has one here", column)
        if not -10 <= (scale := values.pop()) <= 10:
            raise PromptError(f"{shown(found[0], 60)}: its weight is not in -10 … 10", column)
        if name in loras:
            raise PromptError(f"{shown(found[0], 60)}: names the LoRA a second time", column)
        if len(name) > MAX_NAME:
            raise PromptError(f"{shown(found[0], 60)}: its name is longer than {MAX_NAME} characters", column)
        loras[name] = Lora(name=name, scale=scale), column
    if not loras:
        return text, ()
    cleaned = _TAG.sub(lambda found: "" if found[1].lower() in ("lora", "lyco") else found[0], text)
    return _tidy(cleaned), tuple(loras.values())


def plain_uses(prompt: Prompt) -> Uses:
    """Return the constructs that a prompt uses, without weights that change nothing."""
    at = prompt.at(1, 1)
    same = all(weight == 1.0 for part in at for fragments in part.chunks for _, weight in fragments)
    return replace(prompt.uses, weights=None) if same and prompt.uses.changes is None else prompt.uses
