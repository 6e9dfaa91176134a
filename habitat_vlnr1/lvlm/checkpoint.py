"""Checkpoints: Hugging Face folders (safetensors, processor) with one small JSON of ours, `vlnr1.json`, beside them.

`vlnr1.json` says under which words and angles the model was trained, so that it is not asked under others unnoticed.

Examples:
    >>> model, processor = load("Qwen/Qwen2-VL-2B-Instruct", dtype="bfloat16", device="cuda")   # doctest: +SKIP
    >>> save("results/sft/final", model, processor, ModelCard(space=ActionSpace(), num_actions=6))  # doctest: +SKIP
    >>> check_card(read_card("results/sft/final"), ActionSpace(turn_angle=15))                   # doctest: +SKIP
    CheckpointError: this checkpoint was trained with turn_angle 30, but the simulator is configured with 15 …
"""

from __future__ import annotations

import copy
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils.peft_utils import find_adapter_config_file

from habitat_vlnr1.actions import LETTERS, Action, ActionSpace, letter_of
from habitat_vlnr1.errors import CheckpointError, VLNR1Error
from habitat_vlnr1.files import read_json, write_atomically
from habitat_vlnr1.lock import FolderLock
from habitat_vlnr1.weights import (
    ADAPTER_FILE,
    CARD_FILE,
    chain,
    check_whole,
    folder_fingerprint,
    not_finite,
    not_finite_on_disk,
)

CARD_FORMAT = 1
SUPPORTED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint was trained for.

    Args:
        space: step length and turn angle of the simulator, hence the words of the actions.
        num_actions: n, how many actions an answer holds.
        template: name of the prompt template.
        memory: strategy and parameters of the memory, e.g. `{"strategy": "long_short", "budget": 16}`.
        max_pixels: the most pixels of a frame; None means the processor's own limit.
        jpeg_quality: of the frames that it was trained on; None: raw ones, or nobody knows.
        frequent_answers: those of its training data, the most frequent first; decoding tries them (`drafts.py`).
        info: provenance, kept as it is (data, base model, …).
    """

    space: ActionSpace = field(default_factory=ActionSpace)
    num_actions: int = 6
    template: str = "vln_ego"
    memory: dict[str, Any] = field(default_factory=dict)
    max_pixels: int | None = None
    jpeg_quality: int | None = None
    frequent_answers: tuple[tuple[Action, ...], ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": CARD_FORMAT,
            "forward_step": self.space.forward_step,
            "turn_angle": self.space.turn_angle,
            "num_actions": self.num_actions,
            "template": self.template,
            "memory": self.memory,
            "max_pixels": self.max_pixels,
            "jpeg_quality": self.jpeg_quality,
            "frequent_answers": ["".join(map(letter_of, answer)) for answer in self.frequent_answers],
            "info": self.info,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> ModelCard:
        if row.get("format") != CARD_FORMAT:
            raise VLNR1Error(f"format {row.get('format')!r}, but this version reads {CARD_FORMAT}")
        kinds: dict[str, Any] = {"num_actions": int, "template": str, "memory": dict, "max_pixels": int | None}
        kinds |= {"jpeg_quality": int | None, "frequent_answers": list, "info": dict}
        for key, kind in kinds.items():
            if key in row and (not isinstance(row[key], kind) or isinstance(row[key], bool)):
                raise VLNR1Error(f"{key} is {row[key]!r}")
        return cls(
            space=ActionSpace(row["forward_step"], row["turn_angle"]),
            num_actions=row["num_actions"],
            template=row["template"],
            memory=row["memory"],
            max_pixels=row["max_pixels"],
            # A card of an older version does not say:
            jpeg_quality=row.get("jpeg_quality"),
            frequent_answers=tuple(_answer(letters) for letters in row.get("frequent_answers", ())),
            info=row.get("info", {}),
        )


def _answer(letters: str) -> tuple[Action, ...]:
    if not isinstance(letters, str) or not letters or not set(letters) <= LETTERS.keys():
        raise VLNR1Error(f"frequent_answers has {letters!r}, which is no answer in letters")
    return tuple(LETTERS[letter] for letter in letters)


def load(
    path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    adapter: str | os.PathLike[str] | None = None,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a Qwen2-VL, Qwen2.5-VL or Qwen3-VL and its processor, from safetensors only, without remote code.

    While a training with ZeRO-3 is set up, all its processes must call this together: each gets its part of the
    weights, where DeepSpeed puts it.

    Args:
        path: a folder or a Hugging Face id; of a PEFT adapter, everything that it stands on is loaded and merged too.
        dtype: `float32`, `bfloat16`, … or `auto` for what the checkpoint holds.
        device: where the model goes.
        adapter: a PEFT adapter's folder or id, merged into the weights.
        attn_implementation: `sdpa`, `flash_attention_2`, …; None lets Transformers choose.

    Returns:
        The model in evaluation mode and its processor.

    Raises:
        CheckpointError: nothing there, an unsupported model, weights that are not safetensors.
    """
    *adapters, source = map(existing, chain(path, _hub_adapter))
    if adapter is not None:
        adapters.insert(0, existing(adapter))
    kind = _quietly(AutoConfig.from_pretrained, source, trust_remote_code=False).model_type
    if kind not in SUPPORTED:
        raise CheckpointError(
            f"{source}: model type {kind!r} is not supported; it must be one of {', '.join(SUPPORTED)}"
        )
    for link in (*adapters, source):
        check_whole(link)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    model = _quietly(AutoModelForImageTextToText.from_pretrained, source, **options)
    # An adapter folder that we wrote has the processor too (with the pixel limit that was trained with).
    own = (folder for folder in adapters if (Path(folder) / "processor_config.json").is_file())
    processor = _quietly(AutoProcessor.from_pretrained, next(own, source), trust_remote_code=False)
    for folder in reversed(adapters):
        from peft import PeftModel

        model = _quietly(PeftModel.from_pretrained, model, folder).merge_and_unload()
        model.requires_grad_(True)  # PEFT has frozen it
    model.name_or_path = os.fspath(path) if adapter is None else os.fspath(adapter)
    return (model if is_deepspeed_zero3_enabled() else model.to(device)).eval(), processor


