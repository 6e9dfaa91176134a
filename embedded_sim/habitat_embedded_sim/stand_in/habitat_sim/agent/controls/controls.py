"""What every action has."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

from ...scene import SceneNode


@dataclass
class ActuationSpec:
    """How much: metres or degrees; `constraint`: how far (degrees) a camera may look away from its rest pose."""

    amount: float
    constraint: float | None = None


@dataclass
class SceneNodeControl(abc.ABC):
    """Base of all actions, own ones too; see `habitat_sim.registry`."""

    body_action: bool = False

    @abc.abstractmethod
    def __call__(self, scene_node: SceneNode, actuation_spec: Any) -> None:
        """Move or turn the node; the specification is an `ActuationSpec`, or what else the agent's action holds."""
