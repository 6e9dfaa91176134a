"""Parquet shards: nothing is lost, and `datasets` reads them."""

import io
import json
import os
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.interchange import parquet
from habitat_vlnr1.interchange.parquet import ParquetEpisodes, from_row, shards, to_row, write_parquet
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.records import Episode, RecordError, VLNEgo
from tests.test_records import META, episode, jpeg


@pytest.fixture
def ego(tmp_path):
    writer = EpisodeWriter(tmp_path / "ego", META)
    for name in range(5):
        actions = (1, 2, 1, 0)[: 2 + name % 3] if name % 3 == 2 else (1, 0)
        words = tuple(f"seen {i}" for i in range(len(actions))) if name == 2 else ()
        told = Episode(str(name), "house", "Gehe zur Tür.", actions, {"trajectory_id": name}, words)
        writer.write(told, [jpeg(10 * i) for i in range(len(actions))])
    writer.close()
    return VLNEgo(tmp_path / "ego")


def test_every_episode_and_every_byte_comes_back(ego, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "EPISODES_PER_GROUP", 2)
    write_parquet(ego, tmp_path / "out")
    again = list(ParquetEpisodes(tmp_path / "out").episodes())
    assert [read for read, *_ in again] == ego.episodes
    for read, frames, depths in again:
        assert frames == [(ego.root / read.frame(i)).read_bytes() for i in range(len(read.actions))]
        assert depths == []


