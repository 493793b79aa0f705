"""Encodes texts once: text encoders and language models are joined as other modules are, and their answers are kept by tokens."""

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import torch

from promptmill.pipelines.rendering.batching import Joined, alike
from promptmill.pipelines.rendering.modules import rows_first
from promptmill.pipelines.rendering.rows import count_of, taken, together

KEPT = 256 * 2**20  # bytes of embeddings on the device: about 400 texts of SDXL in fp32, 64 of Flux in bf16
HIDDEN = "hidden_states"
# What language models are told of the pictures that they read: patches of all pictures one after the other, (patches, values), and
# the patches of each picture in time, height and width, (pictures, 3).
PATCHES, GRIDS = "pixel_values", "image_grid_thw"


class TextEncoder:
    """Joins the calls of one text encoder, and keeps what it answered for each text, by the text's tokens.

    Attributes:
        joined: The calls for texts that are not kept.
        adapted: What the model is adapted with now; LoRAs can adapt text encoders too, so answers are kept apart by this value.

    Args:
        module: A text encoder, whose `forward` this object's `hold` is to replace.
        batch: Texts that go through the encoder at once, always.
        length_first: Whether the encoder answers (length, rows, width).
    """

    def __init__(self, module: torch.nn.Module, batch: int, length_first: bool = False):
        self.joined = Joined.of(module.forward, batch, once=True)
        self.joined.run = rows_first(module) if length_first else _of_language(module.forward)
        self._length_first = length_first
        self.adapted: Hashable = ()
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._bytes = 0
        self._used: set[int] = set()  # of the layers' outputs, those that pipelines have looked at

    def hold(self, *args: Any, **kwargs: Any) -> Any:
        """Take a call in place of the encoder: stop the calling greenlet until texts that are not kept are encoded."""
        arguments = _by_rows(_turned(dict(zip(self.joined.names, args, strict=False)) | kwargs))
        rows = count_of(arguments.values())
        if next(value for value in arguments.values() if isinstance(value, torch.Tensor)).is_floating_point():
            return self.joined.hold(**arguments)  # pictures or embeddings, which are no tokens
        keys = self._keys(arguments, rows)
        have = {key: self._kept[key] for key in keys if key in self._kept and self._is_whole(self._kept[key])}
        places = {key: place for place, key in enumerate(keys) if key not in have}
        if places:
            answer = self.joined.hold(**_selected(arguments, [*places.values()], rows))
            for place, key in enumerate(places):
                have[key] = taken(answer, slice(place, place + 1), len(places))
        for key in dict.fromkeys(keys):
            self._keep(key, have[key])
        # What is kept lacks the layers that nobody looks at; then all lack them.
        whole = len(places) == len(set(keys))
        answers = [have[key] if whole else self._without_unused(have[key]) for key in keys]
        # Some pipelines write into what they are given, which would be what is kept.
        return self._watched(together(answers) if answers[1:] else _copied(answers[0]))

    def _keys(self, arguments: Mapping[str, Any], rows: int) -> list[Hashable]:
        """Return for each row what its answer depends on: its tokens, and what the call says besides."""
        tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
        same = (self.adapted, alike(arguments, rows))
        own = [value.cpu() for value in tensors if value.ndim and len(value) == rows]
        shared = tuple(_digest(value.cpu()) for value in tensors if not (value.ndim and len(value) == rows))
        return [(same, shared, tuple(_digest(value[row]) for value in own)) for row in range(rows)]

    def _keep(self, key: Hashable, value: Any) -> None:
        self._bytes -= _bytes(self._kept.pop(key, None))
        self._kept[key] = own = self._without_unused(value)
        self._bytes += _bytes(own)
        while self._bytes > KEPT and len(self._kept) > 1:
            self._bytes -= _bytes(self._kept.popitem(last=False)[1])

    def _without_unused(self, value: Any) -> Any:
        """Return an answer without the outputs of layers that no pipeline looks at, which are most of what it holds."""
        layers = _layers(value)
        if layers is None or not self._used:
            return value
        return type(value)(**{**value, HIDDEN: tuple(one if at in self._used else None for at, one in enumerate(layers))})

    def _is_whole(self, value: Any) -> bool:
        layers = _layers(value)
        return layers is None or all(layers[at] is not None for at in self._used)

    def _watched(self, answer: Any) -> Any:
        layers = _layers(answer)
        return answer if layers is None else type(answer)(**{**answer, HIDDEN: _Layers(layers, self._used, self._length_first)})


