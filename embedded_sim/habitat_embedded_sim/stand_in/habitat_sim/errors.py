"""Stand-in for `habitat_sim.errors`."""

from typing import Any

from habitat_embedded_sim.unsupported import missing_attribute


class GreedyFollowerError(RuntimeError):
    """The greedy follower found no action that leads to the goal."""


class InvalidAttachedObject(RuntimeError):
    """Something hangs on no node of a scene."""


def assert_obj_valid(obj: Any) -> None:
    """InvalidAttachedObject unless an agent's body or a sensor hangs on a node."""
    if not obj.object:
        raise InvalidAttachedObject("attached to no node: attach it to a valid scene graph before use")


__getattr__ = missing_attribute(__name__)
