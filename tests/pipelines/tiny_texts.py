"""Tiny tokenizers, made without a download: whole words, of which few are known."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

SPECIAL = ["<pad>", "</s>", "<unk>", "<image>"]
WORDS = ["a", "small", "large", "red", "blue", "green", "circle", "square", "at", "the", "left", "right", "and", "of"]

# What language models are asked: said by whom, then the answer begins.
CHAT = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} </s> {% endfor %}assistant"

# The same where what is said has parts.
PARTED = CHAT.replace("message['content']", "message['content'][0]['text']")


def words(most: int = 512, side: str = "right", chat: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of words that ends each text with a token of its own, as those of T5 do.

    Args:
        most: Tokens that a text has at most.
        side: Where shorter texts are padded.
        chat: Whether the tokenizer knows how messages are written.
    """
    known = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    whole = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    whole.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", known["</s>"])])
    made = PreTrainedTokenizerFast(
        tokenizer_object=whole,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=most,
        padding_side=side,
    )
    if chat:
        made.chat_template = CHAT
    return made


def seeing() -> tuple[PreTrainedTokenizerFast, int]:
    """A tokenizer of words with a token that stands for a piece of a picture, and that token's number."""
    made = words()
    made.add_special_tokens({"additional_special_tokens": ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>"]})
    return made, made.convert_tokens_to_ids("<|image_pad|>")


def processor3(words: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """Qwen 3 VL's, whose pictures are cut into pieces of 32 x 32."""
    pictures = Qwen2VLImageProcessor(patch_size=16, min_pixels=32 * 32)
    return Qwen3VLProcessor(pictures, words, Qwen3VLVideoProcessor(), chat_template=PARTED)


def processor(words: PreTrainedTokenizerFast) -> Qwen2VLProcessor:
    """Qwen 2 VL's processor of texts and pictures, over such a tokenizer."""
    return Qwen2VLProcessor(Qwen2VLImageProcessor(), words, Qwen2VLVideoProcessor(), chat_template=PARTED)
