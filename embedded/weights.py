"""Checks the shipped weights against their hashes, and loads them with the libraries' own loaders.

weights/pipeline           StableDiffusionPipeline.from_pretrained
weights/controlnet-canny   ControlNetModel.from_pretrained
weights/controlnet-seg     ControlNetModel.from_pretrained
weights/clip               open_clip, as local-dir:…
weights/flow               StableDiffusion3Pipeline.from_pretrained, with text_encoder_3=None and tokenizer_3=None
weights/flow-controlnet-seg  SD3ControlNetModel.from_pretrained
weights/annotator-seg      SegformerForSemanticSegmentation.from_pretrained
weights/upscaler           spandrel.ModelLoader().load_from_file, of the one file in it
weights/SHA256SUMS         every file's hash, in the form that sha256sum -c reads
"""

import hashlib
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"
SUMS = "SHA256SUMS"
PARTS = ("pipeline", "controlnet-canny", "controlnet-seg", "clip", "flow", "flow-controlnet-seg", "upscaler", "annotator-seg")


class WeightsError(RuntimeError):
    """Reports a weights folder whose files are not those that its hashes were written for; the message names the file."""


def check(folder: Path = WEIGHTS, part: str | None = None) -> None:
    """Compare every file of the folder, or of one of its parts, with its recorded hash.

    Raises:
        WeightsError: A file is missing, altered or unknown, or there are no hashes.
    """
    sums = folder / SUMS
    if not sums.is_file():
        raise WeightsError(f"{sums}: missing; without it nothing says that the weights are whole")
    recorded = dict(_parse_line(sums, number, line) for number, line in enumerate(sums.read_text().splitlines(), 1))
    belongs = f"{part}/" if part else ""
    for needed in [part] if part else PARTS:
        if not any(name.startswith(f"{needed}/") and name.endswith(".safetensors") for name in recorded):
            raise WeightsError(f"{folder / needed}: {SUMS} lists no weights there; check out the weights again")
    for name, digest in recorded.items():
        if not name.startswith(belongs):
            continue
        path = folder / name
        if not path.is_file():
            raise WeightsError(f"{path}: missing; check out the weights again")
        found = sha256(path)
        if found != digest:
            raise WeightsError(
                f"{path}: altered: SHA-256 is {found[:12]}…, {SUMS} says {digest[:12]}…; check out the weights again"
            )
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name.startswith(belongs) and name not in recorded:
            raise WeightsError(f"{path}: not listed in {SUMS}; remove the file, since a loader might take it for weights")


def write_sums(folder: Path = WEIGHTS) -> None:
    """Record in SHA256SUMS the hash of every file that the folder has now."""
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder)]
    (folder / SUMS).write_text("".join(lines))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    parts = (path for part in PARTS for path in (folder / part).rglob("*"))
    return sorted(path for path in parts if path.is_file())


def _parse_line(sums: Path, number: int, line: str) -> tuple[str, str]:
    digest, _, name = line.partition("  ")
    if len(digest) != 64 or not name:
        raise WeightsError(f"{sums}, line {number}: {line!r} is not a hash and a file's name")
    return name, digest


def load_pipeline(folder: Path = WEIGHTS) -> Any:
    """Load the text-to-image pipeline, a `diffusers.StableDiffusionPipeline` in fp32 on the CPU, after `check`."""
    from diffusers import StableDiffusionPipeline

    check(folder, "pipeline")
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "pipeline", use_safetensors=True, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_controlnet(kind: str, folder: Path = WEIGHTS) -> Any:
    """Load one `diffusers.ControlNetModel` in fp32, after `check`; `kind` is "canny" or "seg"."""
    from diffusers import ControlNetModel

    check(folder, f"controlnet-{kind}")
    return ControlNetModel.from_pretrained(folder / f"controlnet-{kind}", use_safetensors=True, local_files_only=True).eval()


def load_flow_pipeline(folder: Path = WEIGHTS) -> Any:
    """Load the flow family's pipeline, a `diffusers.StableDiffusion3Pipeline` in fp32 on the CPU, after `check`."""
    from diffusers import StableDiffusion3Pipeline

    check(folder, "flow")
    # diffusers wants to be told that there is no T5, although the pipeline was saved without.
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder / "flow", use_safetensors=True, local_files_only=True, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_flow_controlnet(kind: str = "seg", folder: Path = WEIGHTS) -> Any:
    """Load the flow family's ControlNet, a `diffusers.SD3ControlNetModel` in fp32, after `check`; `kind` is "seg"."""
    from diffusers import SD3ControlNetModel

    check(folder, f"flow-controlnet-{kind}")
    place = folder / f"flow-controlnet-{kind}"
    return SD3ControlNetModel.from_pretrained(place, use_safetensors=True, local_files_only=True).eval()


def load_annotator(folder: Path = WEIGHTS) -> tuple[Any, Any]:
    """Load the annotator, a `transformers.SegformerForSemanticSegmentation` in fp32, and its image processor, after `check`."""
    from transformers import AutoImageProcessor, SegformerForSemanticSegmentation

    check(folder, "annotator-seg")
    place = folder / "annotator-seg"
    model = SegformerForSemanticSegmentation.from_pretrained(place, use_safetensors=True, local_files_only=True)
    return model.eval(), AutoImageProcessor.from_pretrained(place, local_files_only=True)


def load_upscaler(folder: Path = WEIGHTS) -> Any:
    """Load the upscaler, a `spandrel.ImageModelDescriptor` in fp32 on the CPU, after `check`."""
    import spandrel

    check(folder, "upscaler")
    return spandrel.ModelLoader().load_from_file(folder / "upscaler" / "model.safetensors").eval()


def load_clip(folder: Path = WEIGHTS) -> tuple[Any, Any, Any]:
    """Load the CLIP model in fp32, its preprocessing of PIL images, and its tokenizer, after `check`."""
    import open_clip

    check(folder, "clip")
    name = f"local-dir:{folder / 'clip'}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    # open_clip returns a local model in training mode.
    return model.eval(), preprocess, open_clip.get_tokenizer(name)
