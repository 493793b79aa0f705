"""Renders a full batch before the first unit comes, so that compiling is done, and that too little memory is said at the start."""

import logging
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from promptmill.configs.parameters import Box, Defaults
from promptmill.manifests.requests import Request
from promptmill.pipelines.rendering.annotators import MapError
from promptmill.pipelines.rendering.preparing import Conditioning, jobs_of
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.rendering.tuning import few_steps
from promptmill.pipelines.work.errors import ModelError, is_fatal, is_out_of_memory
from promptmill.pipelines.work.units import Placed


def warm(path: Slots, modes: tuple[str, ...], defaults: Defaults, annotators: Collection[str] = ()) -> None:
    """Render one full batch of the config's default size, make a map by each annotator, and drop the images.

    Args:
        path: The loaded model.
        modes: The modes that the model serves; the first is rendered.
        defaults: The config's defaults.
        annotators: Names of annotators that the run uses.

    Raises:
        ModelError: Memory does not suffice, or the GPU fails.
    """
    mode, family = modes[0], path.model.family
    config: Any = path.model.denoiser.config
    request = Request(
        id="warm",
        prompt="",
        negative_prompt="",
        mode=mode,  # type: ignore[arg-type]
        init_image=None if mode == "txt2img" else "",
        mask_image="" if mode == "inpaint" else None,
        controls=(),
        strength=None if mode == "txt2img" or not family.strength else 1.0,
        width=defaults.width,
        height=defaults.height,
        steps=few_steps(path.model),
        guidance_scale=defaults.guidance_scale,
        guidance_rescale=0.0,
        scheduler=defaults.scheduler,
        seed=0,
        candidates=path.batch,
        keep=1,
        loras=(),
        carried={},
        gligen_boxes=(Box(phrase="a", x0=0, y0=0, x1=1, y1=1),) if family.boxes else (),
        class_label=0 if family.classes and config.get(family.classes) else None,
        **{name: getattr(defaults, name) for name in family.further},
    )
    by = family.enlarges
    grey = np.full((request.height // by, request.width // by, 3), 127, np.uint8)
    conditioning = Conditioning(
        init=None if request.init_image is None else grey,
        mask=None if request.mask_image is None else np.ones(grey.shape[:2], bool),
    )
    try:
        with torch.no_grad():
            if path.model.annotators:
                whole = np.full((request.height, request.width, 3), 127, np.uint8)
                for name in annotators:
                    with suppress(MapError):  # of a grey picture, which says nothing of others
                        path.model.annotators.map(name, whole)
            failures = path.run(jobs_of(Placed(0, request), conditioning, 0))
        if failures:
            logging.getLogger(__name__).warning("no batch was rendered at the start: %s", failures[0].message)
    except Exception as error:
        if not is_fatal(error):
            raise
        size = f"{request.width} x {request.height} pixels"
        if is_out_of_memory(error):
            raise ModelError(f"out of memory at batch {path.batch} of {size}; set model.batch lower") from error
        raise ModelError(f"the GPU fails at a batch of {size}: {str(error).splitlines()[0]}") from error
