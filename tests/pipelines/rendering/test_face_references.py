"""Embeddings of faces as references (FaceID): equal to plain diffusers as documented, and without effect on rows that have none."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel

from promptmill.configs.model import LoraWeights
from promptmill.configs.parameters import Control, Defaults, Reference
from promptmill.configs.weights import ControlNetWeights, PartWeights, ReferenceWeights
from promptmill.manifests.checking import check_rows
from promptmill.manifests.images import Roots, roots_of
from promptmill.manifests.rules import Rules
from promptmill.manifests.steering import Steering
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.models.reference_adapters import face_widths
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines import tiny_adapters
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.plain import CANNY, JOB_SEED, request
from tests.pipelines.plain_calls import asked, loaded, pixels_of
from tests.pipelines.plain_steered import SD, SDXL, maps_of, mixed, one_or_all, steering
from tests.pipelines.rendering.test_control_classes import controlnet_of

ONE, TWO = (Reference(type="face", embedding=f"{name}.npy", scale=0.8) for name in ("one", "two"))
PICTURE = Reference(type="style", image="b.png", scale=0.6)
WAYS = [(), (ONE,), (TWO.model_copy(update={"scale": 0.3}),), (ONE, TWO), (ONE.model_copy(update={"mask": "mask.png"}),)]


@pytest.fixture(scope="module")
def files(folder):
    """The folder of the adapters: for faces with and without LoRAs, and one for pictures."""
    place = folder / "adapters-faces"
    tiny_adapters.image_encoder(place / "image_encoder")
    tiny_adapters.ip_adapter(folder / "sd", place / "style.safetensors")
    for name, lora in (("plain", False), ("lora", True)):
        tiny_adapters.face_adapter(folder / "sd", place / f"{name}.safetensors", lora=lora)
    rng = np.random.default_rng(3)
    for name, shape in (("one", (8,)), ("two", (1, 8)), ("short", (7,)), ("square", (8, 8)), ("zero", (8,))):
        np.save(folder / f"{name}.npy", (rng.standard_normal(shape) * (name != "zero")).astype(np.float32))
    whole = (folder / "one.npy").read_bytes()
    (folder / "huge.npy").write_bytes(whole.replace(b"(8,), }" + b" " * 12, b"(1000000000000,), }"))
    # A number with more digits than Python prints.
    digits = b"(0x" + b"f" * 5000 + b",)"
    said = whole[10:128].replace(b"(8,)", digits)
    (folder / "digits.npy").write_bytes(whole[:8] + len(said).to_bytes(2, "little") + said + whole[128:])
    fields = np.zeros(1, [(f"field{number}", np.float32) for number in range(300)])
    np.save(folder / "fields.npy", fields)
    (folder / "broken.npy").write_bytes(whole[:40])
    np.save(folder / "pickled.npy", np.array([{}] * 8, dtype=object), allow_pickle=True)
    return place


@pytest.fixture(scope="module", params=["plain", "lora"])
def engine(request, folder, files):
    """The tiny Stable Diffusion with one adapter for faces, and the adapter's name."""
    given = model_of(folder, references={"face": face(files, request.param)})
    check_fits(given)
    assert given.reads_references is None and face_widths(given) == {"face": 8}
    one = Engine(given, JOB_SEED, Roots((str(folder),)))
    yield one, request.param
    one.close()


def face(files, name):
    return ReferenceWeights(source=str(files / f"{name}.safetensors"), kind="face")


def plainly(one, folder, files, name):
    """The candidates of a request by diffusers' pipeline, as its documentation has FaceID."""
    count = SD.fills(one, BATCH)
    pipeline, _ = loaded(f"StableDiffusion{'Img2Img' if one.init_image else ''}Pipeline", folder / "sd", one, BATCH, **SD.parts)
    said = {}
    if one.references:
        pipeline.load_ip_adapter(str(files), subfolder="", weight_name=f"{name}.safetensors", image_encoder_folder=None)
        pipeline.set_ip_adapter_scale(one.references[0].scale)
        faces = torch.stack([torch.from_numpy(np.load(folder / face.embedding)).reshape(1, -1) for face in one.references])[None]
        guided = one.guidance_scale > 1
        said["ip_adapter_image_embeds"] = [torch.cat([torch.zeros_like(faces), faces]) if guided else faces]
        if one.references[0].mask:
            mask = np.zeros((1, 1, 64, 64), np.float32)
            mask[..., 20:44] = 1
            said["cross_attention_kwargs"] = {"ip_adapter_masks": [torch.from_numpy(mask)]}
    return pixels_of(pipeline(**asked(SD, one, count, folder), **said).images, one, folder)[: one.candidates]


