"""Says the caption of an image: its prompt, or the prompt's words where the prompt is written in a syntax."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from promptmill.configs.columns import SYNTAX, WORDS


def caption_of(row: Mapping[str, Any]) -> str:
    """Return the caption of a metadata row, without the brackets and weights of its prompt."""
    # A dataset without the column of syntaxes may carry a column of the manifest by the name of the words.
    return row[WORDS] or "" if row.get(SYNTAX) else row["prompt"] or ""


def captions_of(table: pa.Table) -> Iterator[str]:
    """Yield the captions of the rows of a table of metadata."""
    names = [name for name in ("prompt", SYNTAX, WORDS) if name in table.column_names]
    return map(caption_of, table.select(names).to_pylist())
