"""Rows that would be read as something else than was meant, and without a word: each is refused, by file and row."""

import io
import json
import tarfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptmill.configs.parameters import Defaults
from promptmill.configs.schema import Ranking
from promptmill.manifests.carried import Types, cast
from promptmill.manifests.checking import check_rows
from promptmill.manifests.images import ImageError, Roots, load
from promptmill.manifests.rows import MAX_BLANK, MAX_ROW
from promptmill.manifests.rules import Repainting, Rules
from promptmill.manifests.sources import ManifestError, read_rows
from promptmill.pipelines.models.sources import local_folder
from promptmill.pipelines.work.errors import ModelError

RULES = Rules(Defaults(width=64, height=64), controls=("canny",), loras=("style",))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
ANNEX = b"/annex/objects/SHA256E-s10--4d7a2146.png\n"


def tar_of(**members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name.replace("_", "."))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def check(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(check_rows([str(folder / name)], RULES))


DOUBLED = {
    "a column": ("m.jsonl", '{"prompt": "a cat", "prompt": "a dog"}', "prompt: given twice"),
    "a column in an array": ("m.json", '[{"seed": 1, "prompt": "a", "seed": 2}]', "seed: given twice"),
    "a column of ours that is not known": ("m.jsonl", '{"prompt": "a", "topic": 1, "topic": 1}', "topic: given twice"),
    "a key behind text with colons": ("m.jsonl", '{"prompt": "a: b", "seed": 1, "seed": 2}', "seed: given twice"),
    "a key written in two ways": ("m.jsonl", '{"prompt": "a", "seed": 1, "se\\u0065d": 2}', "seed: given twice"),
    "a key behind a colon that is written as a number": (
        "m.jsonl",
        '{"seed": 1, "seed": 2, "prompt": "\\u003a"}',
        "seed: given twice",
    ),
    "a control's": (
        "m.jsonl",
        '{"prompt": "a", "controls": [{"type": "canny", "image": "a", "image": "b"}]}',
        "image: given twice",
    ),
    "a carried object's": ("m.jsonl", '{"prompt": "a", "note": {"x": {"y": 1, "y": 2}}}', "y: given twice"),
    "a control's in a cell": (
        "m.csv",
        'prompt,controls\na,"[{""type"": ""canny"", ""image"": ""a"", ""type"": ""seg""}]"\n',
        "controls: not a JSON list: type: given twice",
    ),
    "a LoRA's in a cell": ("m.csv", 'prompt,loras\na,"[{""name"": ""a"", ""name"": ""style""}]"\n', "loras: not a JSON list: name"),
    "a sample's of a tar": ("m.tar", tar_of(a_png=b"x", a_json=b'{"prompt": "a", "prompt": "b"}'), "a.json: prompt: given twice"),
}


@pytest.mark.parametrize(("name", "content", "says"), DOUBLED.values(), ids=DOUBLED)
def test_a_key_that_is_given_twice_is_a_bad_row(tmp_path, name, content, says):
    (bad,) = check(tmp_path, name, content)
    assert bad.request is None and says in bad.lines()[0]


@pytest.mark.parametrize(
    "value", ['{"a": {"k": 1}, "b": {"k": 2}}', '[{"k": 1}, {"k": 1}]', '"{\\"k\\": 1, \\"k\\": 2}"', '"k: 1, k: 2"']
)
def test_keys_of_different_objects_and_colons_in_texts_are_no_doubles(tmp_path, value):
    (good,) = check(tmp_path, "m.jsonl", f'{{"prompt": "a", "note": {value}}}')
    assert good.request.carried == {"note": json.loads(value)}


@pytest.mark.parametrize("depth", [60, 300, 500, 900, 2000])
@pytest.mark.parametrize("kinds", ["[]", '{"x:":}'])
def test_a_row_of_any_depth_is_one_line(tmp_path, depth, kinds):
    start, end = kinds[:-1], kinds[-1]
    row = f'{{"prompt": "x", "deep": {start * depth}1{end * depth}}}'
    for name, content in (("m.jsonl", row), ("m.json", f"[{row}]")):
        try:
            (bad,) = check(tmp_path, name, content)
        except ManifestError as error:
            assert name == "m.json" and "not JSON" in str(error)  # noqa: PT017
        else:
            assert bad.request is None and len(bad.problems) == 1


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "txt", "parquet", "tar", "jsonl.gz"])
@pytest.mark.parametrize(("content", "called"), [(POINTER, "Git LFS pointer"), (ANNEX, "git-annex pointer")])
def test_a_pointer_in_place_of_a_manifest_is_called_one(tmp_path, ending, content, called):
    with pytest.raises(ManifestError, match=rf"m\.{ending}: is a {called}, not the file itself; run `git "):
        check(tmp_path, f"m.{ending}", content)


