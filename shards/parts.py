"""Writes and reads parts: the durable result of one unit, one Parquet file that is read back as it was written or not at all."""

import hashlib
import io
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from promptmill.configs.columns import CONTROL_MAPS
from promptmill.configs.parameters import MAX_LIST
from promptmill.shards.bounded_parquet import MiB, read_parquet
from promptmill.shards.storage import delete, get, join, put
from promptmill.shards.tables import IMAGE, make_table

# A page holds this many rows or more; with megabytes a row, the default of 1,024 makes pages beyond Parquet's 2 GiB.
ROWS_A_PAGE = 16

MOST_IMAGE = 256 * MiB  # bytes of an image file; the pixels of the largest that a row may ask for are 192

DIGEST = hashlib.sha256
END = b"PAR1"
PLAN = b"promptmill.plan"  # the key, in a part's schema, of the fingerprint of the plan that it is of


class PartError(ValueError):
    """Reports a part that is not whole, or not of this plan; the message names the file."""


def part_name(unit: str) -> str:
    """Return the name of a unit's part."""
    return f"{unit}.parquet"


def write_part(output: str, name: str, rows: Iterable[Mapping[str, Any]], form: pa.Schema, fingerprint: str) -> int:
    """Write a part, whole or not at all; the same bytes for the same rows.

    Args:
        output: The dataset's URI.
        name: The part's name, by `part_name`.
        rows: As they will stand in the metadata, with one more column `image`: the file's bytes where it is kept, packed with its
            control maps in a dataset that has them.
        form: The schema of the metadata.
        fingerprint: The plan's fingerprint.

    Returns:
        The part's size in bytes.

    Raises:
        ValueError: A row has a column that the schema does not know.
        StorageError: The part cannot be written.
    """
    table = make_table(rows, _with_image(form)).replace_schema_metadata({PLAN: fingerprint.encode()})
    file = io.BytesIO()
    # Image files are compressed already, and the rest is small and soon deleted.
    pq.write_table(
        table,
        file,
        compression="none",
        use_dictionary=form.names,
        write_statistics=False,
        write_batch_size=ROWS_A_PAGE,
        row_group_size=1024,
        version="2.6",
    )
    content = _sealed(file.getvalue())
    put(join(output, "parts", name), content)
    return len(content)


def read_part(output: str, name: str, form: pa.Schema, fingerprint: str, maps: bool = False) -> pa.Table:
    """Return the rows of a part in the order of their keys, the column `image` behind those of the metadata.

    Args:
        output, name, form, fingerprint: As in `write_part`.
        maps: Whether images may be packed with control maps, where the schema does not say so.

    Raises:
        PartError: The part is truncated or altered, has other columns, or is of a plan with another fingerprint.
        FileNotFoundError: The part is not there; if its shard is committed, it has done its duty.
    """
    uri = join(output, "parts", name)
    content = get(uri)
    if not _is_sealed(content):
        raise PartError(f"{uri}: truncated or altered")
    try:
        most = MOST_IMAGE * (1 + MAX_LIST if maps or CONTROL_MAPS in form.names else 1)
        table = read_parquet(content, cells={IMAGE: most})
    except ValueError as error:
        raise PartError(f"{uri}: {error}") from None
    wanted = _with_image(form)
    if not table.schema.equals(wanted):
        raise PartError(f"{uri}: {_difference(table.schema, wanted)}; it is of another plan")
    theirs = (table.schema.metadata or {}).get(PLAN, b"").decode(errors="replace")
    if theirs != fingerprint:
        raise PartError(f"{uri}: is of another plan, {theirs[:16] or 'without a fingerprint'}; this one is {fingerprint[:16]}")
    # The mark is the part's own: what is made of parts must not depend on whether it was made of any.
    return table.replace_schema_metadata(None)


def drop_broken(output: str, names: Iterable[str], form: pa.Schema, fingerprint: str) -> list[PartError]:
    """Delete the parts that `read_part` refuses, so that the next run renders their units again.

    Returns:
        What was wrong, an error for each part that was deleted.
    """
    found = []
    for name in names:
        try:
            read_part(output, name, form, fingerprint)
        except PartError as error:
            found.append(error)
            delete(join(output, "parts", name))
        except FileNotFoundError:
            pass
    return found


def _with_image(form: pa.Schema) -> pa.Schema:
    return form.append(pa.field(IMAGE, pa.large_binary()))


def _difference(there: pa.Schema, wanted: pa.Schema) -> str:
    for field in wanted:
        if field.name not in there.names:
            return f"lacks the column {field.name}"
        if there.field(field.name).type != field.type:
            return f"{field.name} is {there.field(field.name).type}, not {field.type}"
    more = [name for name in there.names if name not in wanted.names]
    return f"has the column {more[0]} too" if more else "has its columns in another order"


def _sealed(content: bytes) -> bytes:
    """Return a Parquet file with the digest of itself between its data and its footer, where Parquet's readers do not look."""
    footer = _footer(content)
    return content[:footer] + DIGEST(content).digest() + content[footer:]


def _is_sealed(content: bytes) -> bool:
    footer = _footer(content)
    size = DIGEST().digest_size
    if footer < size or content[-4:] != END:
        return False
    digest = DIGEST(memoryview(content)[: footer - size])
    digest.update(memoryview(content)[footer:])
    return digest.digest() == content[footer - size : footer]


def _footer(content: bytes) -> int:
    """Return the place in bytes where the footer begins; its length stands before the last four bytes."""
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")
