"""Pictures made larger: as spandrel itself makes them, in tiles that do not show, and files that are no such network refused."""

import numpy as np
import pytest
import spandrel
import torch
from safetensors.torch import load_file, save_file

from promptmill.embedded.oracle import is_right
from promptmill.embedded.pictures import draw
from promptmill.embedded.upscaler import scaled_down
from promptmill.embedded.weights import WEIGHTS
from promptmill.embedded.world import sample_scene
from promptmill.pipelines.rendering.upscaling import Upscaler, load_upscaler
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines.tiny_upscalers import MAKERS, network_of, save

TILE = 32
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with noise over them, so that neither is alike anywhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (5 + c) + y / (9 - c)) for c in range(3)]
    return (np.stack(waves, -1) + rng.normal(0, 12, (height, width, 3))).clip(0, 255).astype(np.uint8)


def theirs(file, pixels: np.ndarray, dtype=torch.float32) -> np.ndarray:
    descriptor = spandrel.ModelLoader().load_from_file(file).to(dtype).eval()
    inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(dtype) / 255
    return (descriptor(inputs)[0].permute(1, 2, 0).float() * 255).round().byte().numpy()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("upscalers")
    return {kind: save(network_of(kind), folder / f"{number}.safetensors") for number, kind in enumerate(MAKERS)}


def loaded(file, **options) -> Upscaler:
    return load_upscaler(file, "it", **{"tile": TILE, "overlap": 8, **options})


@pytest.mark.parametrize("kind", MAKERS)
def test_a_picture_of_one_tile_is_enlarged_as_spandrel_does(files, kind):
    upscaler = loaded(files[kind])
    assert upscaler.architecture == kind and upscaler.scale == {"ESRGAN": 4}.get(kind, 2) and upscaler.tile == TILE
    pixels = picture(TILE, TILE)
    mine = upscaler.upscale(pixels)
    assert mine.shape == (TILE * upscaler.scale, TILE * upscaler.scale, 3) and mine.dtype == np.uint8
    np.testing.assert_array_equal(mine, theirs(files[kind], pixels))
    assert mine.std() > 3 and ((mine > 0) & (mine < 255)).mean() > 0.2  # there is something to be equal


@pytest.mark.parametrize("size", [(20, 23), (1, 1), (5, 70), (TILE, 9)])
def test_a_tile_larger_than_the_picture_works(files, size):
    upscaler = loaded(files["RealESRGAN Compact"])
    pixels = picture(*size)
    mine = upscaler.upscale(pixels)
    assert mine.shape == (size[0] * 2, size[1] * 2, 3)
    # Away from where the padding begins, which a network of radius 5 sees, it is what spandrel makes of the picture without any.
    whole = theirs(files["RealESRGAN Compact"], pixels)
    here = tuple(slice(0, None if side >= TILE else max(0, 2 * (side - 5))) for side in size)
    assert np.abs(mine[here].astype(int) - whole[here]).max(initial=0) <= 1


def test_beyond_a_small_picture_a_tile_has_its_mirror_image_and_then_its_last_pixel(files):
    for height, width in [(20, 23), (5, 32), (1, 9)]:
        pixels = picture(height, width)
        down, across = (max(0, TILE - side) for side in (height, width))
        mirrored = np.pad(pixels, ((0, min(down, height - 1)), (0, min(across, width - 1)), (0, 0)), "reflect")
        padded = np.pad(mirrored, ((0, max(0, TILE - len(mirrored))), (0, max(0, TILE - mirrored.shape[1])), (0, 0)), "edge")
        whole = theirs(files["ESRGAN"], padded)[: 4 * height, : 4 * width]
        np.testing.assert_array_equal(loaded(files["ESRGAN"]).upscale(pixels), whole)


@pytest.mark.parametrize("size", [(70, 90), (33, 32), (64, 100), (41, 57)])
def test_where_the_overlap_covers_what_the_network_sees_tiles_change_nothing(files, size):
    # The radius of what the network sees is 5 pixels: what counts of the tiles' overlap is further than that from an edge.
    upscaler = loaded(files["RealESRGAN Compact"], overlap=16, tile=40)
    pixels = picture(*size)
    if min(size) < 40:
        pixels = np.pad(pixels, ((0, max(0, 40 - size[0])), (0, max(0, 40 - size[1])), (0, 0)), "edge")
    difference = np.abs(upscaler.upscale(pixels).astype(int) - theirs(files["RealESRGAN Compact"], pixels))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01  # a sum of shares in fp32 may round to the next level


@pytest.mark.parametrize("kind", MAKERS)
def test_more_overlap_brings_tiles_nearer_to_the_whole(files, kind):
    pixels = picture(84, 96)
    whole = theirs(files[kind], pixels).astype(int)
    apart, near = (
        np.abs(loaded(files[kind], tile=48, overlap=overlap).upscale(pixels).astype(int) - whole).mean() for overlap in (0, 24)
    )
    assert near < apart
    assert near < 1.5  # levels


def test_shares_of_tiles_are_one_together(files):
    """A network that gives back what it gets shows the blending alone."""
    network = network_of("RealESRGAN Compact")
    for parameter in network.parameters():
        parameter.data.zero_()  # what is left is the nearest-neighbour base
    file = save(network, files["RealESRGAN Compact"].with_name("base.safetensors"))
    for size, tile, overlap in [((70, 91), 32, 8), ((50, 33), 32, 16), ((97, 40), 20, 0), ((64, 64), 24, 7)]:
        pixels = picture(*size)
        mine = loaded(file, tile=tile, overlap=overlap).upscale(pixels)
        np.testing.assert_array_equal(mine, pixels.repeat(2, 0).repeat(2, 1))


