"""Weights on disk, looked at without loading them: what an adapter stands on, what tells two checkpoints apart, and
what is cut or missing.

An adapter (PEFT's folder) holds a difference to the weights that it was trained on. These may be an adapter too, as
where LoRA is used in both stages, so a checkpoint is a chain that ends in a whole model.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CARD_FILE = "vlnr1.json"
SHARD_INDEX = "model.safetensors.index.json"
SLICE = 1 << 24  # numbers that are looked at together
SHOWN_BYTES = 1 << 30
_MEBIBYTE = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint that is missing, broken, or of another kind than needed; the message says what to do."""


# ------------------------------------------------------------------------------------------------------------- chains
def chain(
    path: str | os.PathLike[str], find: Callable[[str], str | os.PathLike[str] | None] | None = None
) -> list[str]:
    """The checkpoint, the one that it stands on, and so on down to the whole model: `['rft', 'sft', 'Qwen/…']`.

    Args:
        path: a folder or a hub id.
        find: the `adapter_config.json` of a hub id, or None for a whole model; without it hub ids count as such.

    Raises:
        CheckpointError: an adapter's base is missing, has other weights than it was trained on, or leads back to it.
    """
    links = [os.fspath(path)]
    while True:
        here = links[-1]
        file = Path(here) / ADAPTER_FILE if Path(here).is_dir() or find is None else find(here)
        if file is None or not Path(file).is_file():
            return links
        base = _base(Path(file))
        if any(_same(base, link) for link in links):
            raise CheckpointError(f"{file}: base_model_name_or_path leads in a circle to {base}: name what is below")
        links.append(base)


