"""Requests for tests, and what plain diffusers makes of them: the reference that the engine is held to, bit for bit."""

import diffusers
import numpy as np
import torch
from PIL import Image

from promptmill.configs.parameters import Control
from promptmill.configs.schedulers import SCHEDULERS
from promptmill.manifests.requests import Request
from promptmill.pipelines.work.units import candidate_seed

JOB_SEED = 7
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where an engine computes, and so what it is held to


def request(id="r", **values):
    defaults = {
        "prompt": "a small red circle",
        "negative_prompt": "",
        "mode": "txt2img",
        "init_image": None,
        "mask_image": None,
        "controls": (),
        "strength": None,
        "width": 64,
        "height": 64,
        "steps": 3,
        "guidance_scale": 4.0,
        "guidance_rescale": 0.0,
        "scheduler": "ddim",
        "seed": None,
        "candidates": 2,
        "keep": 1,
        "loras": (),
        "carried": {},
    }
    return Request(id=id, **{**defaults, **values})


CANNY = Control(type="canny", image="b.png", scale=0.8)
SEG = Control(type="seg", image="a.png", scale=0.4, start=0.0, end=0.5)
MODES = {
    "txt2img": {},
    "img2img": {"init_image": "a.png", "strength": 0.7},
    "inpaint": {"init_image": "a.png", "mask_image": "mask.png", "strength": 0.9},
    "controlnet": {"controls": (CANNY,)},
    "two controls": {"controls": (CANNY, SEG), "mode": "controlnet"},
    "controlnet_img2img": {"init_image": "a.png", "strength": 0.7, "controls": (CANNY,)},
    "controlnet_inpaint": {"init_image": "a.png", "mask_image": "mask.png", "strength": 0.9, "controls": (CANNY, SEG)},
}


def paint(folder):
    """The pictures that `MODES` name: two of noise, and a mask."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 20:44] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    for side in (16, 32, 8):
        Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST).save(folder / f"mask-{side}.png")
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"small-{side}.png")


def picture(file, count, channels=3):
    """An image file as (count, channels, H, W) in 0 … 1.

    As a tensor: of PIL images diffusers makes channels-last ones, and in that format a CPU's kernels make other bits.
    """
    pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1).contiguous()
    return pixels[:channels].float().div(255).repeat(count, 1, 1, 1)


EDM = {
    "euler": (diffusers.EDMEulerScheduler, {}),
    "dpmpp_2m": (diffusers.EDMDPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": (diffusers.EDMDPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
}


def scheduler_of(name, config, **more):
    """A scheduler by its short name, of a model that was saved with another one for noise, EDM's included."""
    known = SCHEDULERS[name]
    kind, options = getattr(diffusers, known.class_name), known.options
    if config["_class_name"].startswith("EDM"):
        kind, options = EDM[name]
    return kind.from_config(config, **{**options, **more})


def render_plain(
    request,
    batch,
    base,
    controlnets,
    folder,
    dtype=torch.float32,
    family="StableDiffusion",
    decoded=None,
    options=None,
    eta=None,
    put_back=True,
):
    """The first `batch` candidates of a request by diffusers' own pipeline in one call, (B, H, W, 3) uint8.

    Args:
        request: Without LoRAs.
        base: The folder of the model.
        controlnets: Their folders by type.
        folder: Of the images.
        family: What the names of the pipeline classes begin with.
        decoded: How many images are decoded at a time, where that is not `batch`.
        options: Options of the scheduler's config.
        eta: An argument of the pipeline's call.
        put_back: Whether pixels outside of a mask are the picture's own.
    """
    ending = {"txt2img": "", "controlnet": "ControlNet", "img2img": "Img2Img", "inpaint": "Inpaint"}
    ending |= {"controlnet_img2img": "ControlNetImg2Img", "controlnet_inpaint": "ControlNetInpaint"}
    kind = getattr(diffusers, f"{family}{ending[request.mode]}Pipeline")
    nets = [diffusers.ControlNetModel.from_pretrained(controlnets[c.type], dtype=dtype) for c in request.controls]
    parts = {"controlnet": nets[0] if len(nets) == 1 else nets} if nets else {}
    if family == "StableDiffusion":
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    plain = kind.from_pretrained(base, dtype=dtype, **parts).to(DEVICE)
    if request.scheduler != "model":
        plain.scheduler = scheduler_of(request.scheduler, plain.scheduler.config, **(options or {}))
    elif options:
        plain.scheduler = type(plain.scheduler).from_config(plain.scheduler.config, **options)
    plain.set_progress_bar_config(disable=True)
    decode = plain.vae.decode
    plain.vae.decode = lambda z, **_: (torch.cat([decode(some, return_dict=False)[0] for some in z.split(decoded or batch)]),)

    said = {
        "prompt": [request.prompt] * batch,
        "negative_prompt": [request.negative_prompt] * batch if request.negative_prompt else None,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "generator": [torch.Generator().manual_seed(candidate_seed(JOB_SEED, request, k)) for k in range(batch)],
        "output_type": "np",
    }
    if request.guidance_rescale:
        said["guidance_rescale"] = request.guidance_rescale
    if eta is not None:
        said["eta"] = eta
    if request.mode != "img2img":
        said |= {"width": request.width, "height": request.height}
    if request.strength:
        said["strength"] = request.strength
    if request.init_image:
        said["image"] = picture(folder / request.init_image, batch)
    if request.mask_image:
        said["mask_image"] = picture(folder / request.mask_image, batch, 1)
    if nets:
        maps = [picture(folder / control.image, batch) for control in request.controls]
        said["control_image" if request.init_image else "image"] = maps[0] if len(maps) == 1 else maps
        for name, values in (
            ("controlnet_conditioning_scale", [c.scale for c in request.controls]),
            ("control_guidance_start", [c.start for c in request.controls]),
            ("control_guidance_end", [c.end for c in request.controls]),
        ):
            said[name] = values[0] if len(values) == 1 else values
    made = np.rint(plain(**said).images * 255).astype(np.uint8)
    if request.mask_image and put_back:
        keep = np.array(Image.open(folder / request.mask_image)) < 128
        made[:, keep] = np.array(Image.open(folder / request.init_image))[keep]
    return made
