"""References of rows: read from every format, refused in one line, and images of the same sources as those of controls."""

import io
import json
import tarfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from promptmill.configs.parameters import Defaults, Reference
from promptmill.manifests.checking import check_rows
from promptmill.manifests.images import load, roots_of
from promptmill.manifests.own_outputs import as_input
from promptmill.manifests.requests import RowError, from_json, make_request, to_json
from promptmill.manifests.rows import Row
from promptmill.manifests.rules import Rules
from promptmill.manifests.steering import Reading

RULES = Rules(Defaults(width=64, height=64), references=("style", "face"))
STYLE = {"type": "style", "image": "a.png", "scale": 0.5}


def png(red=0, others=0):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (red, others, others)).save(file, "PNG")
    return file.getvalue()


def problems_of(references, rules=RULES):
    with pytest.raises(RowError) as caught:
        make_request(Row("m", 1, {"prompt": "x", "references": references}), 1, rules)
    return caught.value.problems


def test_a_row_has_references_as_a_list_or_as_json_and_survives_json():
    for given in ([STYLE], json.dumps([STYLE])):
        request = make_request(Row("m", 1, {"prompt": "x", "references": given}), 1, RULES)
        assert request.references == (Reference(**STYLE),) and request.mode == "txt2img"
        assert from_json(json.loads(json.dumps(to_json(request)))) == request
        assert dict(request.images()) == {"references.0.image": "a.png"}
    without = make_request(Row("m", 1, {"prompt": "x"}), 1, RULES)
    assert without.references == () and "references" not in to_json(without)


@pytest.mark.parametrize(
    ("references", "says"),
    [
        ([{**STYLE, "type": "stile"}], "references: no adapter 'stile'; did you mean 'style'?"),
        ([{**STYLE, "type": "pose"}], "references: no adapter 'pose'; configured: style, face"),
        (
            [STYLE, {**STYLE, "scale": 1}],
            "references: 'style' has 2 images with scales of their own; images of one adapter without masks are read together",
        ),
        (
            [STYLE, {**STYLE, "mask": "m.png"}, {**STYLE, "mask": "m.png"}],
            "references: 'style' has 3 images, of which 2 with a mask; give all of them one, or none",
        ),
        ([{**STYLE, "mask": ""}], "references.0.mask: "),
        ([{"type": "style"}], "references.0: needs either an image or, for an adapter of faces, an embedding"),
        ([{**STYLE, "embedding": "a.npy"}], "references: 'style' reads pictures: give it an image"),
        ([{"type": "style", "embedding": "a.npy"}], "references: 'style' reads pictures: give it an image"),
        ([{**STYLE, "scale": -1}], "references.0.scale: "),
        ([{**STYLE, "start": 0.5}], "references.0.start: "),
        ("a.png", "references: not a JSON list"),
    ],
)
def test_a_wrong_reference_is_one_line(references, says):
    (problem,) = problems_of(references)
    assert problem.startswith(says), problem


def test_several_images_of_an_adapter_are_read_together_or_each_within_a_mask():
    masked = [{**STYLE, "mask": "left.png"}, {**STYLE, "scale": 1.0, "mask": "right.png"}]
    for given in ([STYLE, STYLE], masked):
        request = make_request(Row("m", 1, {"prompt": "x", "references": given}), 1, RULES)
        assert request.references == tuple(Reference(**one) for one in given)
        assert from_json(json.loads(json.dumps(to_json(request)))) == request
        assert to_json(request)["references"] == given
    assert [column for column, _ in request.images()] == [f"references.{n}.{of}" for n in (0, 1) for of in ("image", "mask")]


def test_a_mask_of_a_reference_is_looked_at_by_the_plan(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    for name, value in (("white", 255), ("black", 0)):
        Image.new("L", (64, 64), value).save(tmp_path / f"{name}.png")
    ways = [{**STYLE, "mask": f"{name}.png"} for name in ("white", "black", "gone")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"prompt": "x", "references": [way]}) + "\n" for way in ways))
    files = [str(tmp_path / "m.jsonl")]
    fine, black, gone = check_rows(files, RULES, roots_of(files, (), 10**6))
    assert set(fine.images) == {"references.0.image", "references.0.mask"} and not fine.problems
    said = "references.0.mask: black.png: selects nothing (no pixel is 128 or more; its greatest is 0)"
    assert black.problems == (said,) and black.request is None
    assert gone.problems[0].startswith("references.0.mask: gone.png")


SEVERAL = Rules(Defaults(width=64, height=64), image_prompts=False, pictures=3)
FURTHER = {"type": "image", "image": "b.png"}


