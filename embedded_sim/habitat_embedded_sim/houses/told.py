"""Long ways with their words, if the words lead there: the writer's work, passed by the reader."""

import re

import numpy as np

from habitat_embedded_sim.houses.directions import ORDINALS, write_directions
from habitat_embedded_sim.houses.reader import is_clear, leads_to, read
from habitat_embedded_sim.houses.ways import Way, draw_way
from habitat_embedded_sim.houses.world import World

MOST_CLAUSES = 5
_NEAREST = 2.2  # metres from start to goal at least: who never moves fails
_SUCCESS = 2.0  # metres from the goal: what may count as success
_BY_CHANCE = 0.5  # a reader that forgets what it has passed succeeds at most so often


def draw_told_way(
    rng: np.random.Generator,
    world: World,
    clauses: int,
    forward_step: float,
    turn_angle: float,
    must_count: bool = False,
) -> tuple[Way, str, float] | None:
    """One try to draw a way, its words and the shortest distance to its goal (metres).

    None unless the reader follows the words to the goal, whichever way they can be understood, and one that forgets
    what it has passed fails at least every other time; with `must_count` as well unless one that takes the first, or
    the last, whatever number is asked for, fails.
    """
    way = draw_way(rng, world, clauses, forward_step, turn_angle)
    if way is None:
        return None
    text = write_directions(rng, world.plan, world.pieces, way)
    if text is None:
        return None
    (x, _, z), (goal_x, _, goal_z) = (tuple(float(v) for v in way.points[k]) for k in (0, -1))
    known = (world.plan, world.pieces, (x, z), way.heading)
    end = (way.legs[-1].room, (goal_x, goal_z))
    if not is_clear(read(text, *known), *end):
        return None
    if leads_to(read(text, *known, remembers=False), *end, within=_SUCCESS) > _BY_CHANCE:
        return None
    others = (with_number(text, nth) for nth in ("first", "last")) if must_count else ()
    if any(leads_to(read(other, *known), *end, within=_SUCCESS) for other in others):
        return None
    geodesic = world.grid.find_path(way.points[0], way.points[-1:])[0]
    return (way, text, geodesic) if geodesic >= _NEAREST else None


def with_number(text: str, nth: str) -> str:
    """The words with every number made `nth` ("first" … or "last")."""
    text = re.sub(r"[Ww]alk past \w+ \w+ and take the next", f"Take the {nth}", text)
    return re.sub(rf"the ({'|'.join(ORDINALS)}|last)\b", f"the {nth}", text)
