"""Routes through a house: where an episode starts and ends, the way between, and what the walker meets.

A route is accepted only if the expert can walk it without touching anything and sees the goal's landmark before it
stops, so that what the instruction says can be seen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from habitat_embedded_sim.houses.expert import FORWARD, LEFT, RIGHT, Walk, bearing, direction, walk
from habitat_embedded_sim.houses.furnish import Piece
from habitat_embedded_sim.houses.plan import Door
from habitat_embedded_sim.houses.world import World

DOOR_SHARES = (0.28, 0.3, 0.24, 0.18)  # default draws that cross 0, 1, 2, 3 doors (0 and 3 fail more often)
SHORTEST, LONGEST = 3.0, 11.0  # metres
_STOP_GAP = (0.55, 0.8)  # distance of the goal from its landmark
_GOAL_PIXELS = 24  # of SIGHT's 1024, in the last frame and in one just before
_AHEAD = math.radians(35)  # the landmark is at most so far from the heading when the walker stops
_PASS_PIXELS = 10
_PASS_GAP = 1.5  # farther landmarks are not "passed", metres


@dataclass(frozen=True)
class Crossing:
    """A door that the walker goes through: the first step at which it is in room `into`."""

    door: Door
    came_from: int
    into: int
    step: int


@dataclass(frozen=True)
class Passing:
    """A landmark that the walker passes nearest at `step`; `side` is "left" or "right"."""

    piece: Piece
    step: int
    side: str


@dataclass(frozen=True)
class Route:
    """A walkable episode. `points` [N, 3] is the reference path, `geodesic` its shortest length in metres."""

    points: np.ndarray
    heading: float
    geodesic: float
    goal: Piece
    walk: Walk
    crossings: list[Crossing]
    passings: list[Passing]


@dataclass(frozen=True)
class Goal:
    """A landmark to stop at and free points [K, 3] to stop on."""

    piece: Piece
    semantic_id: int
    places: np.ndarray


def draw_goal(rng: np.random.Generator, world: World, used: dict[str, int]) -> Goal | None:
    """Draw a landmark to stop at; `used` counts those of the house so far, rarer ones come first."""
    rarity = np.array([0.25 ** used.get(piece.name, 0) for piece in world.pieces])
    index = int(rng.choice(len(world.pieces), p=rarity / rarity.sum()))
    piece = world.pieces[index]
    places = places_before(rng, world, piece)
    return Goal(piece, world.piece_ids[index], places) if len(places) else None


def draw_route(
    rng: np.random.Generator,
    world: World,
    goal: Goal,
    forward_step: float,
    turn_angle: float,
    door_shares: Sequence[float] = DOOR_SHARES,
    start_turn: float = math.pi,
) -> Route | None:
    """One try to draw a route to the goal; None when it would not make a good episode.

    `start_turn` is the largest angle (radians) between the heading at the start and the first leg.
    """
    doors = int(rng.choice(len(door_shares), p=np.array(door_shares) / sum(door_shares)))
    start = _draw_start(rng, world, goal, doors)
    if start is None:
        return None
    length, corners, _ = world.wide.find_path(start, goal.places)
    if not SHORTEST <= length <= LONGEST:
        return None
    points = np.round(corners.astype(np.float64), 3)
    first = points[1] - points[0]
    heading = math.atan2(-first[0], -first[2]) + _draw_turn(rng, start_turn)
    heading = round(math.atan2(math.sin(heading), math.cos(heading)), 6)
    steps = walk(world.grid, points, heading, forward_step, turn_angle)
    if steps is None or not sees_goal(world, steps, goal):
        return None
    crossings = _find_crossings(world, steps)
    if crossings is None or len(crossings) != doors:
        return None
    geodesic, _, _ = world.grid.find_path(points[0], points[-1:])
    if not SHORTEST <= geodesic <= LONGEST:
        return None
    passings = _find_passings(world, steps, goal.piece)
    return Route(points, heading, geodesic, goal.piece, steps, crossings, passings)


def _draw_turn(rng: np.random.Generator, most: float) -> float:
    """How far the start heading is off the first leg: half of the time the way lies ahead (radians)."""
    spread = min(math.radians(40), most) if rng.random() < 0.5 else most
    return float(rng.uniform(-spread, spread))


def _draw_start(rng: np.random.Generator, world: World, goal: Goal, doors: int) -> np.ndarray | None:
    """A free point, not too near, in a room that lies `doors` doors from the goal's."""
    away = {goal.piece.room: 0}
    queue = [goal.piece.room]
    for room in queue:
        for door in world.plan.doors_of(room):
            other = door.rooms[0] if door.rooms[1] == room else door.rooms[1]
            if other not in away:
                away[other] = away[room] + 1
                queue.append(other)
    rooms = sorted(room for room, count in away.items() if count == doors)
    if not rooms:
        return None
    area = world.plan.rooms[int(rng.choice(rooms))].inside.grown(-0.4)
    for _ in range(15):
        x, z = round(float(rng.uniform(area.x0, area.x1)), 3), round(float(rng.uniform(area.z0, area.z1)), 3)
        gaps = np.hypot(goal.places[:, 0] - x, goal.places[:, 2] - z)
        if gaps.min() > SHORTEST - 0.4 * (doors > 0) and world.on_floor(x, z):
            return np.array([x, 0.0, z])
    return None


