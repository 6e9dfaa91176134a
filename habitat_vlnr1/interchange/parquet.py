"""VLN-Ego in Parquet shards, for large or remote training: one row per episode, its pictures inside.

    data/train-00000.parquet …      columns: the fields of `Episode`, and the pictures `frames` and `depths`

`datasets.load_dataset(folder)` reads and streams them (`frames` are images), the Hugging Face hub shows them, and
`ParquetEpisodes` gives the episodes back with every byte of their pictures. A row is an episode for the reason that a
line of `episodes.jsonl` is: a frame is stored once, whatever memory, n and prompt are chosen when it is read. The row
of an episode that was walked like another has no pictures: `frames_of` names the row that has them.

Columns are derived from the dataclass: text, numbers and tuples of them are columns of that type, anything else is
JSON. Each shard also says what `meta.json` and `summary.json` say, and how many episodes all shards together have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from tqdm import tqdm

from habitat_vlnr1.errors import RecordError
from habitat_vlnr1.files import parse_json, read_json
from habitat_vlnr1.frame_files import check_jpeg, check_picture, picture_size, read_picture
from habitat_vlnr1.records import Episode, VLNEgo

if TYPE_CHECKING:
    import pyarrow

FRAMES_PER_SHARD = 10_000  # about 0.6 GB at 640 × 480
EPISODES_PER_GROUP = 16  # episodes that a reader must load together
PICTURES = ("frames", "depths")
YOUNGER = ("frames_of",)
"""Columns that shards of earlier versions do not have."""
ABOUT = b"vlnr1"
"""Key of a shard's own description among its schema's metadata."""
_TYPES: dict[Any, str] = {str: "string", int: "int64", float: "float64", bool: "bool"}
_REMEDY = "write or fetch this shard again"


def write_parquet(ego: VLNEgo, output: Path, frames_per_shard: int = FRAMES_PER_SHARD) -> None:
    """Write all episodes of a folder as shards; shards that an interrupted call has finished stay as they are.

    Raises:
        RecordError: a frame is missing or cut.
    """
    data = output / "data"
    data.mkdir(parents=True, exist_ok=True)
    schema = _schema(about(ego))
    with tqdm(total=len(ego.episodes), desc="shards", unit="episode") as bar:
        for number, episodes in enumerate(shards(ego.episodes, frames_per_shard)):
            file = data / f"train-{number:05d}.parquet"
            if not file.exists():
                _write_shard(file, schema, ego, episodes)
            bar.update(len(episodes))


def about(ego: VLNEgo) -> dict[str, Any]:
    """What every shard says about the whole: meta, summary (None: there is none), number of episodes."""
    summary = ego.root / "summary.json"
    told = read_json(summary, "export again", RecordError) if summary.is_file() else None
    return {"meta": ego.meta, "summary": told, "episodes": len(ego.episodes)}


def shards(episodes: list[Episode], frames: int) -> Iterator[list[Episode]]:
    """Episodes in order, in parts that end with the episode that makes them `frames` frames long."""
    part: list[Episode] = []
    length = 0
    for episode in episodes:
        part.append(episode)
        length += 0 if episode.frames_of else len(episode.actions)
        if length >= frames:
            yield part
            part, length = [], 0
    if part:
        yield part


# ------------------------------------------------------------------------------------------------------- columns
def columns(kind: type[Episode] = Episode) -> dict[str, tuple[str, bool] | None]:
    """Of each field its column: (type, whether there are several), or None for JSON text."""
    hints = get_type_hints(kind)
    return {field.name: _column(hints[field.name]) for field in fields(kind)}


def _column(hint: Any) -> tuple[str, bool] | None:
    if hint in _TYPES:
        return _TYPES[hint], False
    inner, *rest = getattr(hint, "__args__", (None,))
    if getattr(hint, "__origin__", None) is tuple and rest == [...] and inner in _TYPES:
        return _TYPES[inner], True
    return None


def _schema(told: dict[str, Any]) -> pyarrow.Schema:
    """Columns as `datasets` describes them, so that it knows pictures for images."""
    from datasets import Features, Image, List, Value

    features: dict[str, Any] = {}
    for name, column in columns().items():
        kind, several = column or ("string", False)
        features[name] = List(Value(kind)) if several else Value(kind)
    features |= {name: List(Image()) for name in PICTURES}
    schema = Features(features).arrow_schema
    return schema.with_metadata({**schema.metadata, ABOUT: json.dumps(told)})


def to_row(episode: Episode) -> dict[str, Any]:
    """An episode's columns without its pictures."""
    return {
        name: getattr(episode, name) if column else json.dumps(getattr(episode, name), ensure_ascii=False)
        for name, column in columns(type(episode)).items()
    }


