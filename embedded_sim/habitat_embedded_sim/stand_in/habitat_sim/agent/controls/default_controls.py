"""The actions that are always there."""

from __future__ import annotations

import math

import numpy as np
import quaternion as qt

from ...registry import registry
from ...scene import SceneNode
from .controls import ActuationSpec, SceneNodeControl

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
    "rotate_sensor_clockwise": (0.0, 0.0, 1.0),
    "rotate_sensor_anti_clockwise": (0.0, 0.0, -1.0),
}
_BODY_ACTIONS = {"move_forward", "move_backward", "move_left", "move_right", "turn_left", "turn_right"}


def _needed(name: str, spec: ActuationSpec | None) -> ActuationSpec:
    if spec is None:
        raise ValueError(f"action {name!r} needs an ActuationSpec: how far")
    return spec


class _Move(SceneNodeControl):
    name: str
    axis: tuple[float, float, float]

    def __call__(self, scene_node: SceneNode, actuation_spec: ActuationSpec | None) -> None:
        way = np.array(self.axis) * _needed(self.name, actuation_spec).amount
        scene_node.position = scene_node.position + qt.as_rotation_matrix(scene_node.orientation) @ way


class _Turn(SceneNodeControl):
    """Turns a node around a local axis; with a constraint, no farther than that from looking straight ahead."""

    name: str
    axis: tuple[float, float, float]

    def __call__(self, scene_node: SceneNode, actuation_spec: ActuationSpec | None) -> None:
        spec = _needed(self.name, actuation_spec)
        angle, axis = math.radians(spec.amount), np.array(self.axis)
        if spec.constraint is not None:
            turned = qt.as_rotation_vector(scene_node.orientation)
            now = float(turned @ axis)
            if abs(now) < (1.0 - 1e-3) * np.linalg.norm(turned):
                raise RuntimeError("a look with a constraint starts from a node that is turned around that axis alone")
            limit = math.radians(spec.constraint)
            angle = min(max(now + angle, -limit), limit) - now
        scene_node.orientation = (scene_node.orientation * qt.from_rotation_vector(angle * axis)).normalized()


class _Stop(SceneNodeControl):
    """Habitat-Lab's action: the body stays where it is."""

    def __call__(self, scene_node: SceneNode, actuation_spec: ActuationSpec | None) -> None:
        pass


for _base, _axes in ((_Move, _MOVES), (_Turn, _TURNS)):
    for _name, _axis in _axes.items():
        registry.register_move_fn(
            type(_base.__name__, (_base,), {"name": _name, "axis": _axis}),
            name=_name,
            body_action=_name in _BODY_ACTIONS,
        )
registry.register_move_fn(_Stop, name="stop", body_action=True)