def test_images_with_faces_are_those_of_plain_diffusers_and_those_without_have_no_lora(engine, folder, files):
    engine, name = engine
    assert engine.model.references.loras == ({"face": "faceid_0"} if name == "lora" else {})
    some = mixed([*WAYS, *WAYS[::-1]], ("txt2img", "img2img"))
    ours = [pixels(outcome) for outcome in render(engine, *some)]
    for one, made in zip(some, ours, strict=True):
        np.testing.assert_array_equal(made, plainly(one, folder, files, name), err_msg=str(one))
    for one, made in zip(some, ours, strict=True):
        np.testing.assert_array_equal(pixels(render(engine, one)[0]), made, err_msg=str(one))
    assert len({np.stack(made).tobytes() for made in ours}) == len(ours)


def test_faces_and_pictures_go_together_and_companions_never_matter(folder, files):
    references = {"style": PartWeights(source=str(files), weight_name="style.safetensors"), "face": face(files, "lora")}
    engine = Engine(model_of(folder, references=references), JOB_SEED, Roots((str(folder),)))
    # All of these share a call, but for what switches a LoRA.
    ways = [(), (ONE,), (PICTURE,), (PICTURE, ONE), (ONE, TWO, PICTURE)]
    some = [request(f"r{number}", references=given) for number, given in enumerate(ways)]
    together = [pixels(outcome) for outcome in render(engine, *some)]
    np.testing.assert_array_equal([pixels(outcome) for outcome in render(engine, *some[::-1])][::-1], together)
    np.testing.assert_array_equal([pixels(render(engine, one)[0]) for one in some], together)
    assert len({np.stack(made).tobytes() for made in together}) == len(together)
    engine.close()


RULES = Rules(Defaults(width=64, height=64), references=("face", "style"), faces={"face": 8})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("one", None),
        ("two", None),
        ("short", "7 values, and 'face' reads 8"),
        ("square", "holds an array of float32 and shape (8, 8), not one row of floating point numbers"),
        ("zero", "holds zeros alone"),
        ("pickled", "holds an array of object and shape (8,), not one row of floating point numbers"),
        ("huge", "claims 1,000,000,000,000 values of 4 bytes, and holds 32 bytes"),
        ("digits", "claims more values than any file has"),
        ("fields", "not one row of floating point numbers"),
        ("broken", "cannot be read as a .npy file: "),
        ("a.png", "not a .npy file, as numpy.save writes an array"),
        ("gone", "gone.npy"),
    ],
)
def test_an_embedding_that_cannot_be_used_is_one_line_of_the_plan_and_fails_its_row(engine, folder, files, tmp_path, name, says):
    path = name if "." in name else f"{name}.npy"
    manifest = folder / f"faces-{name}.jsonl"
    manifest.write_text(f'{{"prompt": "x", "references": [{{"type": "face", "embedding": "{path}"}}]}}\n')
    (checked,) = check_rows([str(manifest)], RULES, roots_of([str(manifest)], (), 10**6))
    if says is None:
        assert not checked.problems and set(checked.images) == {"references.0.embedding"}
        return
    (problem,) = checked.problems
    assert problem.startswith(f"references.0.embedding: {path}") and says in problem and "\n" not in problem
    assert len(problem) < 500
    (outcome,) = render(engine[0], request(references=(Reference(type="face", embedding=path),)))
    assert outcome.failure.code == ("render_error" if name == "short" else "bad_image")


def test_a_row_gives_a_face_to_an_adapter_of_faces_and_an_adapter_is_what_the_config_says(folder, files):
    manifest = folder / "wrong.jsonl"
    manifest.write_text('{"prompt": "x", "references": [{"type": "face", "image": "a.png"}]}\n')
    (checked,) = check_rows([str(manifest)], RULES)
    assert checked.problems == ("references: 'face' reads embeddings of faces: give it an embedding, a .npy file",)
    with pytest.raises(ModelError, match=r"style\.safetensors reads pictures; set model\.references\.face\.kind to image"):
        check_fits(model_of(folder, references={"face": face(files, "style")}))


POINTS = Control(type="points", image="a.png", scale=0.7)


@pytest.fixture(scope="module")
def instant(folder, made):
    """A tiny SDXL with the two parts of InstantID: an adapter that reads a face as a token of 512 values, and a ControlNet."""
    place, base = folder / "instant", made("sdxl")
    tiny_adapters.ip_adapter(base, place / "face.safetensors", plus=True, read=512)
    net = controlnet_of(base, place / "points")
    np.save(folder / "wide.npy", np.random.default_rng(7).standard_normal(512).astype(np.float32))
    given = model_of(
        folder,
        base=str(base),
        references={"face": face(place, "face")},
        controlnets={
            "points": ControlNetWeights(source=str(net), face="face"),
            "canny": ControlNetWeights(source=str(net)),
        },
    )
    check_fits(given)
    assert face_widths(given) == {"face": 512} and read_facts(given).steering["points"].face == "face"
    engine = Engine(given, JOB_SEED, Roots((str(folder),)))
    yield engine, base, place
    engine.close()


