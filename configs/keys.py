"""Looks keys up in the schema: the forms that a key's value may have, and the keys within a path of pydantic's."""

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

Forms = tuple[Any, ...]  # the forms that a value may have: types, generic types and models, without unions


def forms_of(annotation: Any) -> Forms:
    """Return the forms that an annotation allows; a literal counts as the type of its values."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return forms_of(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return tuple(form for part in get_args(annotation) for form in forms_of(part))
    if origin is Literal:
        return tuple(dict.fromkeys(type(value) for value in get_args(annotation)))
    return (annotation,)


def within(forms: Forms, key: str | int) -> Forms:
    """Return the forms of the value at a key or an index; none where no value can be there."""
    found: list[Any] = []
    for form in forms:
        origin, arguments = get_origin(form), get_args(form)
        if _is_model(form):
            if key in form.model_fields:
                found += forms_of(form.model_fields[key].annotation)
        elif origin is dict and isinstance(key, str):
            found += forms_of(arguments[1])
        elif origin in (tuple, list) and str(key).isdecimal():
            found += forms_of(arguments[0])
    return tuple(found)


def is_text(forms: Forms) -> bool:
    """Return whether a value of these forms is text, however it looks: no number and no boolean is among the forms."""
    return str in forms and not {int, float, bool} & {form for form in forms if isinstance(form, type)}


def may_be_left_out(forms: Forms) -> bool:
    """Return whether null is one of the forms."""
    return NoneType in forms or None in forms


def keys_of(forms: Forms) -> list[str]:
    """Return the keys of the models among the forms."""
    return list(dict.fromkeys(key for form in forms if _is_model(form) for key in form.model_fields))


def key_path(forms: Forms, path: Sequence[str | int], last_is_key: bool = False) -> tuple[list[str], Forms]:
    """Return the keys in a path of pydantic's, and the forms of the value there.

    Pydantic's path also names which form of several it tried; a mapping of a certain kind has the forms of that kind only.

    Args:
        forms: The forms of the whole value.
        path: The path.
        last_is_key: Whether the last part is a key that the schema does not know; then the forms are of the value that holds the
            key.
    """
    keys: list[str] = []
    for number, part in enumerate(path):
        inside = within(forms, part)
        if inside:
            keys.append(str(part))
            forms = inside
        elif last_is_key and number == len(path) - 1:
            keys.append(str(part))
        else:
            forms = tuple(form for form in forms if _is_model(form) and part in _kinds(form)) or forms
    return keys, forms


def _is_model(form: Any) -> bool:
    return isinstance(form, type) and issubclass(form, BaseModel)


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind else ()
