"""VLN-Ego as LeRobot's dataset format, version 3.0: one row per step, the camera image and the action inside.

    meta/info.json, meta/stats.json, meta/tasks.parquet        what there is; instructions are LeRobot's tasks
    meta/episodes/chunk-000/file-000.parquet                   where each episode's rows lie
    data/chunk-000/file-000.parquet …                          the rows; images are the exported JPEGs, byte for byte

`lerobot.datasets.lerobot_dataset.LeRobotDataset(<name>, root=<folder>)` reads it. LeRobot counts time in seconds; a
step here takes none, and is one of `FPS` to the second. Rows of episodes that share their frames each have them: the
format has no other way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from habitat_vlnr1.actions import Action
from habitat_vlnr1.errors import RecordError
from habitat_vlnr1.files import write_atomically
from habitat_vlnr1.frame_files import check_jpeg, decode_picture, read_picture
from habitat_vlnr1.records import Episode, VLNEgo

if TYPE_CHECKING:
    import pyarrow

VERSION = "v3.0"
FPS = 1
IMAGE = "observation.images.rgb"
FILES_PER_CHUNK, MEGABYTES_PER_FILE = 1000, 100
SAMPLED = 1000
"""Frames, spread over the data, that the images' mean and deviation are of."""
NUMBERS = {"action": "int64", "timestamp": "float32"} | dict.fromkeys(
    ("frame_index", "episode_index", "index", "task_index"), "int64"
)
PATH = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


def write_lerobot(ego: VLNEgo, output: Path) -> None:
    """Write a folder in LeRobot's format; files that an interrupted call has finished stay as they are.

    Raises:
        RecordError: a frame is missing or cut, frames differ in size, or the walks are labelled (DAgger): LeRobot has
            one action per step, and what was done there is not what is taught.
    """
    if any(episode.labels for episode in ego.episodes):
        raise RecordError(f"{ego.root}: a DAgger round, whose actions are not what is taught; LeRobot has one action")
    shape = decode_picture(read_picture(ego.root / ego.episodes[0].frame(0))).shape
    tasks = {text: number for number, text in enumerate(dict.fromkeys(e.instruction for e in ego.episodes))}
    schema, places, row = _schema(), [], 0
    with tqdm(total=len(ego.episodes), desc="files", unit="episode") as bar:
        for number, part in enumerate(_files(ego)):
            chunk, file = divmod(number, FILES_PER_CHUNK)
            path = output / "data" / PATH.format(chunk_index=chunk, file_index=file)
            if not path.exists():
                _write_file(path, schema, ego, part, tasks, row, shape)
            for index, episode in part:
                places.append(_place(index, episode, chunk, file, row))
                row += len(episode.actions)
                bar.update()
    _write_meta(ego, output, tasks, places, shape)


def _files(ego: VLNEgo) -> Iterator[list[tuple[int, Episode]]]:
    """(index, episode)s of each data file, in order: as many as are some 100 MB."""
    part: list[tuple[int, Episode]] = []
    size = 0
    for index, episode in enumerate(ego.episodes):
        middle = ego.root / episode.frame(len(episode.actions) // 2)
        size += len(read_picture(middle)) * len(episode.actions)
        part.append((index, episode))
        if size >= MEGABYTES_PER_FILE * 1e6:
            yield part
            part, size = [], 0
    if part:
        yield part


def _write_file(
    path: Path, schema: pyarrow.Schema, ego: VLNEgo, part: list[tuple[int, Episode]], tasks: dict[str, int], row: int,
    shape: tuple[int, ...],
) -> None:  # fmt: skip
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.half")
    with pq.ParquetWriter(half, schema, compression="none") as writer:  # JPEGs do not shrink further
        for index, episode in part:
            columns = _numbers(index, episode, tasks[episode.instruction], row)
            columns[IMAGE] = _images(ego, episode, shape)
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))
            row += len(episode.actions)
    half.replace(path)


def _numbers(index: int, episode: Episode, task: int, row: int) -> dict[str, Any]:
    """An episode's columns without the images."""
    steps = np.arange(len(episode.actions))
    return {
        "action": list(episode.actions),
        "timestamp": (steps / FPS).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(len(steps), index),
        "index": row + steps,
        "task_index": np.full(len(steps), task),
    }


