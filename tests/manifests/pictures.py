"""Writes pictures as other tools write them: A1111, Forge, ComfyUI, InvokeAI, Fooocus, NovelAI, Midjourney."""

import io
import json
import struct
import zlib

import piexif
import piexif.helper
from PIL import Image
from PIL.PngImagePlugin import PngInfo

A1111 = (
    "a cat, (sitting:1.2) on a mat\nsecond line\n"
    "Negative prompt: blurry, dog\nstill negative\n"
    "Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 965400086, Size: 512x768, "
    'Model hash: 6ce0161689, Model: v1-5-pruned, VAE: "a, b: c", Denoising strength: 0.4, Clip skip: 2, Variation seed: 7, '
    'Variation seed strength: 0.25, Hires upscale: 2, Lora hashes: "detail: 7c6bad76eb54", Version: v1.10.1'
)
FORGE = (
    "a red barn\nSteps: 20, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 3, "
    "Size: 896x1152, Model: flux1-dev, Version: f2.0.1v1.10.1"
)
# What ComfyUI's default workflow writes, with a second sampler that refines.
COMFYUI = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 156680208,
            "steps": 22,
            "cfg": 8.0,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["10", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned-emaonly.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "height": 512, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a glass bottle in a landscape", "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text, watermark", "clip": ["10", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["11", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {
            "lora_name": "detail.safetensors",
            "strength_model": 0.8,
            "strength_clip": 0.8,
            "model": ["4", 0],
            "clip": ["4", 1],
        },
    },
    "11": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 1,
            "steps": 10,
            "cfg": 8.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 0.4,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["3", 0],
        },
    },
}
# ComfyUI's example of Flux, whose sampler is spread over nodes.
FLUX = {
    "5": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 1024, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red barn", "clip": ["11", 0]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["13", 0], "vae": ["10", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    "10": {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}},
    "11": {"class_type": "DualCLIPLoader", "inputs": {"clip_name1": "t5xxl_fp16.safetensors", "clip_name2": "clip_l.safetensors"}},
    "12": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux1-dev.safetensors", "weight_dtype": "default"}},
    "13": {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            "noise": ["25", 0],
            "guider": ["22", 0],
            "sampler": ["16", 0],
            "sigmas": ["17", 0],
            "latent_image": ["5", 0],
        },
    },
    "16": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "17": {"class_type": "BasicScheduler", "inputs": {"scheduler": "simple", "steps": 28, "denoise": 1.0, "model": ["12", 0]}},
    "22": {"class_type": "BasicGuider", "inputs": {"model": ["12", 0], "conditioning": ["26", 0]}},
    "25": {"class_type": "RandomNoise", "inputs": {"noise_seed": 219670278}},
    "26": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["6", 0]}},
}
INVOKEAI = {
    "app_version": "5.6.0",
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "a lighthouse",
    "negative_prompt": "people",
    "width": 1024,
    "height": 768,
    "seed": 4033289,
    "rand_device": "cpu",
    "cfg_scale": 5.5,
    "cfg_rescale_multiplier": 0.5,
    "steps": 30,
    "scheduler": "dpmpp_2m_sde_k",
    "clip_skip": 0,
    "model": {"key": "d6c0", "hash": "blake3:99", "name": "Juggernaut XL", "base": "sdxl", "type": "main"},
    "loras": [{"model": {"key": "1", "name": "ink"}, "weight": 0.75}],
}
DREAM = '"a lighthouse [people]" -s 30 -S 77 -W 512 -H 448 -C 7.5 -A k_lms'
FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "juggernautXL",
    "base_model_hash": "aeb7e9e689",
    "guidance_scale": 4,
    "metadata_scheme": "fooocus",
    "negative_prompt": "",
    "performance": "Speed",
    "prompt": "a paper boat",
    "sharpness": 2,
    "resolution": "(1152, 896)",
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "seed": "5551",
    "steps": 30,
    "version": "Fooocus v2.5.5",
    "styles": "[]",
}
NOVELAI = {
    "Title": "AI generated image",
    "Description": "a fox in snow",
    "Software": "NovelAI",
    "Source": "Stable Diffusion 1D44365E",
    "Comment": json.dumps(
        {"steps": 28, "sampler": "k_euler_ancestral", "seed": 42, "strength": 0.7, "noise": 0.2, "scale": 11.0, "uc": "lowres"}
    ),
}
MIDJOURNEY = (
    "a fox in the snow, 35mm --no people, text --ar 3:2 --seed 99 --v 6.1 --stylize 250"
    " Job ID: 0b7a6c1e-8a1f-4c57-9d6c-0a1b2c3d4e5f"
)


def picture(size=(64, 48)):
    return Image.new("RGB", size, (200, 40, 40))


def png(texts, size=(64, 48), packed=False, international=False):
    """A PNG with texts by keyword, as Pillow writes tEXt, zTXt and iTXt."""
    info, file = PngInfo(), io.BytesIO()
    for keyword, text in texts.items():
        if international:
            info.add_itxt(keyword, text, zip=packed)
        else:
            info.add_text(keyword, text, zip=packed)
    picture(size).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def with_comment(form, text):
    """A JPEG or WebP with a user comment, as A1111 and Forge write one by piexif."""
    comment = piexif.helper.UserComment.dump(text, encoding="unicode")
    file = io.BytesIO()
    picture().save(file, form, exif=piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}}))
    return file.getvalue()


def webp_of_comfyui(graph):
    """A WebP with the graph under EXIF's tags of the camera, as ComfyUI's node for animated WebP writes it."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0110], exif[0x010F] = f"prompt:{json.dumps(graph)}", 'workflow:{"links": []}'
    picture().save(file, "WEBP", exif=exif)
    return file.getvalue()


def jpeg_with_xmp(description):
    """A JPEG with a description in XMP, as Midjourney's downloads have it."""
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><rdf:Alt>'
        f'<rdf:li xml:lang="x-default">{description}</rdf:li></rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>'
    )
    file = io.BytesIO()
    picture().save(file, "JPEG", xmp=packet.encode())
    return file.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(*chunks):
    """A PNG of the given chunks behind its header, without pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def of_each_tool():
    """Pictures by the name of their file, as each tool writes them."""
    return {
        "a1111.png": png({"parameters": A1111}),
        "a1111-umlaut.png": png({"parameters": A1111.replace("a cat", "猫 ä")}, international=True),
        "a1111.jpg": with_comment("JPEG", A1111),
        "a1111.webp": with_comment("WEBP", A1111),
        "forge.png": png({"parameters": FORGE}),
        "comfyui.png": png({"prompt": json.dumps(COMFYUI), "workflow": json.dumps({"links": []})}),
        "comfyui.webp": webp_of_comfyui(COMFYUI),
        "invokeai.png": png({"invokeai_metadata": json.dumps(INVOKEAI)}),
        "invokeai-2.png": png({"Dream": DREAM}),
        "fooocus.png": png({"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"}),
        "novelai.png": png(NOVELAI),
        "midjourney.png": png({"Description": MIDJOURNEY, "Author": "somebody"}),
        "midjourney.jpg": jpeg_with_xmp(MIDJOURNEY),
    }