def save(folder: str | os.PathLike[str], model: PreTrainedModel, processor: ProcessorMixin, card: ModelCard) -> Path:
    """Write a checkpoint whole or not at all; a PEFT model writes its adapter only.

    Everything goes into a hidden folder beside, which then takes the name. An existing checkpoint stands aside
    as `<name>.old` for that moment and is put back when the renaming fails.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.half-", dir=folder.parent))
    try:
        new.chmod(0o777 & ~_umask())
        model.save_pretrained(new)
        processor.save_pretrained(new)
        write_card(new, card)
        _take_the_place(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


@contextmanager
def only_maker(folder: str | os.PathLike[str]) -> Iterator[None]:
    """No other process makes this checkpoint meanwhile; waits for one that does, and says so.

    Whether it has to be made is to be asked in here. What a `save` that was killed has left is deleted.
    """
    folder = Path(folder)
    with FolderLock(folder.parent, folder.name, patient=True):
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.half-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def write_card(folder: str | os.PathLike[str], card: ModelCard) -> None:
    """Put the card into a checkpoint folder, also one that something else (the Trainer) has written."""
    write_atomically(Path(folder) / CARD_FILE, (json.dumps(card.to_json(), indent=2) + "\n").encode())


def newest_checkpoint(folder: str | Path) -> str | None:
    """The newest whole `checkpoint-<step>` of a run, or None.

    Raises:
        CheckpointError: its weights are damaged. To evaluate an older one in its place would be another result.
    """
    newest = next(iter(checkpoints(folder)), None)
    if newest is not None:
        check_whole(newest)
    return newest


def checkpoints(folder: str | Path) -> list[str]:
    """The `checkpoint-<step>`s of a run, newest first; the card is written last, so half a folder has none."""
    steps = {
        int(match.group(1)): path
        for path in Path(folder).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / CARD_FILE).is_file()
    }
    return [str(steps[step]) for step in sorted(steps, reverse=True)]


def why_not_finite(model: PreTrainedModel) -> str:
    """Why a model answers NaN or infinity, naming its checkpoint and the first bad tensor."""
    path = model.name_or_path
    assert path is not None, "its config has it"
    told = not_finite_on_disk(path)
    if told is not None:
        return f"{told}: fetch or train this checkpoint again"
    name = not_finite(model.named_parameters())
    if name is not None:
        return f"the model loaded from {path} has NaN or infinite values now, first in {name}"
    return f"{path}: its weights are finite, what it computes in {model.dtype} is not: take vlnr1.model.dtype=float32"


def existing(path: str | os.PathLike[str]) -> str:
    """The path or hub id as a string.

    Raises:
        CheckpointError: it looks like a folder, and is none or holds no checkpoint.
    """
    text = os.fspath(path)
    folder = Path(text)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", ADAPTER_FILE)):
            raise CheckpointError(f"{text}: a folder without config.json, so no checkpoint; check model.path")
    elif (
        folder.is_absolute()
        or text.startswith(".")
        or text.count("/") != 1
        or folder.parent.is_dir()
        or folder.name == "checkpoints"  # as every run calls its own: a run that is not there, no model of the hub
    ):
        raise CheckpointError(f"{text}: no such checkpoint folder; train it first or check the path")
    return text


def is_checkpoint(path: str) -> bool:
    """Whether the path names a checkpoint folder or a hub id."""
    try:
        return bool(existing(path))
    except CheckpointError:
        return False


def resolve(path: str) -> str:
    """A checkpoint folder or hub id as it is; of a run's folder with `checkpoint-<step>`s the newest whole one."""
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        return newest_checkpoint(path) or path
    return path


