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

from . import _ext, agent, errors, geo, gfx, logging, metadata, nav, physics, scene, sensor, sim, simulator, utils
from .agent.agent import ActionSpec, ActuationSpec, Agent, AgentConfiguration, AgentState, SixDOFPose
from .agent.controls import ObjectControls, PyRobotNoisyActuationSpec, SceneNodeControl
from .nav import (
    GreedyFollowerCodes,
    GreedyGeodesicFollower,
    HitRecord,
    MultiGoalShortestPath,
    NavMeshSettings,
    PathFinder,
    ShortestPath,
)
from .registry import registry
from .scene import SceneGraph, SceneNode, SceneNodeType, SemanticScene
from .sensor import CameraSensor, CameraSensorSpec, Sensor, SensorSpec, SensorSubType, SensorType
from .sim import SimulatorConfiguration
from .simulator import Configuration, Simulator

__version__ = "0.3.4+embedded"
cuda_enabled = False
built_with_bullet = False
audio_enabled = False
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
    "CameraSensor",
    "CameraSensorSpec",
    "Configuration",
    "GreedyFollowerCodes",
    "GreedyGeodesicFollower",
    "HitRecord",
    "MultiGoalShortestPath",
    "NavMeshSettings",
    "ObjectControls",
    "PathFinder",
    "PyRobotNoisyActuationSpec",
    "SceneGraph",
    "SceneNode",
    "SceneNodeControl",
    "SceneNodeType",
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
    "geo",
    "gfx",
    "logging",
    "metadata",
    "nav",
    "physics",
    "registry",
    "scene",
    "sensor",
    "sim",
    "simulator",
    "utils",
]
