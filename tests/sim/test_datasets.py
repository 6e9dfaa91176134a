"""The datasets VLN-CE-v1 and RxR-VLN-CE-v1: what they read, what they leave out or refuse, and in which words."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from habitat import make_dataset
from omegaconf import OmegaConf

from habitat_vlnr1.sim.datasets import (
    EmptyShard,
    RxRVLNCEDataset,
    RxRVLNCEDatasetConfig,
    VLNCEDataset,
    VLNCEDatasetConfig,
)
from habitat_vlnr1.sim.episode_files import GroundTruth, parse_episode, path_digest

EXPERTS = ("reference_path", "pursuit", "shortest_path", "ground_truth")


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
        config["gt_path"] = str(tmp_path / "{split}_gt.json.gz")
    settings = {
        "data_path": str(tmp_path / "{split}.json.gz"),
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


def test_envdrop_and_scalevln_are_read_as_they_are_handed_on(tmp_path):
    """EnvDrop is a split of VLN-CE's own, with ground truth; ScaleVLN has HM3D's scenes and no tokens."""
    (tmp_path / "envdrop").mkdir()
    words = {"instruction_text": "Walk past the bed. Stop there.", "instruction_tokens": [12, 9, 0, 0]}
    augmented = [raw_episode(14_000 + n, trajectory_id=f"{n}_aug", instruction=words, info=None) for n in range(2)]
    vocabulary = {"word_list": ["<pad>", "<unk>", "bed"], "word2idx_dict": {}, "itos": [], "num_vocab": 3}
    write(tmp_path / "envdrop/envdrop.json.gz", {"episodes": augmented, "instruction_vocab": vocabulary})
    truth = {"actions": [1, 0], "locations": [[0, 0.1, 2], [3, 0.1, 2]], "forward_steps": 1}
    write(tmp_path / "envdrop/envdrop_gt.json.gz", {str(14_000 + n): truth for n in range(2)})
    paths = {
        key: str(tmp_path / f"{{split}}/{{split}}{end}.json.gz")
        for key, end in (("data_path", ""), ("gt_path", "_gt"))
    }
    dataset = load(tmp_path, split="envdrop", **paths)
    assert [(e.episode_id, e.trajectory_id) for e in dataset.episodes] == [("14000", "0_aug"), ("14001", "1_aug")]
    assert dataset.left_out == [] and dataset.ground_truth("14001").actions == (1, 0)

    scene = "hm3d/train/00800-TEEsavR23oF/TEEsavR23oF.basis.glb"
    words = {"instruction_text": "Exit the bedroom.", "instruction_tokens": None}
    scaled = [raw_episode(f"sv_{n}", scene, trajectory_id=None, instruction=words) for n in range(2)]
    for number, vocabulary in enumerate(({}, None, {"word_list": []})):
        file = tmp_path / f"scalevln_{number}.json.gz"
        write(file, {"episodes": scaled, "instruction_vocab": vocabulary})
        dataset = load(tmp_path, split="train", data_path=str(file))
        assert [e.scene_id for e in dataset.episodes] == [f"scenes/{scene}"] * 2 and dataset.left_out == []
        assert dataset.episodes[0].trajectory_id == "sv_0" and dataset.instruction_vocab is None


@pytest.mark.parametrize(
    ("change", "experts"),
    [
        ({"instruction": {"instruction_text": "Other."}, "trajectory_id": 9, "info": None}, EXPERTS),
        ({"reference_path": [[0, 0.1, 2], [1, 0.1, 2], [3, 0.1, 2]]}, ("shortest_path", "ground_truth")),
        ({"start_rotation": [0, 1, 0, 0]}, ()),
        ({"start_position": [0, 0.1, 2.0000001]}, ()),
        ({"goals": [{"position": [3, 0.1, 2.5]}]}, ()),
        ({"scene_id": "mp3d/B/B.glb"}, ()),
    ],
)  # fmt: skip
def test_two_episodes_share_a_walk_if_nothing_but_words_differs_for_the_expert(change, experts):
    truth = GroundTruth(np.array([[0, 0.1, 2], [3, 0.1, 2.0]]), (1, 0))
    one, other = parse_episode(raw_episode(1)), parse_episode(raw_episode(2) | change)
    for expert in EXPERTS:
        replayed = truth if expert == "ground_truth" else None
        same = path_digest(one, expert, replayed) == path_digest(other, expert, replayed)
        assert same == (expert in experts)
    for other_truth in (
        replace(truth, actions=(2, 0)),
        replace(truth, looks=1),
        replace(truth, locations=truth.locations + 1),
    ):
        assert path_digest(one, "ground_truth", truth) != path_digest(one, "ground_truth", other_truth)


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
        ({"instruction": {}}, "instruction must be an object with the text instruction_text"),
        ({"start_rotation": [0, 0, 1]}, "start_rotation must be 4 finite numbers, got [0, 0, 1]"),
        ({"start_rotation": [0, 0, 0, 0]}, "start_rotation must be a unit quaternion [x, y, z, w], got [0, 0, 0, 0]"),
        ({"start_position": [0, float("nan"), 1]}, "start_position must be 3 finite numbers, got [0, nan, 1]"),
        ({"start_position": "123"}, "start_position must be 3 finite numbers, got '123'"),
        ({"goals": [{"radius": 3}]}, "every entry of goals must be an object with a position"),
        ({"reference_path": [[0, "x", 0]]}, "reference_path point must be 3 numbers, got [0, 'x', 0]"),
        ({"scene_id": "../A.glb"}, "scene_id '../A.glb' does not name a file below the scenes' folder"),
        ({"scene_id": "/etc/A.glb"}, "scene_id '/etc/A.glb' does not name a file below the scenes' folder"),
        ({"episode_id": "../../2"}, "episode_id '../../2' cannot be a folder name"),
        ({"episode_id": 1}, "this episode_id occurs twice"),
        ({"instruction": {"instruction_text": "\ud83d lone"}}, "instruction_text has half a surrogate pair in it"),
        ({"trajectory_id": "\ud83d"}, "trajectory_id must be a text that can be written, or a number"),
        ({"trajectory_id": [1]}, "trajectory_id must be a text that can be written, or a number"),
        ({"scene_id": "\ud83d/A.glb"}, "scene_id '\\ud83d/A.glb' does not name a file below the scenes' folder"),
        ({"scene_id": "a\0b/A.glb"}, "scene_id 'a\\x00b/A.glb' does not name a file below the scenes' folder"),
        ({"scene_id": "/dev/zero"}, "scene_id '/dev/zero' does not name a file below the scenes' folder"),
        ({"scene_id": "a" * 300 + "/A.glb"}, "scene_id 'aaa"),
        ({"episode_id": "a" * 101}, "episode_id 'aaa"),
        ({"goals": 5}, "goals must be a list"),
        ({"reference_path": 5}, "reference_path must be a list"),
        ({"info": [1]}, "info must be an object"),
        ({"start_position": [10**400, 0, 0]}, "start_position must be 3 numbers, got [1000"),
    ],
)
def test_a_bad_episode_is_left_out_and_named(tmp_path, changes, words):
    dataset = load(tmp_path, [raw_episode(1), raw_episode(2, **changes), raw_episode(3)])
    assert [episode.episode_id for episode in dataset.episodes] == ["1", "3"]
    (entry,) = dataset.left_out
    assert entry.episode_id == str(changes.get("episode_id", 2))
    assert entry.reason.startswith(f"entry 1 of val.json.gz: {words}")
    assert "\n" not in entry.reason and entry.reason.encode()


def test_left_out_entries_follow_the_filters(tmp_path):
    bad = [raw_episode(1), raw_episode(2, start_position=[]), raw_episode(3, "mp3d/B/B.glb", start_position=[])]
    assert [e.episode_id for e in load(tmp_path, bad).left_out] == ["2", "3"]
    assert [e.episode_id for e in load(tmp_path, bad, content_scenes=["A"]).left_out] == ["2"]
    assert load(tmp_path, bad, episode_ids=["1"]).left_out == []
    assert [e.episode_id for e in load(tmp_path, bad, episode_ids=["1", "3"]).left_out] == ["3"]


def test_a_file_of_nothing_but_bad_entries_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"val.json.gz: no usable episode \(entry 0 of val.json.gz: not an object\)"):
        load(tmp_path, [3, {}])


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
    gt = {"1": {"locations": [[0, 0.1, 2], [0.25, 0.1, 2]], "actions": [1, 0], "forward_steps": 1}, "5": {}}
    dataset = load(tmp_path, [raw_episode(1), raw_episode(2)], gt)
    truth = dataset.ground_truth("1")
    assert truth.actions == (1, 0) and truth.locations.shape == (2, 3) and truth.looks == 0
    with pytest.raises(ValueError, match=r"val_gt.json.gz: episode 2: not in the file"):
        dataset.ground_truth("2")
    assert dataset.subset(dataset.episodes[1:]).ground_truth_problem("1") == "not in the file"  # a worker's part alone


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({}, "missing actions, locations"),
        ({"actions": [0]}, "missing locations"),
        ({"actions": [1], "locations": [[0, 0.1, 2]]}, "actions must be 0 to 5 and end in the one 0"),
        ({"actions": [1, 0, 2, 0], "locations": [[0, 0.1, 2]]}, "actions must be 0 to 5 and end in the one 0"),
        ({"actions": [7, 0], "locations": [[0, 0.1, 2]]}, "actions must be 0 to 5 and end in the one 0"),
        ({"actions": ["x"], "locations": [[0, 0.1, 2]]}, "actions must be whole numbers, locations [n, 3] numbers"),
        ({"actions": [0], "locations": [[0, 0]]}, "locations must be [n, 3] finite numbers"),
        ({"actions": [0], "locations": [[0, 0, float("nan")]]}, "locations must be [n, 3] finite numbers"),
    ],
)
def test_bad_ground_truth_is_the_episodes_alone(tmp_path, entry, problem):
    good = {"locations": [[0, 0.1, 2]], "actions": [0], "forward_steps": 0}
    dataset = load(tmp_path, [raw_episode(1), raw_episode(2)], {"1": entry, "2": good})
    assert dataset.ground_truth_problem("1") == problem and dataset.ground_truth_problem("2") is None


def test_ground_truth_files(tmp_path):
    assert load(tmp_path, [raw_episode()]).ground_truth("1") is None
    with pytest.raises(FileNotFoundError, match=r"val_gt.json.gz: no such file.*gt_path=null"):
        load(tmp_path, [raw_episode()], gt_path=str(tmp_path / "{split}_gt.json.gz"))
    dataset = load(tmp_path, [raw_episode()], [])
    with pytest.raises(ValueError, match="is this a ground-truth file"):
        dataset.ground_truth_problem("1")


def test_shards_are_whole_scenes_of_about_equal_size(tmp_path):
    scenes = "AAAAABBBBCCCDD"  # 5, 4, 3, 2
    episodes = [raw_episode(i, f"mp3d/{s}/{s}.glb") for i, s in enumerate(scenes)]
    parts = [load(tmp_path, episodes, shard=shard, num_shards=2).episodes for shard in range(2)]
    assert [{scenes[int(e.episode_id)] for e in part} for part in parts] == [{"A", "D"}, {"B", "C"}]
    assert sorted(int(e.episode_id) for part in parts for e in part) == list(range(14))
    with pytest.raises(EmptyShard, match="4 scenes for 5 shards: none for shard 4"):
        load(tmp_path, episodes, shard=4, num_shards=5)
    with pytest.raises(ValueError, match="count from 0"):
        load(tmp_path, episodes, shard=2, num_shards=2)


# ------------------------------------------------------------------------------------------------ RxR-VLN-CE-v1
def rxr_episode(name, language="en-US", **changes):
    words = {
        "instruction_id": 100 + int(name),
        "instruction_text": f"You are in {name}.",
        "language": language,
        "annotator_id": 3,
        "edit_distance": 0.1,
        "timed_instruction": [{"end_time": 1.4, "word": "You", "start_time": 0.2}, {"word": "are", "start_time": 2}],
    }
    return raw_episode(str(name), trajectory_id=None, instruction=words, **changes)


def test_ground_truth_of_other_episodes_is_refused(tmp_path):
    """Another split's file, whose ids fit: nDTW against it would be a wrong number, and nothing would say so."""
    episodes = [raw_episode(number) for number in range(4)]
    fits = {"locations": [[0, 0.1, 2], [2.8, 0.1, 2]], "actions": [1, 0]}
    elsewhere = fits | {"locations": [[5, 0.1, 2], [2.8, 0.1, 2]]}
    dataset = load(tmp_path, episodes, {"0": fits, "1": elsewhere, "2": fits})
    assert dataset.ground_truth_problem("0") is None
    assert dataset.ground_truth_problem("1") == "begins 5.0 m from where the episode does, so it is another's"
    other_goal = fits | {"locations": [[0, 0.1, 2], [-4, 0.1, 2]]}
    dataset = load(tmp_path, episodes, {"0": fits, "1": elsewhere, "2": other_goal})
    with pytest.raises(ValueError, match=r"val_gt.json.gz: 2 of 3 paths are not those of .*val.json.gz \(episode 1"):
        dataset.ground_truth_problem("0")


