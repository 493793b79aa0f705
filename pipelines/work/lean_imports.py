"""Leaves out what the libraries of models import and no worker uses, until something does use it.

diffusers imports torch's compiler for one decorator, transformers imports scipy's optimizers for losses of training, torchvision
its data sets: together as much as all that a worker needs of them. Inside `lean_imports` such a module is a stand-in. A stand-in
becomes the module itself as soon as anything of it is used, so that nothing computes otherwise.
"""

import importlib
import importlib.metadata
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

# By module, the functions that others import by name, and do not call before they need them.
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "torch._dynamo": ("allow_in_graph",),
    "scipy.optimize": ("linear_sum_assignment",),
    "scipy.stats": (),
    "torchvision.datasets": (),
}

_lock, _depth = threading.RLock(), 0
_to_allow: list[Any] = []  # classes that torch's compiler takes as they are, once there is one


class StandIn(ModuleType):
    """A module that is imported when something of it is asked for."""

    def __init__(self, name: str, functions: tuple[str, ...]):
        super().__init__(name)
        self.__dict__.update({function: _later(name, function) for function in functions})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of every module, by the import system and by whoever looks at all of them
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


@contextmanager
def lean_imports() -> Iterator[None]:
    """Have imports inside pass over what `LEFT_OUT` names, where it is not imported already."""
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            _put_in()
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _take_out()


def for_compiling() -> None:
    """Import torch's compiler, and tell it what diffusers would have told it."""
    allow = _real("torch._dynamo").allow_in_graph
    while _to_allow:
        allow(_to_allow.pop())


def _put_in() -> None:
    for name, functions in LEFT_OUT.items():
        if name not in sys.modules:
            sys.modules[name] = StandIn(name, functions)
    importlib.metadata.packages_distributions = _distributions


def _take_out() -> None:
    for name in LEFT_OUT:
        if isinstance(sys.modules.get(name), StandIn):
            del sys.modules[name]
    importlib.metadata.packages_distributions = _packages_distributions


def _real(name: str) -> Any:
    with _lock:
        if isinstance(sys.modules.get(name), StandIn):
            del sys.modules[name]
        return importlib.import_module(name)


def _later(module: str, function: str) -> Callable[..., Any]:
    if function == "allow_in_graph":
        return _allow_in_graph
    return lambda *arguments, **named: getattr(_real(module), function)(*arguments, **named)


def _allow_in_graph(kind: Any) -> Any:
    """Mark a class for torch's compiler, now or once it is there."""
    compiler = sys.modules.get("torch._dynamo")
    if compiler is None or isinstance(compiler, StandIn):
        _to_allow.append(kind)
        return kind
    return compiler.allow_in_graph(kind)


class _Distributions(Mapping[str, list[str]]):
    """The installed distributions by package, found out when they are asked for: that reads the list of files of each."""

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
_installed = _Distributions()


def _distributions() -> Mapping[str, list[str]]:
    return _installed
