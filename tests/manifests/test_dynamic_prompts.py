"""Templates expand as the documentation of dynamic prompts states, at random by their key alone, or to each prompt once."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.manifests import wildcards
from promptmill.manifests.dynamic_prompts import all_of, at_random, is_template
from promptmill.manifests.prompt_errors import PromptError

FILES = {
    "season.txt": "# a comment\nsummer\n\n{autumn|fall}\nwinter\nspring\n",
    "colours-cold.txt": "blue\ngreen\n",
    "colours-warm.txt": "red\nyellow\n",
    "people.txt": "__people/africa__\n__people/asia__\n",
    "people/africa.txt": "Basotho\nNamibian\n",
    "people/asia.txt": "Nepali\n",
    "people/far/islands.txt": "Samoan\n",
    "loop.txt": "a\n__other__\n",
    "other.txt": "b\n__loop__\n",
    "self.txt": "a\n__self__ b\n",
    "broken.txt": "fine\nan {open\n",
    "empty.txt": "# nothing\n",
    "lacks.txt": "__nowhere__\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("wildcards")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "latin.txt").write_bytes(b"caf\xe9\n")
    (root / "outside.txt").symlink_to("/etc/hostname")
    wildcards.forget()
    return str(root)


# What every template can make, in the order of the odometer.
CASES = [
    ("plain", ["plain"]),
    ("{summer|autumn|winter|spring} is coming", [f"{s} is coming" for s in ("summer", "autumn", "winter", "spring")]),
    ("{0.5::summer|0.1::autumn|winter}", ["summer", "autumn", "winter"]),
    ("{0::never|always}", ["always"]),
    (
        "{2$$chocolate|vanilla|straw}",
        ["chocolate, vanilla", "chocolate, straw", "vanilla, chocolate", "vanilla, straw", "straw, chocolate", "straw, vanilla"],
    ),
    ("{2$$ and $$a|b|c}", [" and ".join(pair) for pair in itertools.permutations("abc", 2)]),
    ("{1-2$$ and $$a|b}", ["a", "b", "a and b", "b and a"]),
    ("{-2$$a|b}", ["a", "b", "a, b", "b, a"]),
    ("{1-$$a|b}", ["a", "b", "a, b", "b, a"]),
    ("{4$$a|b|c}", [", ".join(all_) for all_ in itertools.permutations("abc")]),
    ("{0-1$$a}", ["", "a"]),
    ("{{rose|white} gold|platinum}", ["rose gold", "white gold", "platinum"]),
    ("__season__", ["summer", "autumn", "fall", "winter", "spring"]),
    ("{2$$__colours-warm__}", ["red, yellow", "yellow, red"]),
    ("__colours*__", ["blue", "green", "red", "yellow"]),
    ("__colours-????__", ["blue", "green", "red", "yellow"]),
    ("__people__", ["Basotho", "Namibian", "Nepali"]),
    ("__people/*__", ["Basotho", "Namibian", "Nepali"]),
    ("__people/**__", ["Basotho", "Namibian", "Nepali", "Samoan"]),
    ("${s=!{a|b}} ${s} ${s}", ["a a", "b b"]),
    ("${s={a|b}} ${s} ${s}", ["a a", "a b", "b a", "b b"]),
    ("${s:none} ${s=x}${s:none}", ["none x"]),
    ("${s=x}${s?=y}${s}${t?=z}${t}", ["xz"]),
    ("a\n# | a comment\n   {b\n|c\n}", ["a b", "a c"]),
    ("{a|a|b}", ["a", "b"]),
    (r"\{a|b\} \__x\__", [r"\{a|b\} \__x\__"]),
    ("a_b __ c | d", ["a_b __ c | d"]),
    ("{|a}", ["", "a"]),
]


@pytest.mark.parametrize(("template", "prompts"), CASES)
def test_a_template_makes_the_prompts_of_the_table_each_once(folder, template, prompts):
    assert list(all_of(template, folder)) == prompts
    assert {at_random(template, folder, str(key)) for key in range(200)} <= set(prompts)


@pytest.mark.parametrize(("template", "prompts"), [one for one in CASES if len(one[1]) < 8])
def test_each_prompt_is_chosen_at_random_sometimes(folder, template, prompts):
    assert {at_random(template, folder, str(key)) for key in range(600)} == set(prompts)


def test_weights_say_how_often_an_option_is_chosen(folder):
    made = [at_random("{0.8::a|0.1::b|c}", folder, str(key)) for key in range(4000)]
    shares = [made.count(one) / 4000 for one in "abc"]
    # Of 4,000 draws a share of p strays by five standard deviations less than once in a million.
    for share, weight in zip(shares, (0.8, 0.1, 1.0), strict=True):
        p = weight / 1.9
        assert abs(share - p) < 5 * (p * (1 - p) / 4000) ** 0.5


BAD = [
    ("a {b", "column 3: { is not closed"),
    ("a } b", "column 3: } closes no bracket"),
    ("${", "column 1: ${ without the name of a variable"),
    ("${x", "column 1: ${ is not closed"),
    ("a ${x}", "column 3: ${x} has no value; write ${x=…} before it"),
    ("__seasn__", "column 1: wildcard 'seasn': no such file in the folder of wildcards; did you mean 'season'?"),
    ("__latin__", "column 1: wildcard latin.txt: is not UTF-8"),
    ("__empty__", "column 1: wildcard empty.txt: has 0 lines, and 1 to 100,000 are wanted"),
    ("__lacks__", "wildcard lacks.txt, line 1: column 1: wildcard 'nowhere': no such file in the folder of wildcards"),
    ("__outside__", "column 1: wildcard 'outside': no such file in the folder of wildcards"),
    ("a __loop__", "column 3: wildcard 'loop': an endless recursion: __loop__ in __other__ in __loop__"),
    ("__self__", "column 1: wildcard 'self': an endless recursion: __self__ in __self__"),
    ("${x=${x}} ${x}", "column 5: an endless recursion: ${x} in ${x}"),
    ("${x=${y}}${y=${x}}${x}", "column 14: an endless recursion: ${x} in ${y} in ${x}"),
    ("{2-1$$a|b}", "column 1: 2 to 1 options are none"),
    ("{0::a|0::b}", "column 1: the weights of a choice are all 0"),
    ("{@a|b}", "column 2: the sampler @ of a choice is not read"),
    ("__@season__", "column 1: wildcard '@season': the sampler @ is not read"),
    ("__season(a=b)__", "column 1: wildcard 'season(a=b)': a parameter is not read"),
    ("%{a$$b}", "column 1: %{…} is not read; choices, wildcards and variables are"),
    ("a ?{${x} == a $$ b}", "column 3: ?{…} is not read; choices, wildcards and variables are"),
    ("{" * 50, "column 41: more than 40 brackets within each other"),
    ("__" + "*a" * 20 + "__", "has more than 8 signs of a glob"),
]


@pytest.mark.parametrize(("template", "says"), BAD)
def test_a_template_that_cannot_be_expanded_is_one_line_with_the_column(folder, template, says):
    for expand in (lambda: at_random(template, folder, "k"), lambda: list(all_of(template, folder))):
        with pytest.raises(PromptError) as caught:
            expand()
        assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_line_of_a_wildcard_that_cannot_be_read_is_named(folder):
    with pytest.raises(PromptError, match=r"^wildcard broken.txt, line 2: column 4: \{ is not closed$"):
        list(all_of("__broken__", folder))


def test_without_a_folder_the_config_is_told_what_to_set():
    with pytest.raises(PromptError, match=r"set prompts\.wildcards$"):
        at_random("__season__", None, "k")


DOUBLING = (
    "${a=!"
    + "x" * 50
    + "}"
    + "".join(f"${{{b}=${{{a}}}${{{a}}}}}" for a, b in itertools.pairwise("abcdefghijklmnopqrstuvwxyz"))
    + "${z}"
)
EMPTY = DOUBLING.replace("x" * 50, "")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{a|b}" * 20, "makes more than 10,000 prompts"),
        ("{10$$" + "|".join("abcdefghijkl") + "}", "makes more than 10,000 prompts"),
        ("{a|a}" * 20, "makes more than 10,000 prompts"),
        (DOUBLING, "expands to more than 10,000 characters"),
        (EMPTY, "expands in more than 100,000 steps"),
    ],
)
def test_what_grows_without_measure_is_refused(template, says):
    with pytest.raises(PromptError, match=says):
        for _ in all_of(template, None):
            pass


PIECES = ("{", "}", "|", "a", "b ", "$$", "2", "-", "::", "${", "x", "=", "!", "__season__", "__self__", "\\", "#", "\n", "%{")
TEXTS = st.lists(
    st.sampled_from(PIECES),
    max_size=20,
).map("".join) | st.text(max_size=40)


@given(TEXTS)
def test_any_text_expands_or_raises_the_one_error(folder, text):
    made, said = outcome(lambda: at_random(text, folder, "k"))
    assert "\n" not in said
    if made is None:
        return
    assert made == " ".join(made.split())
    assert is_template(text) or made == " ".join(text.split())


def outcome(call):
    """The value of a call and no words, or None and the words of the one error."""
    try:
        return call(), ""
    except PromptError as error:
        return None, str(error)


OPTIONS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True)


@given(st.lists(OPTIONS, min_size=1, max_size=4), st.text("xyz", min_size=1, max_size=3))
def test_all_prompts_are_the_distinct_product_of_the_choices(lists, between):
    template = between.join("{" + "|".join(options) + "}" for options in lists)
    assert list(all_of(template, None)) == [between.join(chosen) for chosen in itertools.product(*lists)]


@given(TEXTS, st.text(max_size=10))
def test_a_random_prompt_depends_on_the_template_and_the_key_alone(folder, template, key):
    first = outcome(lambda: at_random(template, folder, key))
    at_random("{a|b}{c|d}", folder, "other")
    assert outcome(lambda: at_random(template, folder, key)) == first
