"""Tiny models with random weights, built from configs and saved, so that they are loaded like any other."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TOKENIZER = Path(__file__).parents[2] / "embedded" / "weights" / "pipeline" / "tokenizer"


def vae() -> AutoencoderKL:
    """8 times smaller latents, of four channels."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=[8, 16, 16, 16],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def text_encoder(width: int, projected: bool = False, act: str = "quick_gelu", longest: int = 32) -> CLIPTextModel:
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=longest,
        projection_dim=width,
        hidden_act=act,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(TOKENIZER)


def unet(in_channels: int = 4, cross: int = 16, **options: object) -> UNet2DConditionModel:
    torch.manual_seed(2)
    return UNet2DConditionModel(
        block_out_channels=[8, 16],
        layers_per_block=1,
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross,
        attention_head_dim=4,
        norm_num_groups=4,
        **options,
    )


SDXL_UNET = {
    "cross": 32,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 2),
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
    "use_linear_projection": True,
}


def stable_diffusion(folder: Path, prediction_type: str = "epsilon", **options: object) -> Path:
    """A Stable Diffusion 1.x of random weights; 2.x with `v_prediction`, and what further options of the UNet make of it."""
    scheduler = ddim(prediction_type)
    parts = (vae(), text_encoder(16), tokenizer(), unet(**options), scheduler, None, None)
    StableDiffusionPipeline(*parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def inpainting(folder: Path) -> Path:
    """The same with a UNet of nine channels: latents, mask, and the masked picture's latents."""
    parts = (vae(), text_encoder(16), tokenizer(), unet(in_channels=9), ddim(), None, None)
    StableDiffusionInpaintPipeline(*parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def sdxl(folder: Path, scheduler: SchedulerMixin | None = None, width: int = 16) -> Path:
    """A Stable Diffusion XL of random weights: two text encoders, the second so wide, pooled embeddings, sizes as conditions."""
    first, second = text_encoder(16), text_encoder(width, projected=True, act="gelu")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = scheduler or EulerDiscreteScheduler(**betas, steps_offset=1)
    parts = (
        vae(),
        first,
        second,
        tokenizer(),
        tokenizer(),
        unet(**SDXL_UNET | {"cross": 16 + width, "projection_class_embeddings_input_dim": 6 * 8 + width}),
        scheduler,
    )
    StableDiffusionXLPipeline(*parts, add_watermarker=False).save_pretrained(folder)
    return folder


def playground(folder: Path) -> Path:
    """The same with the noise of EDM (arXiv:2206.00364), as Playground 2.5 has it."""
    return sdxl(folder, EDMDPMSolverMultistepScheduler(sigma_data=0.5, sigma_max=80.0, sigma_min=0.002))


def flux(folder: Path) -> Path:
    """A Flux of random weights: a family without a UNet, with flow matching and a T5 beside CLIP."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    torch.manual_seed(5)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    autoencoder = AutoencoderKL(
        block_out_channels=(4,),
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )
    words = {
        "<pad>": 0,
        "</s>": 1,
        "<unk>": 2,
        **{word: i for i, word in enumerate(["a", "small", "red", "blue", "circle", "at", "the", "left"], 3)},
    }
    whole = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    t5_tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    t5 = T5EncoderModel(T5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).eval()
    scheduler = FlowMatchEulerDiscreteScheduler()
    FluxPipeline(scheduler, autoencoder, text_encoder(16), tokenizer(), t5, t5_tokenizer, transformer).save_pretrained(folder)
    return folder


def controlnet(folder: Path, seed: int = 3, **options: object) -> Path:
    """A ControlNet that fits `stable_diffusion`, its last layers not zero, so that it does something."""
    net = ControlNetModel.from_unet(unet(**options), conditioning_embedding_out_channels=(4, 8, 8, 16))
    torch.manual_seed(seed)
    for parameter in net.parameters():
        if not parameter.abs().max():
            torch.nn.init.normal_(parameter, std=0.05)
    net.save_pretrained(folder)
    return folder


def ddim(prediction_type: str = "epsilon") -> DDIMScheduler:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type)
