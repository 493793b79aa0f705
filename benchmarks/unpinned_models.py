"""Lists the models of families that have no preset: what their authors recommend, and why a preset cannot name them.

A preset names a full commit hash that public code pins beside the repository's name, and safetensors. `models_table` writes the
list into docs/models.md. `tests/jobs/planning/test_presets.py` plans a row by each entry with a tiny model of its family, as by
each preset.
"""

from dataclasses import dataclass
from typing import Any

UNKNOWN = "no revision known here"


@dataclass(frozen=True)
class Unpinned:
    """Describes a model that a preset cannot name.

    Attributes:
        base: The repository of the Hugging Face Hub.
        family: The family's entry in the tests' tables.
        multiple: Of how many pixels the sides are multiples in the real model.
        defaults: The figures that the authors recommend, as a config's `defaults` have them.
        why: Why no preset names the model.
        prior: The repository of the prior, for families whose images begin with one.
    """

    base: str
    family: str
    multiple: int
    defaults: dict[str, Any]
    why: str = UNKNOWN
    prior: str | None = None

    @property
    def model(self) -> dict[str, Any]:
        """Return the keys of a config's `model`, without a revision."""
        return {"base": self.base, **({"prior": {"source": self.prior}} if self.prior else {}), "dtype": "bfloat16", "batch": 4}


def _figures(width: int, height: int, steps: int, guidance: float | None, scheduler: str, **more: Any) -> dict[str, Any]:
    said = {} if guidance is None else {"guidance_scale": guidance}
    return {**more, "width": width, "height": height, "steps": steps, **said, "scheduler": scheduler}


def _edited(*figures: Any, **more: Any) -> dict[str, Any]:
    return _figures(*figures, mode="img2img", **more)


def _pickles(commit: str) -> str:
    return f"pickles alone, which promptmill does not read, at `{commit}`"


_SQUARE = (1024, 1024)
_BESIDE = "Llama 3.1 has to lie in its folder, so that the base is a folder of yours; its files are those of"

# The figures are those of the cards and of diffusers' pages and examples, where they name some, and else of its pipelines.
UNPINNED: tuple[Unpinned, ...] = (
    Unpinned(
        "SimianLuo/LCM_Dreamshaper_v7",
        "distilled",
        8,
        _figures(768, 768, 4, 8.0, "lcm"),
        "the weights of the preset `lcm`, saved in a folder of yours as Stable Diffusion",
    ),
    Unpinned("playgroundai/playground-v2-1024px-aesthetic", "sdxl", 8, _figures(*_SQUARE, 50, 3.0, "euler")),
    Unpinned("BAAI/AltDiffusion-m9", "alt-diffusion", 8, _figures(512, 512, 50, 7.5, "model")),
    Unpinned(
        "stabilityai/stable-diffusion-2-1-unclip",
        "stable-unclip-of-texts",
        8,
        _figures(768, 768, 20, 10.0, "model", noise_level=0),
        "put together from two models, in a folder of yours",
    ),
    Unpinned(
        "lambdalabs/sd-image-variations-diffusers",
        "image-variation",
        8,
        _edited(512, 512, 50, 3.0, "model"),
        _pickles("42bc0ee1726b141d49f519a6ea02ccfbf073db2e"),
    ),
    Unpinned("CompVis/ldm-super-resolution-4x-openimages", "ldm-upscaler", 128, _edited(512, 512, 100, None, "ddim")),
    Unpinned(
        "stabilityai/stable-diffusion-3.5-medium",
        "sd3-without-t5",
        16,
        _figures(*_SQUARE, 40, 4.5, "euler"),
        "the weights of the preset `sd35-medium`, saved without T5 in a folder of yours",
    ),
    Unpinned("PixArt-alpha/PixArt-LCM-XL-2-1024-MS", "pixart-alpha", 16, _figures(*_SQUARE, 4, 0.0, "lcm")),
    Unpinned(
        "HiDream-ai/HiDream-I1-Full",
        "hidream",
        16,
        _figures(*_SQUARE, 50, 5.0, "unipc"),
        f"{_BESIDE} `8ccbbfb270ccdae26d6bb0081df67dc81e4033bf`",
    ),
    Unpinned(
        "hunyuanvideo-community/HunyuanImage-2.1-Distilled-Diffusers",
        "hunyuan-image-distilled",
        32,
        _figures(2048, 2048, 8, 3.25, "euler"),
    ),
    Unpinned(
        "warp-ai/wuerstchen",
        "wuerstchen",
        128,
        _figures(*_SQUARE, 12, 0.0, "model", prior_steps=60, prior_guidance_scale=4.0),
        "its decoder is at `c3da41406ddd4d9c48c49aa93981a82354351b83`, and no revision of its prior is known here",
        prior="warp-ai/wuerstchen-prior",
    ),
    Unpinned("zai-org/CogView4-6B-Control", "cogview4-control", 16, _edited(*_SQUARE, 50, 3.5, "euler")),
    Unpinned("briaai/BRIA-3.2", "bria", 16, _figures(*_SQUARE, 30, 5.0, "euler")),
    Unpinned("briaai/Fibo-2.0-dev", "bria-fibo-2", 32, _figures(*_SQUARE, 30, 5.0, "euler")),
    Unpinned("briaai/Fibo-Edit-1.5-base", "bria-fibo-edit", 32, _edited(*_SQUARE, 50, 5.0, "euler")),
    Unpinned("kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers", "kandinsky5", 16, _figures(*_SQUARE, 50, 3.5, "euler")),
    Unpinned("kandinskylab/Kandinsky-5.0-I2I-Lite-sft-Diffusers", "kandinsky5-edit", 16, _edited(*_SQUARE, 50, 3.5, "euler")),
    Unpinned(
        "CompVis/ldm-text2im-large-256",
        "ldm",
        8,
        _figures(256, 256, 50, 6.0, "ddim"),
        _pickles("30de525ca11a880baea4962827fb6cb0bb268955"),
    ),
    Unpinned("fusing/ddim-lsun-bedroom", "ddim", 8, _figures(256, 256, 50, None, "ddim")),
    Unpinned(
        "facebook/DiT-XL-2-256",
        "dit",
        8,
        _figures(256, 256, 25, 4.0, "dpmpp_2m"),
        _pickles("eab87f77abd5aef071a632f08807fbaab0b704d0"),
    ),
)
