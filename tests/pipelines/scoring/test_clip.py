import json
import pickle
import sys
from collections import OrderedDict
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file

from promptmill.configs.schema import Ranking
from promptmill.embedded.pictures import draw
from promptmill.embedded.sampling import Family
from promptmill.embedded.world import describe, sample_scene
from promptmill.pipelines.models import clip_sources
from promptmill.pipelines.scoring import clip as clip_module
from promptmill.pipelines.scoring.clip import EXACT, TEXT_BATCH, load_clip
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines.scoring import tiny_clip

EMBEDDED = "local-dir:./embedded/weights/clip"
RNG = np.random.default_rng(0)
SCENES = [sample_scene(RNG) for _ in range(24)]
PICTURES = list(draw(SCENES, RNG).pixels)
PROMPTS = [describe(scene) for scene in SCENES]
IMAGES = [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(32, 32), (40, 32), (64, 100), (32, 32), (17, 90)]]


@pytest.fixture(scope="module")
def embedded():
    return load_clip(Ranking(model=EMBEDDED, batch=8), "cpu")


@pytest.fixture(scope="module", params=["CLIP", "oblong"])
def tiny(request, tmp_path_factory):
    config = tiny_clip.CONFIG if request.param == "CLIP" else tiny_clip.OBLONG
    folder = tiny_clip.save(tmp_path_factory.mktemp("tiny") / "model", config)
    return load_clip(Ranking(model=f"local-dir:{folder}", batch=4), "cpu")


@pytest.fixture(scope="module")
def images_alone(tiny):
    return [tiny.embed_images([image])[0] for image in IMAGES]


@pytest.fixture(scope="module")
def texts_alone(tiny):
    return [forgetting(tiny).embed_texts([prompt])[0] for prompt in PROMPTS[:20]]


def forgetting(clip):
    """The same model, having seen no text yet."""
    return replace(clip, _texts=OrderedDict())


def side_lengths(clip):
    size = clip.preprocessing.size
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def recording(clip):
    """The same model, and the shapes it is called with."""
    shapes = []

    def recorded(encode):
        return lambda inputs: (shapes.append(tuple(inputs.shape)), encode(inputs))[1]

    model = SimpleNamespace(encode_image=recorded(clip.model.encode_image), encode_text=recorded(clip.model.encode_text))
    return replace(forgetting(clip), model=model), shapes


def test_scores_are_those_of_the_embedded_family(embedded):
    theirs = Family().score(PROMPTS, np.stack(PICTURES))
    scored = embedded.score(PROMPTS, PICTURES)
    # Other batch shapes and another order of summation: some 1e-5 of 100.
    np.testing.assert_allclose([one.score for one in scored], theirs, atol=1e-4)
    np.testing.assert_allclose([one.embedding for one in scored], Family().embed_pictures(np.stack(PICTURES)).numpy(), atol=1e-5)


def test_scores_of_other_sizes_are_near_those_through_open_clips_own_transform(embedded):
    large = [
        np.asarray(Image.fromarray(p).resize((w, 200), Image.Resampling.BICUBIC))
        for p, w in zip(PICTURES, [150, 300] * 12, strict=True)
    ]
    transform = image_transform_v2(embedded.preprocessing, is_train=False)
    with torch.no_grad():
        vectors = embedded.model.encode_image(torch.stack([transform(Image.fromarray(p)) for p in large]), normalize=True).numpy()
    theirs = 100 * (vectors * embedded.embed_texts(PROMPTS)).sum(-1)
    np.testing.assert_allclose([one.score for one in embedded.score(PROMPTS, large)], theirs, atol=0.1)


def test_embeddings_are_unit_vectors_of_the_width_and_scores_100_times_their_product(tiny):
    images, texts = tiny.embed_images(IMAGES), tiny.embed_texts(PROMPTS)
    assert images.shape == (len(IMAGES), tiny.width) and texts.shape == (len(PROMPTS), tiny.width) and tiny.width == 24
    assert images.dtype == texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm([*images, *texts], axis=1), 1, atol=1e-6)
    for scored, image, text in zip(tiny.score(PROMPTS[:5], IMAGES), images, texts, strict=False):
        assert np.array_equal(scored.embedding, image)
        assert scored.score == pytest.approx(100 * image.astype(float) @ text.astype(float), abs=1e-4)
        assert scored.score == float(np.float32(scored.score))


@settings(max_examples=20)
@given(st.lists(st.integers(0, len(IMAGES) - 1), max_size=11))
def test_an_images_bits_do_not_depend_on_its_companions(tiny, images_alone, chosen):
    together = tiny.embed_images([IMAGES[i] for i in chosen])
    assert together.shape == (len(chosen), tiny.width)
    for vector, i in zip(together, chosen, strict=True):
        assert np.array_equal(vector, images_alone[i])


