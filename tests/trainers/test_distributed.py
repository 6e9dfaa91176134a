"""SFT and GRPO on two processes, with and without ZeRO-2 or ZeRO-3, have the losses of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import CONFIGS, ROOT
from tests.trainers.test_grpo import home  # noqa: F401

ANY = ["vlnr1.data.root=ego", "vlnr1.model.image_size=56", "vlnr1.task.scenes=null", "vlnr1.model.cpu_threads=1"]
STAGES = {
    "sft": [
        "vlnr1.model.path=run/checkpoints/checkpoint-7",
        "vlnr1.sft.evaluate=false",
        "vlnr1.sft.max_steps=3",
        "vlnr1.sft.save_steps=3",
        "vlnr1.sft.logging_steps=1",
        "vlnr1.sft.steps_per_row=4",
    ],
    "rft": [
        "vlnr1.rft.start=run/checkpoints/checkpoint-7",
        "vlnr1.rft.evaluate=false",
        "vlnr1.rft.max_steps=3",
        "vlnr1.rft.save_steps=3",
        "vlnr1.rft.eval_steps=3",
        "vlnr1.rft.logging_steps=1",
        "vlnr1.rft.learning_rate=1e-3",
        "vlnr1.rft.num_generations=4",
        "vlnr1.data.rft_records.embedded=8",
        "vlnr1.rft.held_out.records=2",
    ],
}
RUNS = {"sft": ("vlnr1_sft", "checkpoints"), "rft": ("vlnr1_rft_recorded", "rft_recorded/checkpoints")}
BATCH = {"sft": 2, "rft": 8}


def torchrun(processes):
    return [str(Path(sys.executable).with_name("torchrun")), f"--nproc_per_node={processes}", "--standalone"]


def finish(command, home):  # noqa: F811
    """What a command prints."""
    # Ninja, with which DeepSpeed builds what its processes share memory with, lies beside Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def train(home, stage, name, processes, deepspeed):  # noqa: F811
    """The logged steps of a run."""
    config, folder = RUNS[stage]
    command = [
        *(torchrun(processes) if processes > 1 else [sys.executable]),
        str(ROOT / "tests/trainers/distributed_worker.py"),
        config,
        CONFIGS,
        *ANY,
        *STAGES[stage],
        f"vlnr1.{stage}.per_device_train_batch_size={BATCH[stage] // processes}",
        f"vlnr1.run_dir={name}",
        f"vlnr1/deepspeed={deepspeed}",
    ]
    finish(command, home)
    history = json.loads((home / name / folder / "checkpoint-3/trainer_state.json").read_text())["log_history"]
    return [row for row in history if "grad_norm" in row]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_have_the_losses_of_one(home, stage):  # noqa: F811
    for split in (home / "ego").glob("*/*"):
        (split / "summary.json").write_text("{}")
    one = train(home, stage, f"{stage}_one", 1, "none")
    assert len(one) == 3 and one[-1]["loss"] != pytest.approx(one[0]["loss"], abs=1e-3)
    for deepspeed in ("none", "zero2", "zero3"):
        for row, wanted in zip(train(home, stage, f"{stage}_{deepspeed}", 2, deepspeed), one, strict=True):
            for key in ("loss", "grad_norm", *(("reward", "kl") if stage == "rft" else ())):
                assert row[key] == pytest.approx(wanted[key], rel=1e-3, abs=1e-5), (deepspeed, row["step"], key)


@pytest.mark.slow
def test_zero3_holds_parts_from_the_first_byte_and_leaves_nothing(home):  # noqa: F811
    """Policy and reference; afterwards one process loads a whole model while the other only waits."""
    options = [*ANY, *STAGES["rft"], "vlnr1/deepspeed=zero3", "vlnr1.run_dir=parts", "vlnr1.rft.max_steps=1"]
    worker = [str(ROOT / "tests/trainers/parts_worker.py"), CONFIGS, *options, "vlnr1.rft.eval_strategy=no"]
    told = finish([*torchrun(2), *worker, "vlnr1.rft.per_device_train_batch_size=4"], home)
    numbers = {line.split(": ")[1] for line in told.splitlines() if line.startswith("process ") and "numbers" in line}
    assert len(numbers) == 1 and int(numbers.pop().split()[0]) > 100_000, told
