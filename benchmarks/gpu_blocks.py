"""Measures a GPU, in blocks of some seconds each: every block is a function that returns figures by name.

`benchmarks.gpu` runs each block in a process of its own. Models have random weights, which cost the time of trained ones, and are
made on the device. A tiny block takes tiny models, and runs on a CPU: it shows that the block runs, and measures nothing.
"""

import copy
import hashlib
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.attention import BasicTransformerBlock

from benchmarks import random_weights
from promptmill.configs.model import Kernels, Model
from promptmill.configs.schedulers import SCHEDULERS
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.hardware import hardware_kind
from promptmill.pipelines.rendering.kernels import put_on
from promptmill.pipelines.rendering.loading import device_here
from promptmill.pipelines.rendering.merging import MergedLoras
from promptmill.pipelines.work.errors import is_fatal, is_out_of_memory
from promptmill.pipelines.work.units import Placed, Unit
from tests.pipelines import tiny as tiny_models
from tests.pipelines.plain import JOB_SEED, MODES, paint, render_plain, request

Figures = dict[str, Any]


def milliseconds(call: Callable[[], object], device: torch.device, times: int = 10) -> float:
    """Return the median milliseconds of a call, after two to warm up: by events on a GPU, by the clock on a CPU."""
    for _ in range(2):
        call()
    spent = []
    for _ in range(times):
        if device.type == "cuda":
            before, behind = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            call()
            behind.record()
            torch.cuda.synchronize()
            spent.append(before.elapsed_time(behind))
        else:
            started = time.perf_counter()
            call()
            spent.append(1000 * (time.perf_counter() - started))
    return round(float(np.median(spent)), 3)


def machine(device: torch.device, tiny: bool) -> Figures:
    """Measure the rates of the device: a large bf16 product in TFLOP/s, a copy to it in GB/s; and say what it is."""
    side = 256 if tiny else 8192
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    host = torch.zeros(2**20 if tiny else 2**30, dtype=torch.uint8, pin_memory=device.type == "cuda")
    product, copied = (
        milliseconds(call, device) for call in (lambda: one @ other, lambda: host.to(device, non_blocking=True, copy=True))
    )
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    return {
        **hardware_kind(1),
        **versions,
        "matrix TFLOP/s": round(2 * side**3 / product / 1e9, 2),
        "copy GB/s": round(host.numel() / copied / 1e6, 2),
    }


def equality(device: torch.device, tiny: bool) -> Figures:
    """Count the modes of tiny models whose images are those of plain diffusers, by dtype; and the waits of a step, by scheduler."""
    del tiny
    figures: Figures = {}
    modes = ("txt2img", "img2img", "inpaint")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paint(folder)
        bases = {
            "StableDiffusion": tiny_models.stable_diffusion(folder / "sd"),
            "StableDiffusionXL": tiny_models.sdxl(folder / "xl"),
        }
        for dtype in ("float32", "bfloat16", "float16"):
            for family, base in bases.items():
                engine = Engine(Model(base=str(base), batch=3, dtype=dtype), JOB_SEED, Roots((str(folder),)))
                same = 0
                for mode in modes:
                    wanted = request(candidates=3, negative_prompt="blue", **{"mode": mode, **MODES[mode]})
                    theirs = render_plain(wanted, 3, base, {}, folder, getattr(torch, dtype), family, decoded=3)
                    outcome = engine.render(Unit(0, 0, (Placed(0, wanted),))).outcomes[0]
                    if outcome.failure:
                        figures[f"{family} {dtype} {mode}"] = outcome.failure.message
                    made = [candidate.pixels for candidate in outcome.candidates]
                    same += len(made) == len(theirs) and all(map(np.array_equal, made, theirs))
                figures[f"{family} {dtype} equal of {len(modes)}"] = same
                if dtype == "bfloat16" and family == "StableDiffusion":
                    figures["syncs a step"] = {
                        scheduler: _synchronisations(engine, scheduler) for scheduler in (*SCHEDULERS, "model")
                    }
                engine.close()
    return figures


def _synchronisations(engine: Engine, scheduler: str) -> float:
    """Return how often a step waits for the device: what eight steps do beyond four, by torch's own warnings; 0 on a CPU."""
    counts = []
    for steps in (4, 8):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("warn")
            engine.render(Unit(0, 0, (Placed(0, request(scheduler=scheduler, steps=steps, candidates=1)),)))
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(one.message) for one in seen))
    return (counts[1] - counts[0]) / 4