@pytest.mark.parametrize("path", ["a.png", "a.tar::b.png"])
def test_a_pointer_in_place_of_an_image_or_its_tar_is_called_one(tmp_path, path):
    (tmp_path / path.partition("::")[0]).write_bytes(POINTER)
    with pytest.raises(ImageError, match="is a Git LFS pointer, not the file itself; run `git lfs pull`"):
        load(path, Roots((str(tmp_path),)))


def test_a_pointer_in_place_of_weights_is_called_one(tmp_path):
    (tmp_path / "lora.safetensors").write_bytes(POINTER)
    with pytest.raises(ModelError, match=r"lora\.safetensors: is a Git LFS pointer"):
        local_folder(str(tmp_path / "lora.safetensors"))


MARK = "\ufeff"
INSIDE = {
    "a second header": ("m.csv", "id,prompt\na,x\nid,prompt\nb,y\n", "is the header again"),
    "a second header with a mark": ("m.csv", f"id,prompt\na,x\n{MARK}id,prompt\nb,y\n", "U+FEFF"),
    "a second header in another order": ("m.tsv", "id\tprompt\na\tx\nprompt\tid\nb\ty\n", "is the header again"),
    "a mark before a row of cells": ("m.csv", f"id,prompt\na,x\n{MARK}c,z\nb,y\n", "U+FEFF"),
    "a mark before a row of JSON": ("m.jsonl", f'{{"prompt": "x"}}\n{MARK}{{"prompt": "z"}}\n{{"prompt": "y"}}', "U+FEFF"),
    "a mark before a line": ("m.txt", f"x\n{MARK}z\ny\n", "prompt: holds U+FEFF"),
    "a mark in an id": ("m.jsonl", f'{{"prompt": "x"}}\n{{"prompt": "z", "id": "{MARK}c"}}\n{{"prompt": "y"}}', "id: holds U+FEFF"),
}


@pytest.mark.parametrize(("name", "content", "says"), INSIDE.values(), ids=INSIDE)
def test_what_joined_files_have_inside_is_a_bad_row_between_good_ones(tmp_path, name, content, says):
    before, bad, after = check(tmp_path, name, content)
    assert before.request and after.request and bad.request is None
    assert says in bad.lines()[0], bad.lines()


@pytest.mark.parametrize("header", [f"{MARK}{MARK}id,prompt", f"id,{MARK}prompt", 'id, "prompt"'])
def test_a_header_with_a_mark_or_a_loose_quote_inside_ends_the_manifest(tmp_path, header):
    with pytest.raises(ManifestError, match=r"m\.csv: .*the header"):
        check(tmp_path, "m.csv", f"{header}\na,x\n")


@pytest.mark.parametrize("cells", ['a, "a cat, red", 7', 'a, "a cat", 7', '"a",\t"a cat",7'])
def test_a_quote_behind_a_space_is_told_and_never_part_of_a_prompt(tmp_path, cells):
    (bad,) = check(tmp_path, "m.csv", f"id,prompt,seed\n{cells}\n")
    assert bad.request is None and "a quote stands behind a space" in bad.problems[0]


