"""Draws manifests of every format, as other tools write them, with what each of their rows means."""

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

KNOWN = ("id", "prompt", "negative_prompt", "steps", "seed", "guidance_scale", "width")
CARRIED = ("topic", "Größe", "note: x", "n")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252")
LINE_ENDS = ("\n", "\r\n", "\r")
PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n"
ODD = "\0\ufeff\u2028\x85\x0b\x1c\ud800"  # what splits lines elsewhere, what is no text

PLAIN = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x24F, exclude_characters="\x7f\x80\x85\xad\xa0"), min_size=1, max_size=12
)
ANY = st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from(ODD[:-1] + " ,;\t\"'\r\n\\:{}[]#=<>|"), max_size=12)
TEXT = PLAIN | PLAIN | ANY
NUMBERS = st.integers(-(2**70), 2**70) | st.integers(-5, 5) | st.floats() | st.floats(-10, 10, width=16)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5)


@dataclass
class Case:
    """Holds a file and the meaning of its rows.

    Attributes:
        meant: By row, column to value as the format can say it; None where the row has to be refused.
        readable: Whether every row that is plain has to be read.
    """

    name: str
    content: bytes
    meant: list[dict[str, Any] | None] = field(default_factory=list)
    readable: bool = False


def known_values(draw: Any) -> dict[str, Any]:
    """Draw values of known columns, most of them in range."""
    drawn: dict[str, Any] = {"prompt": draw(TEXT)}
    kinds = {
        "negative_prompt": TEXT,
        "steps": st.integers(1, 1000) | st.sampled_from([0, 7.0, 7.5, "9", "x", True]),
        "seed": st.integers(0, 2**32 - 1) | st.sampled_from([-1, 2**32, 3.0]),
        "guidance_scale": st.floats(0, 100) | st.integers(0, 100) | st.just(math.nan),
        "width": st.sampled_from([64, 128, 65, 0]),
    }
    for name in draw(st.sets(st.sampled_from(sorted(kinds)), max_size=3)):
        drawn[name] = draw(kinds[name])
    return drawn


@st.composite
def json_rows(draw: Any, ending: str) -> Case:
    """Draw rows of JSON, with twists, a line each or as an array."""
    texts, meant = [], list[dict[str, Any] | None]()
    ascii_only = draw(st.booleans())
    for number in range(draw(st.integers(1, 5))):
        row = known_values(draw) | draw(st.dictionaries(st.sampled_from(CARRIED), VALUES, max_size=3))
        if draw(st.booleans()):
            row["id"] = draw(st.sampled_from([f"i{number}", number, float(number), number + 0.5, f"é{number}"]))
        text = json.dumps(row, ensure_ascii=ascii_only, indent=draw(st.sampled_from([None, 2])) if ending == "json" else None)
        twist = draw(st.sampled_from([*[""] * 8, "twice", "deep", "mark", "half"]))
        said: dict[str, Any] | None = row
        if twist == "twice":
            name = draw(st.sampled_from(sorted(row)))
            text, said = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(draw(SCALARS))}}}", None
        elif twist == "deep":
            text, said = f'{text[:-1]}, "deep": {{"a": 1, "a": 2}}}}', None
        elif twist == "half":
            text, said = f'{text[:-1]}, "cut": "\\ud800"}}', None
        elif twist == "mark" and number and ending == "jsonl":
            text, said = f"\ufeff{text}", None
        texts.append(text)
        meant.append(said)
    end = draw(st.sampled_from(LINE_ENDS))
    whole = (
        f"[{(',' + end).join(texts)}]"
        if ending == "json"
        else draw(st.sampled_from([end, end * 2, f"{end} {end}"])).join(texts) + end
    )
    return encoded(draw, f"m.{ending}", whole, meant)


def encoded(draw: Any, name: str, text: str, meant: list[dict[str, Any] | None]) -> Case:
    """Bring a text to bytes, perhaps in another encoding than manifests have, and perhaps compressed."""
    encoding = draw(st.sampled_from([*["utf-8"] * 6, *ENCODINGS]))
    content = text.encode(encoding, "replace" if encoding in ("latin-1", "cp1252") else "surrogatepass")
    packed = draw(st.sampled_from([*[""] * 5, *PACKED]))
    ours = encoding in ("utf-8", "utf-8-sig")
    # In another encoding the same bytes may be UTF-8 by chance, or ASCII alone: then they mean what they say.
    return Case(name + packed, PACKED[packed](content), meant if ours or content == text.encode() else [], ours)


