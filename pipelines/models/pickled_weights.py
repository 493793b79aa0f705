"""Reads the tensors of a file of `torch.save` without torch, and without running anything that the file names.

Such a file is a pickle, and a pickle is a program: a pickle names functions, and whoever unpickles it calls them. Here the few
names that tensors need stand for functions of this module, which note where a tensor lies in the file. Any other name ends the
reading. Two layouts are read: the zip of torch since 1.6, and the pickles one after the other of before. Both have raw numbers
behind the pickles.

`converting` runs this in a process that is limited in memory and time, since a pickle of a few bytes can ask for a lot of both.
"""

import json
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C  # torch's, of the layout before 1.6
MOST_TENSORS, MOST_DIMENSIONS, LONGEST_NAME = 100_000, 16, 512
MOST_PICKLE = 64 * 1024**2  # bytes of the pickle itself, which for 100,000 tensors has some 20 MB
MOST_GROWTH = 4  # times the file: tensors may share their numbers in the file, and have numbers of their own in safetensors
# Under which of them a training framework keeps the weights, the first of these first; spandrel looks for the same names.
WRAPPERS = ("model_state_dict", "state_dict", "params_ema", "params-ema", "params", "model", "net")


class PickleError(ValueError):
    """Reports a file that is not read; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class StorageKind:
    """Describes the numbers of a storage: their name in safetensors, and bytes each."""

    name: str
    size: int


# In the order in which safetensors sorts tensors of a file, from the last to the first.
KINDS = {
    "BoolStorage": StorageKind("BOOL", 1),
    "ByteStorage": StorageKind("U8", 1),
    "CharStorage": StorageKind("I8", 1),
    "ShortStorage": StorageKind("I16", 2),
    "HalfStorage": StorageKind("F16", 2),
    "BFloat16Storage": StorageKind("BF16", 2),
    "IntStorage": StorageKind("I32", 4),
    "FloatStorage": StorageKind("F32", 4),
    "DoubleStorage": StorageKind("F64", 8),
    "LongStorage": StorageKind("I64", 8),
}


@dataclass(frozen=True)
class Storage:
    """Holds where a run of numbers lies: the key by which the file names it, the kind, and how many numbers there are."""

    key: str
    kind: StorageKind
    count: int


@dataclass(frozen=True)
class Tensor:
    """Holds a tensor as numbers of a storage: offset and strides count numbers, as torch's do."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class PickledWeights:
    """Holds the tensors of a file.

    Attributes:
        tensors: By name.
        wrapper: The key under which the file keeps them; None where they stand at the top.
        left_out: Names beside them that are no tensors, such as a counter.
        places: Of each storage the first byte in the file.
    """

    tensors: Mapping[str, Tensor]
    wrapper: str | None
    left_out: tuple[str, ...]
    places: Mapping[str, int]


def read_weights(file: BinaryIO, size: int) -> PickledWeights:
    """Read the names, shapes and places of the tensors of a file; the numbers themselves are not read yet.

    Args:
        file: The file, at its beginning.
        size: Of the file, in bytes.

    Raises:
        PickleError: The file is not of `torch.save`, is not whole, names anything but tensors, or has none.
    """
    try:
        content, places = _of_zip(file) if zipfile.is_zipfile(file) else _of_pickles(file, size)
    except PickleError:
        raise
    except (zipfile.BadZipFile, EOFError, struct.error):
        raise PickleError("is cut off or damaged") from None
    except MemoryError:
        raise PickleError("asks for more memory than its size justifies") from None
    except Exception as error:  # a pickle can fail in any way
        reason = " ".join(str(error).split())[:120]
        raise PickleError(f"cannot be read as a file of torch.save: {reason or type(error).__name__}") from None
    return _weights(content, places, size)