def with_both(one, folder, base, place):
    """The candidates of a request as InstantID's pipeline makes them: the ControlNet reads the face in place of the text."""
    count = SDXL.fills(one, BATCH)
    nets = [ControlNetModel.from_pretrained(place / "points") for _ in one.controls]
    pipeline, _ = loaded("StableDiffusionXLControlNetPipeline", base, one, BATCH, controlnet=one_or_all(nets))
    pipeline.load_ip_adapter(str(place), subfolder="", weight_name="face.safetensors", image_encoder_folder=None)
    pipeline.set_ip_adapter_scale(one.references[0].scale)
    read = torch.from_numpy(np.load(folder / "wide.npy")).reshape(1, 1, 1, 512)
    guided = one.guidance_scale > 1
    projection, forward = pipeline.unet.encoder_hid_proj.image_projection_layers[0], nets[0].forward
    # Each is read by itself, as promptmill does.
    tokens = [projection(some[0]) for some in ([torch.zeros_like(read), read] if guided else [read])]

    def faced(*args, encoder_hidden_states, **kwargs):
        return forward(*args, encoder_hidden_states=torch.cat([one for one in tokens for _ in range(count)]), **kwargs)

    if one.controls[0].type == "points":
        nets[0].forward = faced
    said = {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(read), read]) if guided else read]}
    said |= {"image": one_or_all(maps_of(one, count, folder)), **steering(one)}
    return pixels_of(pipeline(**asked(SDXL, one, count, folder), **said).images, one, folder)[: one.candidates]


@torch.no_grad()
def test_a_controlnet_that_reads_the_face_is_instantids(instant, folder):
    engine, base, place = instant
    faces = Reference(type="face", embedding="wide.npy", scale=0.8)
    scales = (4.0, 1.0)
    some = [
        request(f"r{n}", mode="controlnet", controls=controls, references=(faces,), guidance_scale=scale, steps=2 + n % 2)
        for n, (controls, scale) in enumerate(
            (controls, scale) for controls in ((POINTS,), (CANNY,), (POINTS, CANNY)) for scale in scales
        )
    ]
    ours = [pixels(outcome) for outcome in render(engine, *some)]
    for one, made in zip(some, ours, strict=True):
        np.testing.assert_array_equal(made, with_both(one, folder, base, place), err_msg=str(one))
        np.testing.assert_array_equal(pixels(render(engine, one)[0]), made)
    assert len({np.stack(made).tobytes() for made in ours}) == len(ours)


def test_a_row_that_has_no_face_for_such_a_controlnet_is_a_bad_row(instant, folder):
    manifest = folder / "faceless.jsonl"
    manifest.write_text('{"prompt": "x", "controls": [{"type": "points", "image": "a.png"}]}\n')
    can = Steering("ControlNetModel", ("controlnet",), face="face")
    rules = Rules(
        Defaults(width=64, height=64), controls=("points",), steering={"points": can}, references=("face",), faces={"face": 512}
    )
    (checked,) = check_rows([str(manifest)], rules)
    assert checked.problems == ("controls: 'points' reads the face of a reference: give the row one reference of type 'face'",)
    with pytest.raises(ValueError, match=r"controlnets\.points\.face: style is no type of references with kind face"):
        model_of(folder, controlnets={"points": ControlNetWeights(source="./x", face="style")})


def test_each_of_two_controlnets_reads_the_face_of_its_own_type(instant, folder, monkeypatch):
    _, base, place = instant
    tiny_adapters.ip_adapter(base, place / "other.safetensors", seed=5, plus=True, read=512)
    types = ("face", "other")
    given = model_of(
        folder,
        base=str(base),
        references={name: face(place, name) for name in types},
        controlnets={f"of {name}": ControlNetWeights(source=str(place / "points"), face=name) for name in types},
    )
    engine = Engine(given, JOB_SEED, Roots((str(folder),)))
    read = []
    for net in engine.path.controlnets:
        seen = lambda run, **given: read.append(given["encoder_hidden_states"].clone()) or run(**given)  # noqa: E731
        monkeypatch.setattr(net, "run", partial(seen, net.run))
    one = request(
        mode="controlnet",
        controls=tuple(POINTS.model_copy(update={"type": f"of {name}"}) for name in types),
        references=tuple(Reference(type=name, embedding="wide.npy") for name in types),
        steps=2,
    )
    assert pixels(render(engine, one)[0])
    assert not torch.equal(read[0], read[1])
    engine.close()


def test_a_lora_has_another_name_than_those_that_adapters_of_faces_bring(folder, files):
    references = {"face": face(files, "lora")}
    with pytest.raises(ValueError, match=r"loras: faceid_0 is what diffusers calls the LoRA of an adapter of faces"):
        model_of(folder, references=references, loras=(LoraWeights(name="faceid_0", source="./x"),))
    assert model_of(folder, references=references, loras=(LoraWeights(name="faceid_1", source="./x"),)).loras
