"""What an answer is worth where it was given: each of its actions walked ahead, and how much nearer it leads.

The recorded action is one of several right ones. Here an answer is walked on the scene's navmesh from the state that
the record is of, and each action earns by what it does to the steps that are left,

    Φ(s) = length of the shortest path to the goal / forward step + its turns, the first one included / turn angle,

so that going on, or turning to where the way leads, earns about 1 on every way that is a shortest one, and the
opposite about -1. Nothing is rendered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from habitat.config import read_write
from habitat.sims import make_sim
from habitat.tasks.vln.vln import VLNEpisode
from habitat.utils.geometry_utils import quaternion_from_coeff, quaternion_rotate_vector
from omegaconf import DictConfig

from habitat_vlnr1.actions import Action
from habitat_vlnr1.config import edited
from habitat_vlnr1.errors import RecordError
from habitat_vlnr1.records import VLNEgo
from habitat_vlnr1.sim.env_factory import open_dataset
from habitat_vlnr1.sim.task_files import task_identity

KEPT = 4096
"""Answers whose value is remembered."""
CORNER = 0.2
"""Metres; a corner of the way this near is passed already."""


def check_recorded(config: DictConfig, ego: VLNEgo) -> None:
    """RecordError unless the records are of the configured task's episodes: their scenes and goals are looked up."""
    split, task = ego.meta.get("split"), ego.meta.get("task") or {}
    if split and task.get("episodes") == task_identity(config, split)["episodes"]:
        return
    raise RecordError(
        f"{ego.root}: not recorded from episodes of the task {config.vlnr1.task.name} as they are now, in which a "
        "reward that asks for `headway` (answer_value) walks the answers: take another of vlnr1.rft.rewards, or this "
        "task's records alone"
    )


@dataclass(frozen=True)
class Pose:
    """Where an agent stands, [x, y, z] in metres, and where it looks: radians about the vertical axis, 0 along -z,
    positive to the left."""

    position: np.ndarray
    heading: float


class Headway:
    """Walks answers ahead in the episodes of one task.

    Args:
        config: the whole one; its task, its simulator's steps and its distance of success.
        sources: whose records are answered.

    Attributes:
        radius: metres to the goal within which STOP is right.

    Raises:
        RecordError: a source is not of the task's episodes.
    """

    def __init__(self, config: DictConfig, sources: Sequence[VLNEgo]):
        for ego in sources:
            check_recorded(config, ego)
        self._config = config
        simulator = config.habitat.simulator
        self._step, self._turn = float(simulator.forward_step_size), math.radians(simulator.turn_angle)
        self._slides = bool(simulator.habitat_sim_v0.allow_sliding)
        self.radius = float(config.habitat.task.measurements.success.success_distance)
        self._episodes: dict[str, dict[str, VLNEpisode]] = {}  # split → id → episode
        self._finders: dict[str, Any] = {}  # scene → its PathFinder
        self._walked = lru_cache(KEPT)(self._walk)

    def __call__(self, split: str, episode_id: str, taken: tuple[int, ...], answer: tuple[int, ...]) -> list[float]:
        """How far each action of an answer leads on, -1 to 1.

        Args:
            split: of the task, that the episode is in.
            taken: actions that have led to where the answer was given.
            answer: numbers of `Action`; those behind the first STOP are not looked at.

        Returns:
            Φ before less Φ after each action, not beyond ±1; for STOP, and for every position behind it, 1 where the
            goal lies within `radius` (geodesic), else -1.

        Raises:
            RecordError: the task has no such episode.
        """
        return list(self._walked(split, episode_id, taken, answer))  # of a group, many answers are equal

    def _walk(self, split: str, episode_id: str, taken: tuple[int, ...], answer: tuple[int, ...]) -> tuple[float, ...]:
        episode = self._episode(split, episode_id)
        finder, goal = self._finder(episode.scene_id), np.asarray(episode.goals[0].position, np.float32)
        pose = self.pose(episode, taken)
        left, distance = self._left(finder, pose, goal)
        earned: list[float] = []
        for action in answer:
            if action == Action.STOP:
                stopped = 1.0 if distance <= self.radius else -1.0
                return (*earned, *[stopped] * (len(answer) - len(earned)))
            before, pose = left, self._moved(finder, pose, action)
            left, distance = self._left(finder, pose, goal)
            earned.append(max(-1.0, min(1.0, before - left)) if math.isfinite(left) else -1.0)
        return tuple(earned)

    def pose(self, episode: VLNEpisode, taken: Sequence[int]) -> Pose:
        """Where these actions lead from the episode's start."""
        looking = quaternion_rotate_vector(quaternion_from_coeff(episode.start_rotation), np.array([0.0, 0.0, -1.0]))
        start = Pose(np.asarray(episode.start_position, np.float32), math.atan2(-looking[0], -looking[2]))
        finder = self._finder(episode.scene_id)
        for action in taken:
            start = self._moved(finder, start, action)
        return start

    def _moved(self, finder: Any, pose: Pose, action: int) -> Pose:
        """After one action, as the simulator's controls do it."""
        if action == Action.FORWARD:
            ahead = np.array([-math.sin(pose.heading), 0.0, -math.cos(pose.heading)], np.float32) * self._step
            step = finder.try_step if self._slides else finder.try_step_no_sliding
            return Pose(np.asarray(step(pose.position, pose.position + ahead), np.float32), pose.heading)
        turns = {Action.LEFT: self._turn, Action.RIGHT: -self._turn}
        return Pose(pose.position, pose.heading + turns.get(Action(action), 0.0))

    def _left(self, finder: Any, pose: Pose, goal: np.ndarray) -> tuple[float, float]:
        """Steps to go, Φ, and metres to go; both infinite where no way leads to the goal."""
        import habitat_sim

        path = habitat_sim.ShortestPath()
        path.requested_start, path.requested_end = pose.position, goal
        if not finder.find_path(path):
            return math.inf, math.inf
        corners = [np.asarray(point)[[0, 2]] for point in path.points]
        far = [corner for corner in corners[1:-1] if math.dist(corner, corners[0]) >= CORNER]
        way = [corners[0], *far, corners[-1]]
        if math.dist(way[0], way[-1]) < CORNER:
            return path.geodesic_distance / self._step, path.geodesic_distance
        headings = [pose.heading, *(math.atan2(a[0] - b[0], a[1] - b[1]) for a, b in pairwise(way))]
        turned = sum(abs(math.remainder(b - a, math.tau)) for a, b in pairwise(headings))
        return path.geodesic_distance / self._step + turned / self._turn, path.geodesic_distance

    def _episode(self, split: str, episode_id: str) -> VLNEpisode:
        if split not in self._episodes:
            dataset = open_dataset(edited(self._config, **{"habitat.dataset.split": split}).habitat)
            self._episodes[split] = {str(episode.episode_id): episode for episode in dataset.episodes}
        if episode_id not in self._episodes[split]:
            raise RecordError(
                f"episode {episode_id} of split {split} is among the records, but cannot be walked in the task "
                f"{self._config.vlnr1.task.name}, as the reward has to: take its line out of the records"
            )
        return self._episodes[split][episode_id]

    def _finder(self, scene: str) -> Any:
        """The scene's PathFinder, from a simulator without cameras."""
        if scene not in self._finders:
            config = self._config.habitat.simulator.copy()
            with read_write(config):
                config.scene = scene
                for agent in config.agents.values():
                    agent.sim_sensors = {}
            sim: Any = make_sim(config.type, config=config)
            self._finders[scene] = sim.pathfinder
            sim.close()
        return self._finders[scene]
