"""What a task's files are, told by their content: what results and exports of one task must not be mixed up with.

Data sets share scenes and count their episodes from 1 (R2R-CE and RxR-CE do), so ids tell nothing.
"""

from __future__ import annotations

import gzip
import os
import re
from functools import lru_cache
from hashlib import sha256
from typing import Any

from habitat.core.registry import registry
from omegaconf import DictConfig

from habitat_vlnr1.sim import register_sim
from habitat_vlnr1.sim.episode_files import scene_path

_SCENE = re.compile(rb'"scene_id"\s*:\s*"([^"]+)"')


def files_of(dataset_config: DictConfig, template: str | None, split: str) -> list[str]:
    """The files that a `{split}` (and `{role}`) template stands for; none without a template."""
    if not template:
        return []
    register_sim()
    dataset: Any = registry.get_dataset(dataset_config.type)  # ours: Habitat's have no roles
    return [template.format(split=split, role=role) for role in dataset.roles(dataset_config)]


def task_identity(config: DictConfig, split: str) -> dict[str, Any]:
    """What decides the episodes of a split, as JSON: for `run.json` and `meta.json`.

    Filters by id, number and shard are not in it: they choose among the episodes and change none.

    Returns:
        `name` and `dataset` of the task; `simulator`: its version; `episodes` and `ground_truth`: file → digest of its
        content; `scenes`: scene → bytes, of those that are there; `roles` and `languages` where the data set has them.
    """
    import habitat_sim  # the real one, or the embedded stand-in, whose version says so

    dataset = config.habitat.dataset
    paths = files_of(dataset, dataset.data_path, split)
    read = {os.path.basename(path): _content(path) for path in paths if os.path.exists(path)}
    truths = files_of(dataset, dataset.get("gt_path"), split)
    scenes = sorted({scene for _, named in read.values() for scene in named})
    sizes = {scene: _size(scene, dataset.scenes_dir) for scene in scenes}
    return {
        "name": config.vlnr1.task.name,
        "dataset": dataset.type,
        "simulator": str(habitat_sim.__version__),
        "episodes": {name: digest for name, (digest, _) in read.items()},
        "ground_truth": {os.path.basename(path): _content(path)[0] for path in truths if os.path.exists(path)},
        **{key: list(dataset[key]) for key in ("roles", "languages") if key in dataset},
        "scenes": {scene: size for scene, size in sizes.items() if size is not None},
    }


def _size(scene: str, scenes_dir: str) -> int | None:
    try:
        path = scene_path(scene, scenes_dir)
    except ValueError:  # such an episode is left out
        return None
    return os.path.getsize(path) if os.path.isfile(path) else None


def _content(path: str) -> tuple[str, frozenset[str]]:
    """Digest of a gzipped file's content, and the scenes that it names; read once a run while it does not change."""
    status = os.stat(path)
    return _read(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=32)
def _read(path: str, size: int, changed: int) -> tuple[str, frozenset[str]]:
    # What was compressed, not the compressed bytes: packing the same episodes again makes other bytes (gzip writes
    # the time down), and no other results.
    digest, scenes, rest = sha256(), set(), b""
    try:
        with gzip.open(path, "rb") as file:
            while part := file.read(1 << 22):
                digest.update(part)
                rest += part
                scenes |= {match.group(1).decode(errors="replace") for match in _SCENE.finditer(rest)}
                rest = rest[-4096:]  # a name may be cut by the border
    except (OSError, EOFError, ValueError):  # what is wrong with it is said where it is read
        return "unreadable", frozenset()
    return digest.hexdigest()[:16], frozenset(scenes)
