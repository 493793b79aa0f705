"""Writes and reads the plans of single shards, each held against the hash that the whole plan has of it."""

import gzip
import hashlib
import zlib
from dataclasses import replace

from promptmill.configs.json_values import MOST_VALUES, has_too_many
from promptmill.jobs.planning.plan import Plan, PlanError, ShardPlan, _dumps, in_line, requests_hash
from promptmill.shards.storage import delete, get, join, names, put

MOST_SHARD = 192 * 2**20  # bytes of a shard's plan once it is decompressed


def shard_hash(shard: ShardPlan) -> str:
    """Return the SHA-256, in hex, of a shard's requests and bad rows."""
    return hashlib.sha256(shard.requests_json()).hexdigest()


def packed(shard: ShardPlan) -> tuple[bytes, str]:
    """Return the content of the file that holds one shard's plan, and the `shard_hash` of that plan.

    Raises:
        PlanError: The plan is larger than the limits of a shard's plan.
    """
    content = shard.requests_json()
    whole = content[:-1] + b',"units":' + _dumps(shard.units) + b"}"
    if len(whole) > MOST_SHARD:
        much = f"{len(whole):,} bytes of rows, of {MOST_SHARD:,} at most"
        raise PlanError([f"shards.size: shard {shard.shard:06d} would have {much}; set it lower"])
    if len(whole) > MOST_VALUES and has_too_many(whole.decode()):
        much = f"rows of more than {MOST_VALUES:,} values"
        raise PlanError([f"shards.size: shard {shard.shard:06d} would have {much}; set it lower"])
    return gzip.compress(whole, compresslevel=1, mtime=0), hashlib.sha256(content).hexdigest()


def write_shard(output: str, shard: ShardPlan) -> str:
    """Write one shard's plan, and return its `shard_hash`."""
    content, hash = packed(shard)
    put(shard_uri(output, shard.shard), content)
    return hash


def read_shard(output: str, shard: int, plan: Plan | None = None) -> ShardPlan:
    """Read one shard's plan, and compare it with the hash that the whole plan has of it.

    Args:
        output: The dataset's URI.
        shard: The shard's number.
        plan: The output's plan, with its hashes; without it, the shard's plan is taken as it is.

    Raises:
        PlanError: The shard's plan is missing, damaged, or not what the whole plan says.
    """
    uri = shard_uri(output, shard)
    try:
        read = ShardPlan.from_json(unpacked(get(uri, MOST_SHARD)))
        if read.shard != shard:
            raise ValueError(f"is the plan of shard {read.shard:06d}")
    except FileNotFoundError:
        raise PlanError([f"{uri}: missing; {_FROM_A_COPY}"]) from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PlanError([f"{uri}: damaged ({in_line(error)}); {_FROM_A_COPY}"]) from None
    if plan is not None and plan.shard_hashes and shard_hash(read) != plan.shard_hashes[shard]:
        raise PlanError([f"{uri}: altered: what it asks for is not what the plan's fingerprint is over; {_FROM_A_COPY}"])
    if not read.units_are_whole:
        raise PlanError([f"{uri}: altered: its units do not hold each of its requests once; {_FROM_A_COPY}"])
    return read


_FROM_A_COPY = "bring it back from a copy, or plan anew with another --out"


def with_shard_hashes(output: str, plan: Plan) -> Plan:
    """Return the plan with the hash of each shard's plan; where the plan has none yet, all shards' plans are read once.

    Raises:
        PlanError: A shard's plan is missing or damaged, or the plans are not what the fingerprint is over.
    """
    if plan.shard_hashes:
        return plan
    hashes = tuple(shard_hash(read_shard(output, shard)) for shard in range(plan.shards))
    if requests_hash(hashes) != plan.inputs.get("requests"):
        altered = "altered: what the shards are asked for is not what the plan's fingerprint is over"
        raise PlanError([f"{join(output, 'plan', 'shards')}: {altered}; {_FROM_A_COPY}"])
    return replace(plan, shard_hashes=hashes)


def unpacked(content: bytes) -> bytes:
    """Decompress one gzip file, which has to be all of the content.

    Raises:
        ValueError: The content is no gzip, truncated, followed by more bytes, or larger than any shard's plan.
    """
    reader = zlib.decompressobj(wbits=31)
    try:
        whole = reader.decompress(content, MOST_SHARD + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(whole) > MOST_SHARD:
        raise ValueError(f"has more than {MOST_SHARD:,} bytes once it is decompressed")
    if not reader.eof:
        raise ValueError("truncated")
    if reader.unused_data:
        raise ValueError(f"{len(reader.unused_data):,} bytes follow its end")
    return whole


def drop_shards(output: str, shards: int) -> None:
    """Remove the plans of shards that a larger manifest once had."""
    folder = join(output, "plan", "shards")
    for name in names(folder):
        if name.split(".")[0].isdigit() and int(name.split(".")[0]) >= shards:
            delete(join(folder, name))


def shard_uri(output: str, shard: int) -> str:
    """Return the place of one shard's plan."""
    return join(output, "plan", "shards", f"{shard:06d}.json.gz")
