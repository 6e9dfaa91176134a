"""Navigation mesh of a triangle mesh: where an agent can stand, how it moves, how far things are.

    grid = NavGrid.build(vertices, faces, NavMeshSettings(agent_radius=0.18))
    distance, points, which = grid.find_path(start, [goal])

Coordinates are Habitat's world frame: metres, y up, floor plane x-z. The behaviour follows habitat-sim's
PathFinder (Recast and Detour); the mesh is a voxel grid (voxels.py, surface.py, geodesic.py), not polygons.
"""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import geodesic, surface, voxels
from .surface import BLOCKED, Cells

REACH, REACH_Y = 2.0, 4.0  # how far points are projected onto the mesh, in x and z and in y (metres)
NAVIGABLE_SLACK = 1e-2  # a point this near to the mesh in x-z is navigable
MAX_FIELDS = 8  # distance fields kept
MAX_COLUMNS = 50_000_000
FORMAT = 1
Point = NDArray[np.float32]


@dataclass(frozen=True)
class NavMeshSettings:
    """Agent and grid, with habitat-sim's names and defaults; lengths in metres, the slope in degrees."""

    cell_size: float = 0.05  # edge of a grid column
    cell_height: float = 0.2  # solid pieces closer than this above one another are one
    agent_height: float = 1.5  # headroom needed
    agent_radius: float = 0.1  # distance kept from walls and drops
    agent_max_climb: float = 0.2  # highest step
    agent_max_slope: float = 45.0  # steepest floor
    region_min_size: float = 20.0  # islands smaller than the square of this many cells are dropped

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1e-3 if field.name in ("cell_size", "agent_height") else 0.0
            if not (np.isfinite(value) and value >= least):
                raise ValueError(f"navmesh setting {field.name} = {value}: give a number of at least {least}")


def _point(p: ArrayLike) -> tuple[float, float, float]:
    x, y, z = np.asarray(p, np.float64).tolist()
    return x, y, z