def test_an_odd_start_or_goal_does_not_make_the_ground_truth_anothers(tmp_path):
    """They are said to be off the navmesh later: the path still goes along the reference path."""
    fits = {"locations": [[0, 0.1, 2], [2.8, 0.1, 2]], "actions": [1, 0]}
    odd = [raw_episode(1, start_position=[-300, 0, 5]), raw_episode(2, goals=[{"position": [500, 0, 500]}])]
    dataset = load(tmp_path, odd, {"1": fits, "2": fits})
    assert dataset.ground_truth_problem("1") is None and dataset.ground_truth_problem("2") is None


GT = {"locations": [[0, 0.1, 2], [0.25, 0.1, 2]], "actions": [5, 1, 4, 4, 2, 0], "forward_steps": 1}


def load_rxr(tmp_path, guide, follower=None, gt=False, split="val_unseen", **config):
    folder = tmp_path / split
    folder.mkdir(exist_ok=True)
    for role, episodes in (("guide", guide), ("follower", follower)):
        if episodes is not None:
            write(folder / f"{split}_{role}.json.gz", {"episodes": episodes})
            truth = GT | {"locations": GT["locations"] if role == "guide" else [[0.5, 0.1, 2]]}
            write(folder / f"{split}_{role}_gt.json.gz", {e["episode_id"]: truth for e in episodes})
    settings = {"data_path": str(tmp_path / "{split}/{split}_{role}.json.gz"), "split": split, "scenes_dir": "scenes"}
    if gt:
        settings["gt_path"] = str(tmp_path / "{split}/{split}_{role}_gt.json.gz")
    return RxRVLNCEDataset(OmegaConf.structured(RxRVLNCEDatasetConfig(**settings | config)))


