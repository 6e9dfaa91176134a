"""Kill runs at random moments, resume them, and compare what they made with an undisturbed run.

    python benchmarks/kills.py --stages export evaluation sft rft online dagger --times 20

`kill -9` hits the main process (which is started again until it ends by itself) or one simulator (the run goes on),
each `--times` times per stage, on two generated houses. Printed for each: kills, lost and doubled episodes,
and what differs: lines and frames of an export, lines of an evaluation (without seconds), logged curve and the last
weights of a training. Ends with status 1 if anything was lost, doubled or different.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil

SCENES = {"train_scenes": 2, "train_episodes_per_scene": 3, "val_seen_episodes": 2, "val_unseen_scenes": 1}
SCENES |= {"val_unseen_episodes_per_scene": 4}
COMMON = [*(f"vlnr1.task.scenes.{key}={value}" for key, value in SCENES.items()), "vlnr1.eval.videos=0"]
SFT = [
    "vlnr1.model.build.warmup.words.steps=4", "vlnr1.model.build.warmup.words.batch_size=4", "vlnr1.sft.max_steps=8",
    "vlnr1.sft.save_steps=2", "vlnr1.sft.per_device_train_batch_size=2", "vlnr1.sft.logging_steps=1",
    "vlnr1.sft.evaluate=false", "vlnr1.model.cpu_threads=1",
]  # fmt: skip
RFT = [
    "vlnr1.rft.max_steps=6", "vlnr1.rft.save_steps=2", "vlnr1.rft.logging_steps=1", "vlnr1.rft.num_generations=4",
    "vlnr1.rft.per_device_train_batch_size=8", "vlnr1.rft.evaluate=false", "vlnr1.model.cpu_threads=1",
]  # fmt: skip
RECORDED = ["vlnr1.data.rft_records.embedded=12", "vlnr1.rft.held_out.records=2", "vlnr1.rft.eval_steps=100"]
DAGGER = [
    "vlnr1/task=embedded", "vlnr1/setup=embedded", "vlnr1/memory=first", "vlnr1.dagger.rounds=1",
    "vlnr1.dagger.episodes=4",
]  # fmt: skip
RUN = "data/vlnr1/run"
STAGES: dict[str, tuple[str, list[str], list[str]]] = {  # name → config, settings, what it makes
    "export": ("vlnr1_export", ["vlnr1.data.source=killed"], ["data/vln_ego/killed"]),
    "evaluation": ("vlnr1_sft", [*SFT, "habitat_baselines.evaluate=True"], [f"{RUN}/results"]),
    "sft": ("vlnr1_sft", SFT, [f"{RUN}/checkpoints"]),
    "rft": ("vlnr1_rft_recorded", [*RFT, *RECORDED], [f"{RUN}/rft_recorded"]),
    "online": (
        "vlnr1_rft",
        ["vlnr1/setup=embedded", "vlnr1/rft=online", *RFT, "vlnr1.rft.online.turns=2"],
        [f"{RUN}/rft"],
    ),
    "dagger": ("vlnr1_dagger", [*DAGGER, *SFT[2:]], [f"{RUN}/dagger", "data/vln_ego/embedded_run_dagger_1"]),
}


class Stage:
    """One stage in a folder of its own, which holds what comes before it."""

    def __init__(self, name: str, home: Path):
        config, settings, self.makes = STAGES[name]
        self.name, self.home = name, home
        self.command = [sys.executable, "-m", "habitat_baselines.run", f"--config-name={config}", *COMMON, *settings]
        self.command.append(f"vlnr1.run_dir={RUN}")

    def clean(self) -> None:
        for made in self.makes:
            shutil.rmtree(self.home / made, ignore_errors=True)

    def start(self) -> subprocess.Popen:
        log = (self.home / f"{self.name}.log").open("ab")
        return subprocess.Popen(self.command, cwd=self.home, stdout=log, stderr=log, start_new_session=True)

    def finish(self) -> None:
        status = self.start().wait()
        if status not in (0, 3):
            raise SystemExit(f"{self.name} ended with status {status}; see {self.home / f'{self.name}.log'}")

    def found(self) -> dict[str, Any]:
        """What was made, in a form that can be compared: `episodes` are ids, with repetitions."""
        lines = [
            (str(file.relative_to(self.home)), json.loads(line))
            for made in self.makes
            for file in sorted((self.home / made).rglob("episodes*.jsonl"))
            for line in file.read_text().splitlines()
        ]
        for _, line in lines:
            line.pop("seconds", None)
        frames = [file for made in self.makes for file in sorted((self.home / made).rglob("*.jpg"))]
        return {
            "episodes": [(file, line["episode_id"]) for file, line in lines],
            "lines": sorted(json.dumps(entry, sort_keys=True) for entry in lines),
            "frames": {str(file.relative_to(self.home)): sha256(file.read_bytes()).hexdigest() for file in frames},
            "curves": {str(path.relative_to(self.home)): curve(path) for path in self._last_checkpoints()},
        }

    def _last_checkpoints(self) -> list[Path]:
        states = [file for made in self.makes for file in (self.home / made).rglob("trainer_state.json")]
        newest: dict[Path, Path] = {}
        for checkpoint in sorted((file.parent for file in states), key=lambda path: int(path.name.split("-")[1])):
            newest[checkpoint.parent] = checkpoint
        return sorted(newest.values())


def curve(checkpoint: Path) -> list[list[float]]:
    """Step, loss and reward of every logged step, and what the last weights sum to, rounded to six digits."""
    from safetensors.torch import load_file

    state = json.loads((checkpoint / "trainer_state.json").read_text())
    weights = load_file(checkpoint / "model.safetensors")
    logged = [row for row in state["log_history"] if "loss" in row]
    rows = [[row["step"], *(round(row[key], 6) for key in ("loss", "reward") if key in row)] for row in logged]
    return [*rows, [round(float(sum(weight.double().abs().sum() for weight in weights.values())), 3)]]


def simulators(main: psutil.Process) -> list[psutil.Process]:
    """Worker processes of a run: children of its fork server."""
    workers = []
    for child in main.children():
        with suppress(psutil.NoSuchProcess):  # helpers come and go; one that has ended has no command line
            if "forkserver" in " ".join(child.cmdline()):
                workers += child.children()
    return workers


def kill_one(stage: Stage, victim: str, seconds: float) -> bool:
    """Start, wait for a random moment, kill; False when the run was over, or had no simulator to kill."""
    process = stage.start()
    until = time.monotonic() + random.uniform(0, seconds)
    try:
        main = psutil.Process(process.pid)
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is not None:
            return False
        if victim == "main":
            process.kill()
            return True
        while process.poll() is None:
            workers = simulators(main)
            if workers:
                random.choice(workers).kill()
                return True
            time.sleep(0.05)
        return False
    except psutil.NoSuchProcess:
        return False
    finally:
        status = process.wait()
        if victim == "worker" and status not in (0, 3):
            raise SystemExit(f"{stage.name} ended with status {status} after a simulator was killed")


def compare(wanted: dict[str, Any], got: dict[str, Any]) -> tuple[int, int, list[str]]:
    """Lost and doubled episodes, and the kinds of things that differ."""
    lost, doubled = set(wanted["episodes"]) - set(got["episodes"]), Counter(got["episodes"])
    kinds = [kind for kind in ("lines", "frames", "curves") if wanted[kind] != got[kind]]
    return len(lost), sum(count - 1 for count in doubled.values()), kinds


def attack(stage: Stage, victim: str, times: int) -> bool:
    stage.clean()
    began = time.monotonic()
    stage.finish()
    seconds, wanted = time.monotonic() - began, stage.found()
    kills = lost = doubled = runs = idle = 0
    different: set[str] = set()
    while kills < times and idle < 10:
        stage.clean()
        before = kills
        # Several kills fall into one run where the main process is the victim: it goes on after each.
        for _ in range(min(4, times - kills) if victim == "main" else 1):
            kills += kill_one(stage, victim, seconds)
        if victim == "main":
            stage.finish()
        runs, idle = runs + 1, 0 if kills > before else idle + 1
        found = compare(wanted, stage.found())
        lost, doubled = lost + found[0], doubled + found[1]
        different.update(found[2])
    counts = f"{kills} kills in {runs} runs of {seconds:.0f} s: {lost} lost, {doubled} doubled, "
    print(f"{stage.name}, {victim}: {counts}different: {', '.join(sorted(different)) or 'nothing'}", flush=True)
    return not (lost or doubled or different)


def prepare(home: Path) -> None:
    """Houses, an export and a checkpoint, which later stages start from."""
    home.mkdir(parents=True, exist_ok=True)
    Stage("sft", home).finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--victims", nargs="+", default=["main", "worker"], choices=["main", "worker"])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, default=Path("outputs/kills"))
    options = parser.parse_args()
    random.seed(options.seed)
    prepare(options.home)
    good = True
    for name in options.stages:
        for victim in options.victims:
            if victim == "worker" and name in ("sft", "rft"):
                continue  # they have no simulator
            good &= attack(Stage(name, options.home), victim, options.times)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
