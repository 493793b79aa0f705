"""Files of torch.save become safetensors: the same tensors as torch reads, by the same names; and nothing in a file is ever run."""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import spandrel
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from promptmill.jobs.cli import main
from promptmill.pipelines.models import converting
from promptmill.pipelines.models.converting import convert
from promptmill.pipelines.work.errors import ModelError
from tests.pipelines.tiny_upscalers import network_of


def _tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shared = torch.randn(4, 6)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    return {
        "body.0.weight": torch.randn(3, 2, 3, 3),
        "half of another": shared[1:3],
        "turned": shared.t(),
        "every second": torch.arange(20.0)[3::2],
        "scalar": torch.tensor(7.0),
        "none": torch.zeros(0, 3),
        "mask": torch.tensor([True, False, True]),
        "parameter": torch.nn.Parameter(torch.randn(5)),
        **{str(kind).removeprefix("torch."): torch.arange(6).reshape(2, 3).to(kind) for kind in kinds},
    }


WRAPPED = {
    "plain": (lambda t: t, None),
    "ordered": (lambda t: OrderedDict(t), None),
    "RealESRGAN": (lambda t: {"params_ema": t}, "params_ema"),
    "BasicSR": (lambda t: {"params": {"old": torch.zeros(1)}, "params_ema": t}, "params_ema"),
    "SwinIR": (lambda t: {"params": OrderedDict(t)}, "params"),
    "Lightning": (lambda t: {"epoch": 3, "state_dict": t, "lr": [1e-3, {"a": None}]}, "state_dict"),
    "one key": (lambda t: {"generator": t}, "generator"),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_the_tensors_are_those_that_torch_and_spandrel_see(tmp_path, wrapped, zipped):
    wrap, key = WRAPPED[wrapped]
    file, to = tmp_path / "a.pth", tmp_path / "a.safetensors"
    torch.save(wrap(_tensors()), file, _use_new_zipfile_serialization=zipped)
    done = convert(file, to)
    theirs = spandrel.canonicalize_state_dict(torch.load(file, weights_only=True))
    mine = load_file(to)
    assert list(mine) and mine.keys() == theirs.keys() and (done.wrapper, done.tensors) == (key, len(theirs))
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype and torch.equal(mine[name], tensor.detach()), name
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in theirs.items()}, tmp_path / "b.safetensors")
    assert to.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "a.safetensors", "b.safetensors"]


