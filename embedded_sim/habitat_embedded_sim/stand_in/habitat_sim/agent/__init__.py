"""Stand-in for `habitat_sim.agent`."""

from . import controls
from .agent import ActionSpec, ActuationSpec, Agent, AgentConfiguration, AgentState, SixDOFPose
from .controls import ObjectControls

__all__ = [
    "ActionSpec",
    "ActuationSpec",
    "Agent",
    "AgentConfiguration",
    "AgentState",
    "ObjectControls",
    "SixDOFPose",
    "controls",
]
