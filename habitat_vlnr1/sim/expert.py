"""The lab sensor `vlnr1_expert`: what the expert would do now.

A sensor, so that export, the oracle policy and DAgger can read it across worker processes, at any state the
agent may be in.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gym import spaces
from habitat.config.default_structured_configs import LabSensorConfig
from habitat.core.registry import registry
from habitat.sims.habitat_simulator.actions import HabitatSimActions
from habitat.tasks.nav.shortest_path_follower import ShortestPathFollower
from habitat.tasks.vln.vln import VLNEpisode

from habitat_vlnr1.sim.sensors import LabSensor, store_lab_sensor

MODES = ("reference_path", "shortest_path", "ground_truth")


@dataclass
class ExpertConfig(LabSensorConfig):
    """`vlnr1_expert`."""

    type: str = "VLNR1ExpertSensor"
    mode: str = "reference_path"  # reference_path | shortest_path | ground_truth
    waypoint_radius: float = 0.5  # metres; a way point this near counts as passed
    goal_radius: float = 0.25  # metres; the expert stops this near to the goal


@registry.register_sensor(name="VLNR1ExpertSensor")
class ExpertSensor(LabSensor):
    """int64 [1]: the expert's action now (0 stop, 1 forward, 2 left, 3 right).

    - reference_path: walks along the episode's reference_path, then to the goal;
    - shortest_path: walks straight to the goal;
    - ground_truth: repeats the recorded actions; open loop, so it is an error when the agent leaves them.
    After the last way point the answer is stop, and only then (or where no way leads to the goal).
    """

    uuid = "vlnr1_expert"

    def __init__(self, *args: Any, sim: Any, dataset: Any = None, config: Any, **kwargs: Any) -> None:
        super().__init__(*args, sim=sim, dataset=dataset, config=config, **kwargs)
        if config.mode not in MODES:
            raise ValueError(f"vlnr1_expert.mode {config.mode!r}: choose one of {', '.join(MODES)}")
        self._sim = sim
        self._dataset = dataset
        self._advice = HabitatSimActions.stop

    def _get_observation_space(self, *args: Any, **kwargs: Any) -> spaces.Space:
        return spaces.Box(0, 3, (1,), np.int64)

    def get_observation(self, *args: Any, episode: VLNEpisode, **kwargs: Any) -> np.ndarray:
        taken = kwargs.get("action")
        if taken is None:
            replay = self.config.mode == "ground_truth"
            self._guide = Replay(self._recorded(episode), episode) if replay else self._walker(episode)
            followed = True
        else:
            followed = self._action_id(taken, kwargs["task"]) == self._advice
        self._advice = self._guide.advise(followed, first=taken is None)
        return np.array([self._advice], dtype=np.int64)

    @staticmethod
    def _action_id(action: Any, task: Any) -> int:
        name = action["action"]
        return list(task.actions).index(name) if isinstance(name, str) else int(name)

    def _walker(self, episode: VLNEpisode) -> "Walker":
        if not episode.goals:
            raise ValueError(f"episode {episode.episode_id} has no goal (split test?); remove the sensor vlnr1_expert")
        points = episode.reference_path if self.config.mode == "reference_path" else []
        points = [episode.start_position, *points, episode.goals[0].position]
        return Walker(self._sim, points, self.config.waypoint_radius, self.config.goal_radius)

    def _recorded(self, episode: VLNEpisode) -> tuple[int, ...]:
        truth = self._dataset.ground_truth(episode.episode_id)
        if truth is None:
            raise ValueError(
                f"episode {episode.episode_id}: vlnr1_expert.mode=ground_truth needs the file habitat.dataset.gt_path"
            )
        return truth.actions


class Replay:
    """Recorded actions, one per step, then stop for ever."""

    def __init__(self, actions: tuple[int, ...], episode: VLNEpisode) -> None:
        self._actions = actions
        self._step = 0
        self._name = episode.episode_id

    def advise(self, followed: bool, first: bool) -> int:
        """The next recorded action; RuntimeError when the agent did something else."""
        if not followed:
            raise RuntimeError(
                f"episode {self._name}: the agent left the recorded actions at step {self._step}; "
                "vlnr1_expert.mode=ground_truth is open loop: use reference_path"
            )
        self._step += not first
        return self._actions[self._step] if self._step < len(self._actions) else HabitatSimActions.stop


class Walker:
    """Walks with Habitat's follower along way points, from wherever the agent is.

    points: [start, way points …, goal], each [x, y, z] in metres.
    """

    def __init__(self, sim: Any, points: list[list[float]], waypoint_radius: float, goal_radius: float) -> None:
        self._sim = sim
        self._points = [np.asarray(point, dtype=np.float32) for point in points]
        self._radius = waypoint_radius
        self._goal_radius = goal_radius
        self._follower = ShortestPathFollower(sim, goal_radius, return_one_hot=False)
        self._next = 1
        self._nearest = np.inf  # nearest yet to the present way point …
        self._idle = 0  # … and for how many obeyed steps that did not improve
        # A full turn and a few steps: without progress after that, the follower is caught.
        self._patience = round(360 / sim.habitat_config.turn_angle) + 4

    def _distance(self, a: np.ndarray, b: np.ndarray) -> float:
        return self._sim.geodesic_distance(a, b)

    def _on_leg(self, here: np.ndarray, index: int) -> bool:
        """Whether `here` lies on the way from point index - 1 to point index."""
        a, b = self._points[index - 1], self._points[index]
        # `here` is always asked from: the simulator remembers distances to a point, not from it.
        return self._distance(here, a) + self._distance(here, b) - self._distance(a, b) < self._radius

    def _passed(self, here: np.ndarray) -> bool:
        """Whether the present way point is reached, or the agent walks on one of the two legs behind it already.

        On the leg before it as well, the path turns back on itself there, and the way point is still to be visited.
        """
        index, last = self._next, len(self._points) - 1
        if self._distance(here, self._points[index]) < self._radius:
            return True
        behind = range(index + 1, min(index + 2, last) + 1)
        return not self._on_leg(here, index) and any(self._on_leg(here, leg) for leg in behind)

    def _aim(self, index: int) -> None:
        self._next, self._nearest, self._idle = index, np.inf, 0

    def advise(self, followed: bool, first: bool) -> int:
        """The next action. followed: whether the agent did what was advised before."""
        here = self._sim.get_agent_state().position
        last = len(self._points) - 1
        while self._next < last and self._passed(here):
            self._aim(self._next + 1)
        distance = self._distance(here, self._points[self._next])
        self._idle = self._idle + 1 if followed and distance > self._nearest - 0.01 else 0
        self._nearest = min(self._nearest, distance)
        caught = self._idle > self._patience
        while True:
            action = HabitatSimActions.stop
            if not caught:
                action = int(self._follower.get_next_action(self._points[self._next]))
            if action != HabitatSimActions.stop or self._next == last:
                return action
            self._aim(self._next + 1)  # reached more closely than asked, or no way leads there
            caught = False


store_lab_sensor("vlnr1_expert", ExpertConfig)
