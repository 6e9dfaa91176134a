"""Scenes that stand in for those of R2R-CE or RxR-CE: a floor under every walk of the episode files, with walls.

    python benchmarks/stand_in_scenes.py data/datasets/R2R_VLNCE_v1-3_preprocessed/val_unseen/val_unseen.json.gz \
        --scenes-dir data/stand_in_scenes [--check]

Writes `<scenes_dir>/mp3d/<X>/<X>.glb` for every scene of the given files. Floors lie under the recorded locations
where a ground-truth file is beside an episode file (`<name>_gt.json.gz`), else under `reference_path`; where there is
neither (split test), around the start. --check walks the recorded actions on the scenes' navmesh and prints how many
episodes stay within half a metre of their locations, as an export with vlnr1.task.expert=ground_truth does.

A floor is a set of cells on a grid of CELL metres, several above one another where storeys are. Every cell that a
walk crosses is laid at the walk's height; from there the floor spreads to both sides, the nearest walk first, until
REACH or until it would take another storey's headroom. So a floor is as wide as its surroundings allow, and a stair
stays beside what it climbs over. A slope is a stair with treads of CELL, whose steps an agent can climb: Habitat's
navmesh takes steps of 20 cm, but no slope above 45°, and recorded walks rise by up to 55°.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from habitat_embedded_sim.houses.glb import glb_bytes
from habitat_embedded_sim.houses.scene import SceneObject
from habitat_embedded_sim.houses.style import MODERN, RGB
from habitat_embedded_sim.mesh import Mesh
from habitat_embedded_sim.navmesh import NavGrid, NavMeshSettings

CELL = 0.1  # metres, two columns of a navmesh
REACH = 0.6  # metres of floor to each side of a walk
SAME = 0.4  # heights nearer than this in one column are the same floor
HEADROOM = 1.8  # metres: what spreads keeps this far from floors above and below
STEP = 0.19  # the highest step between neighbours, below Habitat's 0.2
CEILING = 2.6  # metres above a floor, where nothing is in the way
SLAB = 0.05  # metres from a ceiling to the floor above it
PAINTED = 3.0  # metres: the edge of the blocks that are painted alike
MAX_QUADS = 12_000  # in one object: indices have 16 bits
SMOOTHINGS, SOFTENINGS = 10, 500  # rounds
SIDES = ((1, 0), (0, 1), (-1, 0), (0, -1))
Cell = tuple[int, int]
Rectangle = tuple[int, int, int, int]  # first and one past the last cell in x, the same in z
FORWARD, TURN = 0.25, 15.0  # metres and degrees of R2R-CE's recorded actions
STRAYED = 0.5  # metres that a replay may be off
Pair = tuple[dict[str, Any], dict[str, Any] | None]
"""An episode and its ground truth."""


@dataclass
class Floor:
    """Cells by number: where each is in the grid, its height in metres, whether a walk crosses it."""

    columns: dict[Cell, list[int]] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    heights: list[float] = field(default_factory=list)
    walked: list[bool] = field(default_factory=list)

    def nearest(self, cell: Cell, height: float, within: float) -> int | None:
        """The number of the floor in a column that is nearest to a height, None where none is within `within`."""
        numbers = self.columns.get(cell, ())
        best = min(numbers, key=lambda number: abs(self.heights[number] - height), default=None)
        return best if best is not None and abs(self.heights[best] - height) < within else None

    def add(self, cell: Cell, height: float, walked: bool) -> int:
        self.columns.setdefault(cell, []).append(len(self.cells))
        self.cells.append(cell)
        self.heights.append(height)
        self.walked.append(walked)
        return len(self.cells) - 1

    def above(self, cell: Cell, height: float) -> float:
        """The height of the next floor in a column more than STEP above a height; infinite where there is none."""
        higher = (self.heights[number] for number in self.columns.get(cell, ()))
        return min((other for other in higher if other > height + STEP), default=float("inf"))


def lay(walks: Iterable[np.ndarray], reach: float = REACH) -> Floor:
    """The floor under walks, each float [n, 3] in metres (y up), and to both sides of them."""
    floor = Floor()
    counts: list[int] = []
    for walk in walks:
        for x, y, z in _dense(walk):
            cell = int(np.floor(x / CELL)), int(np.floor(z / CELL))
            number = floor.nearest(cell, y, SAME)
            if number is None:
                number = floor.add(cell, y, walked=True)
                counts.append(0)
            counts[number] += 1
            floor.heights[number] += (y - floor.heights[number]) / counts[number]
    _spread(floor, reach)
    _smooth(floor)
    return floor


def _dense(walk: np.ndarray) -> Iterator[tuple[float, float, float]]:
    """Points along a walk, at most a quarter of a cell apart."""
    yield tuple(walk[0])
    for a, b in pairwise(walk):
        count = max(int(np.ceil(np.linalg.norm(b - a) / (CELL / 4))), 1)
        for share in np.arange(1, count + 1) / count:
            yield tuple(a + share * (b - a))


def _spread(floor: Floor, reach: float) -> None:
    """Add cells around the walked ones, nearest first, each at the height of the walked cell it is nearest to."""
    queue = [(0.0, number, floor.cells[number]) for number in range(len(floor.cells))]
    while queue:
        _, number, source = heapq.heappop(queue)
        (ix, iz), height = floor.cells[number], floor.heights[number]
        for dx, dz in SIDES:
            cell = ix + dx, iz + dz
            distance = CELL * float(np.hypot(cell[0] - source[0], cell[1] - source[1]))
            if distance > reach or floor.nearest(cell, height, HEADROOM) is not None:
                continue
            heapq.heappush(queue, (distance, floor.add(cell, height, walked=False), source))


def _smooth(floor: Floor) -> None:
    """Even out steps where what has spread from two walks meets, then make every step one that can be climbed."""
    pairs = np.array(list(_neighbours(floor)), np.int64).reshape(-1, 2)
    heights, still = np.array(floor.heights), np.array(floor.walked)
    count = 1 + np.bincount(pairs.reshape(-1), minlength=len(heights))
    for _ in range(SMOOTHINGS):
        total = heights.copy()
        np.add.at(total, pairs[:, 0], heights[pairs[:, 1]])
        np.add.at(total, pairs[:, 1], heights[pairs[:, 0]])
        heights = np.where(still, heights, total / count)
    for _ in range(SOFTENINGS):
        rise = heights[pairs[:, 1]] - heights[pairs[:, 0]]
        excess = np.sign(rise) * np.maximum(np.abs(rise) - (STEP - 0.02), 0.0)
        if not excess.any():
            break
        np.add.at(heights, pairs[:, 0], excess / 4)
        np.add.at(heights, pairs[:, 1], -excess / 4)
    floor.heights = [round(float(height), 2) for height in heights]  # so that level cells join to large quads


def _neighbours(floor: Floor) -> Iterator[tuple[int, int]]:
    """Pairs of cells side by side whose heights are nearly the same."""
    for number, (ix, iz) in enumerate(floor.cells):
        for dx, dz in SIDES[:2]:
            other = floor.nearest((ix + dx, iz + dz), floor.heights[number], SAME)
            if other is not None:
                yield number, other


class Builder:
    """Turns a floor into scene objects: floors, walls where they end, ceilings."""

    def __init__(self, floor: Floor, walls: bool = True) -> None:
        self.floor = floor
        self.objects: list[SceneObject] = []
        self._open: dict[str, SceneObject] = {}
        self._tops = [self._ceiling(number) for number in range(len(floor.cells))]
        self._lay(floor.heights, "floor")
        self._steps(floor.heights, "floor")
        if walls:
            self._lay(self._tops, "ceiling")
            self._steps(self._tops, "ceiling")
            self._walls()

    def _ceiling(self, number: int) -> float:
        cell, height = self.floor.cells[number], self.floor.heights[number]
        return round(min(height + CEILING, self.floor.above(cell, height) - SLAB), 2)

    def _object(self, kind: str) -> SceneObject:
        """The object of a kind that has room for one more quad."""
        item = self._open.get(kind)
        if item is None or item.triangles >= 2 * MAX_QUADS:
            item = self._open[kind] = SceneObject(len(self.objects) + 1, kind, 0)
            self.objects.append(item)
        return item

    def _paint(self, number: int, kind: str) -> tuple[RGB, str]:
        """Colour and texture of a floor or wall: the same for a block of PAINTED metres of a storey."""
        (ix, iz), height = self.floor.cells[number], self.floor.heights[number]
        block = [int(np.floor(value)) for value in (ix * CELL / PAINTED, iz * CELL / PAINTED, height / PAINTED)]
        draw = int(np.dot(block, (7, 3, 5)))
        if kind == "ceiling":
            return MODERN.ceiling, "plain"
        if kind == "floor":
            texture, colour = list(MODERN.floors.values())[draw % len(MODERN.floors)]
            return colour, texture
        colours = list(MODERN.wall_colours.values())
        return colours[draw % len(colours)], MODERN.wall_textures[draw % len(MODERN.wall_textures)]

    def _lay(self, heights: list[float], kind: str) -> None:
        """Level quads: floors look up, ceilings down."""
        groups: dict[tuple, set[Cell]] = {}
        for number, cell in enumerate(self.floor.cells):
            groups.setdefault((heights[number], *self._paint(number, kind)), set()).add(cell)
        for (y, colour, texture), cells in groups.items():
            for x0, x1, z0, z1 in rectangles(cells):
                corners = [(x * CELL, y, z * CELL) for x, z in ((x0, z1), (x1, z1), (x1, z0), (x0, z0))]
                if kind == "ceiling":
                    corners.reverse()
                self._object(kind).quad(corners, colour, texture)

    def _sides(self) -> Iterator[tuple[int, int, int | None]]:
        """Every side of every cell, and the cell that can be stepped to there, if any."""
        for number, (ix, iz) in enumerate(self.floor.cells):
            for side, (dx, dz) in enumerate(SIDES):
                yield number, side, self.floor.nearest((ix + dx, iz + dz), self.floor.heights[number], SAME)

    def _steps(self, heights: list[float], kind: str) -> None:
        """Upright quads between cells of different height; they face the lower floor, or the higher ceiling."""
        for number, side, other in self._sides():
            if other is not None and heights[other] > heights[number] and kind == "floor":
                self._panel(number, side, heights[number], heights[other], kind)
            if other is not None and heights[other] < heights[number] and kind == "ceiling":
                self._panel(number, side, heights[other], heights[number], kind)

    def _walls(self) -> None:
        """Where a floor ends: up to the ceiling, or to the floor beside it that is too high to step onto."""
        for number, side, other in self._sides():
            if other is None:
                (ix, iz), bottom = self.floor.cells[number], self.floor.heights[number]
                cell = ix + SIDES[side][0], iz + SIDES[side][1]
                beside = self.floor.nearest(cell, bottom, HEADROOM)
                if beside is None or self.floor.heights[beside] > bottom:  # over a drop one looks down
                    top = min(self._tops[number], self.floor.above(cell, bottom))
                    self._panel(number, side, bottom, top, "wall")

    def _panel(self, number: int, side: int, bottom: float, top: float, kind: str) -> None:
        """An upright quad on one side of a cell that looks into it."""
        (ix, iz), colour, texture = self.floor.cells[number], *self._paint(number, kind)
        a, b = {0: ((1, 0), (1, 1)), 1: ((1, 1), (0, 1)), 2: ((0, 1), (0, 0)), 3: ((0, 0), (1, 0))}[side]
        (ax, az), (bx, bz) = (((ix + x) * CELL, (iz + z) * CELL) for x, z in (a, b))
        self._object(kind).quad([(ax, bottom, az), (bx, bottom, bz), (bx, top, bz), (ax, top, az)], colour, texture)


def rectangles(cells: set[Cell]) -> Iterator[Rectangle]:
    """Cells as few rectangles: runs along x, joined along z where they are equally long."""
    rest = set(cells)
    for ix, iz in sorted(cells, key=lambda cell: (cell[1], cell[0])):
        if (ix, iz) not in rest:
            continue
        x1 = ix
        while (x1, iz) in rest:
            x1 += 1
        z1 = iz
        while all((x, z1) in rest for x in range(ix, x1)):
            rest.difference_update((x, z1) for x in range(ix, x1))
            z1 += 1
        yield ix, x1, iz, z1


def read(path: Path) -> Any:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def episodes_of(path: Path) -> Iterator[Pair]:
    """Each episode of a file with its ground truth, None where there is none."""
    truth_file = path.with_name(path.name.replace(".json", "_gt.json"))
    truths = read(truth_file) if truth_file.is_file() else {}
    for episode in read(path)["episodes"]:
        yield episode, truths.get(str(episode["episode_id"]))


def dead_reckoned(episode: dict[str, Any], truth: dict[str, Any]) -> np.ndarray:
    """Where the recorded actions lead if nothing is in the way: float [n, 3], with the recorded heights."""
    locations = np.asarray(truth["locations"], np.float64)
    _, y, _, w = episode["start_rotation"]
    actions = np.asarray(truth["actions"])
    yaw = 2 * np.arctan2(y, w) + np.radians(TURN) * np.cumsum((actions == 2).astype(int) - (actions == 3))
    heading = yaw[actions == 1]
    if len(heading) + 1 != len(locations):
        return locations
    steps = -FORWARD * np.stack([np.sin(heading), np.zeros(len(heading)), np.cos(heading)], axis=1)
    walk = locations[0] + np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])
    walk[:, 1] = locations[:, 1]
    return walk


def walks_of(episode: dict[str, Any], truth: dict[str, Any] | None) -> list[np.ndarray]:
    """The ways that need a floor, each float [n, 3]."""
    goals = [goal["position"] for goal in episode.get("goals") or []]
    start = [episode["start_position"]]
    if truth is None:
        return [np.asarray(start + list(episode.get("reference_path") or []) + goals, np.float64)]
    locations = np.asarray(truth["locations"] + goals, np.float64)
    return [locations, dead_reckoned(episode, truth)]


def replay(grid: NavGrid, episode: dict[str, Any], truth: dict[str, Any]) -> float:
    """How far, in metres, the recorded actions lead from the recorded locations at most."""
    locations = np.asarray(truth["locations"], np.float64)
    walk = dead_reckoned(episode, truth)
    here = grid.snap(locations[0])
    strayed = float(np.linalg.norm(here - locations[0]))
    for step, location in zip(np.diff(walk, axis=0), locations[1:], strict=True):
        here = grid.step(here, here + np.array([step[0], 0, step[2]]), slide=True)
        strayed = max(strayed, float(np.linalg.norm(here - location)))
    return strayed


def write_scene(episodes: list[Pair], path: Path, walls: bool) -> str:
    """Write the `.glb` of a scene's episodes; returns what was written, in words."""
    walks = {walk.tobytes(): walk for pair in episodes for walk in walks_of(*pair)}  # instructions share walks
    floor = lay(walks.values())
    objects = Builder(floor, walls).objects
    data = glb_bytes(objects)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    area, triangles = len(floor.cells) * CELL**2, sum(item.triangles for item in objects)
    return f"{len(episodes)} episodes, {area:.0f} m² of floor, {triangles:,} triangles, {len(data) / 1e6:.1f} MB"


