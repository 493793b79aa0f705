"""Tiny models of families in which a prior makes embeddings of prompts, and a decoder images of the embeddings.

Each is the folder of the decoder's model, with that of the prior's in `prior`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.unets import StableCascadeUNet
from diffusers.pipelines.deprecated import wuerstchen as moved
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

from tests.pipelines import tiny, tiny_texts
from tests.pipelines.tiny_parts import image_encoder, lively, made, seeded

# The indexes on the hub name classes by where diffusers had them before version 0.42; so do those that are saved here.
diffusers.pipelines.wuerstchen = moved

EMBEDDED = 32  # values of an image's embedding
SMALLER, LARGER = 10.67, 2.67  # four times less than the real ones, so that sides are multiples of 32 in place of 128


def _texts() -> dict[str, Any]:
    return {"text_encoder": tiny.text_encoder(EMBEDDED, projected=True), "tokenizer": tiny.tokenizer()}


def _unclip(kind: Any, folder: Path) -> None:
    """A prior of Kandinsky."""
    transformer = made(
        "PriorTransformer",
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        embedding_dim=EMBEDDED,
        num_embeddings=32,
        additional_embeddings=4,
    )
    kind(
        prior=transformer,
        image_encoder=image_encoder(),
        image_processor=transformers.CLIPImageProcessor(size=32, crop_size=32),
        scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample_range=5.0
        ),
        **_texts(),
    ).save_pretrained(folder / "prior")


def movq(channels: list[int]) -> torch.nn.Module:
    """The VAE of Kandinsky."""
    return made(
        "VQModel",
        block_out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=12,
        vq_embed_dim=4,
        norm_type="spatial",
        norm_num_groups=8,
    )


def _decoder(channels: int, **options: Any) -> dict[str, Any]:
    """The parts of a decoder of Kandinsky, whose VAE is called movq."""
    unet = made(
        "UNet2DConditionModel",
        in_channels=channels,
        out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        encoder_hid_dim=EMBEDDED,
        cross_attention_dim=32,
        attention_head_dim=16,
        resnet_time_scale_shift="scale_shift",
        **options,
    )
    vae = movq([32, 32, 64])
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, clip_sample=False, variance_type="learned_range", thresholding=False
    )
    return {"unet": unet, "scheduler": scheduler, "movq": vae}


_OF_IMAGES = {"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj"}


def kandinsky22(folder: Path) -> Path:
    """Kandinsky 2.2: a UNet that is told the embedding of an image, and no text."""
    _unclip(diffusers.KandinskyV22PriorPipeline, folder)
    diffusers.KandinskyV22Pipeline(**_decoder(4, **_OF_IMAGES)).save_pretrained(folder)
    return folder


def kandinsky22_inpainting(folder: Path) -> Path:
    """The same with a UNet of nine channels: latents, the masked picture's latents, and the mask."""
    _unclip(diffusers.KandinskyV22PriorPipeline, folder)
    diffusers.KandinskyV22InpaintPipeline(**_decoder(9, **_OF_IMAGES)).save_pretrained(folder)
    return folder


def _decoder21(channels: int) -> dict[str, Any]:
    config = MCLIPConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=96,
        transformerDimSize=32,
        imageDimSize=EMBEDDED,
    )
    told = {
        "addition_embed_type": "text_image",
        "encoder_hid_dim_type": "text_image_proj",
    }
    texts = {"text_encoder": seeded(MultilingualCLIP, config), "tokenizer": tiny_texts.words(most=77)}
    return _decoder(channels, **told) | texts


def kandinsky21(folder: Path) -> Path:
    """Kandinsky 2.1: the UNet is told the text as well."""
    _unclip(diffusers.KandinskyPriorPipeline, folder)
    diffusers.KandinskyPipeline(**_decoder21(4)).save_pretrained(folder)
    return folder


def kandinsky21_inpainting(folder: Path) -> Path:
    _unclip(diffusers.KandinskyPriorPipeline, folder)
    diffusers.KandinskyInpaintPipeline(**_decoder21(9)).save_pretrained(folder)
    return folder


def _paella() -> Any:
    return lively(seeded(moved.PaellaVQModel, levels=2, bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=16))


def _cascade_unet(**options: Any) -> StableCascadeUNet:
    return lively(
        seeded(
            StableCascadeUNet,
            timestep_ratio_embedding_dim=8,
            clip_text_pooled_in_channels=EMBEDDED,
            conditioning_dim=32,
            block_out_channels=(32, 64),
            num_attention_heads=(1, 2),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            down_blocks_repeat_mappers=(1, 1),
            up_blocks_repeat_mappers=(1, 1),
            kernel_size=3,
            dropout=(0.0, 0.0),
            **options,
        )
    )


def cascade(folder: Path) -> Path:
    """Stable Cascade: the embeddings have a height and a width; its VAE is called vqgan, its denoisers prior and decoder."""
    prior = _cascade_unet(
        in_channels=4,
        out_channels=4,
        switch_level=(False,),
        self_attn=True,
        clip_text_in_channels=EMBEDDED,
        clip_image_in_channels=EMBEDDED,
        block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
    )
    diffusers.StableCascadePriorPipeline(
        prior=prior, scheduler=diffusers.DDPMWuerstchenScheduler(), resolution_multiple=SMALLER, **_texts()
    ).save_pretrained(folder / "prior")
    decoder = _cascade_unet(
        in_channels=4,
        out_channels=4,
        patch_size=2,
        effnet_in_channels=4,
        pixel_mapper_in_channels=3,
        self_attn=False,
        block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ),
    )
    diffusers.StableCascadeDecoderPipeline(
        decoder=decoder, scheduler=diffusers.DDPMWuerstchenScheduler(), vqgan=_paella(), latent_dim_scale=LARGER, **_texts()
    ).save_pretrained(folder)
    return folder


def wuerstchen(folder: Path) -> Path:
    """Würstchen: the same stages by models of other classes; the decoder reads the prompt once more."""
    prior = seeded(moved.WuerstchenPrior, c_in=4, c=32, c_cond=EMBEDDED, c_r=8, depth=1, nhead=2, dropout=0.0)
    diffusers.WuerstchenPriorPipeline(
        prior=lively(prior), scheduler=diffusers.DDPMWuerstchenScheduler(), resolution_multiple=SMALLER, **_texts()
    ).save_pretrained(folder / "prior")
    decoder = seeded(
        moved.WuerstchenDiffNeXt,
        c_r=8,
        c_cond=32,
        c_hidden=[32, 64],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        effnet_embd=4,
        clip_embd=EMBEDDED,
        dropout=0.0,
    )
    diffusers.WuerstchenDecoderPipeline(
        decoder=lively(decoder),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=_paella(),
        latent_dim_scale=LARGER,
        **_texts(),
    ).save_pretrained(folder)
    return folder


STAGES: dict[str, Callable[[Path], Path]] = {
    "kandinsky21": kandinsky21,
    "kandinsky21-inpainting": kandinsky21_inpainting,
    "kandinsky22": kandinsky22,
    "kandinsky22-inpainting": kandinsky22_inpainting,
    "stable-cascade": cascade,
    "wuerstchen": wuerstchen,
}
