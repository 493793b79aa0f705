"""Forges files of a dataset as a stranger might: bytes flipped, sizes forged, types changed, hashes made right again."""

import contextlib
import functools
import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from promptmill.jobs.planning.plan import fingerprint_of
from promptmill.jobs.planning.sealed_json import SEAL, sealed
from promptmill.shards.parts import _sealed as sealed_part

EVIL = "\x1b[31m\x07a\nb\r\u202e\u2028\x9b\x7f[red]\U000e0041"
NUMBERS = (-1, 0, 1, 2**31, 2**53, 2**63, 10**9, 10**18, 10**300, 1e308, -1.5, float("inf"), float("nan"))
TEXTS = (
    "",
    EVIL,
    "../../../../etc/passwd",
    "/etc/passwd",
    "x" * 100_000,
    "\ud800",
    "000000-00000-0000",
    "NaN",
    "0" * 64,
    "data/000000.tar",
)
OTHERS = (None, True, [], {}, [[]], {"a": 1}, [None] * 1000, {"": {"": {}}})
NAMES = (
    "commits/999999999.json",
    "commits/000000.9999.json",
    "commits/000001.000001.json",
    "commits/\x1b[31m\n.json",
    "plan/shards/999999.json.gz",
    "plan/shards/\u202e.json.gz",
    "plan/shards/x.json.gz",
    "data/\x1b]0;.tar",
    "metadata/000009.parquet",
    "parts/\x9b31m.parquet",
    "parts/000000-00000.parquet",
    "lease/999999999.json",
    "stats/20260101T000000.000000-0001.jsonl",
    "plan/earlier/" + "a" * 64 + ".json",
)
NEEDED = "key id status selected prompt candidate_index sha256 pixel_sha256 width bytes clip_score rank"  # by most readers
BROKEN = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, OSError, pa.ArrowException)
GROWN = 2**28  # bytes that a small file unpacks to


def forge(out: Path, rng: random.Random) -> str:
    """Damage one file of a dataset, or put one there; return what was done to which file."""
    paths = [path for path in sorted(out.rglob("*")) if path.is_file() and not path.is_symlink()]
    sorts = sorted({(path.relative_to(out).parent.as_posix(), path.suffix) for path in paths})
    folder, suffix = rng.choice(sorts)
    path = rng.choice([p for p in paths if p.suffix == suffix and p.relative_to(out).parent.as_posix() == folder])
    kinds: list[Callable[[Path, random.Random], object]] = [_bytes]
    kinds += {
        ".json": [_json] * 4,
        ".gz": [_packed] * 4,
        ".jsonl": [_lines] * 4,
        ".tar": [_tar] * 3,
        ".parquet": [_parquet] * 5,
    }.get(suffix, [])
    kinds += [_put] if rng.random() < 0.1 else []
    kind = rng.choice(kinds)
    if kind is _put:
        path = out / rng.choice(NAMES)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.choice(paths).read_bytes())
    with contextlib.suppress(
        ValueError, TypeError, LookupError, pa.ArrowException, AttributeError, OverflowError, EOFError, OSError
    ):
        kind(path, rng)
    if path.suffix in (".tar", ".parquet") and path.parent.name in ("data", "metadata") and rng.random() < 0.85:
        _record_again(out, path)
    return f"{kind.__name__} {path.relative_to(out)}"


def _put(path: Path, rng: random.Random) -> None:
    """Leave a file that was put there as it is."""


def _bytes(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(content) + 1)
        match rng.randrange(6):
            case 0 | 1 if at < len(content):
                content[at] ^= rng.choice((1 << rng.randrange(8), rng.randrange(1, 256)))
            case 2:
                del content[at:]
            case 3:
                content[at:at] = rng.choice((rng.randbytes(40), b"\0" * 512, b"[" * 100_000, EVIL.encode(errors="ignore")))
            case 4 if at + 4 < len(content):
                content[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, (2**31 - 1).to_bytes(4, "little")))
            case _:
                del content[at : at + rng.randrange(1, 400)]
    path.write_bytes(bytes(content))


