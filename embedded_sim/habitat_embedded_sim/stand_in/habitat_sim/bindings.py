"""Stand-in for `habitat_sim.bindings`, where habitat-sim keeps what is C++ in it."""

from habitat_embedded_sim.unsupported import add_placeholders, missing_attribute

from .nav import GreedyFollowerCodes, HitRecord, MultiGoalShortestPath, NavMeshSettings, PathFinder, ShortestPath
from .scene import SceneGraph, SceneNode, SceneNodeType, SemanticScene
from .sensor import CameraSensor, CameraSensorSpec, Sensor, SensorSpec, SensorSubType, SensorType
from .sim import SimulatorConfiguration

cuda_enabled = built_with_bullet = audio_enabled = False

add_placeholders(globals(), "ReplayRenderer ReplayRendererConfiguration RigidState")
__getattr__ = missing_attribute(__name__)
__all__ = [
    "CameraSensor",
    "CameraSensorSpec",
    "GreedyFollowerCodes",
    "HitRecord",
    "MultiGoalShortestPath",
    "NavMeshSettings",
    "PathFinder",
    "SceneGraph",
    "SceneNode",
    "SceneNodeType",
    "SemanticScene",
    "Sensor",
    "SensorSpec",
    "SensorSubType",
    "SensorType",
    "ShortestPath",
    "SimulatorConfiguration",
]
