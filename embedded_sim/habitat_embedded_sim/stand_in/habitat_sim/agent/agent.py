"""Stand-in for `habitat_sim.agent.agent`: a body that acts and carries cameras."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import quaternion as qt
from habitat_embedded_sim.unsupported import Partial, needs_real

from ..scene import SceneNode, SceneNodeType
from ..sensor import Sensor, SensorSpec
from ..utils.common import quat_from_coeffs
from .controls import ActuationSpec, ObjectControls


@dataclass
class ActionSpec:
    """The name of an action and how much it does."""

    name: str
    actuation: ActuationSpec | None = None


def _default_action_space() -> dict[Any, ActionSpec]:
    return {
        "move_forward": ActionSpec("move_forward", ActuationSpec(amount=0.25)),
        "turn_left": ActionSpec("turn_left", ActuationSpec(amount=10.0)),
        "turn_right": ActionSpec("turn_right", ActuationSpec(amount=10.0)),
    }


@dataclass(eq=False)
class SixDOFPose:
    """position [3] in metres; rotation: a unit quaternion, or its coefficients [x, y, z, w]."""

    position: Any = field(default_factory=lambda: np.zeros(3))
    rotation: Any = field(default_factory=lambda: qt.one)


@dataclass(eq=False)
class AgentState:
    """Where an agent is, as `SixDOFPose`, and the absolute poses of its sensors by uuid."""

    position: Any = field(default_factory=lambda: np.zeros(3))
    rotation: Any = field(default_factory=lambda: qt.one)
    sensor_states: dict[str, SixDOFPose] = field(default_factory=dict)


@dataclass
class AgentConfiguration:
    """height and radius in metres; action_space maps action ids to what they do."""

    height: float = 1.5
    radius: float = 0.1
    sensor_specifications: list[SensorSpec] = field(default_factory=list)
    action_space: dict[Any, ActionSpec] = field(default_factory=_default_action_space)
    body_type: str = "cylinder"


def _position(value: Any) -> np.ndarray:
    position = np.array([*value], dtype=np.float64)
    if position.shape != (3,) or not np.isfinite(position).all():
        raise ValueError(f"agent position {value!r}: give three finite numbers, in metres")
    return position


def _rotation(value: Any) -> qt.quaternion:
    quat = value if isinstance(value, qt.quaternion) else quat_from_coeffs(value)
    if not abs(quat.norm() - 1.0) < 1e-2:  # also catches NaN
        raise ValueError(f"agent rotation {value!r}: give a unit quaternion (x, y, z, w)")
    return quat.normalized()


class Agent(Partial):
    """A body on a node of the scene, whose sensors are those on its node and below."""

    def __init__(
        self,
        scene_node: SceneNode,
        agent_config: AgentConfiguration | None = None,
        controls: ObjectControls | None = None,
    ) -> None:
        self.agent_config = AgentConfiguration() if agent_config is None else agent_config
        self.controls = ObjectControls() if controls is None else controls
        self.scene_node = scene_node
        self.body = SimpleNamespace(object=scene_node)
        scene_node.type = SceneNodeType.AGENT
        self.initial_state: AgentState | None = None

    def reconfigure(self, agent_config: AgentConfiguration, reconfigure_sensors: bool = False) -> None:
        """Take another action space and size; the simulator makes sensors."""
        if reconfigure_sensors and agent_config.sensor_specifications:
            raise needs_real("habitat_sim.Agent.reconfigure with sensors")
        self.agent_config = agent_config

    @property
    def sensors(self) -> Mapping[str, Sensor]:
        return self.scene_node.subtree_sensors

    _sensors = sensors  # Habitat-Lab's name for them

    def act(self, action_id: Any) -> bool:
        """Take an action of the action space; returns whether it collided."""
        if action_id not in self.agent_config.action_space:
            known = ", ".join(map(repr, self.agent_config.action_space))
            raise AssertionError(f"action {action_id!r} is not in the agent's action space: {known}")
        spec = self.agent_config.action_space[action_id]
        if self.controls.is_body_action(spec.name):
            return self.controls.action(self.scene_node, spec.name, spec.actuation)
        for sensor in self.sensors.values():
            self.controls.action(sensor.node, spec.name, spec.actuation, apply_filter=False)
        return False

    def get_state(self) -> AgentState:
        """A copy of the present state, sensor poses included."""
        sensor_states = {uuid: SixDOFPose(*sensor.node.absolute_pose()) for uuid, sensor in self.sensors.items()}
        return AgentState(self.scene_node.position.astype(np.float32), self.scene_node.orientation, sensor_states)

    def set_state(
        self,
        state: AgentState,
        reset_sensors: bool = True,
        infer_sensor_states: bool = True,
        is_initial: bool = False,
    ) -> None:
        """Put the agent somewhere. `reset_sensors`: cameras return to their specified poses on the agent;
        `infer_sensor_states=False`: cameras take the absolute poses of `state.sensor_states` instead;
        `is_initial`: the simulator's reset returns here."""
        node = self.scene_node
        node.position, node.orientation = _position(state.position), _rotation(state.rotation)
        if reset_sensors:
            for sensor in self.sensors.values():
                sensor.set_transformation_from_spec()
        if not infer_sensor_states:
            back = node.orientation.conjugate()
            for uuid, pose in state.sensor_states.items():
                sensor_node = self.sensors[uuid].node
                sensor_node.position = qt.as_rotation_matrix(back) @ (_position(pose.position) - node.position)
                sensor_node.orientation = back * _rotation(pose.rotation)
        if is_initial:
            self.initial_state = self.get_state()

    @property
    def state(self) -> AgentState:
        return self.get_state()

    @state.setter
    def state(self, state: AgentState) -> None:
        self.set_state(state)
