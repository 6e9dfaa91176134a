"""How fast the embedded simulator is: frames per second by ray caster, and steps per second of a VLN environment.

    python benchmarks/embedded_sim.py [--scene data/scene_datasets/embedded/…/….glb] [--seconds 5]

Without --scene it takes the first generated house under data/, or makes one in a temporary directory. One process, one
thread. CPU time is given beside wall time: on a busy machine it tells more.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import quaternion as qt
from habitat_embedded_sim.mesh import Mesh
from habitat_embedded_sim.navmesh import NavGrid, NavMeshSettings
from habitat_embedded_sim.render import Camera, Renderer

EYE = np.array([0.0, 1.25, 0.0])


def rate(action: Callable[[], object], seconds: float) -> str:
    """Calls per second of wall time and of CPU time, after one call that compiles."""
    action()
    calls, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        action()
        calls += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return f"{calls / wall:7.1f}/s wall  {calls / cpu:7.1f}/s CPU"


def random_poses(grid: NavGrid) -> Callable[[], tuple[np.ndarray, qt.quaternion]]:
    """A function that draws camera poses on the navmesh."""
    rng = np.random.default_rng(0)

    def draw() -> tuple[np.ndarray, qt.quaternion]:
        turn = np.array([0.0, rng.uniform(0, 2 * np.pi), 0.0])
        return grid.random_point(rng) + EYE, qt.from_rotation_vector(turn)

    return draw


def measure_rendering(mesh: Mesh, grid: NavGrid, seconds: float) -> None:
    """Print frames per second, RGB + depth, for every ray caster that is installed."""
    draw = random_poses(grid)
    for engine in ["embree"] * (importlib.util.find_spec("embreex") is not None) + ["numba"]:
        renderer = Renderer(mesh, engine)
        for camera in (Camera(224, 224, 79.0), Camera(480, 640, 79.0)):

            def frame(renderer: Renderer = renderer, camera: Camera = camera) -> None:
                view = renderer.view(camera, *draw())
                _ = view.colour, view.depth

            print(f"RGB + depth {camera.width:3d} x {camera.height:3d}, {engine:6s} {rate(frame, seconds)}")


def measure_navmesh(mesh: Mesh, seconds: float) -> NavGrid:
    """Print how long the navmesh takes and what a geodesic query costs; returns the navmesh."""
    settings = NavMeshSettings()
    grid = NavGrid.build(mesh.vertices, mesh.faces, settings)
    print(f"navmesh, {grid.area:5.1f} m2             {rate(lambda: NavGrid.build(mesh.vertices, mesh.faces), 1.0)}")
    rng = np.random.default_rng(0)
    goal = grid.random_point(rng)
    query = rate(lambda: grid.find_path(grid.random_point(rng), goal), min(seconds, 2.0))
    print(f"geodesic distance, one goal   {query}")
    return grid


def write_episode(scene: Path, grid: NavGrid, folder: Path) -> Path:
    """An R2R-style data set with one long episode in the scene."""
    rng = np.random.default_rng(0)
    start = grid.random_point(rng)
    ends = [grid.random_point(rng) for _ in range(50)]
    lengths = [grid.find_path(start, end)[0] for end in ends]
    distance, farthest = max((length, i) for i, length in enumerate(lengths) if np.isfinite(length))
    goal = ends[farthest]
    episode = {
        "episode_id": 1,
        "trajectory_id": 1,
        "scene_id": scene.name,
        "start_position": start.tolist(),
        "start_rotation": [0.0, 0.0, 0.0, 1.0],
        "goals": [{"position": goal.tolist(), "radius": 3.0}],
        "reference_path": [start.tolist(), goal.tolist()],
        "instruction": {"instruction_text": "Walk.", "instruction_tokens": [2]},
        "info": {"geodesic_distance": distance},
    }
    path = folder / "episodes.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump({"episodes": [episode], "instruction_vocab": {"word_list": ["<pad>", "<unk>", "walk"]}}, file)
    return path


def measure_env(scene: Path, grid: NavGrid, seconds: float) -> None:
    """Print steps per second of Habitat's VLN environment (RGB + depth 224 x 224), walking on a shortest path."""
    import habitat
    from habitat.config.default import get_config
    from habitat.tasks.nav.shortest_path_follower import ShortestPathFollower

    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        episodes = write_episode(scene, grid, Path(folder))
        camera = "habitat.simulator.agents.main_agent.sim_sensors"
        sizes = [f"{camera}.{s}_sensor.{side}=224" for s in ("rgb", "depth") for side in ("width", "height")]
        paths = [f"habitat.dataset.data_path={episodes}", f"habitat.dataset.scenes_dir={scene.parent}"]
        with habitat.Env(get_config("benchmark/nav/vln_r2r.yaml", [*paths, *sizes])) as env:
            env.reset()
            follower = ShortestPathFollower(env.sim, 0.2, return_one_hot=False)
            goal = env.current_episode.goals[0].position

            def step() -> None:
                if env.episode_over:
                    env.reset()
                else:
                    env.step(follower.get_next_action(goal))

            print(f"VLN Env step with expert      {rate(step, seconds)}")

            def act() -> None:
                if env.episode_over:
                    env.reset()
                env.step(1 + env._elapsed_steps % 2)  # forward and left in turn: around in circles

            print(f"VLN Env step                  {rate(act, seconds)}")


def find_scene(folder: Path) -> Path:
    """The first generated house under data/, or a new one in `folder`."""
    made = sorted(Path("data/scene_datasets").glob("embedded/*/*.glb"))
    if made:
        return made[0]
    from habitat_embedded_sim.houses.style import get_style
    from habitat_embedded_sim.houses.world import make_world

    make_world(np.random.default_rng(0), get_style("modern"), folder, "house")
    return folder / "house.glb"


def main() -> None:
    """Measure everything and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, help="a .glb file")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to measure each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scene = (options.scene or find_scene(Path(folder))).resolve()
        start = time.perf_counter()
        mesh = Mesh.load(scene)
        took = 1000 * (time.perf_counter() - start)
        print(f"{scene.name}: {len(mesh.faces)} triangles, read in {took:.0f} ms")
        grid = measure_navmesh(mesh, options.seconds)
        measure_rendering(mesh, grid, options.seconds)
        measure_env(scene, grid, options.seconds)


if __name__ == "__main__":
    main()
