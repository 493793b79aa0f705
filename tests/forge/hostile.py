"""The hostile datasets, by name: what each has that no run makes. Every hash, size and count in them is right where it can be.

Each is made of a finished dataset of `tests.jobs.datasets.planned_dataset`, and of a folder outside of it in which `secret` lies.
docs/security.md lists them with what the commands say; `python -m tests.forge` writes that list.
"""

import dataclasses
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pyarrow as pa

from promptmill.jobs.planning.plan import read_plan, write_plan
from promptmill.shards.commits import FileRecord
from promptmill.shards.sidecars import encode_rows
from tests.forge.forging import forge, forge_record, members_of, packed, record_of, replaced, table_of
from tests.forge.pictures import EPS, huge_png

KEY = "000000-00000-0000"
TAR, PARQUET = "data/000000.tar", "metadata/000000.parquet"


@dataclass(frozen=True)
class Hostile:
    """A hostile dataset: what it holds, in words for people, and what makes it of a sound one."""

    what: str
    make: Callable[[Path, Path], None]


HOSTILE: dict[str, Hostile] = {}


def hostile(what: str) -> Callable[[Callable[[Path, Path], None]], Callable[[Path, Path], None]]:
    """Enter a function of the output and the folder outside, under its name."""

    def enter(make: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        HOSTILE[make.__name__] = Hostile(what, make)
        return make

    return enter


def _with_row(out: Path, image: bytes | None = None, **row) -> None:
    """Another first row, which is of a kept image, and what goes with it in the tar: its JSON, and perhaps another image."""
    table = replaced(table_of(str(out)), 0, **row)
    first = next(encode_rows(table.filter(table["selected"])))
    files = {f"{KEY}.json": first} | ({f"{KEY}.png": image} if image is not None else {})
    members = [(name.replace(KEY, row.get("key", KEY)), files.get(name, was)) for name, was in members_of(str(out))]
    forge(str(out), table=table, tar=packed(members))


def with_image(out: Path, content: bytes, **row) -> None:
    """Another first image, which its row bears out."""
    _with_row(out, content, sha256=sha256(content).hexdigest(), bytes=len(content), **row)


def _with_member(out: Path, member: tarfile.TarInfo, content: bytes = b"") -> None:
    """Another first image in the tar, of a kind that no shard has."""
    member.name, member.size = f"{KEY}.png", len(content)
    forge(str(out), tar=packed((member, content) if name == f"{KEY}.png" else (name, was) for name, was in members_of(str(out))))


@hostile("A key is an absolute path, and a file of the tar is named after it.")
def key_is_an_absolute_path(out, outside):
    _with_row(out, key=f"{outside}/secret")


@hostile("A key climbs out of the folder: `../../secret`.")
def key_climbs(out, outside):
    _with_row(out, key="../../outside/secret")


@hostile("A key in shard 0 is one of shard 7, which there is not.")
def key_of_another_shard(out, outside):
    _with_row(out, key="000007-00000-0000")


@hostile("The image of a key is a Python file: `KEY.py` in place of `KEY.png`.")
def ending_of_a_program(out, outside):
    members = [(name.replace(f"{KEY}.png", f"{KEY}.py"), content) for name, content in members_of(str(out))]
    forge(str(out), tar=packed(members))


@hostile("An image is EPS under the name `.png`: a program that Pillow would hand to Ghostscript.")
def eps_for_png(out, outside):
    with_image(out, EPS)


@hostile("An image of some kilobytes is 60,000 pixels wide and high, and its row says so.")
def png_of_gigabytes(out, outside):
    with_image(out, huge_png(60_000, 60_000), width=60_000, height=60_000)


@hostile("An image is larger than its row says: 8,000 pixels wide and high.")
def png_larger_than_its_row(out, outside):
    with_image(out, huge_png(8_000, 8_000))


@hostile("A row says that its image has a petabyte.")
def row_of_a_petabyte(out, outside):
    _with_row(out, bytes=10**15)


@hostile("A column is of another type: `selected` holds numbers.")
def column_of_another_type(out, outside):
    table = table_of(str(out))
    forge(str(out), table=table.set_column(table.column_names.index("selected"), "selected", table["selected"].cast(pa.int64())))


@hostile("A cell of a Parquet of some kilobytes holds 200 MB.")
def cell_of_200_megabytes(out, outside):
    forge(str(out), table=replaced(table_of(str(out)), 0, error_message="a" * 200_000_000))


@hostile("A member of the tar is a link to /etc/passwd.")
def link_in_the_tar(out, outside):
    member = tarfile.TarInfo()
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    _with_member(out, member)


@hostile("A member of the tar is a link to itself.")
def circle_in_the_tar(out, outside):
    member = tarfile.TarInfo()
    member.type, member.linkname = tarfile.LNKTYPE, f"{KEY}.png"
    _with_member(out, member)


@hostile("A member of the tar is sparse: a terabyte of zeros in a kilobyte.")
def sparse_in_the_tar(out, outside):
    member = tarfile.TarInfo()
    member.pax_headers = {"GNU.sparse.size": str(2**40), "GNU.sparse.map": f"{2**40},0"}
    _with_member(out, member)


@hostile("A commit record names a file outside: `../outside/secret`, with its right hash.")
def record_names_another_file(out, outside):
    record, secret = record_of(str(out)), FileRecord.of("../outside/secret", (outside / "secret").read_bytes())
    forge_record(str(out), dataclasses.replace(record, files=(secret, record.files[1])))


@hostile("A commit record has a path in place of a plan's fingerprint.")
def record_of_a_plan_elsewhere(out, outside):
    forge_record(str(out), dataclasses.replace(record_of(str(out)), fingerprint="../../../outside/secret"))


@hostile("A tar is a FIFO, which nobody writes.")
def fifo_for_a_tar(out, outside):
    (out / TAR).unlink()
    os.mkfifo(out / TAR)


@hostile("A tar is a link to /dev/zero.")
def endless_tar(out, outside):
    (out / TAR).unlink()
    (out / TAR).symlink_to("/dev/zero")


@hostile("A Parquet is a FIFO.")
def fifo_for_a_parquet(out, outside):
    (out / PARQUET).unlink()
    os.mkfifo(out / PARQUET)


@hostile("plan/plan.json is a FIFO.")
def fifo_for_a_plan(out, outside):
    (out / "plan" / "plan.json").unlink()
    os.mkfifo(out / "plan" / "plan.json")


@hostile("A tar is a sparse file of a terabyte; its record says what it was.")
def tar_of_a_terabyte(out, outside):
    with (out / TAR).open("r+b") as file:
        file.truncate(2**40)


@hostile("`data/` is a link to a folder outside, in which the tars lie beside other files.")
def data_lies_outside(out, outside):
    for file in (out / "data").iterdir():
        file.rename(outside / file.name)
    (out / "data").rmdir()
    (out / "data").symlink_to(outside)


@hostile("`parts/` and `stats/` are links to a folder outside.")
def parts_lie_outside(out, outside):
    for folder in ("parts", "stats"):
        if (out / folder).exists():
            (out / folder).rmdir()
        (out / folder).symlink_to(outside)


@hostile("`README.md` is a link to a file outside.")
def card_is_a_link(out, outside):
    (out / "README.md").unlink()
    (out / "README.md").symlink_to(outside / "secret")


@hostile("`plan/` and `stats/` hold links to a file outside, under names that promptmill does not use.")
def plan_holds_more(out, outside):
    for folder in ("plan", "stats"):
        (out / folder).mkdir(exist_ok=True)
        (out / folder / ".env").symlink_to(outside / "secret")


@hostile("Under the name of an earlier plan lies a link to a file outside.")
def plan_holds_a_link(out, outside):
    (out / "plan" / "earlier").mkdir(exist_ok=True)
    (out / "plan" / "earlier" / f"{'a' * 64}.json").symlink_to(outside / "secret")


@hostile("The plan says that a plan elsewhere was before it.")
def earlier_plan_elsewhere(out, outside):
    plan = read_plan(str(out))
    write_plan(str(out), dataclasses.replace(plan, accepted={"../../../outside/secret": ["seed"]}))
    forge_record(str(out), record_of(str(out)), plan)


@hostile("The note of a repair that was cut off has a path in place of a generation, and a tar is gone.")
def repair_goes_elsewhere(out, outside):
    (out / "stats").mkdir(exist_ok=True)
    note = {"shards": {"0": "0/../../../outside/x"}, "hashes": {}}
    (out / "stats" / "repair.json").write_text(json.dumps(note))
    (out / TAR).unlink()