@st.composite
def cells(draw: Any, ending: str) -> Case:
    """Draw rows of cells as spreadsheets and scripts write them, with a second header or a mark inside."""
    columns = [
        "prompt",
        *draw(st.lists(st.sampled_from(["id", "negative_prompt", "steps", "seed", *CARRIED]), unique=True, max_size=3)),
    ]
    columns = draw(st.permutations(columns))
    delimiter = "," if ending == "csv" else "\t"
    end = draw(st.sampled_from(LINE_ENDS))
    file = io.StringIO()
    # Of \r and \n the writer quotes those that end its lines: else a file does not say what was meant.
    quoting = csv.QUOTE_ALL if end != "\r\n" else draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow(columns)
    meant = list[dict[str, Any] | None]()
    for number in range(draw(st.integers(1, 5))):
        row = {name: draw(TEXT) for name in columns}
        row |= {name: str(draw(st.integers(1, 999))) for name in columns if name in ("steps", "seed")}
        row |= {"id": f"i{number}"} if "id" in row else {}
        twist = draw(st.sampled_from([*[""] * 8, "header", "mark", "loose"]))
        if twist == "header":
            writer.writerow(columns)
            meant.append(None)
        elif twist == "mark" and row[columns[0]].isprintable():
            file.write("\ufeff")
            writer.writerow(row.values())
            meant.append(None)
        elif twist == "loose":
            file.write(delimiter.join(f' "{number}{delimiter}x"' for _ in columns) + end)
            meant.append(None)
        else:
            writer.writerow(row.values())
            meant.append(None if set(row.values()) == set(columns) else {name: cell for name, cell in row.items() if cell})
    return encoded(draw, f"m.{ending}", file.getvalue(), meant)


@st.composite
def lines(draw: Any) -> Case:
    """Draw prompts, a line each."""
    found = [text for text in draw(st.lists(TEXT, min_size=1, max_size=6)) if text.strip() and not set(text) & set("\r\n")]
    end = draw(st.sampled_from(LINE_ENDS))
    return encoded(draw, "m.txt", end.join(found) + draw(st.sampled_from(["", end])), [{"prompt": text} for text in found])


