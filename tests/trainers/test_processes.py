"""One process works for all, however long it takes."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from habitat_baselines.config.default import get_config

from habitat_vlnr1.errors import MissingFileError, VLNR1Error
from habitat_vlnr1.optimisation import accumulation, batch_text, rft_arguments, sft_arguments
from habitat_vlnr1.trainers import fitting
from habitat_vlnr1.trainers.base import on_own_gpu
from tests.paths import CONFIGS, ROOT


@pytest.mark.slow
def test_the_others_wait_longer_than_a_collective_may():
    """The group's timeout is 4 s, the work takes 8; when the work fails, those who wait are told."""
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    command = [torchrun, "--nproc_per_node=2", "--standalone", str(ROOT / "tests/trainers/processes_worker.py")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "process 1 and those beside it wait for process 0, which sleeps\n" in done.stdout
    assert "process 0 ends: the disk is full" in done.stdout
    assert "process 1 ends: process 1 has waited for process 0, which writes: that has failed" in done.stdout


def state_of(monkeypatch, processes, index=0):
    state = SimpleNamespace(num_processes=processes, process_index=index, local_process_index=index % 8)
    monkeypatch.setattr(fitting, "PartialState", lambda: state)


def test_several_processes_ask_for_the_export_that_one_would_make(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    state_of(monkeypatch, 8)
    config = get_config("vlnr1_rft_recorded.yaml", [], CONFIGS)
    with pytest.raises(MissingFileError) as error:
        fitting.export_missing(None, config, ["train", "val_unseen", "train"])
    told = str(error.value)
    assert "data/vln_ego/embedded/train, data/vln_ego/embedded/val_unseen: not exported" in told
    assert told.endswith(
        "the same config with vlnr1.export.splits=[train,val_unseen] habitat_baselines.trainer_name=vlnr1_export"
    )


def test_each_process_has_its_own_gpu(monkeypatch):
    config = get_config("vlnr1_rft_online.yaml", [], CONFIGS)

    def gpus(config):
        return config.habitat_baselines.torch_gpu_id, config.habitat.simulator.habitat_sim_v0.gpu_device_id

    for processes, index, wanted in ((1, 0, (0, 0)), (8, 5, (5, 5)), (16, 13, (5, 5))):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        monkeypatch.setenv("LOCAL_RANK", str(index % 8))
        assert gpus(on_own_gpu(config)) == wanted
    without = get_config("vlnr1_rft_recorded.yaml", ["habitat.simulator.habitat_sim_v0.gpu_device_id=-1"], CONFIGS)
    assert gpus(on_own_gpu(without)) == (5, -1)


def paper(stage, *overrides):
    return get_config(f"vlnr1_{stage}_paper.yaml", list(overrides), CONFIGS)


def test_the_papers_batch_is_the_same_on_any_number_of_gpus(monkeypatch):
    for devices, accumulated in ((1, 32), (4, 8), (8, 4), (32, 1)):
        assert accumulation(paper("sft"), "sft", devices) == accumulated
    assert accumulation(paper("rft"), "rft", 2) == 4
    with pytest.raises(VLNR1Error, match=r"sft.global_batch_size is 64, but 2 rows per device × 64 processes do not"):
        accumulation(paper("sft"), "sft", 64)
    with pytest.raises(VLNR1Error, match=r"is 64, but 2 rows per device × 4 accumulated × 64 processes do not"):
        accumulation(paper("sft", "vlnr1.sft.gradient_accumulation_steps=4"), "sft", 64)
    with pytest.raises(VLNR1Error, match="global_batch_size are null: give one"):
        accumulation(paper("sft", "vlnr1.sft.global_batch_size=null"), "sft", 8)
    free = ["vlnr1.sft.global_batch_size=null", "vlnr1.sft.gradient_accumulation_steps=4"]
    assert accumulation(paper("sft", *free), "sft", 64) == 4
    monkeypatch.setenv("WORLD_SIZE", "64")
    assert batch_text(paper("sft", *free), "sft") == "512 rows a step: 2 × 4 accumulated × 64 processes"


def test_half_weights_without_masters_are_refused():
    """Where AdamW would round its steps away; an adapter's weights are float32 by themselves."""
    for none in (["vlnr1/deepspeed=none"], ["vlnr1.sft.bf16=false"]):
        with pytest.raises(VLNR1Error, match=r"model.dtype: bfloat16 weights .* rounded away: take vlnr1/deepspeed="):
            sft_arguments(paper("sft", *none))
    half = ["vlnr1.model.dtype=bfloat16", "vlnr1.model.lora={r: 2}"]
    assert sft_arguments(get_config("vlnr1_sft.yaml", half, CONFIGS)).deepspeed is None


def test_rollouts_of_different_length_under_zero3_are_refused():
    never = "+vlnr1.rft.ds3_gather_for_generation=false"
    with pytest.raises(VLNR1Error, match=r"ds3_gather_for_generation=false: .*leave the key out"):
        rft_arguments(get_config("vlnr1_rft_recorded.yaml", [never], CONFIGS))
    trl = get_config("vlnr1_rft_recorded.yaml", [never, "vlnr1.rft.rollout=trl"], CONFIGS)
    assert rft_arguments(trl).ds3_gather_for_generation is False
