"""That pictures of every tool make rows of what their metadata say, and that the rest is said."""

import io
import json
import os
import pickle
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from promptmill.configs.listed_manifests import Pictures
from promptmill.configs.parameters import Defaults
from promptmill.manifests import picture_texts
from promptmill.manifests.checking import check_rows
from promptmill.manifests.images import roots_of
from promptmill.manifests.picture_rows import find_pictures, hash_of_pictures, rows_of_pictures, values_of
from promptmill.manifests.picture_texts import UnreadError, read_texts
from promptmill.manifests.rows import ManifestError
from promptmill.manifests.rules import Rules
from tests.manifests.pictures import (
    A1111,
    COMFYUI,
    FLUX,
    INVOKEAI,
    MIDJOURNEY,
    chunk,
    jpeg_with_xmp,
    of_each_tool,
    picture,
    png,
    png_of,
    with_comment,
)

FILES = of_each_tool()
RULES = Rules(Defaults(width=64, height=64), further=("true_cfg_scale",))
SHARED = {"candidates": 1, "keep": 1}
_A1111 = {
    "prompt": "a cat, (sitting:1.2) on a mat\nsecond line",
    "negative_prompt": "blurry, dog\nstill negative",
    "steps": 25,
    "scheduler": "dpmpp_2m_karras",
    "guidance_scale": 6.5,
    "seed": 965400086,
    "width": 512,
    "height": 768,
    "variation_seed": 7,
    "variation_strength": 0.25,
    **SHARED,
}
_COMFYUI = {
    "prompt": "a glass bottle in a landscape",
    "negative_prompt": "text, watermark",
    "steps": 22,
    "guidance_scale": 8.0,
    "scheduler": "dpmpp_2m_karras",
    "seed": 156680208,
    "width": 640,
    "height": 512,
    "loras": [],
    **SHARED,
}
_MIDJOURNEY = {
    "prompt": "a fox in the snow, 35mm",
    "negative_prompt": "people, text",
    "seed": 99,
    "width": 64,
    "height": 48,
    **SHARED,
}
EXPECTED = {
    "a1111.png": _A1111,
    "a1111-umlaut.png": {**_A1111, "prompt": "猫 ä, (sitting:1.2) on a mat\nsecond line"},
    "a1111.jpg": _A1111,
    "a1111.webp": _A1111,
    "forge.png": {
        "prompt": "a red barn",
        "steps": 20,
        "scheduler": "euler",
        "guidance_scale": 3.5,
        "seed": 3,
        "width": 896,
        "height": 1152,
        **SHARED,
    },
    "comfyui.png": _COMFYUI,
    "comfyui.webp": _COMFYUI,
    "invokeai.png": {
        "prompt": "a lighthouse",
        "negative_prompt": "people",
        "steps": 30,
        "guidance_scale": 5.5,
        "guidance_rescale": 0.5,
        "scheduler": "dpmpp_2m_sde_karras",
        "seed": 4033289,
        "width": 1024,
        "height": 768,
        "loras": [],
        **SHARED,
    },
    "invokeai-2.png": {
        "prompt": "a lighthouse",
        "negative_prompt": "people",
        "steps": 30,
        "guidance_scale": 7.5,
        "scheduler": "lms",
        "seed": 77,
        "width": 512,
        "height": 448,
        **SHARED,
    },
    "fooocus.png": {
        "prompt": "a paper boat",
        "steps": 30,
        "guidance_scale": 4.0,
        "scheduler": "dpmpp_2m_sde_karras",
        "seed": 5551,
        "width": 1152,
        "height": 896,
        **SHARED,
    },
    "novelai.png": {
        "prompt": "a fox in snow",
        "negative_prompt": "lowres",
        "steps": 28,
        "guidance_scale": 11.0,
        "scheduler": "euler_a",
        "seed": 42,
        "width": 64,
        "height": 48,
        **SHARED,
    },
    "midjourney.png": _MIDJOURNEY,
    "midjourney.jpg": _MIDJOURNEY,
}


def read(content, use="render", loras=()):
    values, notes, _ = values_of("a", read_texts(io.BytesIO(content)), use, loras)
    return values, notes


