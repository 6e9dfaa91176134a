"""An expert that walks a reference path with the agent's own steps and turns."""

import math
from dataclasses import dataclass

import numpy as np

from habitat_embedded_sim.navmesh import NavGrid

STOP, FORWARD, LEFT, RIGHT = 0, 1, 2, 3  # as in the ground truth of R2R-CE
_REACHED = 0.2  # a corner of the path this near is passed by default, metres
_CLOSE = 0.6  # in forward steps: nearer to the goal, another step would lead away from it
_CLOSE_ENOUGH = 1.6  # in forward steps: so near the goal, the expert stops rather than turn again
_SLACK = (
    0.8,
    0.55,
)  # share of a turn by which the heading may be off before the expert turns: calm, then careful
_MAX_ACTIONS = 200


@dataclass(frozen=True)
class Walk:
    """What the expert did: T actions (the last is STOP) and, before each of them, position and heading.

    positions [T, 3] in metres; headings [T] in radians, 0 looks to −z, growing to the left (counter-clockwise from
    above), as habitat's rotation about y does.
    """

    actions: list[int]
    positions: np.ndarray
    headings: np.ndarray

    @property
    def locations(self) -> list[list[float]]:
        """The start and the position after every forward step."""
        moved = [p for p, action in zip(self.positions[1:], self.actions[:-1], strict=True) if action == FORWARD]
        return [[float(v) for v in p] for p in [self.positions[0], *moved]]


def wrap(angle: float) -> float:
    """The angle in −π … π."""
    return math.atan2(math.sin(angle), math.cos(angle))


def direction(heading: float) -> tuple[float, float]:
    """Unit vector (x, z) of a heading."""
    return -math.sin(heading), -math.cos(heading)


def bearing(heading: float, dx: float, dz: float) -> float:
    """Angle from the heading to the direction (dx, dz), positive to the left."""
    return wrap(math.atan2(-dx, -dz) - heading)


def walk(
    grid: NavGrid,
    points: np.ndarray,
    heading: float,
    forward_step: float,
    turn_angle: float,
    reached: float = _REACHED,
) -> Walk | None:
    """Follow the path points [N, 3] (metres) from its start; None when something is in the way.

    `turn_angle` in degrees; a corner of the path that is `reached` metres away is passed.
    Ends within _CLOSE_ENOUGH forward steps of the last point. Few turns are preferred to the straightest line, because
    a walker that corrects its heading at every step is hard to imitate.
    """
    for slack in _SLACK:
        steps = _walk(grid, points, heading, forward_step, math.radians(turn_angle), slack, reached)
        if steps is not None:
            return steps
    return None


def _walk(
    grid: NavGrid, points: np.ndarray, heading: float, forward_step: float, turn: float, slack: float, reached: float
) -> Walk | None:
    position = np.asarray(points[0], dtype=np.float32)
    actions: list[int] = []
    positions, headings = [position], [heading]
    target, last = 1, len(points) - 1
    while len(actions) < _MAX_ACTIONS:
        while target < last and _flat(points[target] - position) < reached:
            target += 1
        way = points[target] - position
        error = bearing(heading, float(way[0]), float(way[2]))
        must_turn = abs(error) > turn * slack
        if target == last and _flat(way) < (_CLOSE_ENOUGH if must_turn else _CLOSE) * forward_step:
            actions.append(STOP)
            return Walk(actions, np.array(positions), np.array(headings))
        if must_turn:
            actions.append(LEFT if error > 0 else RIGHT)
            heading = wrap(heading + (turn if error > 0 else -turn))
        else:
            dx, dz = direction(heading)
            wanted = position + np.array([dx * forward_step, 0.0, dz * forward_step], dtype=np.float32)
            position = grid.step(position, wanted, slide=True)
            if _flat(position - wanted) > 1e-3:
                return None
            actions.append(FORWARD)
        positions.append(position)
        headings.append(heading)
    return None


def _flat(way: np.ndarray) -> float:
    return math.hypot(float(way[0]), float(way[2]))
