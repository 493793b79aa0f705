"""Makes tiny networks of the layouts in which faces are found and restored: GFPGAN's, by spandrel's class, and YuNet's, in ONNX."""

from pathlib import Path

import numpy as np
import torch
from spandrel.architectures.GFPGAN import GFPGAN

STRIDES = (8, 16, 32)
CELL = 32  # pixels: a "face" of the tiny YuNet fills such a cell of its input with red
# Where the five points of such a face lie, in cells from its top left.
CELL_POINTS = np.array([[0.25, 0.3], [0.75, 0.3], [0.5, 0.55], [0.3, 0.8], [0.7, 0.8]])


def gfpgan(side: int) -> torch.nn.Module:
    """Return a GFPGAN of random weights for crops of a side; its stored noise and modulations are made to count."""
    torch.manual_seed(0)
    network = GFPGAN(out_size=side, num_style_feat=8, channel_multiplier=1, num_mlp=1, narrow=1 / 32)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(".weight") and "modulated" not in name and parameter.shape == (1,):
                parameter.fill_(0.5)  # how much noise counts, 0 at first
    return network.eval().requires_grad_(False)


def yunet(file: Path) -> Path:
    """Write an ONNX file with YuNet's outputs that finds each cell of its input which is red all over."""
    nodes, tensors, outputs = [], [], []
    for stride in STRIDES:
        # Of BGR levels, their means over a cell: red counts for a face, all else against it.
        red = np.zeros((1, 3, stride, stride), np.float32)
        red[0] = np.array([-1, -1, 1], np.float32)[:, None, None] / stride**2
        none = np.zeros((1, 3, stride, stride), np.float32)
        score = (red, [-200.0]) if stride == CELL else (none, [-50.0])
        points = (np.zeros((10, 3, stride, stride), np.float32), CELL_POINTS.ravel())
        # The centre of a box from the cell's corner, in cells, and the logarithms of its sides in cells.
        box = (np.zeros((4, 3, stride, stride), np.float32), [0.5, 0.5, 0.0, 0.0])
        for name, (weight, bias) in (("cls", score), ("obj", score), ("bbox", box), ("kps", points)):
            out = f"{name}_{stride}"
            tensors += [_tensor(f"{out}_w", weight), _tensor(f"{out}_b", np.asarray(bias, np.float32))]
            tensors.append(_tensor(f"{out}_s", np.array([1, -1, weight.shape[0]], np.int64)))
            side = _ints("kernel_shape", [stride, stride]) + _ints("strides", [stride, stride])
            nodes.append(_node("Conv", ["input", f"{out}_w", f"{out}_b"], f"{out}_c", side))
            nodes.append(_node("Transpose", [f"{out}_c"], f"{out}_t", _ints("perm", [0, 2, 3, 1])))
            last = f"{out}_r" if name in ("cls", "obj") else out
            nodes.append(_node("Reshape", [f"{out}_t", f"{out}_s"], last))
            if last != out:
                nodes.append(_node("Sigmoid", [last], out))
            outputs.append(_field(12, _value(out, [1, (640 // stride) ** 2, weight.shape[0]])))
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, b"tiny") + b"".join(_field(5, one) for one in tensors)
    graph += _field(11, _value("input", [1, 3, 640, 640])) + b"".join(outputs)
    file.write_bytes(_number(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _number(2, 13)))
    return file


# Protocol buffers, as far as ONNX needs them here: onnx.proto has the numbers of the fields.
def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _ints(name: str, values: list[int]) -> bytes:
    return _field(5, _field(1, name.encode()) + b"".join(_number(8, value) for value in values) + _number(20, 7))


def _node(kind: str, inputs: list[str], output: str, attributes: bytes = b"") -> bytes:
    names = b"".join(_field(1, name.encode()) for name in inputs) + _field(2, output.encode())
    return names + _field(3, f"n_{output}".encode()) + _field(4, kind.encode()) + attributes


def _tensor(name: str, values: np.ndarray) -> bytes:
    kind = 7 if values.dtype == np.int64 else 1
    dims = b"".join(_number(1, side) for side in values.shape)
    return dims + _number(2, kind) + _field(8, name.encode()) + _field(9, values.tobytes())


def _value(name: str, shape: list[int]) -> bytes:
    dims = b"".join(_field(1, _number(1, side)) for side in shape)
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, 1) + _field(2, dims)))
