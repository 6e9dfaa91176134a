"""The rehearsal: the job in miniature through the real trainers, without the weights that the config names."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from habitat_baselines.config.default import get_config

from habitat_vlnr1.errors import MissingFileError, RunError
from habitat_vlnr1.trainers import rehearsal
from tests.paths import CONFIGS

SHAPE = [
    "vlnr1/model=qwen2_vl_2b",
    "vlnr1.model.dtype=float32",
    "vlnr1.model.image_size=56",
    "vlnr1.model.cpu_threads=1",
    *(f"vlnr1.model.architecture.text_config.{key}" for key in (
        "hidden_size=256", "intermediate_size=256", "num_hidden_layers=2", "num_attention_heads=2",
        "num_key_value_heads=1", "vocab_size=2048")),
    *(f"vlnr1.model.architecture.vision_config.{key}" for key in (
        "depth=2", "embed_dim=64", "num_heads=2", "hidden_size=256")),
]  # fmt: skip
HOUSES = [
    *(f"vlnr1.task.scenes.{key}" for key in (
        "train_scenes=1", "train_episodes_per_scene=2", "val_seen_episodes=0", "val_unseen_scenes=1",
        "val_unseen_episodes_per_scene=4")),
    "vlnr1.protocol.max_steps=12",
    "vlnr1.export.describe=false",
    "vlnr1.rft.per_device_train_batch_size=8",
]  # fmt: skip
REHEARSE = "vlnr1.doctor.rehearse=true"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in rehearsal.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    overrides = [*SHAPE, *HOUSES, REHEARSE]
    return lambda *more: get_config("vlnr1_doctor.yaml", [*overrides, *more], CONFIGS)


@pytest.mark.slow
def test_all_processes_run_each_stage_and_are_held_against_the_plan(tmp_path):
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node=2", "--standalone"]
    command = [*torchrun, "-m", "habitat_baselines.run", "--config-name=vlnr1_doctor", *SHAPE, *HOUSES, REHEARSE]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    both, number = r"\d+\.\d, \d+\.\d GiB", r"[\d,]+"
    assert re.search(r"\n  export +\d+ s, host \d+\.\d GiB\n", done.stdout)  # by one
    for stage in ("sft", "rft", "evaluation"):
        assert re.search(rf"\n  {stage} +\d+ s, host {both}\n", done.stdout), done.stdout
    hours = {}
    for stage in ("sft", "rft"):
        assert re.search(rf"\n{stage}: host {both}, planned \d+\.\d a process\n", done.stdout), done.stdout
        found = re.search(rf"\n{stage}: {number} steps an hour; {number} steps (\d+\.\d) h\n", done.stdout)
        hours[stage] = found[1]
    assert f" h (sft {hours['sft']}, rft {hours['rft']})\n" in done.stdout
    folder = tmp_path / "data/vlnr1/quickstart/rehearsal"
    for stage in ("", "rft/"):
        assert (folder / f"run/{stage}checkpoints/checkpoint-3/vlnr1.json").is_file()
    for log, batch in (("sft", "8 rows a step: 4 × 1"), ("rft", "16 rows a step: 8 × 1")):
        for rank in (0, 1):
            assert f"{batch} accumulated × 2 processes" in (folder / f"{log}-{rank}.log").read_text()
    for rank in (0, 1):  # each walks, in two environments
        assert re.search(rf"vlnr1_rft {rank}/2: 100%.* 2/2 ", (folder / f"evaluation-{rank}.log").read_text())
    summary = json.loads((folder / "run/results/vlnr1_rft/val_unseen/summary.json").read_text())
    assert summary["episodes"] == 4
    assert not (tmp_path / "data/vln_ego").exists()  # what the job itself will write is left alone


def test_a_stage_that_fails_is_named_with_its_last_line(config, monkeypatch):
    config = config()
    monkeypatch.setattr(rehearsal.sys, "executable", "/bin/false")
    with pytest.raises(RunError, match=r"rehearsal's export failed: no output \(process 0, see .*export-0.log\)"):
        rehearsal.rehearse(config)


def test_an_unknown_shape_is_refused_before_anything_runs(config):
    with pytest.raises(MissingFileError, match="some/model is not on this machine"):
        rehearsal.rehearse(config("vlnr1.model.path=some/model"))
