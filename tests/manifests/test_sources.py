import gzip
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.columns import COLUMNS
from promptmill.configs.parameters import Defaults
from promptmill.manifests.checking import check_rows
from promptmill.manifests.own_outputs import added
from promptmill.manifests.requests import KNOWN_COLUMNS
from promptmill.manifests.rules import Rules
from promptmill.manifests.sources import ManifestError, find_files, read_rows
from promptmill.shards.tables import encode_table, make_table, schema

ROWS = [{"id": "a", "prompt": "first, with a comma"}, {"id": "b", "prompt": 'second "quoted"', "seed": 7}]


def values(path, *more):
    return [row.values for row in read_rows(find_files([str(path), *map(str, more)]))]


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_format_yields_the_same_rows(tmp_path):
    as_text = [{name: str(value) for name, value in row.items()} for row in ROWS]
    assert values(write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, ROWS)))) == ROWS
    assert values(write(tmp_path / "m.json", json.dumps(ROWS))) == ROWS
    csv_text = 'id,prompt,seed\na,"first, with a comma",\nb,"second ""quoted""",7\n'
    assert values(write(tmp_path / "m.csv", csv_text)) == as_text
    assert values(write(tmp_path / "m.tsv", 'id\tprompt\tseed\na\tfirst, with a comma\t\nb\t"second ""quoted"""\t7\n')) == as_text
    pq.write_table(
        pa.Table.from_pylist(ROWS, pa.schema({"id": pa.string(), "prompt": pa.string(), "seed": pa.int64()})),
        tmp_path / "m.parquet",
    )
    assert values(tmp_path / "m.parquet") == ROWS
    assert values(write(tmp_path / "m.txt", "one\n\n two \r\n")) == [{"prompt": "one"}, {"prompt": " two "}]
    assert values(write(tmp_path / "m.jsonl.gz", gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))) == ROWS


def test_a_tar_of_images_with_texts_becomes_rows(tmp_path):
    with tarfile.open(tmp_path / "m.tar", "w") as tar:
        members = {
            "a.png": b"x",
            "a.txt": b"a cat",
            "b.jpg": b"y",
            "b.json": b'{"prompt": "a dog", "strength": 0.5}',
            "c.txt": b"no image",
        }
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    place = "m.tar::"
    assert values(tmp_path / "m.tar") == [
        {"id": "a", "init_image": place + "a.png", "prompt": "a cat"},
        {"id": "b", "init_image": place + "b.jpg", "prompt": "a dog", "strength": 0.5},
    ]


def test_globs_and_lists_keep_an_order_and_number_rows_by_file(tmp_path):
    for name in ("2.txt", "1.txt", "3.txt"):
        write(tmp_path / name, f"{name} a\n{name} b\n")
    rows = list(read_rows(find_files([str(tmp_path / "3.txt"), str(tmp_path / "[12].txt")])))
    assert [row.values["prompt"] for row in rows] == ["3.txt a", "3.txt b", "1.txt a", "1.txt b", "2.txt a", "2.txt b"]
    assert [row.number for row in rows] == [1, 2] * 3


def test_a_manifest_in_memory_storage_is_read_by_its_uri(tmp_path):
    import fsspec

    fsspec.filesystem("memory").pipe("/m/rows.txt", b"hello\n")
    (row,) = read_rows(find_files("memory://m/rows.txt"))
    assert row.values == {"prompt": "hello"} and row.file.startswith("memory://")


