"""The words of a long way, made from what its walker passes.

One sentence for each clause. Doors and things are counted along the walk, among those on the same side.
"""

import functools
import math
import re

import numpy as np

from habitat_embedded_sim.houses.corridor import CORRIDOR
from habitat_embedded_sim.houses.expert import bearing
from habitat_embedded_sim.houses.furnish import Piece
from habitat_embedded_sim.houses.furniture import KINDS
from habitat_embedded_sim.houses.instructions import words_of
from habitat_embedded_sim.houses.plan import Door, Plan
from habitat_embedded_sim.houses.style import STYLES
from habitat_embedded_sim.houses.ways import Way, along_axis

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
NUMBERS = ("one", "two", "three", "four", "five", "six")
_ACROSS = 0.8  # metres along the corridor within which a door is straight across
_PAST = 0.35  # how often a door is told by the things before it, where that can be
_LAST = 0.3  # how often the last door is called so

DOOR = (
    "take the {nth} door on your {side}",
    "go through the {nth} door on the {side}",
    "go into the {nth} room on your {side}",
)
PAST = ("walk past {number} {kind} and take the next door on your {side}",)
OPPOSITE = ("cross the corridor and go through the door opposite",)
LEAVE = ("leave the room", "go out of the room")
OUT = ("go out into the corridor",)
SIDE_DOOR = ("go through the door on your {side} into the next room",)
OTHER = ("leave it by the other door",)
BACK = (
    "go up to {thing}, turn around and leave by the door you came in by",
    "walk up to {thing}, then go back out the way you came",
)
RETURN = ("go up to {thing}, then go back to the room where you began",)
STOP = ("stop at {thing}", "wait at {thing}")
STOP_IN_ROW = ("stop at the {nth} {kind} on your {side}", "wait at the {nth} {kind} on the {side}")
TURN = ("turn {side}",)
ALL = (*DOOR, *PAST, *OPPOSITE, *LEAVE, *OUT, *SIDE_DOOR, *OTHER, *BACK, *RETURN, *STOP, *STOP_IN_ROW, *TURN)


def write_directions(rng: np.random.Generator, plan: Plan, pieces: list[Piece], way: Way) -> str | None:
    """Words for the way, one sentence a clause; None where it would have to count farther than there are words."""
    sentences: list[str] = []
    for number, leg in enumerate(way.legs):
        if number and returns(way, number - 1):
            continue  # the way back to the first room has been told
        if leg.room == CORRIDOR:
            text = _in_corridor(rng, plan, pieces, way, number)
            if text is None:
                return None
            opening = "turn around, then " if not number and _turn(plan, way, 0) else ""
            sentences.append(opening + text)
            continue
        text = _in_room(rng, plan, way, number)
        out = leg.door is not None and CORRIDOR in leg.door.rooms and not returns(way, number)
        side = _turn(plan, way, number + 1) if out else ""
        glue = ", then " if " and " in text or "," in text else " and "
        sentences.append(text + (glue + _pick(rng, TURN).format(side=side) if side else ""))
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in sentences)


def returns(way: Way, number: int) -> bool:
    """Whether the walker goes back from leg `number` to the room where it began."""
    legs = way.legs
    return legs[number].piece is not None and number + 2 < len(legs) and legs[number + 2].room == legs[0].room


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _thing(piece: Piece) -> str:
    return f"the {piece.name}"


def _places(way: Way, number: int, axis: int) -> np.ndarray:
    """Coordinates along the corridor [K] of the walker in leg `number`."""
    first, last = way.spans[number]
    return way.walk.positions[first : last + 1, 2 * axis].astype(np.float64)


def _course(plan: Plan, way: Way, number: int) -> float:
    """Heading (radians) in which the walker goes along the corridor in leg `number`."""
    axis = along_axis(plan)
    places = _places(way, number, axis)
    step = float(places[-1] - places[0])
    return math.atan2(-step, 0.0) if axis == 0 else math.atan2(0.0, -step)


def _turn(plan: Plan, way: Way, number: int) -> str:
    """How the walker turns to go along the corridor in leg `number`; "" where it goes straight across it."""
    axis, leg = along_axis(plan), way.legs[number]
    if number and leg.door and abs(way.legs[number - 1].door.point[axis] - leg.door.point[axis]) < _ACROSS:  # type: ignore[union-attr]
        return ""
    before = _through(way.legs[number - 1].door, way, number) if number else way.heading
    course = _course(plan, way, number)
    angle = math.degrees(bearing(before, -math.sin(course), -math.cos(course)))
    if number == 0:
        return "around" if abs(angle) > 90 else ""
    return "left" if angle > 0 else "right"


