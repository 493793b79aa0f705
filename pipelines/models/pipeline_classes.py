"""Finds the tasks that diffusers has pipelines for in each family of models.

Diffusers' own table is read as source, since importing it would import torch and take seconds.
"""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from promptmill.configs.parameters import Mode
from promptmill.pipelines.work.errors import ModelError

# The tables of diffusers' auto_pipeline module, each from a family to a class, by the mode that they serve.
TABLES = {
    "txt2img": "AUTO_TEXT2IMAGE_PIPELINES_MAPPING",
    "img2img": "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING",
    "inpaint": "AUTO_INPAINT_PIPELINES_MAPPING",
}

# Pipelines that the tables of diffusers 0.42 leave out, though they make images of texts.
MORE = {
    "txt2img": {
        "alt-diffusion": "AltDiffusionPipeline",
        "bria": "BriaPipeline",
        "bria-fibo": "BriaFiboPipeline",
        "bria-fibo-2": "BriaFibo2Pipeline",
        "bria-fibo-edit": "BriaFiboEditPipeline",
        "dreamlite": "DreamLitePipeline",
        "dreamlite-mobile": "DreamLiteMobilePipeline",
        "ernie-image": "ErnieImagePipeline",
        "gligen": "StableDiffusionGLIGENPipeline",
        "hidream-image": "HiDreamImagePipeline",
        "hunyuan-image": "HunyuanImagePipeline",
        "kandinsky5": "Kandinsky5T2IPipeline",
        "cascade-decoder": "StableCascadeDecoderPipeline",
        "consistency": "ConsistencyModelPipeline",
        "ddim": "DDIMPipeline",
        "ddpm": "DDPMPipeline",
        "dit": "DiTPipeline",
        "kandinsky-decoder": "KandinskyPipeline",
        "kandinsky22-decoder": "KandinskyV22Pipeline",
        "ldm": "LDMTextToImagePipeline",
        "if": "IFPipeline",
        "longcat-image": "LongCatImagePipeline",
        "prx-pixel": "PRXPixelPipeline",
        "sana-sprint": "SanaSprintPipeline",
        "stable-unclip-of-texts": "StableUnCLIPPipeline",
        "wuerstchen-decoder": "WuerstchenDecoderPipeline",
    },
    "img2img": {
        "alt-diffusion": "AltDiffusionImg2ImgPipeline",
        "chroma": "ChromaImg2ImgPipeline",
        "depth2img": "StableDiffusionDepth2ImgPipeline",
        "dreamlite": "DreamLitePipeline",
        "dreamlite-mobile": "DreamLiteMobilePipeline",
        "gligen": "StableDiffusionGLIGENPipeline",
        "if": "IFImg2ImgPipeline",
        "if-upscaler": "IFSuperResolutionPipeline",
        "image-variation": "StableDiffusionImageVariationPipeline",
        "instruct-pix2pix": "StableDiffusionInstructPix2PixPipeline",
        "instruct-pix2pix-xl": "StableDiffusionXLInstructPix2PixPipeline",
        "bria-fibo-2": "BriaFibo2Pipeline",
        "bria-fibo-edit": "BriaFiboEditPipeline",
        "kandinsky5-edit": "Kandinsky5I2IPipeline",
        "qwenimage21": "QwenImage21Pipeline",
        "kandinsky-decoder": "KandinskyImg2ImgPipeline",
        "kandinsky22-decoder": "KandinskyV22Img2ImgPipeline",
        "ldm-upscaler": "LDMSuperResolutionPipeline",
        "latent-upscaler": "StableDiffusionLatentUpscalePipeline",
        "longcat-image-edit": "LongCatImageEditPipeline",
        "sana-sprint": "SanaSprintImg2ImgPipeline",
        "stable-unclip": "StableUnCLIPImg2ImgPipeline",
        "upscaler": "StableDiffusionUpscalePipeline",
    },
    "inpaint": {
        "bria-fibo-edit": "BriaFiboEditPipeline",
        "flux-fill": "FluxFillPipeline",
        "flux-kontext": "FluxKontextInpaintPipeline",
        "flux2-klein": "Flux2KleinInpaintPipeline",
        "if": "IFInpaintingPipeline",
        "kandinsky-decoder": "KandinskyInpaintPipeline",
        "kandinsky22-decoder": "KandinskyV22InpaintPipeline",
    },
}

# Families whose pipelines want a control image: a row's picture is that image, and what diffusers' tables have besides wants two.
INSTEAD = {"flux-control": {"img2img": "FluxControlPipeline"}, "cogview4-control": {"img2img": "CogView4ControlPipeline"}}

