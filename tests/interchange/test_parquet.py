"""Parquet shards: nothing is lost, and `datasets` reads them."""

import os

import numpy as np
import pytest
from PIL import Image

from habitat_vlnr1.interchange import parquet
from habitat_vlnr1.interchange.parquet import ParquetEpisodes, shards, write_parquet
from habitat_vlnr1.records import Episode, EpisodeWriter, RecordError, VLNEgo
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
    assert [read for read, _ in again] == ego.episodes
    for read, frames in again:
        assert frames == [(ego.root / read.frame(i)).read_bytes() for i in range(len(read.actions))]


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