@pytest.mark.parametrize(
    ("header", "hint"),
    [("ID,Prompt", "Prompt (did you mean 'prompt'?)"), ("id,promt", "promt (did you mean 'prompt'?)"), ("id,PROMPT", "'prompt'")],
)
def test_a_row_that_is_refused_says_which_column_may_have_been_meant(tmp_path, header, hint):
    (bad,) = check(tmp_path, "m.csv", f"{header}\na,a cat\n")
    assert len(bad.problems) == 1 and bad.problems[0].startswith("prompt: missing") and hint in bad.problems[0]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400", '{"x": [NaN]}', "[1, -Infinity]"])
@pytest.mark.parametrize("name", ["m.jsonl", "m.json"])
def test_a_number_that_json_has_not_is_a_bad_row_with_its_column(tmp_path, number, name):
    row = f'{{"prompt": "x", "w": {number}}}'
    (bad,) = check(tmp_path, name, f"[{row}]" if name == "m.json" else row)
    assert bad.request is None and "w: input should be a finite number" in bad.lines()[0]


def test_nan_of_parquet_is_null_and_infinity_a_bad_row(tmp_path):
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "w": [float("nan"), float("inf"), 1.5]}), tmp_path / "m.parquet")
    missing, infinite, whole = check_rows([str(tmp_path / "m.parquet")], RULES)
    assert missing.request.carried == {"w": None} and whole.request.carried == {"w": 1.5}
    assert infinite.request is None and infinite.problems == ("w: is inf, and JSON has no such number; leave it empty",)


def test_a_nul_character_is_a_bad_row_in_every_format(tmp_path):
    texts = {
        "m.jsonl": b'{"prompt": "a\\u0000"}',
        "m.json": b'[{"prompt": "a\\u0000"}]',
        "m.csv": b"prompt\na\0\n",
        "m.tsv": b"prompt\na\0\n",
        "m.txt": b"a\0\n",
        "m.tar": tar_of(a_png=b"x", a_txt=b"a\0"),
    }
    for name, content in texts.items():
        (bad,) = check(tmp_path, name, content)
        assert bad.request is None and "holds a NUL character" in bad.lines()[0], name
    for column in ("prompt", "note"):
        pq.write_table(
            pa.table({"prompt": ["x"], column: ["a\0"]} if column == "note" else {"prompt": ["a\0"]}), tmp_path / "m.parquet"
        )
        (bad,) = check_rows([str(tmp_path / "m.parquet")], RULES)
        assert bad.request is None and bad.problems[0].startswith(f"{column}: holds a NUL character")
    (bad,) = check(tmp_path, "m.jsonl", '{"prompt": "x", "note": {"a": ["b\\u0000"]}}')
    assert bad.problems == ("note: holds a NUL character; is this text?",)


def test_an_int_that_no_float_holds_is_carried_as_it_is_beside_floats():
    types = Types()
    for value in (2**53 + 1, 0.5):
        assert types.see({"n": value}) == []
    kind = types.result()["n"]
    assert cast(2**53 + 1, kind) == "9007199254740993"
    exact = Types()
    for value in (2**53, 0.5):
        exact.see({"n": value})
    assert exact.result() == {"n": "float64"}


@pytest.mark.parametrize(
    ("prompt", "note"),
    [('--prompt "a dog" --seed 5', "begins with --"), ("# my prompts", "begins with --"), ("a cat <lora:foo:0.8>", "<lora:…>")],
)
def test_what_other_tools_read_in_a_prompt_is_a_note(tmp_path, prompt, note):
    plain, noted = check(tmp_path, "m.txt", f"a - b # c // d\n{prompt}\n")
    assert not plain.notes and note in noted.notes[0] and noted.request.prompt == prompt


@pytest.mark.parametrize(("name", "start"), [("m.jsonl", ""), ("m.txt", ""), ("m.csv", "prompt\n"), ("m.json", "[")])
def test_emptiness_without_end_is_an_error_and_not_a_wait(tmp_path, name, start):
    blank = " " * (2 * MAX_ROW) if name == "m.json" else "\n" * (MAX_BLANK + 10)
    (tmp_path / name).write_text(start + blank)
    with pytest.raises(ManifestError, match=r"empty lines follow each other|nothing but spaces"):
        list(read_rows([str(tmp_path / name)]))