def test_references_of_a_model_that_takes_several_pictures_are_further_pictures_in_their_order():
    given = {"prompt": "x", "init_image": "a.png", "references": [FURTHER, {**FURTHER, "image": "c.png"}]}
    request = make_request(Row("m", 1, given), 1, SEVERAL)
    assert (request.mode, [one.image for one in request.references]) == ("img2img", ["b.png", "c.png"])
    assert [*request.images()] == [("init_image", "a.png"), ("references.0.image", "b.png"), ("references.1.image", "c.png")]
    assert from_json(json.loads(json.dumps(to_json(request)))) == request
    alone = make_request(Row("m", 1, {"prompt": "x", "references": [FURTHER] * 3}), 1, SEVERAL)
    assert (alone.mode, len(alone.references)) == ("txt2img", 3)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"references": [STYLE]}, "references: no type 'style' in this model, whose references are further pictures: 'image'"),
        (
            {"references": [{**FURTHER, "scale": 0.5}]},
            "references: further pictures have neither a scale nor a mask; leave these out",
        ),
        (
            {"references": [{**FURTHER, "scale": 1}]},
            "references: further pictures have neither a scale nor a mask; leave these out",
        ),
        (
            {"references": [{**FURTHER, "mask": "m.png"}]},
            "references: further pictures have neither a scale nor a mask; leave these out",
        ),
        (
            {"references": [{"type": "image", "embedding": "a.npy"}]},
            "references: a further picture is an image; give it an image in place of the embedding",
        ),
        ({"references": [FURTHER] * 4}, "references: 4 pictures, and the model takes 3 at most"),
        (
            {"references": [FURTHER] * 3, "init_image": "a.png"},
            "references: 4 pictures with the init_image, and the model takes 3 at most",
        ),
        (
            {"references": [FURTHER], "init_image": "a.png", "mask_image": "m.png"},
            "references: further pictures do not go with a mask_image; give them to rows of their own",
        ),
        ({"references": [{"type": "image"}]}, "references.0: needs either an image or, for an adapter of faces, an embedding"),
    ],
)
def test_a_wrong_further_picture_is_one_line(row, says):
    with pytest.raises(RowError) as caught:
        make_request(Row("m", 1, {"prompt": "x", **row}), 1, SEVERAL)
    assert caught.value.problems == (says,)


def test_where_a_model_begins_with_a_picture_a_row_of_references_alone_is_told_so():
    with pytest.raises(RowError) as caught:
        make_request(Row("m", 1, {"prompt": "x", "references": [FURTHER]}), 1, replace(SEVERAL, modes=("img2img",)))
    said = "mode: txt2img is not served by the model; it serves img2img; give the first picture as init_image"
    assert caught.value.problems == (said,)


def test_a_model_of_one_picture_refuses_further_ones_and_says_which_take_several():
    for images in ({}, {"init_image": "a.png"}):
        with pytest.raises(RowError) as caught:
            make_request(Row("m", 1, {"prompt": "x", "references": [FURTHER], **images}), 1, Rules(Defaults(), image_prompts=False))
        assert caught.value.problems == (
            "references: the model takes no further pictures beside an init_image; leave them out; FLUX.2, Qwen-Image-Edit-Plus,"
            " Qwen-Image 2.1, Bria FIBO 2 and FIBO Edit take several pictures",
        )


def test_further_pictures_that_are_not_there_or_are_too_elongated_are_one_line_of_the_plan(tmp_path):
    for name, size in {"a": (64, 64), "long": (900, 100), "fine": (800, 100)}.items():
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    rows = [
        {"prompt": "x", "init_image": "a.png", "references": [{**FURTHER, "image": f"{name}.png"}]}
        for name in ("fine", "long", "gone")
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / "m.jsonl")]
    fine, long, gone = check_rows(files, SEVERAL, roots_of(files, (), 10**6))
    assert set(fine.images) == {"init_image", "references.0.image"} and not fine.problems
    said = "references.0.image: long.png: 900×100 pixels: one side is more than 8 times the other; crop the picture"
    assert long.problems == (said,) and long.request is None
    (problem,) = gone.problems
    assert problem.startswith("references.0.image: gone.png") and gone.request is None
    (large,) = [one for one in check_rows(files, SEVERAL, roots_of(files, (), 70_000)) if one.number == 1]
    assert large.problems == ("references.0.image: fine.png: 800 x 100 pixels are more than the 70,000 allowed",)


def test_references_that_nothing_takes_are_one_line():
    (problem,) = problems_of([STYLE], Rules(Defaults()))
    assert problem == "references: no adapter 'style'; none is configured in model.references"
    (problem,) = problems_of([STYLE], Rules(Defaults(), image_prompts=False))
    assert problem.startswith("references: the model takes no reference images; IP-Adapters are for Stable Diffusion, SDXL,")


@pytest.mark.parametrize(
    ("reading", "references", "says"),
    [
        (
            Reading(masks=False),
            [{**STYLE, "mask": "m.png"}],
            "references: 'style' has a mask, and the model's adapters act everywhere",
        ),
        (Reading(several=False), [STYLE, STYLE], "references: 'style' has 2 images, and the model's adapter reads one"),
        (
            Reading(modes=("img2img", "inpaint")),
            [STYLE],
            "references: diffusers' pipeline for txt2img takes no reference images; those for img2img, inpaint do",
        ),
    ],
)
def test_what_a_models_adapters_do_not_take_is_one_line(reading, references, says):
    (problem,) = problems_of(references, replace(RULES, reading=reading))
    assert problem.startswith(says), problem


