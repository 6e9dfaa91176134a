"""Long ways with their words, if the words lead there: the writer's work, passed by the reader."""

import numpy as np

from habitat_embedded_sim.houses.directions import write_directions
from habitat_embedded_sim.houses.reader import is_clear, leads_to, read
from habitat_embedded_sim.houses.ways import Way, draw_way
from habitat_embedded_sim.houses.world import World

MOST_CLAUSES = 5
_NEAREST = 2.2  # metres from start to goal at least: who never moves fails
_SUCCESS = 2.0  # metres from the goal: what may count as success
_BY_CHANCE = 0.5  # a reader that forgets what it has passed succeeds at most so often


def draw_told_way(
    rng: np.random.Generator, world: World, clauses: int, forward_step: float, turn_angle: float
) -> tuple[Way, str, float] | None:
    """One try to draw a way, its words and the shortest distance to its goal (metres).

    None unless the reader follows the words to the goal, whichever way they can be understood, and one that forgets
    what it has passed fails at least every other time.
    """
    way = draw_way(rng, world, clauses, forward_step, turn_angle)
    if way is None:
        return None
    text = write_directions(rng, world.plan, world.pieces, way)
    (x, _, z), (goal_x, _, goal_z) = (tuple(float(v) for v in way.points[k]) for k in (0, -1))
    known = (text, world.plan, world.pieces, (x, z), way.heading)
    end = (way.legs[-1].room, (goal_x, goal_z))
    if not is_clear(read(*known), *end):
        return None
    if leads_to(read(*known, remembers=False), *end, within=_SUCCESS) > _BY_CHANCE:
        return None
    geodesic = world.grid.find_path(way.points[0], way.points[-1:])[0]
    return (way, text, geodesic) if geodesic >= _NEAREST else None
