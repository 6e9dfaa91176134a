"""`PathFinder` and its paths, on the embedded simulator's navigation grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from habitat_embedded_sim import navmesh
from habitat_embedded_sim.navmesh import NavGrid
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

    def for_grid(self) -> navmesh.NavMeshSettings:
        """The part that the grid knows."""
        return navmesh.NavMeshSettings(
            **{item.name: float(getattr(self, item.name)) for item in fields(navmesh.NavMeshSettings)}
        )


@dataclass(eq=False)
class ShortestPath:
    """A query and its answer: points [N, 3] and the geodesic distance (infinity where there is no path)."""

    requested_start: Sequence[float] | np.ndarray | None = None
    requested_end: Sequence[float] | np.ndarray | None = None
    points: list[np.ndarray] = field(default_factory=list)
    geodesic_distance: float = float("inf")


@dataclass(eq=False)
class MultiGoalShortestPath:
    """As `ShortestPath`, to the nearest of several ends [K, 3]; `closest_end_point_index` says which (−1: none)."""

    requested_start: Sequence[float] | np.ndarray | None = None
    requested_ends: Sequence[Sequence[float]] | np.ndarray = ()
    points: list[np.ndarray] = field(default_factory=list)
    geodesic_distance: float = float("inf")
    closest_end_point_index: int = -1


class PathFinder:
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
        wanted = path.requested_ends if isinstance(path, MultiGoalShortestPath) else [path.requested_end]
        if path.requested_start is None or any(end is None for end in wanted):
            raise ValueError("find_path needs requested_start, and requested_end or requested_ends")
        ends = np.asarray(wanted, dtype=np.float32).reshape(-1, 3)
        distance, points, index = self.grid.find_path(path.requested_start, ends)
        path.geodesic_distance, path.points = float(distance), list(points)
        if isinstance(path, MultiGoalShortestPath):
            path.closest_end_point_index = index
        return bool(np.isfinite(distance))

    def get_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner of the scene, float32 [3] each."""
        return self.grid.bounds()

    def get_topdown_view(self, meters_per_pixel: float, height: float, eps: float = 0.5) -> np.ndarray:
        """bool [z, x]: where a floor within `eps` of `height` is navigable."""
        return self.grid.topdown(meters_per_pixel, height, eps)

    def is_navigable(self, pt: ArrayLike, max_y_delta: float = 0.5) -> bool:
        return self.grid.is_navigable(pt, max_y_delta)

    def island_radius(self, pt: ArrayLike) -> float:
        """Radius in metres of the island that `pt` is on, 0 where it is on none."""
        return self.grid.island_radius(pt)

    def get_island(self, pt: ArrayLike) -> int:
        """Number of the island that `pt` projects to, −1 for none."""
        return self.grid.island(pt)

    def distance_to_closest_obstacle(self, pt: ArrayLike, max_search_radius: float = 2.0) -> float:
        return self.grid.distance_to_obstacle(pt, max_search_radius)

    def get_random_navigable_point(self, max_tries: int = 10, island_index: int = -1) -> np.ndarray:
        """A point uniform over the navigable area, of one island where its index is given; NaN for none."""
        return self.grid.random_point(self._rng, None if island_index < 0 else island_index)

    def get_random_navigable_point_near(
        self, circle_center: ArrayLike, radius: float, max_tries: int = 100, island_index: int = -1
    ) -> np.ndarray:
        """A point within `radius` metres of the centre, on its island; NaN where `max_tries` find none."""
        if island_index >= 0 and self.grid.island(circle_center) != island_index:
            return np.full(3, np.nan, np.float32)
        return self.grid.random_point_near(circle_center, radius, self._rng, max_tries)

    def snap_point(self, pt: ArrayLike, island_index: int = -1) -> np.ndarray:
        """The nearest navigable point, NaN where there is none (on that island)."""
        snapped = self.grid.snap(pt)
        if island_index >= 0 and self.grid.island(pt) != island_index:
            return np.full(3, np.nan, np.float32)
        return snapped

    def try_step(self, start: ArrayLike, end: ArrayLike) -> np.ndarray:
        """Where walking from start towards end leads, sliding along walls."""
        return self.grid.step(start, end, slide=True)

    def try_step_no_sliding(self, start: ArrayLike, end: ArrayLike) -> np.ndarray:
        """Where walking from start towards end leads, stopping at walls."""
        return self.grid.step(start, end, slide=False)

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
