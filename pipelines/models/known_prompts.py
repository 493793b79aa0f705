"""Reads which prompts a model can know, where somebody wrote that down beside its folder.

FOLDER.prompts.json holds `form`, the prompts in words for a person, and `pattern`, the same as a regular expression. The file lies
beside the folder and not in it, since it decides no byte of an image and so is no part of what the model is.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from promptmill.configs.schema import Model
from promptmill.pipelines.models.sources import local_folder
from promptmill.pipelines.work.errors import ModelError

ENDING = ".prompts.json"


@dataclass(frozen=True)
class KnownPrompts:
    """The prompts that a model can know: in words, and as an expression that matches them whole."""

    form: str
    pattern: re.Pattern[str]

    def has(self, prompt: str) -> bool:
        """Return whether a prompt is one of them, however its words are spaced, in small letters or capitals."""
        return self.pattern.fullmatch(" ".join(prompt.split())) is not None


def known_prompts(model: Model) -> KnownPrompts | None:
    """Return what prompts a model can know; None where nothing says so, as of all models that know nearly any.

    Raises:
        ModelError: The file that says so cannot be read.
    """
    folder = local_folder(model.base)
    if folder is None:
        return None
    place = Path(f"{folder}{ENDING}")
    try:
        values = json.loads(place.read_text(encoding="utf-8"))
        return KnownPrompts(str(values["form"]), re.compile(values["pattern"], re.IGNORECASE))  # CLIP reads small letters
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, re.error) as error:
        raise ModelError(f"{place}: cannot be read: {error}") from None
