"""The plan's count of tokens is that of the tokenizers that render, in either form of their files, and loads no torch."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from promptmill.configs.loading import load
from promptmill.configs.model import Model
from promptmill.configs.own_files import ROOT
from promptmill.pipelines.models.prompt_lengths import PromptLengths, lengths_of

FOLDER = ROOT / "embedded" / "weights" / "pipeline" / "tokenizer"
TOKENIZER = CLIPTokenizer.from_pretrained(FOLDER)
SIGNS = st.characters(exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"])


@pytest.fixture(scope="module")
def in_two_files(tmp_path_factory):
    """The files in which older repositories have CLIP's tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    said = json.loads((FOLDER / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(said["vocab"]))
    pairs = (one if isinstance(one, str) else " ".join(one) for one in said["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    return PromptLengths((((str(folder / "vocab.json"), str(folder / "merges.txt")), 10),))


@given(st.text(SIGNS, max_size=80) | st.text("a red circle's (42) é漢, ", max_size=200))
def test_as_many_tokens_are_lost_as_the_tokenizer_makes_beyond_the_most(in_two_files, text):
    made = len(TOKENIZER(text, truncation=False, verbose=False).input_ids)
    whole = PromptLengths((((str(FOLDER / "tokenizer.json"),), 10),))
    assert whole(text) == in_two_files(text) == max(0, made - 10)


def test_the_limit_is_the_tokenizers_own_and_survives_a_process():
    counts = lengths_of(load("embedded", ["manifest=x"]).model)
    words = "a red circle " * 20
    made = len(TOKENIZER(words, truncation=False, verbose=False).input_ids)
    assert counts(words) == pickle.loads(pickle.dumps(counts))(words) == made - TOKENIZER.model_max_length > 0


def test_a_model_without_a_tokenizer_of_clip_or_without_its_files_counts_nothing(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "X", "tokenizer": ["transformers", "T5Tokenizer"]}))
    assert lengths_of(Model(base=str(tmp_path))) is None
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "X", "tokenizer": ["transformers", "CLIPTokenizer"]}))
    assert lengths_of(Model(base=str(tmp_path))) is None
