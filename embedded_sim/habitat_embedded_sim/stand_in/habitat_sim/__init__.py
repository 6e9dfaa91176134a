"""Stand-in for `habitat_sim`: what navigation in Habitat-Lab needs, with the real module's names.

`__version__` carries the local tag "embedded", by which the stand-in can be told from the real habitat-sim.
"""

import magnum

if not hasattr(magnum, "Vector3"):
    raise ImportError(
        f"the module 'magnum' at {getattr(magnum, '__file__', '?')} is another project's (OpenStack's, on PyPI): "
        "uninstall it to use the embedded simulator"
    )

from habitat_embedded_sim.unsupported import add_placeholders, missing_attribute

from . import _ext, agent, errors, gfx, logging, metadata, nav, physics, scene, sensor, sim, simulator, utils
from .agent.agent import ActionSpec, ActuationSpec, Agent, AgentConfiguration, AgentState, SixDOFPose
from .nav import (
    GreedyFollowerCodes,
    GreedyGeodesicFollower,
    MultiGoalShortestPath,
    NavMeshSettings,
    PathFinder,
    ShortestPath,
)
from .scene import SceneNode, SemanticScene
from .sensor import CameraSensorSpec, Sensor, SensorSpec, SensorSubType, SensorType
from .sim import SimulatorConfiguration
from .simulator import Configuration, Simulator

__version__ = "0.3.4+embedded"
cuda_enabled = False
built_with_bullet = False
stage_id = 0

add_placeholders(
    globals(),
    "EquirectangularSensorSpec FisheyeSensorDoubleSphereSpec FisheyeSensorModelType ReplayRenderer "
    "ReplayRendererConfiguration RigidState",
)
__getattr__ = missing_attribute(__name__)
__all__ = [
    "ActionSpec",
    "ActuationSpec",
    "Agent",
    "AgentConfiguration",
    "AgentState",
    "CameraSensorSpec",
    "Configuration",
    "GreedyFollowerCodes",
    "GreedyGeodesicFollower",
    "MultiGoalShortestPath",
    "NavMeshSettings",
    "PathFinder",
    "SceneNode",
    "SemanticScene",
    "Sensor",
    "SensorSpec",
    "SensorSubType",
    "SensorType",
    "ShortestPath",
    "Simulator",
    "SimulatorConfiguration",
    "SixDOFPose",
    "_ext",
    "agent",
    "errors",
    "gfx",
    "logging",
    "metadata",
    "nav",
    "physics",
    "scene",
    "sensor",
    "sim",
    "simulator",
    "utils",
]
