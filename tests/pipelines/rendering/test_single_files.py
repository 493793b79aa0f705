"""Models in one file, in the layouts of their authors: written from tiny models in diffusers' format, loaded to the same bits."""

import inspect
import shutil

import pytest
import torch
from diffusers.loaders import single_file_model, single_file_utils
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from promptmill.configs.loading import load
from promptmill.configs.model import Model
from promptmill.configs.weights import Layout, PartWeights
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.models.identity import model_identity
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.loading import load_model
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines import original_layout, tiny, tiny_families
from tests.pipelines.engines import pixels, render
from tests.pipelines.plain import JOB_SEED, request

WEIGHTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
FAMILIES = {
    "Stable Diffusion": (tiny.stable_diffusion, original_layout.stable_diffusion),
    "Stable Diffusion XL": (lambda folder: tiny.sdxl(folder, width=32), original_layout.sdxl),
    "Stable Diffusion 3": (lambda folder: tiny_families.sd3(folder, second=32), original_layout.sd3),
    "Flux": (tiny_families.flux, original_layout.flux),
}
VAE = ("first_stage_model.", "vae.")  # what the names of a VAE's tensors begin with
INNER = "inner_dim = 3072"  # the width of every Flux, which diffusers' conversion takes for granted


@pytest.fixture(scope="module", autouse=True)
def narrow_flux():
    """Lets diffusers' own conversion of Flux split the single blocks' layers at the width of the tiny model."""
    source = inspect.getsource(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    assert source.count(INNER) == 1
    narrow = {}
    width = tiny_families.FLUX_LIKE["attention_head_dim"] * tiny_families.FLUX_LIKE["num_attention_heads"]
    exec(source.replace(INNER, f"inner_dim = {width}"), {"torch": torch}, narrow)
    (converted,) = narrow.values()
    with pytest.MonkeyPatch.context() as patch:
        loadable = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
        patch.setitem(loadable, "checkpoint_mapping_fn", converted)
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    """A model in diffusers' format, the same in one file, and a folder with its configs and no weights."""
    place = tmp_path_factory.mktemp("single")
    make, write = FAMILIES[request.param]
    folder = make(place / "folder")
    # The authors' files of Stable Diffusion 3 hold no projection of the first CLIP, since it changes nothing.
    if request.param == "Stable Diffusion 3":
        file = folder / "text_encoder" / "model.safetensors"
        tensors = load_file(file)
        tensors["text_projection.weight"] = torch.eye(len(tensors["text_projection.weight"]))
        save_file(tensors, file, metadata={"format": "pt"})
    layout = shutil.copytree(folder, place / "layout", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder, write(folder, place / "whole.safetensors"), layout


def single(file, layout, **options):
    return Model(base=str(file), base_config=Layout(source=str(layout)), batch=2, **options)


def test_a_single_file_is_loaded_to_the_tensors_of_the_folder_with_configs_that_hold_no_weights(made):
    folder, file, layout = made
    model = single(file, layout)
    assert read_facts(model) == read_facts(Model(base=str(folder), batch=2))
    check_fits(model)
    loaded = load_model(model).base.components
    for name, wanted in load_model(Model(base=str(folder), batch=2)).base.components.items():
        if name in WEIGHTS:
            assert type(loaded[name]) is type(wanted)
            found = loaded[name].state_dict()
            assert found.keys() == wanted.state_dict().keys()
            assert all(torch.equal(found[key], value) for key, value in wanted.state_dict().items()), name
        elif wanted is not None and not isinstance(wanted, (bool, list)):
            assert type(loaded[name]) is type(wanted), name


def test_a_single_file_makes_the_images_of_the_folder(made):
    folder, file, layout = made
    asked = request(candidates=2, scheduler="euler", steps=3)
    images = []
    for model in (Model(base=str(folder), batch=2), single(file, layout)):
        engine = Engine(model, JOB_SEED, Roots((str(folder),)))
        (outcome,) = render(engine, asked)
        images.append([image.tobytes() for image in pixels(outcome)])
        engine.close()
    assert images[0] == images[1]


def test_a_file_that_lacks_a_tensor_or_a_part_is_one_line_and_renders_nothing(made, tmp_path):
    _, file, layout = made
    tensors = load_file(file)
    # diffusers itself leaves out of a text encoder, without a word, what the file lacks.
    text = next(name for name in sorted(tensors) if name.endswith(("final_layer_norm.weight", "ln_final.weight")))
    save_file({key: one for key, one in tensors.items() if key != text}, tmp_path / "silent.safetensors")
    with pytest.raises(
        ModelError, match=r"silent\.safetensors: its text_encoder\w* lacks (text_model\.)?final_layer_norm\.weight;"
    ):
        load_model(single(tmp_path / "silent.safetensors", layout))
    denoiser = [name for name in tensors if name.startswith("model.diffusion_model.") and name.endswith("attn.proj.bias")]
    lost = denoiser[0] if denoiser else "model.diffusion_model.out.2.bias"
    for name, left in {
        "a tensor": {key: one for key, one in tensors.items() if key != lost},
        "the VAE": {key: one for key, one in tensors.items() if not key.startswith(VAE)},
        "the denoiser": {key: one for key, one in tensors.items() if not key.startswith("model.diffusion_model.")},
        "all": {"other.weight": torch.zeros(1)},
    }.items():
        save_file(left, tmp_path / "part.safetensors")
        with pytest.raises(ModelError, match=r"model\.base: .*part\.safetensors: (its \w+ lacks|cannot be loaded)") as caught:
            load_model(single(tmp_path / "part.safetensors", layout))
        assert "\n" not in str(caught.value), name


def test_a_part_that_the_file_lacks_is_never_taken_from_the_layout_whatever_weights_lie_there(made, tmp_path):
    folder, file, _ = made
    layout = shutil.copytree(folder, tmp_path / "layout")
    encoder = "conditioner.embedders.0." if (layout / "text_encoder_2").is_dir() else "cond_stage_model."
    encoder = "text_encoders.clip_l." if (layout / "transformer").is_dir() else encoder
    left = {key: one for key, one in load_file(file).items() if not key.startswith(encoder)}
    save_file(left, tmp_path / "no-text.safetensors")
    # The names by which diffusers takes a folder for one with weights, and transformers for a pickle.
    torch.save({}, layout / "text_encoder" / "diffusion_pytorch_model.bin")
    torch.save(load_file(layout / "text_encoder" / "model.safetensors"), layout / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no-text\.safetensors: (its \w+ lacks|cannot be loaded)"):
        load_model(single(tmp_path / "no-text.safetensors", layout))


def test_a_part_that_the_file_lacks_may_be_given_by_itself(made, tmp_path):
    folder, file, _ = made
    left = {key: one for key, one in load_file(file).items() if not key.startswith(VAE)}
    save_file(left, tmp_path / "no-vae.safetensors")
    found = load_model(single(tmp_path / "no-vae.safetensors", folder, vae=PartWeights(source=str(folder / "vae")))).base.vae
    wanted = load_file(next((folder / "vae").glob("*.safetensors")))
    assert all(torch.equal(found.state_dict()[key], value) for key, value in wanted.items())


def test_a_denoiser_in_its_authors_layout_takes_the_place_of_the_bases(made, tmp_path):
    folder, file, _ = made
    prefix = "model.diffusion_model."
    denoiser = {key: one + 0.01 for key, one in load_file(file).items() if key.startswith(prefix)}
    wanted = {key: value + 0.01 for key, value in load_model(Model(base=str(folder), batch=2)).denoiser.state_dict().items()}
    # The authors of transformers give them out by themselves without a prefix, too.
    for begin in (prefix, "") if (folder / "transformer").is_dir() else (prefix,):
        save_file({f"{begin}{key.removeprefix(prefix)}": one for key, one in denoiser.items()}, tmp_path / "tuned.safetensors")
        tuned = load_model(Model(base=str(folder), batch=2, denoiser=PartWeights(source=str(tmp_path / "tuned.safetensors"))))
        found = tuned.denoiser.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], value) for key, value in wanted.items()), begin


