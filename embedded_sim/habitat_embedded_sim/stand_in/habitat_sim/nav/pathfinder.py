"""`PathFinder` and its paths, on the embedded simulator's navigation grid."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

import magnum as mn
import numpy as np
from habitat_embedded_sim import navmesh
from habitat_embedded_sim.navmesh import NavGrid
from habitat_embedded_sim.unsupported import Partial
from numpy.typing import ArrayLike


@dataclass
class NavMeshSettings:
    """habitat-sim's names and defaults: metres and degrees. Those that shape Recast's polygons (edge, detail, merge)
    are accepted and change nothing, as the embedded simulator works on a grid."""

    cell_size: float = 0.05
    cell_height: float = 0.2
    agent_height: float = 1.5
    agent_radius: float = 0.1
    agent_max_climb: float = 0.2
    agent_max_slope: float = 45.0
    filter_low_hanging_obstacles: bool = True
    filter_ledge_spans: bool = True
    filter_walkable_low_height_spans: bool = True
    region_min_size: float = 20.0
    region_merge_size: float = 20.0
    edge_max_len: float = 12.0
    edge_max_error: float = 1.3
    verts_per_poly: float = 6.0
    detail_sample_dist: float = 6.0
    detail_sample_max_error: float = 1.0
    include_static_objects: bool = False

    def set_defaults(self) -> None:
        """Set every value back to its default."""
        for item in fields(self):
            setattr(self, item.name, item.default)

    def write_to_json(self, path: str) -> None:
        """Write every value under its name."""
        with open(path, "w") as file:
            json.dump(vars(self), file, indent=2)

    def read_from_json(self, path: str) -> None:
        """Take the values of a file, and leave those that it does not name."""
        with open(path) as file:
            values = json.load(file)
        for item in fields(self):
            setattr(self, item.name, values.get(item.name, getattr(self, item.name)))

    def for_grid(self) -> navmesh.NavMeshSettings:
        """The part that the grid knows."""
        return navmesh.NavMeshSettings(
            **{item.name: float(getattr(self, item.name)) for item in fields(navmesh.NavMeshSettings)}
        )


class _Path(Partial):
    """What both kinds of path have. Points stay an array until they are read: a step asks for the distance alone."""

    def __init__(self) -> None:
        self._start: mn.Vector3 | None = None
        self._ends = np.empty((0, 3), np.float32)
        self._points = np.empty((0, 3), np.float32)
        self.geodesic_distance = float("inf")

    @property
    def requested_start(self) -> mn.Vector3 | None:
        return self._start

    @requested_start.setter
    def requested_start(self, point: ArrayLike) -> None:
        self._start = mn.Vector3(point)

    @property
    def points(self) -> list[mn.Vector3]:
        return _vectors(self._points)


class ShortestPath(_Path):
    """A query and its answer: points and the geodesic distance (infinity where there is no path)."""

    @property
    def requested_end(self) -> mn.Vector3 | None:
        return mn.Vector3(self._ends[0]) if len(self._ends) else None

    @requested_end.setter
    def requested_end(self, point: Iterable[float]) -> None:
        self._ends = np.array([[*point]], np.float32)


class MultiGoalShortestPath(_Path):
    """As `ShortestPath`, to the nearest of several ends; `closest_end_point_index` says which (−1: none)."""

    def __init__(self) -> None:
        super().__init__()
        self.closest_end_point_index = -1

    @property
    def requested_ends(self) -> list[mn.Vector3]:
        return _vectors(self._ends)

    @requested_ends.setter
    def requested_ends(self, points: Sequence[Sequence[float]] | np.ndarray) -> None:
        self._ends = np.array([[*point] for point in points], np.float32).reshape(-1, 3)


@dataclass
class HitRecord:
    """The nearest point of the navmesh's border, the normal there, and how far it is (metres)."""

    hit_pos: mn.Vector3 = field(default_factory=mn.Vector3)
    hit_normal: mn.Vector3 = field(default_factory=mn.Vector3)
    hit_dist: float = 0.0


def _vectors(points: np.ndarray) -> list[mn.Vector3]:
    """[N, 3] as vectors, whose elements are Python floats."""
    return [mn.Vector3(point) for point in points.tolist()]


