"""Makes prompts of templates: choices {a|b}, wildcards __name__ and variables ${x}, as sd-dynamic-prompts documents them.

A template is parsed once into a tree. The tree is walked once for each prompt, and each choice on the way is asked for: at random,
or, for all prompts of a template, in the order of an odometer.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from promptmill.configs.errors import nearest, quoted
from promptmill.configs.parameters import MAX_CELLS, MAX_PROMPT
from promptmill.manifests.prompt_errors import PromptError
from promptmill.manifests.wildcards import NAMED, Line, WildcardError, circle, lines_of

MOST_DEPTH = 40  # of brackets within each other, and of wildcards and variables
MOST_WITHIN = 100  # of all of these within each other, which is far from what Python's stack holds
MOST_STEPS = 100_000  # of one walk; a template that doubles a variable again and again takes more
MOST_WALKS = MAX_CELLS  # of one template
OF_OPTIONS = 20  # options of a choice that are copied in the time of a step
SEPARATOR = ", "
SIGNS = re.compile(r"[{}]|__|\$\{|^\s*#", re.MULTILINE)  # a text without any of these is no template
_COMMENT = re.compile(r"^[ \t]*#[^\n]*", re.MULTILINE)
_TEXT = re.compile(r"(?:[^\\{}|$_%?@#\n]|\\.)+", re.DOTALL)
_BOUND = re.compile(r"\s*(?:(\d{1,4})|(\d{0,4})-(\d{0,4}))\s*\$\$")
_WEIGHT = re.compile(r"\s*(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})\s*::")
_NAME = re.compile(r"\s*([A-Za-z_][\w-]{0,99})\s*")

_Option = TypeVar("_Option")

# Chooses one of some options by their weights, or of so many alike: returns its number, counted from 0.
Choose = Callable[[Sequence[float] | int], int]


@dataclass(frozen=True)
class Text:
    """Holds text that stands for itself."""

    text: str


@dataclass(frozen=True)
class Choice:
    """Holds a choice of `least` to `most` of its options; None: of as many as there are."""

    options: "tuple[tuple[float, Nodes], ...]"
    least: int
    most: int | None
    separator: str
    column: int


@dataclass(frozen=True)
class Wildcard:
    """Holds the name of a wildcard."""

    name: str
    column: int


@dataclass(frozen=True)
class Variable:
    """Holds the use of a variable, and what stands for a variable that has no value."""

    name: str
    default: "Nodes | None"
    column: int


@dataclass(frozen=True)
class Assignment:
    """Holds the value of a variable: expanded at once, or at each use; `fills` leaves a value that is there."""

    name: str
    value: "Nodes"
    at_once: bool
    fills: bool


Node = Text | Choice | Wildcard | Variable | Assignment
Nodes = tuple[Node, ...]


def is_template(text: str) -> bool:
    """Return whether a text has any sign of a template."""
    return SIGNS.search(text) is not None


def is_comment(template: str) -> bool:
    """Return whether all that a template says is comments."""
    return not _COMMENT.sub("", template).strip()


def parsed(template: str, place: str = "") -> Nodes:
    """Return the tree of a template.

    Args:
        template: The template.
        place: The words that begin a message, where the template is a line of a wildcard.

    Raises:
        PromptError: Brackets are not balanced, or a construct is none that is read.
    """
    return _parsed(template, place) if is_template(template) else (Text(template),)


@lru_cache(maxsize=4096)
def _parsed(template: str, place: str) -> Nodes:
    return _Parser(template, place).whole()


class _Parser:
    """Parses one template by descent; positions count from 0."""

    def __init__(self, template: str, place: str):
        # Comments become spaces, so that columns stay.
        self._text = _COMMENT.sub(lambda found: " " * len(found[0]), template)
        self._place = place
        self._at = 0
        self._depth = 0

    def whole(self) -> Nodes:
        nodes = self._sequence("")
        if self._at < len(self._text):
            raise self._error("} closes no bracket", self._at)
        return nodes

    def _error(self, said: str, at: int) -> PromptError:
        return PromptError(said, at + 1, self._place)

    def _here(self, sign: str) -> bool:
        return self._text.startswith(sign, self._at)

    def _sequence(self, ends: str) -> Nodes:
        """Return the nodes up to one of the signs that end them, which stays, or to the end of the text."""
        nodes: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in ends + "}":
            at = self._at
            if (found := _TEXT.match(self._text, at)) is not None:
                self._at = found.end()
                nodes.append(Text(found[0]))
            elif self._here("${"):
                nodes.append(self._deeper(self._variable))
            elif self._here("{"):
                nodes.append(self._deeper(self._choice))
            elif (wild := NAMED.match(self._text, at)) is not None:
                self._at = wild.end()
                nodes.append(self._wildcard(wild[1], at))
            elif self._here("%{") or self._here("?{"):
                raise self._error(f"{self._text[at]}{{…}} is not read; choices, wildcards and variables are", at)
            else:
                self._at += 1
                nodes.append(Text(self._text[at]))
        return _joined(nodes)

    def _deeper(self, read: Callable[[], Node]) -> Node:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise self._error(f"more than {MOST_DEPTH} brackets within each other", self._at)
        node = read()
        self._depth -= 1
        return node

    def _wildcard(self, name: str, at: int) -> Wildcard:
        if name.startswith(("~", "@")) or "(" in name:
            said = "a parameter" if "(" in name else f"the sampler {name[0]}"
            raise self._error(f"wildcard {quoted(name)}: {said} is not read", at)
        return Wildcard(name, at + 1)

    def _choice(self) -> Choice:
        begin = self._at
        self._at += 1
        if self._text[self._at : self._at + 1] in ("~", "@"):
            raise self._error(f"the sampler {self._text[self._at]} of a choice is not read", self._at)
        least, most, separator = 1, 1, SEPARATOR
        bounded: int | None = most
        if (found := _BOUND.match(self._text, self._at)) is not None:
            self._at = found.end()
            exact, low, high = found.groups()
            least = int(exact or low or 1)
            bounded = int(exact) if exact else (int(high) if high else None)
            if bounded is not None and least > bounded:
                raise self._error(f"{least} to {bounded} options are none", begin)
            ends = self._text.find("$$", self._at)
            between = self._text[self._at : ends] if ends >= 0 else "{"
            if not re.search(r"[{}|]", between):
                separator, self._at = between, ends + 2
        options = []
        while True:
            weight = 1.0
            if (said := _WEIGHT.match(self._text, self._at)) is not None:
                weight, self._at = float(said[1]), said.end()
            options.append((weight, _stripped(self._sequence("|"))))
            if not self._here("|"):
                break
            self._at += 1
        self._close(begin, "{")
        if not any(weight for weight, _ in options):
            raise self._error("the weights of a choice are all 0", begin)
        return Choice(tuple(options), least, bounded, separator, begin + 1)

    def _variable(self) -> Node:
        begin = self._at
        self._at += 2
        name = _NAME.match(self._text, self._at)
        if name is None:
            raise self._error("${ without the name of a variable", begin)
        self._at = name.end()
        said = ""
        for sign in ("?=!", "=!", "?=", "=", ":"):
            if self._here(sign):
                said, self._at = sign, self._at + len(sign)
                break
        value = _stripped(self._sequence("")) if said else ()
        self._close(begin, "${")
        if said in ("", ":"):
            return Variable(name[1], value if said else None, begin + 1)
        return Assignment(name[1], value, said.endswith("!"), said.startswith("?"))

    def _close(self, begin: int, opening: str) -> None:
        if not self._here("}"):
            if self._at < len(self._text):
                raise self._error(f"{quoted(self._text[self._at])} is not read within {opening}…}}", self._at)
            raise self._error(f"{opening} is not closed", begin)
        self._at += 1


def _joined(nodes: Sequence[Node]) -> Nodes:
    made: list[Node] = []
    for node in nodes:
        if isinstance(node, Text) and made and isinstance(made[-1], Text):
            made[-1] = Text(made[-1].text + node.text)
        else:
            made.append(node)
    return tuple(made)


def _stripped(nodes: Nodes) -> Nodes:
    """Return the nodes of an option without the white space around them."""
    made = list(nodes)
    if made and isinstance(made[0], Text):
        made[0] = Text(made[0].text.lstrip())
    if made and isinstance(made[-1], Text):
        made[-1] = Text(made[-1].text.rstrip())
    return tuple(node for node in made if node != Text(""))


@dataclass
class _Walk:
    """Holds the state of one walk over a template."""

    choose: Choose
    folder: str | None
    steps: int = 0
    length: int = 0
    depth: int = 0
    variables: dict[str, str | Nodes] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)  # the wildcards and variables whose values are being expanded

    def text(self, nodes: Nodes, place: str = "") -> str:
        self.depth += 1
        if self.depth > MOST_WITHIN:
            raise PromptError(f"more than {MOST_WITHIN} brackets, wildcards and variables within each other", place=place)
        said = "".join([self._of(node, place) for node in nodes])
        self.depth -= 1
        return said

    def _of(self, node: Node, place: str) -> str:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise PromptError(f"expands in more than {MOST_STEPS:,} steps", place=place)
        match node:
            case Text():
                self.length += len(node.text)
                if self.length > 4 * MAX_PROMPT:
                    raise PromptError(f"expands to more than {MAX_PROMPT:,} characters", place=place)
                return node.text
            case Choice():
                return self._chosen(node, place)
            case Wildcard():
                lines = self._lines(node, place)
                return self._line(node, lines[self.choose(len(lines))], place)
            case Variable():
                return self._value(node, place)
            case Assignment():
                if not (node.fills and node.name in self.variables):
                    self.variables[node.name] = self.text(node.value, place) if node.at_once else node.value
                return ""

    def _lines(self, node: Wildcard, place: str) -> tuple[Line, ...]:
        try:
            lines = lines_of(self.folder, node.name)
            if (way := circle(self.folder, node.name)) is not None:
                raise WildcardError(f"wildcard {quoted(node.name)}: an endless recursion: {way}")
        except WildcardError as error:
            raise PromptError(str(error), node.column, place) from None
        return lines

    def _line(self, node: Wildcard, line: Line, place: str) -> str:
        return self._within(f"__{node.name}__", parsed(line, line.place), line.place, node.column, place)

    def _value(self, node: Variable, place: str) -> str:
        value = self.variables.get(node.name, node.default)
        if value is None:
            raise PromptError(
                f"${{{node.name}}} has no value{nearest(node.name, list(self.variables))}; write ${{{node.name}=…}} before it",
                node.column,
                place,
            )
        if isinstance(value, str):
            return self._of(Text(value), place)
        return self._within(f"${{{node.name}}}", value, place, node.column, place)

    def _within(self, name: str, nodes: Nodes, inner: str, column: int, place: str) -> str:
        if name in self.open or len(self.open) > MOST_DEPTH:
            raise PromptError(f"an endless recursion: {' in '.join([name, *reversed(self.open)])[:300]}", column, place)
        self.open.append(name)
        text = self.text(nodes, inner)
        self.open.pop()
        return text

    def _chosen(self, node: Choice, place: str) -> str:
        wild = node.options[0][1][0] if len(node.options) == 1 and len(node.options[0][1]) == 1 else None
        if isinstance(wild, Wildcard):
            # Of a choice of one wildcard the lines are what is chosen among, none of them twice.
            drawn = self._drawn(node, self._lines(wild, place), None)
            return node.separator.join([self._line(wild, line, place) for line in drawn])
        options = [(weight, nodes) for weight, nodes in node.options if weight]
        chosen = self._drawn(node, [nodes for _, nodes in options], [weight for weight, _ in options])
        return node.separator.join([self.text(nodes, place) for nodes in chosen])

    def _drawn(self, node: Choice, options: Sequence[_Option], weights: Sequence[float] | None) -> Iterator[_Option]:
        """Yield the options of a choice that are chosen, one after another; None: they are alike."""
        most = len(options) if node.most is None else min(node.most, len(options))
        least = min(node.least, most)
        count = least + (self.choose(most - least + 1) if most > least else 0)
        if count == 1:
            yield options[self.choose(len(options) if weights is None else weights)]
            return
        # Each of the options is copied, and a template can have many choices of long files.
        self.steps += len(options) // OF_OPTIONS
        left, weighed = list(options), None if weights is None else list(weights)
        for _ in range(count):
            number = self.choose(len(left) if weighed is None else weighed)
            if weighed is not None:
                del weighed[number]
            yield left.pop(number)


def at_random(template: str, folder: str | None, key: str) -> str:
    """Return one prompt of a template.

    Args:
        template: The template.
        folder: The folder of wildcards, or None.
        key: All that the choices depend on besides.

    Raises:
        PromptError: The template cannot be read or expanded.
    """
    tree = parsed(template)
    begins, drawn = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8), 0

    def choose(weights: Sequence[float] | int) -> int:
        nonlocal drawn
        drawn += 1
        one = begins.copy()
        one.update(f"\n{drawn}".encode())
        share = (int.from_bytes(one.digest(), "big") >> 11) / 2**53
        if isinstance(weights, int):
            return min(int(share * weights), weights - 1)
        share *= sum(weights)
        for number, weight in enumerate(weights):
            share -= weight
            if share < 0:
                return number
        return max(number for number, weight in enumerate(weights) if weight)

    return _tidy(_Walk(choose, folder).text(tree))


def all_of(template: str, folder: str | None) -> Iterator[str]:
    """Yield every prompt that a template can make, each once.

    Raises:
        PromptError: The template cannot be read or expanded, or has too many prompts.
    """
    tree = parsed(template)
    seen: set[str] = set()
    digits: list[list[int]] = []  # what was chosen, and of how many, in the order of the choices
    steps = 0
    for walks in range(MOST_WALKS + 1):
        if walks == MOST_WALKS:
            raise PromptError(f"makes more than {MOST_WALKS:,} prompts; choose at random, or write fewer choices")
        place = 0

        def choose(weights: Sequence[float] | int) -> int:
            nonlocal place
            place += 1
            if place > len(digits):
                digits.append([0, weights if isinstance(weights, int) else len(weights)])
            return digits[place - 1][0]

        walk = _Walk(choose, folder)
        text = _tidy(walk.text(tree))
        steps += walk.steps
        if steps > 100 * MOST_STEPS:
            raise PromptError(f"expands in more than {100 * MOST_STEPS:,} steps")
        if text not in seen:
            seen.add(text)
            yield text
        while digits and digits[-1][0] + 1 == digits[-1][1]:
            digits.pop()
        if not digits:
            return
        digits[-1][0] += 1


def _tidy(text: str) -> str:
    tidied = " ".join(text.split())
    if len(tidied) > MAX_PROMPT:
        raise PromptError(f"expands to {len(tidied):,} characters, and a prompt has at most {MAX_PROMPT:,}")
    return tidied