@settings(max_examples=20)
@given(st.lists(st.integers(0, 19), max_size=40))
def test_a_texts_bits_do_not_depend_on_its_companions(tiny, texts_alone, chosen):
    together = forgetting(tiny).embed_texts([PROMPTS[i] for i in chosen])
    assert together.shape == (len(chosen), tiny.width)
    for vector, i in zip(together, chosen, strict=True):
        assert np.array_equal(vector, texts_alone[i])


@settings(max_examples=6)
@given(st.permutations(range(12)))
def test_a_scores_bits_do_not_depend_on_the_order(embedded, order):
    scored = forgetting(embedded).score(PROMPTS[:12], PICTURES[:12])
    again = forgetting(embedded).score([PROMPTS[i] for i in order], [PICTURES[i] for i in order])
    assert [one.score for one in again] == [scored[i].score for i in order]


def test_the_model_is_only_ever_called_at_one_shape(tiny):
    clip, shapes = recording(tiny)
    for count in (1, 3, 4, 5):
        clip.embed_images(IMAGES[:count])
    assert shapes == [(4, 3, *side_lengths(tiny))] * 5
    shapes.clear()
    clip.embed_texts(PROMPTS[:3])
    clip.embed_texts([f"text {number}" for number in range(TEXT_BATCH + 1)])
    assert shapes == [(TEXT_BATCH, 16)] * 3


def test_a_text_is_encoded_once(tiny):
    clip, shapes = recording(tiny)
    first = clip.embed_texts(["a", "b", "a", "a"])
    second = clip.embed_texts(["b", "a"])
    assert len(shapes) == 1
    assert np.array_equal(first[[1, 0]], second)


def test_only_the_latest_texts_are_remembered_and_more_can_be_asked_for_at_once(tiny, monkeypatch):
    monkeypatch.setattr(clip_module, "TEXTS_KEPT", 3)
    clip, shapes = recording(tiny)
    assert np.array_equal(clip.embed_texts(PROMPTS[:7]), tiny.embed_texts(PROMPTS[:7]))
    assert list(clip._texts) == PROMPTS[4:7]
    clip.embed_texts([PROMPTS[4], "new"])
    assert list(clip._texts) == [PROMPTS[6], PROMPTS[4], "new"]
    assert len(shapes) == 2


def test_nothing_gives_nothing_and_unequal_numbers_are_refused(tiny):
    assert tiny.score([], []) == []
    with pytest.raises(ValueError, match="2 prompts for 1 images"):
        tiny.score(["a", "b"], IMAGES[:1])


@pytest.fixture
def fast():
    """Everything on that trades bits for speed."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = True
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.benchmark = before[1]


def test_what_the_process_has_switched_on_for_speed_changes_no_bit(embedded, request):
    exact = embedded.score(PROMPTS[:5], PICTURES[:5])
    request.getfixturevalue("fast")
    outside = [getattr(backend, name) for backend, name, _ in EXACT]
    seen = []
    model = SimpleNamespace(
        encode_image=lambda x: (seen.append([getattr(b, n) for b, n, _ in EXACT]), embedded.model.encode_image(x))[1],
        encode_text=embedded.model.encode_text,
    )
    scored = replace(forgetting(embedded), model=model).score(PROMPTS[:5], PICTURES[:5])
    assert [one.score for one in scored] == [one.score for one in exact]
    assert seen == [[value for _, _, value in EXACT]]
    assert [getattr(backend, name) for backend, name, _ in EXACT] == outside != seen[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_loaded_model_is_fp32_and_in_evaluation_mode_whatever_the_file_holds(tmp_path, dtype):
    clip = load_clip(Ranking(model=f"local-dir:{tiny_clip.save(tmp_path, dtype=dtype)}"), "cpu")
    assert not clip.model.training and not any(module.training for module in clip.model.modules())
    assert {p.dtype for p in clip.model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in clip.model.parameters())
    for name, tensor in clip.model.state_dict().items():
        assert torch.equal(tensor, tiny_clip.state(dtype=dtype)[name].float()), name


def test_the_preprocessing_is_the_folders_own(tiny):
    assert vars(tiny.preprocessing).items() >= tiny_clip.PREPROCESS.items()
    assert side_lengths(tiny) in ((32, 32), (32, 48))


class Bomb:
    """A pickle that says when it was read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


def test_a_pickle_is_never_read_not_even_where_open_clip_prefers_it(tmp_path):
    folder = tiny_clip.save(tmp_path / "model")
    (folder / "open_clip_model.safetensors").rename(folder / "model.safetensors")
    (folder / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps(Bomb(str(tmp_path / "read"))))
    assert load_clip(Ranking(model=f"local-dir:{folder}"), "cpu").width == 24
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no .safetensors, only open_clip_pytorch_model.bin; pickles are not read"):
        load_clip(Ranking(model=f"local-dir:{folder}"), "cpu")
    assert not (tmp_path / "read").exists()


