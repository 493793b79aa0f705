"""Finds in prompts what other tools read as more than words: weights, choices, wildcards, LoRAs, options."""

import re

# By the name of the group that matches: what a prompt has, and what would do. Only forms that plain words hardly have: brackets and
# capitals alone are no syntax here.
SWITCH = "prompts: {syntax: a1111} in the config, or a1111 in the row's column syntax, has it read"
NOTES = {
    "option": ("begins with --, # or //", "options have columns of their own"),
    "lora": ("holds <lora:…>", SWITCH),
    "weight": ("holds (…:1.2), a weight", SWITCH),
    "choice": ("holds {…|…}, a choice", SWITCH),
    "wildcard": ("holds __…__, a wildcard", SWITCH),
    "schedule": ("holds […:…:…], which changes words between steps", SWITCH),
    "parts": ("holds BREAK or AND between its parts", SWITCH),
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
