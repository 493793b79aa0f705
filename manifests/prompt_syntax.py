"""Finds in prompts what other tools read as more than words: weights, choices, wildcards, LoRAs, options."""

import re

# By the name of the group that matches: what a prompt has, and what would do. Only forms that plain words hardly have: brackets and
# capitals alone are no syntax here.
NOTES = {
    "option": ("begins with --, # or //", "options have columns of their own"),
    "lora": ("holds <lora:…>", "LoRAs have the column loras"),
    "weight": ("holds (…:1.2), a weight", "weights are not read; say more often or earlier what matters"),
    "choice": ("holds {…|…}, a choice", "write a row for each choice"),
    "wildcard": ("holds __…__, a wildcard", "write a row for each of its lines"),
    "schedule": ("holds […:…:…], which changes words between steps", "a prompt is the same at all steps"),
    "parts": ("holds BREAK or AND between its parts", "a prompt is read as one"),
}
_FOUND = re.compile(
    r"""
    (?P<option>\A(?:--|\#|//))
    | (?P<lora><lora:)
    | (?P<weight>\([^()]*:\s*[0-9.]+\s*\))
    | (?P<choice>\{[^{}]*\|[^{}]*\})
    | (?P<wildcard>\b__[\w/*-]+__\b)
    | (?P<schedule>\[[^\[\]:]*:[^\[\]:]*:\s*[0-9.]+\s*\])
    | (?P<parts>\b(?:BREAK|AND)\b)
    """,
    re.VERBOSE,
)


def notes_on(prompt: str) -> tuple[str, ...]:
    """Return a note where a prompt is written for a tool that reads more in a prompt than words; the first that there is."""
    found = _FOUND.search(prompt)
    if found is None or found.lastgroup is None:
        return ()
    has, instead = NOTES[found.lastgroup]
    return (f"prompt: {has}, which is rendered as words; {instead}",)
