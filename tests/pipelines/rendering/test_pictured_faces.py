"""Embeddings of faces with pictures of them as references (FaceID Plus and v2): equal to plain diffusers as documented."""

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import IPAdapterFaceIDPlusImageProjection
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from promptmill.configs.parameters import Defaults, Reference
from promptmill.configs.weights import ControlNetWeights, ReferenceWeights
from promptmill.manifests.checking import check_rows
from promptmill.manifests.images import Roots, roots_of
from promptmill.manifests.rules import Rules
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.models.reference_adapters import face_widths
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.pictured_faces import PicturedFaces, pack
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines import tiny_adapters
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.plain import JOB_SEED, request
from tests.pipelines.plain_calls import asked, loaded, pixels_of
from tests.pipelines.plain_steered import SD, SDXL, mixed
from tests.pipelines.rendering.test_several_references import one_by_one
from tests.pipelines.tiny_parts import lively

ONE = Reference(type="face", embedding="first.npy", image="a.png", scale=0.8)
TWO = Reference(type="face", embedding="second.npy", image="b.png", scale=0.8)
ALIKE = ONE.model_copy(update={"image": "b.png"})  # the same face in another picture
WAYS = [(), (ONE,), (TWO.model_copy(update={"scale": 0.3}),), (ONE, TWO), (ONE.model_copy(update={"mask": "mask.png"}),), (ALIKE,)]
SHORTCUTS = {"plus": None, "v2": 0.7, "xl": 1.0}
BASES = {"plus": "sd", "v2": "sd", "xl": "sdxl"}
HOW = {"sd": (SD, "StableDiffusion"), "sdxl": (SDXL, "StableDiffusionXL")}


@pytest.fixture(scope="module")
def files(folder, made):
    """The folder of the adapters: FaceID Plus, v2 with LoRAs, v2 of SDXL, and one for embeddings alone."""
    place = folder / "adapters-pictured"
    tiny_adapters.image_encoder(place / "image_encoder")
    for name, base in BASES.items():
        tiny_adapters.face_plus_adapter(made(base), place / f"{name}.safetensors", lora=name == "v2")
    tiny_adapters.face_adapter(folder / "sd", place / "alone.safetensors")
    rng = np.random.default_rng(4)
    for name in ("first", "second"):
        np.save(folder / f"{name}.npy", rng.standard_normal(8).astype(np.float32))
    return place


def weights(files, name, shortcut):
    return ReferenceWeights(source=str(files), weight_name=f"{name}.safetensors", kind="face_plus", shortcut_scale=shortcut)


@pytest.fixture(scope="module", params=SHORTCUTS)
def engine(request, folder, files, made):
    """A tiny Stable Diffusion or SDXL with one adapter for faces and pictures of them, and the adapter's name."""
    base = str(made(BASES[request.param]))
    given = model_of(
        folder, base=base, controlnets={}, references={"face": weights(files, request.param, SHORTCUTS[request.param])}
    )
    check_fits(given)
    assert given.faces == given.pictured_faces == ("face",) and face_widths(given) == {"face": 8}
    assert given.reads_references.subfolder == "image_encoder"
    one = Engine(given, JOB_SEED, Roots((str(folder),)))
    yield one, request.param
    one.close()


def plainly(one, folder, files, name, base):
    """The candidates of a request by diffusers' pipeline, as its documentation has FaceID Plus."""
    how, kind = HOW[BASES[name]]
    count, guided = how.fills(one, BATCH), one.guidance_scale > 1
    encoder = CLIPVisionModelWithProjection.from_pretrained(files / "image_encoder") if one.references else None
    ending = "Img2Img" if one.init_image else ""
    pipeline, _ = loaded(f"{kind}{ending}Pipeline", base, one, BATCH, **how.parts, image_encoder=encoder)
    said = {}
    if one.references:
        pipeline.load_ip_adapter(str(files), subfolder="", weight_name=f"{name}.safetensors", image_encoder_folder=None)
        pipeline.set_ip_adapter_scale(one.references[0].scale)
        faces = torch.stack([torch.from_numpy(np.load(folder / face.embedding)).reshape(1, -1) for face in one.references])[None]
        said["ip_adapter_image_embeds"] = [torch.cat([torch.zeros_like(faces), faces]) if guided else faces]
        pipeline.encode_image = one_by_one(pipeline.encode_image)
        pictures = [[Image.open(folder / face.image) for face in one.references]]
        (layer,) = pipeline.unet.encoder_hid_proj.image_projection_layers
        (layer.clip_embeds,) = pipeline.prepare_ip_adapter_image_embeds(pictures, None, "cpu", count, guided)
        layer.shortcut = SHORTCUTS[name] is not None
        layer.shortcut_scale = SHORTCUTS[name] or 1.0
        if one.references[0].mask:
            mask = np.zeros((1, 1, 64, 64), np.float32)
            mask[..., 20:44] = 1
            said["cross_attention_kwargs"] = {"ip_adapter_masks": [torch.from_numpy(mask)]}
    return pixels_of(pipeline(**asked(how, one, count, folder), **said).images, one, folder)[: one.candidates]


@torch.no_grad()
def test_images_with_faces_and_pictures_of_them_are_those_of_plain_diffusers(engine, folder, files, made):
    engine, name = engine
    some = mixed([*WAYS, (TWO,), (ONE, TWO)], ("txt2img", "img2img"))
    ours = [pixels(outcome) for outcome in render(engine, *some)]
    for one, our in zip(some, ours, strict=True):
        np.testing.assert_array_equal(our, plainly(one, folder, files, name, made(BASES[name])), err_msg=str(one))
    assert len({np.stack(our).tobytes() for our in ours}) == len(ours)