class NavGrid:
    """A navigation mesh. Make one with `build` or `load`."""

    def __init__(self, cells: Cells, area: NDArray[np.float64], bounds: Point, settings: NavMeshSettings) -> None:
        self.settings = settings
        self._cells, self._cell_area, self._bounds = cells, area, bounds
        self._fields: OrderedDict[bytes, list] = OrderedDict()
        self._standing = np.flatnonzero((cells.kind != BLOCKED) & (area > 0))
        islands = int(cells.island.max(initial=-1)) + 1
        self.island_areas = np.bincount(cells.island[self._standing], area[self._standing], minlength=islands)
        self._island_radii = np.zeros(islands)
        for i in range(islands):
            nodes = cells.node[cells.island == i]
            self._island_radii[i] = np.linalg.norm(nodes - nodes.mean(0), axis=1).max()

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes, with the distance fields kept."""
        fields = (array for goals, cells, index, field in self._fields.values() for array in (goals, *(field or ())))
        return sum(part.nbytes for part in (*self._cells, *fields) if isinstance(part, np.ndarray))

    # ---- making and keeping -------------------------------------------------------------------------------

    @classmethod
    def build(cls, vertices: ArrayLike, faces: ArrayLike, settings: NavMeshSettings | None = None) -> NavGrid:
        """The mesh of triangles: vertices [V, 3] in metres, faces int [F, 3], counter-clockwise outside."""
        settings = settings or NavMeshSettings()
        vertices = np.ascontiguousarray(vertices, np.float64)
        faces = np.ascontiguousarray(faces, np.int64)
        _check_mesh(vertices, faces)
        low, high = vertices.min(0), vertices.max(0)
        size = settings.cell_size
        nx, nz = (max(int(np.ceil((high[i] - low[i]) / size - 0.01)), 1) for i in (0, 2))
        if nx * nz > MAX_COLUMNS:
            raise ValueError(f"navmesh: {nx} x {nz} columns are too many; raise cell_size (now {size} m)")
        pieces, used = voxels.rasterise(
            vertices, faces, np.cos(np.radians(settings.agent_max_slope)), low[0], low[2], size, nx, nz
        )
        climb, tall = settings.agent_max_climb, settings.agent_height
        start, room = voxels.stack_columns(pieces, used, nx * nz, settings.cell_height, climb, tall)
        column, floor = room[:, 0].astype(np.int64), np.ascontiguousarray(room[:, 1])
        link = voxels.link_cells(start, column, room, nx, nz, climb, tall)
        n = column.size
        cells = Cells(
            *(float(low[0]), float(low[2]), float(size), nx, nz, float(settings.agent_radius), float(climb)),
            *(start, column, floor, link, voxels.nearest_blocked(link, column, nx)),
            kind=np.zeros(n, np.uint8),
            free=np.zeros(n),
            node=np.full((n, 3), np.nan),
            island=np.full(n, -1, np.int64),
        )
        area = surface.find_nodes(cells)
        _number_islands(cells, area, (settings.region_min_size * size) ** 2)
        return cls(cells, area, np.stack([low, high]).astype(np.float32), settings)

    def save(self, path: str | Path) -> None:
        """Write the mesh to `path` (a compressed .npz, whatever the suffix)."""
        with open(path, "wb") as file:
            np.savez_compressed(
                file,
                format=FORMAT,
                settings=np.array(list(asdict(self.settings).values())),
                bounds=self._bounds,
                area=self._cell_area,
                **self._cells._asdict(),
            )

    @classmethod
    def load(cls, path: str | Path) -> NavGrid:
        """Read a mesh written by `save`; ValueError if the file is something else."""
        try:
            with np.load(path, allow_pickle=False) as data:
                if int(data["format"]) != FORMAT:
                    raise ValueError(f"format {int(data['format'])}, not {FORMAT}")
                values = {name: data[name] for name in Cells._fields}
                values = {name: v if v.ndim else v.item() for name, v in values.items()}
                settings = NavMeshSettings(*(float(v) for v in data["settings"]))
                return cls(Cells(**values), data["area"], data["bounds"], settings)
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not a navmesh of this simulator ({error}); build it again") from None

    # ---- standing -----------------------------------------------------------------------------------------

    def bounds(self) -> tuple[Point, Point]:
        """Lower and upper corner of the scene's triangles."""
        return self._bounds[0].copy(), self._bounds[1].copy()

    @property
    def area(self) -> float:
        """Navigable area in m^2, all storeys together."""
        return float(self.island_areas.sum())

    def _snap(self, p: ArrayLike) -> tuple[int, float, float, float]:
        x, y, z = _point(p)
        if not np.isfinite(x + y + z):
            return -1, np.nan, np.nan, np.nan
        return surface.snap(self._cells, x, y, z, REACH, REACH_Y)

    def snap(self, p: ArrayLike) -> Point:
        """Nearest navigable point within 2 m in x and z and 4 m in y, NaN if there is none."""
        return np.array(self._snap(p)[1:], np.float32)

    def is_navigable(self, p: ArrayLike, max_y_delta: float = 0.5) -> bool:
        """Whether p is on the mesh to 1 cm in x-z and max_y_delta in y."""
        x, y, z = _point(p)
        cell, sx, sy, sz = self._snap(p)
        return bool(cell >= 0 and np.hypot(sx - x, sz - z) <= NAVIGABLE_SLACK and abs(sy - y) <= max_y_delta)

    def island(self, p: ArrayLike) -> int:
        """Number of the island that p projects to (0 is the largest), -1 if none."""
        cell = self._snap(p)[0]
        return int(self._cells.island[cell]) if cell >= 0 else -1

    def island_radius(self, p: ArrayLike | int) -> float:
        """Largest distance of a point of an island from its centre: of island number p, or of that which the point p
        projects to; 0 if there is none."""
        island = p if isinstance(p, int) else self.island(p)
        return float(self._island_radii[island]) if island >= 0 else 0.0

    def random_point(self, rng: np.random.Generator, island: int | None = None) -> Point:
        """A navigable point, uniform by area over the mesh or one island; NaN if there is none."""
        g = self._cells
        pool = self._standing if island is None else self._standing[g.island[self._standing] == island]
        while pool.size:
            c = int(pool[rng.integers(pool.size)])
            u, v = rng.random(2)
            x, z = g.x0 + (g.column[c] % g.nx + u) * g.size, g.z0 + (g.column[c] // g.nx + v) * g.size
            if surface.clearance(g, c, x, z)[0] >= g.radius:
                return np.array([x, surface.height(g, c, x, z), z], np.float32)
        return np.full(3, np.nan, np.float32)

    def random_point_near(
        self, center: ArrayLike, radius: float, rng: np.random.Generator, max_tries: int = 100
    ) -> Point:
        """A navigable point within `radius` metres of center, on its island; NaN if max_tries find none."""
        g = self._cells
        cell, cx, cy, cz = self._snap(center)
        for _ in range(max_tries if cell >= 0 else 0):
            angle, r = rng.random() * 2 * np.pi, radius * np.sqrt(rng.random())
            x, z = cx + r * np.cos(angle), cz + r * np.sin(angle)
            c = surface.cell_at(g, x, cy, z, radius, 0.0)
            if c >= 0 and g.island[c] == g.island[cell]:
                p = np.array([x, surface.height(g, c, x, z), z], np.float32)
                if np.linalg.norm(p - np.asarray(center, np.float32)) <= radius:
                    return p
        return np.full(3, np.nan, np.float32)

    def closest_obstacle(self, p: ArrayLike, max_search_radius: float = 2.0) -> tuple[float, Point, Point]:
        """Distance from p to the border of the mesh, the border point, and the normal there towards p.

        (max_search_radius, NaN, NaN) if nothing is that near or p does not project onto the mesh.
        """
        cell, x, y, z = self._snap(p)
        nothing = np.full(3, np.nan, np.float32)
        if cell < 0:
            return float(max_search_radius), nothing, nothing
        d, qx, qz = surface.clearance(self._cells, cell, x, z)
        distance = max(d - self._cells.radius, 0.0)
        if distance >= max_search_radius or d < 1e-9:
            return float(min(distance, max_search_radius)), nothing, nothing
        normal = np.array([(x - qx) / d, 0.0, (z - qz) / d], np.float32)
        return float(distance), np.array([x, y, z], np.float32) - np.float32(distance) * normal, normal

    def distance_to_obstacle(self, p: ArrayLike, max_search_radius: float = 2.0) -> float:
        """Distance in metres from p to the border of the mesh, at most max_search_radius."""
        return self.closest_obstacle(p, max_search_radius)[0]

    def squares(self, island: int | None = None) -> NDArray[np.float32]:
        """Corners [N, 4, 3] of the cells that are navigable, wholly or in part, each level at its floor's height."""
        g = self._cells
        pool = self._standing if island is None else self._standing[g.island[self._standing] == island]
        row, column = np.divmod(g.column[pool], g.nx)
        low = np.stack([g.x0 + column * g.size, g.floor[pool], g.z0 + row * g.size], axis=1)
        corners = np.array([(0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 0, 0)]) * g.size
        return (low[:, None] + corners).astype(np.float32)

    # ---- moving -------------------------------------------------------------------------------------------

    def step(self, start: ArrayLike, end: ArrayLike, slide: bool) -> Point:
        """Where an agent at start gets that walks straight to end; with `slide` it goes on along walls.

        The result is always navigable; start itself if start or end does not project onto the mesh, or end projects
        onto another island.
        """
        cell, x, _, z = self._snap(start)
        to_x, _, to_z = _point(end)
        if cell < 0 or self.island(end) != self._cells.island[cell]:
            return np.array(start, np.float32)
        cell, x, z = surface.move(self._cells, cell, x, z, to_x, to_z, bool(slide))
        return np.array([x, surface.height(self._cells, cell, x, z), z], np.float32)

    def find_path(self, start: ArrayLike, ends: ArrayLike) -> tuple[float, NDArray[np.float32], int]:
        """Shortest path from start to the nearest of ends [K, 3].

        Returns (length in metres, points [N, 3] from the projected start to the projected end, index of
        that end), or (inf, empty [0, 3], -1) where there is no way. Distance fields are kept per set of
        ends, so that only the first query of a set is slow.
        """
        nowhere = float("inf"), np.empty((0, 3), np.float32), -1
        g = self._cells
        cell, x, y, z = self._snap(start)
        if cell < 0:
            return nowhere
        entry = self._goals(ends)
        goals, goal_cells, index = entry[:3]
        near = goals[g.island[goal_cells] == g.island[cell]]
        if near.size == 0:
            return nowhere
        k = int(np.square(goals - (x, y, z)).sum(1).argmin())
        if surface.visible(g, cell, x, z, goal_cells[k], goals[k, 0], goals[k, 2]):
            points = np.array([(x, y, z), goals[k]])
            return float(np.linalg.norm(points[1] - points[0])), points.astype(np.float32), int(index[k])
        if entry[3] is None:
            entry[3] = geodesic.distance_field(g, goals, goal_cells)
        point, distance, parent = entry[3]
        length, points, k = geodesic.path_to_goal(g, point, goal_cells, distance, parent, cell, x, y, z)
        return (length, points.astype(np.float32), int(index[k])) if k >= 0 else nowhere

    def _goals(self, ends: ArrayLike) -> list:
        """[projected ends [K, 3], their cells [K], their indices [K], field or None], kept for reuse."""
        ends = np.ascontiguousarray(np.asarray(ends, np.float32).reshape(-1, 3))
        key = ends.tobytes()
        if key not in self._fields:
            snapped = [(i, *self._snap(p)) for i, p in enumerate(ends)]
            found = np.array([row for row in snapped if row[1] >= 0], np.float64).reshape(-1, 5)
            index, cells = found[:, :2].T.astype(np.int64)
            self._fields[key] = [found[:, 2:].copy(), cells.copy(), index, None]
            if len(self._fields) > MAX_FIELDS:
                self._fields.popitem(last=False)
        self._fields.move_to_end(key)
        return self._fields[key]

    # ---- looking ------------------------------------------------------------------------------------------

    def topdown(self, meters_per_pixel: float, height: float, eps: float = 0.5) -> NDArray[np.bool_]:
        """Map bool [z, x]: where a floor within eps of `height` is navigable; [0, 0] is the lower corner."""
        return self.topdown_islands(meters_per_pixel, height, eps) >= 0

    def topdown_islands(self, meters_per_pixel: float, height: float, eps: float = 0.5) -> NDArray[np.int32]:
        """As `topdown`, int32: the island of that floor, -1 where it is not navigable."""
        if not meters_per_pixel > 0:
            raise ValueError(f"topdown: meters_per_pixel = {meters_per_pixel}: give a number > 0")
        low, high = self._bounds.astype(np.float64)
        out = np.empty([int((high[i] - low[i]) / meters_per_pixel) for i in (2, 0)], np.int32)
        step = float(meters_per_pixel)
        surface.draw_map(self._cells, float(low[0]), float(low[2]), step, float(height), float(eps), out)
        return out


def _check_mesh(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> None:
    """ValueError with one clear line unless the triangles can be used."""
    if vertices.ndim != 2 or vertices.shape[1:] != (3,) or faces.ndim != 2 or faces.shape[1:] != (3,):
        raise ValueError(f"navmesh: vertices {vertices.shape}, faces {faces.shape}: give [V, 3] and [F, 3]")
    if not faces.size:
        raise ValueError("navmesh: the scene has no triangles")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"navmesh: faces name vertices outside of 0..{len(vertices) - 1}")
    if not np.isfinite(vertices).all():
        raise ValueError("navmesh: some vertices are not finite numbers")


def _number_islands(cells: Cells, area: NDArray[np.float64], min_area: float) -> None:
    """Fill cells.island, the largest island first; islands below min_area (m^2) become blocked."""
    count = surface.find_islands(cells)
    inside = cells.island >= 0
    size = np.bincount(cells.island[inside], area[inside], minlength=count)
    order = np.argsort(-size, kind="stable")
    number = np.empty(count + 1, np.int64)
    number[order] = np.where(size[order] >= min_area, np.arange(count), -1)
    number[count] = -1  # reached as index -1: cells on no island
    cells.island[:] = number[cells.island]
    cells.kind[cells.island < 0] = BLOCKED
    cells.node[cells.island < 0] = np.nan
