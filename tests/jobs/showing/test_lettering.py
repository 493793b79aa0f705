from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from promptmill.jobs.cli import main
from promptmill.jobs.showing.contact_sheet import LETTERS, Shown
from promptmill.jobs.showing.lettering import ELLIPSIS, Lettering, _places, pieces_of, runs_left

SCRIPTS = {
    "Latin": "Grüße aus Łódź, naïve façade, İstanbul, Đà Nẵng",
    "Greek": "Ελληνικά κείμενα",
    "Cyrillic": "Кот сидит на диване, їжак",
    "Devanagari": "नमस्ते दुनिया",
    "Arabic": "حصان أحمر صغير",
}


def drawn(line, letters=None, width=200):
    image = Image.new("L", (width, 40), "white")
    (letters or Lettering(24)).draw(ImageDraw.Draw(image), 0, 28, width, line)
    return np.asarray(image) < 128


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_scripts_of_many_languages_have_letters_wherever_promptmill_is_installed(text, monkeypatch):
    monkeypatch.setattr("promptmill.jobs.showing.lettering.FOLDERS", ())
    letters = Lettering(LETTERS)
    assert letters.width(text) > 0 and not letters.missing
    looks = {drawn(letter, letters).tobytes() for letter in set(text) if letter.isalpha()}
    assert len(looks) == len({letter for letter in text if letter.isalpha()})


@pytest.mark.parametrize("shapes", [True, False])
def test_right_to_left_text_begins_at_the_right_and_stands_in_its_order(shapes, monkeypatch):
    # As a machine with the library that shapes letters, and one without.
    monkeypatch.setattr("promptmill.jobs.showing.lettering.features.check", lambda name: shapes)
    letters = Lettering(24)
    first, whole = drawn("ا", letters), drawn("ا د", letters)
    columns = np.flatnonzero(first.any(0))
    assert columns[-1] > 190  # of 200
    assert np.array_equal(whole[:, columns[0] :], first[:, columns[0] :])
    assert whole[:, : columns[0]].any()
    assert runs_left("  (ا) a") and not runs_left("a ا") and not runs_left("12")


def test_runs_of_several_fonts_stand_in_the_order_of_the_line(monkeypatch):
    monkeypatch.setattr("promptmill.jobs.showing.lettering.FOLDERS", ())
    runs = Lettering(24).runs("a ا b")
    assert [run.text for run in runs] == ["a ", "ا ", "b"]
    assert len({run.font.path for run in runs}) == 2


def test_the_font_that_is_given_comes_first():
    arabic = next(place for place in _places(None) if "Arabic" in place.name)
    given_, own = Lettering(24, arabic), Lettering(24)
    assert {Path(run.font.path).name for run in given_.runs("ا")} == {arabic.name}
    assert Path(given_.runs("ا 1")[0].font.path).name == arabic.name
    assert Path(own.runs("1")[0].font.path).name != arabic.name


@given(st.text(), st.integers(60, 300), st.integers(1, 5))
def test_a_prompt_is_as_wide_as_its_tile_and_nothing_of_it_is_lost_without_an_ellipsis(text, width, most):
    lines = Lettering(11).wrapped(text, width, most)
    letters = Lettering(11)
    assert len(lines) <= most and all(letters.width(line) <= width for line in lines)
    said, whole = "".join("".join(lines).split()), "".join(text.split())
    assert said == whole or (lines[-1].endswith(f" {ELLIPSIS}") and whole.startswith(said.removesuffix(ELLIPSIS)))


@given(st.text())
def test_pieces_make_the_text_again(text):
    assert "".join(pieces_of(text)) == " ".join(text.split())


def sheet_of(monkeypatch, tmp_path, prompt, *options):
    shown = [Shown(Image.new("RGB", (64, 64)), "txt2img", prompt, 20.0)]
    monkeypatch.setattr("promptmill.jobs.showing.contact_sheet.kept_images", lambda output, most: shown)
    return CliRunner().invoke(main, ["sheet", str(tmp_path), "--to", str(tmp_path / "s.png"), *options])


def test_letters_that_no_font_has_are_said_in_one_line(monkeypatch, tmp_path):
    plain = sheet_of(monkeypatch, tmp_path, "кот")
    assert (plain.exit_code, plain.output) == (0, f"1 image in {tmp_path}/s.png\n")
    odd = sheet_of(monkeypatch, tmp_path, "\ue000 and \ue001")
    assert odd.exit_code == 0
    assert odd.stderr == f"{tmp_path}/s.png: no font here has \\ue000 \\ue001; --font FILE draws in one that has them\n"


def test_a_font_that_is_none_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "no.ttf").write_bytes(b"no font")
    done = sheet_of(monkeypatch, tmp_path, "x", "--font", str(tmp_path / "no.ttf"))
    assert (done.exit_code, done.output) == (
        2,
        f"--font {tmp_path}/no.ttf: not a font that can be read; give a TrueType or OpenType file\n",
    )
