"""Holds the results of requests: pixels, or a failure with its code, never an exception that takes neighbours along."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from promptmill.manifests.roots import Fault

# These failures are final: the same request would fail again.
InputError = Literal[
    "bad_row",
    "bad_image",
    "image_changed",
    "non_finite",
    "non_finite_score",
    "constant_image",
    "refused_content",
    "render_error",
]
# These failures are by infrastructure: another try may succeed, which `--retry-failed` makes.
InfrastructureError = Literal["died", "deadline", "out_of_memory", "unreachable"]
Code = InputError | InfrastructureError
CODES: tuple[str, ...] = (*get_args(InputError), *get_args(InfrastructureError))


@dataclass(frozen=True)
class Failure:
    """Holds the reason why there is no image: an enumerated code and the words.

    Attributes:
        fault: The fault of an image of the request that cannot be used.
    """

    code: Code
    message: str
    fault: Fault = Fault.PLACE


@dataclass(frozen=True)
class Candidate:
    """Holds one rendered image, or the reason why there is none.

    Attributes:
        index: Index of the candidate in its request, from 0.
        seed: 32 bits.
        pixels: (H, W, 3) uint8, sRGB; None exactly where there is a failure, or where the candidate was only drafted.
        evaluations: How often the denoiser was evaluated for the candidate; guidance evaluates twice a call.
        cached: How many of these evaluations the step cache answered.
        draft_scores: Scores of the candidate's drafts; None for a draft of the cascade that it passed over, or that failed.
        found: How many things a stage has found in the image, where the stage looks for some.
        caption: What was written of an image, which has no pixels here, as the image stays what it was.
    """

    index: int
    seed: int
    pixels: np.ndarray | None
    evaluations: int
    failure: Failure | None = None
    draft_scores: tuple[float | None, ...] = ()
    cached: int = 0
    found: int | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Outcome:
    """Holds the result of one request: its candidates in order, or its failure as a whole.

    Attributes:
        row: Row of the request in its shard.
        images: SHA-256 of the files of its images, by column; once they are encoded, also of its control maps: `map_note`.
        tokens_lost: Tokens of the prompt that a text encoder does not read; of several encoders, of the one that loses most.
        maps: The control maps that steered it, (H, W, 3) uint8 each, where the dataset is to have them.
    """

    row: int
    candidates: tuple[Candidate, ...]
    failure: Failure | None = None
    images: Mapping[str, str] = field(default_factory=dict)
    tokens_lost: int = 0
    maps: tuple[np.ndarray, ...] = ()

    @property
    def prompt_truncated(self) -> bool:
        """Return whether a text encoder reads only the beginning of the prompt."""
        return self.tokens_lost > 0


@dataclass(frozen=True)
class Rendered:
    """Holds a unit's outcomes, in the order of its requests, and the seconds that each stage took."""

    outcomes: tuple[Outcome, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """Holds the CLIP score of one image, 100 x cosine in fp32, its unit embedding, (D,) float32, and the other scores, by name."""

    score: float
    embedding: np.ndarray
    others: Mapping[str, float] = field(default_factory=dict)
