"""Stand-in for `habitat_sim.nav`: the path finder and the greedy follower."""

from habitat_embedded_sim.unsupported import missing_attribute

from .follower import GreedyFollowerCodes, GreedyGeodesicFollower
from .pathfinder import HitRecord, MultiGoalShortestPath, NavMeshSettings, PathFinder, ShortestPath

__getattr__ = missing_attribute(__name__)
__all__ = [
    "GreedyFollowerCodes",
    "GreedyGeodesicFollower",
    "HitRecord",
    "MultiGoalShortestPath",
    "NavMeshSettings",
    "PathFinder",
    "ShortestPath",
]
