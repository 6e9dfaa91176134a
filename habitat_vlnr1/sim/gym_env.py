"""The gym environment of an evaluation: Habitat's own, with where the agent is, and calls through the worker's pipe.

Chosen by `habitat.env_task: VLNR1GymEnv`. A VectorEnv reaches the methods with `call_at(i, "keep_episodes", {…})`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import habitat
import numpy as np
from habitat.core.dataset import EpisodeIterator
from habitat.core.environments import GymHabitatEnv
from habitat.core.simulator import AgentState
from habitat.tasks.utils import cartesian_to_polar
from habitat.tasks.vln.vln import VLNEpisode
from habitat.utils.geometry_utils import quaternion_rotate_vector

from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.observations import CLOCK
from habitat_vlnr1.sim.episode_files import SAME, SAME_PLACE, GroundTruth, path_digest

TRACE = "vlnr1_trace"


RGB = "rgb"


@contextmanager
def nothing_rendered(sim: Any) -> Iterator[None]:
    """Within, a step moves the agent and renders nothing: its images are those of the step before it.

    Agents move and collide in Habitat's simulator without a look at images, so all else is as ever.
    """
    before = getattr(sim, "_prev_sim_obs", None)
    if before is None or not hasattr(sim, "get_sensor_observations"):  # another simulator than Habitat's
        yield
        return

    known = {name: image for name, image in before.items() if name != "collided"}  # which is the step's own

    def images(agent_ids: Any = 0) -> Any:
        return {agent: dict(known) for agent in agent_ids} if isinstance(agent_ids, list) else dict(known)

    sim.get_sensor_observations = images
    try:
        yield
    finally:
        del sim.get_sensor_observations


class _Silent:
    """Stands in a sensor's place and computes nothing."""

    def __init__(self, sensor: habitat.Sensor):
        self.sensor = sensor

    def get_observation(self, *args: Any, **kwargs: Any) -> np.ndarray:
        return np.zeros(self.sensor.observation_space.shape, self.sensor.observation_space.dtype)


