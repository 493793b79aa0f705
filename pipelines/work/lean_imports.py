"""Leaves out what the libraries of models import and no worker uses, until something does use it.

diffusers imports torch's compiler for one decorator and every family's transformer for one of them, transformers imports scipy's
optimizers for losses of training, open_clip timm and torchvision's data sets: together more than all that a worker needs of them.
Inside `lean_imports` such a module is a stand-in. A stand-in becomes the module itself as soon as anything of it is used, so that
nothing computes otherwise.
"""

import gc
import importlib
import importlib.metadata
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
# By module, what others import by name, and do not use before they need it: functions, and classes for `isinstance`.
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "bitsandbytes": (),
    "boto3": (),
    "scipy.integrate": (),
    "scipy.optimize": ("linear_sum_assignment",),
    "scipy.stats": (),
    "timm": (),
    "timm.layers": ("RotAttentionPool2d", "AttentionPool2d", "Mlp", "to_2tuple"),
    "torch._dynamo": ("allow_in_graph", "assume_constant_result", "disable"),
    "torch._dynamo._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    "torch._dynamo.utils": ("is_compile_supported",),
    "torchao": (),
    "torchao.dtypes": ("NF4Tensor",),
    "torchao.dtypes.uintx.uintx_layout": ("UintxAQTTensorImpl", "UintxTensor"),
    "torchao.prototype.safetensors.safetensors_support": ("flatten_tensor_state_dict", "unflatten_tensor_state_dict"),
    "torchao.prototype.safetensors.safetensors_utils": ("is_metadata_torchao",),
    "torchao.quantization": ("FqnToConfig", "quantize_"),
    "torchao.utils": ("TorchAOBaseTensor",),
    "torchvision.datasets": (),
}
# Packages whose own module imports all that lies in them, for whoever takes anything from there by name.
IN_PIECES = ("diffusers.models.autoencoders", "diffusers.models.controlnets", "diffusers.models.transformers")

_lock, _depth, _collecting = threading.RLock(), 0, True
_to_allow: list[Any] = []  # classes that torch's compiler takes as they are, once there is one


class StandIn(ModuleType):
    """Replaces a module, which is imported when something of the module is asked for."""

    def __init__(self, name: str, names: tuple[str, ...]):
        super().__init__(name)
        self.__path__: list[str] = []  # there may be modules below it: `_Below` finds them
        self.__spec__ = ModuleSpec(name, None, is_package=True)  # whoever asks whether there is such a module is told so
        self.__dict__.update({one: _later(name, one) for one in names})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of every module, by the import system and by whoever looks at all of them
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


class InPieces(ModuleType):
    """Replaces a package whose modules are imported without the package's own code, which runs once a name is missing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        with _lock:
            if type(self) is InPieces:
                self.__class__ = ModuleType  # type: ignore[assignment]
                assert self.__spec__ is not None and self.__spec__.loader is not None
                self.__spec__.loader.exec_module(self)
        return getattr(self, name)


class _Piecewise(Loader):
    """Loads a package without running its code yet."""

    def __init__(self, loader: Loader):
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return InPieces(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader


class _Below(MetaPathFinder, Loader):
    """Finds a module below a stand-in: imports what the stand-in stands for, and hands out the module that is below that."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name in IN_PIECES and (found := PathFinder.find_spec(name, path)) is not None and found.loader is not None:
            found.loader = _Piecewise(found.loader)
            return found
        parent = name.rpartition(".")[0]
        if not isinstance(sys.modules.get(parent), StandIn):
            return None
        _real(parent)
        return ModuleSpec(name, self, loader_state=importlib.import_module(name))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._spec = spec.loader_state.__spec__
        return spec.loader_state

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # executed already


@contextmanager
def lean_imports() -> Iterator[None]:
    """Let imports inside pass over what `LEFT_OUT` names, where it is not imported already."""
    global _depth, _collecting
    with _lock:
        _depth += 1
        if _depth == 1:
            _put_in()
            # Imports make millions of objects that stay: looking through all of them for garbage again and again takes long.
            _collecting = gc.isenabled()
            gc.disable()
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _take_out()
                if _collecting:
                    gc.enable()


