"""Tiny models of later families whose texts a language model reads, as `tiny_families` has the others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler

from promptmill.pipelines.models.families import FAMILIES
from tests.pipelines import tiny, tiny_texts
from tests.pipelines.tiny_editors import flux2_vae, mistral3
from tests.pipelines.tiny_families import qwen_image_parts
from tests.pipelines.tiny_parts import FLUX_LIKE, WIDTH, made, qwen3_vl, qwen25, seeded, t5, vae, video_vae


def krea2(folder: Path) -> Path:
    """Krea 2: the outputs of several layers of Qwen 3 VL at fixed lengths, and guidance that is counted from 0 on."""
    transformer = made(
        "Krea2Transformer2DModel",
        in_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=32,
        text_hidden_dim=2 * WIDTH,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(8, 4, 4),
        rope_theta=1000.0,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=6400, use_dynamic_shifting=True
    )
    parts = (scheduler, video_vae(), seeded(transformers.Qwen3VLModel, qwen3_vl()), tiny_texts.words(), transformer)
    diffusers.Krea2Pipeline(*parts, text_encoder_select_layers=(0, 2)).save_pretrained(folder)
    return folder


def longcat(folder: Path, edits: bool = False) -> Path:
    """LongCat-Image: Flux's way with the texts of Qwen 2.5 VL, of which what stands in quotes is read by characters."""
    transformer = made(
        "LongCatImageTransformer2DModel",
        in_channels=64,
        **FLUX_LIKE,
        pooled_projection_dim=WIDTH,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    words, picture = tiny_texts.seeing()
    parts = (scheduler, vae(16), qwen25(picture), words, tiny_texts.processor(words), transformer)
    kind = diffusers.LongCatImageEditPipeline if edits else diffusers.LongCatImagePipeline
    kind(*parts).save_pretrained(folder)
    return folder


def ernie(folder: Path) -> Path:
    """ERNIE-Image: FLUX.2's VAE, Mistral 3, texts of their own lengths beside these lengths, and a model that rewrites prompts."""
    transformer = made(
        "ErnieImageTransformer2DModel",
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=WIDTH,
        rope_axes_dim=(8, 4, 4),
    )
    encoder = seeded(transformers.Mistral3Model, mistral3(layers=2))
    parts = (transformer, flux2_vae(), encoder, tiny_texts.words(), FlowMatchEulerDiscreteScheduler(shift=4.0))
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    rewriter = seeded(
        transformers.Ministral3ForCausalLM, transformers.Ministral3Config(**small, num_key_value_heads=2, vocab_size=32)
    )
    rewriting = {"pe": rewriter, "pe_tokenizer": tiny_texts.words(most=8, chat=True)}
    diffusers.ErnieImagePipeline(*parts, **rewriting).save_pretrained(folder)
    return folder


def kolors(folder: Path) -> Path:
    """Kolors: Stable Diffusion XL's UNet with the texts of ChatGLM 3, at a length of 256."""
    import sentencepiece
    from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    told = {"vocab_size": 48, "hard_vocab_limit": False, "minloglevel": 2}
    folder.mkdir(parents=True)
    text = iter([" ".join(tiny_texts.WORDS)] * 20)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=text, model_prefix=str(folder / "tokenizer"), **told)
    tokenizer = ChatGLMTokenizer(str(folder / "tokenizer.model"))
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=64,
        hidden_size=WIDTH,
        ffn_hidden_size=16,
        kv_channels=8,
        num_attention_heads=2,
        seq_length=256,
        add_qkv_bias=True,
        multi_query_attention=True,
        original_rope=True,
        use_cache=True,
    )
    encoder = seeded(ChatGLMModel, config)
    for name, parameter in encoder.named_parameters():  # which come without values
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.3)
    projected = {"encoder_hid_dim": WIDTH, "encoder_hid_dim_type": "text_proj", "cross": 32}
    unet = tiny.unet(**tiny.SDXL_UNET | projected | {"projection_class_embeddings_input_dim": 6 * 8 + WIDTH})
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.014, beta_schedule="scaled_linear", steps_offset=1)
    parts = (tiny.vae(), encoder, tokenizer, unet, scheduler)
    diffusers.KolorsPipeline(*parts).save_pretrained(folder)
    return folder