def _turned(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments with the rows of its positions first, or with the dimensions first again.

    Qwen's language models take positions in three dimensions as (3, rows, length).
    """
    positions = arguments.get("position_ids")
    if not isinstance(positions, torch.Tensor) or positions.ndim < 3:
        return arguments
    return arguments | {"position_ids": positions.transpose(0, 1)}


def _by_rows(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments with the patches of the pictures that each row reads as a row, (rows, patches, values).

    The pictures of each row have the same sizes, which stand beside them as numbers: rows with other sizes share no batch.
    """
    if arguments.get(PATCHES) is None or not isinstance(grids := arguments.get(GRIDS), torch.Tensor):
        return {name: value for name, value in arguments.items() if name not in (PATCHES, GRIDS) or value is not None}
    rows = count_of(arguments.values())
    first, *others = grids.reshape(rows, -1, 3).tolist()
    if any(one != first for one in others):
        raise ValueError("rows of one call read pictures of several sizes")
    patches = arguments[PATCHES].reshape(rows, -1, *arguments[PATCHES].shape[1:])
    return arguments | {PATCHES: patches, GRIDS: tuple(map(tuple, first))}


def _one_after_the_other(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `_by_rows` as the model takes them."""
    if not isinstance(grids := arguments.get(GRIDS), tuple):
        return arguments
    patches = arguments[PATCHES]
    return arguments | {
        PATCHES: patches.flatten(0, 1),
        GRIDS: torch.tensor([*grids] * len(patches), device=patches.device),
    }


def _digest(value: torch.Tensor) -> bytes:
    whole = value.contiguous().view(torch.uint8).numpy() if value.ndim else value.numpy()
    return whole.tobytes() if whole.nbytes <= 2**14 else hashlib.sha256(whole.tobytes()).digest()


def _of_language(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return an encoder's call that takes positions by rows, and of a language model no more logits than it has to make.

    Nobody looks at these, and those of one text of 512 tokens can have 300 MB.
    """
    fewest = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(forward).parameters else {}
    return lambda **arguments: forward(**fewest, **_one_after_the_other(_turned(arguments)))


class _Layers(tuple):
    """Holds the outputs of an encoder's layers, notes which of them are looked at, and shows these as the encoder has them."""

    _used: set[int]
    _length_first: bool

    def __new__(cls, layers: Sequence[Any], used: set[int], length_first: bool = False) -> "_Layers":
        made = super().__new__(cls, layers)
        made._used, made._length_first = used, length_first
        return made

    def __getitem__(self, at: SupportsIndex | slice) -> Any:
        some = range(len(self))[at]
        self._used.update(some if isinstance(some, range) else [some])
        layer: Any = super().__getitem__(at)
        return layer.transpose(0, 1) if self._length_first else layer

    def __iter__(self) -> Iterator[Any]:
        self._used.update(range(len(self)))
        return super().__iter__()


def _copied(value: Any) -> Any:
    """Return an answer with tensors of its own."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return type(value)(**{name: _copied(one) for name, one in value.items()})
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


def _selected(arguments: Mapping[str, Any], places: list[int], rows: int) -> dict[str, Any]:
    """Return the arguments of a call for some of its rows."""
    return {
        name: value[places] if isinstance(value, torch.Tensor) and value.ndim and len(value) == rows else value
        for name, value in arguments.items()
    }


def _layers(value: Any) -> Sequence[Any] | None:
    found = value.get(HIDDEN) if isinstance(value, dict) else None
    return found if isinstance(found, tuple) and found else None


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0