class PathFinder(Partial):
    """Answers where an agent can stand and walk. `is_loaded` is False in a scene without triangles."""

    def __init__(self) -> None:
        self._grid: NavGrid | None = None
        self._rng = np.random.default_rng()
        self.nav_mesh_settings: NavMeshSettings | None = None

    def use_grid(self, grid: NavGrid | None, settings: NavMeshSettings) -> None:
        """Work on `grid` from now on (for the simulator)."""
        self._grid, self.nav_mesh_settings = grid, settings

    @property
    def is_loaded(self) -> bool:
        return self._grid is not None

    @property
    def grid(self) -> NavGrid:
        """The navigation grid; RuntimeError where none is loaded."""
        if self._grid is None:
            raise RuntimeError(
                "the path finder has no navmesh: open a scene with triangles or call load_nav_mesh first"
            )
        return self._grid

    def seed(self, new_seed: int) -> None:
        """Seed the random points."""
        self._rng = np.random.default_rng(int(new_seed) % 2**63)

    def find_path(self, path: ShortestPath | MultiGoalShortestPath) -> bool:
        """Fill in the path's points and distance; whether there is one."""
        if path._start is None or not len(path._ends):
            raise ValueError("find_path: the path has no start or no end: set requested_start and requested_end(s)")
        path.geodesic_distance, path._points, index = self.grid.find_path(path._start, path._ends)
        if isinstance(path, MultiGoalShortestPath):
            path.closest_end_point_index = index
        return path.geodesic_distance < float("inf")

    def get_bounds(self) -> tuple[mn.Vector3, mn.Vector3]:
        """Lower and upper corner of the scene."""
        low, high = self.grid.bounds()
        return mn.Vector3(low), mn.Vector3(high)

    def get_topdown_view(self, meters_per_pixel: float, height: float, eps: float = 0.5) -> np.ndarray:
        """bool [z, x]: where a floor within `eps` of `height` is navigable."""
        return self.grid.topdown(meters_per_pixel, height, eps)

    def get_topdown_island_view(self, meters_per_pixel: float, height: float, eps: float = 0.5) -> np.ndarray:
        """int32 [z, x]: the island of that floor, −1 where it is not navigable."""
        return self.grid.topdown_islands(meters_per_pixel, height, eps)

    def is_navigable(self, pt: ArrayLike, max_y_delta: float = 0.5) -> bool:
        return self.grid.is_navigable(pt, max_y_delta)

    def island_radius(self, pt: ArrayLike | int) -> float:
        """Radius in metres of an island, given by its number or by a point on it; 0 where the point is on none."""
        return self.grid.island_radius(pt)

    def get_island(self, pt: ArrayLike) -> int:
        """Number of the island that `pt` projects to, −1 for none."""
        return self.grid.island(pt)

    def distance_to_closest_obstacle(self, pt: ArrayLike, max_search_radius: float = 2.0) -> float:
        return self.grid.distance_to_obstacle(pt, max_search_radius)

    def closest_obstacle_surface_point(self, pt: ArrayLike, max_search_radius: float = 2.0) -> HitRecord:
        """The nearest border of the navmesh; NaN where none is within the radius."""
        distance, point, normal = self.grid.closest_obstacle(pt, max_search_radius)
        return HitRecord(mn.Vector3(point), mn.Vector3(normal), distance)

    def get_random_navigable_point(self, max_tries: int = 10, island_index: int = -1) -> mn.Vector3:
        """A point uniform over the navigable area, of one island where its index is given; NaN for none."""
        return mn.Vector3(self.grid.random_point(self._rng, None if island_index < 0 else island_index))

    def get_random_navigable_point_near(
        self, circle_center: ArrayLike, radius: float, max_tries: int = 100, island_index: int = -1
    ) -> mn.Vector3:
        """A point within `radius` metres of the centre, on its island; NaN where `max_tries` find none."""
        if island_index >= 0 and self.grid.island(circle_center) != island_index:
            return mn.Vector3(float("nan"))
        return mn.Vector3(self.grid.random_point_near(circle_center, radius, self._rng, max_tries))

    def snap_point(self, point: ArrayLike, island_index: int = -1) -> mn.Vector3:
        """The nearest navigable point, NaN where there is none (on that island)."""
        if island_index >= 0 and self.grid.island(point) != island_index:
            return mn.Vector3(float("nan"))
        return mn.Vector3(self.grid.snap(point))

    def try_step(self, start: ArrayLike, end: ArrayLike) -> mn.Vector3:
        """Where walking from start towards end leads, sliding along walls."""
        return mn.Vector3(self.grid.step(start, end, slide=True))

    def try_step_no_sliding(self, start: ArrayLike, end: ArrayLike) -> mn.Vector3:
        """Where walking from start towards end leads, stopping at walls."""
        return mn.Vector3(self.grid.step(start, end, slide=False))

    def build_navmesh_vertices(self, island_index: int = -1) -> list[mn.Vector3]:
        """Corners of the navigable squares of the grid, four each, of one island or all; Recast has polygons there."""
        return _vectors(self.grid.squares(None if island_index < 0 else island_index).reshape(-1, 3))

    def build_navmesh_vertex_indices(self, island_index: int = -1) -> list[int]:
        """Two triangles for every square of `build_navmesh_vertices`."""
        count = len(self.grid.squares(None if island_index < 0 else island_index))
        return (4 * np.arange(count)[:, None] + (0, 1, 2, 0, 2, 3)).ravel().tolist()

    @property
    def navigable_area(self) -> float:
        """Square metres, all islands together."""
        return self.grid.area

    @property
    def num_islands(self) -> int:
        return len(self.grid.island_areas)

    def island_area(self, island_index: int = -1) -> float:
        """Square metres of one island, of all for −1."""
        return self.grid.area if island_index < 0 else float(self.grid.island_areas[island_index])

    def save_nav_mesh(self, path: str) -> bool:
        """Write the navmesh in the embedded simulator's own format (not Recast's)."""
        self.grid.save(path)
        return True

    def load_nav_mesh(self, path: str) -> bool:
        """Read what `save_nav_mesh` wrote; ValueError for anything else, Recast's files included."""
        grid = NavGrid.load(path)
        settings = NavMeshSettings()
        for item in fields(navmesh.NavMeshSettings):
            setattr(settings, item.name, getattr(grid.settings, item.name))
        self.use_grid(grid, settings)
        return True
