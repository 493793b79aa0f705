"""Damage from inside: a file is wrong, and recorded as it is."""

import dataclasses
import hashlib
import io
import shutil
import tarfile

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from promptmill.shards.commits import FileRecord, read_record
from promptmill.shards.image_files import encode_image
from promptmill.shards.sidecars import encode_rows
from promptmill.shards.storage import delete, get, join, put
from promptmill.shards.tables import encode_table, read_table
from promptmill.shards.tars import Sample, read_tar, write_tar
from tests.jobs.finished import FIRST, problems_of, rewrite_record
from tests.shards.made import assembled, pixels_of, provenance, shard


def recorded(output, path, content, **values):
    """Put content in place and say so in the record."""
    put(join(output, path), content)
    files = (FileRecord.of(path, content) if file.path == path else file for file in read_record(output, 0).files)
    rewrite_record(output, files=tuple(files), **values)


def read_table_of(output):
    return read_table(get(join(output, "metadata/000000.parquet")))


def samples_of(output) -> list[Sample]:
    return list(read_tar(get(join(output, "data/000000.tar"))))


def packed(members) -> bytes:
    """A tar of (name, content), in whatever order."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return whole.getvalue()


def with_files(samples, number=0, **files) -> bytes:
    """The tar with other files in one of its samples; None takes a file away."""
    sample = samples[number]
    changed = {ending: content for ending, content in {**sample.files, **files}.items() if content is not None}
    samples = [*samples[:number], Sample(sample.key, changed), *samples[number + 1 :]]
    return packed((f"{s.key}.{ending}", content) for s in samples for ending, content in sorted(s.files.items()))


OTHER_PIXELS = encode_image(pixels_of("other"), "png", 90, provenance({"prompt": "", "steps": 1, "guidance_scale": 1, "seed": 1}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: write_tar(s[1:]), f"lacks 1 of the selected rows of its Parquet, first {FIRST}"),
        (
            lambda s: write_tar([*s, Sample("000000-00009-0000", s[0].files)]),
            "has 1 samples that its Parquet does not select, first 000000-00009-0000",
        ),
        (
            lambda s: write_tar([*s, Sample("000000-00000-0001", s[0].files)]),  # rejected
            "has 1 samples that its Parquet does not select, first 000000-00000-0001",
        ),
        (
            lambda s: packed((f"{x.key}.{e}", c) for x in s[::-1] for e, c in x.files.items()),
            "its samples are in another order than the rows of its Parquet",
        ),
        (lambda s: with_files(s, extra=b""), f"{FIRST}: has the members extra, json, png, txt"),
        (lambda s: with_files(s, number=1, json=None), "000000-00001-0000: has the members png, txt"),
        (lambda s: with_files(s, number=1, png=None, jpg=s[1].files["png"]), "000000-00001-0000: has the members jpg, json, txt"),
        (lambda s: with_files(s, txt=b"a dog"), f"{FIRST}: its text is not the prompt of its row"),
        (lambda s: with_files(s, json=s[1].files["json"]), f"{FIRST}: its JSON is not its row"),
        (lambda s: with_files(s, json=s[0].files["json"].replace(b"7.0", b"7")), f"{FIRST}: its JSON is not its row"),
        (lambda s: with_files(s, png=OTHER_PIXELS), f"{FIRST}: its image does not have the SHA-256 of its row"),
        (lambda s: with_files(s, **{"": b""}), f"{FIRST}: has the members , json, png, txt"),
        (lambda s: packed([("a.txt", b""), ("a.txt", b"")]), "a.txt: occurs twice"),
        (lambda s: write_tar(s)[:5120], "cannot be read: "),
        (lambda s: write_tar(s) + b"more".ljust(512), "truncated or altered: "),
    ],
)
def test_a_tar_that_is_not_its_parquets_is_found(output, change, says):
    recorded(output, "data/000000.tar", change(samples_of(output)))
    problems = problems_of(output)
    assert len(problems) == 1 and problems[0].startswith(f"data/000000.tar: {says}")


def replaced(table, column, number, value):
    """The table with another value in one place."""
    values = table[column].to_pylist()
    values[number] = value
    at = table.column_names.index(column)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: replaced(t, "key", 1, FIRST), f"{FIRST}: is not the key of candidate 1 in shard 0"),
        (lambda t: replaced(t, "key", 1, "a-b"), "a-b: is not the key of candidate 1 in shard 0"),
        (lambda t: replaced(t, "key", 1, None), "None: is not the key of candidate 1 in shard 0"),
        (lambda t: replaced(t, "shard", 1, 2), "000000-00000-0001: is not the key of candidate 1 in shard 0"),
        (lambda t: pa.concat_tables([t.slice(0, 2), t.slice(1)]), "000000-00000-0001: occurs twice"),
        (lambda t: pa.concat_tables([t.slice(1, 1), t.slice(0, 1), t.slice(2)]), f"{FIRST}: stands behind 000000-00000-0001"),
        (lambda t: replaced(t, "selected", 1, True), "000000-00000-0001: is rejected, but selected is True"),
        (lambda t: replaced(t, "status", 1, "lost"), "000000-00000-0001: its status is lost, not one of kept, rejected, failed"),
        (
            lambda t: replaced(t, "id", 1, "x"),
            "000000-00000-0001: its id is 'x', another candidate's of this request 'request 0/0'",
        ),
        (lambda t: t.drop_columns(["rank"]), "lacks the columns rank"),
        (lambda t: t.set_column(3, "rank", t["rank"].cast(pa.int64())), "its column rank is int64, not int32"),
    ],
)
def test_a_parquet_that_contradicts_itself_or_its_record_is_found(output, change, says):
    table = change(read_table_of(output))
    recorded(output, "metadata/000000.parquet", encode_table(table))
    assert any(problem.startswith(f"metadata/000000.parquet: {says}") for problem in problems_of(output))


def test_columns_that_differ_between_shards_are_found(output):
    table = read_table_of(output).drop_columns(["weight"])
    recorded(output, "metadata/000000.parquet", encode_table(table))
    assert problems_of(output)[-1] == "metadata/000001.parquet: its columns are not those of metadata/000000.parquet"


def test_an_id_of_two_requests_is_found_across_shards(output):
    table = read_table_of(output)
    ids = pc.replace_substring(table["id"], "request 0/3", "request 2/4")
    table = table.set_column(1, "id", ids)
    tar = with_json_of(output, table)
    recorded(output, "metadata/000000.parquet", encode_table(table))
    recorded(output, "data/000000.tar", tar)
    assert problems_of(output) == [
        "metadata/000002.parquet: the id 'request 2/4' is that of another request, in metadata/000000.parquet"
    ]


def test_the_id_of_a_repeated_row_that_was_refused_is_no_problem(output):
    table = read_table_of(output)
    table = replaced(table, "id", table.num_rows - 1, "request 2/4")
    recorded(output, "metadata/000000.parquet", encode_table(table))
    assert problems_of(output) == []


def with_json_of(output, table) -> bytes:
    described = encode_rows(table.filter(table["selected"]))
    return write_tar(Sample(s.key, {**s.files, "json": json_}) for s, json_ in zip(samples_of(output), described, strict=True))


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("pixel_sha256", "0" * 64, "the pixels of its image do not have the hash of its row"),
        ("bytes", 7, "bytes, its row says 7"),
        ("width", 32, "its image is 16x16, its row says 32x16"),
    ],
)
def test_an_image_that_is_not_its_rows_is_found(output, column, value, says):
    table = replaced(read_table_of(output), column, 0, value)
    tar = with_json_of(output, table)
    recorded(output, "metadata/000000.parquet", encode_table(table))
    recorded(output, "data/000000.tar", tar)
    (problem,) = problems_of(output)
    assert problem.startswith(f"data/000000.tar: {FIRST}: ") and problem.endswith(says)


@pytest.mark.parametrize(("form", "quality", "found"), [("webp", 100, True), ("webp", 90, False), ("jpg", 100, False)])
def test_pixels_are_compared_where_the_format_keeps_them(tmp_path, form, quality, found):
    made = shard(0, image_format=form, quality=quality)
    (first, *rows), *parts = made.parts
    made = dataclasses.replace(made, parts=(({**first, "pixel_sha256": "0" * 64}, *rows), *parts))
    assembled(str(tmp_path), made, form)
    shutil.rmtree(tmp_path / "parts")
    assert bool(problems_of(str(tmp_path))) == found


def test_an_image_that_nobody_can_decode_is_found(tmp_path):
    made = shard(0)
    (first, *rows), *parts = made.parts
    broken = first["image"][:100]
    first = {**first, "image": broken, "bytes": len(broken), "sha256": hashlib.sha256(broken).hexdigest()}
    assembled(str(tmp_path), dataclasses.replace(made, parts=((first, *rows), *parts)))
    shutil.rmtree(tmp_path / "parts")
    (problem,) = problems_of(str(tmp_path))
    assert problem.startswith(f"data/000000.tar: {FIRST}: its image cannot be decoded: ")


def test_damage_on_s3_is_found(clean, s3_bucket):
    output = join(s3_bucket, "some", "out")
    for path in sorted(clean.rglob("*")):
        if path.is_file():
            put(join(output, str(path.relative_to(clean))), path.read_bytes())
    assert problems_of(output) == []
    content = bytearray(get(join(output, "data/000000.tar")))
    content[1600] ^= 1
    put(join(output, "data/000000.tar"), bytes(content))
    delete(join(output, "data/000002.tar"))
    put(join(output, "parts/000000-00000.parquet"), b"")
    put(join(output, "commits/000001.json"), b"{}")
    problems = problems_of(output)
    assert {problem.split(":")[0] for problem in problems} == {
        "data/000000.tar",
        "data/000002.tar",
        "parts/000000-00000.parquet",
        "commits/000001.json",
    }
