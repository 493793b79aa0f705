"""That prompt lists of CompVis, A1111 and kohya are read as these tools read them, and faults are said by line and column."""

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.listed_manifests import PromptLists
from promptmill.configs.parameters import Defaults
from promptmill.manifests.checking import check_rows
from promptmill.manifests.list_forms import A1111, A1111_QUIET, A1111_REFUSED, A1111_SWITCHES, KOHYA, KOHYA_REFUSED
from promptmill.manifests.option_texts import OptionError, words_of
from promptmill.manifests.prompt_lists import ListFile, find_lists
from promptmill.manifests.rules import Rules
from promptmill.manifests.sources import ManifestError, read_rows

LISTS = Path(__file__).parent / "lists"
RULES = Rules(Defaults(width=64, height=64))
CATS = {"negative_prompt": "low quality, worst quality, bad anatomy,bad composition, poor, low effort"}
# By the list: its form, and the columns of its rows beside a prompt.
EXPECTED = {
    "compvis-shapes": ("lines", [{}, {}, {}]),
    "compvis-photos": ("lines", [{}, {}, {}]),
    "a1111-shapes": (
        "a1111",
        [
            {"steps": 4, "seed": 5, "width": 64, "height": 64, "scheduler": "dpmpp_2m", "guidance_scale": 4.5},
            {
                "negative_prompt": "a red circle",
                "steps": 3,
                "seed": 9,
                "width": 64,
                "height": 64,
                "scheduler": "euler",
                "candidates": 2,
                "keep": 2,
            },
            {},
        ],
    ),
    "a1111-flags": (
        "a1111",
        [
            {},
            {
                "negative_prompt": "orange, pink, red, sea, water, lake",
                "width": 1024,
                "height": 768,
                "steps": 10,
                "seed": 9,
                "scheduler": "dpmpp_2m_karras",
                "candidates": 2,
                "keep": 2,
                "guidance_scale": 3.0,
            },
            {"steps": 7, "scheduler": "ddim"},
            {"width": 1024},
        ],
    ),
    "a1111-words": (
        "a1111",
        [
            {"negative_prompt": "lowres, bad hands", "guidance_scale": 7.0},
            {"negative_prompt": 'text, "watermark"', "candidates": 6, "keep": 6},
            {"steps": 28, "scheduler": "euler_a", "variation_seed": 12, "variation_strength": 0.1, "seed": 3},
        ],
    ),
    "a1111-outpaths": ("a1111", [{"steps": 12}, {}]),
    "kohya-samples": (
        "kohya",
        [
            {**CATS, "width": 768, "height": 768, "seed": 1, "guidance_scale": 7.5, "steps": 28},
            {
                "negative_prompt": "(low quality, worst quality), bad anatomy",
                "width": 576,
                "height": 832,
                "seed": 2,
                "guidance_scale": 5.5,
                "steps": 40,
            },
        ],
    ),
    "kohya-seeds": (
        "kohya",
        [
            {"sweep": {"seed": [1, 2, 3]}, "width": 64, "height": 64, "steps": 3},
            {"width": 64, "height": 64, "steps": 4, "scheduler": "euler_a", "seed": 7, "guidance_scale": 3.0},
        ],
    ),
    "kohya-files": (
        "kohya",
        [
            {"negative_prompt": "realistic, (lowres:1.1)", "width": 960, "height": 640, "steps": 28, "seed": 1},
            {"negative_prompt": "dark", "scheduler": "kdpm2_a"},
            {},
        ],
    ),
    "kohya-crlf": (
        "kohya",
        [
            {"negative_prompt": "verschwommen", "width": 512, "height": 512, "guidance_scale": 7.0},
            {"steps": 20, "seed": 2**32 - 1},
        ],
    ),
}
PROMPTS = {
    "compvis-photos": ["portrait of an old fisherman -- weathered, by the sea, high detail"],
    "a1111-words": ["a young woman with red hair, freckles", 'a dog\'s bed "by the fire"', "<lora:detail:0.6>"],
    "a1111-shapes": ["a large yellow triangle at the right on a blue background"],
    "kohya-files": ["a well-lit room - all white"],
    "kohya-crlf": ["ein Kätzchen auf einem Sofa", "猫が窓辺に座る"],
}


