"""Writes JSON files that hold the hash of themselves, so that a changed byte is found without another file."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "sha256"  # the last key


def sealed(values: Mapping[str, Any]) -> bytes:
    """Return values, at least one, as JSON whose last key is the SHA-256 of all that stands before it."""
    content = json.dumps(values, indent=1, ensure_ascii=False).removesuffix("\n}").encode()
    return content + _seal(content)


def is_whole(content: bytes) -> bool:
    """Return whether a file is as `sealed` wrote it."""
    body = content[: -len(_seal(b""))]
    return body + _seal(body) == content


def _seal(content: bytes) -> bytes:
    return f',\n "{SEAL}": "{hashlib.sha256(content).hexdigest()}"\n}}\n'.encode()
