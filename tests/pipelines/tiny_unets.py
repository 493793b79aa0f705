"""Tiny models of families with a UNet that begin with a picture, which they edit, enlarge or refine."""

from collections.abc import Callable
from pathlib import Path

import diffusers
import transformers
from diffusers.pipelines.deprecated import alt_diffusion
from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import RobertaSeriesConfig
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

from tests.pipelines import tiny, tiny_texts
from tests.pipelines.tiny_parts import WIDTH, image_encoder, lively, made, seeded, t5
from tests.pipelines.tiny_stages import movq

SAFE = {"safety_checker": None, "feature_extractor": None}


def _parts() -> dict[str, object]:
    return {"vae": tiny.vae(), "text_encoder": tiny.text_encoder(WIDTH), "tokenizer": tiny.tokenizer(), "scheduler": tiny.ddim()}


def taiyi(folder: Path) -> Path:
    """Taiyi: Stable Diffusion 1.x whose texts a BERT of another language encodes."""
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    parts = _parts() | {"text_encoder": seeded(transformers.BertModel, config), "tokenizer": tiny_texts.words(most=77)}
    diffusers.StableDiffusionPipeline(**parts, unet=tiny.unet(), **SAFE, requires_safety_checker=False).save_pretrained(folder)
    return folder


def alt(folder: Path) -> Path:
    """AltDiffusion: Stable Diffusion 1.x whose texts, in several languages, another BERT encodes."""
    diffusers.pipelines.alt_diffusion = alt_diffusion  # where diffusers had it before version 0.42, and as indexes name it
    config = RobertaSeriesConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=96,
        project_dim=WIDTH,
        has_pre_transformation=True,
    )
    texts = {"text_encoder": seeded(alt_diffusion.RobertaSeriesModelWithTransformation, config), "tokenizer": tiny_texts.words(77)}
    pipeline = diffusers.AltDiffusionPipeline(**_parts() | texts, unet=tiny.unet(), **SAFE, requires_safety_checker=False)
    pipeline.save_pretrained(folder)
    return folder


def unclip(folder: Path) -> Path:
    """Stable unCLIP: variations of a picture, which the UNet is given as the embedding of an image encoder, with noise."""
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        **_parts(),
        unet=tiny.unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * 32),
        feature_extractor=transformers.CLIPImageProcessor(size=32, crop_size=32),
        image_encoder=image_encoder(2),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=32),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    )
    pipeline.save_pretrained(folder)
    return folder


def unclip_of_texts(folder: Path) -> Path:
    """Stable unCLIP: the UNet is given the embedding of an image that a prior inside of the model makes of the text."""
    prior = made(
        "PriorTransformer",
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        embedding_dim=32,
        num_embeddings=32,
        additional_embeddings=4,
    )
    pipeline = diffusers.StableUnCLIPPipeline(
        **_parts(),
        prior_tokenizer=tiny.tokenizer(),
        prior_text_encoder=tiny.text_encoder(32, projected=True),
        prior=prior,
        prior_scheduler=diffusers.DDPMScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=5.0
        ),
        unet=tiny.unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * 32),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=32),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    )
    pipeline.save_pretrained(folder)
    return folder