def columns(values):
    return {name: value for name, value in values.items() if name not in ("id", "picture_tool", "picture_unread")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pictures")
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    return place


@pytest.mark.parametrize("name", EXPECTED)
def test_a_picture_makes_the_row_that_its_tool_rendered(name):
    values, _ = read(FILES[name])
    assert columns(values) == EXPECTED[name]


def test_pictures_of_each_tool_are_expected():
    assert set(EXPECTED) == set(FILES)
    tools = {read(content)[0]["picture_tool"] for content in FILES.values()}
    assert tools == {"A1111", "ComfyUI", "InvokeAI", "Fooocus", "NovelAI", "Midjourney"}


def test_rows_of_a_folder_are_its_pictures_by_name_and_each_makes_a_request(folder):
    (file,) = find_pictures(Pictures(pictures=str(folder)))
    checked = list(check_rows([file], RULES, roots_of([file], (), 10**8)))
    assert [one.request.id for one in checked] == sorted(FILES)
    assert [one.row.number for one in checked] == list(range(1, len(FILES) + 1))


def test_varied_pictures_have_no_seed_and_keep_the_rest(folder):
    for name, content in FILES.items():
        values, _ = read(content, "vary")
        of_noise = ("seed", "variation_seed", "variation_strength", "candidates", "keep")
        assert columns(values) == {column: value for column, value in EXPECTED[name].items() if column not in of_noise}


def test_an_init_image_is_the_picture_itself_under_the_pictures_own_prompt(folder):
    (file,) = find_pictures(Pictures(pictures=f"{folder}/a1111.png", use="init_image"))
    (one,) = check_rows([file], RULES, roots_of([file], (), 10**8))
    assert (one.request.mode, one.request.init_image, one.request.seed) == ("img2img", "a1111.png", None)
    assert one.request.prompt == _A1111["prompt"] and one.request.strength == 0.8 and set(one.images) == {"init_image"}


def test_a_picture_without_metadata_is_a_bad_row_or_an_init_image_with_a_note():
    plain = png({})
    with pytest.raises(UnreadError, match="has no metadata of a tool that is known"):
        read(plain)
    values, notes = read(plain, "init_image")
    assert columns(values) == {"init_image": "a", "width": 64, "height": 48} and "has no metadata" in notes[0]


def test_a_description_that_is_no_prompt_is_none():
    for said in ("OLYMPUS DIGITAL CAMERA", "a walk --- by the sea"):
        with pytest.raises(UnreadError, match="no metadata"):
            read(jpeg_with_xmp(said))


def test_parameters_that_a_row_does_not_have_are_named_and_kept_beside_the_row():
    values, notes = read(FILES["a1111.png"])
    unread = json.loads(values["picture_unread"])
    assert unread["VAE"] == "a, b: c" and unread["Hires upscale"] == "2" and unread["Version"] == "v1.10.1"
    assert {note.split(" is not taken over")[0] for note in notes} == {
        f"picture: its {name}" for name in ("Denoising strength", "Clip skip", "Hires upscale")
    }
    _, notes = read(png({"parameters": "a\nSteps: 1, Sampler: Euler, Seed: 1, Frobnication: 9"}))
    assert notes == ("picture: has parameters that are not taken over; picture_unread has them",)


@pytest.mark.parametrize(
    ("sampler", "scheduler", "words"),
    [
        ("DPM adaptive", None, "its sampler DPM adaptive has no counterpart"),
        ("Frobnicate 3000", None, "its sampler is not known"),
        ("Euler, Schedule type: Exponential", "euler", "its spacing of sigmas has no counterpart"),
        ("DPM++ 2M, Schedule type: Automatic", "dpmpp_2m_karras", None),
    ],
)
def test_a_sampler_without_a_counterpart_is_said(sampler, scheduler, words):
    values, notes = read(png({"parameters": f"a\nSteps: 1, Sampler: {sampler}, Seed: 1"}))
    assert values.get("scheduler") == scheduler
    assert [note for note in notes if words and words in note] == list(notes)
    assert words is None or "picture_unread" in values


def test_a_lora_that_the_config_declares_is_used_and_another_is_named():
    for name, lora, scale in (("comfyui.png", "detail", 0.8), ("invokeai.png", "ink", 0.75)):
        values, notes = read(FILES[name], loras=(lora, "other"))
        assert values["loras"] == [{"name": lora, "scale": scale}] and not any("LoRA" in note for note in notes)
        values, notes = read(FILES[name], loras=("other",))
        assert values["loras"] == [] and lora in json.loads(values["picture_unread"])["LoRAs"]
        assert [note for note in notes if "a LoRA that the config does not declare" in note]


@pytest.mark.parametrize("seed", [2**32, 123456789012345678, -1])
def test_a_seed_beyond_32_bits_is_left_out_and_said(seed):
    graph = json.loads(json.dumps(COMFYUI))
    graph["3"]["inputs"]["seed"] = seed
    values, notes = read(png({"prompt": json.dumps(graph)}))
    assert "seed" not in values and "candidates" not in values
    assert json.loads(values["picture_unread"])["seed"] == str(seed) and any(
        "its seed has more than 32 bits" in note for note in notes
    )


def test_of_several_samplers_the_one_that_begins_with_noise_is_taken():
    turned = {name: COMFYUI[name] for name in ("11", "3", "5", "6", "7", "10", "4")}
    values, notes = read(png({"prompt": json.dumps(turned)}))
    assert values["seed"] == 156680208 and "picture: has several samplers, of which the first is taken over" in notes


def test_a_sampler_that_is_spread_over_nodes_is_read_as_one():
    values, notes = read(png({"prompt": json.dumps(FLUX)}))
    assert columns(values) == {
        "prompt": "a red barn",
        "steps": 28,
        "scheduler": "euler",
        "guidance_scale": 3.5,
        "seed": 219670278,
        "width": 1024,
        "height": 768,
        **SHARED,
    }
    assert notes == (
        "picture: its spacing of sigmas has no counterpart, and the scheduler's own takes its place; picture_unread has it",
    )
    guided = json.loads(json.dumps(FLUX))
    guided["22"] = {"class_type": "CFGGuider", "inputs": {"cfg": 4.0, "positive": ["6", 0], "negative": ["7", 0]}}
    guided["7"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "dog", "clip": ["11", 0]}}
    values, _ = read(png({"prompt": json.dumps(guided)}))
    assert (values["guidance_scale"], values["negative_prompt"], values["prompt"]) == (4.0, "dog", "a red barn")