def from_row(row: dict[str, Any], kind: type[Episode] = Episode) -> Episode:
    """The inverse of `to_row`; RecordError where a column is missing or holds something else."""
    values = {}
    for name, column in columns(kind).items():
        if row.get(name) is None:
            if name in YOUNGER:
                continue
            raise RecordError(f"no column {name}: written by an earlier version, or by something else")
        several = column is not None and column[1]
        values[name] = tuple(row[name]) if several else row[name] if column else json.loads(row[name])
    return kind.from_json(values)


# ------------------------------------------------------------------------------------------------------- writing
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
    steps = range(0 if episode.frames_of else len(episode.actions))
    for step in steps:
        check_jpeg(ego.root / episode.frame(step))
    with_depth = "depth" in ego.meta or picture_size(ego.root / episode.depth(0)) is not None
    pictures = {
        "frames": [_picture(ego, episode.frame(step)) for step in steps],
        "depths": [_picture(ego, episode.depth(step)) for step in steps if with_depth],
    }
    return {**to_row(episode), **pictures}


def _picture(ego: VLNEgo, path: str) -> dict[str, Any]:
    try:
        return {"bytes": read_picture(ego.root / path), "path": path}
    except OSError as error:
        raise RecordError(f"{ego.root / path}: cannot be read ({error.strerror}); export again") from None


# ------------------------------------------------------------------------------------------------------- reading
class ParquetEpisodes:
    """The episodes of a folder of shards, one after the other.

    Attributes:
        meta: of the folder that was written, without `format`. What several processes had exported comes back as one
            folder, so `num_shards` is left out.
        summary: its `summary.json`; None: it had none.

    Raises:
        RecordError: there are no shards, one is damaged, missing, or has other columns.
    """

    def __init__(self, root: Path):
        import pyarrow.parquet as pq

        self.files = sorted((root / "data").glob("*.parquet"))
        if not self.files:
            raise RecordError(f"{root}: no data/*.parquet")
        count = 0
        first: dict[str, Any] = {}
        for file in self.files:
            with _named(file):
                opened = pq.ParquetFile(file)
                count += opened.metadata.num_rows
                told = self._told(file, opened.schema_arrow)
            first = first or told
            if str(told) != str(first):  # a NaN equals no other
                raise RecordError(f"{file}: of another data set than {self.files[0].name}; {_REMEDY}")
        if count != first["episodes"]:
            raise RecordError(
                f"{root}: its shards have {count} of {first['episodes']} episodes: fetch those that are missing, or "
                "write them again"
            )
        self.meta = {key: value for key, value in first["meta"].items() if key not in ("format", "num_shards")}
        self.summary: dict[str, Any] | None = first["summary"]

    @staticmethod
    def _told(file: Path, schema: pyarrow.Schema) -> dict[str, Any]:
        missing = [name for name in (*columns(), *PICTURES) if name not in (*schema.names, *YOUNGER)]
        if missing or ABOUT not in (schema.metadata or {}):
            what = f"no column {missing[0]}" if missing else "nothing about the data set"
            raise RecordError(f"{what}: written by an earlier version, or by something else")
        told = parse_json(schema.metadata[ABOUT], str(file), _REMEDY, RecordError)
        kinds = {"meta": dict, "summary": dict | None, "episodes": int}
        for key, kind in kinds.items():
            if key not in told or not isinstance(told[key], kind):
                raise RecordError(f"what it says about the data set has no {key}, or not as it should be")
        return told

    def episodes(self) -> Iterator[tuple[Episode, list[bytes], list[bytes]]]:
        """Episodes with the bytes of their JPEGs and of their depth images, if they have any."""
        import pyarrow.parquet as pq

        for file in self.files:
            with _named(file):
                for batch in pq.ParquetFile(file).iter_batches(batch_size=EPISODES_PER_GROUP):
                    for row in batch.to_pylist():
                        episode = from_row(row)
                        frames, depths = (self._pictures(episode, name, row[name]) for name in PICTURES)
                        yield episode, frames, depths

    @staticmethod
    def _pictures(episode: Episode, name: str, column: Any) -> list[bytes]:
        pictures: list[Any] = [(picture or {}).get("bytes") for picture in column or []]
        needed = 0 if episode.frames_of or (name == "depths" and not pictures) else len(episode.actions)
        if len(pictures) != needed:
            raise RecordError(f"episode {episode.episode_id}: {len(pictures)} {name}, {needed} are needed")
        for step, picture in enumerate(pictures):
            check_picture(picture, f"episode {episode.episode_id}, {name}, step {step}", png=name == "depths")
        return pictures


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """What is wrong with a shard becomes one line with its name."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        what = error if isinstance(error, RecordError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RecordError(f"{file}: {what}; {_REMEDY}") from None
