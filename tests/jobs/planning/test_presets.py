"""Every preset plans a row by the tiny model of its family in place of its own: nothing is refused, and nothing has no effect.

The figures of models that no preset names are held in the same way.
"""

import json
import re
from functools import cache

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from benchmarks.model_licences import LICENCES
from benchmarks.unpinned_models import UNPINNED
from promptmill.configs.loading import load, preset_names
from promptmill.configs.model import Model
from promptmill.configs.own_files import PRESETS, ROOT
from promptmill.jobs.cli import main
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.pipelines.models.capabilities import read_facts
from tests.pipelines import tiny
from tests.pipelines.every_tiny import TINY
from tests.pipelines.plain_families import BOXES, FAMILIES, UNETS

OWN = {"embedded", "embedded-flow", "quickstart"}  # whose weights lie in the repository, and are run by other tests
SD2 = {"sd2": lambda folder: tiny.stable_diffusion(folder, "v_prediction", use_linear_projection=True)}
# The family of each preset by its tiny model, and the pixels that sides are multiples of in the real one.
FAMILY = {
    "auraflow": ("auraflow", 16),
    "bria-fibo": ("bria-fibo", 16),
    "chroma": ("chroma", 16),
    "cogview3": ("cogview3", 16),
    "cogview4": ("cogview4", 16),
    "consistency-imagenet64": ("consistency", 8),
    "ddpm-cifar10": ("ddpm", 8),
    "deepfloyd-if": ("if", 8),
    "deepfloyd-if-upscaler": ("if-upscaler", 8),
    "depth2img": ("depth2img", 8),
    "dreamlite": ("dreamlite", 16),
    "dreamlite-mobile": ("dreamlite-mobile", 16),
    "ernie-image-turbo": ("ernie", 16),
    "flux-canny": ("flux-control", 16),
    "flux-depth": ("flux-control", 16),
    "flux-dev": ("flux-dev", 16),
    "flux-fill": ("flux-fill", 16),
    "flux-kontext": ("flux-kontext", 16),
    "flux-redux": ("flux-dev", 16),
    "flux-schnell": ("flux-schnell", 16),
    "flux2-dev": ("flux2-dev", 16),
    "flux2-klein": ("flux2-klein-distilled", 16),
    "flux2-klein-base": ("flux2-klein", 16),
    "gligen": ("gligen", 8),
    "gligen-inpainting": ("gligen-inpainting", 8),
    "hunyuan-image": ("hunyuan-image", 32),
    "hunyuandit": ("hunyuandit", 16),
    "instruct-pix2pix": ("pix2pix", 8),
    "instruct-pix2pix-xl": ("pix2pix-xl", 8),
    "kandinsky21": ("kandinsky21", 64),
    "kandinsky21-inpainting": ("kandinsky21-inpainting", 64),
    "kandinsky22": ("kandinsky22", 64),
    "kandinsky22-inpainting": ("kandinsky22-inpainting", 64),
    "kandinsky3": ("kandinsky3", 64),
    "kolors": ("kolors", 8),
    "krea2": ("krea2", 16),
    "krea2-turbo": ("krea2", 16),
    "latent-upscaler": ("latent-upscaler", 16),
    "lcm": ("lcm", 8),
    "longcat-image": ("longcat", 16),
    "longcat-image-edit": ("longcat-edit", 16),
    "lumina": ("lumina", 16),
    "lumina2": ("lumina2", 16),
    "ovis-image": ("ovis-image", 16),
    "pixart-alpha": ("pixart-alpha", 16),
    "pixart-sigma": ("pixart-sigma", 16),
    "playground25": ("playground", 8),
    "prx": ("prx", 32),
    "prx-pixel": ("prx-pixel", 16),
    "qwen-image": ("qwen-image", 16),
    "qwen-image-edit": ("qwen-image-edit", 16),
    "qwen-image-edit-2509": ("qwen-image-edit-plus", 16),
    "qwen-image-edit-2511": ("qwen-image-edit-plus", 16),
    "qwen-image21": ("qwen-image-2.1", 32),
    "sana": ("sana", 32),
    "sana-sprint": ("sana-sprint", 32),
    "sd15": ("sd", 8),
    "sd15-controlnet": ("sd", 8),
    "sd15-lcm": ("sd", 8),
    "sd21": ("sd2", 8),
    "sd3-medium": ("sd3", 16),
    "sd35-large": ("sd3", 16),
    "sd35-medium": ("sd3", 16),
    "sdxl": ("sdxl", 8),
    "sdxl-lightning": ("sdxl", 8),
    "sdxl-refiner": ("sdxl-refiner", 8),
    "sdxl-turbo": ("sdxl", 8),
    "sdxl-with-refiner": ("sdxl", 8),
    "stable-cascade": ("stable-cascade", 128),
    "stable-unclip": ("stable-unclip", 8),
    "taiyi": ("taiyi", 8),
    "x4-upscaler": ("x4-upscaler", 16),
    "z-image": ("z-image", 16),
    "z-image-turbo": ("z-image", 16),
}
SAID = {"steps", "guidance_scale", "scheduler", "image_guidance_scale", "noise_level", "strength", "prior_steps"}
SAID |= {"prior_guidance_scale", "gligen_scheduled_sampling_beta"}
TINIEST = {"hidream": (64, 64)}  # pixels a side, more than which the tiny model has no places for
UNNAMED = {f"{model.base} as {model.family}": model for model in UNPINNED}
PICTURES = {"img2img": ("init_image",), "inpaint": ("init_image", "mask_image")}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Returns the folder of a family's tiny model, which is made when it is first asked for."""
    folder = tmp_path_factory.mktemp("tiny")
    return cache(lambda name: (TINY | SD2)[name](folder / name))