@habitat.registry.register_env(name="VLNR1GymEnv")
class VLNR1GymEnv(GymHabitatEnv):
    """Adds `info["vlnr1_trace"]` = [x, y, z, heading] to every step, and the calls that an evaluation needs."""

    _drawn = False  # whether `draw_episode` or `skip_to` has chosen an episode

    @property
    def _env(self) -> habitat.Env:
        return self.unwrapped.habitat_env

    def step(self, action: Any) -> tuple[Any, float, bool, dict[str, Any]]:
        observations, reward, done, info = super().step(action)
        return observations, reward, done, {**info, TRACE: self.pose()}

    def walk(self, actions: Sequence[int], shown: Sequence[bool]) -> list[tuple[Any, float, bool, dict[str, Any]]]:
        """What `step` returns for each of these actions, to the end of the episode at most.

        Args:
            shown: for each action whether the camera's view after it is wanted. Where it is not, nothing is rendered
                and the view lacks `rgb`.
        """
        outputs: list[Any] = []
        for action, wanted in zip(actions, shown, strict=True):
            if wanted:
                outputs.append(self.step(action))
            else:
                with nothing_rendered(self._env.sim):
                    view, *rest = self.step(action)
                outputs.append(({key: value for key, value in view.items() if key != RGB}, *rest))
            if outputs[-1][2]:
                break
        return outputs

    def pose(self) -> list[float]:
        """[x, y, z, heading]: metres, and radians as in `heading_of`."""
        state = self._env.sim.get_agent_state()
        return [*np.asarray(state.position, dtype=float).tolist(), heading_of(state)]

    def why_unusable(self) -> str | None:
        """Why distances in the current episode are infinite, or None: what Habitat snaps to the navmesh (within 2 m
        in x and z, 4 m in y) has finite ones."""
        episode: Any = self._env.current_episode
        sim: Any = self._env.sim
        if not sim.pathfinder.is_loaded:
            return "the scene has no navmesh"
        start, *goals = np.array([episode.start_position, *(g.position for g in episode.goals or [])], np.float32)
        if np.isnan(sim.pathfinder.snap_point(start)).any():
            return "start is off the navmesh"
        if goals and all(np.isnan(sim.pathfinder.snap_point(goal)).any() for goal in goals):
            return "goal is off the navmesh"
        distance = sim.geodesic_distance(start, goals) if goals else None
        if distance is not None and not np.isfinite(distance):
            return "no way from start to goal"
        return SAME_PLACE if distance is not None and distance < SAME else None

    def recorded(self) -> GroundTruth | None:
        """The current episode's ground truth, if the data set has one."""
        dataset: Any = self._env._dataset  # a VLNCEDataset
        return dataset.ground_truth(self._env.current_episode.episode_id)

    def episode_keys(self) -> list[tuple[str, str]]:
        """(scene_id, episode_id) of every episode this environment was made with."""
        return [(episode.scene_id, str(episode.episode_id)) for episode in self._env.episodes]

    def episode_paths(self, expert: str) -> list[tuple[VLNEpisode, str]]:
        """Every episode this environment was made with, and the `path_digest` of an expert's walk of it."""
        dataset: Any = self._env._dataset  # a VLNCEDataset
        episodes: list[Any] = self._env.episodes
        truths = [dataset.ground_truth(e.episode_id) if expert == "ground_truth" else None for e in episodes]
        return [(e, path_digest(e, expert, truth)) for e, truth in zip(episodes, truths, strict=True)]

    def keep_episodes(self, keys: Sequence[tuple[str, str]]) -> int:
        """Go through just these episodes from the next reset on; returns how many there are here.

        Raises:
            ValueError: none of them is here (an environment cannot be without episodes).
        """
        wanted = set(keys)
        kept = [episode for episode in self._env.episodes if (episode.scene_id, str(episode.episode_id)) in wanted]
        if not kept:
            raise VLNR1Error("keep_episodes: this environment has none of the episodes asked for")
        # The dataset keeps all its episodes: only what comes next is changed.
        self._env.episode_iterator = EpisodeIterator(kept, shuffle=False)
        return len(kept)

    def draw_episode(self) -> tuple[str, str]:
        """Choose the next reset's episode now, and say its key: whoever asks for the reset knows what it begins."""
        env = self._env
        # Habitat draws the first episode when an environment is made.
        if self._drawn or env._episode_from_iter_on_reset:
            env.current_episode = next(env.episode_iterator)
        self._drawn = True
        return self._key

    def skip_to(self, key: Sequence[str]) -> None:
        """Go to an episode as if all before it had been walked; the next reset begins it.

        Raises:
            ValueError: it is not among the episodes here.
        """
        env = self._env
        self._drawn = True
        if not env._episode_from_iter_on_reset and self._key == tuple(key):
            return
        for _ in range(len(env.episodes) + 1):
            env.current_episode = next(env.episode_iterator)
            if self._key == tuple(key):
                return
        raise VLNR1Error(f"skip_to: this environment has no episode {key}")

    @property
    def _key(self) -> tuple[str, str]:
        return self._env.current_episode.scene_id, str(self._env.current_episode.episode_id)

    def set_rollout(self, uid: int) -> None:
        """Go on under another rollout's id, as the clock says it: this walk repeats that one."""
        clock: Any = self._env.task.sensor_suite.sensors.get(CLOCK)
        if clock is not None:
            clock.set_rollout(uid)

    def silence(self, uuid: str, silent: bool) -> None:
        """Let a lab sensor hand out zeros from the next reset on, or work again: not every policy needs it."""
        sensors: dict[str, Any] = self._env.task.sensor_suite.sensors
        sensor = sensors[uuid].sensor if isinstance(sensors[uuid], _Silent) else sensors[uuid]
        sensors[uuid] = _Silent(sensor) if silent else sensor

    def topdown_map(self, meters_per_pixel: float = 0.05) -> dict[str, Any]:
        """Where the agent could stand on the floors that the current episode visits.

        Returns:
            `free` bool [Z, X], True where navigable; `origin` [x, z] of its corner in metres; `meters_per_pixel`.
        """
        sim: Any = self._env.sim
        pathfinder = sim.pathfinder
        episode = self._env.current_episode
        heights = [point[1] for point in [episode.start_position, *(getattr(episode, "reference_path", None) or [])]]
        floors: list[float] = []
        for height in heights:
            if all(abs(height - floor) > 0.5 for floor in floors):
                floors.append(height)
        views = [pathfinder.get_topdown_view(meters_per_pixel=meters_per_pixel, height=floor) for floor in floors]
        lower, _ = pathfinder.get_bounds()
        return {
            "free": np.logical_or.reduce([np.asarray(view, dtype=bool) for view in views]),
            "origin": [float(lower[0]), float(lower[2])],
            "meters_per_pixel": meters_per_pixel,
        }


def heading_of(state: AgentState) -> float:
    """Angle about the vertical axis in radians, as Habitat's HeadingSensor and VLN-CE's submission files have it.

    0 looks along −z, positive turns to the left (counter-clockwise seen from above).
    """
    rotation: Any = state.rotation
    looking = quaternion_rotate_vector(rotation.inverse(), np.array([0, 0, -1]))
    return float(cartesian_to_polar(-looking[2], looking[0])[1])
