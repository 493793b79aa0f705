"""Finds in prompts what other tools read as more than words: weights, choices, wildcards, LoRAs, options."""

import re

# By the name of the group that matches: what a prompt has, and what would do. Only forms that plain words hardly have: brackets and
# capitals alone are no syntax here.
SWITCH = "prompts: {syntax: a1111} in the config, or a1111 in the row's column syntax, has it read"
NOTES = {
    "option": ("begins with --, # or //", "options have columns of their own"),
    "lora": ("holds <lora:…>", SWITCH),
    "weight": ("holds (…:1.2), a weight", SWITCH),
    "emphasis": ("holds ((…)), a weight", SWITCH),
    "choice": ("holds {…|…}, a choice", SWITCH),
    "variable": ("holds ${…}, a variable", SWITCH),
    "wildcard": ("holds __…__, a wildcard", SWITCH),
    "schedule": ("holds […:…:…], which changes words between steps", SWITCH),
    "turns": ("holds […|…], words that take turns", SWITCH),
    "parts": ("holds BREAK or AND between its parts", SWITCH),
}
_FOUND = re.compile(
    r"""
    (?P<option>\A(?:--|\#|//))
    | (?P<lora><lora:)
    | (?P<weight>\([^()]*:\s*[0-9.]+\s*\))
    | (?P<emphasis>\(\([^()]+\)\))
    | (?P<variable>\$\{\w)
    | (?P<choice>\{[^{}]*\|[^{}]*\})
    | (?P<wildcard>\b__[\w/*-]+__\b)
    | (?P<schedule>\[(?:[^\[\]:|]*:[^\[\]:|]*|[^\[\]:|0-9]+):\s*[0-9.]+\s*\])
    | (?P<turns>\[[^\[\]|]*\|[^\[\]]*\])
    | (?P<parts>\b(?:BREAK|AND)\b)
    """,
    re.VERBOSE,
)


# What is left of a prompt in the syntax a1111, and seems to be meant as more than words.
LEFT = {
    "colon": "has a colon in brackets that is no weight and no step",
    "signs": "has signs of a template or of a tag that is not whole",
}
_COLON = re.compile(r"[(\[][^()\[\]]*:(?!\s*\+?[0-9]*\.?[0-9]+\s*[)\]])[^()\[\]:]*[)\]]")
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_SIGNS = re.compile(r"\{[^{}|]*\||::|\$\$|[0-9]\$\w|<\w+:|__\w")


def notes_on(prompt: str, column: str = "prompt") -> tuple[str, ...]:
    """Return a note for each way in which a prompt is written for a tool that reads more in a prompt than words."""
    kinds = dict.fromkeys(found.lastgroup for found in _FOUND.finditer(prompt))
    notes = (NOTES[kind] for kind in kinds if kind is not None)
    return tuple(f"{column}: {has}, which is rendered as words; {instead}" for has, instead in notes)


def notes_on_signs(prompt: str, words: str, column: str = "prompt") -> tuple[str, ...]:
    """Return a note for each kind of signs that typing errors leave in a prompt in the syntax a1111, and in its words."""
    kinds = [kind for kind, found in (("colon", _COLON.search(_ESCAPED.sub("", prompt))), ("signs", _SIGNS.search(words))) if found]
    return tuple(f"{column}: {LEFT[kind]}, and is rendered as words" for kind in kinds)
