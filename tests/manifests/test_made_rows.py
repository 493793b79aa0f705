"""That made rows are what their columns say, depend on seed and number alone, and that what cannot be made is said in one line."""

import collections
import os
import pickle
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from promptmill.configs.made_manifests import MadeManifest
from promptmill.manifests.made_rows import MadeFile, Rows, identity_of, with_lines
from promptmill.manifests.rows import ManifestError
from promptmill.manifests.sources import read_rows


def rows_of(columns, rows=60, seed=0):
    return [row.values for row in Rows(MadeManifest(rows=rows, seed=seed, columns=columns))]


MIXED = {
    "animal": {"choices": ["cat", "dog", "bird"], "weights": [6, 3, 1]},
    "breed": {"by": "animal", "choices": {"cat": ["tabby"], "dog": ["pug", "husky"], "bird": ["wren", "owl", "tit"]}},
    "size": {"product": ["small", "large"]},
    "style": {"product": ["oil", "ink", "photo"]},
    "steps": {"integer": [5, 9]},
    "share": {"uniform": [0.25, 0.75], "digits": 2},
    "guidance_scale": {"normal": [4, 2], "least": 1, "most": 7},
    "number": {"sequence": [100, -3]},
    "controls": [{"type": "canny", "image": "{{ animal }}.png", "scale": 0.5}],
    "fixed": 7,
    "prompt": "a {{ size }} {{ breed }} in {{ style }}{% if steps > 7 %}, finely drawn{% endif %}",
}


@given(seed=st.integers(0, 2**32 - 1), few=st.integers(1, 40), more=st.integers(0, 40))
@settings(max_examples=25)
def test_a_row_is_the_same_in_a_longer_manifest_of_the_same_seed(seed, few, more):
    assert rows_of(MIXED, few + more, seed)[:few] == rows_of(MIXED, few, seed)


def test_another_seed_makes_other_rows_and_a_column_is_drawn_apart_from_the_others():
    assert rows_of(MIXED, 60, 1) != rows_of(MIXED, 60, 2)
    some = rows_of({"one": {"integer": [0, 9]}, "other": {"integer": [0, 9]}}, 400)
    assert 20 < sum(row["one"] == row["other"] for row in some) < 70  # by chance 40, and each with a deviation of 6
    alone = rows_of({"one": {"integer": [0, 9]}}, 400)
    assert [row["one"] for row in some] == [row["one"] for row in alone]


def test_each_column_has_the_values_that_its_kind_says():
    some = rows_of(MIXED, 2000)
    for row in some:
        assert row["breed"] in MIXED["breed"]["choices"][row["animal"]]
        assert row["steps"] in range(5, 10) and 0.25 <= row["share"] <= 0.75 and row["share"] == round(row["share"], 2)
        assert 1 <= row["guidance_scale"] <= 7 and row["fixed"] == 7
        assert row["controls"] == [{"type": "canny", "image": f"{row['animal']}.png", "scale": 0.5}]
        more = ", finely drawn" if row["steps"] > 7 else ""
        assert row["prompt"] == f"a {row['size']} {row['breed']} in {row['style']}{more}"
        assert list(row) == list(MIXED)
    assert [row["number"] for row in some[:3]] == [100, 97, 94]
    animals = collections.Counter(row["animal"] for row in some)
    assert [round(animals[name] / 2000, 1) for name in ("cat", "dog", "bird")] == [0.6, 0.3, 0.1]
    # Of a normal distribution as many lie within one deviation, where nothing is cut.
    assert 0.63 < sum(2 <= row["guidance_scale"] <= 6 for row in some) / 2000 < 0.73
    assert {row["steps"] for row in some} == set(range(5, 10))


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), rows=st.integers(1, 300))
@settings(max_examples=30)
def test_each_combination_of_products_comes_equally_often_within_one(sizes, rows):
    columns = {f"c{number}": {"product": list(range(size))} for number, size in enumerate(sizes)}
    found = collections.Counter(tuple(row.values()) for row in rows_of(columns, rows))
    every = 1
    for size in sizes:
        every *= size
    assert max(found.values()) - (min(found.values()) if len(found) == every else 0) <= 1
    assert len(found) == min(every, rows)


