import shutil
import subprocess

import pytest

from promptmill.embedded import weights
from promptmill.embedded.weights import SUMS, WEIGHTS, WeightsError, check

LOADERS = [
    weights.load_pipeline,
    weights.load_clip,
    lambda folder: weights.load_controlnet("canny", folder),
    weights.load_flow_pipeline,
    lambda folder: weights.load_flow_controlnet("seg", folder),
    weights.load_annotator,
    weights.load_upscaler,
]


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(WEIGHTS, folder)
    return folder


def test_the_shipped_weights_are_whole_and_small():
    check()
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*")) <= 45_000_000
    assert sum(path.stat().st_size for path in WEIGHTS.glob("flow*/**/*") if path.is_file()) <= 7_500_000
    assert sum(path.stat().st_size for path in WEIGHTS.glob("annotator-seg/*")) <= 1_000_000
    assert sum(path.stat().st_size for path in WEIGHTS.glob("upscaler/*")) <= 1_000_000
    binaries = {path.suffix for path in WEIGHTS.rglob("*") if path.is_file()} - {".json", ".md", ""}
    assert binaries == {".safetensors"}


def test_sha256sum_agrees_with_our_own_check():
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=WEIGHTS, check=True)


@pytest.mark.parametrize("name", ["pipeline/unet/diffusion_pytorch_model.safetensors", "clip/open_clip_config.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(WeightsError, match=rf"{name}: missing"):
        check(copy)


def test_a_single_flipped_bit_is_named(copy):
    path = copy / "controlnet-seg/diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"controlnet-seg/diffusion_pytorch_model.safetensors: altered"):
        check(copy)
    check(copy, "pipeline")  # the other parts are still whole


def test_a_file_that_nobody_listed_is_named(copy):
    (copy / "clip/pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"clip/pytorch_model.bin: not listed"):
        check(copy)


def test_missing_and_broken_hashes_are_named(copy):
    (copy / SUMS).write_text("what is this\n")
    with pytest.raises(WeightsError, match=rf"{SUMS}, line 1: 'what is this'"):
        check(copy)
    (copy / SUMS).unlink()
    with pytest.raises(WeightsError, match=rf"{SUMS}: missing"):
        check(copy)


@pytest.mark.parametrize("load", LOADERS)
def test_every_loader_checks_first(copy, load):
    for path in [*copy.rglob("*.json"), *copy.rglob("*.safetensors")]:
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(WeightsError, match="altered"):
        load(copy)