@st.composite
def samples(draw: Any) -> Case:
    """Draw a WebDataset of images with texts and JSON."""
    file, meant = io.BytesIO(), list[dict[str, Any] | None]()
    with tarfile.open(fileobj=file, mode="w", format=draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT]))) as tar:
        for number in range(draw(st.integers(1, 4))):
            row = known_values(draw) | draw(st.dictionaries(st.sampled_from(CARRIED), VALUES, max_size=2))
            members = {"png": b"x", "json": json.dumps(row).encode()}
            if draw(st.booleans()):
                row = {"prompt": draw(TEXT)}
                members = {"png": b"x", "txt": row["prompt"].encode()}
                row["prompt"] = row["prompt"].removeprefix("\ufeff").strip()
            for ending, content in members.items():
                member = tarfile.TarInfo(f"s{number}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            meant.append({"id": f"s{number}", **row})
    return Case("m.tar", file.getvalue(), meant)


TIMES = st.integers(-(2**62), 2**62) | st.integers(0, 2**31)
STRUCT = pa.struct([("a", pa.int64()), ("b", pa.string())])
COLUMNS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), TEXT),
    (pa.large_string(), TEXT),
    (pa.dictionary(pa.int8(), pa.string()), TEXT),
    *((kind, st.integers(-100, 100)) for kind in (pa.int8(), pa.int16(), pa.int32())),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()),
    (pa.decimal128(20, 2), st.decimals(-(10**6), 10**6, places=2)),
    (pa.timestamp("s"), TIMES.map(lambda t: t // 10**4)),  # Parquet keeps it in milliseconds
    *((pa.timestamp(unit), TIMES) for unit in ("ms", "us")),
    (pa.timestamp("ns"), TIMES.map(lambda t: t // 10**9 * 1000)),
    (pa.timestamp("us", "UTC"), TIMES),
    (pa.duration("s"), TIMES),
    (pa.date32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.binary(), st.binary(max_size=5)),
    (pa.list_(pa.int64()), st.lists(st.integers(-5, 5), max_size=3)),
    (pa.list_(pa.float64()), st.lists(st.floats(), max_size=3)),
    (STRUCT, st.fixed_dictionaries({"a": st.integers(-5, 5), "b": st.none() | TEXT})),
]
KNOWN_TYPES: dict[str, list[tuple[pa.DataType, st.SearchStrategy[Any]]]] = {
    "id": [(pa.int64(), st.integers()), (pa.decimal128(20, 1), st.none()), (pa.float64(), st.none()), (pa.string(), st.none())],
    "steps": [(kind, st.integers(1, 99)) for kind in (pa.int8(), pa.int64(), pa.float64(), pa.decimal128(10, 2), pa.string())],
    "seed": [(kind, st.integers(0, 2**31)) for kind in (pa.int64(), pa.uint32(), pa.float64(), pa.decimal128(20, 0))],
    "negative_prompt": [(pa.string(), TEXT), (pa.large_string(), TEXT)],
}


@st.composite
def tables(draw: Any) -> Case:
    """Draw a Parquet file of many types."""
    rows = draw(st.integers(1, 6))
    columns: dict[str, pa.Array] = {"prompt": pa.array([draw(TEXT) for _ in range(rows)], pa.string())}
    meant: list[dict[str, Any]] = [{"prompt": text} for text in columns["prompt"].to_pylist()]
    for name in draw(st.sets(st.sampled_from([*KNOWN_TYPES, *CARRIED]), max_size=4)):
        kind, values = draw(st.sampled_from(KNOWN_TYPES.get(name, COLUMNS)))
        drawn = [draw(st.none() | values) if name != "id" else number * 3 for number in range(rows)]
        given_ = [str(v) if v is not None and kind == pa.string() and not isinstance(v, str) else v for v in drawn]
        given_ = [Decimal(v) if v is not None and pa.types.is_decimal(kind) else v for v in given_]
        columns[name] = pa.array(given_, pa.float64()).cast(kind) if kind == pa.float64() else pa.array(given_, kind)
        for row, value in zip(meant, given_, strict=True):
            row[name] = as_meant(value, kind)
    file = io.BytesIO()
    codec = draw(st.sampled_from(["none", "zstd", "snappy"]))
    pq.write_table(
        pa.table(columns),
        file,
        row_group_size=draw(st.integers(1, 4)),
        compression=codec,
        use_dictionary=draw(st.booleans()),
        data_page_version=draw(st.sampled_from(["1.0", "2.0"])),
    )
    return Case("m.parquet", file.getvalue(), list(meant), True)


class _Beyond:
    """Marks a cell whose value cannot be told, and as which no row may be read."""


def as_meant(value: Any, kind: pa.DataType) -> Any:
    """Return the value of a cell of Parquet, by Python's own types and not by pyarrow's conversion."""
    if value is None:
        return None
    if pa.types.is_float32(kind):
        return float(np.float32(value))
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
    try:
        if pa.types.is_timestamp(kind):
            seconds, rest = divmod(value, per_second[kind.unit])
            when = datetime(1970, 1, 1, tzinfo=UTC if kind.tz else None) + timedelta(seconds=seconds)
            return when + timedelta(microseconds=rest * 10**6 // per_second[kind.unit])
        if pa.types.is_duration(kind):
            return timedelta(seconds=value)
        if pa.types.is_date(kind):
            return date(1970, 1, 1) + timedelta(days=value)
    except OverflowError:
        return _Beyond()
    return value


FORMATS: dict[str, st.SearchStrategy[Case]] = {
    "jsonl": json_rows("jsonl"),
    "json": json_rows("json"),
    "csv": cells("csv"),
    "tsv": cells("tsv"),
    "txt": lines(),
    "tar": samples(),
    "parquet": tables(),
}
CASES = st.sampled_from(sorted(FORMATS)).flatmap(FORMATS.__getitem__)


@st.composite
def damaged(draw: Any) -> Case:
    """Draw a file with bytes changed, taken out, doubled, or another file behind it."""
    case = draw(CASES)
    content = bytearray(case.content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        how = draw(st.sampled_from(["flip", "cut", "double", "insert", "join", "pointer"]))
        if how == "flip" and content:
            content[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del content[at : at + draw(st.integers(1, 40))]
        elif how == "double":
            content[at:at] = content[at : at + draw(st.integers(1, 40))]
        elif how == "insert":
            content[at:at] = draw(
                st.binary(max_size=8) | st.sampled_from([b"\0", b"\xef\xbb\xbf", b"\r", b'"', b"NaN", b"\xff\xfe"])
            )
        elif how == "join":
            content += draw(CASES).content
        else:
            content[:0] = POINTER
    ending = draw(st.sampled_from([case.name, *(f"m.{name}" for name in FORMATS)]))
    return Case(ending, bytes(content))