def _images(ego: VLNEgo, episode: Episode, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = []
    for step in range(len(episode.actions)):
        path = ego.root / episode.frame(step)
        check_jpeg(path)
        images.append({"bytes": read_picture(path), "path": path.name})
    seen = decode_picture(images[0]["bytes"]).shape
    if seen != shape:
        raise RecordError(
            f"{ego.root / episode.frame(0)}: {seen[1]} × {seen[0]} pixels, others {shape[1]} × {shape[0]}"
        )
    return images


def _place(index: int, episode: Episode, chunk: int, file: int, row: int) -> dict[str, Any]:
    """An episode's line among those of `meta/episodes`."""
    return {
        "episode_index": index,
        "tasks": [episode.instruction],
        "length": len(episode.actions),
        "data/chunk_index": chunk,
        "data/file_index": file,
        "dataset_from_index": row,
        "dataset_to_index": row + len(episode.actions),
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }


def _write_meta(
    ego: VLNEgo, output: Path, tasks: dict[str, int], places: list[dict[str, Any]], shape: tuple[int, ...]
) -> None:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    meta = output / "meta"
    lines = meta / "episodes" / PATH.format(chunk_index=0, file_index=0)
    lines.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(places), lines)
    pd.DataFrame({"task_index": list(tasks.values())}, index=list(tasks)).to_parquet(meta / "tasks.parquet")
    stats = _stats(ego, tasks)
    write_atomically(meta / "stats.json", json.dumps(stats, indent=4).encode())
    info = {
        "codebase_version": VERSION,
        "robot_type": "habitat",
        "total_episodes": len(places),
        "total_frames": places[-1]["dataset_to_index"],
        "total_tasks": len(tasks),
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": MEGABYTES_PER_FILE,
        "video_files_size_in_mb": 200,
        "fps": FPS,
        "splits": {"train": f"0:{len(places)}"},
        "data_path": f"data/{PATH}",
        "video_path": None,
        "features": _features(shape),
    }
    write_atomically(meta / "info.json", json.dumps(info, indent=4).encode())


def _features(shape: tuple[int, ...]) -> dict[str, Any]:
    """What `info.json` says about the columns."""
    image = {"dtype": "image", "shape": list(shape), "names": ["height", "width", "channels"]}
    numbers: dict[str, Any] = {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in NUMBERS.items()}
    numbers["action"]["names"] = ["_".join(f"{int(action)}_{action.name.lower()}" for action in Action)]
    return {IMAGE: image} | numbers


def _schema() -> pyarrow.Schema:
    from datasets import Features, Image, Value

    columns: dict[str, Any] = {name: Value(kind) for name, kind in NUMBERS.items()}
    return Features({IMAGE: Image(), **columns}).arrow_schema


# ------------------------------------------------------------------------------------------------------- statistics
def _stats(ego: VLNEgo, tasks: dict[str, int]) -> dict[str, Any]:
    """Least, largest, mean and standard deviation of each column; of the images by channel, from 0 to 1."""
    columns: dict[str, list[Any]] = {name: [] for name in NUMBERS}
    row = 0
    for index, episode in enumerate(ego.episodes):
        for name, values in _numbers(index, episode, tasks[episode.instruction], row).items():
            columns[name].append(np.asarray(values))
        row += len(episode.actions)
    stats: dict[str, Any] = {name: _described(np.concatenate(parts)[:, None]) for name, parts in columns.items()}
    of_images = _described(_pixels(ego))
    stats[IMAGE] = {name: value if name == "count" else [[[v]] for v in value] for name, value in of_images.items()}
    stats[IMAGE]["count"] = [min(SAMPLED, row)]
    return stats


def _pixels(ego: VLNEgo) -> np.ndarray:
    """Pixels [n, 3] of frames spread over the data, thinned out, from 0 to 1."""
    ends = np.cumsum([len(episode.actions) for episode in ego.episodes])
    seen = []
    for row in np.unique(np.linspace(0, ends[-1] - 1, min(SAMPLED, ends[-1])).astype(int)):
        which = int(np.searchsorted(ends, row, side="right"))
        episode = ego.episodes[which]
        step = int(row - ends[which]) + len(episode.actions)
        seen.append(decode_picture(read_picture(ego.root / episode.frame(step)))[::4, ::4].reshape(-1, 3))
    return np.concatenate(seen) / 255


def _described(values: np.ndarray) -> dict[str, Any]:
    named = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return {**{name: value.tolist() for name, value in named.items()}, "count": [len(values)]}
