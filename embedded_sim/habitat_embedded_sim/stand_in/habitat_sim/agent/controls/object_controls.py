"""Actions by name, and what a walk bumps into."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import magnum as mn
import numpy as np
from habitat_embedded_sim.unsupported import needs_real

from ...registry import registry
from ...scene import SceneNode
from .controls import ActuationSpec, SceneNodeControl

_COLLISION_EPS = 1e-5


def _no_filter(start: mn.Vector3, end: mn.Vector3) -> mn.Vector3:
    return end


def _move_fn(name: str) -> SceneNodeControl:
    found = registry.get_move_fn(name)
    if found is None and name.startswith("pyrobot_noisy_"):
        raise needs_real(f"action {name!r}")
    assert found is not None, f"No move_fn for action {name!r}: register one (habitat_sim.registry.register_move_fn)"
    return found


class ObjectControls:
    """Applies actions to nodes. `move_filter_fn(start, end)` says where a walk from start to end leads."""

    def __init__(self, move_filter_fn: Callable[[mn.Vector3, mn.Vector3], Iterable[float]] = _no_filter) -> None:
        self.move_filter_fn = move_filter_fn

    @staticmethod
    def is_body_action(action_name: str) -> bool:
        """Whether the action moves the body; others move the cameras."""
        return _move_fn(action_name).body_action

    def action(
        self, obj: SceneNode, action_name: str, actuation_spec: ActuationSpec | None, apply_filter: bool = True
    ) -> bool:
        """Apply an action to a node; returns whether it collided.

        It did where the squared way actually gone, plus 1e-5, is less than the squared way asked for; not where the
        end point merely differs, as it does on stairs.
        """
        start = obj.absolute_pose()[0]
        _move_fn(action_name)(obj, actuation_spec)
        if not apply_filter:
            return False
        end = obj.absolute_pose()[0]
        way = end - start
        if not way.any():  # a turn
            return False
        filtered = np.array([*self.move_filter_fn(mn.Vector3(start), mn.Vector3(end))])
        obj.position = filtered if obj.parent is None else obj.position + (filtered - end)
        gone = filtered - start
        return bool(gone @ gone + _COLLISION_EPS < way @ way)

    __call__ = action