def _vae(levels: int) -> diffusers.AutoencoderKL:
    return seeded(
        diffusers.AutoencoderKL,
        block_out_channels=[8, 16, 16, 16][:levels],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def pix2pix(folder: Path) -> Path:
    """InstructPix2Pix: the UNet is given a picture's latents, and guidance has three parts."""
    pipeline = diffusers.StableDiffusionInstructPix2PixPipeline
    pipeline(**_parts(), unet=tiny.unet(in_channels=8), **SAFE, requires_safety_checker=False).save_pretrained(folder)
    return folder


def _large() -> dict[str, object]:
    second = tiny.text_encoder(WIDTH, projected=True, act="gelu")
    return _parts() | {"text_encoder_2": second, "tokenizer_2": tiny.tokenizer()}


def pix2pix_xl(folder: Path) -> Path:
    """The same in the layout of Stable Diffusion XL."""
    unet = tiny.unet(in_channels=8, **tiny.SDXL_UNET)
    diffusers.StableDiffusionXLInstructPix2PixPipeline(**_large(), unet=unet, add_watermarker=False).save_pretrained(folder)
    return folder


def refiner(folder: Path) -> Path:
    """SDXL's refiner: the second text encoder alone, and a score of beauty as a condition."""
    parts = _large() | {"text_encoder": None, "tokenizer": None}
    shape = tiny.SDXL_UNET | {"cross": WIDTH, "projection_class_embeddings_input_dim": 5 * 8 + WIDTH}
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(
        **parts, unet=tiny.unet(**shape), requires_aesthetics_score=True, add_watermarker=False
    )
    pipeline.save_pretrained(folder)
    return folder


def gligen(folder: Path, channels: int = 4) -> Path:
    """GLIGEN: the UNet has layers that read boxes, which begin as nothing, and of nine channels it repaints a picture there."""
    unet = lively(tiny.unet(in_channels=channels, attention_type="gated"))
    pipeline = diffusers.StableDiffusionGLIGENPipeline
    pipeline(**_parts(), unet=unet, **SAFE, requires_safety_checker=False).save_pretrained(folder)
    return folder


def depth(folder: Path) -> Path:
    """depth2img: the depth of a picture, as a part of the model estimates it, is one more channel of latents."""
    config = transformers.DPTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=16,
        is_hybrid=False,
    )
    estimator = seeded(transformers.DPTForDepthEstimation, config)
    extractor = transformers.DPTImageProcessor(size={"height": 32, "width": 32})
    pipeline = diffusers.StableDiffusionDepth2ImgPipeline(
        **_parts(), unet=tiny.unet(in_channels=5), depth_estimator=estimator, feature_extractor=extractor
    )
    pipeline.save_pretrained(folder)
    return folder


def upscaler(folder: Path) -> Path:
    """The x4 upscaler: the UNet is given the small picture itself, with noise of a level that the UNet is told."""
    pipeline = diffusers.StableDiffusionUpscalePipeline(
        **_parts() | {"vae": _vae(levels=3)},
        unet=tiny.unet(in_channels=7, num_class_embeds=1000),
        low_res_scheduler=diffusers.DDPMScheduler(),
        **SAFE,
    )
    pipeline.save_pretrained(folder)
    return folder


def latent_upscaler(folder: Path) -> Path:
    """The latent upscaler: the UNet is given the small picture's latents, twice as large, and predicts the image itself."""
    unet = made(
        "UNet2DConditionModel",
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        block_out_channels=[32, 32, 64, 64],
        time_cond_proj_dim=128 + WIDTH,
        conv_in_kernel=1,
        conv_out_kernel=1,
        cross_attention_dim=WIDTH,
        down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
        in_channels=8,
        mid_block_type=None,
        only_cross_attention=False,
        out_channels=5,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        up_block_types=("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
    )
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="sample")
    parts = _parts() | {"scheduler": scheduler, "vae": _vae(levels=2)}  # the UNet's levels need larger latents than others have
    diffusers.StableDiffusionLatentUpscalePipeline(**parts, unet=unet).save_pretrained(folder)
    return folder


def kandinsky3(folder: Path) -> Path:
    """Kandinsky 3: a UNet of its own that reads T5's texts, cut to the longest of a call; no prior."""
    unet = made(
        "Kandinsky3UNet",
        time_embedding_dim=32,
        groups=8,
        attention_head_dim=16,
        layers_per_block=2,
        block_out_channels=(32, 64),
        cross_attention_dim=32,
        encoder_hid_dim=WIDTH,
    )
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="squaredcos_cap_v2")
    parts = (tiny_texts.words(), t5(WIDTH), unet, scheduler, movq([32, 32, 32, 32]))
    diffusers.Kandinsky3Pipeline(*parts).save_pretrained(folder)
    return folder


UNETS: dict[str, Callable[[Path], Path]] = {
    "alt-diffusion": alt,
    "taiyi": taiyi,
    "stable-unclip": unclip,
    "stable-unclip-of-texts": unclip_of_texts,
    "pix2pix": pix2pix,
    "pix2pix-xl": pix2pix_xl,
    "sdxl-refiner": refiner,
    "gligen": gligen,
    "gligen-inpainting": lambda folder: gligen(folder, 9),
    "depth2img": depth,
    "x4-upscaler": upscaler,
    "latent-upscaler": latent_upscaler,
    "kandinsky3": kandinsky3,
}
