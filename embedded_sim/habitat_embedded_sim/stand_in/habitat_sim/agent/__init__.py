"""Stand-in for `habitat_sim.agent`."""

from habitat_embedded_sim.unsupported import missing_attribute

from . import controls
from .agent import ActionSpec, ActuationSpec, Agent, AgentConfiguration, AgentState, SixDOFPose
from .controls import ObjectControls, PyRobotNoisyActuationSpec, SceneNodeControl

__getattr__ = missing_attribute(__name__)
__all__ = [
    "ActionSpec",
    "ActuationSpec",
    "Agent",
    "AgentConfiguration",
    "AgentState",
    "ObjectControls",
    "PyRobotNoisyActuationSpec",
    "SceneNodeControl",
    "SixDOFPose",
    "controls",
]
