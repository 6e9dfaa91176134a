"""Stand-in for `habitat_sim.geo`: the directions of the world, y up."""

from habitat_embedded_sim.unsupported import add_placeholders, missing_attribute
from magnum import Vector3

UP, GRAVITY = Vector3(0.0, 1.0, 0.0), Vector3(0.0, -1.0, 0.0)
FRONT, BACK = Vector3(0.0, 0.0, -1.0), Vector3(0.0, 0.0, 1.0)
LEFT, RIGHT = Vector3(-1.0, 0.0, 0.0), Vector3(1.0, 0.0, 0.0)

add_placeholders(globals(), "OBB Ray")
__getattr__ = missing_attribute(__name__)