def test_our_own_output_is_input_its_selected_rows_alone(tmp_path):
    rows = [
        {"key": f"000000-00000-000{i}", "id": "a", "candidate_index": i, "selected": i == 1, "pixel_sha256": "0", "seed": 40 + i,
         "prompt": "p", "clip_score": 20.0, "topic": "cats"}
        for i in range(2)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    assert values(tmp_path / "m.parquet") == [{"id": "000000-00000-0001", "seed": 41, "prompt": "p", "topic": "cats"}]


def test_our_own_rows_with_controls_make_requests_again(tmp_path):
    control = {"type": "canny", "image": "c.png", "preprocess": "none", "scale": 0.5, "start": 0.0, "end": 1.0, "sha256": "0" * 64}
    row = {"key": "000000-00000-0000", "id": "a", "candidate_index": 0, "selected": True, "pixel_sha256": "0", "shard": 0}
    row |= {"prompt": "p", "controls": [control], "loras": [], "seed": 3, "steps": 7, "mode": "controlnet", "candidates": 4}
    (tmp_path / "m.parquet").write_bytes(encode_table(make_table([row], schema({}, embedding=None))))
    (checked,) = check_rows(find_files(str(tmp_path / "m.parquet")), Rules(Defaults(), controls=("canny",)))
    assert not checked.problems, checked.lines()
    assert (checked.request.id, checked.request.controls[0].scale, checked.request.steps) == ("000000-00000-0000", 0.5, 7)


def test_every_column_of_our_output_is_taken_again_or_dropped():
    names = [column.name for column in COLUMNS]
    assert set(names) <= added(names) | set(KNOWN_COLUMNS)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    assert values(write(tmp_path / "m.csv", b"\xef\xbb\xbfprompt\nhello\n")) == [{"prompt": "hello"}]
    assert values(write(tmp_path / "m.jsonl", b'\xef\xbb\xbf{"prompt": "hello"}')) == [{"prompt": "hello"}]


@given(st.lists(st.dictionaries(st.sampled_from(["id", "prompt", "note"]), st.text(min_size=1), min_size=1), min_size=1))
def test_any_text_survives_jsonl(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "m.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert values(path) == rows


BROKEN_FILES = {
    "missing": (None, "m.jsonl: no such file"),
    "empty": (("m.jsonl", ""), "m.jsonl: has no rows"),
    "blank lines only": (("m.txt", "\n\n"), "m.txt: has no rows"),
    "header only": (("m.csv", "id,prompt\n"), "m.csv: has no rows"),
    "unknown format": (("m.xlsx", "x"), "m.xlsx: .xlsx is not a format of manifests; those are .jsonl"),
    "no ending": (("manifest", "x"), "manifest: no ending is not a format"),
    "Latin-1": (
        ("m.csv", "prompt\ncafé\n".encode("latin-1")),
        "m.csv, line 2: not UTF-8 (byte 0xe9); convert it, for example with iconv -f latin1",
    ),
    "JSON of another shape": (("m.json", '{"prompt": "x"}'), "m.json: holds dict, not a list of rows"),
    "broken JSON file": (("m.json", "[{]"), "m.json, row 1: not JSON: Expecting property name"),
    "doubled header": (("m.csv", "prompt,prompt\na,b\n"), "m.csv: the header names prompt more than once"),
    "open quote": (("m.csv", 'prompt\n"never closed\n'), "m.csv, row 1: a quote is opened and never closed"),
    "not Parquet": (("m.parquet", "PAR1 not really"), "m.parquet: cannot be read as .parquet"),
    "not a tar": (("m.tar", "x" * 2000), "m.tar: cannot be read as .tar"),
    "truncated gzip": (("m.jsonl.gz", gzip.compress(b'{"prompt": "x"}' * 1000)[:40]), "m.jsonl.gz: cannot be read as .jsonl"),
    "endless line": (("m.txt", "x" * (17 * 2**20)), "m.txt, line 1: longer than 16 MiB"),
}


@pytest.mark.parametrize(("file", "says"), BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, file, says):
    if file:
        write(tmp_path / file[0], file[1])
    with pytest.raises(ManifestError) as caught:
        values(tmp_path / (file[0] if file else "m.jsonl"))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("m.jsonl", '{"prompt": "a"}\n{oops\n{"prompt": "c"}', "not JSON: Expecting property name"),
        ("m.jsonl", '{"prompt": "a"}\n[1]\n{"prompt": "c"}', "holds list, not columns and values"),
        ("m.jsonl", '{"prompt": "a"}\n' + "[" * 100_000 + '\n{"prompt": "c"}', "not JSON"),
        ("m.csv", "prompt\na\nb,too many\nc\n", "has 2 cells, more than the header has columns (1)"),
    ],
)
def test_a_broken_row_leaves_its_neighbours_alone(tmp_path, name, text, says):
    first, broken, last = read_rows(find_files(str(write(tmp_path / name, text))))
    assert says in broken.broken and broken.number == 2
    assert (first.values, last.values) == ({"prompt": "a"}, {"prompt": "c"})
