"""What a walker must know of what it has passed on long ways: readers of the words on the floor plan.

    python benchmarks/needs_history.py [--task embedded_long] [--split val_unseen] [--within 2.0]

The reader of `habitat_embedded_sim.houses.reader` follows each instruction on the plan, and the expert walks its way
with the protocol's steps. Beside it, without walking, readers that know the plan, where they are and which words are
next, but lack something:

- forgets: what it has passed; it draws where it would have to know;
- the first, the last: what number was asked for;
- counts steps: it forgets as well, but goes as far as is best for the number asked for, known in hindsight;
- looks at that time: the same, but stops at the nearest thing of the kind asked for. It sees all of them at once, from
  any distance, so that few walkers with a step counter and no other memory will do as well.

The last two are for ways of one clause, which lead along a corridor.
"""

import argparse
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from habitat_embedded_sim.houses.directions import ORDINALS
from habitat_embedded_sim.houses.expert import walk
from habitat_embedded_sim.houses.furnish import Piece
from habitat_embedded_sim.houses.plan import Plan
from habitat_embedded_sim.houses.plan_file import read_plan
from habitat_embedded_sim.houses.reader import Point, Reading, is_clear, leads_to, read
from habitat_embedded_sim.houses.told import with_number
from habitat_embedded_sim.mesh import Mesh
from habitat_embedded_sim.navmesh import NavGrid, NavMeshSettings

WIDE = NavMeshSettings(cell_size=0.1, agent_radius=0.3)  # the way keeps this far from things
REACHED = 0.35  # metres: nearer corners of the way are passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="embedded_long", help="name of the houses' and the episodes' folders")
    parser.add_argument("--split", default="val_unseen")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--forward-step", type=float, default=0.5, help="metres")
    parser.add_argument("--turn-angle", type=float, default=30.0, help="degrees")
    parser.add_argument(
        "--within", type=float, default=2.0, help="metres from the goal that succeed (default: protocol `embedded`'s)"
    )
    options = parser.parse_args()
    episodes = episodes_of(options.data_dir, options.task, options.split)
    scenes = options.data_dir / "scene_datasets"
    houses = {name: House(scenes / name, options.within) for name in {episode["scene_id"] for episode in episodes}}
    ways = [
        counted(episode, houses[episode["scene_id"]].plan, houses[episode["scene_id"]].pieces) for episode in episodes
    ]
    metres = best_metres(ways, options.within)
    rows = defaultdict(list)
    for episode, way in zip(episodes, ways, strict=True):
        values = houses[episode["scene_id"]].try_episode(episode, options.forward_step, options.turn_angle)
        rows[episode["info"]["clauses"]].append(values + step_counters(way, metres, options.within))
    print(table(rows))


def episodes_of(data_dir: Path, task: str, split: str) -> list[dict]:
    path = data_dir / f"datasets/vln/{task}/{split}/{split}.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))["episodes"]


class House:
    """Plan, furniture and walkable surface of one scene; `within` so many metres of its goal an episode succeeds."""

    def __init__(self, scene: Path, within: float) -> None:
        self.within = within
        self.plan, self.pieces = read_plan(scene.with_name(f"{scene.stem}_plan.json"))
        mesh = Mesh.load(scene)
        self.grid = NavGrid.build(mesh.vertices, mesh.faces)
        self.wide = NavGrid.build(mesh.vertices, mesh.faces, WIDE)

    def try_episode(self, episode: dict, forward_step: float, turn_angle: float) -> list[float]:
        """Whether all readings agree and the way leads to the goal; chances of the readers that lack something."""
        text, start, heading, goal = facts(episode)
        end = (self.plan.room_at(*goal), goal)
        known = (self.plan, self.pieces, start, heading)
        readings = read(text, *known)
        forgets = leads_to(read(text, *known, remembers=False), *end, within=self.within)
        uncounted = [
            leads_to(read(with_number(text, nth), *known), *end, within=self.within) for nth in ("first", "last")
        ]
        walked = self.walk(readings[0], heading, forward_step, turn_angle) if readings else None
        reached = (
            walked is not None and self.grid.find_path(walked, [episode["goals"][0]["position"]])[0] < self.within
        )
        return [float(is_clear(readings, *end)), float(reached), forgets, *uncounted]

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


def facts(episode: dict) -> tuple[str, Point, float, Point]:
    """Words, start (x, z), heading (radians) and goal (x, z)."""
    (x, _, z), (goal_x, _, goal_z) = episode["start_position"], episode["goals"][0]["position"]
    _, y, _, w = episode["start_rotation"]
    return episode["instruction"]["instruction_text"], (x, z), 2 * math.atan2(y, w), (goal_x, goal_z)


@dataclass(frozen=True)
class Counted:
    """A way of one clause along a corridor: how far its goal is, and every thing that a number might mean (metres)."""

    number: str
    goal: float
    things: list[float]

    def is_solved(self, metres: float, looks: bool, within: float) -> bool:
        """Whether who goes so far, or with `looks` to the nearest thing there, is `within` metres of the goal."""
        end = min(self.things, key=lambda place: abs(place - metres)) if looks else metres
        return abs(end - self.goal) < within


def counted(episode: dict, plan: Plan, pieces: list[Piece]) -> Counted | None:
    """What matters of an episode to who counts steps; None where its words have several clauses."""
    text, start, heading, goal = facts(episode)
    if episode["info"]["clauses"] > 1:
        return None
    number = next(nth for nth in ORDINALS if f"the {nth} " in text)
    ends = [r.place for nth in ORDINALS for r in read(with_number(text, nth), plan, pieces, start, heading)]
    along = [max(abs(x - start[0]), abs(z - start[1])) for x, z in (goal, *ends)]
    return Counted(number, along[0], along[1:])


def best_metres(ways: Iterable[Counted | None], within: float) -> dict[tuple[str, bool], float]:
    """How far to go for each number, without and with a look at the things there, to solve most of the ways."""
    by_number = defaultdict(list)
    for way in ways:
        if way:
            by_number[way.number].append(way)
    grid = np.arange(0.0, 40.0, 0.25)
    return {
        (number, looks): float(
            max(grid, key=lambda metres: sum(way.is_solved(metres, looks, within) for way in found))
        )
        for number, found in by_number.items()
        for looks in (False, True)
    }


def step_counters(way: Counted | None, metres: dict[tuple[str, bool], float], within: float) -> list[float]:
    """Whether those succeed that count their steps, without and with a look; NaN where there is no such walker."""
    if way is None:
        return [math.nan, math.nan]
    return [float(way.is_solved(metres.get((way.number, looks), 0.0), looks, within)) for looks in (False, True)]


def table(rows: dict[int, list[list[float]]]) -> str:
    """Means by clauses, as Markdown."""
    names = ("readings agree", "the way, walked: SR", "forgets", "the first", "the last", "counts steps", "and looks")
    lines = [f"| clauses | episodes | {' | '.join(names)} |", "|---|---:" + "|---:" * len(names) + "|"]
    every = [row for found in rows.values() for row in found]
    for name, found in [*((str(key), rows[key]) for key in sorted(rows)), ("all", every)]:
        means = " | ".join("—" if math.isnan(value) else f"{value:.3f}" for value in np.mean(found, axis=0))
        lines.append(f"| {name} | {len(found)} | {means} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
