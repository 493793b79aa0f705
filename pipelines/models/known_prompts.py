"""Reads the prompts that a model can know, from a file beside the model's folder.

FOLDER.prompts.json holds `form`, the prompts in words for a person, and `pattern`, the same as a regular expression. The file lies
beside the folder and not inside, since it decides no byte of an image and so is no part of the model's identity.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from promptmill.configs.model import Model
from promptmill.pipelines.models.sources import local_folder
from promptmill.pipelines.work.errors import ModelError

ENDING = ".prompts.json"


@dataclass(frozen=True)
class KnownPrompts:
    """Holds the prompts that a model can know: in words, and as an expression that matches a whole prompt."""

    form: str
    pattern: re.Pattern[str]

    def has(self, prompt: str) -> bool:
        """Return whether the model can know a prompt, however its words are spaced, in small letters or capitals."""
        return self.pattern.fullmatch(" ".join(prompt.split())) is not None


def known_prompts(model: Model) -> KnownPrompts | None:
    """Return the prompts that a model can know; None where no file lists them, as for all models that know nearly any prompt.

    Raises:
        ModelError: The file cannot be read.
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