def test_a_class_balanced_set_of_300_has_each_class_within_one():
    classes = [f"class {number}" for number in range(7)]
    found = collections.Counter(row["label"] for row in rows_of({"label": {"product": classes}}, 300))
    assert sorted(found.values()) == [42, 43, 43, 43, 43, 43, 43]


def test_lines_of_a_file_are_chosen_without_comments_and_the_rows_depend_on_them(tmp_path):
    file = tmp_path / "styles.txt"
    file.write_text("\ufeff# styles\noil\n\n  ink  \nphoto\n", encoding="utf-8")
    made = MadeManifest(rows=50, columns={"style": {"lines": str(file)}})
    resolved = with_lines(made)
    assert {row.values["style"] for row in Rows(resolved)} == {"oil", "ink", "photo"}
    file.write_text("oil\nink\n")
    assert identity_of(with_lines(made)) != identity_of(resolved)
    assert with_lines(resolved) == resolved


def test_the_rows_are_read_like_those_of_a_file_and_named_as_the_manifest():
    file = MadeFile(MadeManifest(rows=3, columns={"prompt": "a cat", "n": {"sequence": [1, 1]}}))
    again = pickle.loads(pickle.dumps(file))
    for one in (file, again):
        rows = list(read_rows([one]))
        assert [(row.where, row.values) for row in rows] == [
            (f"manifest, row {number}", {"prompt": "a cat", "n": number}) for number in (1, 2, 3)
        ]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"prompt": "a {{ anmal }}", "animal": "cat"}, "prompt: line 1, column 6: no column 'anmal'; did you mean 'animal'?"),
        (
            {"prompt": "a\n {{ x.y }}", "x": 1},
            "prompt: line 2: holds an attribute; templates have expressions, filters and if alone",
        ),
        ({"prompt": "{% for a in x %}a{% endfor %}", "x": 1}, "prompt: line 1: holds a loop; templates have"),
        ({"prompt": "{{ x() }}", "x": 1}, "prompt: line 1: holds a call; "),
        ({"prompt": "{{ x[0] }}", "x": 1}, "prompt: line 1: holds an index; "),
        ({"prompt": "{{ 9 ** 9 ** 9 }}"}, "prompt: line 1: holds a power; "),
        ({"prompt": "{% include 'x' %}"}, "prompt: line 1: holds an include; "),
        ({"prompt": "{% set x = 1 %}"}, "prompt: line 1: holds a set; "),
        ({"prompt": "{{ x | uper }}", "x": 1}, "prompt: line 1: no filter 'uper'; did you mean 'upper'?"),
        ({"prompt": "{{ x is strnig }}", "x": 1}, "prompt: line 1: no test 'strnig'; did you mean 'string'?"),
        ({"prompt": "{{ x"}, "prompt: line 1: unexpected end of template"),
        ({"prompt": "{{ prompt }}"}, "prompt reads prompt: these columns wait for each other without end"),
        ({"a": "{{ b }}", "b": "{{ c }}", "c": "{{ a }}"}, "these columns wait for each other without end"),
        ({"prompt": "a {{ self }}"}, "prompt: line 1, column 6: no column 'self'"),
        ({"controls": [{"image": "{{ nothing }}"}]}, "controls: line 1, column 4: no column 'nothing'"),
        ({"prompt": "{{ " + "(" * 900 + "1" + ")" * 900 + " }}"}, "prompt: is nested too deeply, or has too long an expression"),
        ({"prompt": "{{ " + " + ".join(["1"] * 2000) + " }}"}, "prompt: is nested too deeply, or has too long an expression"),
        ({"prompt": "{% if 1 %}" * 150 + "x" + "{% endif %}" * 150}, "prompt: is nested too deeply, or has"),
    ],
)
def test_a_template_that_none_may_be_is_refused_in_one_line(columns, problem):
    with pytest.raises(ManifestError) as raised:
        Rows(MadeManifest(rows=1, columns=columns))
    assert str(raised.value).startswith("manifest.columns") and problem in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"x": {"choices": ["a", 0]}, "prompt": "{{ x * 1000000 }}"}, "prompt: * is for numbers alone"),
        ({"x": {"integer": [0, 0]}, "prompt": "{{ 1 // x }}"}, "prompt: ZeroDivisionError: "),
        ({"x": "y" * 9000, "prompt": "{{ x }}{{ x }}"}, "prompt: makes 18,000 characters, and a text has at most 10,000"),
        # Jinja's own filter raises 10 to this number.
        ({"x": {"integer": [2**45, 2**53]}, "prompt": "{{ 1.5|round(x, 'ceil') }}"}, "prompt: round: rounds to at most 15 digits"),
        ({"prompt": "{{ 1.5 | round(300000, 'floor') }}"}, "prompt: round: rounds to at most 15 digits"),
        ({"x": {"product": ["a", "b"]}, "y": {"by": "x", "choices": {"a": [1]}}}, "y: has no choices for 'b' of x"),
    ],
)
def test_a_row_whose_template_fails_is_a_bad_row_and_the_others_are_made(columns, problem):
    rows = list(Rows(MadeManifest(rows=40, columns=columns)))
    broken = [row for row in rows if row.broken]
    assert len(rows) == 40 and broken and all(row.broken.startswith(problem) and not row.values for row in broken)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"chioces": [1]}, "x: is of no kind; did you mean 'choices'?; give one of choices, lines, product, integer, uniform,"),
        ({"choices": [1], "product": [2]}, "x: is of several kinds, choices and product; give one of"),
        ({"choices": []}, "should have at least 1 item"),
        ({"choices": [1, 2], "weights": [1]}, "x: weights: 1 for 2 choices; give one each, not all of them 0"),
        ({"choices": [1, 2], "weights": [0, 0]}, "x: weights: 2 for 2 choices; give one each, not all of them 0"),
        ({"choices": [1, 2], "weights": [1e308, 1e308]}, "x: weights: are too large to be summed"),
        ({"uniform": [-1.7e308, 1.7e308]}, "x: uniform: -1.7e+308 and 1.7e+308 are too far apart"),
        ({"choices": {"a": [1]}}, "x: choices are a mapping from the values of the column `by`"),
        ({"choices": {"a": [1]}, "by": "z"}, "x: by: there is no column 'z'"),
        ({"integer": [3, 1]}, "x: integer: 3 is above 1"),
        ({"uniform": [3, 1]}, "x: uniform: 3 is above 1"),
        ({"integer": [3, True]}, "x: integer.1: input should not be true or false"),
        ({"uniform": [0, 1], "digit": 2}, "x: digit: unknown key; did you mean 'digits'?"),
    ],
)
def test_a_column_that_is_none_is_refused_with_its_name(value, problem):
    with pytest.raises(ValidationError) as raised:
        MadeManifest(rows=1, columns={"x": value})
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "no such file or directory"), (b"", "has 0 lines"), (b"# a\n", "has 0 lines"), (b"\xff\xfe", "is not UTF-8")],
)
def test_a_file_of_lines_that_is_none_is_said_with_its_column(tmp_path, content, problem):
    file = tmp_path / "lines.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ManifestError, match=rf"^manifest\.columns\.x\.lines: \S*lines\.txt: {problem}"):
        with_lines(MadeManifest(rows=1, columns={"x": {"lines": str(file)}}))


def test_a_pipe_of_lines_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ManifestError, match=r"pipe: is no file$"):
        with_lines(MadeManifest(rows=1, columns={"x": {"lines": str(tmp_path / "pipe")}}))


def test_what_is_drawn_covers_its_range_evenly():
    shares = sorted(row["x"] for row in rows_of({"x": {"uniform": [0, 1]}}, 5000))
    assert max(later - earlier for earlier, later in pairwise([0.0, *shares, 1.0])) < 0.004
    assert all(abs(share - place / 5000) < 0.03 for place, share in enumerate(shares))