def write_safetensors(file: BinaryIO, weights: PickledWeights, to: BinaryIO) -> int:
    """Write the tensors as safetensors' own `save_file` writes them, byte for byte; return the bytes of their numbers."""
    order = [*KINDS.values()]
    names = sorted(weights.tensors, key=lambda name: (-order.index(weights.tensors[name].storage.kind), name))
    header, end = {}, 0
    for name in names:
        tensor = weights.tensors[name]
        begin, end = end, end + tensor.count * tensor.storage.kind.size
        header[name] = {"dtype": tensor.storage.kind.name, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    to.write(struct.pack("<Q", len(text)) + text)
    kept: tuple[str, bytes] = "", b""
    for name in names:
        tensor = weights.tensors[name]
        kind, key = tensor.storage.kind, tensor.storage.key
        if kept[0] != key:
            file.seek(weights.places[key])
            kept = key, file.read(tensor.storage.count * kind.size)
        strides = [stride * kind.size for stride in tensor.strides]
        to.write(np.ascontiguousarray(np.ndarray(tensor.shape, f"u{kind.size}", kept[1], tensor.offset * kind.size, strides)).data)
    return end


def _of_zip(file: BinaryIO) -> tuple[Any, dict[str, int]]:
    """Return the content of a file of torch since 1.6, and where its storages begin."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len(entries) > 2 * MOST_TENSORS:
            raise PickleError(f"has {len(entries):,} entries")
        if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
            raise PickleError("is a TorchScript program; save the state_dict of its module instead")
        pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or len(set(names)) != len(names):
            raise PickleError("is a zip, but none of torch.save, which has one data.pkl")
        if pickles[0].file_size > MOST_PICKLE or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise PickleError("is a zip, but none of torch.save, which compresses nothing and has a small data.pkl")
        top = pickles[0].filename.removesuffix("data.pkl")
        if f"{top}byteorder" in names and archive.read(f"{top}byteorder") != b"little":
            raise PickleError("has numbers of another byte order than this machine's")
        with archive.open(pickles[0]) as stream:
            unpickler = _Unpickler(stream)
            content = unpickler.load()
        sizes, places = {entry.filename: entry.file_size for entry in entries}, {}
        for key, storage in unpickler.storages.items():
            name = f"{top}data/{key}"
            if sizes.get(name, -1) < storage.count * storage.kind.size:
                raise PickleError("is cut off or damaged")
            # The place is behind the entry's own header, whose fields may be longer than those of the index.
            begin = archive.getinfo(name).header_offset
            file.seek(begin)
            lengths = struct.unpack("<26xHH", file.read(30))
            places[key] = begin + 30 + sum(lengths)
    return content, places


def _of_pickles(file: BinaryIO, size: int) -> tuple[Any, dict[str, int]]:
    """Return the content of a file of torch before 1.6, and where its storages begin."""
    file.seek(0)
    first = _Unpickler(file).load()
    if first != MAGIC:
        raise PickleError("is not a file of torch.save")
    _, system = _Unpickler(file).load(), _Unpickler(file).load()  # the version of the layout, and the machine
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise PickleError("has numbers of another byte order than this machine's")
    unpickler = _Unpickler(file)
    content = unpickler.load()
    keys, places = _Unpickler(file).load(), {}
    if not isinstance(keys, list) or any(not isinstance(key, str) for key in keys) or {*keys} != {*unpickler.storages}:
        raise PickleError("is cut off or damaged")
    for key in keys:
        storage = unpickler.storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        places[key] = file.tell()
        if count != storage.count or file.seek(places[key] + count * storage.kind.size) > size:
            raise PickleError("is cut off or damaged")
    return content, places


class _Unpickler(pickle.Unpickler):
    """Reads plain values and tensors from a pickle, and calls nothing but the functions of this module."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in KINDS:
            return KINDS[name]
        try:
            return _NAMES[module, name]
        except KeyError:
            known = f"{module}.{name}"[:120]
            raise PickleError(f"asks for {known!r}, which is code and no tensor; nothing of it was run") from None

    def persistent_load(self, pid: Any) -> Storage:
        """Return a storage by what the file says of it, and note the storage."""
        _check(isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and pid[5:] in ((), (None,)))
        kind, key, count = pid[1], pid[2], pid[4]
        _check(isinstance(kind, StorageKind) and isinstance(key, str) and _is_whole(count))
        storage = Storage(key, kind, count)
        _check(self.storages.setdefault(key, storage) == storage and len(self.storages) <= MOST_TENSORS)
        return storage


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """Return a tensor whose numbers all lie in its storage, each of them once."""
    whole = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= MOST_DIMENSIONS
    _check(isinstance(storage, Storage) and whole and all(map(_is_whole, (offset, *shape, *strides))))
    tensor = Tensor(storage, offset, shape, strides)
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    _check(not tensor.count or (last < storage.count and tensor.count <= storage.count))
    return tensor


def _parameter(tensor: Any, *_: Any) -> Tensor:
    _check(isinstance(tensor, Tensor))
    return tensor


_NAMES: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _check(holds: bool) -> None:
    if not holds:
        raise PickleError("holds a tensor that does not fit its numbers, or that this version of torch.save does not write")


def _weights(content: Any, places: Mapping[str, int], size: int) -> PickledWeights:
    """Return the tensors of what was unpickled, out of whatever a training framework has put around them."""
    wrapper = None
    if isinstance(content, dict):
        # As dict's own methods see it: an unpickled OrderedDict may have attributes of any name.
        held = dict(dict.items(content))
        wrapper = next((name for name in WRAPPERS if isinstance(held.get(name), dict)), None)
        if wrapper is None and len(held) == 1 and isinstance(next(iter(held.values())), dict):
            wrapper = next(iter(held))
        content = held if wrapper is None else dict(dict.items(held[wrapper]))
    if not isinstance(content, dict):
        raise PickleError(f"holds a {type(content).__name__.lower()}, and a table of tensors is meant, such as a state_dict")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        some = ", ".join(_shown(content)) or "nothing"
        raise PickleError(f"holds no tensors, but {some}")
    if len(tensors) > MOST_TENSORS or any(not _is_name(name) for name in tensors):
        raise PickleError("has tensors without a name, or with a name that safetensors cannot have")
    if sum(tensor.count * tensor.storage.kind.size for tensor in tensors.values()) > MOST_GROWTH * size:
        raise PickleError(f"holds tensors of more than {MOST_GROWTH} times its own size")
    left_out = tuple(_shown({name: value for name, value in content.items() if name not in tensors}))
    return PickledWeights(tensors, None if wrapper is None else str(wrapper)[:80], left_out, places)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name != "__metadata__" and name.isprintable()


def _shown(content: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the first names of a table, cut to what a line can have."""
    for name, _ in zip(content, range(5), strict=False):
        yield repr(name)[:40] if isinstance(name, str) else type(name).__name__