EDITING = Rules(Defaults(width=64, height=64), further=("image_guidance_scale",), most_noise=350)
DECODING = Rules(Defaults(width=64, height=64), further=("prior_steps", "prior_guidance_scale"))
ENLARGING = Rules(Defaults(width=64, height=64), further=("noise_level",), most_noise=350)
LED = Rules(
    Defaults(width=64, height=64, true_cfg_scale=1.5),
    ignored=("negative_prompt",),
    further=("true_cfg_scale",),
    true_cfg=("txt2img",),
)
UNLED = replace(LED, defaults=Defaults(width=64, height=64))
IGNORING = Rules(Defaults(width=64, height=64), ignored=("negative_prompt", "guidance_scale", "strength"))


@pytest.mark.parametrize(
    ("rules", "row", "notes", "made"),
    [
        (IGNORING, {"negative_prompt": "blue"}, ["negative_prompt: has no effect, since"], {"negative_prompt": ""}),
        (IGNORING, {"negative_prompt": ""}, [], {"negative_prompt": ""}),
        (IGNORING, {"guidance_scale": 7.0}, ["guidance_scale: has no effect, since"], {"guidance_scale": 1.0}),
        (IGNORING, {"init_image": "a.png", "strength": 0.5}, ["strength: has no effect, since"], {"strength": None}),
        (IGNORING, {}, [], {"guidance_scale": 1.0}),
        # Without guidance a negative prompt does nothing, but the row may be read so at another scale.
        (
            RULES,
            {"negative_prompt": "blue", "guidance_scale": 1},
            ["negative_prompt: has no effect without guidance, which begins"],
            {},
        ),
        (RULES, {"negative_prompt": "blue", "guidance_scale": 1.5}, [], {"negative_prompt": "blue", "guidance_scale": 1.5}),
        # Columns of models that edit and enlarge pictures.
        (RULES, {"image_guidance_scale": 2}, ["image_guidance_scale: has no effect, since"], {"image_guidance_scale": None}),
        (ENLARGING, {"image_guidance_scale": 2}, ["image_guidance_scale: has no effect, since"], {"noise_level": 20}),
        (EDITING, {"noise_level": 2}, ["noise_level: has no effect, since"], {"noise_level": None, "image_guidance_scale": 1.5}),
        (EDITING, {"image_guidance_scale": 2}, [], {"image_guidance_scale": 2.0}),
        (RULES, {"prior_steps": 9}, ["prior_steps: has no effect, since"], {"prior_steps": None, "prior_guidance_scale": None}),
        (DECODING, {"prior_steps": 9}, [], {"prior_steps": 9, "prior_guidance_scale": 4.0}),
        (DECODING, {"negative_prompt": "blue", "guidance_scale": 1}, [], {"negative_prompt": "blue"}),
        (
            DECODING,
            {"negative_prompt": "blue", "guidance_scale": 1, "prior_guidance_scale": 1},
            ["negative_prompt: has no effect without guidance"],
            {"prior_guidance_scale": 1.0},
        ),
        (
            EDITING,
            {"negative_prompt": "blue", "image_guidance_scale": 0.9},
            ["negative_prompt: has no effect without guidance, which begins at an image_guidance_scale of 1"],
            {"image_guidance_scale": 0.9},
        ),
        (Rules(RULES.defaults, unguided=0.0), {"negative_prompt": "blue", "guidance_scale": 1}, [], {"negative_prompt": "blue"}),
        # A model that guides every step does so at any scale.
        (
            replace(EDITING, unguided=-1.0),
            {"negative_prompt": "blue", "image_guidance_scale": 0.5, "guidance_scale": 0},
            [],
            {"negative_prompt": "blue", "image_guidance_scale": 0.5},
        ),
        # True guidance beside that of the model's own.
        (RULES, {"true_cfg_scale": 2}, ["true_cfg_scale: has no effect, since"], {"true_cfg_scale": None}),
        (
            UNLED,
            {"negative_prompt": "blue"},
            ["negative_prompt: has no effect without a true_cfg_scale above 1, which doubles"],
            {"negative_prompt": "", "true_cfg_scale": None},
        ),
        (
            UNLED,
            {"negative_prompt": "blue", "true_cfg_scale": 1},
            ["negative_prompt: has no effect without a true_cfg_scale above 1, which doubles"],
            {"negative_prompt": "", "true_cfg_scale": 1.0},
        ),
        (
            UNLED,
            {"negative_prompt": "blue", "true_cfg_scale": 3, "guidance_scale": 1},
            [],
            {"negative_prompt": "blue", "true_cfg_scale": 3.0},
        ),
        (LED, {"negative_prompt": "blue"}, [], {"negative_prompt": "blue", "true_cfg_scale": 1.5, "is_led": True}),
        (LED, {}, [], {"negative_prompt": "", "is_led": True}),
        # The config's scale is for the modes that take one.
        (
            LED,
            {"negative_prompt": "blue", "init_image": "a.png"},
            ["negative_prompt: has no effect, since"],
            {"negative_prompt": "", "true_cfg_scale": None},
        ),
    ],
)
def test_a_value_without_effect_is_a_note_and_the_request_has_what_is_rendered(tmp_path, rules, row, notes, made):
    (tmp_path / "m.jsonl").write_text(json.dumps({"prompt": "a", **row}))
    (checked,) = check_rows([str(tmp_path / "m.jsonl")], rules)
    assert len(checked.notes) == len(notes)
    assert all(note.startswith(said) for note, said in zip(checked.notes, notes, strict=True))
    assert {name: getattr(checked.request, name) for name in made} == made


