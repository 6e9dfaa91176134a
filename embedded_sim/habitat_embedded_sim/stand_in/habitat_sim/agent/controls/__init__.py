"""Stand-in for `habitat_sim.agent.controls`: what an action does to a node."""

from habitat_embedded_sim.unsupported import add_placeholders, missing_attribute

from . import default_controls
from .controls import ActuationSpec, SceneNodeControl
from .object_controls import ObjectControls

add_placeholders(globals(), "PyRobotNoisyActuationSpec")
__getattr__ = missing_attribute(__name__)
__all__ = ["ActuationSpec", "ObjectControls", "SceneNodeControl", "default_controls"]
