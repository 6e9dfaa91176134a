"""Small data sets in the little house, R2R-style or point goals only, and a Habitat config that reads the former."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from tests.embedded_sim.small_scene import write_scene

GOAL = [4.3, 0.0, 2.0]
START = [0.6, 0.0, 3.4]


def _episode(number: int, scene: str) -> dict:
    return {
        "episode_id": number,
        "trajectory_id": number,
        "scene_id": f"{scene}/{scene}.glb",
        "start_position": START,
        "start_rotation": [0.0, 0.0, 0.0, 1.0],
        "goals": [{"position": GOAL, "radius": 3.0}],
        "reference_path": [START, GOAL],
        "instruction": {"instruction_text": "Go through the door.", "instruction_tokens": [2, 3, 4, 5]},
        "info": {"geodesic_distance": 4.1},
    }


def write_dataset(folder: Path, scenes: tuple[str, ...] = ("small",), instructions: bool = True) -> tuple[str, str]:
    """Write scenes and episodes (one per scene); returns (path of the episodes, directory of the scenes)."""
    for name in scenes:
        (folder / name).mkdir()
        write_scene(folder / name, name)
    data = {
        "episodes": [_episode(i, name) for i, name in enumerate(scenes, start=1)],
        "instruction_vocab": {"word_list": ["<pad>", "<unk>", "go", "through", "the", "door"]},
    }
    if not instructions:  # what PointNav-v1 reads
        for episode in data["episodes"]:
            for key in ("instruction", "trajectory_id", "reference_path"):
                del episode[key]
    path = folder / "episodes.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump(data, file)
    return str(path), str(folder)


def vln_config(folder: Path, scenes: tuple[str, ...] = ("small",), *overrides: str):
    """Habitat's own VLN R2R benchmark config on that data set, 64 × 64 cameras."""
    from habitat.config.default import get_config

    data_path, scenes_dir = write_dataset(folder, scenes)
    camera = "habitat.simulator.agents.main_agent.sim_sensors"
    sizes = [f"{camera}.{s}_sensor.{side}=64" for s in ("rgb", "depth") for side in ("width", "height")]
    return get_config(
        "benchmark/nav/vln_r2r.yaml",
        [f"habitat.dataset.data_path={data_path}", f"habitat.dataset.scenes_dir={scenes_dir}", *sizes, *overrides],
    )
