"""How far the embedded simulator and the real habitat-sim agree, on the same poses in the same generated houses.

    python benchmarks/simulator_agreement.py [--houses 10] [--forward-step 0.5 --turn-angle 30]

Needs the real habitat-sim in the same environment. Each simulator runs in a process of its own (the stand-in is put
first on that process's path), with the same code and settings; results are exchanged as .npz files in --folder.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import quaternion as qt

SIDE, CAMERA_HEIGHT = 224, 1.25
STOP, FORWARD, LEFT, RIGHT = range(4)
VIEWS, STEPS, PAIRS, WALKS, ACTIONS, EPISODES = 20, 200, 100, 10, 100, 10  # per house
CLEAR = 0.3  # metres that the poses keep from walls, so that both navmeshes hold them
CELL = 0.05  # metres between the points asked for navigability
SAME = 0.01  # metres: positions this near are the same
MAX_STEPS = 300
KINDS = "sliding", "no sliding"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--houses", type=int, default=10)
    parser.add_argument("--style", default="plain")
    parser.add_argument("--forward-step", type=float, default=0.5, help="metres")
    parser.add_argument("--turn-angle", type=float, default=30.0, help="degrees")
    parser.add_argument("--folder", type=Path, help="houses and results; a temporary one without it")
    parser.add_argument("--worker", choices=("embedded", "real"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        observe_all(options.worker, options.folder, options.forward_step, options.turn_angle)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        make_houses(folder, options)
        for simulator in ("real", "embedded"):
            print(f"Running the {simulator} simulator", flush=True)
            subprocess.run([sys.executable, __file__, "--worker", simulator, *arguments(folder, options)], check=True)
        print(table([compare(*pair) for pair in results(folder)]))


def arguments(folder: Path, options: argparse.Namespace) -> list[str]:
    numbers = ["--forward-step", str(options.forward_step), "--turn-angle", str(options.turn_angle)]
    return ["--folder", str(folder), *numbers]


def make_houses(folder: Path, options: argparse.Namespace) -> None:
    from habitat_embedded_sim.houses import ensure

    steps = {"forward_step": options.forward_step, "turn_angle": options.turn_angle}
    counts = {"train_scenes": 0, "val_seen_episodes": 0, "val_unseen_scenes": options.houses}
    ensure(folder, style=options.style, val_unseen_episodes_per_scene=EPISODES, **counts, **steps)


def scene_files(folder: Path) -> list[Path]:
    return sorted((folder / "scene_datasets" / "embedded").glob("*/*.glb"))


def results(folder: Path) -> list[tuple[dict, dict]]:
    """(embedded, real) of every house."""
    stems = [path.stem for path in scene_files(folder)]
    return [
        (dict(np.load(folder / f"{stem}.embedded.npz")), dict(np.load(folder / f"{stem}.real.npz"))) for stem in stems
    ]


# ---- in each simulator's process ---------------------------------------------------------------------------------


def observe_all(simulator: str, folder: Path, forward_step: float, turn_angle: float) -> None:
    """Write <house>.<simulator>.npz for every house."""
    from habitat_embedded_sim.finder import STAND_IN_DIR

    if simulator == "embedded":
        sys.path.insert(0, STAND_IN_DIR)
    import habitat_sim

    if habitat_sim.__version__.endswith("embedded") != (simulator == "embedded"):
        sys.exit("the real habitat-sim is not installed in this environment: there is nothing to compare with")
    with gzip.open(folder / "datasets/vln/embedded/val_unseen/val_unseen.json.gz", "rt") as file:
        episodes = json.load(file)["episodes"]
    for seed, path in enumerate(scene_files(folder)):
        sim = habitat_sim.Simulator(configuration(habitat_sim, path, forward_step, turn_angle))
        own = [episode for episode in episodes if episode["scene_id"].endswith(path.name)]
        np.savez_compressed(folder / f"{path.stem}.{simulator}.npz", **observe(sim, habitat_sim, path, seed, own))
        sim.close()
        print(f"{simulator} {path.stem}", flush=True)


def configuration(habitat_sim, scene: Path, forward_step: float, turn_angle: float):
    """What Habitat-Lab would configure: three cameras, the default navmesh, the discrete actions."""
    sim_cfg = habitat_sim.SimulatorConfiguration()
    sim_cfg.scene_id, sim_cfg.gpu_device_id = str(scene), -1
    sim_cfg.navmesh_settings = habitat_sim.nav.NavMeshSettings()
    sim_cfg.navmesh_settings.set_defaults()
    cameras = []
    for name in ("COLOR", "DEPTH", "SEMANTIC"):
        camera = habitat_sim.CameraSensorSpec()
        camera.uuid, camera.sensor_type = name, getattr(habitat_sim.SensorType, name)
        camera.resolution, camera.position, camera.hfov = [SIDE, SIDE], [0.0, CAMERA_HEIGHT, 0.0], 90.0
        cameras.append(camera)
    agent = habitat_sim.AgentConfiguration(sensor_specifications=cameras)
    amounts = {"move_forward": forward_step, "turn_left": turn_angle, "turn_right": turn_angle}
    agent.action_space = {
        number: habitat_sim.ActionSpec(name, habitat_sim.ActuationSpec(amount=amount))
        for number, (name, amount) in enumerate(amounts.items(), start=FORWARD)
    }
    return habitat_sim.Configuration(sim_cfg, [agent])


def observe(sim, habitat_sim, scene: Path, seed: int, episodes: list[dict]) -> dict[str, np.ndarray]:
    """Everything that is compared, in one house. Poses come from `seed` and the scene alone."""
    from habitat_embedded_sim.mesh import Mesh
    from habitat_embedded_sim.navmesh import NavGrid, NavMeshSettings

    mesh = Mesh.load(scene)
    clear, rng = (
        NavGrid.build(mesh.vertices, mesh.faces, NavMeshSettings(agent_radius=CLEAR)),
        np.random.default_rng(seed),
    )
    poses = [(clear.random_point(rng), rng.uniform(0, 2 * np.pi)) for _ in range(VIEWS)]
    low, high = clear.bounds()
    axes = [np.arange(low[i], high[i], CELL) + CELL / 2 for i in (0, 2)]
    points = [np.array([x, 0.0, z], np.float32) for z in axes[1] for x in axes[0]]
    pairs = [(clear.random_point(rng), clear.random_point(rng)) for _ in range(PAIRS)]
    starts = [(clear.random_point(rng), rng.uniform(0, 2 * np.pi)) for _ in range(WALKS)]
    steps = [(clear.random_point(rng), rng.uniform(0, 2 * np.pi)) for _ in range(STEPS)]
    moves = rng.choice([FORWARD, FORWARD, LEFT, RIGHT], (WALKS, ACTIONS))
    seen = [look(sim, habitat_sim, *pose) for pose in poses]
    follows = [follow(sim, habitat_sim, episode) for episode in episodes]
    categories = {thing.semantic_id: thing.category.name() for thing in sim.semantic_scene.objects if thing}
    return {
        "colour": np.stack([view["COLOR"][..., :3] for view in seen]),
        "depth": np.stack([view["DEPTH"] for view in seen]),
        "semantic": np.stack([view["SEMANTIC"] for view in seen]),
        "categories": np.array([categories.get(i, "") for i in range(max(categories, default=-1) + 1)], str),
        "navigable": np.array([sim.pathfinder.is_navigable(p) for p in points]),
        "map": sim.pathfinder.get_topdown_view(meters_per_pixel=CELL, height=0.0),
        "area": np.array(sim.pathfinder.navigable_area),
        "height": np.array([sim.pathfinder.snap_point(p)[1] for p, _ in poses]),
        "geodesic": np.array([geodesic(sim, habitat_sim, *pair) for pair in pairs]),
        **{f"{k}_step": np.stack([walk(sim, habitat_sim, *s, [FORWARD], k) for s in steps]) for k in KINDS},
        **{k: np.stack([walk(sim, habitat_sim, *starts[i], moves[i], k) for i in range(WALKS)]) for k in KINDS},
        "actions": np.stack([actions for actions, _ in follows]),
        "left": np.array([left for _, left in follows]),
    }


def place(sim, habitat_sim, position: np.ndarray, heading: float) -> None:
    state = habitat_sim.AgentState()
    state.position, state.rotation = position, qt.from_rotation_vector([0, heading, 0])
    sim.get_agent(0).set_state(state)


def where(sim) -> np.ndarray:
    return np.array(sim.get_agent(0).get_state().position, np.float64)


def look(sim, habitat_sim, position: np.ndarray, heading: float) -> dict[str, np.ndarray]:
    place(sim, habitat_sim, position, heading)
    return sim.get_sensor_observations()


def geodesic(sim, habitat_sim, start: np.ndarray, end: np.ndarray) -> float:
    path = habitat_sim.ShortestPath()
    path.requested_start, path.requested_end = start, end
    sim.pathfinder.find_path(path)
    return path.geodesic_distance


def walk(sim, habitat_sim, start: np.ndarray, heading: float, moves: Sequence[int], kind: str) -> np.ndarray:
    """Position and whether it collided, after every action: float64 [len(moves), 4]."""
    sim.config.sim_cfg.allow_sliding = kind == "sliding"
    place(sim, habitat_sim, start, heading)
    agent, rows = sim.get_agent(0), []
    for move in moves:
        collided = agent.act(int(move))
        rows.append([*where(sim), collided])
    return np.array(rows)


def follow(sim, habitat_sim, episode: dict) -> tuple[np.ndarray, float]:
    """The greedy follower's actions (int [MAX_STEPS], 0 from the stop on; −1 where it gave up) and the metres that
    were left to the goal."""
    sim.config.sim_cfg.allow_sliding = True
    x, y, z, w = episode["start_rotation"]
    start, goal = (np.array(p, np.float32) for p in (episode["start_position"], episode["goals"][0]["position"]))
    place(sim, habitat_sim, start, float(qt.as_rotation_vector(qt.quaternion(w, x, y, z))[1]))
    follower, actions = sim.make_greedy_follower(0, stop_key=STOP), np.zeros(MAX_STEPS, int)
    for step in range(MAX_STEPS):
        try:
            actions[step] = follower.next_action_along(goal)
        except habitat_sim.errors.GreedyFollowerError:
            actions[step] = -1
        if actions[step] < FORWARD:
            break
        sim.get_agent(0).act(int(actions[step]))
    return actions, float(np.linalg.norm((where(sim) - goal)[[0, 2]]))


# ---- side by side ------------------------------------------------------------------------------------------------


def compare(ours: dict, real: dict) -> dict[str, np.ndarray]:
    """Differences in one house, each a flat array whose mean, worst, … the table gives."""
    hit = (ours["depth"] > 0) & (real["depth"] > 0)
    found = np.isfinite(ours["geodesic"]) & np.isfinite(real["geodesic"])
    lengths = ours["geodesic"][found], real["geodesic"][found]
    out = {
        "colour": np.abs(ours["colour"].astype(float) - real["colour"]).mean(-1).ravel(),
        "depth": np.abs(ours["depth"] - real["depth"])[hit],
        "hit": ((ours["depth"] > 0) == (real["depth"] > 0)).ravel(),
        "semantic": (ours["semantic"] == real["semantic"]).ravel(),
        "names": np.array([np.array_equal(ours["categories"], real["categories"])]),
        "navigable": ours["navigable"] == real["navigable"],
        "iou": np.array([(ours["map"] & real["map"]).sum() / (ours["map"] | real["map"]).sum()]),
        "area": ours["area"].reshape(1) / real["area"] - 1,
        "height": real["height"] - ours["height"],
        "reachable": np.isfinite(ours["geodesic"]) == np.isfinite(real["geodesic"]),
        "geodesic": (lengths[0] - lengths[1]) / lengths[1],
        "actions": (ours["actions"] == real["actions"]).all(-1),
        "steps": ((ours["actions"] > 0).sum(-1) - (real["actions"] > 0).sum(-1)).astype(float),
        "ours_left": ours["left"],
        "real_left": real["left"],
    }
    for kind in KINDS:
        step, real_step = ours[f"{kind}_step"][:, 0], real[f"{kind}_step"][:, 0]
        apart = np.linalg.norm((step - real_step)[:, [0, 2]], axis=-1)
        out[f"{kind}_step"] = apart[(step[:, 3] + real_step[:, 3]) > 0]
        out[f"{kind}_free"] = apart[(step[:, 3] + real_step[:, 3]) == 0]
        out[f"{kind}_collided"] = step[:, 3] == real_step[:, 3]
        apart = np.linalg.norm((ours[kind] - real[kind])[..., [0, 2]], axis=-1)
        out[kind] = apart[:, -1]
        out[f"{kind}_parted"] = np.where(apart > SAME, np.arange(1, ACTIONS + 1), ACTIONS + 1).min(-1)
    return out


def table(houses: list[dict[str, np.ndarray]]) -> str:
    """All houses together, as Markdown."""
    d = {key: np.concatenate([house[key] for house in houses]) for key in houses[0]}
    rows = pictures(d) + places(d) + [row for kind in KINDS for row in moves_of(d, kind)] + follower(d)
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def pictures(d: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    other, names = (d["colour"] > 16).mean(), d["names"]
    return [
        ("RGB, mean difference of 255", f"{d['colour'].mean():.2f}"),
        ("pixels whose RGB differs by more than 16", f"{other:.2%}"),
        (
            "depth, metres apart: median; 99th percentile",
            f"{np.median(d['depth']):.0e}; {percentile(d['depth'], 99):.0e}",
        ),
        ("pixels where one alone hits something", f"{1 - d['hit'].mean():.3%}"),
        ("semantic ids, equal pixels", f"{d['semantic'].mean():.2%}"),
        ("houses with equal categories", f"{names.sum()} of {len(names)}"),
    ]


def places(d: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    far, height = np.abs(d["geodesic"]), d["height"]
    return [
        ("navigable or not, equal points of a 5 cm grid", f"{d['navigable'].mean():.2%}"),
        ("top-down map, intersection over union: mean; worst house", f"{d['iou'].mean():.3f}; {d['iou'].min():.3f}"),
        ("navigable area, embedded against real", f"{d['area'].mean():+.1%}"),
        ("floor height, real − embedded, m: median; worst", f"{np.median(height):+.3f}; {np.abs(height).max():.3f}"),
        ("pairs that only one can connect", f"{(~d['reachable']).sum()} of {len(d['reachable'])}"),
        ("geodesic distance, relative error: mean; worst", f"{far.mean():.2%}; {far.max():.1%}"),
        ("geodesic distance, mean of embedded − real", f"{d['geodesic'].mean():+.2%}"),
    ]


def moves_of(d: dict[str, np.ndarray], kind: str) -> list[tuple[str, str]]:
    step, parted, alike = d[f"{kind}_step"], d[f"{kind}_parted"], d[f"{kind}_collided"]
    quantiles = f"{np.median(step):.3f}; {percentile(step, 95):.3f}; {step.max():.3f}"
    return [
        (f"{kind}: one step that collides, m apart: median; 95th percentile; worst", quantiles),
        (f"{kind}: one step, both collide or neither does", f"{alike.mean():.1%} of {len(alike)}"),
        (f"{kind}: {ACTIONS} random actions, m apart: mean; worst", f"{d[kind].mean():.2f}; {d[kind].max():.2f}"),
        (f"{kind}: more than 1 cm apart from action … on (median)", f"{np.median(parted):.0f}"),
    ]


def follower(d: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    ours, real = d["ours_left"], d["real_left"]
    return [
        ("follower: episodes with equal actions throughout", f"{d['actions'].mean():.0%} of {len(d['actions'])}"),
        ("follower: steps, embedded − real: mean; most", f"{d['steps'].mean():+.2f}; {np.abs(d['steps']).max():.0f}"),
        ("follower: m to the goal at the end, embedded: mean; worst", f"{ours.mean():.2f}; {ours.max():.2f}"),
        ("follower: m to the goal at the end, real: mean; worst", f"{real.mean():.2f}; {real.max():.2f}"),
    ]


def percentile(values: np.ndarray, q: float) -> float:
    return float(np.percentile(values, q))


if __name__ == "__main__":
    main()
