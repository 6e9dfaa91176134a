"""The whole job on four processes without a GPU: export, SFT, RFT, online RFT, DAgger, evaluation; one is slow.

    python benchmarks/four_processes.py [--engines none zero3] [--home <folder>]
    python benchmarks/four_processes.py --r2r data/datasets/R2R_VLNCE_v1-3_preprocessed

A few steps of the tiny model; gloo instead of NCCL. Two generated houses, or with --r2r episodes of R2R-CE in scenes
that stand in for Matterport3D's, 16 history frames (`val_seen` is trained on where `train` has no ground truth). With
each engine, process 3 sleeps at every step, RFT is killed (`kill -9`, all processes) after its first checkpoint and
started again, and DAgger has two rounds. Then four processes evaluate the SFT and the DAgger checkpoint, and one alone
does: their lines must be equal but for the seconds. Printed are a stage's seconds and the losses of its last
checkpoint; ends with status 1 where a stage does not end as it should.
"""

from __future__ import annotations

import argparse
import gzip
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

from benchmarks.stand_in_scenes import read

ROOT = Path(__file__).parents[1]
PROCESSES = 4
SLOW, SLEEP = 3, 2.0  # which process sleeps for so many seconds at every step
SCENES = {"train_scenes": 2, "train_episodes_per_scene": 4, "val_seen_episodes": 2, "val_unseen_scenes": 1}
COMMON = [
    *("vlnr1.model.cpu_threads=1", "vlnr1.model.image_size=56"),
    "vlnr1.extra_sensors.vlnr1_description.cells=2",
]
HOUSES = [
    "vlnr1/task=embedded",
    *(f"vlnr1.task.scenes.{key}={value}" for key, value in SCENES.items()),
    "vlnr1.task.scenes.val_unseen_episodes_per_scene=4",
]
FILES = "data/datasets/R2R_VLNCE_v1-3_preprocessed"  # where vlnr1/task=r2r looks
R2R = ["vlnr1/task=r2r", "vlnr1/protocol=r2r", "habitat.dataset.scenes_dir=data/stand_in"]
EPISODES, STEP_LIMIT = 8, 60  # of R2R: a split's, and the steps after which one is cut here
TRAINED = {  # settings of all stages after the export
    "embedded": [
        *("vlnr1/setup=embedded", "vlnr1/memory=first", "vlnr1.data.rft_records.embedded=16"),
        "vlnr1.model.build.warmup.words.steps=4",
    ],
    "r2r": [
        *("vlnr1/setup=r2r", "vlnr1/memory=long_short", "vlnr1.data.rft_records.r2r=16"),
        "vlnr1.model.build.warmup=null",
    ],
}
STEPS = ["max_steps=4", "save_steps=2", "logging_steps=1", "evaluate=false", "warmup_steps=0"]
SFT = [*(f"vlnr1.sft.{step}" for step in STEPS), "vlnr1.sft.per_device_train_batch_size=1"]
RFT = [
    *(f"vlnr1.rft.{step}" for step in STEPS),
    *("vlnr1.rft.num_generations=4", "vlnr1.rft.eval_strategy=no"),
]
STAGES: dict[str, tuple[str, list[str], str]] = {  # name → config, settings, where its checkpoints go
    "sft": ("vlnr1_sft", SFT, "checkpoints"),
    "rft": (
        "vlnr1_rft_recorded",
        [
            *RFT,
            *("vlnr1.rft.eval_on_start=false", "vlnr1.rft.per_device_train_batch_size=2"),
            "vlnr1.rft.held_out.records=2",
        ],
        "rft_recorded/checkpoints",
    ),
    "online": (
        "vlnr1_rft",
        [
            "vlnr1/setup=embedded",
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
        ["vlnr1.dagger.rounds=2", "vlnr1.dagger.episodes=2", *SFT],
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


def launch(home: Path, name: str, command: Sequence[str]) -> subprocess.Popen:
    """Start a command in `home`; what it says goes into `<name>.log`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja lies beside Python
    log = (home / f"{name}.log").open("ab")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    return subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log, start_new_session=True)


def torchrun() -> list[str]:
    return [str(Path(sys.executable).with_name("torchrun")), f"--nproc_per_node={PROCESSES}", "--standalone"]


def start(home: Path, name: str, engine: str, task: Sequence[str]) -> subprocess.Popen:
    config, settings, _ = STAGES[name]
    places = [f"vlnr1.run_dir=data/vlnr1/{engine}", f"vlnr1/deepspeed={engine}"]
    arguments = [config, str(ROOT / "configs/trainer"), *task, *COMMON, *settings, *places]
    return launch(home, f"{engine}_{name}", [*torchrun(), __file__, *arguments])


def kill_after(process: subprocess.Popen, checkpoint: Path) -> None:
    """Kill all its processes when a checkpoint is whole; SystemExit when the run ends before."""
    while not (checkpoint / "vlnr1.json").is_file():
        if process.poll() is not None:
            raise SystemExit(f"it ended before {checkpoint} was there: see the log")
        time.sleep(0.1)
    launcher = psutil.Process(process.pid)  # its workers are sessions of their own
    for one in [launcher, *launcher.children(recursive=True)]:
        one.kill()
    process.wait()


def run(home: Path, name: str, engine: str, task: Sequence[str]) -> bool:
    """Run a stage to its end, RFT with a kill; whether it has all its steps."""
    folder, since = home / "data/vlnr1" / engine / STAGES[name][2], time.monotonic()
    if name == "rft":
        kill_after(start(home, name, engine, task), folder / "checkpoint-2")
    status = start(home, name, engine, task).wait()
    state = folder / "checkpoint-4/trainer_state.json"
    history = json.loads(state.read_text())["log_history"] if state.is_file() else []
    losses = [round(row["loss"], 4) for row in history if "loss" in row]
    print(f"{engine} {name}: status {status}, {time.monotonic() - since:.0f} s, losses {losses}", flush=True)
    return status == 0 and len(losses) == 4


def evaluate(home: Path, engine: str, task: Sequence[str]) -> bool:
    """Evaluate with all processes and with one; whether they have the same lines."""
    found = []
    for name, before in (("evaluation", torchrun()), ("evaluation_by_one", [sys.executable])):
        since, results = time.monotonic(), f"data/vlnr1/{engine}/{name}"
        command = [
            *(*before, "-m", "habitat_baselines.run", "--config-name=vlnr1_dagger", *task, *COMMON),
            *(f"vlnr1.run_dir=data/vlnr1/{engine}", f"vlnr1.results_dir={results}", "vlnr1.dagger.rounds=2"),
            *("habitat_baselines.evaluate=True", "vlnr1.eval.videos=0"),
        ]
        status = launch(home, f"{engine}_{name}", command).wait()
        lines = lines_of(home / results)
        print(f"{engine} {name}: status {status}, {time.monotonic() - since:.0f} s, {len(lines)} lines", flush=True)
        found.append((status, lines))
    return found[0] == found[1] and found[0][0] == 0 and bool(found[0][1])


def lines_of(results: Path) -> dict[str, Any]:
    """All lines of an evaluation by row, scene and episode, without the seconds that they took."""
    lines: dict[str, Any] = {}
    for file in sorted(results.glob("*/*/episodes*.jsonl")):
        for line in map(json.loads, file.read_text().splitlines()):
            line.pop("seconds")
            lines[f"{file.parent.parent.name} {line['scene_id']} {line['episode_id']}"] = line
    return lines


def take_r2r(source: Path, home: Path) -> None:
    """The shortest walks of two splits, where `vlnr1/task=r2r` looks for them, and scenes for these."""
    files = []
    for split in ("train", "val_unseen"):
        origin = split if (source / split / f"{split}_gt.json.gz").is_file() else "val_seen"
        data, truths = (read(source / origin / f"{origin}{end}.json.gz") for end in ("", "_gt"))
        data["episodes"].sort(key=lambda episode: len(truths[str(episode["episode_id"])]["actions"]))
        data["episodes"] = data["episodes"][:EPISODES]
        truths = {key: truths[key] for key in (str(episode["episode_id"]) for episode in data["episodes"])}
        folder = home / FILES / split
        folder.mkdir(parents=True, exist_ok=True)
        files.append(str(folder / f"{split}.json.gz"))
        for end, content in (("", data), ("_gt", truths)):
            (folder / f"{split}{end}.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    stand_in = [sys.executable, str(ROOT / "benchmarks/stand_in_scenes.py"), *files, "--check"]
    subprocess.run([*stand_in, "--scenes-dir", str(home / "data/stand_in")], check=True)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["none", "zero3"], choices=["none", "zero2", "zero3"])
    parser.add_argument("--stages", nargs="+", default=[*STAGES, "evaluation"], choices=[*STAGES, "evaluation"])
    parser.add_argument("--r2r", type=Path, help="folder of R2R-CE's episode files; default: generated houses")
    parser.add_argument("--home", type=Path, help="where it works; default: a folder that goes again")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        home = (options.home or Path(made)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        task = [*R2R, f"vlnr1.protocol.max_steps={STEP_LIMIT}"] if options.r2r else [*HOUSES]
        if options.r2r:
            take_r2r(options.r2r, home)
        export = [sys.executable, "-m", "habitat_baselines.run", "--config-name=vlnr1_export", *task, *COMMON]
        export += ["vlnr1.export.describe=false"] if options.r2r else []
        subprocess.run([*export, "vlnr1.export.splits=[train,val_unseen]"], cwd=home, check=True)
        task += TRAINED["r2r" if options.r2r else "embedded"]
        done = []
        for engine in options.engines:
            done += [run(home, name, engine, task) for name in options.stages if name in STAGES]
            done += [evaluate(home, engine, task)] if "evaluation" in options.stages else []
        return 0 if all(done) else 1


if __name__ == "__main__":
    if "RANK" in os.environ:
        worker()
    else:
        sys.exit(main(sys.argv[1:]))
