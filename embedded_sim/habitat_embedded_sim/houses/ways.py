"""Long ways from room to room through a house with a corridor.

A way is drawn as legs, one for each room that it leads through, and walked by the expert. The words come after it
(`directions.py`), and whether they lead there is for the reader to say (`reader.py`).
"""

import math
from dataclasses import dataclass

import numpy as np

from habitat_embedded_sim.houses.corridor import CORRIDOR
from habitat_embedded_sim.houses.expert import Walk, walk
from habitat_embedded_sim.houses.furnish import Piece
from habitat_embedded_sim.houses.plan import Door, Plan
from habitat_embedded_sim.houses.route import Goal, pixels, places_before, sees_goal
from habitat_embedded_sim.houses.world import World

LONGEST = 60  # actions
_SHORTEST = 10  # actions for each clause, up to three
_ROOMS = (3, 5)  # different ones; fewer where there are fewer clauses
_FROM_ROOM = 0.65  # how many ways begin in a room; the others begin in the corridor
_WRONG_WAY = 0.3  # how many of the walkers in the corridor look the other way at first
_RETURN = 0.7  # how often a walker that can go back to the room where it began does
_THROUGH = 0.7  # metres before and behind a door at which the way is at right angles to it
_BEFORE = 0.8  # metres before a thing in the corridor, where the walker stops and still sees it
_AWAY = 2.6  # metres from the last thing, where a way ends in the room where it begins
_TOO_NEAR = 1.5  # metres along the corridor: nearer things and doors are not "the first on the left"
_PIXELS = 16  # of SIGHT's 1024: a thing that is gone up to shows so large once


@dataclass(frozen=True)
class Leg:
    """What a walker does in one room: it goes up to `piece`, if any, and leaves by `door`; or it stops (None)."""

    room: int
    door: Door | None
    piece: Piece | None


@dataclass(frozen=True)
class Way:
    """A walkable episode: `points` [N, 3] is the reference path; leg k is walked in the steps `spans[k]` (both in)."""

    points: np.ndarray
    heading: float
    legs: list[Leg]
    walk: Walk
    spans: list[tuple[int, int]]


def along_axis(plan: Plan) -> int:
    """0 if the corridor runs along x, 1 if along z: index into (x, z)."""
    rect = plan.rooms[CORRIDOR].rect
    return 0 if rect.width > rect.depth else 1


def draw_way(
    rng: np.random.Generator, world: World, clauses: int, forward_step: float, turn_angle: float
) -> Way | None:
    """One try to draw a way that takes `clauses` (1 … 5) clauses to tell; None when it would not make a good one."""
    legs = _draw_legs(rng, world.plan, world.pieces, clauses)
    if legs is None:
        return None
    start = _draw_start(rng, world, legs)
    path = _path(rng, world, start, legs) if start is not None else None
    if path is None:
        return None
    points, goal = path
    heading = _draw_heading(rng, world.plan, legs[0], points, math.radians(turn_angle))
    steps = walk(world.grid, points, heading, forward_step, turn_angle, reached=0.7 * forward_step)
    if steps is None or not _SHORTEST * min(clauses, 3) <= len(steps.actions) <= LONGEST:
        return None
    spans = _spans(world.plan, legs, steps)
    if spans is None or not _shows(world, steps, legs, spans, goal):
        return None
    return Way(points, heading, legs, steps, spans)


def _draw_legs(rng: np.random.Generator, plan: Plan, pieces: list[Piece], clauses: int) -> list[Leg] | None:
    """Rooms in turn. Leaving the corridor, leaving a room and stopping take a clause each."""
    here = int(rng.integers(1, len(plan.rooms))) if clauses > 1 and rng.random() < _FROM_ROOM else CORRIDOR
    legs: list[Leg] = []
    came: Door | None = None
    for left in range(clauses, 1, -1):
        door = _draw_door(rng, plan, here, came, {leg.room for leg in legs})
        if door is None:
            return None
        back = door is came and here != CORRIDOR
        legs.append(Leg(here, door, _draw_piece(rng, pieces, here) if back else None))
        if back and legs[-1].piece is None:
            return None
        begun = legs[0]
        can_return = back and begun.room not in (CORRIDOR, here) and (left == 2 or len(plan.doors_of(begun.room)) > 1)
        if can_return and begun.door and rng.random() < _RETURN:
            door = begun.door
            legs.append(Leg(CORRIDOR, door, None))
        came, here = door, _beyond(door, legs[-1].room)
    piece = _draw_piece(rng, pieces, here)
    legs.append(Leg(here, None, piece))
    rooms = len({leg.room for leg in legs})
    return legs if piece and min(clauses, _ROOMS[0]) <= rooms <= _ROOMS[1] else None


def _draw_door(rng: np.random.Generator, plan: Plan, here: int, came: Door | None, been: set[int]) -> Door | None:
    """Out of the first room, or one entered sideways, to the corridor; else into a new room or out as one came in."""
    doors = plan.doors_of(here)
    if here != CORRIDOR and (came is None or CORRIDOR not in came.rooms):
        return next((door for door in doors if CORRIDOR in door.rooms), None)
    new = [door for door in doors if _beyond(door, here) not in been or (door is came and here != CORRIDOR)]
    return new[int(rng.integers(len(new)))] if new else None


def _draw_piece(rng: np.random.Generator, pieces: list[Piece], room: int) -> Piece | None:
    here = [piece for piece in pieces if piece.room == room]
    return here[int(rng.integers(len(here)))] if here else None