def read_card(path: str | os.PathLike[str]) -> ModelCard | None:
    """The card of a checkpoint folder; None for checkpoints without one (released models, hub ids)."""
    file = Path(path) / CARD_FILE
    if not file.is_file():
        return None
    remedy = "restore the file or save the checkpoint again"
    row = read_json(file, remedy, CheckpointError)
    try:
        return ModelCard.from_json(row)
    except (ValueError, KeyError, TypeError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{file}: {what}; {remedy}") from None


def check_card(card: ModelCard | None, space: ActionSpace, *, allow: bool = False) -> None:
    """Refuse a checkpoint whose actions mean something else in the configured simulator.

    Args:
        card: from `read_card`; None (a model without a card) passes, as nothing is known.
        space: the configured simulator's.
        allow: True lets it pass all the same.

    Raises:
        CheckpointError: forward step or turn angle differ.
    """
    if card is None or allow:
        return
    for name in ("turn_angle", "forward_step"):
        trained, configured = getattr(card.space, name), getattr(space, name)
        if abs(trained - configured) > 1e-6:
            raise CheckpointError(
                f"this checkpoint was trained with {name} {trained:g}, but the simulator is configured with "
                f"{configured:g}: choose the protocol it was trained with, or allow the mismatch explicitly"
            )


def differences(card: ModelCard | None, **configured: Any) -> list[str]:
    """What a checkpoint was trained with and what is configured instead, a line for each that differs.

    Args:
        configured: fields of the card, e.g. `template="compact", memory={"strategy": "current"}`.
    """
    pairs = [(name, getattr(card, name), value) for name, value in configured.items()] if card else []
    return [
        f"trained with {name} {trained!r}, but {value!r} is configured"
        for name, trained, value in pairs
        if trained and trained != value
    ]


def _hub_adapter(name: str) -> str | None:
    """The settings of the adapter that a hub id names; None for whole models."""
    return _quietly(find_adapter_config_file, existing(name))


def _quietly(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a `from_pretrained`, with its errors as one line that names the source."""
    try:
        return function(*args, **kwargs)
    except Exception as error:  # of a cut tokenizer.json it is no narrower kind
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(f"cannot load {args[-1]}: {first}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _take_the_place(new: Path, folder: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


_MODELS: WeakValueDictionary[tuple[str, ...], PreTrainedModel] = WeakValueDictionary()
_PROCESSORS: WeakKeyDictionary[PreTrainedModel, Any] = WeakKeyDictionary()
"""What decoders hold: models by checkpoint, weights, dtype and attention, and the processors that came with them."""


def load_shared(
    path: str | os.PathLike[str],
    card: ModelCard | None,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    attention: str | None,
) -> tuple[PreTrainedModel, Any, ModelCard]:
    """A model that only decoders know, a processor of its own for each of them, and how it is asked.

    Args:
        path: a folder or a Hugging Face id.
        card: None: the checkpoint's own.
        dtype: as `load` takes it.
        device: None: the process's current GPU where there is one.
        attention: as `load` takes it.

    Raises:
        CheckpointError: it cannot be loaded, or has no card and none is given.
    """
    path = existing(path)
    card = read_card(path) if card is None else card
    if card is None:
        raise CheckpointError(f"{path}: no {CARD_FILE} says how this model is asked: give a ModelCard")
    key = (path, str(dtype), str(attention), json.dumps(folder_fingerprint(path)))
    model = _MODELS.get(key)
    if model is None:
        model, processor = load(path, dtype=dtype, attn_implementation=attention)
        _MODELS[key], _PROCESSORS[model] = model, processor
    placed: Any = model  # `to` of PreTrainedModel is wrapped without its types
    placed = placed.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    return placed, copy.deepcopy(_PROCESSORS[model]), card
