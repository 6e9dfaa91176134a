"""The lab sensors `vlnr1_expert` and `vlnr1_plan`: what the expert would do now, and in its next n steps.

Sensors, so that export, the oracle policy and DAgger can read them across worker processes, at any state the
agent may be in.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from gym import spaces
from habitat.config.default_structured_configs import LabSensorConfig
from habitat.core.registry import registry
from habitat.sims.habitat_simulator.actions import HabitatSimActions
from habitat.tasks.nav.shortest_path_follower import ShortestPathFollower
from habitat.tasks.vln.vln import VLNEpisode
from habitat.utils.geometry_utils import quaternion_rotate_vector

from habitat_vlnr1.errors import RunError, VLNR1Error
from habitat_vlnr1.observations import EXPERT, PLAN
from habitat_vlnr1.sim.sensors import LabSensor, store_lab_sensor

MODES = ("reference_path", "pursuit", "shortest_path", "ground_truth")
REACHED = 0.2  # metres; pursuit passes a corner of its way this near
SLACK = 0.8  # of a turn: pursuit turns when the way lies farther off its heading
CLOSE, CLOSE_ENOUGH = 0.6, 1.6  # forward steps to the goal: pursuit stops; it stops rather than turn again


@dataclass
class ExpertConfig(LabSensorConfig):
    """`vlnr1_expert`."""

    type: str = "VLNR1ExpertSensor"
    mode: str = "reference_path"  # reference_path | pursuit | shortest_path | ground_truth
    waypoint_radius: float = 0.5  # metres; a way point this near counts as passed
    goal_radius: float = 0.25  # metres; the expert stops this near to the goal (pursuit: by forward steps)


@registry.register_sensor(name="VLNR1ExpertSensor")
class ExpertSensor(LabSensor):
    """int64 [1]: the expert's action now (0 stop, 1 forward, 2 left, 3 right).

    - reference_path: walks along the episode's reference_path, then to the goal, as Habitat's follower does;
    - pursuit: the same way with few turns, as the embedded houses' recorded walks have it;
    - shortest_path: walks straight to the goal;
    - ground_truth: repeats the recorded actions; open loop, so it is an error when the agent leaves them.
    After the last way point the answer is stop, and only then (or where no way leads to the goal).
    """

    uuid = EXPERT

    def __init__(self, *args: Any, sim: Any, dataset: Any = None, config: Any, **kwargs: Any) -> None:
        super().__init__(*args, sim=sim, dataset=dataset, config=config, **kwargs)
        if config.mode not in MODES:
            raise VLNR1Error(f"vlnr1_expert.mode {config.mode!r}: choose one of {', '.join(MODES)}")
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
            raise VLNR1Error(f"episode {episode.episode_id} has no goal (split test?); remove the sensor vlnr1_expert")
        points = [] if self.config.mode == "shortest_path" else episode.reference_path
        goal = episode.goals[0].position
        points = [episode.start_position, *points, *([] if points and np.allclose(points[-1], goal) else [goal])]
        kind = Pursuer if self.config.mode == "pursuit" else Walker
        return kind(self._sim, points, self.config.waypoint_radius, self.config.goal_radius)

    def _recorded(self, episode: VLNEpisode) -> tuple[int, ...]:
        truth = self._dataset.ground_truth(episode.episode_id)
        if truth is None:
            raise VLNR1Error(
                f"episode {episode.episode_id}: vlnr1_expert.mode=ground_truth needs the file habitat.dataset.gt_path"
            )
        return truth.actions


@dataclass
class PlanConfig(ExpertConfig):
    """`vlnr1_plan`."""

    type: str = "VLNR1PlanSensor"
    num_actions: int = 6  # n: how many actions the expert plans
    every: int = 1  # it plans at steps 0, every, 2 · every, …
    within: float = 3.0  # metres from the goal; an expert that would stop farther off is lost, and no plan is given


@registry.register_sensor(name="VLNR1PlanSensor")
class PlanSensor(ExpertSensor):
    """int64 [num_actions]: the expert's next actions from here, padded with stop; all -1 where there is no plan.

    These, not the expert's single actions along somebody else's walk, are the answer that a model of n actions should
    have given. The expert is walked ahead by the agent's own controls, nothing is rendered, and the agent is put back.
    """

    uuid = PLAN
    _step: int

    def _get_observation_space(self, *args: Any, config: Any, **kwargs: Any) -> spaces.Space:
        return spaces.Box(-1, 3, (config.num_actions,), np.int64)

    def get_observation(self, *args: Any, episode: VLNEpisode, **kwargs: Any) -> np.ndarray:
        first = int(super().get_observation(*args, episode=episode, **kwargs)[0])
        self._step = 0 if kwargs.get("action") is None else self._step + 1
        plan = [] if self._step % self.config.every else self._look_ahead(first, episode.goals[0].position)
        padding = HabitatSimActions.stop if plan else -1
        return np.array(plan + [padding] * (self.config.num_actions - len(plan)), dtype=np.int64)

    def _look_ahead(self, action: int, goal: list[float]) -> list[int]:
        """The expert's actions from the present state on, `action` the first: num_actions, or up to its stop.

        No actions where it would stop too far from the goal.
        """
        plan = [action]
        guide, agent, state = self._guide.copy(), self._sim.get_agent(0), self._sim.get_agent_state()
        try:
            while action != HabitatSimActions.stop and len(plan) < self.config.num_actions:
                agent.act(action)
                action = guide.advise(followed=True, first=False)
                plan.append(action)
            lost = action == HabitatSimActions.stop and not self._reaches(goal)
        finally:
            self._sim.set_agent_state(state.position, state.rotation, reset_sensors=False)
        return [] if lost else plan

    def _reaches(self, goal: list[float]) -> bool:
        here = self._sim.get_agent_state().position
        return self._sim.geodesic_distance(here, np.asarray(goal, dtype=np.float32)) < self.config.within


class Replay:
    """Recorded actions, one per step, then stop for ever."""

    def __init__(self, actions: tuple[int, ...], episode: VLNEpisode) -> None:
        self._actions = actions
        self._step = 0
        self._name = episode.episode_id

    def copy(self) -> "Replay":
        return copy.copy(self)

    def advise(self, followed: bool, first: bool) -> int:
        """The next recorded action; RuntimeError when the agent did something else."""
        if not followed:
            raise RunError(
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

    def copy(self) -> "Walker":
        """The same walker at the same place; what one of them does next is nothing to the other."""
        twin = copy.copy(self)
        twin._follower = ShortestPathFollower(self._sim, self._goal_radius, return_one_hot=False)
        return twin

    def _distance(self, a: np.ndarray, b: np.ndarray) -> float:
        return self._sim.geodesic_distance(a, b)

    def _on_leg(self, here: np.ndarray, index: int) -> bool:
        """Whether `here` lies on the way from point index - 1 to point index."""
        a, b = self._points[index - 1], self._points[index]
        # `here` is always asked from: the simulator remembers distances to a point, not from it.
        return self._distance(here, a) + self._distance(here, b) - self._distance(a, b) < self._radius

    def _passed(self, here: np.ndarray) -> bool:
        """Whether the present way point is reached, or the agent walks on one of the two legs behind it already.

        On the leg before it as well, or on the one before that, the path turns back on itself there, and the way point
        is still to be visited.
        """
        index, last = self._next, len(self._points) - 1
        if self._distance(here, self._points[index]) < self._radius:
            return True
        behind = range(index + 1, min(index + 2, last) + 1)
        before = range(max(index - 1, 1), index + 1)
        return not any(self._on_leg(here, leg) for leg in before) and any(self._on_leg(here, leg) for leg in behind)

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
                action = self._step_towards(self._points[self._next])
            if action != HabitatSimActions.stop or self._next == last:
                return action
            self._aim(self._next + 1)  # reached more closely than asked, or no way leads there
            caught = False

    def _step_towards(self, point: np.ndarray) -> int:
        """The action that leads to a way point; stop when it is reached, or no way leads there."""
        action: Any = self._follower.get_next_action(point)
        return int(action)


class Pursuer(Walker):
    """Walks straight on until the way lies well off its heading, and stops rather than turn for a last step.

    Habitat's follower turns wherever a turn gains a centimetre, and a walk with many turns is hard to imitate. Where
    something is in the way, the follower decides up to its next step forward.
    """

    _led = False  # whether the follower decides

    def _step_towards(self, point: np.ndarray) -> int:
        state = self._sim.get_agent_state()
        way = self._sim.get_straight_shortest_path_points(state.position, point)
        if len(way) < 2:
            return HabitatSimActions.stop
        step, turn = self._sim.habitat_config.forward_step_size, math.radians(self._sim.habitat_config.turn_angle)
        corner = next((p for p in way[1:] if _flat(p - state.position) >= REACHED), way[-1])
        off = _bearing(state, corner)
        must_turn = abs(off) > SLACK * turn
        if self._next == len(self._points) - 1:
            left = self._distance(state.position, point)
            if left < step * (CLOSE_ENOUGH if must_turn else CLOSE):
                return HabitatSimActions.stop
        self._led = self._led or (not must_turn and not self._is_free(state, step))
        if self._led:
            action = super()._step_towards(point)
            self._led = action in (HabitatSimActions.turn_left, HabitatSimActions.turn_right)
            return action
        if must_turn:
            return HabitatSimActions.turn_left if off > 0 else HabitatSimActions.turn_right
        return HabitatSimActions.move_forward

    def _is_free(self, state: Any, step: float) -> bool:
        """Whether at least half of a step forward is possible."""
        ahead = quaternion_rotate_vector(state.rotation, np.array([0.0, 0.0, -step]))
        there = self._sim.step_filter(state.position, (state.position + ahead).astype(np.float32))
        return _flat(np.asarray(there) - state.position) > step / 2


def _flat(way: np.ndarray) -> float:
    return math.hypot(float(way[0]), float(way[2]))


def _bearing(state: Any, point: np.ndarray) -> float:
    """Angle in radians from where the agent looks to a point, positive to the left."""
    way = quaternion_rotate_vector(state.rotation.inverse(), np.asarray(point - state.position, dtype=np.float64))
    return math.atan2(-way[0], -way[2])


store_lab_sensor(EXPERT, ExpertConfig)
store_lab_sensor(PLAN, PlanConfig)