def test_nodes_that_no_row_has_are_named():
    more = {"20": {"class_type": "ControlNetApply", "inputs": {"strength": 0.7, "image": ["9", 0]}}, "21": {"class_type": "MyNode"}}
    values, notes = read(png({"prompt": json.dumps({**COMFYUI, **more})}))
    assert json.loads(values["picture_unread"])["ControlNetApply"] == '{"strength": 0.7}'
    assert any("its ControlNetApply is not taken over" in note for note in notes) and any(
        "has parameters" in note for note in notes
    )


def test_only_parts_that_were_given_are_columns():
    assert columns(read(png({"parameters": "just words"}))[0]) == {"prompt": "just words", "width": 64, "height": 48}
    values, _ = read(png({"parameters": "Negative prompt: dog\nSteps: 3, Sampler: Euler, Seed: 0"}, (60, 48)))
    assert columns(values) == {"negative_prompt": "dog", "steps": 3, "scheduler": "euler", "seed": 0, **SHARED}
    without = {name: value for name, value in INVOKEAI.items() if name not in ("scheduler", "cfg_scale")} | {"guidance": 3.5}
    values, _ = read(png({"invokeai_metadata": json.dumps(without)}))
    assert "scheduler" not in values and values["guidance_scale"] == 3.5


@pytest.mark.parametrize(("packed", "international"), [(True, False), (False, True), (True, True)])
def test_compressed_and_international_texts_of_png_are_read(packed, international):
    assert columns(read(png({"parameters": A1111}, packed=packed, international=international))[0]) == _A1111


def test_a_user_comment_is_read_in_either_byte_order_and_encoding():
    for order in ("II", "MM"):
        for text in (b"UNICODE\0" + A1111.encode(code) for code in ("utf-16-le", "utf-16-be", "utf-16")):
            exif = Image.Exif()
            exif.endian = "<" if order == "II" else ">"
            exif.get_ifd(0x8769)[0x9286] = text
            file = io.BytesIO()
            picture().save(file, "JPEG", exif=exif)
            assert columns(read(file.getvalue())[0]) == {**_A1111}
    file = io.BytesIO()
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + A1111.encode()
    picture().save(file, "WEBP", exif=exif)
    assert columns(read(file.getvalue())[0]) == _A1111


