"""Every pipeline of the installed diffusers is served and tested, or refused by its name with a reason, or makes no pictures."""

import json

import diffusers
import pytest
from diffusers.pipelines import auto_pipeline

from promptmill.configs.model import Model
from promptmill.configs.weights import Weights
from promptmill.pipelines.models import families, family
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.controls import control_classes
from promptmill.pipelines.models.families import family_of
from promptmill.pipelines.models.pipeline_classes import class_for, modes_of, tables
from promptmill.pipelines.models.reference_adapters import TAKING, UNREAD, kinds_of_references
from promptmill.pipelines.models.refusals import ENDED, REFUSED, refusal
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines.plain_controlnets import CONTROLLED
from tests.pipelines.plain_families import FAMILIES

# Of videos, sounds, texts and molecules; and what all pipelines are made of. A new version of diffusers brings more.
NO_PICTURES = tuple(
    """
    AceStep Allegro AnimateDiff AnyFlow Audio CogVideoX ConsisID Cosmos2VideoToWorld Cosmos2_5 Cosmos3 CosmosTextToWorld
    CosmosVideoToWorld DanceDiffusion DiffusionGemma DiffusionPipeline EasyAnimate HunyuanSkyreels HunyuanVideo I2VGenXL LLaDA2 LTX
    Latte LongCatAudioDiT LucyEdit Mochi MotifVideo MusicLDM PIA RFD4Proteina SanaImageToVideo SanaVideo SanaWM SkyReelsV2
    SpectrogramDiffusion StableAudio StableVideoDiffusion TextToVideo VideoToVideo Wan
    """.split()  # noqa: SIM905
)
MODES = ("", "Img2Img", "Inpaint")
# `benchmarks.equality` compares all of these with plain diffusers, and `test_equality` a sample.
UNETS = {f"StableDiffusion{xl}{mode}Pipeline" for xl in ("", "XL") for mode in MODES}
UNETS_WITH_CONTROLS = {f"StableDiffusion{xl}ControlNet{mode}Pipeline" for xl in ("", "XL") for mode in MODES}
# `test_control_classes` compares these.
UNETS_WITH_CONTROLS |= {f"StableDiffusionXLControlNetUnion{mode}Pipeline" for mode in MODES}
UNETS_WITH_CONTROLS |= {"StableDiffusionAdapterPipeline", "StableDiffusionXLAdapterPipeline"}
TESTED = UNETS | {name for plain in FAMILIES.values() for name in plain.pipelines.values()}
TESTED_WITH_CONTROLS = UNETS_WITH_CONTROLS | {name for how in CONTROLLED.values() for name in how.pipelines.values()}

AUTO = {
    kind if isinstance(kind, str) else kind.__name__
    for table in vars(auto_pipeline).values()
    if isinstance(table, dict)
    for kind in table.values()
    if "Pipeline" in str(kind)
}
EXPORTED = {name for name in dir(diffusers) if "Pipeline" in name and not name.endswith(("Output", "Mixin")) and name[0].isupper()}
OF_TABLES = {name for table in tables().values() for name in table.values()}
EVERY = sorted(
    name
    for name in EXPORTED | AUTO | OF_TABLES
    if not name.startswith("AutoPipelineFor") and not name.endswith(("PipelineBlocks", "QuantizationConfig"))
)


def test_all_pipelines_are_walked():
    assert len(EVERY) > 300 and {*EVERY} >= TESTED | TESTED_WITH_CONTROLS


@pytest.fixture
def said(tmp_path, monkeypatch):
    """What promptmill says of a model that was saved as a class: its modes, or why it is refused, with all packages here."""
    monkeypatch.setattr(family, "find_spec", lambda name: True)

    def ask(name):
        parts = {"vae": ["diffusers", "AutoencoderKL"], "unet": ["diffusers", "UNet2DConditionModel"]}
        beside = {part: ["transformers", "Any"] for part in families.family_of(name).beside}
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name, **parts, **beside}))
        for part in parts:
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / "config.json").write_text("{}")
        if kind := family_of(name).prior:
            (tmp_path / "prior").mkdir(exist_ok=True)
            (tmp_path / "prior" / "model_index.json").write_text(json.dumps({"_class_name": kind}))
        prior = Weights(source=str(tmp_path / "prior")) if kind else None
        try:
            return read_facts(Model(base=str(tmp_path), prior=prior)).modes
        except ModelError as error:
            return str(error)

    return ask


@pytest.mark.parametrize("name", EVERY)
def test_a_model_saved_as_a_class_is_served_and_tested_or_refused_with_the_reason_or_makes_no_pictures(said, name):
    answer = said(name)
    if isinstance(answer, tuple):
        assert refusal(name) is None
        # What a mode is rendered with, and the class that the model names, are both compared with plain diffusers.
        assert answer and {class_for(name, mode) for mode in answer} <= TESTED and name in TESTED
        for controls in control_classes(name).values():
            assert {kind for mode, kind in controls.pipelines.items() if mode in answer} <= TESTED_WITH_CONTROLS
        return
    assert "\n" not in answer and (f"{name} " in answer or f"({name})" in answer)
    if refusal(name) is None:
        assert not modes_of(name) and name.startswith(NO_PICTURES)
        assert "diffusers has no pipeline that makes images with it" in answer
    else:
        assert name not in TESTED and refusal(name) in answer


# Its rows may have references all the same: the engine gives these to the UNet itself.
OF_T2I_ADAPTERS = "StableDiffusionAdapterPipeline"


def test_what_loads_ip_adapters_in_diffusers_takes_references_here_or_is_refused_with_the_reason(said):
    apart, seen = set(), set()
    for name in EVERY:
        if not isinstance(answer := said(name), tuple):
            continue
        classes = {class_for(name, mode) for mode in answer}
        classes |= {kind for controls in control_classes(name).values() for kind in controls.pipelines.values()}
        for kind in classes:
            loads = any(base.__name__.endswith("IPAdapterMixin") for base in getattr(diffusers, kind).__mro__)
            takes = "IP-Adapters" in kinds_of_references(name) and (family_of(name).image_prompts != "flux" or kind in TAKING)
            seen |= {kind} if loads and takes else set()
            apart |= {(name, kind)} if loads != takes else set()
    assert len(seen) > 30 and "StableDiffusionInstructPix2PixPipeline" in seen
    assert {kind for _, kind in apart} == {
        OF_T2I_ADAPTERS,
        *(f"{begin}{mode}Pipeline" for begin in UNREAD for mode in ("", "Img2Img")),
    }


def test_a_family_whose_package_is_not_installed_is_refused_with_the_command_that_installs_it(said, monkeypatch):
    monkeypatch.setattr(family, "find_spec", lambda name: None)
    assert said("KolorsPipeline").endswith(": KolorsPipeline needs sentencepiece: pip install 'promptmill[sentencepiece]'")
    assert isinstance(said("StableDiffusionPipeline"), tuple)


def test_each_refusal_is_of_a_class_that_diffusers_has():
    assert not [begin for begin in REFUSED if not any(name.startswith(begin) for name in EVERY)]
    assert not [begin for begin in NO_PICTURES if not any(name.startswith(begin) for name in EVERY)]


def test_what_is_said_to_be_deprecated_is():
    names = [name for name in EVERY if refusal(name) == ENDED]
    assert names
    assert not [name for name in names if ".deprecated" not in getattr(diffusers, name).__module__]
