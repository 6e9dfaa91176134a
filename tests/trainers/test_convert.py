"""`vlnr1_convert` through the registered trainer and its config."""

import gzip
import json

import pytest
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.config.default import get_config

from habitat_vlnr1 import lock
from habitat_vlnr1.interchange.submission import SubmissionError
from habitat_vlnr1.records import RecordError, VLNEgo
from habitat_vlnr1.register import register
from tests.interchange.test_sharegpt import ACTIONS, release
from tests.interchange.test_submission import WALK
from tests.paths import CONFIGS
from tests.report.sample import write_results


def run(name, *overrides):
    register()
    config = get_config(f"{name}.yaml", list(overrides), CONFIGS)
    baseline_registry.get_trainer(config.habitat_baselines.trainer_name)(config).train()


def convert(to, source, *overrides, output=None):
    output = [f"vlnr1.convert.output={output}"] if output else []
    run("vlnr1_convert", f"vlnr1.convert.to={to}", f"vlnr1.convert.input={source}", *output, *overrides)


def tree(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.fixture
def ego(tmp_path):
    release(tmp_path / "in", episodes={"1": ("Don't stop.", ACTIONS), "2": ("Go on.", [2, 1, 0])})
    ego = tmp_path / "ego/released/train"
    convert("vln_ego", tmp_path / "in/released.json", "vlnr1.data.label_offset=1", output=ego)
    return ego


def test_there_and_back_through_every_form(ego, tmp_path):
    before = tree(ego)
    for to in ("sharegpt", "parquet"):
        out = tmp_path / to
        convert(to, ego, output=out)
        assert {"README.md", "view.png"} <= {path.name for path in out.iterdir()}
        back = tmp_path / f"{to}_back"
        convert("vln_ego", out / "records" if to == "sharegpt" else out, output=back)
        again = {episode.episode_id: episode for episode in VLNEgo(back).episodes}
        for episode in VLNEgo(ego).episodes:
            assert (again[episode.episode_id].actions, again[episode.episode_id].instruction) == (
                episode.actions,
                episode.instruction,
            )
            for step in range(len(episode.actions)):
                assert (back / episode.frame(step)).read_bytes() == (ego / episode.frame(step)).read_bytes()
    assert tree(ego) == before  # the input is only read


def test_a_second_run_changes_nothing_and_other_settings_are_refused(ego, tmp_path):
    convert("sharegpt", ego, output=tmp_path / "out")
    frames = tree(tmp_path / "out/frames") | tree(tmp_path / "out/records")
    convert("sharegpt", ego, output=tmp_path / "out")
    assert tree(tmp_path / "out/frames") | tree(tmp_path / "out/records") == frames
    with pytest.raises(RecordError, match=r"something else \(num_actions: 6 there, 4 now\): .*vlnr1\.convert\.output"):
        convert("sharegpt", ego, "vlnr1.prompt.num_actions=4", output=tmp_path / "out")


def test_one_folder_has_one_conversion(ego, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WAIT", 0.1)
    with lock.FolderLock(tmp_path / "parquet", "convert"), pytest.raises(lock.FolderInUse, match="parquet is being"):
        convert("parquet", ego, output=tmp_path / "parquet")
    assert not (tmp_path / "parquet/source.json").exists()


def test_card_and_view_stand_in_the_folder(ego):
    (ego / "view.png").unlink()
    convert("view", ego)
    assert (ego / "view.png").is_file()
    assert "Don't stop." in (ego / "report.html").read_text()
    (ego / "README.md").unlink()
    convert("card", ego)
    assert "| episodes | 2 in 1 scenes |" in (ego / "README.md").read_text()


def test_view_of_results(tmp_path):
    convert("view", write_results(tmp_path, {"model": 1}, episodes=1), output=tmp_path / "seen")
    assert '"policies":["model"]' in (tmp_path / "seen/report.html").read_text()
    with pytest.raises(RecordError, match=r"no VLN-Ego data in .*nothing"):
        convert("view", tmp_path / "nothing")


def test_skipped_episodes_are_listed(tmp_path, capsys):
    release(tmp_path / "in", episodes={"1": ("Go.", [1, 0]), "2": ("Go on.", [2, 1, 0])})
    (tmp_path / "in/rgb_images_r2r_train/ep_1/traj_7/step_1.jpg").unlink()
    convert("vln_ego", tmp_path / "in/released.json", "vlnr1.data.label_offset=1", output=tmp_path / "out")
    assert "skipped 1: " in capsys.readouterr().out
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["episodes"], list(summary["skipped"])) == (1, ["1"])
    assert VLNEgo(tmp_path / "out").meta["released"]["records"] == 5


def test_nothing_is_written_when_nothing_can_be_read(tmp_path):
    release(tmp_path / "in", episodes={"1": ("Go.", [1, 0])})
    with pytest.raises(RecordError, match=r"no episode can be taken: .*check vlnr1\.data\.label_offset"):
        convert("vln_ego", tmp_path / "in/released.json", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"vlnr1\.convert\.output must be named"):
        convert("vln_ego", tmp_path / "in/released.json")
    with pytest.raises(ValueError, match=r"unknown vlnr1\.convert\.to 'csv'; choose one of card, view"):
        convert("csv", tmp_path)


@pytest.fixture
def results(tmp_path):
    """An evaluation of the split `test` of R2R-CE, which has no goals."""
    episode = {
        **{"episode_id": 7, "trajectory_id": 1, "scene_id": "mp3d/a/a.glb", "start_position": [0, 0, 0]},
        **{"start_rotation": [0, 0, 0, 1], "instruction": {"instruction_text": "Go."}},
    }
    data = tmp_path / "test.json.gz"
    with gzip.open(data, "wt") as file:
        json.dump({"episodes": [episode, {**episode, "episode_id": 8}]}, file)
    results = tmp_path / "results/vlnr1_sft/test"
    results.mkdir(parents=True)
    (results / "episodes.jsonl").write_text(json.dumps(WALK) + "\n")
    return results, ["vlnr1/task=r2r_test", f"habitat.dataset.data_path={data}"]


def test_a_submission_must_hold_the_whole_split(results, capsys):
    folder, task = results
    with pytest.raises(SubmissionError, match="1 of 2 episodes are missing, for example 8"):
        convert("r2r_submission", folder, *task)
    lines = [json.dumps(WALK), json.dumps(WALK | {"episode_id": "8"})]
    (folder / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    convert("r2r_submission", folder, *task)
    assert sorted(json.loads((folder / "vlnr1_sft_test_r2r.json").read_text())) == ["7", "8"]
    assert "2 episodes, valid" in capsys.readouterr().out


def test_without_the_data_set_only_the_form_is_checked(results, capsys):
    folder, _ = results
    convert("rxr_submission", folder, "habitat.dataset.data_path=/nowhere.json.gz", output=folder / "sub")
    assert "Whether all episodes of test are there is not checked" in capsys.readouterr().out
    row = json.loads((folder / "sub/vlnr1_sft_test_rxr.jsonl").read_text())
    assert row == {"instruction_id": 42, "path": [[0, 0, 0], [0, 0, -0.25]]}


def test_sft_trains_on_what_was_released(ego, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(
        "vlnr1_sft",
        *["vlnr1.task.scenes=null", "vlnr1.data.root=ego", "vlnr1.data.sources=[released]", "vlnr1.run_dir=run"],
        *["vlnr1.model.build.warmup=null", "vlnr1.sft.max_steps=2", "vlnr1.sft.save_steps=2"],
        *["vlnr1.sft.per_device_train_batch_size=2", "vlnr1.sft.evaluate=false", "vlnr1.model.cpu_threads=1"],
        "vlnr1.protocol.forward_step=0.25",  # as the released prompts say
    )
    assert (tmp_path / "run/checkpoints/checkpoint-2/model.safetensors").is_file()
