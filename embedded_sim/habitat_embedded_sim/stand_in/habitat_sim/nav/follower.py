"""The greedy follower: from poses to actions along the geodesic shortest path.

It plans as habitat-sim's does (src/esp/nav/GreedyFollower.cpp): among "n turns to one side, then forward", take what
brings the goal nearest, with small costs for turning, collisions and walls.
"""

from __future__ import annotations

import math
import sys
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
import quaternion as qt
from habitat_embedded_sim.unsupported import Partial

from ..agent.agent import Agent
from ..agent.controls import ActuationSpec
from ..errors import GreedyFollowerError
from ..scene import SceneNode
from .pathfinder import PathFinder

_TURN_COST = 0.0125
_COLLISION_COST = 0.25
_NEAR_WALL, _NEAR_WALL_COST = 0.2, 0.05  # metres
_GOOD_ENOUGH = 0.99  # of the largest possible reward, 1: straight ahead at full speed
_MAX_ACTIONS = 5000


class GreedyFollowerCodes(IntEnum):
    """What the follower may answer."""

    ERROR = -2
    STOP = -1
    FORWARD = 0
    LEFT = 1
    RIGHT = 2


class GreedyGeodesicFollower(Partial):
    """Follows the shortest path of one agent, with the agent's own forward and turn actions.

    `goal_radius`: metres within which the answer is stop; 0.75 forward steps where None. The keys are what is
    answered; by default those of the agent's action space, and None for stop. A sequence of left, right, left, … as
    long as `thrashing_threshold` is broken by carrying out one whole plan.
    """

    def __init__(
        self,
        pathfinder: PathFinder,
        agent: Agent,
        goal_radius: float | None = None,
        *,
        stop_key: Any = None,
        forward_key: Any = None,
        left_key: Any = None,
        right_key: Any = None,
        fix_thrashing: bool = True,
        thrashing_threshold: int = 16,
    ) -> None:
        self.pathfinder, self.agent = pathfinder, agent
        own_forward, self.forward_spec = self._find_action("move_forward")
        own_left, self.left_spec = self._find_action("turn_left")
        own_right, self.right_spec = self._find_action("turn_right")
        self.action_mapping = {
            GreedyFollowerCodes.STOP: stop_key,
            GreedyFollowerCodes.FORWARD: own_forward if forward_key is None else forward_key,
            GreedyFollowerCodes.LEFT: own_left if left_key is None else left_key,
            GreedyFollowerCodes.RIGHT: own_right if right_key is None else right_key,
        }
        self.goal_radius = 0.75 * self.forward_spec.amount if goal_radius is None else goal_radius
        self._thrashing_threshold = thrashing_threshold if fix_thrashing else sys.maxsize
        self.reset()

    def _find_action(self, name: str) -> tuple[Any, ActuationSpec]:
        found = [
            (key, spec.actuation)
            for key, spec in self.agent.agent_config.action_space.items()
            if spec.name == name and spec.actuation is not None
        ]
        if len(found) != 1:
            raise ValueError(
                f"the greedy follower needs one {name!r} with an actuation in the agent's actions, found {len(found)}"
            )
        return found[0]

    def reset(self) -> None:
        """Forget the goal and the actions answered so far."""
        self.last_goal: np.ndarray | None = None
        self._answered: list[GreedyFollowerCodes] = []
        self._plan: list[GreedyFollowerCodes] = []

    def next_action_along(self, goal_pos: np.ndarray) -> Any:
        """The key of the next action towards `goal_pos` [3]; GreedyFollowerError where no action leads there."""
        goal = np.array([*goal_pos], dtype=np.float64)
        if self.last_goal is None or not np.allclose(goal, self.last_goal):
            self.reset()
            self.last_goal = goal
        if not self._plan:
            node = self.agent.scene_node
            plan = self._best_primitive(node.position, node.orientation, goal)
            self._plan = plan if self._thrashing() else plan[:1]
        code = self._plan.pop(0)
        self._answered.append(code)
        if code == GreedyFollowerCodes.ERROR:
            raise GreedyFollowerError(f"no action leads the agent towards {goal.tolist()}")
        return self.action_mapping[code]

    def find_path(self, goal_pos: np.ndarray) -> list[Any]:
        """The keys of all actions to `goal_pos`, stop included; GreedyFollowerError where there is no way."""
        self.reset()
        goal = np.array([*goal_pos], dtype=np.float64)
        node = SceneNode()
        node.position, node.orientation = self.agent.scene_node.position, self.agent.scene_node.orientation
        keys: list[Any] = []
        while len(keys) < _MAX_ACTIONS:
            for code in self._best_primitive(node.position, node.orientation, goal):
                if code == GreedyFollowerCodes.ERROR:
                    raise GreedyFollowerError(f"no action leads the agent towards {goal.tolist()}")
                keys.append(self.action_mapping[code])
                if code == GreedyFollowerCodes.STOP:
                    return keys
                self._apply(node, code)
        raise GreedyFollowerError(f"no way to {goal.tolist()} within {_MAX_ACTIONS} actions")

    def _apply(self, node: SceneNode, code: GreedyFollowerCodes) -> bool:
        name, spec = {
            GreedyFollowerCodes.FORWARD: ("move_forward", self.forward_spec),
            GreedyFollowerCodes.LEFT: ("turn_left", self.left_spec),
            GreedyFollowerCodes.RIGHT: ("turn_right", self.right_spec),
        }[code]
        return self.agent.controls.action(node, name, spec)

    def _distance(self, position: np.ndarray, goal: np.ndarray) -> float:
        return self.pathfinder.grid.find_path(position, goal)[0]

    def _best_primitive(
        self, position: np.ndarray, orientation: qt.quaternion, goal: np.ndarray
    ) -> list[GreedyFollowerCodes]:
        """The best of "n turns, then forward" from a pose; [STOP] near the goal, [ERROR] where nothing helps."""
        distance = self._distance(position, goal)
        if distance == math.inf:
            return [GreedyFollowerCodes.ERROR]
        if distance < self.goal_radius:
            return [GreedyFollowerCodes.STOP]
        best, best_reward = [GreedyFollowerCodes.ERROR], -_COLLISION_COST
        turned = {GreedyFollowerCodes.LEFT: SceneNode(), GreedyFollowerCodes.RIGHT: SceneNode()}
        for node in turned.values():
            node.position, node.orientation = position, orientation
        turns, angle = 0, np.float32(0)  # summed in single precision, as there: it decides about the turn by 180°
        while angle < np.float32(math.pi):
            for side, node in turned.items():
                if turns == 0 and side == GreedyFollowerCodes.RIGHT:
                    continue  # no turn: the same as to the left
                reward = self._reward(node, distance, goal, turns)
                if reward > best_reward:
                    best, best_reward = [side] * turns + [GreedyFollowerCodes.FORWARD], reward
            if best_reward > _GOOD_ENOUGH:
                break
            for side, node in turned.items():
                self._apply(node, side)
            turns, angle = turns + 1, angle + np.float32(math.radians(self.left_spec.amount))
        return best

    def _reward(self, node: SceneNode, distance: float, goal: np.ndarray, turns: int) -> float:
        """What walking forward from `node` after `turns` turns brings; 1 at most."""
        tried = SceneNode()
        tried.position, tried.orientation = node.position, node.orientation
        collided = self._apply(tried, GreedyFollowerCodes.FORWARD)
        reward = (distance - self._distance(tried.position, goal)) / self.forward_spec.amount - _TURN_COST * turns
        if collided:
            reward -= _COLLISION_COST
        if self.pathfinder.distance_to_closest_obstacle(tried.position, 1.1 * _NEAR_WALL) < _NEAR_WALL:
            reward -= _NEAR_WALL_COST
        return reward

    def _thrashing(self) -> bool:
        """Whether the last answers were left, right, left, … for as long as the threshold."""
        if len(self._answered) < self._thrashing_threshold:
            return False
        recent = self._answered[-self._thrashing_threshold :]
        turns = {GreedyFollowerCodes.LEFT, GreedyFollowerCodes.RIGHT}
        return set(recent) == turns and all(a != b for a, b in pairwise(recent))
