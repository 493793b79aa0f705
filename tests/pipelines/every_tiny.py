"""The tiny model of every family that promptmill serves, by the names of `plain_families`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.pipelines import tiny
from tests.pipelines.tiny_bria import BRIA
from tests.pipelines.tiny_editors import EDITORS
from tests.pipelines.tiny_families import MAKERS
from tests.pipelines.tiny_pixels import PIXELS
from tests.pipelines.tiny_readers import READERS
from tests.pipelines.tiny_stages import STAGES
from tests.pipelines.tiny_unets import UNETS
from tests.pipelines.tiny_unprompted import UNPROMPTED

TINY: dict[str, Callable[[Path], Any]] = {
    "sd": tiny.stable_diffusion,
    "distilled": lambda folder: tiny.stable_diffusion(folder, time_cond_proj_dim=8),
    "sdxl": tiny.sdxl,
    "playground": tiny.playground,
    **UNETS,
    **MAKERS,
    **EDITORS,
    **READERS,
    **BRIA,
    **STAGES,
    **UNPROMPTED,
    **PIXELS,
}
