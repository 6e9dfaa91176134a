"""The doctor: every broken thing is a finding with a remedy, nothing makes it stop, and nothing is made."""

import gzip
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.config.default import get_config

from habitat_vlnr1.doctor import environment, model_data
from habitat_vlnr1.doctor.findings import ERROR, OK, WARNING, guarded
from habitat_vlnr1.doctor.task_data import TaskData, glb_problem
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.frame_files import encode_jpeg
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.records import Episode
from habitat_vlnr1.trainers.doctor import examine
from tests.paths import CONFIGS

R2R = Path("data/datasets/R2R_VLNCE_v1-3_preprocessed")


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: get_config("vlnr1_doctor.yaml", list(overrides), CONFIGS)


def write_gz(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(content).encode()))


def write_split(split, goals=True, truth=True):
    """Two episodes of R2R-CE's schema in one scene."""
    episodes = [
        {
            "episode_id": number,
            "trajectory_id": number,
            "scene_id": "mp3d/X/X.glb",
            "start_position": [0, 0, 0],
            "start_rotation": [0, 0, 0, 1],
            "instruction": {"instruction_text": "go"},
            **({"goals": [{"position": [1, 0, 0], "radius": 3.0}]} if goals else {}),
        }
        for number in (1, 2)
    ]
    write_gz(R2R / split / f"{split}.json.gz", {"episodes": episodes})
    if truth:
        path = {"locations": [[0, 0, 0], [1, 0, 0]], "actions": [1, 2, 0]}
        write_gz(R2R / split / f"{split}_gt.json.gz", {"1": path, "2": path})


def write_scene():
    scene = Path("data/scene_datasets/mp3d/X/X.glb")
    scene.parent.mkdir(parents=True, exist_ok=True)
    scene.write_bytes(b"glTF" + struct.pack("<II", 2, 20) + bytes(8))
    return scene


def by_level(findings):
    findings = list(findings)
    assert all(finding.remedy for finding in findings if finding.level != OK), findings
    assert all("\n" not in finding.text for finding in findings if finding.level == OK)
    return {level: [str(f) for f in findings if f.level == level] for level in (OK, WARNING, ERROR)}


def test_a_fresh_clone_is_told_what_to_run_and_nothing_is_made(config, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "IMPORTS", ("json",))
    found = by_level(examine(config()))
    assert not found[ERROR]
    assert sum("--config-name=vlnr1_export" in line for line in found[WARNING]) >= 4
    assert list(tmp_path.iterdir()) == []


def test_missing_real_data_ends_with_status_1(config, capsys, monkeypatch):
    monkeypatch.setattr(environment, "IMPORTS", ("json",))
    trainer = baseline_registry.get_trainer("vlnr1_doctor")
    with pytest.raises(SystemExit) as caught:
        trainer(config("vlnr1/setup=r2r", "vlnr1/model=qwen2_vl_2b")).train()
    assert caught.value.code == 1
    printed = capsys.readouterr().out
    assert "ERROR    episodes of train: no data/datasets/R2R" in printed and "jacobkrantz/VLN-CE" in printed
    assert "hf download Qwen/Qwen2-VL-2B-Instruct" in printed
    assert printed.splitlines()[-1].startswith("vlnr1_doctor, task r2r, protocol r2r: ")
    assert printed.splitlines()[-1].endswith("mend the ERRORs first")


def test_good_data_are_counted(config):
    for split in ("train", "val_seen", "val_unseen"):
        write_split(split)
    write_scene().with_suffix(".navmesh").touch()
    task = TaskData(config("vlnr1/setup=r2r"))
    found = by_level([*task.check_episodes(), *task.check_scenes()])
    assert not found[ERROR] + found[WARNING]
    assert any("episodes of train: 2 in 1 scenes" in line for line in found[OK])
    assert task.steps == dict.fromkeys(("train", "val_seen", "val_unseen"), 3.0)


