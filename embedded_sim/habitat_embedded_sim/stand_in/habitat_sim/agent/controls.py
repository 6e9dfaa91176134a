"""Stand-in for `habitat_sim.agent.controls`: what an action does to a node."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import quaternion as qt
from habitat_embedded_sim.unsupported import needs_real

from ..scene import SceneNode

_MOVES = {  # along which local axis, for a positive amount
    "move_forward": (0.0, 0.0, -1.0),
    "move_backward": (0.0, 0.0, 1.0),
    "move_left": (-1.0, 0.0, 0.0),
    "move_right": (1.0, 0.0, 0.0),
    "move_up": (0.0, 1.0, 0.0),
    "move_down": (0.0, -1.0, 0.0),
}
_TURNS = {  # around which local axis
    "turn_left": (0.0, 1.0, 0.0),
    "turn_right": (0.0, -1.0, 0.0),
    "look_left": (0.0, 1.0, 0.0),
    "look_right": (0.0, -1.0, 0.0),
    "look_up": (1.0, 0.0, 0.0),
    "look_down": (-1.0, 0.0, 0.0),
}
_BODY_ACTIONS = {"move_forward", "move_backward", "move_left", "move_right", "turn_left", "turn_right", "stop"}
_COLLISION_EPS = 1e-5


@dataclass
class ActuationSpec:
    """How much: metres or degrees; `constraint`: how far (degrees) a camera may look away from its rest pose."""

    amount: float
    constraint: float | None = None


def _no_filter(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return end


class ObjectControls:
    """Applies actions to nodes. `move_filter_fn(start, end)` says where a walk from start to end leads."""

    def __init__(self, move_filter_fn: Callable[[np.ndarray, np.ndarray], np.ndarray] = _no_filter) -> None:
        self.move_filter_fn = move_filter_fn

    @staticmethod
    def is_body_action(action_name: str) -> bool:
        """Whether the action moves the body; others move the cameras."""
        return action_name in _BODY_ACTIONS

    def action(
        self, obj: SceneNode, action_name: str, actuation_spec: ActuationSpec | None, apply_filter: bool = True
    ) -> bool:
        """Apply an action to a node; returns whether it collided.

        It did where the squared way actually gone, plus 1e-5, is less than the squared way asked for; not where the
        end point merely differs, as it does on stairs.
        """
        if action_name == "stop":
            return False
        if action_name not in _TURNS and action_name not in _MOVES:
            raise needs_real(f"action {action_name!r}")
        if actuation_spec is None:
            raise ValueError(f"action {action_name!r} needs an ActuationSpec: how far")
        if action_name in _TURNS:
            _turn(obj, _TURNS[action_name], actuation_spec)
            return False
        way = qt.as_rotation_matrix(obj.orientation) @ np.array(_MOVES[action_name]) * actuation_spec.amount
        if not apply_filter:
            obj.position = obj.position + way
            return False
        start = obj.position
        obj.position = np.asarray(self.move_filter_fn(start, start + way), dtype=np.float64)
        gone = obj.position - start
        return bool(gone @ gone + _COLLISION_EPS < way @ way)

    __call__ = action


def _turn(obj: SceneNode, axis: tuple[float, float, float], spec: ActuationSpec) -> None:
    """Turn a node around a local axis; with a constraint, no farther than that from looking straight ahead."""
    angle = math.radians(spec.amount)
    if spec.constraint is not None:
        now, limit = float(qt.as_rotation_vector(obj.orientation) @ np.array(axis)), math.radians(spec.constraint)
        angle = min(max(now + angle, -limit), limit) - now
    obj.orientation = (obj.orientation * qt.from_rotation_vector(angle * np.array(axis))).normalized()