def ids(dataset):
    return [episode.episode_id for episode in dataset.episodes]


def test_rxr_is_english_guides_by_default(tmp_path):
    guide = [rxr_episode(i, tongue) for i, tongue in enumerate(["en-US", "hi-IN", "en-IN", "te-IN"])]
    dataset = load_rxr(tmp_path, guide, [rxr_episode(9)])
    assert ids(dataset) == ["0", "2"] and dataset.instruction_vocab is None and dataset.left_out == []
    words = dataset.episodes[1].instruction
    assert (words.instruction_id, words.language, words.role, words.timed_instruction) == (102, "en-IN", "guide", None)
    assert dataset.episodes[1].trajectory_id == "2"  # RxR has none
    assert ids(load_rxr(tmp_path, guide, languages=["hi-IN"])) == ["1"]
    assert ids(load_rxr(tmp_path, guide, languages=["*"])) == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match=r"languages: 'fr-\*' matches none of en-US, en-IN, hi-IN, te-IN"):
        load_rxr(tmp_path, guide, languages=["en-US", "fr-*"])
    kept = load_rxr(tmp_path, guide, timed_instructions=True).episodes[0].instruction.timed_instruction
    assert kept[0] == {"end_time": 1.4, "word": "You", "start_time": 0.2}


def test_rxr_roles_and_their_ground_truth(tmp_path):
    dataset = load_rxr(tmp_path, [rxr_episode(1)], [rxr_episode(2), rxr_episode(1)], gt=True, roles=["*"])
    assert [(e.episode_id, e.instruction.role) for e in dataset.episodes] == [("1", "guide"), ("2", "follower")]
    assert dataset.left_out[0].reason == "entry 1 of val_unseen_follower.json.gz: this episode_id occurs twice"
    assert dataset.ground_truth("1").locations.tolist() == GT["locations"]
    assert dataset.ground_truth("2").locations.tolist() == [[0.5, 0.1, 2]]
    assert (dataset.ground_truth("1").actions, dataset.ground_truth("1").looks) == ((1, 2, 0), 3)


