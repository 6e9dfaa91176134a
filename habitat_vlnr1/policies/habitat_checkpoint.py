"""Habitat-Baselines' `.pth` checkpoints, read without running what is in them.

Its trainers pickle the whole config beside the weights, which `torch.load` refuses since PyTorch 2.6. The classes that
such a config is made of are let in here, and nothing else.

In a config, so that Habitat's own trainers can load what they have saved:

    habitat_baselines:
      on_save_ckpt_callback:
        _target_: habitat_vlnr1.policies.habitat_checkpoint.make_plain
"""

from __future__ import annotations

import dataclasses
import operator
import os
import pickle
import re
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.errors import CheckpointError, MissingFileError, VLNR1Error
from habitat_vlnr1.files import full_disk_is_said
from habitat_vlnr1.weights import not_finite

_CONFIG_PACKAGES = ("omegaconf", "habitat", "habitat_baselines", "habitat_vlnr1")


def _no_cache(factory: Any) -> dict[str, Any]:
    """Stands for the defaultdict of what OmegaConf has resolved: `torch.load` fills plain dicts only."""
    return {}


_PLAIN = (
    {f"builtins.{kind.__name__}": kind for kind in (bool, bytes, dict, float, int, list, str, tuple)}
    | {f"typing.{name}": getattr(typing, name) for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")}
    | {"builtins.Ellipsis": ..., "_operator.getitem": operator.getitem}  # these make Tuple[float, ...]
    | {"collections.defaultdict": _no_cache}
)


def read_pth(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Everything in a checkpoint, on the CPU; `config`, if there is one, as plain dicts and lists.

    Raises:
        FileNotFoundError, ValueError: no such file, or one that holds other objects than weights and a config.
        CheckpointError: weights that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such checkpoint")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_config_class(name), name) for name in names]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise VLNR1Error("it holds no state_dict")
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        # PyTorch's message is a page with the cause in one of its lines.
        found = re.search(r"WeightsUnpickler error: *(.+)", str(error))
        reason = found[1] if found else (str(error) or type(error).__name__).splitlines()[0]
        raise VLNR1Error(f"{path}: not a Habitat-Baselines checkpoint that can be read safely: {reason}") from None
    name = not_finite((name, tensor) for name, tensor in checkpoint["state_dict"].items() if torch.is_tensor(tensor))
    if name is not None:  # such a policy would stop at once, wherever it stands
        raise CheckpointError(f"{path}: tensor {name} has NaN or infinite values: take or train another checkpoint")
    if isinstance(checkpoint.get("config"), DictConfig):
        checkpoint["config"] = OmegaConf.to_container(checkpoint["config"], enum_to_str=True)
    return checkpoint


def _config_class(name: str) -> Any:
    """The class of that dotted name, if a config may be made of it."""
    if name in _PLAIN:
        return _PLAIN[name]
    module, _, attribute = name.rpartition(".")
    if module.split(".")[0] in _CONFIG_PACKAGES:
        found = getattr(import_module(module), attribute, None)
        if dataclasses.is_dataclass(found) or (isinstance(found, type) and module.startswith("omegaconf.")):
            return found
    raise VLNR1Error(f"it holds {name}, which is neither weights nor config")


def write_pth(path: str | os.PathLike[str], checkpoint: dict[str, Any]) -> None:
    """Save so that the file is either the old or the new one; a config goes in as plain dicts and lists."""
    path = Path(path)
    if isinstance(checkpoint.get("config"), DictConfig):
        checkpoint = {**checkpoint, "config": OmegaConf.to_container(checkpoint["config"], enum_to_str=True)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with full_disk_is_said(path):
            torch.save(checkpoint, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_plain(save_file_path: str) -> None:
    """Habitat-Baselines' `on_save_ckpt_callback`: rewrite what was just saved so that `torch.load` takes it."""
    for path in (Path(save_file_path), Path(save_file_path).with_name("latest.pth")):
        write_pth(path, read_pth(path))


def newest_pth(folder: str | os.PathLike[str]) -> Path | None:
    """The `ckpt.<number>.pth` with the highest number, or None."""
    numbered = {
        int(found[1]): file
        for file in Path(folder).glob("ckpt.*.pth")
        if (found := re.fullmatch(r"ckpt\.(\d+)\.pth", file.name))
    }
    return numbered[max(numbered)] if numbered else None
