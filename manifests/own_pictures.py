"""Writes a request into a picture as text, and makes a row of such a text again: the row makes the same request.

The text is JSON: `promptmill`, the text's format; `request`, the columns of the row that renders this picture alone; `images`, the
SHA-256 of the files that the request names, by column; `model`, what the config says of the model; and `stages`, what the picture
went through.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from promptmill.configs.json_values import parse_json
from promptmill.configs.prompts import PLAIN
from promptmill.manifests.requests import KNOWN_COLUMNS, Request, to_json

FORMAT = 1
# What a picture does not depend on, once it is the only candidate of a request: so no row gets these back.
NOT_WRITTEN = frozenset({"id", "carried", "candidates", "keep", "growing"})
_FOLLOWING = frozenset({"mode"})  # follows from the images of a row
_TAKEN = frozenset(KNOWN_COLUMNS) - NOT_WRITTEN - _FOLLOWING
# Prompts of a request without a syntax are words, whatever the config that reads the picture says of rows without one.
_ABSENT = {"syntax": PLAIN}


class OwnTextError(ValueError):
    """Reports a text of promptmill's in a picture that cannot be read; the message goes on behind the picture's name."""


@dataclass(frozen=True)
class Own:
    """Holds the row that a picture says.

    Attributes:
        values: The row's columns.
        images: SHA-256 of the files of the row's images, in hex, by column.
        unknown: Keys of the request that this promptmill does not know.
    """

    values: Mapping[str, Any]
    images: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


def alone(request: Request, index: int, seed: int) -> Request:
    """Return the request of one candidate alone, whose image is that of the candidate.

    Args:
        request: A request of any number of candidates.
        index: The candidate's, from 0.
        seed: The candidate's.
    """
    varied = None if request.variation_seed is None else (request.variation_seed + index) % 2**32
    return replace(request, seed=seed, variation_seed=varied, candidates=1, keep=1, growing=None)


def request_text(
    request: Request,
    images: Mapping[str, str | None],
    model: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the text that a picture holds.

    Args:
        request: The request of the picture's candidate, as `alone` returns it.
        images: SHA-256 of the request's image files, in hex, by column; other entries are left out.
        model: The model's part of the config, as JSON.
        stages: The stages that the picture went through, likewise.
    """
    said = {name: value for name, value in to_json(request).items() if name not in NOT_WRITTEN and value is not None}
    hashes = {column: sha256 for column, _ in request.images() if (sha256 := images.get(column))}
    written = {"promptmill": FORMAT, "request": said, "images": hashes, "model": model, "stages": list(stages)}
    return json.dumps({name: value for name, value in written.items() if value or name == "request"}, ensure_ascii=False)


def read_request(text: str) -> Own:
    """Return the row that a picture's text says, unchecked.

    Raises:
        OwnTextError: The text is none of promptmill's, is of a later format, or says that it has no request.
    """
    try:
        said = parse_json(text)
    except (ValueError, RecursionError):
        raise OwnTextError("what promptmill wrote into it is no JSON any more") from None
    if not isinstance(said, dict) or type(format := said.get("promptmill")) is not int:
        raise OwnTextError("what promptmill wrote into it was altered")
    if format > FORMAT:
        raise OwnTextError(f"was made by a later promptmill, whose format {format} this one does not know")
    request = said.get("request")
    if not isinstance(request, dict):
        raise OwnTextError("its request did not fit into a JPEG")
    found = said.get("images")
    hashes = {name: sha256 for name, sha256 in found.items() if isinstance(sha256, str)} if isinstance(found, dict) else {}
    values = {name: value for name, value in request.items() if name in _TAKEN}
    return Own({**_ABSENT, **values}, hashes, _unknown(request))


def _unknown(request: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(str(name) for name in request if name not in _TAKEN and name not in _FOLLOWING))
