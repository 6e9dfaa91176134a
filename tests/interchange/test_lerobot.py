"""LeRobot's format 3.0: files, columns, indices. What LeRobot itself reads of it stands in docs/interchange.md."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.frame_files import decode_picture
from habitat_vlnr1.interchange import lerobot
from habitat_vlnr1.interchange.lerobot import IMAGE, NUMBERS, write_lerobot
from habitat_vlnr1.records import Episode, RecordError, VLNEgo
from tests.tiny_run import WORDS, jpeg

FIRST = Episode("1", "s", WORDS[0], (1, 3, 1, 0))


@pytest.fixture
def ego(tmp_path):
    writer = EpisodeWriter(tmp_path / "ego", {"packed": True})
    writer.write(FIRST, [jpeg(i) for i in range(4)])
    writer.write(replace(FIRST, episode_id="2", instruction=WORDS[1], frames_of="1"), [])
    writer.write(Episode("3", "s", WORDS[0], (2, 0)), [jpeg(9), jpeg(10)])
    writer.close()
    return VLNEgo(tmp_path / "ego")


@pytest.fixture
def out(ego, tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot, "MEGABYTES_PER_FILE", 0.02)  # two episodes in the first file
    write_lerobot(ego, tmp_path / "out")
    return tmp_path / "out"


def test_files_and_indices(ego, out):
    info = json.loads((out / "meta/info.json").read_text())
    assert (info["codebase_version"], info["splits"], info["fps"]) == ("v3.0", {"train": "0:3"}, 1)
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 10, 2)
    tasks = pd.read_parquet(out / "meta/tasks.parquet")
    assert list(tasks.index) == WORDS and list(tasks.task_index) == [0, 1]
    places = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    row = 0
    for index, (place, episode) in enumerate(zip(places, ego.episodes, strict=True)):
        assert (place["episode_index"], place["tasks"], place["length"]) == (
            index, [episode.instruction], len(episode.actions),
        )  # fmt: skip
        file = info["data_path"].format(chunk_index=place["data/chunk_index"], file_index=place["data/file_index"])
        rows = [row for row in pq.read_table(out / file).to_pylist() if row["episode_index"] == index]
        assert [step["index"] for step in rows] == list(range(row, row + len(episode.actions)))
        assert (place["dataset_from_index"], place["dataset_to_index"]) == (row, row + len(rows))
        assert [step["action"] for step in rows] == list(episode.actions)
        assert [step["timestamp"] for step in rows] == [step["frame_index"] for step in rows] == list(range(len(rows)))
        assert {tasks.index[step["task_index"]] for step in rows} == {episode.instruction}
        row += len(rows)
    assert sorted(path.name for path in (out / "data/chunk-000").iterdir()) == ["file-000.parquet", "file-001.parquet"]


def test_images_are_the_exported_bytes_and_columns_are_as_described(out):
    first = pq.read_table(out / "data/chunk-000/file-000.parquet")
    assert [row["bytes"] for row in first[IMAGE].to_pylist()] == [jpeg(i) for i in range(4)] * 2
    features = json.loads((out / "meta/info.json").read_text())["features"]
    assert features[IMAGE]["shape"] == [56, 56, 3]
    assert set(first.column_names) == set(features) == {IMAGE, *NUMBERS}
    for name, kind in NUMBERS.items():
        assert str(first.schema.field(name).type).replace("float", "float32") == features[name]["dtype"] == kind
    assert json.loads(first.schema.metadata[b"huggingface"])["info"]["features"][IMAGE]["_type"] == "Image"


def test_statistics_are_of_the_data(out):
    stats = json.loads((out / "meta/stats.json").read_text())
    assert stats["action"]["count"] == [10] and stats["action"]["mean"] == [1.2]
    assert (stats["index"]["min"], stats["index"]["max"]) == ([0], [9])
    pixels = [decode_picture(jpeg(i))[::4, ::4] for i in (0, 1, 2, 3, 0, 1, 2, 3, 9, 10)]
    assert np.allclose(np.array(stats[IMAGE]["mean"])[:, 0, 0], np.mean(pixels, axis=(0, 1, 2)) / 255)
    assert np.shape(stats[IMAGE]["std"]) == (3, 1, 1)


def test_an_interrupted_call_goes_on(ego, out):
    second = out / "data/chunk-000/file-001.parquet"
    content, kept = second.read_bytes(), (out / "data/chunk-000/file-000.parquet").stat().st_mtime_ns
    second.unlink()
    (out / "meta/info.json").unlink()
    write_lerobot(ego, out)
    assert second.read_bytes() == content and (out / "meta/info.json").is_file()
    assert (out / "data/chunk-000/file-000.parquet").stat().st_mtime_ns == kept


def test_labelled_walks_and_frames_of_two_sizes_are_refused(tmp_path):
    writer = EpisodeWriter(tmp_path / "dagger", {})
    writer.write(replace(FIRST, labels={0: (2, 0)}), [jpeg(i) for i in range(4)])
    writer.close()
    with pytest.raises(RecordError, match="a DAgger round, whose actions are not what is taught"):
        write_lerobot(VLNEgo(tmp_path / "dagger"), tmp_path / "out")
    writer = EpisodeWriter(tmp_path / "sizes", {})
    writer.write(FIRST, [jpeg(i) for i in range(4)])
    from tests.test_records import jpeg as small

    writer.write(replace(FIRST, episode_id="2"), [small(i) for i in range(4)])
    writer.close()
    with pytest.raises(RecordError, match=r"frames/s/2/0000.jpg: 8 × 8 pixels, others 56 × 56"):
        write_lerobot(VLNEgo(tmp_path / "sizes"), tmp_path / "out")