def test_a_scale_of_true_guidance_in_a_mode_that_takes_none_is_a_bad_row(tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps({"prompt": "a", "init_image": "a.png", "true_cfg_scale": 2}))
    (checked,) = check_rows([str(tmp_path / "m.jsonl")], LED)
    assert checked.problems[0] == "true_cfg_scale: not in mode img2img; the model takes it only in txt2img"


def test_a_prompt_that_is_no_json_with_the_key_that_the_model_reads_is_a_bad_row(tmp_path):
    prompts = [
        '{"edit_instruction": "paint it red"}',
        "paint it red",
        '{"instruction": "paint it red"}',
        '["edit_instruction"]',
        "[" * 10**5,
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"prompt": prompt[:10_000]}) + "\n" for prompt in prompts))
    rules = Rules(Defaults(width=64, height=64), prompt_key="edit_instruction")
    fine, *wrong = check_rows([str(tmp_path / "m.jsonl")], rules)
    assert fine.request.prompt == prompts[0] and not fine.problems
    said = "prompt: the model takes a JSON object with the key edit_instruction, as text: paint it red"
    assert wrong[0].problems == (said,) and all(len(one.problems) == 1 for one in wrong)


def test_a_noise_level_above_the_models_is_a_bad_row(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"prompt": "a", "noise_level": 350}\n{"prompt": "b", "noise_level": 351}')
    first, second = check_rows([str(tmp_path / "m.jsonl")], ENLARGING)
    assert first.request.noise_level == 350
    assert second.problems[0] == "noise_level: 351 is above 350, the most that the model takes"


def test_a_default_without_effect_is_noted_for_the_rows_that_it_holds_for(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "negative_prompt": ""}')
    rules = Rules(Defaults(negative_prompt="blue", guidance_scale=5.0), ignored=("negative_prompt",))
    first, second = check_rows([str(tmp_path / "m.jsonl")], rules)
    assert len(first.notes) == 1 and first.notes[0].startswith("negative_prompt: has no effect") and not second.notes