def test_damaged_episode_files_are_findings(config):
    write_split("train")
    whole = (R2R / "train/train.json.gz").read_bytes()
    write_split("val_seen", goals=False, truth=False)
    write_split("val_unseen")
    (R2R / "train/train.json.gz").write_bytes(whole[:-20])
    (R2R / "val_unseen/val_unseen_gt.json.gz").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    found = by_level(TaskData(config("vlnr1/setup=r2r")).check_episodes())
    assert any("train.json.gz" in line and "cut or damaged" in line for line in found[ERROR])
    assert any("val_unseen_gt.json.gz" in line and "not a gzip file" in line for line in found[ERROR])
    assert any("2 have no goal (first: 1)" in line for line in found[WARNING])
    assert any("val_seen_gt.json.gz" in line for line in found[WARNING])
    assert len(found[ERROR]) == 2


def test_ground_truth_of_other_episodes_is_an_error(config):
    write_split("train")
    write_gz(R2R / "train/train_gt.json.gz", {"1": {"locations": [[0, 0, 0]], "actions": [0]}})
    found = by_level(TaskData(config("vlnr1/setup=r2r", "vlnr1.doctor.splits=[train]"))._check_split("train"))
    assert any("1 of 2 unusable" in line for line in found[ERROR])


def test_scenes_missing_cut_or_without_navmesh(config, monkeypatch):
    write_split("train")
    task = TaskData(config("vlnr1/setup=r2r"))
    list(task.check_episodes())
    os.makedirs("data/scene_datasets")
    assert "1 of 1 missing" in by_level(task.check_scenes())[ERROR][0]
    scene = write_scene()
    monkeypatch.setattr(environment, "simulator_version", lambda: "0.3.3")
    assert "no .navmesh beside the .glb" in by_level(task.check_scenes())[WARNING][0]
    scene.write_bytes(scene.read_bytes()[:15])
    assert "15 of 20 bytes" in by_level(task.check_scenes())[ERROR][0]
    scene.write_bytes(b"<html>")
    assert glb_problem(str(scene)) == "no glTF header"


def write_export(config, **protocol):
    frame = encode_jpeg(np.zeros((16, 16, 3), np.uint8), 92)
    meta = {"protocol": {**config.vlnr1.protocol, **protocol}}
    writer = EpisodeWriter(Path(config.vlnr1.data.root) / "embedded" / "train", meta)
    writer.write(Episode("7", "house", "go", (1, 1, 0)), [frame] * 3)
    writer.close()
    return writer.root


def test_exports(config):
    ours = config()
    root = write_export(ours)
    found = by_level(model_data.exported(ours))
    assert "the export has not ended" in found[WARNING][0] and "1 episodes, 3 records" in found[OK][0]
    (root / "summary.json").touch()
    assert not by_level(model_data.exported(ours))[WARNING]
    (root / "frames/house/7/0001.jpg").write_bytes(b"\xff\xd8")
    found = by_level(model_data.exported(ours))
    assert "1 broken" in found[ERROR][0] and "delete the lines of episodes 7" in found[ERROR][0]
    turned = config("vlnr1.protocol.turn_angle=15")
    assert "turn_angle 30 (configured: 15)" in by_level(model_data.exported(turned))[ERROR][0]
    (root / "meta.json").write_text("{")
    assert "not JSON" in by_level(model_data.exported(ours))[ERROR][0]


def write_weights(folder, size=16):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    return folder


