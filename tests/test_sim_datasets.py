"""The dataset VLN-CE-v1: what it reads, what it refuses, and in which words."""

import gzip
import json

import pytest
from omegaconf import OmegaConf

from habitat_vlnr1.sim.datasets import VLNCEDataset, VLNCEDatasetConfig, parse_episode


def raw_episode(name=1, scene="mp3d/A/A.glb", **changes):
    episode = {
        "episode_id": name,
        "trajectory_id": 7,
        "scene_id": scene,
        "start_position": [0, 0.1, 2],
        "start_rotation": [0, 0, 0, 1],
        "info": {"geodesic_distance": 4.0},
        "goals": [{"position": [3, 0.1, 2], "radius": 3.0}],
        "instruction": {"instruction_text": "Go to the sofa.", "instruction_tokens": [4, 5]},
        "reference_path": [[0, 0.1, 2], [3, 0.1, 2]],
    }
    episode.update(changes)
    return {key: value for key, value in episode.items() if value is not None}


def write(path, content):
    with gzip.open(path, "wt") as file:
        json.dump(content, file)


def load(tmp_path, episodes=None, gt=None, **config):
    if episodes is not None:
        write(tmp_path / "val.json.gz", {"episodes": episodes})
    if gt is not None:
        write(tmp_path / "val_gt.json.gz", gt)
    settings = {
        "data_path": str(tmp_path / "{split}.json.gz"),
        "gt_path": str(tmp_path / "{split}_gt.json.gz"),
        "split": "val",
        "scenes_dir": "scenes",
        **config,
    }
    return VLNCEDataset(OmegaConf.structured(VLNCEDatasetConfig(**settings)))


def test_reads_the_r2r_schema(tmp_path):
    dataset = load(tmp_path, [raw_episode(), raw_episode(2, "data/scene_datasets/mp3d/B/B.glb")])
    first, second = dataset.episodes
    assert (first.episode_id, first.trajectory_id, first.scene_id) == ("1", 7, "scenes/mp3d/A/A.glb")
    assert second.scene_id == "scenes/mp3d/B/B.glb"
    assert first.instruction.instruction_text == "Go to the sofa."
    assert first.goals[0].position == [3, 0.1, 2]
    assert dataset.instruction_vocab is None


def test_split_test_has_neither_goals_nor_path(tmp_path):
    dataset = load(tmp_path, [raw_episode(goals=None, reference_path=None, info=None)])
    assert dataset.episodes[0].goals == [] and dataset.episodes[0].reference_path == []


def test_unknown_keys_are_left_out():
    words = {"instruction_text": "Go.", "language": "en-US"}
    assert parse_episode(raw_episode(instruction=words, role="guide")).instruction.instruction_text == "Go."


def test_filters(tmp_path):
    episodes = [raw_episode(i, f"mp3d/{s}/{s}.glb") for i, s in enumerate("ABABA")]
    assert [e.episode_id for e in load(tmp_path, episodes, episode_ids=["3", "0"]).episodes] == ["0", "3"]
    assert [e.episode_id for e in load(tmp_path, episodes, content_scenes=["A"]).episodes] == ["0", "2", "4"]
    assert [e.episode_id for e in load(tmp_path, episodes, content_scenes=["A"], max_episodes=2).episodes] == [
        "0",
        "2",
    ]
    with pytest.raises(ValueError, match=r"no episode 9 in split val"):
        load(tmp_path, episodes, episode_ids=["9"])
    with pytest.raises(ValueError, match="no episode is left"):
        load(tmp_path, episodes, content_scenes=["C"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start_position": None}, "missing start_position"),
        ({"instruction": {}}, "instruction_text"),
        ({"start_rotation": [0, 0, 1]}, "start_rotation must be 4 finite numbers"),
        ({"start_position": [0, float("nan"), 1]}, "start_position must be 3 finite numbers"),
        ({"goals": [{"radius": 3}]}, "goals must be an object with a position"),
        ({"reference_path": [[0, "x", 0]]}, "reference_path point must be 3 numbers"),
    ],
)
def test_a_bad_episode_is_named(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        load(tmp_path, [raw_episode(1), raw_episode(2, **changes)])
    assert "val.json.gz: episode 2 (entry 1)" in str(caught.value) and "\n" not in str(caught.value)


def test_duplicate_episode_id(tmp_path):
    with pytest.raises(ValueError, match=r"episode 1 \(entry 1\): this episode_id occurs twice"):
        load(tmp_path, [raw_episode(1), raw_episode("1")])


def test_missing_and_damaged_files(tmp_path):
    path = tmp_path / "val.json.gz"
    with pytest.raises(FileNotFoundError, match=r"val.json.gz: no such file"):
        load(tmp_path)
    path.write_text("version https://git-lfs")
    with pytest.raises(ValueError, match="not a gzip file"):
        load(tmp_path)
    path.write_bytes(gzip.compress(b'{"episodes": [' + bytes(range(48, 58)) * 99)[:-12])
    with pytest.raises(ValueError, match="cut or damaged"):
        load(tmp_path)
    path.write_bytes(gzip.compress(b'{"episodes": ['))
    with pytest.raises(ValueError, match="not valid JSON"):
        load(tmp_path)
    path.write_bytes(gzip.compress(b"[]"))
    with pytest.raises(ValueError, match="no list 'episodes'"):
        load(tmp_path)


def test_ground_truth(tmp_path):
    gt = {"1": {"locations": [[0, 0, 0], [0, 0, -0.25]], "actions": [1, 0], "forward_steps": 1}, "5": {}}
    dataset = load(tmp_path, [raw_episode(1), raw_episode(2)], gt)
    truth = dataset.ground_truth("1")
    assert truth.actions == (1, 0) and truth.locations.shape == (2, 3)
    with pytest.raises(ValueError, match=r"val_gt.json.gz: episode 2: no usable"):
        dataset.ground_truth("2")
    gt["1"]["actions"] = [1]
    with pytest.raises(ValueError, match="must end in 0"):
        load(tmp_path, [raw_episode(1)], gt).ground_truth("1")


def test_no_ground_truth_file(tmp_path):
    assert load(tmp_path, [raw_episode()]).ground_truth("1") is None
    assert load(tmp_path, [raw_episode()], gt_path=None).ground_truth("1") is None