def _beyond(door: Door, room: int) -> int:
    return door.rooms[1] if door.rooms[0] == room else door.rooms[0]


def _draw_start(rng: np.random.Generator, world: World, legs: list[Leg]) -> np.ndarray | None:
    """A free point in the first room; in the corridor on its middle line, in the last room away from the goal."""
    room, last = legs[0].room, legs[-1]
    inside = world.plan.rooms[room].inside.grown(-0.5)
    for _ in range(15):
        place = [float(rng.uniform(inside.x0, inside.x1)), float(rng.uniform(inside.z0, inside.z1))]
        if room == CORRIDOR:
            across = 1 - along_axis(world.plan)
            place[across] = inside.centre[across]
        x, z = (round(v, 3) for v in place)
        if last.room == room and last.piece and last.piece.footprint.distance(x, z) < _AWAY:
            continue
        if world.on_floor(x, z):
            return np.array([x, 0.0, z])
    return None


def _path(
    rng: np.random.Generator, world: World, start: np.ndarray, legs: list[Leg]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Corners [N, 3] of a way through all legs, and the goal [3] at its end; None where something is in the way."""
    corners = [start]
    for number, leg in enumerate(legs):
        stops: list[np.ndarray] = []
        if leg.piece:
            place = _place_before(rng, world, leg.piece, corners[-1])
            if place is None:
                return None
            stops.append(place)
        if leg.door:
            if leg.room == CORRIDOR and number == 0 and _along(world.plan, leg.door.point, corners[-1]) < _TOO_NEAR:
                return None
            stops += [_beside(world.plan, leg.door, room) for room in (leg.room, _beyond(leg.door, leg.room))]
        for stop in stops:
            length, path, _ = world.wide.find_path(corners[-1], stop[None])
            if not math.isfinite(length):
                return None
            corners += list(path[1:].astype(np.float64))
    return np.round(np.array(corners), 3), corners[-1]


def _along(plan: Plan, point: tuple[float, float], place: np.ndarray) -> float:
    """Metres between the two along the corridor."""
    axis = along_axis(plan)
    return abs(point[axis] - float(place[2 * axis]))


def _beside(plan: Plan, door: Door, room: int) -> np.ndarray:
    """The point [3] straight before the door in the room; in the corridor on its middle line."""
    (x, z), rect = door.point, plan.rooms[room].rect
    gap = min(rect.width, rect.depth) / 2 if room == CORRIDOR else _THROUGH
    if door.axis == "x":
        x += math.copysign(gap, rect.centre[0] - x)
    else:
        z += math.copysign(gap, rect.centre[1] - z)
    return np.array([x, 0.0, z])


def _place_before(rng: np.random.Generator, world: World, piece: Piece, place: np.ndarray) -> np.ndarray | None:
    """Where a walker from `place` stops at the piece: in the corridor a little before it, else in front of it."""
    if piece.room != CORRIDOR:
        places = places_before(rng, world, piece, front_only=True)
        return places[int(rng.integers(len(places)))] if len(places) else None
    axis, middle = along_axis(world.plan), list(world.plan.rooms[CORRIDOR].rect.centre)
    if _along(world.plan, piece.footprint.centre, place) < _TOO_NEAR:
        return None
    centre = piece.footprint.centre[axis]
    middle[axis] = centre - math.copysign(_BEFORE, centre - float(place[2 * axis]))
    return np.array([middle[0], 0.0, middle[1]])


def _draw_heading(rng: np.random.Generator, plan: Plan, leg: Leg, points: np.ndarray, turn: float) -> float:
    """A heading that is a multiple of the turn (radians), so that corridors can be walked straight."""
    way = points[1] - points[0]
    heading = math.atan2(-way[0], -way[2])
    if leg.room == CORRIDOR:
        heading = round(heading / (math.pi / 2)) * math.pi / 2 + (math.pi if rng.random() < _WRONG_WAY else 0)
    else:
        heading = (round(heading / turn) + int(rng.integers(-3, 4))) * turn
    return round(math.atan2(math.sin(heading), math.cos(heading)), 6)


def _spans(plan: Plan, legs: list[Leg], steps: Walk) -> list[tuple[int, int]] | None:
    """First and last step of every leg; None if the walk comes through other rooms."""
    rooms = [plan.room_at(float(p[0]), float(p[2])) for p in steps.positions]
    starts = [0, *(k for k in range(1, len(rooms)) if rooms[k] != rooms[k - 1])]
    if [rooms[k] for k in starts] != [leg.room for leg in legs]:
        return None
    return list(zip(starts, [*(k - 1 for k in starts[1:]), len(rooms) - 1], strict=True))


def _shows(world: World, steps: Walk, legs: list[Leg], spans: list[tuple[int, int]], goal: np.ndarray) -> bool:
    """Whether the walker sees every thing that it goes up to, and the last one when it stops."""
    ids = dict(zip(map(id, world.pieces), world.piece_ids, strict=True))
    for leg, (first, last) in zip(legs, spans, strict=True):
        if not leg.piece:
            continue
        if leg.door is None and leg.room != CORRIDOR:
            return sees_goal(world, steps, Goal(leg.piece, ids[id(leg.piece)], goal[None]))
        begin = first if leg.door else max(first, last - 3)
        if all(pixels(world, steps, k, ids[id(leg.piece)]) < _PIXELS for k in range(begin, last + 1)):
            return False
    return True
