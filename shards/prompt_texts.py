"""Says the text beside an image, {key}.txt: its prompt, or the prompt's words where the prompt is written in a syntax."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from promptmill.configs.columns import SYNTAX, WORDS


def prompt_text_of(row: Mapping[str, Any]) -> str:
    """Return the prompt of a metadata row, without brackets and weights."""
    # A dataset without the column of syntaxes may carry a column of the manifest by the name of the words.
    return row[WORDS] or "" if row.get(SYNTAX) else row["prompt"] or ""


def prompt_texts_of(table: pa.Table) -> Iterator[str]:
    """Yield the prompts of the rows of a table of metadata."""
    names = [name for name in ("prompt", SYNTAX, WORDS) if name in table.column_names]
    return map(prompt_text_of, table.select(names).to_pylist())
