"""A reader that follows the words of a long way on the floor plan alone: the oracle of the words.

It knows the plan with its furniture, where the walker stands and looks at the start, and the words; nothing of the way
that they were made of. Where words can be understood in several ways it follows them all.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from habitat_embedded_sim.houses.expert import direction
from habitat_embedded_sim.houses.furnish import Piece
from habitat_embedded_sim.houses.plan import Door, Plan

Point = tuple[float, float]

_NUMBERS = {word: k + 1 for k, word in enumerate(("one", "two", "three", "four", "five", "six"))}
_NTH = {word: k + 1 for k, word in enumerate(("first", "second", "third", "fourth", "fifth", "sixth"))} | {"next": 1}
_DOUBT = 0.6  # metres: what is so little before or behind abeam may be counted or not
_ACROSS = 0.8  # metres off the line of sight within which a door is opposite
_BESIDE = 0.4  # metres off that line beyond which a thing is on the left or right
_STOP_GAP = 0.6  # metres before a thing
_BEHIND = 0.7  # metres behind a door
_SAME = 1.2  # metres: readings that end so near to the goal have understood it


@dataclass(frozen=True)
class Reading:
    """One way to understand the words up to here.

    `chance` is its share if the reader draws evenly wherever it can choose; `points` are the places (x, z) that it has
    come by; `facing` is a unit vector (x, z), None where the words have left it open; `came_by` is a door's index.
    """

    chance: float
    points: tuple[Point, ...]
    room: int
    facing: Point | None
    came_by: int | None = None
    stopped: bool = False

    @property
    def place(self) -> Point:
        return self.points[-1]


def read(
    text: str, plan: Plan, pieces: list[Piece], start: Point, heading: float, remembers: bool = True
) -> list[Reading]:
    """All ways in which the words can be followed to an end; none where they cannot.

    Args:
        text: the instruction.
        plan: rooms and doors.
        pieces: the furniture.
        start: where the walker stands (x, z), metres.
        heading: where it looks, radians.
        remembers: False for a reader that knows where it is and which words are next, but forgets what it has passed:
            it cannot count, nor tell the door it came in by or the room where it began, and draws evenly among those
            that they may be.
    """
    follower = _Follower(plan, pieces, plan.room_at(*start), start, remembers)
    readings = [Reading(1.0, (start,), follower.first_room, _cardinal(direction(heading)))]
    for part in _parts(text):
        follow = follower.understand(part)
        if follow is None:
            return []
        readings = [after for reading in readings if not reading.stopped for after in follow(reading)]
    return [reading for reading in readings if reading.stopped]


def leads_to(readings: Iterable[Reading], room: int, goal: Point, within: float = _SAME) -> float:
    """Share of the readings (by chance, 0 … 1) that end in the room, within so many metres of the goal (x, z)."""
    ends = [(r.chance, r.place[0] - goal[0], r.place[1] - goal[1]) for r in readings if r.room == room]
    return sum(chance for chance, x, z in ends if x * x + z * z < within * within)


def is_clear(readings: list[Reading], room: int, goal: Point) -> bool:
    """Whether the words can be followed, and lead to the goal in the room however they are understood."""
    return bool(readings) and all(leads_to([reading], room, goal) for reading in readings)


def _parts(text: str) -> list[str]:
    """The single requests of an instruction."""
    return [part for part in re.split(r"\s*(?:[.,]|\band\b|\bthen\b)\s*", text.lower()) if part]


def _cardinal(way: Point) -> Point:
    x, z = way
    return (1.0 if x > 0 else -1.0, 0.0) if abs(x) > abs(z) else (0.0, 1.0 if z > 0 else -1.0)


def _along(reading: Reading, point: Point) -> float:
    """Metres that the point lies ahead."""
    assert reading.facing is not None
    (x, z), (fx, fz) = reading.place, reading.facing
    return (point[0] - x) * fx + (point[1] - z) * fz


def _to_left(reading: Reading, point: Point) -> float:
    """Metres that the point lies to the left of the line of sight."""
    assert reading.facing is not None
    (x, z), (fx, fz) = reading.place, reading.facing
    return (point[0] - x) * fz - (point[1] - z) * fx


class _Follower:
    """What every kind of request does to a reading."""

    def __init__(self, plan: Plan, pieces: list[Piece], first_room: int, start: Point, remembers: bool) -> None:
        self._plan, self._pieces, self._start, self._remembers = plan, pieces, start, remembers
        self.first_room = first_room
        self._requests: list[tuple[str, Callable[..., list[Reading]]]] = [
            (r"turn (?P<side>left|right|around)", self._turn),
            (r"(?:leave|go out of) the room", self._leave),
            (r"go out into the corridor", self._out),
            (r"cross the corridor", lambda reading: [reading]),
            (r"go through the door opposite", self._opposite),
            (
                r"(?:take|go into|go through) the (?:(?P<nth>\w+) )?(?:door|room) on (?:your|the) (?P<side>left|right)"
                r"(?: into the next room)?",
                self._door,
            ),
            (r"leave it by the other door", self._other_door),
            (r"leave by the door you came in by|go back out the way you came", self._back_out),
            (r"go back to the room where you began", self._return),
            (r"walk past (?P<number>\w+) (?P<kind>\w+?)(?:es|s)", self._pass),
            (r"(?:go|walk) up to the (?:(?P<colour>\w+) )?(?P<kind>\w+)", self._go_up_to),
            (
                r"(?:stop|wait) at the (?P<nth>\w+) (?P<kind>\w+) on (?:your|the) (?P<side>left|right)",
                self._stop_in_row,
            ),
            (r"(?:stop|wait) at the (?:(?P<colour>\w+) )?(?P<kind>\w+)", self._stop),
        ]

    def understand(self, part: str) -> Callable[[Reading], list[Reading]] | None:
        """What the request does to a reading; None for words that no request has."""
        for pattern, follow in self._requests:
            found = re.fullmatch(pattern, part)
            if found:
                said = found.groupdict()
                return lambda reading, follow=follow, said=said: follow(reading, **said)  # type: ignore[misc]
        return None

    # ---- turning and passing ------------------------------------------------------------------------------

    def _turn(self, reading: Reading, side: str) -> list[Reading]:
        if reading.facing is None:
            return [reading] if side == "around" else []
        x, z = reading.facing
        facing = {"left": (z, -x), "right": (-z, x), "around": (-x, -z)}[side]
        return [replace(reading, facing=facing)]

    def _pass(self, reading: Reading, number: str, kind: str) -> list[Reading]:
        found = self._ahead(reading, [p.footprint.centre for p in self._things(reading, kind)], _NUMBERS.get(number))
        return [self._moved(reading, place, len(found)) for place in found]

    def _moved(self, reading: Reading, point: Point, choices: int) -> Reading:
        """The reading, gone on along its line of sight until it is abeam of the point."""
        assert reading.facing is not None
        (x, z), (fx, fz), way = reading.place, reading.facing, _along(reading, point)
        points = (*reading.points, (x + fx * way, z + fz * way))
        return replace(reading, chance=reading.chance / choices, points=points)

    # ---- doors --------------------------------------------------------------------------------------------

    def _through(self, reading: Reading, doors: list[Door]) -> list[Reading]:
        """One reading for each of the doors that may be meant."""
        after = []
        for door in doors:
            room = door.rooms[1] if door.rooms[0] == reading.room else door.rooms[0]
            before, behind = self._beside(door, reading.room), self._beside(door, room)
            facing = _cardinal((behind[0] - before[0], behind[1] - before[1]))
            points = (*reading.points, before, behind)
            after.append(Reading(reading.chance / len(doors), points, room, facing, door.index))
        return after

    def _beside(self, door: Door, room: int) -> Point:
        """A point straight before the door in the room; in one as narrow as a corridor, on its middle line."""
        (x, z), rect = door.point, self._plan.rooms[room].rect
        narrow = self._is_corridor(room)
        if door.axis == "x":
            return (rect.centre[0] if narrow else x + (_BEHIND if rect.centre[0] > x else -_BEHIND)), z
        return x, (rect.centre[1] if narrow else z + (_BEHIND if rect.centre[1] > z else -_BEHIND))

    def _is_corridor(self, room: int) -> bool:
        return self._plan.rooms[room].kind == "hallway"

    def _leave(self, reading: Reading) -> list[Reading]:
        return self._through(reading, self._plan.doors_of(reading.room))

    def _out(self, reading: Reading) -> list[Reading]:
        doors = self._plan.doors_of(reading.room)
        return self._through(reading, [door for door in doors if any(map(self._is_corridor, door.rooms))])

    def _opposite(self, reading: Reading) -> list[Reading]:
        if reading.facing is None:
            return []
        doors = [d for d in self._plan.doors_of(reading.room) if d.index != reading.came_by]
        doors = [d for d in doors if _along(reading, d.point) > 0 and abs(_to_left(reading, d.point)) < _ACROSS]
        return self._through(reading, doors)

    def _door(self, reading: Reading, nth: str | None, side: str) -> list[Reading]:
        if reading.facing is None:
            return []
        wall = "z" if reading.facing[0] else "x"  # doors in walls along the line of sight
        doors = [d for d in self._plan.doors_of(reading.room) if d.axis == wall and d.index != reading.came_by]
        doors = [d for d in doors if (_to_left(reading, d.point) > 0) == (side == "left")]
        points = [d.point for d in doors]
        wanted = points if nth is None else self._ahead(reading, points, -1 if nth == "last" else _NTH.get(nth))
        return self._through(reading, [d for d in doors if d.point in wanted])

    def _other_door(self, reading: Reading) -> list[Reading]:
        doors = self._plan.doors_of(reading.room)
        return self._through(reading, [d for d in doors if d.index != reading.came_by or not self._remembers])

    def _back_out(self, reading: Reading) -> list[Reading]:
        doors = self._plan.doors_of(reading.room)
        return self._through(reading, [d for d in doors if d.index == reading.came_by or not self._remembers])

    def _return(self, reading: Reading) -> list[Reading]:
        rooms = [room.index for room in self._plan.rooms if not self._is_corridor(room.index)]
        wanted = [self.first_room] if self._remembers else [room for room in rooms if room != reading.room]
        after = []
        for room in wanted:
            gone = [replace(reading, chance=reading.chance / len(wanted))]
            for door in self._way(reading.room, room):
                gone = [further for r in gone for further in self._through(r, [door])]
            after += gone
        return after

    def _way(self, here: int, there: int) -> list[Door]:
        """The fewest doors from room to room."""
        ways: dict[int, list[Door]] = {here: []}
        queue = deque([here])
        while there not in ways:
            room = queue.popleft()
            for door in self._plan.doors_of(room):
                beyond = door.rooms[1] if door.rooms[0] == room else door.rooms[0]
                if beyond not in ways:
                    ways[beyond] = [*ways[room], door]
                    queue.append(beyond)
        return ways[there]

    # ---- things -------------------------------------------------------------------------------------------

    def _things(self, reading: Reading, kind: str, colour: str | None = None) -> list[Piece]:
        here = [piece for piece in self._pieces if piece.room == reading.room and piece.kind == kind]
        return [piece for piece in here if colour in (None, piece.colour)]

    def _before(self, reading: Reading, things: list[Piece], stopped: bool) -> list[Reading]:
        """One reading for each of the things that may be meant, in front of it."""
        after = []
        for piece in things:
            (x, z), (fx, fz), r = piece.footprint.centre, piece.front, piece.footprint
            gap = _STOP_GAP + (r.width if fx else r.depth) / 2
            points = (*reading.points, (x + fx * gap, z + fz * gap))
            share = reading.chance / len(things)
            after.append(replace(reading, chance=share, points=points, facing=None, stopped=stopped))
        return after

    def _go_up_to(self, reading: Reading, colour: str | None, kind: str) -> list[Reading]:
        return self._before(reading, self._things(reading, kind, colour), stopped=False)

    def _stop(self, reading: Reading, colour: str | None, kind: str) -> list[Reading]:
        return self._before(reading, self._things(reading, kind, colour), stopped=True)

    def _stop_in_row(self, reading: Reading, nth: str, kind: str, side: str) -> list[Reading]:
        if reading.facing is None:
            return []
        offsets = [(p, _to_left(reading, p.footprint.centre)) for p in self._things(reading, kind)]
        things = [p for p, left in offsets if (left if side == "left" else -left) > _BESIDE]
        wanted = self._ahead(reading, [p.footprint.centre for p in things], -1 if nth == "last" else _NTH.get(nth))
        return self._before(reading, [p for p in things if p.footprint.centre in wanted], stopped=True)

    def _ahead(self, reading: Reading, points: list[Point], nth: int | None) -> list[Point]:
        """The points that may be the nth ahead (−1: the last): those nearly abeam may be counted or not."""
        if reading.facing is None or nth is None:
            return []
        found: list[Point] = []
        for least in (-_DOUBT, _DOUBT):
            ahead = sorted((p for p in points if _along(reading, p) > least), key=lambda p: _along(reading, p))
            if not self._remembers:
                found += ahead
            elif len(ahead) >= max(nth, 1):
                found.append(ahead[nth - 1 if nth > 0 else -1])
        return sorted(set(found))
