"""Checks of a Kubernetes object against an OpenAPI schema as the API server reads it: what it does not know is an error here."""

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend


def problems(schema: dict[str, Any], found: Any) -> list[str]:
    """What is wrong with an object, a line each, beginning with where."""
    errors = sorted(STRICT(schema).iter_errors(found), key=lambda error: error.json_path)
    return [f"{error.json_path}: {error.message}" for error in errors]


def crd_schema(crd: dict[str, Any], version: str) -> dict[str, Any]:
    """The schema of a version of a custom resource."""
    [schema] = [each["schema"]["openAPIV3Schema"] for each in crd["spec"]["versions"] if each["name"] == version and each["served"]]
    # A CRD leaves the object's own metadata to the API server.
    metadata = {"type": "object", "required": ["name"], "properties": {"labels": MAP, "annotations": MAP}}
    metadata["properties"] |= {name: {"type": "string"} for name in ("name", "namespace", "generateName")}
    return {**schema, "properties": {**schema["properties"], "metadata": metadata}}


MAP = {"type": "object", "additionalProperties": {"type": "string"}}


def _type(validator: Any, kind: str, found: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    if found is None and schema.get("nullable"):
        return
    yield from Draft202012Validator.VALIDATORS["type"](validator, kind, found, schema)
    if kind != "object" or not isinstance(found, dict):
        return
    # The API server drops what it does not know, with no more than a warning.
    if "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    for name in found:
        if name not in schema.get("properties", {}):
            yield ValidationError(f"{name!r} is not known here")


def _int_or_string(validator: Any, given: bool, found: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    if given and (isinstance(found, bool) or not isinstance(found, int | str)):
        yield ValidationError(f"{found!r} is neither an integer nor a string")


def _list_type(validator: Any, kind: str, found: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    if kind == "atomic" or not isinstance(found, list):
        return
    names = schema.get("x-kubernetes-list-map-keys", ())
    keys = [[item.get(name) for name in names] if kind == "map" else item for item in found]
    for key in keys:
        if keys.count(key) > 1:
            yield ValidationError(f"{key} is there twice")


def _rules(validator: Any, rules: list[dict[str, str]], found: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    # Written in CEL, which nothing here evaluates: whoever begins to use such a field has to read the rules.
    yield ValidationError(f"has rules that are not checked here: {'; '.join(rule.get('message', rule['rule']) for rule in rules)}")


STRICT: Any = extend(
    Draft202012Validator,
    {
        "type": _type,
        "x-kubernetes-int-or-string": _int_or_string,
        "x-kubernetes-list-type": _list_type,
        "x-kubernetes-validations": _rules,
    },
)