def test_a_reference_that_is_not_there_is_one_line_of_the_plan(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    rows = [{"prompt": "x", "references": [STYLE]}, {"prompt": "y", "references": [{**STYLE, "image": "gone.png"}]}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / "m.jsonl")]
    fine, bad = check_rows(files, RULES, roots_of(files, (), 10**6))
    assert set(fine.images) == {"references.0.image"} and not fine.problems
    (problem,) = bad.problems
    assert problem.startswith("references.0.image: gone.png") and bad.request is None


def test_references_lie_in_cells_of_parquet(tmp_path):
    packed = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kind = pa.list_(pa.struct([("type", pa.string()), ("image", packed), ("mask", packed)]))
    image, mask = ({"bytes": made, "path": "s.png"} for made in (png(7), png(255, 255)))
    packed = [[{"type": "style", "image": image, "mask": mask}, {"type": "face", "image": image}], None]
    file = str(tmp_path / "m.parquet")
    pq.write_table(pa.table({"prompt": ["a", "b"], "references": pa.array(packed, kind)}), file)
    roots = roots_of([file], (), 10**6)
    first, second = check_rows([file], RULES, roots)
    one, other = first.request.references
    assert (one.image, one.mask) == ("m.parquet::references.0.image/1", "m.parquet::references.0.mask/1")
    assert (other.image, other.mask, second.request.references) == ("m.parquet::references.1.image/1", None, ())
    assert first.images and load(first.request.references[0].image, roots).image.getpixel((0, 0)) == (7, 0, 0)


def test_a_reference_without_an_image_takes_that_of_a_tars_sample(tmp_path):
    described = json.dumps({"prompt": "p", "references": [{"type": "face", "scale": 0.3}]}).encode()
    with tarfile.open(tmp_path / "m.tar", "w") as tar:
        for name, content in (("a.png", png()), ("a.json", described)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    files = [str(tmp_path / "m.tar")]
    (checked,) = check_rows(files, RULES, roots_of(files, (), 10**6))
    assert not checked.problems and checked.request.init_image is None
    assert checked.request.references == (Reference(type="face", image="m.tar::a.png", scale=0.3),)


def test_a_second_pass_takes_references_over_without_their_hashes():
    row = {"key": "k", "candidate_index": 0, "selected": True, "pixel_sha256": "0", "prompt": "p", "clip_score": 1.0}
    row |= {"references": [{**STYLE, "sha256": "0" * 64, "mask_sha256": "1" * 64, "embedding_sha256": "2" * 64}], "sha256": "1"}
    assert as_input(row)["references"] == [STYLE]
    # An older output may carry a column of the manifest's own by this name, behind all of promptmill's.
    old = {name: value for name, value in row.items() if name != "references"} | {"references": "Smith 2020"}
    assert as_input(old)["references"] == "Smith 2020"


CONTROL = {"type": "canny", "image": "a.png"}
HELD = {"a NUL character; is this text?": "\0", "U+FEFF, a byte order mark; take it out": "\ufeff"}


@pytest.mark.parametrize(("says", "held"), HELD.items())
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("name", "entry", "key"),
    [
        ("references", STYLE, "image"),
        ("references", STYLE, "type"),
        ("controls", CONTROL, "image"),
        ("controls", CONTROL, "type"),
        ("controls", CONTROL, "preprocess"),
        ("loras", {"name": "style"}, "name"),
    ],
)
def test_a_text_within_a_list_is_no_text_with_a_nul_or_a_mark_of_byte_order(name, entry, key, as_json, says, held):
    rules = Rules(Defaults(width=64, height=64), references=("style",), controls=("canny",), loras=("style",))
    listed = [{**entry, key: f"{entry.get(key, 'none')}{held}"}]
    given = {"prompt": "x", name: json.dumps(listed) if as_json else listed}
    with pytest.raises(RowError) as caught:
        make_request(Row("m", 1, given), 1, rules)
    assert f"{name}.0.{key}: holds {says}" in caught.value.problems
    assert make_request(Row("m", 1, {"prompt": "x", name: [entry]}), 1, rules)


def test_a_reference_so_narrow_that_its_row_would_fail_is_a_bad_row_of_the_plan(tmp_path):
    for name, size in (("long", (1, 101)), ("just", (2, 200))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    rows = [{"id": name, "prompt": "x", "references": [{**STYLE, "image": f"{name}.png"}]} for name in ("long", "just")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    narrow, just = check_rows([str(tmp_path / "m.jsonl")], RULES, roots_of([str(tmp_path / "m.jsonl")], (), 10**6))
    (problem,) = narrow.problems
    assert problem.startswith("references.0.image: long.png: 1×101 pixels: one side is more than 100 times the other")
    assert not just.problems
