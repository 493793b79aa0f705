"""Checks the prose of docstrings, as far as a program can: who begins with a verb and names its subject is understood."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("actors", "benchmarks", "configs", "embedded", "examples", "jobs", "manifests", "pipelines", "shards")

# Folders and files whose docstrings are still to be rewritten.
TO_DO: tuple[str, ...] = ()

# Imperatives that may begin a docstring. Add the verb that says what the code does; a noun does not belong here.
VERBS = frozenset(
    """
    add apply ask assemble assert await begin bound bring buffer build calibrate call cancel carry check choose clear close
    collect compare compile compute connect convert copy count cut damage decide declare decompress define delete describe do
    draw drop dump encode end enlarge estimate examine explain fetch fill find finish follow forge gather give go group hand
    handle hide hold identify imitate import join judge keep leave let limit list load lock look make mark measure move name
    open pack pair parse pass plan prepare print publish put queue raise rank read recognise record refuse remove render reopen
    repaint repair repeat replace report resample resize restore restrict return rewrite round run sample say score seed send
    separate set settle share ship show silence sort start stop store submit suppress switch take tell train try turn upload
    validate verify wait walk watch wrap write yield
    """.split()  # noqa: SIM905 (a line a word says no more)
)
PRONOUNS = frozenset("it its this that they them their these those what whatever which whose he she".split())  # noqa: SIM905
CLAUSES = r"(Check|Assert)s? that (?!(it|its|this|that|they|them|their|these|those)\b)"


def third_person(verb):
    if re.search(r"(s|sh|ch|x|z|o)$", verb):
        return verb + "es"
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + "s"


STATES = frozenset(map(third_person, VERBS))


def files(to_do=TO_DO):
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not any(name == later or name.startswith(f"{later}/") for later in to_do):
                yield name


def definitions(tree):
    """Yield the module and whatever is defined in it, with the name of each and whether it is public and of the module."""
    yield "module", tree, True

    def inside(node, before, public):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{before}{child.name}"
                yield name, child, public and not child.name.startswith("_")
                yield from inside(child, f"{name}.", False)
            else:
                yield from inside(child, before, public)

    yield from inside(tree, "", True)


def sentences(text):
    """Yield the sentences of a docstring's paragraphs, without sections such as `Args:` and indented tables."""
    text = re.split(r"\n\s*\n?(?:Args|Attributes|Raises|Returns|Yields):\n", f"{text}\n")[0]
    for paragraph in re.split(r"\n\s*\n", text):
        if not paragraph.startswith(" "):
            yield from re.split(r"(?<=[.!?])\s+(?=[A-Z`])", " ".join(paragraph.split()))


def faults(source):
    """Yield the faults in the docstrings of a module's source, a line each."""
    for name, node, public in definitions(ast.parse(source)):
        line = f"{getattr(node, 'lineno', 1)}: {name}"
        text = ast.get_docstring(node)
        if not text:
            if public:
                yield f"{line}: has no docstring"
            continue
        first, *others = sentences(text)
        words = re.findall(r"[\w'-]+", first)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        allowed, form = (VERBS, "an imperative") if function else (STATES, "a verb in the third person")
        if words[0].lower() not in allowed or not words[0][0].isupper():
            yield f"{line}: begins with {words[0]!r}, not with {form} of VERBS"
        elif len(words) > 1 and words[1].lower() in PRONOUNS and not re.match(CLAUSES, first):
            yield f"{line}: {' '.join(words[:2])!r} names nothing; say the type or the thing"
        elif len(words) < 3:
            yield f"{line}: {first!r} says less than its name"
        if not re.search(r"[.:…]$", first):
            yield f"{line}: the first sentence ends in {first[-12:]!r}, not in a full stop"
        for sentence in others:
            if re.match(r"(It|They|Them|He|She)\b", sentence):
                yield f"{line}: {sentence[:40]!r} begins with a pronoun; repeat the noun"


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if any(name.startswith(f"{folder}/") for name in files())])
def test_docstrings_begin_with_a_verb_and_name_their_subject(folder):
    found = [f"{name}:{fault}" for name in files() if name.startswith(f"{folder}/") for fault in faults((ROOT / name).read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("docstring", "complaint"),
    [
        (None, "no docstring"),
        ("A scene's words.", "begins with 'A'"),
        ("Reads a scene.", "begins with 'Reads'"),
        ("Return it.", "names nothing"),
        ("Return what is left of the scene.", "names nothing"),
        ("Return scenes.", "says less"),
        ("Return the scene's words", "full stop"),
        ("Return the scene's words. They are sorted.", "repeat the noun"),
    ],
)
def test_a_fault_of_prose_is_found(docstring, complaint):
    body = "pass" if docstring is None else f'"""{docstring}"""'
    (fault,) = faults(f'"""Holds one function."""\ndef words():\n    {body}\n')
    assert complaint in fault


def test_a_docstring_by_the_rule_has_no_fault():
    function = 'def words():\n    """Return the words of a scene.\n\n    Raises:\n        It may: not.\n    """'
    assert not list(faults(f'"""Checks that a scene has words."""\n{function}'))


def test_paths_still_to_be_done_exist():
    assert all((ROOT / path).exists() for path in TO_DO)