def test_a_models_own_code_is_never_run_even_where_its_config_asks_for_it(tmp_path):
    text = {**tiny_clip.CONFIG["text_cfg"], "hf_tokenizer_name": ".", "tokenizer_kwargs": {"trust_remote_code": True}}
    folder = tiny_clip.save(tmp_path / "model", {**tiny_clip.CONFIG, "text_cfg": text})
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass Evil:\n    pass\n")
    with pytest.raises(ModelError, match="open_clip cannot load it"):
        load_clip(Ranking(model=f"local-dir:{folder}"), "cpu")
    assert not (tmp_path / "run").exists()


def truncated(folder):
    path = folder / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def lacking(folder):
    path = folder / "open_clip_model.safetensors"
    state = load_file(path)
    del state["text_projection"]
    save_file(state, path)


def of_another_shape(folder):
    config = {**tiny_clip.CONFIG, "embed_dim": 16}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))


def of_unknown_parts(folder):
    config = {**tiny_clip.CONFIG, "sound_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))


@pytest.mark.parametrize("damage", [truncated, lacking, of_another_shape, of_unknown_parts])
def test_a_damaged_model_is_one_line_that_begins_with_its_name(tmp_path, damage):
    folder = tiny_clip.save(tmp_path)
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load_clip(Ranking(model=f"local-dir:{folder}"), "cpu")
    message = str(caught.value)
    assert message.startswith(f"local-dir:{folder}: open_clip cannot load it: ") and "\n" not in message
    assert len(message) < 300 + 2 * len(str(folder)) + 100


def test_weights_that_are_not_finite_are_found_out(tmp_path):
    folder = tiny_clip.save(tmp_path)
    state = load_file(folder / "open_clip_model.safetensors")
    state["visual.proj"][0, 0] = torch.nan
    save_file(state, folder / "open_clip_model.safetensors")
    with pytest.raises(ModelError, match="gives embeddings that are not finite"):
        load_clip(Ranking(model=f"local-dir:{folder}"), "cpu").score(["a"], IMAGES[:1])


@pytest.fixture
def named(tmp_path, monkeypatch):
    """open_clip as if it knew a tiny model by name, with a tag whose weights lie on a stand-in for the hub."""
    folder, asked = tiny_clip.save(tmp_path), []
    (folder / "Tiny-32.json").write_text(json.dumps(tiny_clip.CONFIG))
    known = {**clip_sources.named_configs(), "Tiny-32": folder / "Tiny-32.json"}
    monkeypatch.setattr(clip_sources, "named_configs", lambda: known)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-32", tiny_clip.CONFIG)
    form = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bilinear", "resize_mode": "squash"}
    tags = {
        "good": {"hf_hub": "owner/tiny/", "quick_gelu": True, **form},
        "gelu": {"hf_hub": "owner/tiny/pytorch_model.bin"},
        "pickle_only": {"url": "http://host/tiny.pt"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-32", tags)

    def download(repository, name, revision):
        asked.append((repository, name, revision))
        return str(folder / "open_clip_model.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return form, asked


def test_a_named_model_is_built_as_its_tag_was_trained(named):
    form, asked = named
    clip = load_clip(Ranking(model="Tiny/32", pretrained="good", revision="a" * 40), "cpu")
    assert asked == [("owner/tiny", "open_clip_model.safetensors", "a" * 40)]
    assert clip.preprocessing == PreprocessCfg(size=clip.preprocessing.size, **form)
    assert any(type(module).__name__ == "QuickGELU" for module in clip.model.modules())
    gelu = load_clip(Ranking(model="Tiny-32", pretrained="gelu"), "cpu")
    assert asked[1:] == [("owner/tiny", "pytorch_model.safetensors", None)]
    assert not any(type(module).__name__ == "QuickGELU" for module in gelu.model.modules())


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ("goood", "Tiny-32: open_clip has no weights 'goood' for it; did you mean 'good'?; tags: good, gelu, pickle_only"),
        ("pickle_only", "Tiny-32: open_clip has pickle_only as a pickle only; pickles are not read"),
    ],
)
def test_a_tag_that_cannot_be_had_names_those_there_are(named, tag, says):
    with pytest.raises(ModelError) as caught:
        load_clip(Ranking(model="Tiny-32", pretrained=tag), "cpu")
    assert str(caught.value).startswith(says) and named[1] == []


def test_loading_warns_of_nothing(tmp_path, caplog, recwarn):
    load_clip(Ranking(model=f"local-dir:{tiny_clip.save(tmp_path)}"), "cpu")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert not [w for w in recwarn if "open_clip" in str(w.filename)]
    assert "evil" not in sys.modules
