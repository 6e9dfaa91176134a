"""VLN-Ego in Parquet shards, for large or remote training: one row per episode, its JPEGs inside.

    data/train-00000.parquet …      columns: episode_id, scene, instruction, actions, frames, info, descriptions

`datasets.load_dataset(folder)` reads and streams them (`frames` are images), the Hugging Face hub shows them, and
`ParquetEpisodes` gives the episodes back with every byte of their frames. A row is an episode for the reason that a
line of `episodes.jsonl` is: a frame is stored once, whatever memory, n and prompt are chosen when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from habitat_vlnr1.records import Episode, RecordError, VLNEgo, check_jpeg

if TYPE_CHECKING:
    import pyarrow

FRAMES_PER_SHARD = 10_000  # about 0.6 GB at 640 × 480
EPISODES_PER_GROUP = 16  # episodes that a reader must load together


def write_parquet(ego: VLNEgo, output: Path, frames_per_shard: int = FRAMES_PER_SHARD) -> None:
    """Write all episodes of a folder as shards; shards that an interrupted call has finished stay as they are.

    Raises:
        RecordError: a frame is missing or cut.
    """
    data = output / "data"
    data.mkdir(parents=True, exist_ok=True)
    schema = _schema()
    with tqdm(total=len(ego.episodes), desc="shards", unit="episode") as bar:
        for number, episodes in enumerate(shards(ego.episodes, frames_per_shard)):
            file = data / f"train-{number:05d}.parquet"
            if not file.exists():
                _write_shard(file, schema, ego, episodes)
            bar.update(len(episodes))


def shards(episodes: list[Episode], frames: int) -> Iterator[list[Episode]]:
    """Episodes in order, in parts that end with the episode that makes them `frames` frames long."""
    part: list[Episode] = []
    length = 0
    for episode in episodes:
        part.append(episode)
        length += len(episode.actions)
        if length >= frames:
            yield part
            part, length = [], 0
    if part:
        yield part


def _schema() -> pyarrow.Schema:
    """Columns as `datasets` describes them, so that it knows `frames` for images."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    columns = {
        "episode_id": text,
        "scene": text,
        "instruction": text,
        "actions": List(Value("int8")),
        "frames": List(Image()),
        "info": text,
        "descriptions": List(text),
    }
    return Features(columns).arrow_schema


def _write_shard(file: Path, schema: pyarrow.Schema, ego: VLNEgo, episodes: list[Episode]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    half = file.with_name(f".{file.name}.half")
    # JPEGs do not shrink further.
    with pq.ParquetWriter(half, schema, compression="none") as writer:
        for start in range(0, len(episodes), EPISODES_PER_GROUP):
            rows = [_row(ego, episode) for episode in episodes[start : start + EPISODES_PER_GROUP]]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    half.replace(file)


def _row(ego: VLNEgo, episode: Episode) -> dict[str, Any]:
    frames = []
    for step in range(len(episode.actions)):
        check_jpeg(ego.root / episode.frame(step))
        frames.append({"bytes": (ego.root / episode.frame(step)).read_bytes(), "path": episode.frame(step)})
    return {
        "episode_id": episode.episode_id,
        "scene": episode.scene,
        "instruction": episode.instruction,
        "actions": list(episode.actions),
        "frames": frames,
        "info": json.dumps(episode.info, ensure_ascii=False),
        "descriptions": list(episode.descriptions),
    }


class ParquetEpisodes:
    """The episodes of a folder of shards, one after the other.

    Raises:
        RecordError: there are no shards, or one is damaged or has other columns.
    """

    def __init__(self, root: Path):
        self.files = sorted((root / "data").glob("*.parquet"))
        if not self.files:
            raise RecordError(f"{root}: no data/*.parquet")

    def episodes(self) -> Iterator[tuple[Episode, list[bytes]]]:
        """Episodes with the bytes of their JPEGs."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for file in self.files:
            try:
                for batch in pq.ParquetFile(file).iter_batches(batch_size=EPISODES_PER_GROUP):
                    for row in batch.to_pylist():
                        row["info"] = json.loads(row["info"])
                        yield Episode.from_json(row), [frame["bytes"] for frame in row["frames"]]
            except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
                raise RecordError(f"{file}: {error!r}; write or fetch this shard again") from None