def is_adapter(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an adapter."""
    return (Path(path) / ADAPTER_FILE).is_file()


def origin(start: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What a card says about where training began, so that an adapter finds its base again.

    Args:
        start: folder or hub id.
        folder: the checkpoint that has the card.
    """
    if not Path(start).is_dir():
        return {"path": start}
    return {"path": start, "from_here": os.path.relpath(start, folder), "weights": folder_fingerprint(start)}


def _base(file: Path) -> str:
    """What an adapter stands on: as its card says from its own place, else as PEFT has recorded it."""
    recorded = read_json(file).get("base_model_name_or_path")
    if not recorded:
        raise CheckpointError(f"{file}: no base_model_name_or_path; load the base and pass adapter=")
    card = file.with_name(CARD_FILE)
    info = read_json(card).get("info") if card.is_file() else None
    start = (info or {}).get("start") or {}
    if "weights" not in start:
        if not Path(recorded).is_dir() and (recorded.count("/") != 1 or recorded.startswith(("/", "."))):
            raise CheckpointError(
                f"{file.parent}: the checkpoint that this adapter was trained on, {recorded}, is not there: put "
                f"it back, or write where it is into base_model_name_or_path of {ADAPTER_FILE}"
            )
        return recorded
    beside = os.path.normpath(os.path.join(os.path.abspath(file.parent), start.get("from_here", "")))
    there = [place for place in dict.fromkeys((beside, recorded)) if Path(place).is_dir()]
    for place in there:
        if folder_fingerprint(place) == start["weights"]:
            return place
    if there:
        raise CheckpointError(
            f"{file.parent}: {there[0]} has other weights now than this adapter was trained on: put those back, or "
            "train the adapter again"
        )
    raise CheckpointError(
        f"{file.parent}: the checkpoint that this adapter was trained on is neither {beside} nor {recorded}: put it "
        f"back, or write where it is into base_model_name_or_path of {ADAPTER_FILE}"
    )


def _same(one: str, other: str) -> bool:
    return one == other or (Path(one).is_dir() and Path(other).is_dir() and os.path.samefile(one, other))


def folder_fingerprint(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What tells two checkpoints under the same name apart: size and a hash of both ends of each weights file.

    Of an adapter also its settings, and the same of everything below it. `path` is a folder or a weights file itself.
    Returns None when there is no such folder or no weights in it (a model named by hub id, say). Hashing only a
    mebibyte at each end keeps this quick for large models; any training step changes both.
    """
    digests: dict[str, Any] = {}
    for file in [Path(path)] if Path(path).is_file() else sorted(Path(path).glob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(_MEBIBYTE)
            stream.seek(max(0, size - _MEBIBYTE))
            digests[file.name] = f"{size}:{sha256(head + stream.read()).hexdigest()[:16]}"
    if digests and is_adapter(path):
        file = Path(path) / ADAPTER_FILE
        settings = {key: value for key, value in read_json(file).items() if key != "base_model_name_or_path"}
        digests[ADAPTER_FILE] = sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        base = chain(path)[1]
        digests["base"] = folder_fingerprint(base) or base
    return digests or None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint.

    Raises:
        CheckpointError: the file is not there, or something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing; restore the file or delete {file.parent}") from None
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON ({error}); restore the file or delete {file.parent}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: not a JSON object; restore the file or delete {file.parent}")
    return content


# ------------------------------------------------------------------------------------------------- what is cut or bad
def folder_problem(folder: Path) -> str | None:
    """What is missing or cut among the files that a checkpoint folder is loaded from, or None."""
    adapter = is_adapter(folder)
    if not adapter and not (folder / "config.json").is_file():
        return "no config.json"
    files = [folder / ADAPTER_WEIGHTS] if adapter else weight_files(folder)
    if not files:
        return "no *.safetensors"
    for file in files:
        problem = safetensors_problem(file)
        if problem:
            return f"{file.name} {problem}"
    return None


def check_whole(path: str | os.PathLike[str]) -> None:
    """Nothing is missing or cut in a checkpoint and in what it stands on, as far as it is on this machine.

    Raises:
        CheckpointError: the message names folder and file.
    """
    for link in chain(path):
        problem = folder_problem(Path(link)) if Path(link).is_dir() else None
        if problem:
            raise CheckpointError(f"{link}: {problem}; take the checkpoint before it, or fetch or train it again")


def resume_problem(folder: Path) -> str | None:
    """What training goes on with, besides weights and step, that is missing or cut in a checkpoint, or None."""
    if (folder / "latest").is_file():  # DeepSpeed's
        parts = sorted((folder / (folder / "latest").read_text().strip()).glob("*.pt"))
        wanted = parts or [folder / "optimizer.pt"]
    else:
        wanted = [folder / "optimizer.pt", folder / "scheduler.pt"]
    missing = [file for file in wanted if not file.is_file()]
    if missing:
        return f"{missing[0].name} is missing"
    cut = cut_archive([*wanted, *sorted(folder.glob("rng_state*.pth"))])
    return f"{cut.name} is cut" if cut else None


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that a folder has, or should have by its index."""
    index = folder / SHARD_INDEX
    if index.is_file():
        try:
            return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError):
            return [index]
    return sorted(folder.glob("*.safetensors"))


def safetensors_problem(file: Path) -> str | None:
    """What is wrong with a safetensors file as far as its header tells, or None."""
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    with file.open("rb") as content:
        start = content.read(8)
        if start.startswith(b"version"):
            return "is a Git LFS pointer: git lfs pull"
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length + 8 > size:
            return "is cut, or not a safetensors file"
        try:
            header = json.loads(content.read(length))
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError):
            return "has a broken header"
    return f"has {size} of {8 + length + end} bytes" if size < 8 + length + end else None


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with a NaN or an infinite value, or None. Of ZeRO-3's, this process has a part."""
    for name, tensor in tensors:
        part = getattr(tensor, "ds_tensor", tensor).detach()
        if part.is_floating_point() and not (part.float() if part.itemsize == 1 else part).isfinite().all():
            return name
    return None


def not_finite_on_disk(path: str | os.PathLike[str]) -> str | None:
    """`'<file>: tensor <name> has NaN or infinite values'` of the first such tensor of a checkpoint and of what it
    stands on, or None. A slice of one tensor is in memory at a time; large checkpoints show how far it is.
    """
    folders = [Path(link) for link in chain(path) if Path(link).is_dir()]
    files = [file for folder in folders for file in weight_files(folder) if file.is_file()]
    sizes = {file: file.stat().st_size for file in files}
    total = sum(sizes.values())
    with tqdm(total=total, desc=f"NaN in {path}?", unit="B", unit_scale=True, disable=total < SHOWN_BYTES) as bar:
        for file in files:
            name = not_finite(_slices(file))
            if name is not None:
                return f"{file}: tensor {name} has NaN or infinite values"
            bar.update(sizes[file])
    return None


def _slices(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, large ones in parts."""
    from safetensors import safe_open

    with safe_open(file, "pt") as content:
        for name in content.offset_keys():  # in the order of the file
            whole = content.get_slice(name)
            shape = whole.get_shape()
            rows = max(1, SLICE // max(math.prod(shape[1:]), 1))
            if not shape:
                yield name, content.get_tensor(name)
            else:
                yield from ((name, whole[start : start + rows]) for start in range(0, shape[0], rows))


def cut_archive(files: Iterable[Path]) -> Path | None:
    """The first of PyTorch's files (zip archives) that is cut, or None; nothing of them is unpickled."""
    return next((file for file in files if not zipfile.is_zipfile(file)), None)
