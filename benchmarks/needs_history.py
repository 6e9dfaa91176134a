"""What a walker must know of what it has passed on long ways: readers of the words on the floor plan.

    python benchmarks/needs_history.py [--task embedded_long] [--split val_unseen] [--data-dir data]

The reader of `habitat_embedded_sim.houses.reader` follows each instruction on the plan, and the expert walks its way
with the protocol's steps. Beside it, without walking, two that know the plan, where they are and which words are next:
one that forgets what it has passed and draws where it would have to know, and one that takes the first whatever is
asked for.
"""

import argparse
import gzip
import json
import math
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from habitat_embedded_sim.houses.directions import ORDINALS
from habitat_embedded_sim.houses.expert import walk
from habitat_embedded_sim.houses.plan_file import read_plan
from habitat_embedded_sim.houses.reader import Reading, is_clear, leads_to, read
from habitat_embedded_sim.mesh import Mesh
from habitat_embedded_sim.navmesh import NavGrid, NavMeshSettings

SUCCESS = 2.0  # metres, as in protocol `embedded`
WIDE = NavMeshSettings(cell_size=0.1, agent_radius=0.3)  # the way keeps this far from things
REACHED = 0.35  # metres: nearer corners of the way are passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="embedded_long", help="name of the houses' and the episodes' folders")
    parser.add_argument("--split", default="val_unseen")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--forward-step", type=float, default=0.5, help="metres")
    parser.add_argument("--turn-angle", type=float, default=30.0, help="degrees")
    options = parser.parse_args()
    path = options.data_dir / "datasets/vln" / options.task / options.split / f"{options.split}.json.gz"
    houses: dict[str, House] = {}
    rows = defaultdict(list)
    for episode in json.loads(gzip.decompress(path.read_bytes()))["episodes"]:
        scene = options.data_dir / "scene_datasets" / episode["scene_id"]
        house = houses.setdefault(episode["scene_id"], House(scene))
        rows[episode["info"]["clauses"]].append(house.try_episode(episode, options.forward_step, options.turn_angle))
    print(table(rows))


class House:
    """Plan, furniture and walkable surface of one scene."""

    def __init__(self, scene: Path) -> None:
        self.plan, self.pieces = read_plan(scene.with_name(f"{scene.stem}_plan.json"))
        mesh = Mesh.load(scene)
        self.grid = NavGrid.build(mesh.vertices, mesh.faces)
        self.wide = NavGrid.build(mesh.vertices, mesh.faces, WIDE)

    def try_episode(self, episode: dict, forward_step: float, turn_angle: float) -> list[float]:
        """Whether all readings agree, and the way leads to the goal; chances of who forgets, who does not count."""
        text = episode["instruction"]["instruction_text"]
        x, _, z = episode["start_position"]
        _, y, _, w = episode["start_rotation"]
        goal = episode["goals"][0]["position"]
        heading, end = 2 * math.atan2(y, w), (self.plan.room_at(goal[0], goal[2]), (goal[0], goal[2]))
        known = (self.plan, self.pieces, (x, z), heading)
        readings = read(text, *known)
        others = read(text, *known, remembers=False), read(no_count(text), *known)
        chances = [leads_to(found, *end, within=SUCCESS) for found in others]
        walked = self.walk(readings[0], heading, forward_step, turn_angle) if readings else None
        reached = walked is not None and self.grid.find_path(walked, [goal])[0] < SUCCESS
        return [float(is_clear(readings, *end)), float(reached), *chances]

    def walk(self, reading: Reading, heading: float, forward_step: float, turn_angle: float) -> np.ndarray | None:
        """Where the expert stops that walks the reader's way; None if something is in the way."""
        places = [np.array([x, 0.0, z]) for x, z in reading.points]
        corners = [places[0]]
        for place in places[1:]:
            length, path, _ = self.wide.find_path(corners[-1], place[None])
            if math.isfinite(length):
                corners += list(path[1:].astype(np.float64))
        steps = walk(self.grid, np.array(corners), heading, forward_step, turn_angle, reached=REACHED)
        return steps.positions[-1] if steps else None


def no_count(text: str) -> str:
    """The words with every number made the first."""
    text = re.sub(r"[Ww]alk past \w+ \w+ and take the next", "Take the first", text)
    return re.sub(rf"the ({'|'.join(ORDINALS)}|last)\b", "the first", text)


def table(rows: dict[int, list[list[float]]]) -> str:
    """Means by clauses, as Markdown."""
    lines = [
        "| clauses | episodes | readings agree | the way, walked: SR | one that forgets | one that does not count |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    every = [row for found in rows.values() for row in found]
    for name, found in [*((str(key), rows[key]) for key in sorted(rows)), ("all", every)]:
        means = " | ".join(f"{value:.3f}" for value in np.mean(found, axis=0))
        lines.append(f"| {name} | {len(found)} | {means} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
