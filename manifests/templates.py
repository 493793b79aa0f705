"""Renders templates of made manifests by Jinja: texts with the values of a row's other columns, and nothing that could not end.

What a template may do is a list: print expressions, choose by if, apply some filters. Loops, attributes, calls and imports are not
among it, so that a template of somebody else's config neither runs code nor takes for ever.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, nodes
from jinja2.filters import FILTERS as FILTERS_OF_JINJA
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from promptmill.configs.errors import nearest, quoted
from promptmill.configs.parameters import MAX_PROMPT

FILTERS = (
    *("abs", "capitalize", "default", "first", "float", "int", "last"),
    *("length", "lower", "round", "string", "title", "trim", "upper"),
)
TESTS = ("defined", "divisibleby", "eq", "even", "ge", "gt", "in", "le", "lt", "ne", "none", "number", "odd", "string")
ALLOWED = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.If,
    nodes.CondExpr,
    nodes.Filter,
    nodes.Test,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Add,
    nodes.Sub,
    nodes.Mul,
    nodes.Div,
    nodes.FloorDiv,
    nodes.Mod,
    nodes.Neg,
    nodes.Pos,
    nodes.Concat,
    nodes.Tuple,
    nodes.List,
    nodes.Keyword,
)
NAMES = {
    nodes.For: "a loop",
    nodes.Getattr: "an attribute",
    nodes.Getitem: "an index",
    nodes.Call: "a call",
    nodes.Pow: "a power",
    nodes.Macro: "a macro",
    nodes.Include: "an include",
    nodes.Import: "an import",
    nodes.Assign: "a set",
}


MOST_DIGITS = 15  # that `round` rounds to: Jinja's own raises 10 to their number, which may take for ever


class TemplateError(ValueError):
    """Reports a template that cannot be used, or not with a row's values; the message is one line."""


class _Environment(ImmutableSandboxedEnvironment):
    """Renders expressions, and refuses to multiply texts: a text times a number may have any length."""

    intercepted_binops = frozenset({"*", "%", "+"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator != "+" and not all(isinstance(side, int | float) for side in (left, right)):
            raise TemplateError(f"{operator} is for numbers alone")
        return super().call_binop(context, operator, left, right)


def _round(value: Any, precision: Any = 0, method: Any = "common") -> Any:
    """Round a number as Jinja's filter does, to some digits at most."""
    if not isinstance(precision, int) or abs(precision) > MOST_DIGITS:
        raise TemplateError(f"round: rounds to at most {MOST_DIGITS} digits")
    return FILTERS_OF_JINJA["round"](value, precision, method)


def _environment() -> _Environment:
    made = _Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    made.filters = {name: made.filters[name] for name in FILTERS} | {"round": _round}
    made.tests = {name: made.tests[name] for name in TESTS}
    made.globals = {}
    return made


_ENVIRONMENT = _environment()


def is_template(text: str) -> bool:
    """Return whether a text has anything that Jinja would replace."""
    return "{{" in text or "{%" in text or "{#" in text


def compiled(text: str, columns: Collection[str]) -> tuple[Callable[[Mapping[str, Any]], str], frozenset[str]]:
    """Compile a template; return the function that renders the template with a row's values, and the columns that it reads.

    Args:
        text: The template.
        columns: The columns that the template may read.

    Raises:
        TemplateError: The template is no template, names a column that is not there, or does what none may.
    """
    try:
        template, reads = _template(text, columns)
    except TemplateSyntaxError as error:
        raise TemplateError(f"line {error.lineno}: {error.message}") from None
    except (RecursionError, SyntaxError, MemoryError):  # of Jinja's parser, or of Python's for what Jinja makes
        raise TemplateError("is nested too deeply, or has too long an expression") from None

    def render(values: Mapping[str, Any]) -> str:
        try:
            made = template.render(values)
        except TemplateError:
            raise
        except Exception as error:  # whatever the values make of an expression concerns this row alone
            raise TemplateError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
        if len(made) > MAX_PROMPT:
            raise TemplateError(f"makes {len(made):,} characters, and a text has at most {MAX_PROMPT:,}")
        return made

    return render, reads


def _template(text: str, columns: Collection[str]) -> tuple[Template, frozenset[str]]:
    """Return a template that does what it may, and the columns that the template reads."""
    tree = _ENVIRONMENT.parse(text)
    for node in tree.find_all(nodes.Node):
        if not isinstance(node, ALLOWED):
            what = next((said for kind, said in NAMES.items() if isinstance(node, kind)), f"a {type(node).__name__.lower()}")
            raise TemplateError(f"line {node.lineno}: holds {what}; templates have expressions, filters and if alone")
        if isinstance(node, nodes.Filter) and node.name not in FILTERS:
            raise TemplateError(f"line {node.lineno}: no filter {quoted(node.name)}{nearest(node.name, FILTERS)}")
        if isinstance(node, nodes.Test) and node.name not in TESTS:
            raise TemplateError(f"line {node.lineno}: no test {quoted(node.name)}{nearest(node.name, TESTS)}")
    reads = frozenset(find_undeclared_variables(tree))
    for name in sorted(reads - set(columns)):
        line, column = _place(text, name)
        raise TemplateError(f"line {line}, column {column}: no column {quoted(name)}{nearest(name, columns)}")
    return _ENVIRONMENT.from_string(text), reads


def _place(text: str, name: str) -> tuple[int, int]:
    """Return the line and the column, from 1, at which a template names a variable; the beginning where that is not found."""
    at, inside = 0, False
    while at < len(text):
        if text.startswith(("{{", "{%"), at):
            inside = True
        elif text.startswith(("}}", "%}"), at):
            inside = False
        before, after = text[at - 1 : at], text[at + len(name) : at + len(name) + 1]
        whole = not (before.isalnum() or before == "_") and not (after.isalnum() or after == "_")
        if inside and whole and text.startswith(name, at):
            return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        at += 1
    return 1, 1