def for_compiling() -> None:
    """Import torch's compiler, and tell it what diffusers would have told it."""
    allow = _real(COMPILER).allow_in_graph
    while _to_allow:
        allow(_to_allow.pop())


def _put_in() -> None:
    for name, names in LEFT_OUT.items():
        if name not in sys.modules and _installed(name.partition(".")[0]):
            sys.modules[name] = StandIn(name, names)
    importlib.metadata.packages_distributions = _distributions
    sys.meta_path.insert(0, _below)


@cache
def _installed(package: str) -> bool:
    return PathFinder.find_spec(package) is not None


def _take_out() -> None:
    for name in LEFT_OUT:
        if isinstance(sys.modules.get(name), StandIn):
            del sys.modules[name]
    importlib.metadata.packages_distributions = _packages_distributions
    sys.meta_path.remove(_below)


def _real(name: str) -> Any:
    with _lock:
        for standing in LEFT_OUT:
            related = f"{name}.".startswith(f"{standing}.") or standing.startswith(f"{name}.")
            if related and isinstance(sys.modules.get(standing), StandIn):
                del sys.modules[standing]
        return importlib.import_module(name)


def _loaded(name: str) -> Any:
    """Return a module if it is imported, and is no stand-in."""
    module = sys.modules.get(name)
    return None if isinstance(module, StandIn) else module


class _Kind(type):
    """Makes classes that stand in for those of a module. Nothing is an instance of one before that module is imported."""

    module: str

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        return getattr(_real(cls.module), cls.__name__)(*arguments, **named)

    def __instancecheck__(cls, instance: Any) -> bool:
        module = _loaded(cls.module)
        return module is not None and isinstance(instance, getattr(module, cls.__name__))

    def __subclasscheck__(cls, kind: type) -> bool:
        module = _loaded(cls.module)
        return module is not None and issubclass(kind, getattr(module, cls.__name__))

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(getattr(_real(cls.module), cls.__name__), name)


def _later(module: str, name: str) -> Any:
    """Return the stand-in of a function or, by its capital letter, a class of a module."""
    if module == COMPILER:
        return {"allow_in_graph": _allow_in_graph, "assume_constant_result": _assume_constant_result, "disable": _disable}[name]
    if name.lstrip("_")[0].isupper():
        return _Kind(name, (), {"module": module})
    return lambda *arguments, **named: getattr(_real(module), name)(*arguments, **named)


def _allow_in_graph(kind: Any) -> Any:
    """Mark a class for torch's compiler, now or once it is there."""
    if (compiler := _loaded(COMPILER)) is not None:
        return compiler.allow_in_graph(kind)
    _to_allow.append(kind)
    return kind


def _assume_constant_result(function: Any) -> Any:
    """Mark a function as torch's compiler does, which looks for the mark."""
    function._dynamo_marked_constant = True
    return function


def _disable(function: Any = None, *arguments: Any, **options: Any) -> Any:
    """Return a function that torch's compiler leaves alone, once it is there."""
    if function is None:
        return lambda function: _disable(function, *arguments, **options)
    if isinstance(function, type) or _loaded(COMPILER) is not None:
        return _real(COMPILER).disable(function, *arguments, **options)

    @wraps(function)
    def left_alone(*given: Any, **named: Any) -> Any:
        compiler = _loaded(COMPILER)
        return (function if compiler is None else compiler.disable(function, *arguments, **options))(*given, **named)

    return left_alone


_below = _Below()


class _Distributions(Mapping[str, list[str]]):
    """Holds the map from packages to the installed distributions, once they are asked for: that reads the list of files of each."""

    def __init__(self) -> None:
        self._found: Mapping[str, list[str]] | None = None

    @property
    def found(self) -> Mapping[str, list[str]]:
        if self._found is None:
            self._found = _packages_distributions()
        return self._found

    def __getitem__(self, name: str) -> list[str]:
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)


_packages_distributions = importlib.metadata.packages_distributions
_all = _Distributions()


def _distributions() -> Mapping[str, list[str]]:
    return _all