def test_frames_that_episodes_share_are_in_one_row(tmp_path, monkeypatch):
    writer = EpisodeWriter(tmp_path / "ego", META | {"packed": True})
    writer.write(episode("1", [1, 0]), [jpeg(1), jpeg(2)])
    writer.write(replace(episode("2", [1, 0]), frames_of="1"), [])
    writer.close()
    ego = VLNEgo(tmp_path / "ego")
    write_parquet(ego, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/data/train-00000.parquet").to_pylist()
    assert [(row["frames_of"], len(row["frames"])) for row in rows] == [("", 2), ("1", 0)]
    assert list(ParquetEpisodes(tmp_path / "out").episodes()) == [
        (ego.episodes[0], [jpeg(1), jpeg(2)], []),
        (ego.episodes[1], [], []),
    ]
    # Shards of the version before have no such column.
    file = tmp_path / "out/data/train-00000.parquet"
    table = pq.read_table(file).drop_columns(["frames_of"]).slice(0, 1)
    told = json.loads(table.schema.metadata[parquet.ABOUT]) | {"episodes": 1}
    pq.write_table(table.replace_schema_metadata({parquet.ABOUT: json.dumps(told)}), file)
    assert [read for read, *_ in ParquetEpisodes(tmp_path / "out").episodes()] == ego.episodes[:1]


def depth_png(level):
    buffer = io.BytesIO()
    Image.fromarray(np.full((3, 4), level, dtype=np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def walked(tmp_path):
    """A DAgger round with depth: labels that are not what was done, at some of the steps."""
    meta = META | {"depth": "16-bit PNG", "dagger": {"round": 1}, "split": "Übung"}
    writer = EpisodeWriter(tmp_path / "walked/train", meta)
    for name in ("1", "2"):
        info = {"success": 1.0, "far": 0.1 + 0.2, "said": "«ja»", "none": None}
        labels = {0: (2, 1, 0), 2: (0,)}
        walk = Episode(name, "house", "Gehe zur Tür.", (1, 1, 3, 1), info, ("a", "b", "", "d"), labels)
        writer.write(walk, [jpeg(10 * i) for i in range(4)], [depth_png(i) for i in range(4)])
    writer.close()
    (tmp_path / "walked/train/summary.json").write_text(json.dumps({"episodes": 2, "success": 0.5}, indent=2))
    return VLNEgo(tmp_path / "walked/train")


def test_labels_depth_meta_and_summary_come_back_byte_for_byte(walked, tmp_path):
    write_parquet(walked, tmp_path / "out", frames_per_shard=4)
    shards = ParquetEpisodes(tmp_path / "out")
    writer = EpisodeWriter(tmp_path / "back", shards.meta)
    for read, frames, depths in shards.episodes():
        writer.write(read, frames, depths)
    writer.close()
    for file in sorted(path for path in walked.root.rglob("*") if path.is_file() and path.name != "summary.json"):
        assert (tmp_path / "back" / file.relative_to(walked.root)).read_bytes() == file.read_bytes()
    assert shards.summary == {"episodes": 2, "success": 0.5}
    memory = make_memory("current", budget=0)
    before, after = (VLNEgo(root).records(memory, 1) for root in (walked.root, tmp_path / "back"))
    assert [record.answer for record in after] == [record.answer for record in before]


def test_every_field_of_an_episode_has_a_column_those_of_tomorrow_too(walked, tmp_path):
    @dataclass(frozen=True)
    class Tomorrow(Episode):
        weights: tuple[float, ...] = ()
        quality: float = 0.0
        seen: dict[str, list[int]] = field(default_factory=dict)

    known = VLNEgo(walked.root).episodes[0]
    told = Tomorrow(**vars(known), weights=(0.5, 0.25), quality=0.125, seen={"door": [1, 2]})
    assert {f.name for f in fields(Tomorrow)} == set(to_row(told))
    assert from_row(to_row(told), Tomorrow) == told
    write_parquet(walked, tmp_path / "out")
    stored = pq.read_schema(tmp_path / "out/data/train-00000.parquet").names
    assert stored == [*(f.name for f in fields(Episode)), "frames", "depths"]


def test_shards_of_an_earlier_version_and_missing_ones_are_refused(ego, walked, tmp_path):
    write_parquet(walked, tmp_path / "out", frames_per_shard=4)
    first, second = sorted((tmp_path / "out/data").iterdir())
    table = pq.read_table(second)
    pq.write_table(table.drop_columns(["labels"]), second)
    with pytest.raises(RecordError, match=r"train-00001\.parquet: no column labels: written by an earlier version"):
        ParquetEpisodes(tmp_path / "out")
    second.unlink()
    with pytest.raises(RecordError, match="its shards have 1 of 2 episodes: fetch those that are missing"):
        ParquetEpisodes(tmp_path / "out")
    write_parquet(ego, tmp_path / "other")
    (tmp_path / "other/data/train-00000.parquet").rename(second)
    with pytest.raises(RecordError, match=r"train-00001\.parquet: of another data set than train-00000\.parquet"):
        ParquetEpisodes(tmp_path / "out")
    first.unlink()


def test_a_missing_depth_image_is_named(walked, tmp_path):
    (walked.root / walked.episodes[1].depth(2)).unlink()
    with pytest.raises(RecordError, match=r"0002\.depth\.png: cannot be read"):
        write_parquet(walked, tmp_path / "out")


def test_datasets_reads_and_streams_them_with_images(ego, tmp_path):
    from datasets import load_dataset

    write_parquet(ego, tmp_path / "out", frames_per_shard=4)
    assert len(list((tmp_path / "out/data").iterdir())) == 3
    files = str(tmp_path / "out/data/train-*.parquet")
    loaded = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    streamed = load_dataset("parquet", data_files=files, split="train", streaming=True)
    for rows in (loaded, streamed):
        rows = list(rows)
        assert [row["episode_id"] for row in rows] == [e.episode_id for e in ego.episodes]
        assert [tuple(row["actions"]) for row in rows] == [e.actions for e in ego.episodes]
        frame = rows[2]["frames"][3]
        with Image.open(ego.root / ego.episodes[2].frame(3)) as original:
            assert np.array_equal(np.asarray(frame), np.asarray(original))


def test_finished_shards_stay_and_half_ones_are_not_seen(ego, tmp_path):
    frame = ego.root / ego.episodes[3].frame(0)
    whole = frame.read_bytes()
    frame.write_bytes(whole[:-5])
    with pytest.raises(RecordError, match="not a whole JPEG"):
        write_parquet(ego, tmp_path / "out", frames_per_shard=4)
    first = tmp_path / "out/data/train-00000.parquet"
    os.utime(first, (1, 1))
    frame.write_bytes(whole)
    write_parquet(ego, tmp_path / "out", frames_per_shard=4)
    assert first.stat().st_mtime == 1
    assert len(list(ParquetEpisodes(tmp_path / "out").episodes())) == len(ego.episodes)


def test_shards_keep_the_order_and_end_with_whole_episodes():
    told = [episode(str(i), [1] * 3 + [0]) for i in range(5)]
    parts = list(shards(told, frames=6))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert [e for part in parts for e in part] == told


def test_damage_is_named(ego, tmp_path):
    write_parquet(ego, tmp_path / "out")
    file = tmp_path / "out/data/train-00000.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(RecordError, match=r"train-00000\.parquet: .*write or fetch this shard again"):
        list(ParquetEpisodes(tmp_path / "out").episodes())
    with pytest.raises(RecordError, match=r"no data/\*\.parquet"):
        ParquetEpisodes(tmp_path / "nothing")