def test_weights_that_are_stored_in_fp8_are_those_values_in_the_models_dtype(made, tmp_path):
    _, file, layout = made
    stored = {key: one.to(torch.float8_e4m3fn) for key, one in load_file(file).items()}
    save_file(stored, tmp_path / "fp8.safetensors")
    save_file({key: one.float() for key, one in stored.items()}, tmp_path / "whole.safetensors")
    small, whole = (load_model(single(tmp_path / f"{name}.safetensors", layout)).base.components for name in ("fp8", "whole"))
    for name, wanted in whole.items():
        if name in WEIGHTS:
            found = small[name].state_dict()
            for key, one in wanted.state_dict().items():
                assert found[key].dtype == one.dtype and torch.equal(found[key], one), (name, key)


def test_a_single_file_and_its_layout_are_told_by_their_contents(made, tmp_path):
    _, file, layout = made
    ranking = load("embedded").ranking
    there = model_identity(single(file, layout), ranking)
    moved = shutil.copytree(layout, tmp_path / "moved")
    assert model_identity(single(shutil.copy2(file, tmp_path / "other.safetensors"), moved), ranking) == there
    config = moved / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("{", '{"more": 1,', 1))
    changed = model_identity(single(file, moved), ranking)
    assert {where for where in there if there[where] != changed[where]} == {"model.base_config"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"base": "./m.safetensors"}, "says nothing of its tokenizers, sizes and scheduler: name a model .* as base_config"),
        ({"base": "./models", "base_file": "m.safetensors"}, "m.safetensors: a single file says nothing"),
        (
            {"base": "./models", "base_config": {"source": "./layout"}},
            "base_config is for a base that is a single .safetensors file",
        ),
        ({"base": "./m.ckpt", "base_config": {"source": "./layout"}}, "only .safetensors files are read; pickles can run code"),
        (
            {"base": "o/m.safetensors", "revision": "0" * 40, "base_config": {"source": "./l"}},
            "is the name of a hub repository; a file",
        ),
        ({"base": "./m", "denoiser": {"source": "./d", "weight_name": "x.sft"}}, "pickles can run code"),
        ({"base": "./m", "denoiser": {"source": "./d", "weight_name": "x.CKPT"}}, "pickles can run code"),
        ({"base": "./m", "denoiser": {"source": "o/x.gguf", "revision": "0" * 40}}, "a file of this machine is written ./o/x.gguf"),
        ({"base": "./m", "base_file": "m.ckpt", "base_config": {"source": "./layout"}}, "pickles can run code"),
        ({"base": "./m", "base_file": "../m.safetensors", "base_config": {"source": "./layout"}}, "inside the source is meant"),
        (
            {"base": "./m.safetensors", "base_config": {"source": "owner/name"}},
            "owner/name is a hub repository and needs a revision",
        ),
        (
            {"base": "./m.safetensors", "base_config": {"source": "./l"}, "variant": "fp16"},
            "variant is for a base in diffusers' format",
        ),
        ({"base": "./m.safetensors", "base_config": {"source": "./l"}, "safety_checker": True}, "a single file brings none"),
        ({"base": "./m.safetensors", "base_file": "n.safetensors", "base_config": {"source": "./l"}}, "is a file itself"),
    ],
)
def test_a_single_file_that_is_not_said_whole_is_refused_with_what_would_do(given, says):
    with pytest.raises(ValidationError, match=says):
        Model(**given)


def test_a_base_that_is_a_folder_changes_no_plan():
    assert not {"base_file", "base_config"} & Model(base="./m").model_dump().keys()