def test_patterns_name_pictures_from_the_folder_where_they_begin(tmp_path, monkeypatch):
    for name in ("a/2.png", "a/1.PNG", "a/b/3.png", "[x]/4.png", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(FILES["a1111.png"])
    monkeypatch.chdir(tmp_path / "a")

    def found(pattern):
        (file,) = find_pictures(Pictures(pictures=pattern))
        return file.folder, file.names, file.others

    here = str(tmp_path)
    assert found("*.png") == (f"{here}/a", ("2.png",), 0)
    assert found(".") == found(f"{here}/a") == found("../a/") == (f"{here}/a", ("1.PNG", "2.png"), 1)
    assert found("../**/*.png") == (here, ("[x]/4.png", "a/2.png", "a/b/3.png"), 0)
    assert found(f"{here}/[x]") == (f"{here}/[x]", ("4.png",), 0)
    assert found(f"{here}/[x]/4.png") == (f"{here}/[x]", ("4.png",), 0)
    assert found(f"file://{here}/a/*") == (f"{here}/a", ("1.PNG", "2.png"), 1)
    for nothing in ("*.gif", "notes.txt", "/nowhere/*.png"):
        with pytest.raises(ManifestError):
            found(nothing)


def test_a_link_leads_no_further_than_that_of_any_image(tmp_path):
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(FILES["a1111.png"])
    (tmp_path / "in/b.png").symlink_to("a.png")
    (tmp_path / "in/c.png").symlink_to(tmp_path / "out/a.png")
    os.mkfifo(tmp_path / "in/d.png")
    (file,) = find_pictures(Pictures(pictures=str(tmp_path / "in")))
    first, second, third = rows_of_pictures(file)
    assert first.broken is None and second.broken is None
    assert "c.png" in third.broken and "is a link to" in third.broken
    (file,) = find_pictures(Pictures(pictures=str(tmp_path / "in")), (), (str(tmp_path / "out"),))
    assert [row.broken for row in rows_of_pictures(file)] == [None] * 3


def test_a_name_that_is_no_text_makes_a_bad_row(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"\xff.png"), "wb") as stream:  # noqa: PTH118, PTH123
        stream.write(FILES["a1111.png"])
    (file,) = find_pictures(Pictures(pictures=str(tmp_path)))
    (checked,) = check_rows([file], RULES)
    assert "has a name that is not UTF-8" in checked.lines()[0] and checked.lines()[0].encode()
    assert len(hash_of_pictures(file)) == 64


def test_pictures_of_a_storage_are_read(folder):
    memory = fsspec.filesystem("memory")
    memory.pipe("/shots/a.png", FILES["a1111.png"])
    memory.pipe("/shots/b.txt", b"x")
    try:
        for pattern in ("memory://shots", "memory://shots/*.png"):
            (file,) = find_pictures(Pictures(pictures=pattern))
            (row,) = rows_of_pictures(file)
            assert row.values["id"] == "a.png" and row.values["seed"] == 965400086
    finally:
        memory.rm("/shots", recursive=True)


def test_files_that_are_no_pictures_are_counted_in_a_note(tmp_path):
    (tmp_path / "a.png").write_bytes(FILES["a1111.png"])
    (tmp_path / "a.txt").write_text("x")
    (file,) = find_pictures(Pictures(pictures=str(tmp_path)))
    notes = []
    assert len(list(rows_of_pictures(file, notes.append))) == 1
    assert len(notes) == 1 and "1 file is no picture" in notes[0]


def test_the_hash_follows_what_pictures_say_and_not_their_pixels(tmp_path):
    def hash_of(content, use="render"):
        (tmp_path / "a.png").write_bytes(content)
        (file,) = find_pictures(Pictures(pictures=str(tmp_path), use=use))
        assert pickle.loads(pickle.dumps(file)) == file and pickle.loads(pickle.dumps(file)).names == file.names
        return hash_of_pictures(file)

    one = hash_of(png({"parameters": A1111}))
    assert one == hash_of(png_of(chunk(b"tEXt", b"parameters\0" + A1111.encode())))
    assert len({one, hash_of(png({"parameters": A1111.replace("25", "26")})), hash_of(png({"parameters": A1111}), "vary")}) == 3


# --- what a stranger's pictures may hold


class Counting(io.BytesIO):
    """A file that counts the bytes that are read of it."""

    read_bytes = 0

    def read(self, size=-1):
        content = super().read(size)
        self.read_bytes += len(content)
        return content


def test_pixels_are_passed_over_unread():
    noise = Image.effect_noise((512, 512), 90)
    file = io.BytesIO()
    noise.save(file, "PNG")
    stream = Counting(file.getvalue())
    assert len(stream.getvalue()) > 100_000 and read_texts(stream).size == (512, 512)
    assert stream.read_bytes < 1000


def test_a_folder_is_read_a_picture_at_a_time(folder, monkeypatch):
    opened = []
    monkeypatch.setattr("promptmill.manifests.picture_rows.read_texts", lambda stream: opened.append(1) or read_texts(stream))
    (file,) = find_pictures(Pictures(pictures=str(folder)))
    rows = rows_of_pictures(file)
    next(rows)
    assert len(opened) == 1
    assert all(type(row.file) is str for row in rows)  # rows go to other processes without the names of all pictures


def test_only_the_endings_of_read_formats_are_taken():
    assert picture_texts.ENDINGS == (".png", ".jpg", ".jpeg", ".jfif", ".webp")
    assert {Path(name).suffix for name in FILES} == {".png", ".jpg", ".webp"}
    assert columns(read(with_comment("JPEG", MIDJOURNEY))[0])["prompt"].startswith("a fox")