def test_every_preset_is_of_a_family_that_has_a_tiny_model():
    assert FAMILY.keys() | OWN == {*preset_names()} and {name for name, _ in FAMILY.values()} <= TINY.keys() | SD2.keys()


@pytest.mark.parametrize("preset", FAMILY)
def test_sides_are_multiples_of_what_the_real_model_needs(preset):
    defaults, multiple = load(preset).defaults, FAMILY[preset][1]
    assert defaults.width % multiple == defaults.height % multiple == 0


@pytest.mark.parametrize("name", UNNAMED)
def test_sides_of_a_model_without_a_preset_are_multiples_of_what_it_needs(name):
    model = UNNAMED[name]
    assert model.defaults["width"] % model.multiple == model.defaults["height"] % model.multiple == 0


@pytest.mark.parametrize("preset", FAMILY)
def test_a_preset_says_its_licence_as_the_table_of_licences_has_it(preset):
    said = re.findall(r"^# Licence of the weights: (\S+)\.$", (PRESETS / f"{preset}.yaml").read_text(), re.MULTILINE)
    model = load(preset).model
    assert said == [LICENCES[model.base]]
    assert all(LICENCES[one.source] == said[0] for one in (model.denoiser, model.refiner, model.prior) if one)


def in_place_of(content, family, base, folder):
    """The config of a preset with tiny models in place of its base and refiner, for rows in a folder.

    The defaults are the preset's, but for the size where the tiny model has another one alone.
    """
    own = ("revision", "variant", "denoiser", "refiner", "prior", "controlnets", "loras", "references")
    model = {name: value for name, value in content["model"].items() if name not in own}
    model["base"] = str(base(family))
    if "prior" in content["model"]:
        model["prior"] = {"source": f"{model['base']}/prior"}
    if refiner := content["model"].get("refiner"):
        model["refiner"] = {"source": str(base("sdxl-refiner")), "switch": refiner["switch"]}
    defaults = {name: value for name, value in content["defaults"].items() if name != "loras"}
    if sides := read_facts(Model(**model)).side or TINIEST.get(family):
        defaults |= dict(zip(("width", "height"), sides, strict=True))
    ranking = {"model": f"local-dir:{ROOT}/embedded/weights/clip"}
    changed = {"manifest": str(folder / "rows.jsonl"), "output": str(folder / "out"), "model": model, "defaults": defaults}
    (folder / "config.yaml").write_text(yaml.safe_dump({**content, **changed, "ranking": ranking}))
    return str(folder / "config.yaml")


def planned(content, family, base, folder):
    """Plan a row by a config with a tiny model: nothing is refused, and no default has no effect or is left out."""
    config = in_place_of(content, family, base, folder)
    loaded = load(config)
    facts, defaults, plain = read_facts(loaded.model), loaded.defaults, FAMILIES.get(family) or UNETS.get(family)
    mode = defaults.mode or facts.modes[0]
    row = {name: f"{name}.png" for name in PICTURES.get(mode, ())}
    if plain is None or plain.prompted:
        row["prompt"] = '{"edit_instruction": "red"}' if facts.prompt_key else "a red circle"
    if plain and plain.classes:
        row["class_label"] = 1
    if facts.boxes:
        row["gligen_boxes"] = [box.model_dump() for box in BOXES[0]]
    for name in ("init_image.png", "mask_image.png"):
        Image.new("RGB", (defaults.width, defaults.height), "white").save(folder / name)
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    done = CliRunner().invoke(main, ["plan", config, "--no-measure"])
    assert done.exit_code == 0, done.output
    assert "has no effect" not in done.output
    (placed,) = read_shard(str(folder / "out"), 0).requests
    for name in defaults.model_fields_set & SAID:
        assert getattr(placed.request, name) == getattr(defaults, name), name
    # What a row does not say is what its authors recommend, wherever the family takes it; true guidance is off unless it is said.
    takes = {"guidance_scale", *facts.further, *(["strength"] if mode == "img2img" else [])} - {*facts.ignored, "true_cfg_scale"}
    assert takes | {"steps", "scheduler", "width", "height"} <= defaults.model_fields_set


@pytest.mark.parametrize("preset", FAMILY)
def test_no_default_is_refused_by_the_family_or_has_no_effect_on_it(preset, base, tmp_path):
    planned(yaml.safe_load((PRESETS / f"{preset}.yaml").read_text()), FAMILY[preset][0], base, tmp_path)


@pytest.mark.parametrize("name", UNNAMED)
def test_figures_of_a_model_without_a_preset_are_neither_refused_nor_without_effect(name, base, tmp_path):
    model = UNNAMED[name]
    planned({"model": model.model, "defaults": model.defaults}, model.family, base, tmp_path)


def test_a_swapped_denoiser_is_one_file_at_a_commit_and_fits_the_base(base):
    swapped = {name: load(name).model for name in FAMILY if load(name).model.denoiser}
    assert {*swapped} == {"sdxl-lightning"}
    for name, model in swapped.items():
        assert model.denoiser.weight_name.endswith(".safetensors") and len(model.denoiser.revision) == 40
        assert model.base == load(name.partition("-")[0]).model.base and model.base_config is None