def check_scene(episodes: list[Pair], path: Path) -> list[float]:
    """How far each episode with a ground truth strays from it, in metres."""
    mesh = Mesh.load(str(path), False)
    grid = NavGrid.build(mesh.vertices, mesh.faces, NavMeshSettings())
    return [replay(grid, episode, truth) for episode, truth in episodes if truth is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("episodes", type=Path, nargs="+", help="episode files (.json.gz)")
    parser.add_argument("--scenes-dir", type=Path, required=True, help="where the scenes go")
    parser.add_argument("--check", action="store_true", help="walk the recorded actions afterwards")
    parser.add_argument("--no-walls", action="store_true", help="floors alone")
    options = parser.parse_args()
    by_scene: dict[str, list[Pair]] = defaultdict(list)
    for path in options.episodes:
        if not path.is_file():
            parser.error(f"{path}: no such file")
        for pair in episodes_of(path):
            by_scene[pair[0]["scene_id"]].append(pair)
    began, strayed = time.perf_counter(), []
    for scene, episodes in sorted(by_scene.items()):
        print(f"{scene}: {write_scene(episodes, options.scenes_dir / scene, not options.no_walls)}", flush=True)
        if options.check:
            strayed += check_scene(episodes, options.scenes_dir / scene)
    print(f"{len(by_scene)} scenes in {time.perf_counter() - began:.0f} s")
    if strayed:
        there = sum(metres <= STRAYED for metres in strayed)
        off = f"off by {np.percentile(strayed, 50):.2f} m (median), {max(strayed):.2f} m (most)"
        print(f"{there} of {len(strayed)} replayed within {STRAYED} m; {off}")


if __name__ == "__main__":
    main()