# Pipelines with ControlNets that the tables leave out.
CONTROLLED: dict[str, dict[str, str]] = {
    "txt2img": {"hunyuan": "HunyuanDiTControlNetPipeline", "sana": "SanaControlNetPipeline"},
    "img2img": {},
    "inpaint": {"z-image": "ZImageControlNetInpaintPipeline"},
}
# Pipelines that want a mask beside the control image, for a ControlNet that repaints, in place of a picture and its mask.
UNLIKE = frozenset({"StableDiffusion3ControlNetInpaintingPipeline"})


def modes_of(pipeline: str) -> tuple[str, ...]:
    """Return the modes without control that a pipeline class's family has pipelines for; none where it makes no images."""
    family = family_name(pipeline)
    if family in INSTEAD:
        return tuple(INSTEAD[family])
    return tuple(mode for mode, classes in tables().items() if family in (classes | MORE[mode]))


def class_for(pipeline: str, mode: str) -> str:
    """Return the name of diffusers' class that renders a mode with the weights of a pipeline, as its Auto classes choose the class.

    Args:
        pipeline: The class that the weights were saved or loaded as.
        mode: One of the modes that the model serves; with controls, by the family's own ControlNets.

    Raises:
        ModelError: diffusers has no such class.
    """
    plain = plain_mode(mode)
    return _controlled(pipeline, plain) if mode.startswith("controlnet") else _in_family_of(pipeline, plain)


def plain_mode(mode: str) -> str:
    """Return a mode without its control: txt2img of controlnet, img2img of controlnet_img2img."""
    return {"controlnet": "txt2img"}.get(mode, mode.removeprefix("controlnet_"))


def _controlled(pipeline: str, mode: str) -> str:
    name = with_controlnet(family_name(pipeline) or "", mode)
    if name is None:
        raise ModelError(f"diffusers has no pipeline with ControlNets for {mode} beside {pipeline}")
    return name


def controlled_mode(mode: str) -> Mode:
    """Return a mode with a control, of a mode without one."""
    found: dict[str, Mode] = {"txt2img": "controlnet", "img2img": "controlnet_img2img", "inpaint": "controlnet_inpaint"}
    return found[mode]


def with_controlnet(family: str, mode: str) -> str | None:
    """Return the pipeline class with the ControlNets of a family, as diffusers names families, for a mode without its control."""
    name = CONTROLLED[mode].get(family) or tables()[mode].get(f"{family}-controlnet")
    return None if name in UNLIKE else name


def _in_family_of(pipeline: str, mode: str) -> str:
    family = family_name(pipeline) or ""
    name = INSTEAD[family].get(mode) if family in INSTEAD else (tables()[mode] | MORE[mode]).get(family)
    if name is None:
        raise ModelError(f"diffusers has no pipeline for {mode} beside {pipeline}")
    return name


def family_name(pipeline: str) -> str | None:
    """Return diffusers' name for the family of a pipeline class, None where no table has the class."""
    found = (
        family for table in (tables(), MORE) for classes in table.values() for family, name in classes.items() if name == pipeline
    )
    return next(found, None)


@cache
def tables() -> dict[str, dict[str, str]]:
    """Return for each mode the class names by family."""
    package = importlib.util.find_spec("diffusers")
    if package is None or not package.submodule_search_locations:
        raise ModelError("diffusers is not installed: pip install diffusers")
    source = Path(package.submodule_search_locations[0]) / "pipelines" / "auto_pipeline.py"
    entries = list(_entries(ast.parse(source.read_text(encoding="utf-8"))))
    found = {mode: {family: name for table, family, name in entries if table == wanted} for mode, wanted in TABLES.items()}
    if not all(found.values()):
        raise ModelError(
            f"{source} holds no {' or '.join(TABLES.values())}: not a version of diffusers that promptmill is made for"
        )
    return found


def _entries(module: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Yield (table, family, class), both of `TABLE = OrderedDict([("family", Class), …])` and of `TABLE["family"] = Class`."""
    for node in ast.walk(module):
        match node:
            case ast.Assign(targets=[ast.Name(id=table)], value=ast.Call(args=[ast.List(elts=pairs)])):
                for pair in pairs:
                    match pair:
                        case ast.Tuple(elts=[ast.Constant(value=str(family)), ast.Name(id=name)]):
                            yield table, family, name
            case ast.Assign(
                targets=[ast.Subscript(value=ast.Name(id=table), slice=ast.Constant(value=str(family)))], value=ast.Name(id=name)
            ):
                yield table, family, name