def test_rxr_test_challenge_has_guides_without_goals(tmp_path):
    bare = rxr_episode(1, goals=None, reference_path=None, info=None)
    assert ids(load_rxr(tmp_path, [bare], split="test_challenge", roles=["*"])) == ["1"]
    with pytest.raises(ValueError, match=r"roles \(split test_challenge\): 'follower' matches none of guide"):
        load_rxr(tmp_path, [bare], split="test_challenge", roles=["follower"])


def test_rxr_lacking_what_a_submission_needs_is_left_out(tmp_path):
    lacking = rxr_episode(2)
    del lacking["instruction"]["instruction_id"], lacking["instruction"]["language"]
    dataset = load_rxr(tmp_path, [rxr_episode(1), lacking])
    assert [e.reason for e in dataset.left_out] == [
        "entry 1 of val_unseen_guide.json.gz: instruction lacks instruction_id, language"
    ]


def test_both_are_registered_under_their_users_names(tmp_path):
    load_rxr(tmp_path, [rxr_episode(1)])
    path = str(tmp_path / "{split}/{split}_{role}.json.gz")
    config = RxRVLNCEDatasetConfig(data_path=path, split="val_unseen", scenes_dir=str(tmp_path))
    assert ids(make_dataset("RxR-VLN-CE-v1", config=OmegaConf.structured(config))) == ["1"]
    assert RxRVLNCEDataset.check_config_paths_exist(OmegaConf.structured(config))
    assert isinstance(make_dataset("VLN-CE-v1"), VLNCEDataset)
