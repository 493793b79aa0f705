"""Parquet as databases, pandas, Spark and Hugging Face write it, and as somebody hostile would."""

import io
import subprocess
import sys
import textwrap
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from promptmill.configs.parameters import Defaults
from promptmill.manifests import cells
from promptmill.manifests.checking import check_rows
from promptmill.manifests.images import ImageError, load, roots_of
from promptmill.manifests.rules import Rules
from promptmill.manifests.sources import ManifestError, read_rows

RULES = Rules(Defaults(width=64, height=64), controls=("canny",))
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(value=0, size=(64, 64)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def checked(place, columns, images=False, **options):
    pq.write_table(pa.table(columns), place, **options)
    return list(check_rows([str(place)], RULES, roots_of([str(place)], (), 10**6) if images else None))


@pytest.mark.parametrize(
    ("values", "kind", "ids"),
    [
        ([Decimal(1), Decimal(2)], pa.decimal128(20, 0), ["1", "2"]),
        ([Decimal("7.00"), Decimal("-8.00")], pa.decimal128(10, 2), ["7", "-8"]),
        ([1.0, 2.0], pa.float64(), ["1", "2"]),
        ([3.0], pa.float32(), ["3"]),
        ([10**30], pa.decimal256(40, 0), [str(10**30)]),
        ([5, None], pa.uint64(), ["5", "2"]),
    ],
)
def test_whole_numbers_of_any_type_are_ids(tmp_path, values, kind, ids):
    rows = checked(tmp_path / "m.parquet", {"id": pa.array(values, kind), "prompt": ["x"] * len(values)})
    assert [row.request.id for row in rows] == ids


@pytest.mark.parametrize(("value", "kind"), [(1.5, pa.float64()), (float(2**53), pa.float64()), (float("nan"), pa.float64())])
def test_numbers_that_name_no_row_are_no_ids(tmp_path, value, kind):
    (bad,) = checked(tmp_path / "m.parquet", {"id": pa.array([value], kind), "prompt": ["x"]})
    assert bad.request is None and bad.problems[0].startswith("id: ") and "write ids as text" in bad.problems[0]


def test_a_decimal_that_is_not_whole_is_no_id_and_a_whole_one_is_a_seed(tmp_path):
    columns = {"prompt": ["x", "y"], "seed": pa.array([Decimal("42.00"), None], pa.decimal128(10, 2))}
    assert [row.request.seed for row in checked(tmp_path / "m.parquet", columns)] == [42, None]
    (bad,) = checked(tmp_path / "n.parquet", {"id": pa.array([Decimal("1.5")]), "prompt": ["x"]})
    assert bad.problems == ("id: 1.5 is not a whole number; write ids as text",)


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_a_time_beyond_python_is_a_bad_row_with_its_column_and_the_others_stand(tmp_path, unit):
    beyond = 9 * 10**12 * {"s": 1, "ms": 10**3, "us": 10**6}[unit]
    whole = {"prompt": ["a", "b", "c"], "when": pa.array([0, beyond, None], pa.timestamp(unit))}
    before, row, after = checked(tmp_path / "m.parquet", whole)
    assert before.request.carried == {"when": "1970-01-01T00:00:00"} and after.request
    assert row.request is None and row.lines()[0].startswith(f"{tmp_path}/m.parquet, row 2: when: a value that cannot be read")


def images_of(rows):
    return [(row.request.init_image, row.request.mask_image, [c.image for c in row.request.controls]) for row in rows]


@pytest.mark.parametrize("with_path", [True, False])
@pytest.mark.parametrize("group", [1, 2, 100])
def test_images_that_lie_in_the_rows_are_what_the_columns_say(tmp_path, with_path, group):
    kind = IMAGE if with_path else pa.struct([("bytes", pa.binary())])
    packed = [{"bytes": png(i), **({"path": f"{i}.png"} if with_path else {})} for i in range(4)]
    control = pa.list_(pa.struct([("type", pa.string()), ("image", kind)]))
    columns = {
        "prompt": ["a", "b", "c", "d"],
        "init_image": pa.array([packed[0], packed[1], None, packed[3]], kind),
        "mask_image": pa.array([{**packed[0], "bytes": png(255)} | {"bytes": mask()}, None, None, None], kind),
        "controls": pa.array([None, None, [{"type": "canny", "image": packed[2]}], None], control),
    }
    rows = checked(tmp_path / "m.parquet", columns, images=True, row_group_size=group)
    assert all(row.request and not row.problems for row in rows), [row.lines() for row in rows]
    assert images_of(rows) == [
        ("m.parquet::init_image/1", "m.parquet::mask_image/1", []),
        ("m.parquet::init_image/2", None, []),
        (None, None, ["m.parquet::controls.0.image/3"]),
        ("m.parquet::init_image/4", None, []),
    ]
    roots = roots_of([str(tmp_path / "m.parquet")], (), 10**6)
    for row, value in ((rows[1], 1), (rows[3], 3)):
        assert load(row.request.init_image, roots).image.getpixel((0, 0)) == (value, 0, 0)
    assert load(rows[2].request.controls[0].image, roots).image.getpixel((0, 0)) == (2, 0, 0)


def mask():
    file = io.BytesIO()
    Image.new("L", (64, 64), 255).save(file, "PNG")
    return file.getvalue()


def test_plain_bytes_are_an_image_and_a_struct_without_bytes_is_its_path(tmp_path):
    (tmp_path / "p.png").write_bytes(png(9))
    (row,) = checked(tmp_path / "a.parquet", {"prompt": ["a"], "init_image": pa.array([png(5)], pa.binary())}, images=True)
    assert row.request.init_image == "a.parquet::init_image/1" and row.images
    packed = pa.array([{"bytes": None, "path": "p.png"}, {"bytes": png(1), "path": "q.png"}], IMAGE)
    path, whole = checked(tmp_path / "b.parquet", {"prompt": ["a", "b"], "init_image": packed}, images=True)
    assert (path.request.init_image, whole.request.init_image) == ("p.png", "b.parquet::init_image/2") and path.images


def test_a_column_image_is_the_one_that_the_row_wants(tmp_path):
    packed = pa.array([{"bytes": png(), "path": None}], IMAGE)
    (init,) = checked(tmp_path / "a.parquet", {"prompt": ["a"], "image": packed}, images=True)
    assert (init.request.mode, init.request.init_image) == ("img2img", "a.parquet::image/1")
    (control,) = checked(tmp_path / "b.parquet", {"prompt": ["a"], "image": packed, "control_type": ["canny"]}, images=True)
    assert (control.request.mode, control.request.controls[0].image) == ("controlnet", "b.parquet::image/1")


@pytest.mark.parametrize(
    "cell", ["init_image/9", "init_image/0", "init_image/x", "gone/1", "prompt/1", "controls.0.image/1", "init_image"]
)
def test_a_cell_that_is_not_there_is_one_line(tmp_path, cell):
    checked(tmp_path / "m.parquet", {"prompt": ["a"], "init_image": pa.array([{"bytes": png(), "path": None}], IMAGE)})
    with pytest.raises(ImageError, match=r"m\.parquet::.*: cannot be read: ") as caught:
        load(f"m.parquet::{cell}", roots_of([str(tmp_path / "m.parquet")], (), 10**6))
    assert "\n" not in str(caught.value)


def test_rows_in_order_read_each_row_group_of_images_once(tmp_path, monkeypatch):
    packed = pa.array([{"bytes": png(i), "path": None} for i in range(20)], IMAGE)
    rows = checked(tmp_path / "m.parquet", {"prompt": ["a"] * 20, "init_image": packed}, row_group_size=5)
    reads = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, *args, **kw: reads.append(args) or real(self, *args, **kw))
    cells._column.cache_clear()
    roots = roots_of([str(tmp_path / "m.parquet")], (), 10**6)
    for i, row in enumerate(rows):
        assert load(row.request.init_image, roots).image.getpixel((0, 0))[0] == i
    assert [group for (group,) in reads] == [0, 1, 2, 3]


