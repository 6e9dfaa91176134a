"""The export on small generated houses: shards, what the data does not allow, RxR's looks, and the exit status."""

import gzip
import json
import threading

import pytest
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.config.default import get_config

from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.frame_files import read_picture
from habitat_vlnr1.records import RecordError, VLNEgo
from habitat_vlnr1.trainers.export import check_shards, is_exported, merged, summary_files
from tests.paths import CONFIGS

houses = pytest.importorskip("habitat_embedded_sim.houses")
MADE = {"train_scenes": 3, "train_episodes_per_scene": 2, "val_seen_episodes": 1, "val_unseen_scenes": 1}
SMALL = ["vlnr1.task.scenes=null", "vlnr1.export.describe=false", "vlnr1.export.num_environments=1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    houses.ensure(root / "data", **MADE, val_unseen_episodes_per_scene=1, forward_step=0.5, num_workers=1)
    return root


@pytest.fixture
def export(home, monkeypatch):
    """Export as the command does, in this process; returns the config."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("HABITAT_ENV_DEBUG", "1")  # threads instead of processes: much quicker to start

    def run(*overrides):
        config = get_config("vlnr1_export.yaml", [*SMALL, *overrides], CONFIGS)
        baseline_registry.get_trainer("vlnr1_export")(config).train()
        return config

    return run


def make_split(home, name, change):
    """A split like train with `change(episodes, truth)` applied."""
    folder = home / "data/datasets/vln/embedded"
    read = [json.loads(gzip.decompress((folder / f"train/train{part}.json.gz").read_bytes())) for part in ("", "_gt")]
    change(read[0]["episodes"], read[1])
    (folder / name).mkdir()
    for part, content in zip(("", "_gt"), read, strict=True):
        (folder / name / f"{name}{part}.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))


@pytest.mark.slow
def test_shards_fill_one_folder_and_the_last_one_sums_up(export, home, capsys):
    shards = ["vlnr1.data.source=sharded", "vlnr1.export.num_shards=4"]
    root = home / "data/vln_ego/sharded/train"
    for shard in (2, 0, 3):  # three scenes for four shards: the last is empty
        config = export(*shards, f"vlnr1.export.shard={shard}")
        assert not is_exported(config, "train") and not (root / "summary.json").exists()
    assert "3 scenes for 4 shards: none for shard 3" in capsys.readouterr().out
    with pytest.raises(RecordError, match=r"num_shards=4, now 1 \(not finished: shard 1\): go on with num_shards=4"):
        export("vlnr1.data.source=sharded")
    with pytest.raises(ValueError, match=r"shard=4 of 4: shards count from 0"):
        export(*shards, "vlnr1.export.shard=4")
    config = export(*shards, "vlnr1.export.shard=1")
    assert is_exported(config, "train")
    ego = VLNEgo(root)
    ego.check_frames()
    assert len({episode.scene for episode in ego.episodes}) == 3
    assert len(list(root.glob("episodes-?.jsonl"))) == 4 and not (root / "episodes.jsonl").exists()
    whole = json.loads((root / "summary.json").read_text())
    assert whole["episodes"] == len(ego.episodes) and whole["episodes"] + len(whole["skipped"]) == 6
    assert f"train, all 4 shards: {len(ego.episodes)} episodes" in capsys.readouterr().out
    # Stopped in the middle of a line and started again, a shard goes on with what it lacks.
    lines = (root / "episodes-0.jsonl").read_text()
    (root / "episodes-0.jsonl").write_text(lines[:-30])
    export(*shards, "vlnr1.export.shard=0")
    assert {e.episode_id for e in VLNEgo(root).episodes} == {e.episode_id for e in ego.episodes}
    assert json.loads((root / "summary.json").read_text()) == whole


def test_bad_data_is_left_out_listed_and_told_by_the_exit_status(export, home, capsys):
    def spoil(episodes, truth):
        episodes[0]["start_rotation"] = [0, 0, 1]
        episodes[1]["episode_id"] = "../../../out"
        episodes[2]["goals"][0]["position"] = [500, 0, 500]
        episodes[3]["scene_id"] = "embedded/none/none.glb"

    make_split(home, "spoilt", spoil)
    with pytest.raises(SystemExit) as stopped:
        export("vlnr1.export.splits=[spoilt]")
    assert stopped.value.code == 3
    root = home / "data/vln_ego/embedded/spoilt"
    summary = json.loads((root / "summary.json").read_text())
    reasons = {entry["episode_id"]: entry["reason"] for entry in summary["left_out"]}
    assert reasons == {
        "1": "entry 0 of spoilt.json.gz: start_rotation must be 4 finite numbers, got [0, 0, 1]",
        "../../../out": "entry 1 of spoilt.json.gz: episode_id '../../../out' cannot be a folder name",
        "3": "goal is off the navmesh",
        "4": "no such scene: data/scene_datasets/embedded/none/none.glb",
    }
    assert [entry["scene_id"] for entry in summary["left_out"]][-1].startswith("embedded/")
    assert {episode.episode_id for episode in VLNEgo(root).episodes} | set(summary["skipped"]) == {"5", "6"}
    out = capsys.readouterr().out
    assert "spoilt: left out: goal is off the navmesh: 3" in out
    assert out.splitlines()[-1] == "Done, but 4 episodes were left out because of the data; exit status 3"


def test_looks_of_the_ground_truth_are_skipped_and_counted(export, home, capsys):
    def look(episodes, truth):
        del episodes[2:]
        for entry in truth.values():
            entry["actions"] = [5, 4, *entry["actions"][:-1], 4, 0]

    make_split(home, "looks", look)
    export("vlnr1.export.splits=[looks]", "vlnr1.task.expert=ground_truth")
    root = home / "data/vln_ego/embedded/looks"
    assert json.loads((root / "summary.json").read_text())["looks_skipped"] == 6
    assert [episode.info["looks_skipped"] for episode in VLNEgo(root).episodes] == [3, 3]
    assert "looks: 6 LOOK_UP and LOOK_DOWN of the ground truth were skipped" in capsys.readouterr().out


def test_a_replay_that_leaves_the_recorded_path_is_no_walk(export, home, capsys):
    """Under another turn angle some walks end near the goal by luck."""

    def turn(episodes, truth):
        del episodes[2:]

    make_split(home, "turned", turn)
    export(
        "vlnr1.export.splits=[turned]", "vlnr1.task.expert=ground_truth", "vlnr1.data.source=turned",
        "vlnr1.protocol.turn_angle=90", "vlnr1.protocol.success_distance=50",
    )  # fmt: skip
    summary = json.loads((home / "data/vln_ego/turned/turned/summary.json").read_text())
    assert [why.split(":")[0] for why in summary["skipped"].values()] == ["replay left the recorded path"] * 2


def thrice(episodes, truth):
    """Two paths of three instructions each, as R2R has them, and one of another start."""
    del episodes[2:]
    for number, again in enumerate([*episodes, *episodes, episodes[0]], start=3):
        words = {"instruction_text": f"Words of {number}."}
        episodes.append({**again, "episode_id": str(number), "instruction": words})
        truth[str(number)] = truth[str(again["episode_id"])]
    turned = {**episodes[-1], "start_rotation": [0.0, 1.0, 0.0, 0.0]}
    episodes[-1] = turned


def lines_of(root):
    return {episode.episode_id: episode for episode in VLNEgo(root).episodes}


def test_a_path_is_walked_once_and_a_stopped_export_goes_on(export, home, capsys):
    make_split(home, "thrice", thrice)
    command = ["vlnr1.export.splits=[thrice]", "vlnr1.data.source=whole", "vlnr1.task.expert=reference_path"]
    export(*command)
    root = home / "data/vln_ego/whole/thrice"
    whole = lines_of(root)
    assert len(whole) == 7 and {name: e.frames_of for name, e in whole.items() if e.frames_of} == {
        "3": "1", "5": "1", "4": "2", "6": "2",
    }  # fmt: skip
    assert whole["5"].instruction == "Words of 5." and whole["5"].actions == whole["1"].actions
    frames = sum(len(whole[name].actions) for name in ("1", "2", "7"))
    assert len(list((root / "frames").rglob("*.jpg"))) == frames
    assert "thrice: 7 episodes of 3 walks" in capsys.readouterr().out
    assert "| walks | 3:" in (root / "README.md").read_text()
    # Stopped at any line, it ends with the same lines, in however many environments it goes on.
    lines = (root / "episodes.jsonl").read_text().splitlines(keepends=True)
    for kept in (1, 2, 5):
        (root / "episodes.jsonl").write_text("".join(lines[:kept]) + lines[kept][:20])
        export(*command, "vlnr1.export.num_environments=2")
        assert lines_of(root) == whole
        assert len(list((root / "frames").rglob("*.jpg"))) == frames
    # The line of the walk itself is missing, the lines of the others are not.
    (root / "episodes.jsonl").write_text("".join(line for line in lines if '"episode_id": "1"' not in line))
    export(*command)
    assert lines_of(root) == whole


def test_a_path_that_fails_fails_for_all_its_episodes(export, home):
    def spoil(episodes, truth):
        thrice(episodes, truth)
        for episode in episodes:
            if str(episode["episode_id"]) in ("2", "4", "6"):
                episode["goals"] = [{"position": [500, 0, 500], "radius": 3.0}]

    make_split(home, "failing", spoil)
    with pytest.raises(SystemExit):
        export("vlnr1.export.splits=[failing]", "vlnr1.protocol.max_steps=3", "vlnr1.data.source=failing")
    summary = json.loads((home / "data/vln_ego/failing/failing/summary.json").read_text())
    assert [entry["episode_id"] for entry in summary["left_out"]] == ["2", "4", "6"]
    assert set(summary["skipped"]) == {"1", "3", "5", "7"} and summary["episodes"] == 0


def test_a_packed_export_holds_the_same_frames(export, home):
    make_split(home, "packed", thrice)
    command = ["vlnr1.export.splits=[packed]", "vlnr1.task.expert=reference_path"]
    export(*command, "vlnr1.data.source=loose")
    export(*command, "vlnr1.data.source=tight", "vlnr1.export.pack=true")
    loose, tight = (home / "data/vln_ego" / source / "packed" for source in ("loose", "tight"))
    assert lines_of(tight) == lines_of(loose)
    assert sorted(path.name for path in (tight / "frames").rglob("*.*")) == ["1.zip", "2.zip", "7.zip"]
    VLNEgo(tight).check_frames()
    for episode in VLNEgo(loose).walked:
        for step in range(len(episode.actions)):
            assert read_picture(tight / episode.frame(step)) == (loose / episode.frame(step)).read_bytes()
    with pytest.raises(RecordError, match="packed: true there, null now"):
        export(*command, "vlnr1.data.source=tight")


def test_another_episode_file_in_the_same_source_is_refused(export, home):
    make_split(home, "first", lambda episodes, truth: episodes.__delitem__(slice(2, None)))
    export("vlnr1.export.splits=[first]", "vlnr1.task.expert=ground_truth")
    assert json.loads((home / "data/vln_ego/embedded/first/meta.json").read_text())["task"]["name"] == "embedded"
    folder = home / "data/datasets/vln/embedded/first"
    content = json.loads(gzip.decompress((folder / "first.json.gz").read_bytes()))
    content["episodes"][0]["instruction"]["instruction_text"] = "Go back to where you came from."
    (folder / "first.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    with pytest.raises(RecordError, match=r"made from something else \(task.episodes.first.json.gz: .*data.source"):
        export("vlnr1.export.splits=[first]", "vlnr1.task.expert=ground_truth")


def test_rxr_files_are_exported_with_their_instruction_ids(export, home):
    """Generated houses under RxR-CE's names and schema: the whole path of vlnr1/task=rxr."""
    folder = home / "data/datasets/vln/embedded/train"
    episodes = json.loads(gzip.decompress((folder / "train.json.gz").read_bytes()))["episodes"][:3]
    truth = json.loads(gzip.decompress((folder / "train_gt.json.gz").read_bytes()))
    for number, episode in enumerate(episodes):
        del episode["trajectory_id"]
        words = {"instruction_text": "मुड़ो " * 200, "instruction_id": 70 + number, "annotator_id": 1}
        timed = [{"word": "मुड़ो", "start_time": 0.1, "end_time": 0.4}]
        episode["instruction"] = words | {"language": ["en-IN", "hi-IN"][number % 2], "timed_instruction": timed}
    rxr = home / "data/datasets/RxR_VLNCE_v0/train"
    rxr.mkdir(parents=True)
    (rxr / "train_guide.json.gz").write_bytes(gzip.compress(json.dumps({"episodes": episodes}).encode()))
    (rxr / "train_guide_gt.json.gz").write_bytes(gzip.compress(json.dumps(truth).encode()))
    export("vlnr1/task=rxr", "vlnr1/protocol=embedded")
    ego = VLNEgo(home / "data/vln_ego/rxr_embedded/train")
    assert (ego.meta["dataset"], ego.meta["roles"], ego.meta["languages"]) == ("RxR-VLN-CE-v1", ["guide"], ["en-*"])
    known = [(e.info["instruction_id"], e.info["language"], e.info["role"]) for e in ego.episodes]
    assert known == [(70, "en-IN", "guide"), (72, "en-IN", "guide")]


def test_concurrent_processes_agree_on_one_meta(tmp_path):
    """Of many that start at once exactly one writes it, and one with other settings is refused."""
    failures = []
    barrier = threading.Barrier(8)

    def start(shard):
        barrier.wait()
        try:
            EpisodeWriter(tmp_path, {"num_shards": 8, "turn_angle": 15 if shard == 7 else 30}, str(shard)).close()
        except RecordError as error:
            failures.append((shard, str(error)))

    threads = [threading.Thread(target=start, args=(shard,)) for shard in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    angle = json.loads((tmp_path / "meta.json").read_text())["turn_angle"]
    assert [shard for shard, _ in failures] == [7] if angle == 30 else len(failures) == 7
    assert all("turn_angle: " in message for _, message in failures)
    assert {file.name for file in tmp_path.glob("[!.]*")} - {f"episodes-{i}.jsonl" for i in range(8)} == {"meta.json"}


def test_shards_are_named_so_that_they_sort(tmp_path):
    (tmp_path / "meta.json").write_text('{"num_shards": 16}')
    assert [file.name for file in summary_files(tmp_path)][::15] == ["summary-00.json", "summary-15.json"]
    check_shards(tmp_path, 3, 16)
    assert summary_files(tmp_path / "nowhere") == []


def test_what_no_shard_could_read_is_counted_once():
    entry = {"episode_id": "?", "scene_id": "?", "reason": "entry 0 of a.json.gz: not an object"}
    one = {
        "episodes": 2,
        "records": 9,
        "looks_skipped": 1,
        "actions": {"stop": 2, "left": 0},
        "skipped": {},
        "left_out": [entry],
        "seeds": {"habitat": 0, "scenes": None},
    }
    whole = merged([one, one | {"skipped": {"7": "expert missed the goal"}}])
    assert whole == one | {
        "episodes": 4,
        "records": 18,
        "looks_skipped": 2,
        "actions": {"stop": 4, "left": 0},
        "skipped": {"7": "expert missed the goal"},
    }
