"""A name in the config stands for something of ours, or, as an import path, for something of the user's."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar

from habitat_vlnr1.errors import VLNR1Error

T = TypeVar("T")


def find(kind: str, name: str, known: Mapping[str, T]) -> T | Any:
    """`known[name]`, or what the import path `package.module.thing` names.

    Args:
        kind: what is looked for, for the error message.

    Raises:
        ValueError: there is neither; the line names what there is.
    """
    if name in known:
        return known[name]
    module, _, thing = name.rpartition(".")
    reason = ""
    if module and all(part.isidentifier() for part in name.split(".")):
        try:
            return getattr(import_module(module), thing)
        except (ImportError, AttributeError) as error:
            reason = f" ({error})"
    raise VLNR1Error(f"unknown {kind} {name!r}{reason}; choose one of {', '.join(known)}, or an import path")
