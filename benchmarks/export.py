"""What an export costs beside the bare simulator, in one run on one machine.

    python benchmarks/export.py --json export.json               # the embedded task's unseen walks, two simulators
    python benchmarks/export.py vlnr1.export.num_environments=4

Both ways take the recorded actions of the same episodes in as many simulators at the same resolution. `bare` steps and
looks at nothing; `export` writes VLN-Ego: JPEGs, descriptions where the config wants them, lines. Simulators start
anew for each, and the time counts from the first reset to the end of the last walk. Ways take turns; CPU seconds are
those of the process and of its simulators.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from habitat_baselines.config.default import get_config
from omegaconf import DictConfig

from benchmarks.evaluation import CONFIGS, cpu_seconds
from habitat_vlnr1.config import edited
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.observations import EXPERT
from habitat_vlnr1.register import register
from habitat_vlnr1.sim.env_factory import VLNVectorEnvFactory, make_scenes
from habitat_vlnr1.trainers.export import described, export_meta
from habitat_vlnr1.trainers.walks import Walk, Walkers


class Full(Walkers):
    """An export that counts its steps."""

    steps = 0

    def _look(self, walk: Walk, observation: dict[str, Any], action: int) -> None:
        self.steps += 1
        super()._look(walk, observation, action)


class Bare(Walkers):
    """Walks as an export does, and keeps nothing of it."""

    steps = 0

    def _look(self, walk: Walk, observation: dict[str, Any], action: int) -> None:
        self.steps += 1
        walk.actions.append(action)

    def _finish(self, walk: Walk, info: dict[str, Any]) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="val_unseen")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("overrides", nargs="*", help="of the config, as on the command line of vlnr1_export")
    options = parser.parse_args()
    register()
    config = get_config("vlnr1_export.yaml", options.overrides, CONFIGS)
    make_scenes(config)
    config = walking(config, options.split)
    measured: dict[str, list[dict[str, float]]] = {"bare": [], "export": []}
    for _ in range(options.runs):
        for way, figures in measured.items():
            figures.append(walk(config, options.split, Bare if way == "bare" else Full))
            print(f"{way}: {figures[-1]['rate']:.1f} steps/s, {figures[-1]['cpu']:.1f} CPU ms each", flush=True)
    report(options, measured)


def walking(config: DictConfig, split: str) -> DictConfig:
    """The config that an export of a split walks with."""
    export = config.vlnr1.export
    changes = {
        "habitat.dataset.split": split,
        f"habitat.task.lab_sensors.{EXPERT}.mode": config.vlnr1.task.expert,
        "habitat.environment.iterator_options.shuffle": False,
        "habitat_baselines.num_environments": export.num_environments,
    }
    return edited(described(config) if export.describe else config, **changes)


def walk(config: DictConfig, split: str, kind: type[Full] | type[Bare]) -> dict[str, float]:
    """Walk every episode once; steps a second, and CPU milliseconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        writer = EpisodeWriter(Path(folder) / split, export_meta(config, split))
        envs = VLNVectorEnvFactory().construct_envs(config)
        try:
            walkers = kind(envs, writer, config, share=True)
            cpu, start = cpu_seconds(), time.perf_counter()
            walkers.walk_all()
            seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        finally:
            envs.close()
            writer.close()
    return {"rate": walkers.steps / seconds, "cpu": 1000 * cpu / walkers.steps}


def report(options: argparse.Namespace, measured: dict[str, list[dict[str, float]]]) -> None:
    """Print the ratios of export to bare, and write them."""
    pairs = list(zip(measured["export"], measured["bare"], strict=True))
    rate = [export["rate"] / bare["rate"] for export, bare in pairs]
    cpu = [export["cpu"] / bare["cpu"] for export, bare in pairs]
    row = {
        "rate_min": round(min(rate), 3),
        "rate_median": round(statistics.median(rate), 3),
        "cpu_median": round(statistics.median(cpu), 3),
        "cpu_max": round(max(cpu), 3),
    }
    rates = f"{row['rate_min']} / {row['rate_median']} (least / median)"
    print(f"export / bare: steps a second {rates}, CPU {row['cpu_median']} (median)")
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items()}
        options.json.write_text(json.dumps({"options": settings, "measured": measured, "ratio": row}, indent=2) + "\n")


if __name__ == "__main__":
    main()