def test_weights(config, tmp_path, monkeypatch):
    assert by_level(model_data.weights(config()))[OK]
    folder = write_weights(tmp_path / "whole")
    assert by_level(model_data.weights(config(f"vlnr1.model.path={folder}")))[OK]
    folder = write_weights(tmp_path / "cut", size=3)
    assert "bytes" in by_level(model_data.weights(config(f"vlnr1.model.path={folder}")))[ERROR][0]
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS" in by_level(model_data.weights(config(f"vlnr1.model.path={folder}")))[ERROR][0]
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert (
        "00002.safetensors is missing" in by_level(model_data.weights(config(f"vlnr1.model.path={folder}")))[ERROR][0]
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in by_level(model_data.weights(config("vlnr1/model=qwen2_vl_2b")))[ERROR][0]


def test_checkpoints(config, tmp_path):
    ours = config()
    folder = Path(ours.habitat_baselines.checkpoint_folder)
    assert "none yet" in by_level(model_data.checkpoints(ours))[OK][0]
    whole = write_weights(folder / "checkpoint-2")
    assert "left by an interruption" in by_level(model_data.checkpoints(ours))[WARNING][0]
    checkpoint.write_card(whole, checkpoint.ModelCard(space=checkpoint.ActionSpace(0.5, 15)))
    assert "turn_angle 15" in by_level(model_data.checkpoints(ours))[ERROR][0]
    checkpoint.write_card(whole, checkpoint.ModelCard(space=checkpoint.ActionSpace(0.5, 30), template="vln_ego"))
    found = by_level(model_data.checkpoints(ours))
    assert found[OK] and any("template" in line for line in found[WARNING])
    assert "no such checkpoint" in by_level(model_data.checkpoints(config("vlnr1.checkpoint=/nowhere")))[ERROR][0]


def test_disk_multiplies_episodes_steps_and_bytes(config, monkeypatch):
    ours = config("vlnr1/setup=r2r")
    task = TaskData(ours)
    task.steps, task.walks = {"train": 58.0}, {"train": 10_819}
    line = by_level(model_data.disk(ours, task))[OK][0]
    assert "627,502 frames to export × 20.5 kB = 12.0 GiB" in line  # 224² × 0.35 bytes in blocks of 4,096
    task.walks = {"train": 10**9}
    found = by_level(model_data.disk(ours, task))[ERROR]
    assert "vlnr1.data.root=" in found[0]


def test_environment(config, monkeypatch):
    ours = config()
    assert not by_level(environment.packages(ours))[ERROR]
    monkeypatch.setattr(environment.metadata, "requires", lambda name: ["numpy==1.0", "no-such-package>=2"])
    found = by_level(environment.packages(ours))[ERROR]
    assert "but numpy==1.0 is needed" in found[0] and "not installed" in found[1]
    monkeypatch.setattr(environment, "IMPORTS", ("json", "no_such_module"))
    assert "no_such_module" in by_level(environment.imports(ours))[ERROR][0]
    real = config("vlnr1/setup=r2r")
    if environment.simulator_version().endswith("+embedded"):
        assert "cannot be compared" in by_level(environment.simulator(real))[WARNING][0]
    monkeypatch.setattr(environment, "simulator_version", lambda: "0.3.3")
    assert by_level(environment.simulator(real))[OK]


@pytest.mark.parametrize(
    ("devices", "level"),
    [
        ("[{'works': True, 'nvidia': True}]", OK),
        ("[{'works': True, 'nvidia': False}]", ERROR),  # software, but the simulator asks for GPU 0
        ("[]", ERROR),
    ],
)
def test_rendering_of_the_real_simulator(config, monkeypatch, devices, level):
    monkeypatch.setattr(environment, "simulator_version", lambda: "0.3.3")
    monkeypatch.setattr(environment, "_EGL", f"import json; print(json.dumps({devices}))")
    assert by_level(environment.rendering(config()))[level]


def test_the_egl_probe_answers_or_says_why(config, monkeypatch):
    monkeypatch.setattr(environment, "simulator_version", lambda: "0.3.3")
    assert len(list(environment.rendering(config()))) == 1
    monkeypatch.setattr(environment, "_EGL", "import os; os.abort()")
    assert "exit status -6" in by_level(environment.rendering(config()))[ERROR][0]


def test_small_shared_memory_is_told(config, monkeypatch):
    small = os.statvfs_result((4096, 4096, 16384, 16384, 16384, 0, 0, 0, 0, 255))
    monkeypatch.setattr(environment.os, "statvfs", lambda path: small)
    assert "64 MiB" in by_level(environment.limits(config()))[WARNING][0]


def test_a_check_that_stumbles_is_a_finding():
    def check():
        raise KeyError("x")
        yield

    assert by_level(guarded("x", check))[ERROR]