def _through(door: Door | None, way: Way, number: int) -> float:
    """Heading at right angles to the door by which the walker comes into leg `number`."""
    assert door is not None
    first = way.spans[number][0]
    step = way.walk.positions[first] - way.walk.positions[first - 1]
    return math.atan2(-float(step[0]), 0.0) if door.axis == "x" else math.atan2(0.0, -float(step[2]))


def _side(heading: float, position: np.ndarray, point: tuple[float, float]) -> str:
    return "left" if bearing(heading, point[0] - float(position[0]), point[1] - float(position[2])) > 0 else "right"


def _in_room(rng: np.random.Generator, plan: Plan, way: Way, number: int) -> str:
    leg = way.legs[number]
    came = way.legs[number - 1].door if number else None
    if leg.door is None:
        return _pick(rng, STOP).format(thing=_thing(leg.piece))  # type: ignore[arg-type]  # a way ends at a thing
    if leg.piece:
        return _pick(rng, RETURN if returns(way, number) else BACK).format(thing=_thing(leg.piece))
    if came is None:
        return _pick(rng, LEAVE if len(plan.doors_of(leg.room)) == 1 else OUT)
    if CORRIDOR in leg.door.rooms:
        return _pick(rng, OUT)
    if number and leg.room == way.legs[0].room:
        return _pick(rng, OTHER)
    first = way.spans[number][0]
    side = _side(_through(came, way, number), way.walk.positions[first], leg.door.point)
    return _pick(rng, SIDE_DOOR).format(side=side)


def _in_corridor(rng: np.random.Generator, plan: Plan, pieces: list[Piece], way: Way, number: int) -> str | None:
    """Which door or thing, counted among those that the walk has passed on that side."""
    axis, leg = along_axis(plan), way.legs[number]
    places, course = _places(way, number, axis), _course(plan, way, number)
    ahead = -math.sin(course) if axis == 0 else -math.cos(course)  # +1: towards larger coordinates
    begin, end = ahead * float(places[0]), ahead * float(places[-1])
    position = np.insert(np.array(plan.rooms[CORRIDOR].rect.centre), 1, 0.0)  # on the middle line: sides are walls
    came = way.legs[number - 1].door if number else None
    row = [p for p in pieces if p.room == CORRIDOR]
    if leg.door is None:
        assert leg.piece is not None
        side = _side(course, position, leg.piece.footprint.centre)
        same = [p for p in row if p.kind == leg.piece.kind and _side(course, position, p.footprint.centre) == side]
        before = sum(begin < ahead * p.footprint.centre[axis] < end for p in same)
        if before >= len(ORDINALS):
            return None
        nth = ORDINALS[before]
        return _pick(rng, STOP_IN_ROW).format(nth=nth, kind=leg.piece.kind, side=side)
    if came and abs(came.point[axis] - leg.door.point[axis]) < _ACROSS:
        return _pick(rng, OPPOSITE)
    side, target = _side(course, position, leg.door.point), ahead * leg.door.point[axis]
    doors = [d for d in plan.doors_of(CORRIDOR) if d is not came and abs(d.at - leg.door.at) < 0.1]
    passed = [ahead * d.point[axis] for d in doors if begin < ahead * d.point[axis] < target - 0.1]
    if rng.random() < _PAST:
        for kind in sorted({p.kind for p in row}):
            things = [ahead * p.footprint.centre[axis] for p in row if p.kind == kind]
            things = [place for place in things if begin < place < target]
            if 1 < len(things) <= len(NUMBERS) and not any(place > max(things) for place in passed):
                number_of = NUMBERS[len(things) - 1]
                return _pick(rng, PAST).format(number=number_of, kind=plural(kind), side=side)
    last = all(ahead * d.point[axis] <= target for d in doors)
    if last and len(passed) > 0 and rng.random() < _LAST:
        return _pick(rng, DOOR).format(nth="last", side=side)
    if len(passed) >= len(ORDINALS):
        return None
    nth = ORDINALS[len(passed)]
    return _pick(rng, DOOR).format(nth=nth, side=side)


@functools.cache
def vocabulary() -> list[str]:
    """Every word that these directions can use, with its punctuation marks, sorted."""
    colours = {colour for style in STYLES.values() for colour in style.item_colours}
    names = [*colours, *KINDS, *map(plural, KINDS), *ORDINALS, *NUMBERS, "last", "left", "right", "around"]
    names += [re.sub(r"\{\w+\}", " ", template) for template in ALL]
    return sorted({".", ",", "and", "then", "the"} | {word for name in names for word in words_of(name)})


def plural(kind: str) -> str:
    return kind + ("es" if kind.endswith("ch") else "s")
