"""Broken manifests and images that the tests of the single modules do not hold: each one line with file, row and column."""

import gzip
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from promptmill.configs.parameters import Defaults
from promptmill.manifests.checking import check_rows
from promptmill.manifests.images import ImageError, Roots, load, roots_of
from promptmill.manifests.rules import Rules
from promptmill.manifests.sources import ManifestError, find_files, read_rows

RULES = Rules(Defaults(width=64, height=64), controls=("canny",), loras=("style",))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def encoded(form, image=NOISE, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def parquet(columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def tar(*members, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as packed:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return file.getvalue()


TWO_PARTS = pa.chunked_array([["a"] * 5000, ["b"] * 5000])
SAMPLES = tar(("a.png", b"x" * 3000), ("a.txt", b"one"), ("b.png", b"x" * 3000), ("b.txt", b"two"))

# What ends a manifest, and what its line begins with after the folder.
FILES = {
    "UTF-16": (
        "m.csv",
        "prompt\nhello\n".encode("utf-16"),
        "m.csv, line 1: not UTF-8 (byte 0xff); convert it, for example with iconv -f utf16",
    ),
    "UTF-16 without a mark": (
        "m.csv",
        "id,prompt\na,b\n".encode("utf-16-le"),
        "m.csv: the header holds a NUL character; is this UTF-8 text?",
    ),
    "Latin-1 in a later line": ("m.jsonl", b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n', "m.jsonl, line 2: not UTF-8 (byte 0xe9)"),
    "Latin-1 in an array": ("m.json", b'[{"prompt": "caf\xe9"}]', "m.json: not UTF-8 (byte 0xe9)"),
    "Latin-1 in a text": ("m.txt", b"caf\xe9\n", "m.txt, line 1: not UTF-8"),
    "empty CSV": ("m.csv", b"", "m.csv: has no rows"),
    "empty array": ("m.json", b"[]", "m.json: has no rows"),
    "empty JSON": ("m.json", b" \n", "m.json: has no rows"),
    "empty Parquet": ("m.parquet", parquet({"prompt": pa.array([], pa.string())}), "m.parquet: has no rows"),
    "no bytes of Parquet": ("m.parquet", b"", "m.parquet: cannot be read as .parquet"),
    "truncated Parquet": ("m.parquet", parquet({"prompt": TWO_PARTS})[:-100], "m.parquet: cannot be read as .parquet"),
    "damaged Parquet": ("m.parquet", b"PAR1" + bytes(300) + parquet({"prompt": ["a" * 300]})[304:], "m.parquet: "),
    "doubled column of Parquet": (
        "m.parquet",
        parquet(pa.table([["a"], ["b"]], ["prompt", "prompt"])),
        "m.parquet: names the column prompt more than once",
    ),
    "prompts that are no UTF-8": (
        "m.parquet",
        parquet({"prompt": pa.array([b"\xff"], pa.binary()).view(pa.string())}),
        "m.parquet: not UTF-8 (byte 0xff)",
    ),
    "semicolons": ("m.csv", b"id;prompt\na;b\n", "m.csv: the header is one column, 'id;prompt'; put ',' between columns"),
    "tabs in a CSV": ("m.csv", b"id\tprompt\na\tb\n", "m.csv: the header is one column"),
    "commas in a TSV": ("m.tsv", b"id,prompt\na,b\n", "m.tsv: the header is one column, 'id,prompt'; put '\\t' between columns"),
    "column without a name": ("m.csv", b",prompt\n0,a\n", "m.csv: column 1 of the header has no name"),
    "open quote in the header": ("m.csv", b'"prompt\na\n', "m.csv: the header cannot be read: unexpected end of data"),
    "open quote in a later row": ("m.csv", b'prompt\na\nb\n"never closed\nd\n', "m.csv, row 3: a quote is opened and never closed"),
    "open quote before very much": (
        "m.csv",
        b'prompt\n"' + b"never closed\n" * 1_400_000,
        "m.csv, row 1: a cell of more than 16 MiB",
    ),
    "JSON lines called .json": (
        "m.json",
        b'{"prompt": "a"}\n{"prompt": "b"}',
        "m.json: holds dict, not a list of rows; a row a line is .jsonl",
    ),
    "array that ends in the middle": ("m.json", b'[{"prompt": "a"}, {"prom', "m.json, row 2: not JSON: Unterminated string"),
    "array with more behind it": ("m.json", b'[{"prompt": "a"}] []', "m.json: not JSON: there is more behind the list's end"),
    "not gzip": ("m.jsonl.gz", b'{"prompt": "a"}', "m.jsonl.gz: Not a gzipped file"),
    "gzip cut after some rows": (
        "m.txt.gz",
        gzip.compress(np.random.default_rng(0).bytes(99999).hex("\n").encode())[:60_000],
        "m.txt.gz, after row ",
    ),
    "not xz": ("m.txt.xz", b"hello", "m.txt.xz: cannot be read as .txt"),
    "compressed tar": (
        "m.tar.gz",
        tar(("a.png", b"x"), mode="w:gz"),
        "m.tar.gz: cannot be read as .tar: the images in a compressed tar cannot be reached",
    ),
    "gzip called .tar": ("m.tar", tar(("a.png", b"x"), mode="w:gz"), "m.tar: cannot be read as .tar"),
    "empty tar": ("m.tar", tar(), "m.tar: has no images"),
    "tar of texts": ("m.tar", tar(("a.txt", b"x")), "m.tar: has no images"),
    "tar that ends in an image": ("m.tar", SAMPLES[:2000], "m.tar: cannot be read as .tar: unexpected end of data"),
    "tar with a damaged header": (
        "m.tar",
        SAMPLES[:4608] + b"\1" * 512 + SAMPLES[5120:],
        "m.tar: cannot be read as .tar: damaged at byte 4,608",
    ),
    "spreadsheet": ("m.xlsx", b"PK", "m.xlsx: .xlsx is not a format of manifests"),
    "compression alone": ("m.gz", gzip.compress(b"x"), "m.gz: no ending is not a format of manifests"),
}


@pytest.mark.parametrize(("name", "content", "says"), FILES.values(), ids=FILES)
def test_a_broken_file_is_one_line_with_its_name_and_the_place(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError) as caught:
        list(read_rows(find_files(str(tmp_path / name))))
    check_line(str(caught.value), f"{tmp_path}/{says}")


def check_line(line, start):
    assert line.startswith(start), line
    assert line.isprintable() and len(line) < 500, line


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        ("{folder}", "{folder}: is a folder; name its files, as in {folder}/*.jsonl"),
        ("{folder}/gone.csv", "{folder}/gone.csv: no such file"),
        ("{folder}/*.parquet", "{folder}/*.parquet: no such file"),
        ("nosuch://a/b.csv", "nosuch://a/b.csv: cannot be reached: "),
        (["{folder}/m.csv", "{folder}/gone.csv"], "{folder}/gone.csv: no such file"),
        ([], "the manifest is a list of no files"),
    ],
)
def test_a_manifest_that_is_not_there_is_one_line(tmp_path, manifest, says):
    (tmp_path / "m.csv").write_text("prompt\na\n")
    (tmp_path / "folder.parquet").mkdir()
    place = [m.format(folder=tmp_path) for m in manifest] if isinstance(manifest, list) else manifest.format(folder=tmp_path)
    with pytest.raises(ManifestError) as caught:
        find_files(place)
    check_line(str(caught.value), says.format(folder=tmp_path))


def jsonl(**row):
    return "m.jsonl", "\n".join(json.dumps(r) for r in ({"prompt": "a"}, {"prompt": "x", **row}, {"prompt": "c"})).encode()


def two(column, values, kind):
    return "m.parquet", parquet({"prompt": ["a", "x", "c"], column: pa.array(values, kind)})


DEEP = b'{"prompt": "x", "note": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

# The second of three rows is broken; what its line says behind file and row.
ROWS = {
    "fewer cells": (("m.csv", b"prompt,note\na,1\nx\nc,3\n"), "has 1 cells, fewer than the header has columns (2)"),
    "more cells": (("m.tsv", b"prompt\tnote\na\t1\nx\t2\t3\nc\t3\n"), "has 3 cells, more than the header has columns (2)"),
    "quote inside quotes": (("m.csv", b'prompt\na\n"x"y\nc\n'), "not a row of cells (it ends in line 3): ',' expected after '\"'"),
    "quotes over lines": (("m.csv", b'prompt\na\n"x\nmore\n"y\nc\n'), "not a row of cells (it ends in line 5)"),
    "NUL in a CSV": (("m.csv", b"prompt\na\nx\0\nc\n"), "holds a NUL character"),
    "NUL in a text": (("m.txt", b"a\nx\0\nc\n"), "holds a NUL character"),
    "NUL in JSON": (("m.jsonl", b'{"prompt": "a"}\n{"prompt": "\0"}\n{"prompt": "c"}'), "not JSON: Invalid control character"),
    "JSON of single quotes": (
        ("m.jsonl", b'{"prompt": "a"}\n{\'prompt\': 1}\n{"prompt": "c"}'),
        "not JSON: Expecting property name",
    ),
    "number alone": (("m.json", b'[{"prompt": "a"}, 12, {"prompt": "c"}]'), "holds int, not columns and values"),
    "null alone": (("m.json", b'[{"prompt": "a"}, null, {"prompt": "c"}]'), "holds NoneType, not columns and values"),
    "half a surrogate pair": (
        ("m.jsonl", b'{"prompt": "a"}\n{"prompt": "\\ud800"}\n{"prompt": "c"}'),
        "holds one half of a surrogate",
    ),
    "nesting without end": (("m.jsonl", b'{"prompt": "a"}\n' + DEEP + b'\n{"prompt": "c"}'), "not JSON: maximum recursion depth"),
    "number without end": (
        ("m.jsonl", b'{"prompt": "a"}\n{"seed": ' + b"9" * 9999 + b'}\n{"prompt": "c"}'),
        "not JSON: Exceeds the limit",
    ),
    "list of prompts": (
        two("negative_prompt", [None, ["x"], None], pa.list_(pa.string())),
        "negative_prompt: input should be a valid string",
    ),
    "time as a seed": (two("seed", [None, 1, None], pa.timestamp("s")), "seed: input should be a valid integer"),
    "fraction of a step": (two("steps", [None, 1.5, None], pa.float64()), "steps: input should be a valid integer"),
    "NaN guidance of Parquet": (
        two("guidance_scale", [None, float("nan"), None], pa.float32()),
        "guidance_scale: input should be a finite number",
    ),
    "64-bit seed": (two("seed", [None, 2**63 - 1, None], pa.int64()), "seed: input should be less than 4294967296"),
    "true as a number": (jsonl(steps=True), "steps: input should not be true or false (found True)"),
    "false as a prompt": (jsonl(prompt=False), "prompt: input should not be true or false"),
    "infinity as a number": (jsonl(width=float("inf")), "width: input should be a finite number"),
    "object as a number": (jsonl(width={"px": 64}), "width: input should be a valid integer"),
    "list as a mode": (jsonl(mode=["txt2img"]), "mode: input should be 'txt2img'"),
    "empty id": (jsonl(id=""), "id: string should have at least 1 character"),
    "id without end": (jsonl(id="x" * 10_000), "id: string should have at most 512 characters"),
    "10 MB scheduler": (jsonl(scheduler="x" * 10_000_000), "scheduler: 'xxxx"),
    "10 MB mode": (jsonl(mode="x" * 10_000_000), "mode: input should be 'txt2img'"),
    "10 MB path": (jsonl(init_image="x" * 10_000_000), "init_image: string should have at most 4096 characters"),
    "10 MB negative prompt": (
        jsonl(negative_prompt="x" * 10_000_000),
        "negative_prompt: string should have at most 10000 characters",
    ),
    "10 MB control": (
        jsonl(controls=[{"type": "x" * 10_000_000, "image": "a"}]),
        "controls.0.type: string should have at most 200",
    ),
    "many controls": (
        jsonl(controls=[{"type": "canny", "image": "good.png"}] * 17),
        "controls: tuple should have at most 16 items",
    ),
    "control that is a word": (jsonl(controls=["canny"]), "controls.0: input should be keys and values"),
    "control that is an object": (jsonl(controls={"type": "canny"}), "controls: input should be a list"),
    "LoRA without a name": (jsonl(loras=[{"scale": 1}]), "loras.0.name: missing; it has to be given"),
    "scale that is a boolean": (
        jsonl(loras=[{"name": "style", "scale": True}]),
        "loras.0.scale: input should not be true or false (found true)",
    ),
    "candidates that begin with a boolean": (
        jsonl(candidates={"start": True, "max": 4, "until_score": 20}),
        "candidates.start: input should not be true or false (found true)",
    ),
    "scale of a LoRA": (jsonl(loras=[{"name": "style", "scale": 99}]), "loras.0.scale: input should be less than or equal to 10"),
    "scale of a control": (
        jsonl(control_type="canny", control_image="good.png", control_scale="-1"),
        "controls.0.scale: input should be greater",
    ),
    "flat control without an image": (jsonl(control_type="canny"), "controls.0.image: missing; it has to be given"),
    "flat image without a type": (jsonl(control_image="good.png"), "controls.0.type: missing; it has to be given"),
    "empty path": (jsonl(init_image=""), "init_image: string should have at least 1 character"),
    "path of the folder": (jsonl(init_image="."), "init_image: .: no such file"),
    "name too long": (jsonl(init_image="x" * 300 + ".png"), "init_image: xxxx"),
    "NUL in a path": (jsonl(init_image="a\0.png"), "init_image: holds a NUL character"),
    "lines in a path": (jsonl(init_image="a\nb.png"), "init_image: a\\nb.png: no such file"),
    "home": (jsonl(init_image="~/a.png"), "init_image: ~/a.png: no such file"),
    "way round a root": (jsonl(init_image="sub/../../x.png"), "init_image: sub/../../x.png: leads out of"),
    "linked folder": (jsonl(init_image="linked/hostname"), "init_image: linked/hostname: leads out of"),
    "links in a circle": (jsonl(init_image="circle.png"), "init_image: circle.png: "),
    "file URI": (jsonl(init_image="file:///etc/passwd"), "init_image: file:///etc/passwd: leads out of"),
    "data URI": (jsonl(init_image="data:image/png;base64,AAAA"), "init_image: data:image/png;base64,AAAA: URLs are not fetched"),
    "URL in capitals": (jsonl(init_image="HTTP://example.com/a.png"), "URLs are not fetched"),
    "tar out of the root": (jsonl(init_image="../x.tar::a.png"), "init_image: ../x.tar::a.png: leads out of"),
    "missing tar": (jsonl(init_image="x.tar::a.png"), "init_image: x.tar::a.png: no such file"),
    "missing member": (jsonl(init_image="samples.tar::z.png"), "z.png: cannot be read: no member z.png"),
    "member that is no image": (jsonl(init_image="samples.tar::a.png"), "a.png: not an image of a kind"),
    "tar that is none": (jsonl(init_image="good.png::a.png"), "good.png::a.png: cannot be read: "),
    "cut JPEG": (jsonl(init_image="cut.jpg"), "init_image: cut.jpg: cannot be decoded: image file is truncated"),
    "cut WebP": (jsonl(init_image="cut.webp"), "init_image: cut.webp: "),
    "cut GIF": (jsonl(init_image="cut.gif"), "init_image: cut.gif: "),
    "damaged PNG": (jsonl(init_image="damaged.png"), "init_image: damaged.png: cannot be decoded"),
    "header alone": (jsonl(init_image="header.png"), "init_image: header.png: "),
    "SVG with a script": (jsonl(init_image="a.svg"), "init_image: a.svg: has an element script: scripts are not run"),
    "PostScript": (
        jsonl(init_image="a.eps"),
        "init_image: a.eps: not an image of a kind that is read here (png, jpg, webp, bmp, tiff, gif, avif, svg, heic)",
    ),
    "icon": (jsonl(init_image="a.ico"), "init_image: a.ico: not an image of a kind"),
    "mask that is no image": (jsonl(init_image="good.png", mask_image="a.eps"), "mask_image: a.eps: not an image"),
    "second control missing": (
        jsonl(controls=[{"type": "canny", "image": i} for i in ("good.png", "gone.png")]),
        "controls.1.image: gone.png: no such",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    damaged = bytearray(encoded("PNG"))
    damaged[3000:3100] = bytes(100)
    contents = {
        "good.png": encoded("PNG"),
        "cut.jpg": encoded("JPEG")[:1000],
        "cut.webp": encoded("WEBP")[:1000],
        "cut.gif": encoded("GIF")[:1000],
        "damaged.png": bytes(damaged),
        "header.png": encoded("PNG")[:33],
        "a.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><script/></svg>',
        "a.eps": encoded("EPS"),
        "a.ico": encoded("ICO"),
        "samples.tar": SAMPLES,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "linked").symlink_to("/etc")
    (folder / "circle.png").symlink_to("circle.png")
    return folder


@pytest.mark.parametrize(("manifest", "says"), ROWS.values(), ids=ROWS)
def test_a_broken_row_is_one_line_with_file_row_and_column_and_its_neighbours_stand(folder, manifest, says):
    name, content = manifest
    (folder / name).write_bytes(content)
    files = [str(folder / name)]
    before, broken, after = check_rows(files, RULES, roots_of(files, (), 64_000_000))
    assert broken.request is None and len(broken.problems) == 1
    (line,) = broken.lines()
    check_line(line, f"{folder}/{name}, row 2: ")
    assert says in line, line
    assert before.request and after.request


def test_a_byte_order_mark_is_fine_in_every_text_format(tmp_path):
    texts = {
        "m.csv": "prompt\nx\n",
        "m.tsv": "prompt\nx\n",
        "m.jsonl": '{"prompt": "x"}',
        "m.json": '[{"prompt": "x"}]',
        "m.txt": "x\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        (checked,) = check_rows([str(tmp_path / name)], RULES)
        assert checked.request.prompt == "x", name


def test_spaces_around_the_names_in_a_header_are_no_part_of_them(tmp_path):
    (tmp_path / "m.csv").write_text("id, prompt , seed\na, x,7\n")
    (checked,) = check_rows([str(tmp_path / "m.csv")], RULES)
    assert (checked.request.prompt, checked.request.seed) == (" x", 7)


@given(st.sampled_from(["jsonl", "json", "csv", "tsv", "txt", "parquet", "tar", "jsonl.gz", "csv.xz"]), st.binary(max_size=300))
def test_any_bytes_make_rows_or_one_line(tmp_path_factory, ending, content):
    place = tmp_path_factory.mktemp("any") / f"m.{ending}"
    place.write_bytes(content)
    try:
        for checked in check_rows(find_files(str(place)), RULES):
            assert checked.request or checked.problems
            for line in checked.lines():
                check_line(line, f"{place}, row ")
    except ManifestError as error:
        check_line(str(error), str(place))


@given(st.data())
def test_a_manifest_with_any_byte_changed_makes_rows_or_one_line(tmp_path_factory, data):
    whole = {
        "m.parquet": parquet({"prompt": ["a", "b"], "seed": [1, 2]}),
        "m.tar": tar(("a.png", b"x"), ("a.json", b'{"prompt": "x"}')),
        "m.json": b'[{"prompt": "a"}, {"prompt": "b", "controls": []}]',
        "m.csv": b'id,prompt\n1,"a"\n2,b\n',
    }
    name = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(whole[name])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    place = tmp_path_factory.mktemp("any") / name
    place.write_bytes(content)
    try:
        for checked in check_rows([str(place)], RULES):
            assert checked.request or checked.problems
    except ManifestError as error:
        check_line(str(error), str(place))


@given(st.data())
def test_a_tar_with_any_byte_changed_gives_its_member_or_one_line(folder, data):
    content = bytearray(tar(("long" * 40 + ".png", encoded("PNG", NOISE.resize((16, 16)))), ("b.png", b"x")))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 2200))] = data.draw(st.integers(0, 255))
    (folder / "any.tar").write_bytes(content)
    try:
        assert load(f"any.tar::{'long' * 40}.png", Roots((str(folder),))).image.size == (16, 16)
    except ImageError as error:
        check_line(str(error), "")


@given(st.data())
def test_an_image_with_any_bytes_changed_is_read_or_one_line(folder, data):
    form = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]))
    content = bytearray(encoded(form, NOISE.resize((16, 16))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "any").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        assert load("any", Roots((str(folder),))).image.width
    except ImageError as error:
        check_line(str(error), "any: ")