def test_a_row_group_of_images_that_memory_cannot_hold_is_one_line(tmp_path, monkeypatch):
    checked(tmp_path / "m.parquet", {"prompt": ["a"], "init_image": pa.array([{"bytes": png(), "path": None}], IMAGE)})
    monkeypatch.setattr(cells, "MOST_BYTES", 100)
    cells._column.cache_clear()
    with pytest.raises(ImageError, match="write row groups of fewer rows"):
        load("m.parquet::init_image/1", roots_of([str(tmp_path / "m.parquet")], (), 10**6))


def test_a_cell_longer_than_a_row_may_be_is_a_bad_row_between_good_ones(tmp_path):
    long = "x" * (17 * 2**20)
    for number, note in enumerate((["a", long, "c"] * 20, [f"{i}{long}" if i % 2 else "a" for i in range(6)])):
        place = tmp_path / f"{number}.parquet"
        rows = checked(place, {"prompt": ["p"] * len(note), "note": note}, compression="zstd")
        assert [row.request is None for row in rows] == [len(text) > 100 for text in note]
        assert {row.problems for row in rows if row.problems} == {("note: longer than 16 MiB",)}


def shared(text, rows):
    """A text that many rows have, in the file once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))


def test_a_file_that_claims_more_than_it_can_hold_is_one_line(tmp_path):
    pq.write_table(pa.table({"prompt": shared("x" * 60_000_000, 3)}), tmp_path / "m.parquet", compression="zstd")
    assert (tmp_path / "m.parquet").stat().st_size < 100_000
    with pytest.raises(ManifestError, match=r"m\.parquet: row group 0, column prompt: .* bytes claim to hold .* in 3 rows"):
        list(read_rows([str(tmp_path / "m.parquet")]))
    lists = pa.array([[0] * 20_000_000], pa.list_(pa.int8()))
    pq.write_table(pa.table({"prompt": ["x"], "n": lists}), tmp_path / "n.parquet", compression="zstd")
    with pytest.raises(ManifestError, match=r"column n: claims 20,000,000 values in 1 rows"):
        list(read_rows([str(tmp_path / "n.parquet")]))


def test_a_bomb_takes_little_memory(tmp_path):
    """A small file of one long text that many rows share, read in a process of its own."""
    columns = {"prompt": ["p"] * 300, "note": shared("x" * (15 * 2**20), 300)}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet", compression="zstd")
    assert (tmp_path / "m.parquet").stat().st_size < 100_000
    script = f"""
        import resource
        from promptmill.manifests.sources import read_rows
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert sum(len(row.values["note"]) > 1000 for row in read_rows([{str(tmp_path / "m.parquet")!r}])) == 300
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 700e6


