"""Reads YAML by the rules of YAML 1.2's core schema, and by the config's schema of each key.

PyYAML follows YAML 1.1, where 010 is 8, 1:30 is 90 and no is false. Here 010 is 10, a number has no colon, and only true and false
are booleans. Where a key takes text, a value is the text as it is written, such as a commit hash of digits alone. A value in quotes
is text everywhere.
"""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from promptmill.configs.keys import Forms, is_text, keys_of, may_be_left_out, within

MOST_VALUES = 1_000_000  # in one text, since aliases of aliases could stand for any number of values
TAG = "tag:yaml.org,2002:"
NULL = re.compile(r"~|null|Null|NULL|")
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
RULES = (("null", NULL), ("bool", BOOL), ("int", INT), ("float", FLOAT), ("merge", re.compile("<<")))
CORE = {None: [(TAG + name, re.compile(f"(?:{rule.pattern})\\Z")) for name, rule in RULES]}


class _Core(yaml.SafeLoader):
    """Loads YAML safely by the core schema's rules for the types of scalars."""

    yaml_implicit_resolvers = CORE


class _Dumper(yaml.SafeDumper):
    """Dumps YAML safely, by the rules of YAML 1.1 and of the core schema."""

    yaml_implicit_resolvers = yaml.SafeDumper.yaml_implicit_resolvers | CORE


def parse(text: str, forms: Forms = ()) -> Any:
    """Return the value of a YAML document.

    Args:
        text: The document.
        forms: The forms that the value may have; none where nothing is known.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: The text is no YAML, or has a key twice, or is larger than a config can be.
    """
    node = _document(text)
    return None if node is None else _Values().of(node, forms)


def dump(value: Any) -> str:
    """Return a value as YAML, in which a text that a reader might take for another type stands in quotes."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _document(text: str) -> yaml.Node | None:
    loader = _Core(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def parse_setting(text: str, forms: Forms) -> Any:
    """Return the value of a setting: the text as it stands where the key takes text, else the value of the text as YAML.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: As `parse`.
    """
    if not is_text(forms):
        return parse(text, forms)
    quoted = _as_one_quoted(text)
    if quoted is not None:
        return quoted
    if may_be_left_out(forms) and NULL.fullmatch(text.strip()):
        return None
    if len([form for form in forms if form is not type(None)]) > 1 and text.lstrip().startswith("["):
        return parse(text, forms)  # a list of texts, where the key takes a list too
    if keys_of(forms) and text.lstrip().startswith("{"):
        return parse(text, forms)  # keys and values, where the key takes these too
    return text


def _as_one_quoted(text: str) -> str | None:
    """Return the text within the quotes that are around a whole text; None where no quotes are around the whole."""
    if text.strip()[:1] not in ('"', "'"):
        return None
    try:
        node = _document(text)
    except yaml.YAMLError:
        return None
    if isinstance(node, yaml.ScalarNode) and node.style in ("'", '"') and not text[node.end_mark.index :].strip():
        return str(node.value)
    return None


class _Values:
    """Makes values of the nodes of one document."""

    def __init__(self) -> None:
        self._left = MOST_VALUES

    def of(self, node: yaml.Node, forms: Forms) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ConstructorError(None, None, f"more than {MOST_VALUES:,} values", node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, forms)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
            return [self.of(item, within(forms, number)) for number, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
            return self._mapping(node, forms)
        raise ConstructorError(None, None, f"the tag {node.tag!r} is not read", node.start_mark)

    def _mapping(self, node: yaml.MappingNode, forms: Forms) -> dict[str, Any]:
        """Return a mapping whose keys are text as written. A key given twice is an error, since YAML would silently take the
        last.
        """
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key is a word, not a list or a mapping", key.start_mark)
            if key.tag == f"{TAG}merge":
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    found = self.of(source, forms)
                    if not isinstance(found, dict):
                        raise ConstructorError(None, None, "<< takes a mapping, or a list of mappings", value.start_mark)
                    merged = {**found, **merged}
                continue
            if key.value in own:
                raise ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            own[key.value] = self.of(value, within(forms, key.value))
        return {**merged, **own}


def _scalar(node: yaml.ScalarNode, forms: Forms) -> Any:
    kind, text = node.tag.removeprefix(TAG), node.value
    if kind == "null":
        return None
    if kind == "str" or (node.style is None and is_text(forms)):
        return text
    if kind == "bool" and BOOL.fullmatch(text):
        return text.lower() == "true"
    if kind == "int" and INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if kind == "float" and FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if kind == "merge":
        return text
    raise ConstructorError(None, None, f"the tag {node.tag!r} is not read, or not with {text!r}", node.start_mark)