def test_companions_never_matter_and_rows_with_other_pictures_share_batches(engine):
    engine, _ = engine
    some = [request(f"r{number}", references=way, steps=2) for number, way in enumerate(WAYS[1:])]
    before = engine.path.denoiser.calls
    together = [pixels(outcome) for outcome in render(engine, *some)]
    shared = engine.path.denoiser.calls - before
    np.testing.assert_array_equal([pixels(outcome) for outcome in render(engine, *some[::-1])][::-1], together)
    np.testing.assert_array_equal([pixels(render(engine, one)[0]) for one in some], together)
    rows, shape = 2 * sum(one.candidates for one in some), engine.path.denoiser.shape
    assert shared == 2 * -(-rows // shape) < 2 * sum(-(-2 * one.candidates // shape) for one in some)


def test_adapters_of_faces_with_and_without_pictures_go_together(folder, files):
    references = {
        "face": weights(files, "plus", None),
        "second": weights(files, "v2", 0.7),
        "alone": ReferenceWeights(source=str(files), weight_name="alone.safetensors", kind="face"),
    }
    engine = Engine(model_of(folder, references=references), JOB_SEED, Roots((str(folder),)))
    second, alone = ONE.model_copy(update={"type": "second"}), Reference(type="alone", embedding="first.npy")
    some = [request(f"r{number}", references=way, steps=2) for number, way in enumerate([(), (ONE,), (ONE, second), (alone, TWO)])]
    together = [pixels(outcome) for outcome in render(engine, *some)]
    np.testing.assert_array_equal([pixels(render(engine, one)[0]) for one in some], together)
    assert len({np.stack(made).tobytes() for made in together}) == len(together)
    engine.close()


def test_each_row_reads_its_own_picture_and_a_shortcut_scales_what_the_picture_counts():
    torch.manual_seed(5)
    layer = lively(IPAdapterFaceIDPlusImageProjection(8, 8, 16, 4, heads=1)).eval()
    faces, pictures = torch.randn(2, 1, 1, 4), torch.randn(3, 1, 17, 16)

    def tokens(scale, *pairs):
        given = ReferenceWeights(source="./x", weight_name="x.safetensors", kind="face_plus", shortcut_scale=scale)
        with torch.no_grad():
            return PicturedFaces(layer, given)(torch.cat([pack(faces[face], pictures[picture]) for face, picture in pairs]))

    for scale in (None, 0.7):
        together = tokens(scale, (0, 0), (1, 1), (0, 2))
        torch.testing.assert_close(together[[0, 2]], torch.cat([tokens(scale, (0, 0)), tokens(scale, (0, 2))]))
        assert not torch.allclose(together[0], together[2], atol=1e-3)
    none, whole = tokens(0.0, (0, 0)), tokens(1.0, (0, 0))
    torch.testing.assert_close(none, tokens(0.0, (0, 2)))
    torch.testing.assert_close(tokens(0.7, (0, 0)), none + 0.7 * (whole - none))
    torch.testing.assert_close(tokens(None, (0, 0)), whole - none)


RULES = Rules(Defaults(width=64, height=64), references=("face",), faces={"face": 8}, pictured_faces=("face",))
BOTH = "references: 'face' reads faces and pictures of them: give it an embedding, a .npy file, and an image"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ('"embedding": "first.npy", "image": "a.png"', None),
        (
            '"embedding": "first.npy"',
            "references: 'face' reads faces and pictures of them: give it an embedding, a .npy file, and an",
        ),
        (
            '"image": "a.png"',
            "references: 'face' reads faces and pictures of them: give it an embedding, a .npy file, and an image",
        ),
        ('"embedding": "a.png", "image": "a.png"', "references.0.embedding: a.png: not a .npy file"),
        ('"embedding": "first.npy", "image": "gone.png"', "references.0.image: gone.png"),
    ],
)
def test_a_row_gives_both_the_embedding_and_the_picture(folder, files, given, says):
    manifest = folder / "pictured.jsonl"
    manifest.write_text(f'{{"prompt": "x", "references": [{{"type": "face", {given}}}]}}\n')
    (checked,) = check_rows([str(manifest)], RULES, roots_of([str(manifest)], (), 10**6))
    if says is None:
        assert not checked.problems and {*checked.images} == {"references.0.embedding", "references.0.image"}
    else:
        assert len(checked.problems) == 1 and checked.problems[0].startswith(says)


def test_an_adapter_is_what_the_config_says(folder, files):
    wrong = ReferenceWeights(source=str(files), weight_name="plus.safetensors", kind="face")
    says = r"reads embeddings of faces and pictures of them; set model\.references\.face\.kind to face_plus"
    with pytest.raises(ModelError, match=says):
        check_fits(model_of(folder, references={"face": wrong}))
    with pytest.raises(ModelError, match=r"reads embeddings of faces; set model\.references\.face\.kind to face$"):
        check_fits(model_of(folder, references={"face": weights(files, "alone", None)}))
    with pytest.raises(ValueError, match="shortcut_scale is for FaceID Plus v2; set kind to face_plus, or leave it out"):
        ReferenceWeights(source="x/y", revision="0" * 40, weight_name="a.safetensors", kind="face", shortcut_scale=1.0)
    net = ControlNetWeights(source="./x", face="face")
    with pytest.raises(ValueError, match=r"controlnets\.points\.face: face is no type of references with kind face "):
        model_of(folder, references={"face": weights(files, "plus", None)}, controlnets={"points": net})