def test_a_modules_state_with_a_counter_beside_it_is_converted_without_the_counter(tmp_path):
    network = network_of("ESRGAN")
    state = network.state_dict()  # an OrderedDict with an attribute
    state["step"] = 5
    torch.save({"params_ema": state}, tmp_path / "a.pth")
    done = convert(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert done.left_out == ("'step'",)
    loaded = spandrel.ModelLoader().load_from_file(tmp_path / "a.safetensors")
    assert loaded.architecture.name == "ESRGAN"


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"


class Runs:
    """Asks whoever unpickles it to call a function."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("function", [os.system, eval, torch.load, np.fromfile, OrderedDict.fromkeys], ids=lambda f: f.__qualname__)
def test_a_pickle_that_calls_anything_is_refused_and_nothing_is_run(tmp_path, zipped, function):
    ran = tmp_path / "ran"
    argument = f"open({str(ran)!r}, 'w')" if function is eval else f"touch {ran}"
    torch.save({"a": torch.ones(2), "b": Runs(function, argument)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"a\.pth: asks for '.*', which is code and no tensor; nothing of it was run$") as raised:
        convert(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def _zip(folder, content: bytes, data: dict[str, bytes] | None = None, how=zipfile.ZIP_STORED):
    file = folder / "a.pth"
    with zipfile.ZipFile(file, "w", how) as archive:
        archive.writestr("a/data.pkl", content)
        for name, value in (data or {}).items():
            archive.writestr(f"a/{name}", value)
    return file


def _pickled(tensor: bytes) -> bytes:
    """A table of one tensor whose arguments, after the storage, are given as opcodes."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    return b"\x80\x02}X\x01\x00\x00\x00ac" + b"torch._utils\n_rebuild_tensor_v2\n(" + storage + tensor + b"tRs."


FOUR = {"data/0": struct.pack("<4f", 1, 2, 3, 4)}


def test_the_forged_pickle_is_read_where_it_is_sound(tmp_path):
    file = _zip(tmp_path, _pickled(b"K\x00K\x04\x85K\x01\x85"), FOUR)
    convert(file, tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("tensor", "data"),
    [
        (b"K\x01K\x04\x85K\x01\x85", FOUR),  # ends behind its storage
        (b"K\x00K\x02\x85K\x05\x85", FOUR),  # strides over it
        (b"J\xff\xff\xff\xffK\x04\x85K\x01\x85", FOUR),  # begins before it
        (b"K\x00K\x04\x85J\xff\xff\xff\xff\x85", FOUR),  # goes backwards
        (b"K\x00J\x00\x00\x00\x7f\x85K\x00\x85", FOUR),  # one number, two thousand million times
        (b"K\x00K\x04\x85K\x01K\x01\x86", FOUR),  # more strides than sides
        (b"K\x00]K\x01\x85", FOUR),  # a list of sides
        (b"G\x00\x00\x00\x00\x00\x00\x00\x00K\x04\x85K\x01\x85", FOUR),  # an offset of 0.0
        (b"K\x00K\x04\x85K\x01\x85", {"data/0": b"short"}),
        (b"K\x00K\x04\x85K\x01\x85", {}),
    ],
)
def test_a_tensor_that_does_not_lie_in_its_storage_is_refused(tmp_path, tensor, data):
    file = _zip(tmp_path, _pickled(tensor), data)
    with pytest.raises(ModelError, match=r"does not fit its numbers|is cut off or damaged"):
        convert(file, tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_a_storage_that_is_said_twice_otherwise_is_refused(tmp_path):
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK%stQ"
    tensor = b"X\x01\x00\x00\x00%sctorch._utils\n_rebuild_tensor_v2\n(%sK\x00K%s\x85K\x01\x85tRs"
    sound = tensor % (b"a", storage % b"\x04", b"\x04") + tensor % (b"b", storage % b"\x04", b"\x02")
    file = _zip(tmp_path, b"\x80\x02}" + sound + b".", FOUR)
    assert convert(file, tmp_path / "a.safetensors").tensors == 2
    otherwise = tensor % (b"a", storage % b"\x09", b"\x09") + tensor % (b"b", storage % b"\x04", b"\x02")
    with pytest.raises(ModelError, match="does not fit its numbers"):
        convert(_zip(tmp_path, b"\x80\x02}" + otherwise + b".", FOUR), tmp_path / "b.safetensors")


def test_a_count_before_1_6_that_is_not_the_pickles_is_refused(tmp_path):
    file = tmp_path / "a.pth"
    torch.save({"a": torch.ones(5)}, file, _use_new_zipfile_serialization=False)
    content = file.read_bytes()
    assert content.endswith(struct.pack("<q5f", 5, *[1] * 5))
    file.write_bytes(content[:-28] + struct.pack("<q5f", 4, *[1] * 5))
    with pytest.raises(ModelError, match="is cut off or damaged"):
        convert(file, tmp_path / "a.safetensors")


def _deep(depth: int) -> bytes:
    """A key of a table that is a tuple of a tuple of …"""
    return b"\x80\x02})" + b"\x85" * depth + b"K\x00s."


def _wide(depth: int) -> bytes:
    """A key of a table that is a pair of one pair twice, and so on: its hash takes two to the depth steps."""
    return b"\x80\x02})" + b"2\x86" * depth + b"K\x00s."


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            b"\x80\x02}r\xff\xff\xff\x0f.",
            "asks for more memory than its size justifies",
        ),  # its 268,435,455th remembered value: 4 GiB
        (_deep(3_000_000), "asks for more memory than its size justifies, or is made to end whatever reads it"),
        (_wide(60), "takes more than 1 s to read"),
    ],
    ids=["memory", "depth", "time"],
)
def test_a_pickle_that_asks_for_memory_or_time_ends_in_one_line(tmp_path, monkeypatch, content, says):
    monkeypatch.setattr(converting, "SECONDS", 1)
    with pytest.raises(ModelError, match=says):
        convert(_zip(tmp_path, content), tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, zipped):
    torch.save(
        {"params": {"a": torch.randn(40), "b": torch.randn(3, 3)}}, tmp_path / "whole", _use_new_zipfile_serialization=zipped
    )
    whole, file = (tmp_path / "whole").read_bytes(), tmp_path / "a.pth"
    for length in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"a\.pth: (is|cannot be)") as raised:
            convert(file, tmp_path / "a.safetensors")
        assert "\n" not in str(raised.value) and not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: torch.save([torch.ones(1)], file), "holds a list, and a table of tensors is meant"),
        (lambda file: torch.save(torch.ones(1), file), "holds a tensor, and a table"),
        (lambda file: torch.save({"epoch": 3, "lr": 0.1}, file), "holds no tensors, but 'epoch', 'lr'"),
        (lambda file: torch.save({}, file), "holds no tensors, but nothing"),
        (lambda file: torch.save({3: torch.ones(1)}, file), "has tensors without a name"),
        (lambda file: torch.save({"a": torch.ones(1).expand(9, 9)}, file), "does not fit its numbers"),
        (lambda file: torch.save({"a": torch.ones(2, dtype=torch.complex64)}, file), "asks for 'torch.ComplexFloatStorage'"),
        (lambda file: torch.jit.script(torch.nn.ReLU()).save(file), "is a TorchScript program; save the state_dict"),
        (lambda file: file.write_bytes(pickle.dumps({"a": 1})), "is not a file of torch.save"),
        (lambda file: file.write_bytes(b"\x80\x02 no pickle"), "cannot be read as a file of torch.save"),
        (lambda file: _zip(file.parent, _pickled(b"K\x00K\x04\x85K\x01\x85"), FOUR, zipfile.ZIP_DEFLATED), "compresses nothing"),
        (lambda file: _zip(file.parent, b"", {"other/data.pkl": b""}), "none of torch.save, which has one data.pkl"),
        (lambda file: file.mkdir(), "is no regular file"),
        (lambda file: os.mkfifo(file), "is no regular file"),
        (lambda file: None, "No such file"),
        (lambda file: file.write_bytes(POINTER), "LFS"),
    ],
)  # fmt: skip
def test_whatever_else_it_is_is_said_in_one_line(tmp_path, make, says):
    make(tmp_path / "a.pth")
    with pytest.raises(ModelError, match=rf"a\.pth: .*{says}") as raised:
        convert(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert "\n" not in str(raised.value) and not (tmp_path / "a.safetensors").exists()


def test_the_command_says_what_it_wrote_and_overwrites_nothing(tmp_path):
    file = tmp_path / "net.pth"
    torch.save({"params_ema": {"a": torch.ones(500_000), "n": 3}}, file)
    done = CliRunner().invoke(main, ["convert", str(file)])
    line = f"{tmp_path}/net.safetensors: 1 tensor, 2.0 MB, from under 'params_ema'; left out, as no tensors: 'n'\n"
    assert (done.exit_code, done.output) == (0, line)
    for arguments, says in [
        ([str(file)], "net.safetensors: is there already; remove it, or name another place with --to"),
        ([str(file), "--to", str(tmp_path / "b.bin")], "b.bin: a name with .safetensors is meant"),
        ([str(file), "--to", str(tmp_path / "gone" / "b.safetensors")], "gone: no such folder"),
        ([str(tmp_path / "net.safetensors"), "--to", str(tmp_path / "b.safetensors")], "is a .safetensors file already"),
    ]:
        refused = CliRunner().invoke(main, ["convert", *arguments])
        assert refused.exit_code == 2 and says in refused.output and refused.output.count("\n") == 1
