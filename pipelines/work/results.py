"""What becomes of requests: pixels, or a failure with its code, never an exception that takes its neighbours along."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from promptmill.manifests.images import Fault

# Final: the same request would fail again.
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
# By infrastructure: another try may succeed, and `--retry-failed` takes them up.
InfrastructureError = Literal["died", "deadline", "out_of_memory", "unreachable"]
Code = InputError | InfrastructureError
CODES: tuple[str, ...] = (*get_args(InputError), *get_args(InfrastructureError))


@dataclass(frozen=True)
class Failure:
    """Why there is no image: an enumerated code and the words.

    Attributes:
        fault: Of an image of the request that cannot be used.
    """

    code: Code
    message: str
    fault: Fault = Fault.PLACE


@dataclass(frozen=True)
class Candidate:
    """One rendered image, or why there is none.

    Attributes:
        index: Of the candidate in its request, from 0.
        seed: 32 bits.
        pixels: (H, W, 3) uint8, sRGB; None exactly where there is a failure, or where it was only drafted.
        evaluations: How often the denoiser was evaluated for it; guidance evaluates twice a call.
        draft_scores: Of the drafts that it was in; None for one of the cascade that it passed over, or that failed.
    """

    index: int
    seed: int
    pixels: np.ndarray | None
    evaluations: int
    failure: Failure | None = None
    draft_scores: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """One request: its candidates in order, or the failure that it met as a whole.

    Attributes:
        row: Of the request in its shard.
        images: SHA-256 of the files of its images, by column.
        prompt_truncated: The text encoder reads only the beginning of the prompt.
    """

    row: int
    candidates: tuple[Candidate, ...]
    failure: Failure | None = None
    images: Mapping[str, str] = field(default_factory=dict)
    prompt_truncated: bool = False


@dataclass(frozen=True)
class Rendered:
    """A unit's outcomes, in the order of its requests, and the seconds that each stage took."""

    outcomes: tuple[Outcome, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """What CLIP says of one image, 100 x cosine in fp32 and its unit embedding, (D,) float32; and what others say, by name."""

    score: float
    embedding: np.ndarray
    others: Mapping[str, float] = field(default_factory=dict)