def rows_of(file, form=None):
    notes = []
    return list(read_rows([ListFile(str(file), form)], notes.append)), notes


def test_ten_lists_lie_here_and_each_is_expected():
    assert {file.stem for file in LISTS.glob("*.txt")} == set(EXPECTED) and len(EXPECTED) == 10


@pytest.mark.parametrize("name", EXPECTED)
def test_a_list_is_read_as_its_tool_reads_it_and_the_form_that_its_lines_show_is_said(name):
    form, columns = EXPECTED[name]
    rows, notes = rows_of(LISTS / f"{name}.txt")
    assert [{name: value for name, value in row.values.items() if name != "prompt"} for row in rows] == columns
    assert [row.broken for row in rows] == [None] * len(rows)
    prompts = "\n".join(row.values["prompt"] for row in rows)
    assert all(prompt in prompts for prompt in PROMPTS.get(name, ())) and "--n" not in prompts and "--prompt" not in prompts
    assert len(notes) == 1 and f"`form: {form}`" in notes[0]
    given = rows_of(LISTS / f"{name}.txt", form)
    assert [row.values for row in given[0]] == [row.values for row in rows] and given[1] == []


@pytest.mark.parametrize("name", EXPECTED)
def test_each_row_of_a_list_makes_a_request(name):
    checked = list(check_rows([ListFile(str(LISTS / f"{name}.txt"), None)], RULES))
    assert [line for one in checked for line in one.lines()] == []
    assert len(checked) == len(EXPECTED[name][1]) + (2 if name == "kohya-seeds" else 0)


def test_options_that_change_no_picture_are_noted():
    notes = {note for one in check_rows([ListFile(str(LISTS / "a1111-outpaths.txt"), None)], RULES) for note in one.notes}
    named = (
        "--outpath_samples",
        "--do_not_save_grid",
        "--restore_faces",
        "--tiling",
        "--do_not_save_samples",
        "--prompt_for_display",
    )
    assert {note.split()[1] for note in notes} == set(named)


A1111_LINES = {
    "--prompt a --stepz 3": (12, "'--stepz' is no option of A1111's lists; did you mean '--steps'?"),
    "--prompt a --frob 3": (12, "'--frob' is no option of A1111's lists; those are --prompt"),
    '--prompt "a cat" --steps': (18, "--steps has no value"),
    "--prompt a --steps many": (20, "--steps: 'many' is no whole number"),
    "--prompt a --cfg_scale nan": (24, "--cfg_scale: 'nan' is no number"),
    "--prompt a --steps 3 --steps 4": (22, "--steps is given twice"),
    "--prompt a dog's bed": (15, "a quote is opened and never closed; an apostrophe"),
    '--prompt "a dog': (10, "a quote is opened and never closed"),
    "--prompt a\\": (11, "nothing stands behind the backslash"),
    "--prompt a --steps 3 4": (22, "'4' is no option"),
    "--prompt a --sampler_name Restart": (27, "--sampler_name: 'Restart' has no counterpart among the schedulers; those are ddim"),
    "--prompt a --sampler_name Frobnicate": (27, "'Frobnicate' is no sampler that is known"),
    "--prompt a --tiling true": (12, "--tiling: promptmill has nothing like it; take it out"),
    "--prompt a --sd_model x": (12, "--sd_model: promptmill has nothing like it"),
    "a cat --steps 5": (7, "--steps stands behind words that no option names"),
}
KOHYA_LINES = {
    "a cat --x 3": (7, "'--x' is no option of kohya's lists; those are --n --w"),
    "a cat --w": (7, "--w has no value"),
    "a cat\t--wide 3": (7, "'--wide' is no option of kohya's lists"),
    "a cat --w wide": (11, "--w: 'wide' is no whole number"),
    "a cat --am 0.5": (7, "--am: multipliers of networks"),
    "a cat --w 64 --w 128": (14, "--w is given twice"),
    "a cat -- a dog": (7, "'--' alone is no option"),
    "a cat --d 1,x": (11, "--d: 'x' is no whole number"),
    "--w 64 a cat": (1, "a line begins with a prompt"),
}


