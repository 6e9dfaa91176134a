"""Placeholders for what the stand-in does not do: importable, usable in annotations, and clear on use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


class NeedsRealHabitatSim(AttributeError, NotImplementedError):
    """Raised where something outside navigation is used. An AttributeError too, so that `hasattr` stays usable."""


def needs_real(name: str) -> NeedsRealHabitatSim:
    """The one line that says what is missing and what to do."""
    return NeedsRealHabitatSim(
        f"{name} is not part of the embedded simulator, which covers navigation only: "
        "install the real habitat-sim (conda install habitat-sim -c conda-forge -c aihabitat)"
    )


class _PartialType(type):
    """Names the missing static methods of a class."""

    def __getattr__(cls, name: str) -> Any:
        raise _missing(cls, name)


class Partial(metaclass=_PartialType):
    """Base of classes with a part of what habitat-sim's or Magnum's have; the rest is named when it is asked for."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise _missing(type(self), name)


def _missing(cls: type, name: str) -> AttributeError:
    if name.startswith("_"):  # numpy, copy, typing and inspect probe for such names
        return AttributeError(f"{cls.__qualname__!r} object has no attribute {name!r}")
    return needs_real(f"{cls.__module__}.{cls.__qualname__}.{name}")


class PlaceholderType(type):
    """A class that may be named and subclassed, and raises when called or asked for an attribute."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise needs_real(f"{cls.__module__}.{cls.__qualname__}")

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):  # typing, attrs and inspect probe for such names
            raise AttributeError(name)
        raise needs_real(f"{cls.__module__}.{cls.__qualname__}.{name}")


def placeholder(module: str, name: str) -> type:
    """A class `module.name` that raises `NeedsRealHabitatSim` on use."""
    return PlaceholderType(name, (), {"__module__": module})


def add_placeholders(namespace: dict[str, Any], names: str) -> None:
    """Put a placeholder for every name in the whitespace-separated `names` into a module's namespace."""
    module = namespace["__name__"]
    for name in names.split():
        namespace[name] = placeholder(module, name)


def missing_attribute(module: str) -> Callable[[str], Any]:
    """A module-level `__getattr__` that says which name of `module` is missing.

    The module is made to look like a package, so that `from module import name` asks the import finder for what it
    lacks, and it can say so too: Python hides what `__getattr__` says there.
    """
    vars(sys.modules[module]).setdefault("__path__", [])

    def __getattr__(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        raise needs_real(f"{module}.{name}")

    return __getattr__