def prx(folder: Path) -> Path:
    """PRX: the encoder of T5 Gemma, whose texts are cleaned, and a transformer in which texts are keys and values alone."""
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    config = T5GemmaModuleConfig(
        vocab_size=32,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        layer_types=["full_attention"],
        dropout_rate=0.0,
    )
    transformer = made(
        "PRXTransformer2DModel",
        patch_size=2,
        in_channels=4,
        context_in_dim=WIDTH,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[8, 8],
    )
    encoder = seeded(T5GemmaEncoder, config)
    parts = (transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), encoder, tiny_texts.words(most=64), vae(4))
    diffusers.PRXPipeline(*parts).save_pretrained(folder)
    # As the released models have it, and as diffusers reads it: the config of an encoder beside a decoder.
    transformers.T5GemmaConfig(encoder=config.to_dict(), is_encoder_decoder=False).save_pretrained(folder / "text_encoder")
    return folder


def qwen_image_21(folder: Path) -> Path:
    """Qwen-Image 2.1: Qwen 3 VL reads texts and pictures, the VAE has a channel for transparency, texts come before the image."""
    words, picture = tiny_texts.seeing()
    latents = seeded(
        diffusers.AutoencoderKLQwenImage21,
        base_dim=8,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2, 2, 2],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.1, 0.9, 1.0, 1.2],
        scale_factor_spatial=16,
    )
    transformer = made(
        "QwenImage21Transformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=2 * WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    reader = seeded(transformers.Qwen3VLForConditionalGeneration, qwen3_vl(picture=picture))
    scheduler = FlowMatchEulerDiscreteScheduler(base_shift=0.5, max_shift=0.9, use_dynamic_shifting=True, shift_terminal=0.02)
    parts = (scheduler, latents, reader, tiny_texts.processor3(words), transformer)
    diffusers.QwenImage21Pipeline(*parts).save_pretrained(folder)
    return folder


def dreamlite(folder: Path, mobile: bool = False) -> Path:
    """DreamLite: a UNet of its own beside Qwen 3 VL and a tiny VAE; a picture lies beside the image, in a latent twice as wide."""
    words, picture = tiny_texts.seeing()
    unet = made(
        "DreamLiteUNetModel",
        block_out_channels=(16, 32),
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        encoder_hid_dim=2 * WIDTH,
        encoder_hid_dim_type="text_proj_rms",
        addition_embed_type="time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=2 * 8,
        ff_mult=2,
    )
    latents = seeded(
        diffusers.AutoencoderTiny,
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    reader = seeded(transformers.Qwen3VLForConditionalGeneration, qwen3_vl(picture=picture))
    scheduler = FlowMatchEulerDiscreteScheduler(base_shift=0.5, max_shift=1.16, use_dynamic_shifting=True)
    kind = diffusers.DreamLiteMobilePipeline if mobile else diffusers.DreamLitePipeline
    kind(reader, words, tiny_texts.processor3(words), latents, unet, scheduler).save_pretrained(folder)
    return folder


def qwen_edit(folder: Path, plus: bool = False) -> Path:
    """Qwen-Image-Edit: a language model that reads the picture; Plus (2511) tells the picture's tokens from the image's by time."""
    words, picture = tiny_texts.seeing()
    scheduler, transformer = qwen_image_parts(zero_cond_t=plus)
    kind = diffusers.QwenImageEditPlusPipeline if plus else diffusers.QwenImageEditPipeline
    kind(scheduler, video_vae(), qwen25(picture), words, tiny_texts.processor(words), transformer).save_pretrained(folder)
    return folder


def hidream(folder: Path) -> Path:
    """HiDream-I1: four text encoders, all layers of Llama 3, experts, and a scheduler that adds noise as that of Dev and Fast."""
    transformer = made(
        "HiDreamImageTransformer2DModel",
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
    )
    small = {"hidden_size": WIDTH, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    llama = transformers.LlamaConfig(**small, num_hidden_layers=2, vocab_size=32)
    texts = {
        "text_encoder": tiny.text_encoder(WIDTH, projected=True, longest=128),
        "tokenizer": tiny.tokenizer(),
        "text_encoder_2": tiny.text_encoder(WIDTH, projected=True, act="gelu", longest=128),
        "tokenizer_2": tiny.tokenizer(),
        "text_encoder_3": t5(WIDTH),
        "tokenizer_3": tiny_texts.words(),
        "text_encoder_4": seeded(transformers.LlamaForCausalLM, llama),
        "tokenizer_4": tiny_texts.words(),
    }
    scheduler = diffusers.FlowMatchLCMScheduler(shift=6.0)
    diffusers.HiDreamImagePipeline(scheduler=scheduler, vae=vae(16), transformer=transformer, **texts).save_pretrained(folder)
    return folder


def kandinsky5(folder: Path, edits: bool = False) -> Path:
    """Kandinsky 5: the channels of latents last, one frame of a video, Qwen 2.5 VL, which reads the picture that is edited."""
    words, picture = tiny_texts.seeing()
    transformer = made(
        "Kandinsky5Transformer3DModel",
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=64,
        model_dim=64,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
        visual_cond=edits,
    )
    kind = diffusers.Kandinsky5I2IPipeline if edits else diffusers.Kandinsky5T2IPipeline
    reader = (qwen25(picture), tiny_texts.processor(words), tiny.text_encoder(WIDTH, longest=77), tiny.tokenizer())
    kind(transformer, vae(4), *reader, FlowMatchEulerDiscreteScheduler(shift=3.0)).save_pretrained(folder)
    return folder


def hunyuan_image(folder: Path, distilled: bool = False) -> Path:
    """HunyuanImage 2.1: a guider that remembers, quoted texts by letters; distilled: two times (MeanFlow) and a scale as inputs."""
    transformer = made(
        "HunyuanImageTransformer2DModel",
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=32,
        rope_axes_dim=(8, 8),
        guidance_embeds=distilled,
        use_meanflow=distilled,
    )
    latents = seeded(
        diffusers.AutoencoderKLHunyuanImage,
        in_channels=3,
        out_channels=3,
        latent_channels=16,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=8,
        sample_size=64,
        scaling_factor=0.75,
    )
    letters = transformers.T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    quotes = (seeded(transformers.T5EncoderModel, letters), transformers.ByT5Tokenizer())
    parts = (FlowMatchEulerDiscreteScheduler(shift=5.0), latents, qwen25(), tiny_texts.words(), *quotes, transformer)
    # Adaptive from the second step on, so that few steps have both ways of guidance.
    told = {"adaptive_projected_guidance_start_step": 1, "adaptive_projected_guidance_rescale": 1.0}
    guiders = (None, None) if distilled else [diffusers.AdaptiveProjectedMixGuidance(eta=eta, **told) for eta in (0.0, 0.5)]
    diffusers.HunyuanImagePipeline(*parts, *guiders).save_pretrained(folder)
    return folder


READERS: dict[str, Callable[[Path], Path]] = {
    "kolors": kolors,
    "krea2": krea2,
    "longcat": longcat,
    "longcat-edit": lambda folder: longcat(folder, edits=True),
    "dreamlite": dreamlite,
    "dreamlite-mobile": lambda folder: dreamlite(folder, mobile=True),
    "ernie": ernie,
    "prx": prx,
    "hidream": hidream,
    "kandinsky5": kandinsky5,
    "kandinsky5-edit": lambda folder: kandinsky5(folder, edits=True),
    "hunyuan-image": hunyuan_image,
    "hunyuan-image-distilled": lambda folder: hunyuan_image(folder, distilled=True),
    "qwen-image-2.1": qwen_image_21,
    "qwen-image-edit": qwen_edit,
    "qwen-image-edit-plus": lambda folder: qwen_edit(folder, plus=True),
}


SIZES = ((64, 64), (64, 32))  # in place of those of Kandinsky 5


@contextmanager
def small_inputs() -> Iterator[None]:
    """Lets pipelines that scale pictures to a million pixels scale them to 64 x 64, and one pad texts to few tokens, for speed."""
    from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
    from diffusers.pipelines.qwenimage import (
        pipeline_qwenimage_edit,
        pipeline_qwenimage_edit_inpaint,
        pipeline_qwenimage_edit_plus,
    )

    def changed(kind: type, **values: Any) -> None:
        init = kind.__init__

        @wraps(init)
        def run(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            for name, value in values.items():
                setattr(self, name, value)

        patched.setattr(kind, "__init__", run)

    with pytest.MonkeyPatch.context() as patched:
        edits = (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus, pipeline_qwenimage_edit_inpaint)
        for module in (*edits, pipeline_longcat_image_edit):
            theirs = module.calculate_dimensions
            patched.setattr(module, "calculate_dimensions", lambda area, ratio, theirs=theirs: theirs(64 * 64, ratio))
        changed(diffusers.HunyuanImagePipeline, tokenizer_max_length=64)
        changed(diffusers.BriaFibo2Pipeline, text_encoder_out_layers=((0, 1, 2), (2, 1, 0)), default_sample_size=16)
        changed(diffusers.LongCatImageEditPipeline, tokenizer_max_length=64)
        patched.setitem(FAMILIES, "LongCatImageEdit", replace(FAMILIES["LongCatImageEdit"], bends=None))
        edit = FAMILIES["QwenImageEdit"]
        patched.setitem(FAMILIES, "QwenImageEdit", replace(edit, repainting=replace(edit.repainting, bends=None)))
        for name in ("Kandinsky5T2I", "Kandinsky5I2I"):
            changed(getattr(diffusers, f"{name}Pipeline"), resolutions=list(SIZES))
            patched.setitem(FAMILIES, name, replace(FAMILIES[name], sizes=SIZES))
        yield