def test_embeddings_are_no_bomb(tmp_path):
    vectors = pa.array(list(np.zeros((3000, 768), np.float32)), pa.list_(pa.float32()))
    rows = checked(tmp_path / "m.parquet", {"prompt": ["x"] * 3000, "vector": vectors}, compression="zstd")
    assert len(rows) == 3000 and all(len(row.request.carried["vector"]) == 768 for row in rows)


def test_a_chunk_that_calls_its_column_otherwise_is_of_the_column_whose_place_it_has(tmp_path):
    """Of one byte, turned in the footer alone, as found by the fuzz; Arrow itself goes by places."""
    place = tmp_path / "m.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"]}), place)
    path_of_the_chunk = b"\x19\x18\x06prompt"
    assert place.read_bytes().count(path_of_the_chunk) == 1
    place.write_bytes(place.read_bytes().replace(path_of_the_chunk, b"\x19\x18\x06p\x00ompt"))
    assert [row.values["prompt"] for row in read_rows([str(place)])] == ["a", "b"]
    pq.write_table(pa.table({"prompt": ["a"], "init_image": [png()]}), place)
    path_of_the_chunk = b"\x19\x18\x0ainit_image"
    assert place.read_bytes().count(path_of_the_chunk) == 1
    place.write_bytes(place.read_bytes().replace(path_of_the_chunk, b"\x19\x18\x0ainit_imag\x00"))
    assert cells.read_cell(str(place), "init_image/1", 2**20) == png()