def _unet(name: str, device: torch.device, tiny: bool) -> tuple[torch.nn.Module, int, Callable[[int], dict[str, Any]]]:
    """Return a UNet, the rows of its batch, and a function that makes the arguments of a call with so many rows."""
    if tiny:
        unet, side, rows = tiny_models.unet(), 8, 4
    else:
        unet, side, rows = random_weights.unet(name, device), *{"sd15": (64, 32), "sdxl": (128, 16)}[name]
    unet = unet.to(device, torch.bfloat16).eval()

    def given(count: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(rows, *shape, generator=generator)[:count].to(device, torch.bfloat16)

        made: dict[str, Any] = {
            "sample": noise(4, side, side),
            "timestep": torch.full((count,), 500.0, device=device),
            "encoder_hidden_states": noise(77, unet.config.cross_attention_dim),
        }
        if unet.config.addition_embed_type == "text_time":
            made["added_cond_kwargs"] = {"text_embeds": noise(1280), "time_ids": torch.ones(count, 6, device=device)}
        return made

    return unet, rows, given


VARIANTS: Mapping[str, Kernels] = {
    "eager": Kernels(),
    "channels last": Kernels(channels_last=True),
    "compiled": Kernels(channels_last=True, compile=True),
    "fp8": Kernels(channels_last=True, compile=True, fp8=True),
}


def _each_variant(module: torch.nn.Module, device: torch.device, tiny: bool) -> Any:
    """Yield the names of variants and the module with their switches; a variant that this machine cannot have is left out."""
    for name, kernels in VARIANTS.items():
        if tiny and name in ("compiled", "fp8"):
            continue
        made = copy.deepcopy(module)
        try:
            put_on(kernels, [made], device)
        except Exception as error:
            yield name, None, str(error).splitlines()[0]
            continue
        yield name, made, ""
        del made


def rows(device: torch.device, tiny: bool) -> Figures:
    """Compare the bits of a row of real shapes: at another place, with other companions, and with what memory is left."""
    figures: Figures = {}
    for name in ("sd15", "sdxl"):
        unet, count, given = _unet(name, device, tiny)
        for variant, module, reason in _each_variant(unet, device, tiny):
            if module is None:
                figures[f"{name} {variant}"] = reason
                continue
            first = _hash(module, given(count), 0)
            turned = {key: _flipped(value) for key, value in given(count).items()}
            others = {key: _others(value) for key, value in given(count).items()}
            figures[f"{name} {variant} at another place"] = _hash(module, turned, count - 1) == first
            figures[f"{name} {variant} with other companions"] = _hash(module, others, 0) == first
            figures[f"{name} {variant} again"] = _hash(module, given(count), 0) == first
        del unet
    return figures


def _hash(module: torch.nn.Module, given: dict[str, Any], row: int) -> str:
    with torch.no_grad():
        made = module(**given, return_dict=False)[0][row]
    return hashlib.sha256(made.float().cpu().contiguous().numpy().tobytes()).hexdigest()


def _flipped(value: Any) -> Any:
    return {key: _flipped(one) for key, one in value.items()} if isinstance(value, dict) else value.flip(0)


def _others(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _others(one) for key, one in value.items()}
    return torch.cat([value[:1], value[1:] * 0.5 + 1.0])


def denoisers(name: str, device: torch.device, tiny: bool) -> Figures:
    """Measure a UNet's milliseconds a joined call by variant, and a LoRA beside the weights and merged into them."""
    unet, count, given = _unet(name, device, tiny)
    figures: Figures = {"rows": count}
    arguments = given(count)
    for variant, module, reason in _each_variant(unet, device, tiny):
        figures[f"{variant} ms"] = reason if module is None else _timed(module, arguments, device)
    from peft import LoraConfig

    unet.add_adapter(LoraConfig(r=2 if tiny else 64, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    figures["LoRA beside ms"] = _timed(unet, arguments, device)
    merged = MergedLoras([unet])
    merged.switch((("default", 1.0),))
    figures["LoRA merged ms"] = _timed(unet, arguments, device)

    def switch(turn: Any = itertools.count(1)) -> None:  # noqa: B008
        merged.switch((("default", 1.0 / next(turn)),))

    figures["a switch of LoRAs ms"] = milliseconds(switch, device, 5)
    vae = (tiny_models.vae() if tiny else random_weights.vae(1024, 0.13025)).to(device, torch.bfloat16).eval()
    side = 8 if tiny else {"sd15": 64, "sdxl": 128}[name]
    for images in (1, 4):
        latents = torch.randn(images, 4, side, side, device=device, dtype=torch.bfloat16)
        with torch.no_grad():
            figures[f"decoding {images} ms"] = milliseconds(lambda latents=latents: vae.decode(latents), device, 5)
    return figures


def _timed(module: torch.nn.Module, given: dict[str, Any], device: torch.device) -> float:
    with torch.no_grad():
        return milliseconds(lambda: module(**given), device)


def transformers(device: torch.device, tiny: bool) -> Figures:
    """Measure a slice of Flux by the rows of a batch: two double and four single blocks, milliseconds a call and a row."""
    sizes = {"num_layers": 2, "num_single_layers": 4, "guidance_embeds": True}
    if tiny:
        sizes |= {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 32}
        sizes |= {"pooled_projection_dim": 32}
    with torch.device(device):
        model = diffusers.FluxTransformer2DModel(**sizes).to(torch.bfloat16).eval()
    tokens, figures = (16 if tiny else 4096), dict[str, Any]()
    for count in (1, 2, 4, 8, 16)[: 2 if tiny else 5]:
        given = {
            "hidden_states": torch.randn(count, tokens, 64, device=device, dtype=torch.bfloat16),
            "encoder_hidden_states": torch.randn(count, 512, model.config.joint_attention_dim, device=device, dtype=torch.bfloat16),
            "pooled_projections": torch.randn(count, model.config.pooled_projection_dim, device=device, dtype=torch.bfloat16),
            "timestep": torch.full((count,), 0.5, device=device, dtype=torch.bfloat16),
            "guidance": torch.full((count,), 3.5, device=device),
            "img_ids": torch.zeros(tokens, 3, device=device),
            "txt_ids": torch.zeros(512, 3, device=device),
        }
        figures[f"{count} rows: ms a row"] = round(_timed(model, given, device) / count, 3)
    return figures


def engine(device: torch.device, tiny: bool) -> Figures:
    """Measure how much of the engine's time the models take: uniform requests, and sixteen kinds of them mixed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = tiny_models.stable_diffusion(folder / "sd") if tiny else random_weights.sd15(folder / "sd", device)
        batch, side, steps = (2, 64, 2) if tiny else (16, 512, 8)
        made = Engine(Model(base=str(base), batch=batch, dtype="bfloat16"), JOB_SEED, Roots((str(folder),)), device)
        alike = {"width": side, "height": side, "scheduler": "euler", "guidance_scale": 7.0, "steps": steps, "candidates": 1}
        uniform = [request(str(n), **alike) for n in range(2 * batch)]
        kinds = itertools.cycle(itertools.product((steps, steps + 2), (2.0, 7.0), ("euler", "ddim", "dpmpp_2m", "unipc")))
        mixed = [
            request(str(n), **{**alike, "steps": some, "guidance_scale": scale, "scheduler": scheduler})
            for n, (some, scale, scheduler) in zip(range(2 * batch), kinds, strict=False)
        ]
        made.render(Unit(0, 0, tuple(Placed(n, one) for n, one in enumerate(uniform))))
        figures: Figures = {}
        for what, some in (("uniform", uniform), ("mixed", mixed)):
            started = time.monotonic()
            rendered = made.render(Unit(0, 0, tuple(Placed(n, one) for n, one in enumerate(some))))
            wall = time.monotonic() - started
            inside = sum(
                seconds for stage, seconds in rendered.seconds.items() if stage in ("text", "denoise", "control", "decode")
            )
            figures[f"{what}: images/s"] = round(len(some) / wall, 3)
            figures[f"{what}: models busy %"] = round(100 * inside / wall, 1)
        made.close()
        assert "txt2img" in read_facts(Model(base=str(base))).modes
        return figures


def failures(device: torch.device, tiny: bool) -> Figures:
    """Return the words of a GPU where memory runs out and where a kernel asserts, and whether promptmill knows them."""
    del tiny
    if device.type != "cuda":
        return {"left out": "a CPU neither runs out of a card's memory nor asserts"}
    figures: Figures = {}
    free, _ = torch.cuda.mem_get_info()
    try:
        torch.nn.functional.conv2d(
            torch.empty(1, 64, 1, device=device).expand(1, 64, 2**16, -1), torch.empty(2**20, 64, 1, 1, device=device)
        )
        torch.empty(2 * free, dtype=torch.uint8, device=device)
    except Exception as error:
        figures["memory"] = {"said": str(error)[:200], "known": is_out_of_memory(error)}
    try:
        torch.embedding(torch.ones(4, 4, device=device), torch.tensor([9], device=device))
        torch.cuda.synchronize()
    except Exception as error:
        figures["an assertion"] = {"said": str(error)[:200], "known": is_fatal(error) and not is_out_of_memory(error)}
    return figures


BLOCKS: dict[str, tuple[float, Callable[[torch.device, bool], Figures]]] = {
    # By name: the seconds that it may take, and the block.
    "machine": (30, machine),
    "equality": (90, equality),
    "rows": (80, rows),
    "sd15": (70, lambda device, tiny: denoisers("sd15", device, tiny)),
    "sdxl": (90, lambda device, tiny: denoisers("sdxl", device, tiny)),
    "flux": (60, transformers),
    "engine": (80, engine),
    "failures": (30, failures),
}


def figures_of(name: str, tiny: bool) -> Figures:
    """Run a block on the device of this machine, and return its figures."""
    assert BasicTransformerBlock  # what is compiled is imported before anything is timed
    return BLOCKS[name][1](device_here(), tiny)
