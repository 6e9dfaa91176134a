"""The whole job on four processes without a GPU: export, SFT, RFT, online RFT, DAgger, with a slow process and a kill.

    python benchmarks/four_processes.py [--engines none zero3] [--home <folder>]

Two generated houses, a few steps of the tiny model; gloo instead of NCCL. With each engine, process 3 sleeps at every
step, RFT is killed (`kill -9`, all processes) after its first checkpoint and started again, and DAgger has two rounds.
Printed are a stage's seconds and the losses of its last checkpoint; ends with status 1 where a stage does not end as
it should.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
PROCESSES = 4
SLOW, SLEEP = 3, 2.0  # which process sleeps for so many seconds at every step
SCENES = {"train_scenes": 2, "train_episodes_per_scene": 4, "val_seen_episodes": 2, "val_unseen_scenes": 1}
COMMON = [
    *(f"vlnr1.task.scenes.{key}={value}" for key, value in SCENES.items()),
    *("vlnr1.task.scenes.val_unseen_episodes_per_scene=4", "vlnr1.model.cpu_threads=1", "vlnr1.model.image_size=56"),
]
STEPS = ["max_steps=4", "save_steps=2", "logging_steps=1", "evaluate=false", "warmup_steps=0"]
SFT = [*(f"vlnr1.sft.{step}" for step in STEPS), "vlnr1.sft.per_device_train_batch_size=1"]
RFT = [
    *(f"vlnr1.rft.{step}" for step in STEPS),
    *("vlnr1.rft.num_generations=4", "vlnr1.rft.eval_strategy=no"),
]
STAGES: dict[str, tuple[str, list[str], str]] = {  # name → config, settings, where its checkpoints go
    "sft": ("vlnr1_sft", [*SFT, "vlnr1.model.build.warmup.steps=4"], "checkpoints"),
    "rft": (
        "vlnr1_rft",
        [
            *RFT,
            *("vlnr1.rft.eval_on_start=false", "vlnr1.rft.per_device_train_batch_size=2"),
            *("vlnr1.data.rft_records.embedded=16", "vlnr1.rft.held_out.records=2"),
        ],
        "rft/checkpoints",
    ),
    "online": (
        "vlnr1_rft",
        [
            "vlnr1/rft=online",
            *RFT,
            *("vlnr1.rft.per_device_train_batch_size=4", "vlnr1.rft.online.num_environments=2"),
            *(f"{key}=${{vlnr1.run_dir}}/online/{name}" for key, name in
              (("habitat_baselines.checkpoint_folder", "checkpoints"), ("habitat_baselines.tensorboard_dir", "tb"))),
        ],
        "online/checkpoints",
    ),
    "dagger": (
        "vlnr1_dagger",
        [
            *("vlnr1/task=embedded", "vlnr1/setup=embedded", "vlnr1.dagger.rounds=2", "vlnr1.dagger.episodes=2"),
            *SFT,
        ],
        "dagger/round_2/checkpoints",
    ),
}  # fmt: skip


def worker() -> None:
    """One of the processes that torchrun has started; the slow one sleeps at every step."""
    sys.path.insert(0, str(ROOT))
    from transformers import Trainer

    from tests.trainers.distributed_worker import main as one_of_several

    if int(os.environ["RANK"]) == SLOW:
        step = Trainer.training_step

        def slowly(self: Any, *args: Any, **kwargs: Any) -> Any:
            time.sleep(SLEEP)
            return step(self, *args, **kwargs)

        setattr(Trainer, "training_step", slowly)  # noqa: B010  # an assignment is what mypy refuses
    one_of_several()


def start(home: Path, name: str, engine: str) -> subprocess.Popen:
    config, settings, _ = STAGES[name]
    command = [
        *(str(Path(sys.executable).with_name("torchrun")), f"--nproc_per_node={PROCESSES}", "--standalone"),
        *(__file__, config, str(ROOT / "configs/trainer"), *COMMON, *settings),
        *(f"vlnr1.run_dir=data/vlnr1/{engine}", f"vlnr1/deepspeed={engine}"),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja lies beside Python
    log = (home / f"{engine}_{name}.log").open("ab")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    return subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log, start_new_session=True)


def kill_after(process: subprocess.Popen, checkpoint: Path) -> None:
    """Kill all its processes when a checkpoint is whole; SystemExit when the run ends before."""
    while not (checkpoint / "vlnr1.json").is_file():
        if process.poll() is not None:
            raise SystemExit(f"it ended before {checkpoint} was there: see the log")
        time.sleep(0.1)
    torchrun = psutil.Process(process.pid)  # its workers are sessions of their own
    for one in [torchrun, *torchrun.children(recursive=True)]:
        one.kill()
    process.wait()


def run(home: Path, name: str, engine: str) -> bool:
    """Run a stage to its end, RFT with a kill; whether it has all its steps."""
    folder, since = home / "data/vlnr1" / engine / STAGES[name][2], time.monotonic()
    if name == "rft":
        kill_after(start(home, name, engine), folder / "checkpoint-2")
    status = start(home, name, engine).wait()
    state = folder / "checkpoint-4/trainer_state.json"
    history = json.loads(state.read_text())["log_history"] if state.is_file() else []
    losses = [round(row["loss"], 4) for row in history if "loss" in row]
    print(f"{engine} {name}: status {status}, {time.monotonic() - since:.0f} s, losses {losses}", flush=True)
    return status == 0 and len(losses) == 4


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["none", "zero3"], choices=["none", "zero2", "zero3"])
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--home", type=Path, help="where it works; default: a folder that goes again")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        home = options.home or Path(made)
        home.mkdir(parents=True, exist_ok=True)
        export = [sys.executable, "-m", "habitat_baselines.run", "--config-name=vlnr1_export", *COMMON]
        subprocess.run([*export, "vlnr1.export.splits=[train,val_unseen]"], cwd=home, check=True)
        return 0 if all([run(home, name, engine) for engine in options.engines for name in options.stages]) else 1


if __name__ == "__main__":
    if "RANK" in os.environ:
        worker()
    else:
        sys.exit(main(sys.argv[1:]))