def places_before(rng: np.random.Generator, world: World, piece: Piece, front_only: bool = False) -> np.ndarray:
    """Free points [K, 3] in the piece's room, one stop gap away from it; without `front_only` so half of the time."""
    gap = float(rng.uniform(*_STOP_GAP))
    front_only = front_only or bool(rng.random() < 0.6)
    r, places = piece.footprint, []
    for share in (0.2, 0.5, 0.8):
        x, z = r.x0 + share * r.width, r.z0 + share * r.depth
        places += [
            ((0, 1), x, r.z1 + gap),
            ((1, 0), r.x1 + gap, z),
            ((0, -1), x, r.z0 - gap),
            ((-1, 0), r.x0 - gap, z),
        ]
    room = world.plan.rooms[piece.room].inside
    good = [
        (x, 0.0, z)
        for side, x, z in places
        if (side == piece.front or not front_only) and room.contains(x, z) and world.on_floor(x, z)
    ]
    return np.round(np.array(good).reshape(-1, 3), 3)


def _find_crossings(world: World, steps: Walk) -> list[Crossing] | None:
    """The doors in the order in which the walker goes through them; None if it comes back into a room."""
    rooms = [world.plan.room_at(float(p[0]), float(p[2])) for p in steps.positions]
    crossings, visited = [], {rooms[0]}
    for step in range(1, len(rooms)):
        a, b = rooms[step - 1], rooms[step]
        if a == b:
            continue
        between = [door for door in world.plan.doors if set(door.rooms) == {a, b}]
        if b in visited or not between:
            return None
        visited.add(b)
        x, z = float(steps.positions[step][0]), float(steps.positions[step][2])
        door = min(between, key=lambda d: math.hypot(d.point[0] - x, d.point[1] - z))
        crossings.append(Crossing(door, a, b, step))
    return crossings


def pixels(world: World, steps: Walk, step: int, semantic_id: int) -> int:
    """Pixels of the object in the SIGHT frame of one step."""
    x, y, z = (float(v) for v in steps.positions[step])
    return world.seen(x, y, z, float(steps.headings[step])).get(semantic_id, 0)


def sees_goal(world: World, steps: Walk, goal: Goal) -> bool:
    """Whether the landmark lies ahead when the walker stops, shows then, and showed in a frame just before."""
    last = len(steps.actions) - 1
    x, _, z = (float(v) for v in steps.positions[last])
    r = goal.piece.footprint
    cx, cz = (r.x0 + r.x1 + min(max(x, r.x0), r.x1)) / 3, (r.z0 + r.z1 + min(max(z, r.z0), r.z1)) / 3
    if abs(bearing(float(steps.headings[last]), cx - x, cz - z)) > _AHEAD:
        return False
    return pixels(world, steps, last, goal.semantic_id) >= _GOAL_PIXELS and any(
        pixels(world, steps, step, goal.semantic_id) >= _GOAL_PIXELS for step in range(max(last - 4, 0), last)
    )


def _find_passings(world: World, steps: Walk, goal: Piece) -> list[Passing]:
    """Landmarks beside the way that the walker saw before it passed them, in order."""
    found = []
    x, z = steps.positions[:, 0].astype(np.float64), steps.positions[:, 2].astype(np.float64)
    for piece, semantic_id in zip(world.pieces, world.piece_ids, strict=True):
        if piece is goal:
            continue
        r = piece.footprint
        gaps = np.hypot(np.maximum(np.maximum(r.x0 - x, 0), x - r.x1), np.maximum(np.maximum(r.z0 - z, 0), z - r.z1))
        step = int(np.argmin(gaps))
        if gaps[step] > _PASS_GAP or not 2 <= step < len(gaps) - 4:
            continue
        if world.plan.room_at(x[step], z[step]) != piece.room:
            continue
        cx, cz = r.centre
        angle = bearing(float(steps.headings[step]), cx - x[step], cz - z[step])
        if not math.radians(40) <= abs(angle) <= math.radians(140):
            continue
        if any(pixels(world, steps, k, semantic_id) >= _PASS_PIXELS for k in range(max(step - 8, 0), step)):
            found.append(Passing(piece, step, "left" if angle > 0 else "right"))
    return sorted(found, key=lambda passing: passing.step)


def first_turn(route: Route, turn_angle: float) -> float:
    """Degrees that the walker turns before its first step, positive to the left."""
    total = 0.0
    for action in route.walk.actions:
        if action not in (LEFT, RIGHT):
            break
        total += turn_angle if action == LEFT else -turn_angle
    return total


def door_bearing(route: Route, number: int, turned: bool) -> float:
    """Angle (radians, left positive) at which the door of crossing `number` appears.

    Seen from where the leg to it begins: from the last door, looking straight through it; at the start, where the
    walker looks, after its first turn if `turned` (the instruction has told it to turn).
    """
    actions, positions, headings = route.walk.actions, route.walk.positions, route.walk.headings
    crossing = route.crossings[number]
    if number:
        before = route.crossings[number - 1]
        position, heading = positions[before.step], _through(before, float(headings[before.step]))
    else:
        begin = actions.index(FORWARD) if turned else 0
        position, heading = positions[begin], float(headings[begin])
    x, z = crossing.door.point
    return bearing(heading, x - float(position[0]), z - float(position[2]))


def _through(crossing: Crossing, heading: float) -> float:
    """Heading at right angles to the crossed door, in the sense in which it was crossed (radians)."""
    dx, dz = direction(heading)
    if crossing.door.axis == "x":
        return math.atan2(-math.copysign(1.0, dx), 0.0)
    return math.atan2(0.0, -math.copysign(1.0, dz))