@pytest.mark.parametrize(("size", "fits"), [((1024, 1024), True), ((2048, 512), True), ((1024, 1032), False), ((2056, 512), False)])
def test_an_image_with_more_pixels_than_the_model_has_places_for_is_a_bad_row(tmp_path, size, fits):
    rules = Rules(Defaults(width=64, height=64), most_pixels=1024 * 1024)
    row = {"prompt": "a", "width": size[0], "height": size[1]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    (checked,) = check_rows([str(tmp_path / "m.jsonl")], rules)
    assert bool(checked.problems) is not fits
    assert fits or "pixels are more than the 1,048,576 that the model has places for" in checked.problems[0]


@pytest.mark.parametrize(("size", "fits"), [((64, 32), True), ((32, 64), False), ((64, 64), False)])
def test_a_size_that_the_model_would_bend_is_a_bad_row_with_those_that_it_renders(tmp_path, size, fits):
    rules = Rules(Defaults(width=64, height=64), sizes=((64, 32), (128, 32)))
    row = {"prompt": "a", "width": size[0], "height": size[1]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    (checked,) = check_rows([str(tmp_path / "m.jsonl")], rules)
    said = f"width × height: {size[0]}×{size[1]} is not rendered by the model, which renders 64×32, 128×32"
    assert list(checked.problems) == ([] if fits else [said])


@pytest.mark.parametrize(("size", "fits"), [((64, 32), True), ((32, 64), False)])
def test_a_size_that_the_model_would_make_another_of_is_a_bad_row_with_that_other_size(tmp_path, size, fits):
    rules = Rules(Defaults(width=64, height=64), bends=lambda width, height: (64, 32))
    row = {"prompt": "a", "width": size[0], "height": size[1]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    (checked,) = check_rows([str(tmp_path / "m.jsonl")], rules)
    said = "width × height: 32×64 is not rendered by the model, which makes 64×32 of it: set that size"
    assert list(checked.problems) == ([] if fits else [said])


REPAINTING = Rules(
    Defaults(width=64, height=64),
    schedulers=("euler", "unipc"),
    ignored=("strength",),
    repainting=Repainting(("euler",), strength=True, most_pixels=64 * 64, bends=lambda width, height: (64, height)),
)
MASK = {"init_image": "a.png", "mask_image": "m.png"}


@pytest.mark.parametrize(
    ("row", "strength", "problems"),
    [
        (MASK | {"scheduler": "euler", "strength": 0.5}, 0.5, []),
        ({"init_image": "a.png", "scheduler": "unipc", "width": 128}, None, []),
        (MASK | {"scheduler": "unipc"}, None, ["scheduler: unipc does not go with a mask_image in this model, which takes euler"]),
        (MASK | {"scheduler": "euler", "height": 128}, None, ["width × height: 8,192 pixels are more than the 4,096"]),
        (MASK | {"scheduler": "euler", "width": 32}, None, ["width × height: 32×64 is not rendered by the model"]),
    ],
)
def test_rows_with_a_mask_can_have_limits_of_their_own(tmp_path, row, strength, problems):
    (tmp_path / "m.jsonl").write_text(json.dumps({"prompt": "a", **row}) + "\n")
    (checked,) = check_rows([str(tmp_path / "m.jsonl")], REPAINTING)
    assert len(checked.problems) == len(problems) and not checked.notes
    assert all(found.startswith(said) for found, said in zip(checked.problems, problems, strict=True))
    assert problems or checked.request.strength == strength


def test_a_draft_of_a_row_with_a_mask_has_a_scheduler_that_goes_with_the_mask(tmp_path):
    ranking = Ranking(drafts=[{"steps": 2, "keep": 1, "scheduler": "unipc"}])
    rows = [{"prompt": "a", "scheduler": "euler", "keep": 1, **given} for given in (MASK, {"init_image": "a.png"})]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row | {"id": str(n)}) + "\n" for n, row in enumerate(rows)))
    masked, plain = check_rows([str(tmp_path / "m.jsonl")], replace(REPAINTING, ranking=ranking))
    said = "scheduler: unipc of ranking.drafts does not go with a mask_image in this model, which takes euler"
    assert masked.problems == (said,) and not plain.problems