def _value(rng: random.Random) -> Any:
    return rng.choice((rng.choice(NUMBERS), rng.choice(TEXTS), rng.choice(OTHERS)))


def _changed(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one of the values in it forged."""
    if isinstance(value, dict) and value and rng.random() < 0.93:
        name = rng.choice(list(value))
        match rng.randrange(12):
            case 0:
                return {n: v for n, v in value.items() if n != name}
            case 1:
                return {**value, rng.choice(TEXTS): _value(rng)}
            case _:
                return {**value, name: _changed(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.93:
        at = rng.randrange(len(value))
        match rng.randrange(12):
            case 0:
                return value[:at]
            case 1:
                return value + value
            case _:
                return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    return _value(rng)


def _text(value: Any, rng: random.Random) -> bytes:
    text = json.dumps(value).encode()
    if rng.random() < 0.05:
        depth = rng.choice((101, 900, 3000, 200_000))
        text = text.replace(b"0", b"[" * depth + b"]" * depth, 1)
    return text


def _json(path: Path, rng: random.Random) -> None:
    value = json.loads(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 5))):
        value = _changed(value, rng)
    if isinstance(value, dict) and SEAL in value and rng.random() < 0.8:
        if isinstance(value.get("inputs"), dict) and "fingerprint" in value:
            value["fingerprint"] = fingerprint_of(value["inputs"])
        path.write_bytes(sealed({name: one for name, one in value.items() if name != SEAL}))
    else:
        path.write_bytes(_text(value, rng))


def _lines(path: Path, rng: random.Random) -> None:
    lines = path.read_bytes().splitlines()
    at = rng.randrange(len(lines))
    lines[at] = _text(_changed(json.loads(lines[at]), rng), rng)
    path.write_bytes(b"\n".join(lines) + b"\n")


def _packed(path: Path, rng: random.Random) -> None:
    if rng.random() < 0.02:
        path.write_bytes(_bomb(rng.choice((b"[], ", b'"', b" "))))
        return
    value = _changed(json.loads(gzip.decompress(path.read_bytes())), rng)
    path.write_bytes(gzip.compress(_text(value, rng), compresslevel=1, mtime=0))


@functools.cache
def _bomb(piece: bytes) -> bytes:
    """Return gzip of one piece repeated; made once, since it takes seconds."""
    return gzip.compress(piece * (GROWN // len(piece)), compresslevel=1, mtime=0)


def _tar(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    at = 512 * rng.randrange(len(content) // 512)
    match rng.randrange(4):
        case 0:
            content[at + 124 : at + 136] = rng.choice(
                (b"77777777777\0", b"\x80" + b"\0" * 7 + b"\xff" * 4, b"-0000000001\0", b"99999999999\0")
            )
        case 1:
            content[at + 156 : at + 157] = rng.choice((b"1", b"2", b"3", b"6", b"x", b"L", b"S", b"5"))
        case 2:
            content[at : at + 40] = EVIL.encode(errors="ignore")[:40].ljust(40, b"\0")
        case _:
            return _other_members(path, rng)
    if rng.random() < 0.8:
        header = content[at : at + 512]
        header[148:156] = b" " * 8
        content[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(content))
    return None


def _other_members(path: Path, rng: random.Random) -> None:
    made = io.BytesIO()
    with tarfile.open(path) as there, tarfile.open(fileobj=made, mode="w") as tar:
        for member in there:
            file = there.extractfile(member)
            content = file.read() if file else b""
            if rng.random() < 0.1:
                member.name = rng.choice((EVIL, "a/b.png", "../x.png", member.name + ".x", "000000-00000-0000.png", ".png", "x"))
            if rng.random() < 0.1:
                content = rng.choice((b"", b"%!PS-Adobe", b"{}", rng.randbytes(50), b"[" * 200_000))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    path.write_bytes(made.getvalue())


def _parquet(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    table = pq.read_table(io.BytesIO(content))
    for _ in range(rng.choice((1, 1, 2))):
        table = _other_table(table, rng)
    made = io.BytesIO()
    options = {"compression": rng.choice(("zstd", "none", "snappy")), "use_dictionary": rng.random() < 0.7}
    pq.write_table(table, made, data_page_version=rng.choice(("1.0", "2.0")), row_group_size=rng.choice((3, 1024)), **options)
    content = made.getvalue()
    if rng.random() < 0.2:
        damaged = bytearray(content)
        footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        for _ in range(rng.randrange(1, 5)):
            damaged[rng.randrange(4, footer) if rng.random() < 0.5 else rng.randrange(footer, len(content) - 8)] = rng.randrange(
                256
            )
        content = bytes(damaged)
    path.write_bytes(sealed_part(content) if path.parent.name == "parts" else content)


def _other_table(table: pa.Table, rng: random.Random) -> pa.Table:
    names = (
        "key",
        "id",
        "status",
        "selected",
        "prompt",
        "candidate_index",
        "sha256",
        "pixel_sha256",
        "width",
        "bytes",
        "clip_score",
        "rank",
    )
    name = rng.choice([*names, *table.column_names])
    place, kind, rows = table.column_names.index(name), table.schema.field(name).type, table.num_rows
    match rng.choice((*[0, 1, 2, 3, 4, 6, 7, 8] * 3, 1, 6, 8, 5)):
        case 0:
            return table.drop_columns([name])
        case 1:
            other = rng.choice((pa.string(), pa.int64(), pa.float64(), pa.binary(), pa.bool_(), pa.list_(pa.string())))
            return table.set_column(place, name, pa.nulls(rows, other) if rng.random() < 0.5 else table[name].cast(other))
        case 2:
            return table.set_column(place, table.schema.field(name), pa.nulls(rows, kind))
        case 3:
            others = [name if n != name else rng.choice((EVIL, "", "key", "sha256", "x.y")) for n in table.column_names]
            return table.rename_columns(others)
        case 4:
            return table.take(pa.array([rng.randrange(rows) for _ in range(rng.choice((0, 1, rows, 3000)))], pa.int64()))
        case 5:
            huge, many = rng.choice(((2**28, 2), (2**24, 30), (10**5, 3000), (10**5, 200), (300, 3000)))
            values = pa.array(["a" * huge] * many) if pa.types.is_string(kind) else pa.nulls(10_000_000, kind)
            others = pa.table({n: pa.nulls(len(values), table.schema.field(n).type) for n in table.column_names if n != name})
            return others.append_column(name, values)
        case 6:
            values = table[name].to_pylist()
            values[rng.randrange(rows)] = _value(rng)
            return table.set_column(place, table.schema.field(name), pa.array(values, kind))
        case 7:
            return table.set_column(
                place,
                table.schema.field(name),
                pc.if_else(pa.array([rng.random() < 0.5 for _ in range(rows)]), table[name], pa.nulls(rows, kind)),
            )
        case _:
            values = [
                rng.choice((EVIL, "kept", "failed", "000000-00000-0000", "000000-00000", "-", "a-b-c", "")) for _ in range(rows)
            ]
            return table.set_column(place, table.schema.field(name), pa.array(values, pa.string()).cast(kind))


def _record_again(out: Path, path: Path) -> None:
    """Give the record, and the index, the hash that a forged file has now."""
    record, content, name = out / "commits" / f"{path.name.split('.')[0]}.json", path.read_bytes(), path.relative_to(out).as_posix()
    said = {"path": name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    index = out / "index.json"
    with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError, OSError):
        values = json.loads(record.read_bytes())
        values["files"] = [said if file["path"] == name else file for file in values["files"]]
        record.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
        listed = json.loads(index.read_bytes())
        for shard in listed["shards"]:
            shard["files"] = [said if file["path"] == name else file for file in shard["files"]]
        index.write_text(json.dumps(listed, indent=1, sort_keys=True) + "\n")
