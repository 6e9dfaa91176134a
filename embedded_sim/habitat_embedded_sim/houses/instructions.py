"""The words: from what happens on a route to an instruction that a person can follow.

Clauses come in the order in which things happen: a first turn, doors and the rooms behind them, landmarks passed,
where to stop. Each style has its own phrases; the vocabulary is small.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

from habitat_embedded_sim.houses.furnish import Piece
from habitat_embedded_sim.houses.furniture import KINDS
from habitat_embedded_sim.houses.plan import Plan
from habitat_embedded_sim.houses.route import Crossing, Passing, Route, door_bearing, first_turn
from habitat_embedded_sim.houses.style import ROOM_KINDS, STYLES

_ROUND = ("lamp", "plant", "table", "chair")  # kinds without a clear front
_TURN, _TURN_AROUND = 45, 135  # degrees of a first turn that is spoken of
_AHEAD = 25  # degrees off the heading within which a door is "ahead"
_MAX_CLAUSES = 4  # more only where there are more doors


@dataclass(frozen=True)
class Phrases:
    """Templates of one style, by clause."""

    turn: tuple[str, ...]
    around: tuple[str, ...]
    door: tuple[str, ...]
    door_ahead: tuple[str, ...]
    passing: tuple[str, ...]
    stop: tuple[str, ...]
    stop_same_room: tuple[str, ...]
    rooms: tuple[str, ...]
    front: tuple[str, ...]
    beside: tuple[str, ...]
    then: tuple[str, ...]


PHRASES = {
    "plain": Phrases(
        turn=("turn {side}",),
        around=("turn around",),
        door=("go through the door on your {side} into {room}",),
        door_ahead=("go through the door ahead into {room}",),
        passing=(),  # landmarks on the way go unmentioned
        stop=("stop at {thing}",),
        stop_same_room=("stop at {thing}",),
        rooms=("the {colour} room",),
        front=("",),
        beside=("",),
        then=("",),
    ),
    "modern": Phrases(
        turn=("turn {side}", "turn to your {side}"),
        around=("turn around", "turn all the way around"),
        door=(
            "go through the door on your {side} into {room}",
            "walk through the door on your {side} into {room}",
            "take the door on the {side} into {room}",
            "leave {here} through the door on the {side} and enter {room}",
        ),
        door_ahead=(
            "go through the door ahead into {room}",
            "walk through the door into {room}",
            "walk straight through the door into {room}",
            "leave {here} through the door and enter {room}",
        ),
        passing=(
            "walk past {thing} on your {side}",
            "pass {thing} on your {side}",
            "go past {thing} on the {side}",
        ),
        stop=("stop {where} {thing}", "walk to {thing} and stop {where} it", "wait {where} {thing}"),
        stop_same_room=("walk to {thing} and stop {where} it", "go to {thing} and stop {where} it"),
        rooms=("the {colour} room", "the {colour} {kind}", "the {kind} with {colour} walls"),
        front=("in front of",),
        beside=("next to", "near"),
        then=("then ", "", ""),
    ),
    "rustic": Phrases(
        turn=("make a {side} turn", "face {side}"),
        around=("face the other way", "turn back the other way"),
        door=(
            "step through the doorway on the {side} to reach {room}",
            "enter {room} by the doorway on your {side}",
            "use the {side} doorway to get into {room}",
        ),
        door_ahead=(
            "step straight through the doorway to reach {room}",
            "enter {room} by the doorway ahead of you",
            "use the doorway in front to get into {room}",
        ),
        passing=("move along with {thing} on your {side}", "continue beyond {thing} to your {side}"),
        stop=("halt {where} {thing}", "move up to {thing} and halt {where} it", "end {where} {thing}"),
        stop_same_room=("move up to {thing} and halt {where} it", "approach {thing} and end {where} it"),
        rooms=("the room with {colour} walls", "the {colour} walled {kind}", "the {colour} {kind}"),
        front=("in front of", "facing"),
        beside=("beside", "close to"),
        then=("next ", "after that ", "", ""),
    ),
}
PHRASES["plain_rustic"] = PHRASES["plain"]


def write_instruction(rng: np.random.Generator, plan: Plan, route: Route, turn_angle: float) -> tuple[str, int]:
    """The instruction of the route and its number of clauses."""
    phrases = PHRASES[plan.style.name]
    clauses = []
    turned = first_turn(route, turn_angle)
    most = _MAX_CLAUSES - 1 - (abs(turned) >= _TURN) if phrases.passing else 0
    events = _choose_events(rng, route, most)
    if abs(turned) >= _TURN_AROUND:
        clauses.append(_pick(rng, phrases.around))
    elif abs(turned) >= _TURN:
        clauses.append(_pick(rng, phrases.turn).format(side=_side(turned)))
    for event in events:
        if isinstance(event, Passing):
            text = _pick(rng, phrases.passing).format(thing=_thing(event.piece), side=event.side)
        else:
            text = _door_clause(rng, plan, route, event, phrases, abs(turned) >= _TURN)
        clauses.append(text)
    clauses.append(_stop_clause(rng, route, phrases))
    return _join(rng, clauses, phrases), len(clauses)


def words_of(text: str) -> list[str]:
    """The words of an instruction, lower case, and its punctuation marks."""
    return re.findall(r"[a-z]+|[.,]", text.lower())


def vocabulary() -> list[str]:
    """Every word that any style can use, sorted."""
    words = {".", ",", "and", "then", "the", "it"}
    for style in STYLES.values():
        names = [*style.wall_colours, *style.item_colours, *KINDS, *ROOM_KINDS, "left", "right"]
        for value in vars(PHRASES[style.name]).values():
            names += [re.sub(r"\{\w+\}", " ", template) for template in value]
        words.update(word for name in names for word in words_of(name))
    return sorted(words)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _side(angle: float) -> str:
    return "left" if angle > 0 else "right"


def _thing(piece: Piece) -> str:
    return f"the {piece.name}"


def _room(rng: np.random.Generator, plan: Plan, index: int, phrases: Phrases) -> str:
    room = plan.rooms[index]
    return _pick(rng, phrases.rooms).format(colour=room.colour, kind=room.kind)


def _choose_events(rng: np.random.Generator, route: Route, most: int) -> list[Crossing | Passing]:
    """All doors and, up to `most` events, some landmarks passed, at most one a leg; in order."""
    free = most - len(route.crossings)
    ends = [crossing.step for crossing in route.crossings]
    chosen: dict[int, Passing] = {}
    for index in rng.permutation(len(route.passings)):
        passing = route.passings[int(index)]
        leg = sum(end <= passing.step for end in ends)
        if leg not in chosen and len(chosen) < free and rng.random() < 0.8:
            chosen[leg] = passing
    return sorted([*route.crossings, *chosen.values()], key=lambda event: event.step)


def _door_clause(
    rng: np.random.Generator, plan: Plan, route: Route, crossing: Crossing, phrases: Phrases, turned: bool
) -> str:
    angle = math.degrees(door_bearing(route, route.crossings.index(crossing), turned))
    ahead = abs(angle) < _AHEAD or abs(angle) > 180 - _AHEAD  # behind: no side would be clear
    room, here = (_room(rng, plan, index, phrases) for index in (crossing.into, crossing.came_from))
    return _pick(rng, phrases.door_ahead if ahead else phrases.door).format(side=_side(angle), room=room, here=here)


def _stop_clause(rng: np.random.Generator, route: Route, phrases: Phrases) -> str:
    x, _, z = (float(v) for v in route.points[-1])
    r, (fx, fz) = route.goal.footprint, route.goal.front
    before = (x > r.x1 and fx > 0) or (x < r.x0 and fx < 0) or (z > r.z1 and fz > 0) or (z < r.z0 and fz < 0)
    where = _pick(rng, phrases.front if before and route.goal.kind not in _ROUND else phrases.beside)
    templates = phrases.stop if route.crossings else phrases.stop_same_room
    return _pick(rng, templates).format(where=where, thing=_thing(route.goal))


def _join(rng: np.random.Generator, clauses: list[str], phrases: Phrases) -> str:
    """Sentences of one or two clauses."""
    sentences: list[str] = []
    while clauses:
        take = 2 if len(clauses) > 1 and rng.random() < 0.6 else 1
        part, clauses = clauses[:take], clauses[take:]
        opening = _pick(rng, phrases.then) if sentences else ""
        glue = ", then " if any(" and " in clause for clause in part) else " and "
        text = opening + glue.join(part)
        sentences.append(text[0].upper() + text[1:] + ".")
    return " ".join(sentences)
