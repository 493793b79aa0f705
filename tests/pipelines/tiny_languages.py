"""Makes tiny language models, by transformers' own classes, as folders with their tokenizers and processors."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from promptmill.embedded.pictures import draw
from promptmill.embedded.world import COLORS, PLACES, SHAPES, SIZES, Scene, sample_scene

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>", "<|vision_start|>", "<|vision_end|>")
WORDS = ("a", "and", "at", "background", "on", "the", "what", "is", "this", "rewrite", *COLORS, *PLACES, *SHAPES, *SIZES)
IDS = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
SIDE = 32  # pixels of a picture as the models see it
CHAT = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE {% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <s>{% endif %}"
)


def tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words."""
    made = Tokenizer(WordLevel(IDS, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    extra = {"image_token": "<image>", "video_token": "<video>"}
    template = {"chat_template": CHAT} if chat else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, extra_special_tokens=extra, **names, **template)


_TEXT: Any = {
    "vocab_size": len(IDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def gpt2(folder: Path) -> Path:
    config = GPT2Config(
        vocab_size=len(IDS), n_positions=256, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    return _saved(folder, GPT2LMHeadModel, config, tokenizer())


def llama(folder: Path) -> Path:
    return _saved(folder, LlamaForCausalLM, LlamaConfig(**_TEXT), tokenizer(chat=True))


def florence(folder: Path) -> Path:
    """A Florence-2: DaViT and Bart, an encoder and a decoder."""
    vision = {
        "depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1), "patch_prenorm": (False, True),
        "embed_dim": (16, 32), "num_heads": (2, 2), "num_groups": (2, 2), "window_size": 4, "projection_dim": 32,
    }  # fmt: skip
    text = {
        "model_type": "bart", "vocab_size": len(IDS), "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
    }  # fmt: skip
    config = Florence2Config(vision_config=vision, text_config=text, image_token_id=IDS["<image>"])
    pictures = CLIPImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    pictures.image_seq_length = (SIDE // 8) ** 2 + 1
    return _saved(folder, Florence2ForConditionalGeneration, config, Florence2Processor(pictures, tokenizer()))


def llava(folder: Path, side: int = SIDE) -> Path:
    """A LLaVA: a CLIP that sees, and a Llama that writes."""
    seen = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=side, patch_size=8
    )
    config = LlavaConfig(
        vision_config=seen, text_config=LlamaConfig(**_TEXT), image_token_id=IDS["<image>"], vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    pictures = CLIPImageProcessor(size={"height": side, "width": side}, do_center_crop=False)
    options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    template = CHAT.replace("IMAGE", "<image>")
    return _saved(
        folder, LlavaForConditionalGeneration, config, LlavaProcessor(pictures, tokenizer(), chat_template=template, **options)
    )


def qwen(folder: Path) -> Path:
    """A Qwen2-VL, which sees pictures in their own size."""
    text = {**_TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}}
    seen = {
        "depth": 1,
        "embed_dim": 32,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 8,
        "hidden_size": 32,
        "spatial_merge_size": 2,
    }
    config = Qwen2VLConfig(
        text_config=text, vision_config=seen, image_token_id=IDS["<image>"], video_token_id=IDS["<video>"],
        vision_start_token_id=IDS["<|vision_start|>"], vision_end_token_id=IDS["<|vision_end|>"],
    )  # fmt: skip
    size: Any = {"patch_size": 8, "merge_size": 2, "size": {"shortest_edge": 256, "longest_edge": 4096}}
    words = tokenizer()
    template = CHAT.replace("IMAGE", "<|vision_start|> <image> <|vision_end|>")
    made = Qwen2VLProcessor(Qwen2VLImageProcessor(**size), words, Qwen2VLVideoProcessor(**size), chat_template=template)
    return _saved(folder, Qwen2VLForConditionalGeneration, config, made)


def _saved(folder: Path, kind: Callable[[Any], Any], config: Any, beside: Any) -> Path:
    """Save a model of random weights, always the same, and what lies beside the model; return the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
    # So that random weights write something, and not one word again and again.
    for name, parameter in model.named_parameters():
        if "embed" not in name and "shared" not in name and "wte" not in name:
            parameter.data *= 6
    model.generation_config.suppress_tokens = [number for number in range(len(SPECIAL)) if number != IDS["</s>"]]
    model.generation_config.begin_suppress_tokens = [IDS["</s>"]]
    model.generation_config.no_repeat_ngram_size = 2
    model.save_pretrained(folder)
    beside.save_pretrained(folder)
    return folder


SEEING: dict[str, Callable[[Path], Path]] = {"florence": florence, "llava": llava, "qwen": qwen}
WRITING: dict[str, Callable[[Path], Path]] = {"gpt2": gpt2, "llama": llama}


def ids_of(texts: Iterable[str]) -> list[list[int]]:
    """Return the tokens of texts."""
    return [[IDS[word] for word in text.split()] for text in texts]


def large_at_the_center(rng: np.random.Generator, held_out: bool = False) -> Scene:
    """Draw a scene of one large thing at the center."""
    scene = sample_scene(rng, 1, held_out)
    return replace(scene, things=(replace(scene.things[0], size="large", place="center"),))


def colors_of(scene: Scene) -> str:
    """Return the colours of a scene of one thing in words."""
    return f"{scene.things[0].color} on a {scene.background} background"


def trained_llava(folder: Path, steps: int = 300, rows: int = 24) -> Path:
    """Train a LLaVA to say the colours of a drawn picture, as in `red on a white background`; some 5 s of one core."""
    llava(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    processor = LlavaProcessor.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.apply(model._init_weights)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.xavier_uniform_(parameter.data)
    model.generation_config.suppress_tokens = model.generation_config.no_repeat_ngram_size = None
    model.generation_config.begin_suppress_tokens = None
    rng, optimizer = np.random.default_rng(0), torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    asked = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], add_generation_prompt=True)
    for _ in range(steps):
        scenes = [large_at_the_center(rng) for _ in range(rows)]
        texts = [f"{asked} {colors_of(scene)} </s>" for scene in scenes]
        pictures = [Image.fromarray(one) for one in draw(scenes, rng).pixels]
        batch = processor(images=pictures, text=texts, return_tensors="pt")
        labels = batch["input_ids"].clone()
        labels[:, :-6] = -100  # all but the colours and the end
        loss = model(**batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.save_pretrained(folder)
    return folder


def trained_llama(folder: Path, steps: int = 1000, rows: int = 24) -> Path:
    """Train a Llama to write `a red circle on a white background` of `red circle on white`; some 5 s of one core."""
    llama(folder)
    model, words = LlamaForCausalLM.from_pretrained(folder), tokenizer(chat=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.apply(model._init_weights)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    rng, optimizer = np.random.default_rng(0), torch.optim.AdamW(model.parameters(), 6e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for _ in range(steps):
        some = [briefly(sample_scene(rng, 1)) for _ in range(rows)]
        tokens = torch.tensor(ids_of(f"rewrite {brief} <s> {told} </s>" for brief, told in some))
        labels = tokens.clone()
        labels[:, :6] = -100  # what is asked
        model(input_ids=tokens, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def briefly(scene: Scene) -> tuple[str, str]:
    """Return a scene of one thing in four words, and the prompt that it is to become."""
    (thing,) = scene.things
    return f"{thing.color} {thing.shape} on {scene.background}", f"a {thing.color} {thing.shape} on a {scene.background} background"