def test_the_same_bits_whatever_was_enlarged_before_and_in_bfloat16_as_spandrel(files):
    upscaler = loaded(files["ESRGAN"])
    pixels = picture(50, 60)
    alone = upscaler.upscale(pixels)
    upscaler.upscale(picture(90, 33, seed=1))
    np.testing.assert_array_equal(alone, upscaler.upscale(pixels))
    half = loaded(files["ESRGAN"], dtype=torch.bfloat16)
    pixels = picture(TILE, TILE)
    np.testing.assert_array_equal(half.upscale(pixels), theirs(files["ESRGAN"], pixels, torch.bfloat16))


def test_a_tile_grows_to_what_the_architecture_needs(tmp_path):
    network = MAKERS["ESRGAN"]().__class__(num_filters=4, num_blocks=1, in_nc=12, out_nc=3, scale=4, shuffle_factor=2)
    upscaler = loaded(save(network, tmp_path / "x2.safetensors"), tile=30)
    assert (upscaler.scale, upscaler.tile) == (2, 32)
    assert upscaler.upscale(picture(35, 40)).shape == (70, 80, 3)


def test_the_embedded_upscaler_is_one_and_what_it_enlarges_is_still_right():
    rng = np.random.default_rng(11)
    scenes = [sample_scene(rng, held_out=True) for _ in range(6)]
    upscaler = load_upscaler(WEIGHTS / "upscaler" / "model.safetensors", "it", tile=64)
    for scene, pixels in zip(scenes, draw(scenes, rng).pixels, strict=True):
        enlarged = upscaler.upscale(pixels)
        assert enlarged.shape == (128, 128, 3)
        np.testing.assert_array_equal(enlarged, theirs(WEIGHTS / "upscaler" / "model.safetensors", pixels))
        assert is_right(scene, scaled_down(enlarged[None])[0])


def _scaled(tensors, name, factor):
    return tensors | {name: tensors[name] * factor}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {"layer.weight": torch.ones(2, 2)}, r"of no architecture that spandrel .* knows; it holds layer\.weight$"),
        (lambda t: {name: t[name] for name in list(t)[:-2]}, "cannot be loaded: "),
        (lambda t: _scaled(t, "body.0.weight", float("nan")), r"body\.0\.weight holds numbers that are not finite"),
        (lambda t: t | {"body.99999999.weight": torch.ones(1)}, r"body\.99999999\.weight is empty or numbered beyond the file's"),
        (lambda t: t | {"body.0.weight": torch.ones(10**9, 0)}, r"body\.0\.weight is empty or numbered"),
        (
            lambda t: {
                name: (value[:, :1] if name == "body.0.weight" else value[:4] if name.startswith("body.8") else value).clone()
                for name, value in t.items()
            },
            "of 1 channels in and 1 out, and pictures have 3",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_network_for_pictures_is_one_line(files, tmp_path, change, says):
    file = tmp_path / "changed.safetensors"
    save_file(change(load_file(files["RealESRGAN Compact"])), file)
    with pytest.raises(ModelError, match=f"^it: .*{says}") as raised:
        loaded(file)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 420


def test_a_file_that_is_no_safetensors_is_one_line(files, tmp_path):
    for name, content, says in [
        ("a.pth", b"PK", "is no .safetensors file, and others are not read: pickles can run code; promptmill convert makes"),
        ("a.safetensors", b"no header at all", "is not a safetensors file: "),
        ("b.safetensors", files["ESRGAN"].read_bytes()[:-10], "is not a safetensors file: "),
        (
            "c.safetensors",
            POINTER,
            "c.safetensors: ",
        ),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=says) as raised:
            loaded(tmp_path / name)
        assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match="gone"):
        loaded(tmp_path / "gone.safetensors")


def test_a_network_for_another_purpose_is_refused_by_what_it_does(tmp_path):
    from spandrel.architectures.RestoreFormer import RestoreFormer

    faces = RestoreFormer(n_embed=4, embed_dim=8, ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=8)
    with pytest.raises(ModelError, match="a RestoreFormer restores faces, and a network is meant that enlarges"):
        loaded(save(faces, tmp_path / "faces.safetensors"))


def test_a_network_that_draws_noise_is_refused(files, monkeypatch):
    monkeypatch.setattr("promptmill.pipelines.rendering.spandrel_models.RANDOM", ("Compact",))
    with pytest.raises(ModelError, match="adds noise of its own to every picture"):
        loaded(files["RealESRGAN Compact"])


def test_what_an_architecture_cannot_do_is_said(files):
    with pytest.raises(ModelError, match="it: a SwinIR cannot compute in float16; use float32 or bfloat16"):
        loaded(files["SwinIR"], dtype=torch.float16)
    with pytest.raises(ModelError, match="tiles of 32 pixels can overlap by 0 to 16 pixels, not by 20"):
        loaded(files["SwinIR"], overlap=20)


def test_a_code_former_is_refused_with_its_licence_and_the_command(tmp_path):
    file = tmp_path / "former.safetensors"
    save_file({"position_emb": torch.ones(2, 2), "idx_pred_layer.1.weight": torch.ones(2, 2)}, file)
    licence = r"is a CodeFormer, whose licence, S-Lab License 1\.0, forbids commercial use"
    with pytest.raises(ModelError, match=f"{licence}; where that is no matter: pip install 'promptmill\\[codeformer\\]'$"):
        loaded(file)