@pytest.mark.parametrize(("form", "line"), [*(("a1111", line) for line in A1111_LINES), *(("kohya", line) for line in KOHYA_LINES)])
def test_what_a_line_has_wrong_is_said_with_its_line_and_column(form, line, tmp_path):
    column, words = (A1111_LINES | KOHYA_LINES)[line]
    (tmp_path / "p.txt").write_text(f"\n# a comment\n{line}\n")
    (row,), _ = rows_of(tmp_path / "p.txt", form)
    assert row.broken is not None and row.broken.startswith(f"line 3, column {column}: ") and words in row.broken
    assert row.where.endswith("p.txt, row 1") and "\n" not in row.broken


@pytest.mark.parametrize("name", [*A1111, *A1111_QUIET, *A1111_SWITCHES, *A1111_REFUSED])
def test_no_option_of_a1111_is_rendered_as_words(name, tmp_path):
    (tmp_path / "p.txt").write_text(f"--prompt a {name if name != '--prompt' else '--seed'} 1\nb {name} 1\n")
    (row, behind), _ = rows_of(tmp_path / "p.txt", "a1111")
    assert row.broken or row.values["prompt"] == "a"
    assert f"column 3: {name} stands behind" in behind.broken


@pytest.mark.parametrize("name", [*KOHYA, *KOHYA_REFUSED])
def test_no_option_of_kohya_is_rendered_as_words(name, tmp_path):
    (tmp_path / "p.txt").write_text(f"a --{name} 1\n")
    (row,), _ = rows_of(tmp_path / "p.txt", "kohya")
    assert row.broken or row.values["prompt"] == "a"


@given(st.text(st.sampled_from("ab '\"\\-\t "), max_size=30))
def test_words_are_those_of_a_shell(line):
    try:
        expected = shlex.split(line)
    except ValueError:
        with pytest.raises(OptionError):
            words_of(line)
        return
    words = words_of(line)
    assert [word.text for word in words] == expected
    assert all(line[word.column - 1] not in " \t" for word in words)


@given(st.text(st.sampled_from("ab1 '\"\\-,.#"), max_size=60), st.sampled_from(["a1111", "kohya", "lines", None]))
def test_any_line_makes_a_row_or_one_line_of_error(tmp_path_factory, line, form):
    file = tmp_path_factory.getbasetemp() / "any.txt"
    file.write_text(f"{line}\nx\n")
    rows, _ = rows_of(file, form)
    assert all(row.broken is None or "\n" not in row.broken for row in rows) and rows[-1].values == {"prompt": "x"}


def test_a_txt_that_is_no_list_stays_as_it_was():
    rows = list(read_rows([str(LISTS / "a1111-shapes.txt")]))
    assert rows[0].values["prompt"].startswith('--prompt "a large') and set(rows[0].values) == {"prompt"}


def test_lists_are_found_by_pattern_in_order_and_may_be_compressed(tmp_path):
    import gzip

    (tmp_path / "b.prompts").write_text("a cat --w 64\n")
    (tmp_path / "a.prompts.gz").write_bytes(gzip.compress(b"a dog --w 128\n"))
    files = find_lists(PromptLists(lists=f"{tmp_path}/*", form="kohya"))
    assert [row.values for row in read_rows(files)] == [{"prompt": "a dog", "width": 128}, {"prompt": "a cat", "width": 64}]
    with pytest.raises(ManifestError, match="no such file"):
        find_lists(PromptLists(lists=f"{tmp_path}/none.txt"))


@pytest.mark.parametrize(("content", "words"), [(b"\xff\xfea", "not UTF-8"), (b"\n# only\n", "has no rows"), (b"", "has no rows")])
def test_a_list_that_cannot_be_read_is_said_in_one_line(content, words, tmp_path):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ManifestError, match=words):
        rows_of(tmp_path / "p.txt", "kohya")
