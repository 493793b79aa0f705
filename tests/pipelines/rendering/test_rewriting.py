"""That rewritten prompts depend on their own prompt alone, and are what transformers makes of the same batch."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from promptmill.configs.language_models import Rewriting
from promptmill.configs.weights import Weights
from promptmill.pipelines.rendering.rewriting import STEP, load_rewriter
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.results import Failure
from tests.pipelines.tiny_languages import WRITING

CPU, BATCH, TOKENS = torch.device("cpu"), 4, 8
INSTRUCTION = "rewrite this"
PROMPTS = ["red circle", "a blue cross on a white background", "green", "small square at the top", " ".join(["black cross"] * 40)]
SEEDS = [21, 22, 23, 24, 25]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp("languages") / name) for name, make in WRITING.items()}


def rewriter(folder, **values):
    some = {"model": Weights(source=str(folder)), "batch": BATCH, "max_tokens": TOKENS, "instruction": INSTRUCTION}
    return load_rewriter(Rewriting(**{**some, **values}), CPU)


@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.5, "top_p": 0.9}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", WRITING)
def test_a_text_is_the_same_alone_among_others_and_in_another_order(folders, name, drawn):
    rewrites = rewriter(folders[name], **drawn)
    together = rewrites.rewritten(PROMPTS, SEEDS)
    assert all(isinstance(one, str) and one for one in together) and len(set(together)) > 1
    assert rewrites.rewritten(PROMPTS[::-1], SEEDS[::-1])[::-1] == together
    assert [rewrites.rewritten([prompt], [seed])[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)] == together


@pytest.mark.parametrize("name", WRITING)
def test_a_greedy_text_is_what_generate_of_transformers_makes_of_the_same_batch(folders, name):
    model, words = (auto.from_pretrained(folders[name]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    texts = [f"{INSTRUCTION}\n\n{prompt}" for prompt in PROMPTS[:4]]
    if words.chat_template:
        texts = [
            words.apply_chat_template([{"role": "user", "content": one}], add_generation_prompt=True, tokenize=False)
            for one in texts
        ]
    words.padding_side = "left"
    inputs = words(texts, padding=True, pad_to_multiple_of=STEP, return_tensors="pt", return_token_type_ids=False)
    assert inputs["input_ids"].shape == (4, STEP)
    made = model.eval().generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[:, STEP:]
    wanted = [" ".join(one.split()) for one in words.batch_decode(made, skip_special_tokens=True)]
    assert rewriter(folders[name]).rewritten(PROMPTS[:4], SEEDS[:4]) == wanted


def test_the_prompt_stands_where_the_instruction_says_and_else_behind_it(folders):
    given = {"model": Weights(source="./any"), "instruction": "a {prompt} b {prompt}"}
    assert Rewriting(**given).message("red {prompt}") == "a red {prompt} b red {prompt}"
    assert Rewriting(**{**given, "instruction": "say it: {}"}).message("red") == "say it: {}\n\nred"


def test_a_prompt_that_is_too_long_fails_alone_with_both_numbers(folders):
    prompts = [PROMPTS[0], " ".join(["red"] * 300), PROMPTS[1]]
    rewrites = rewriter(folders["gpt2"])
    said = rewrites.rewritten(prompts, [0, 0, 0])
    what = "is of 302 tokens with the instruction, and 8 may follow, where the model reads 1 to 256"
    assert said[1] == Failure("render_error", what)
    assert [said[0], said[2]] == rewrites.rewritten([prompts[0], prompts[2]], [0, 0])


def test_a_template_that_fails_fails_the_prompt_in_one_line(folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "llama")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('System role\nnot supported') }}")
    (said,) = rewriter(folder).rewritten(PROMPTS[:1], [0])
    assert isinstance(said, Failure) and "System role not supported" in said.message and "\n" not in said.message


def test_what_is_no_causal_model_or_brings_code_is_not_loaded(folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "llama")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer that can be loaded"):
        rewriter(folder)
    folder = shutil.copytree(folders["llama"], tmp_path / "code")
    ran = tmp_path / "ran"
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Mine: ...\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": own}))
    with pytest.raises(ModelError, match=r"^[^\n]*cannot be loaded[^\n]*$"):
        rewriter(folder)
    assert not ran.exists()
