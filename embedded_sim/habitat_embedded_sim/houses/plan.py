"""Floor plan of a house: rooms, doors and windows.

The plan is two-dimensional, in metres: x and z of the habitat world (y up). A rectangle is split into rooms; walls run
along the shared edges, `WALL` thick, half on each side of the edge.
"""

from dataclasses import dataclass, field

import numpy as np

from habitat_embedded_sim.houses.style import ROOM_KINDS, Style

WALL = 0.12  # thickness of a wall
CEILING = 2.5
DOOR_HEIGHT = 2.1
DOOR_WIDTH = 1.05  # clear width between the frames
FRAME = 0.1  # width of a door frame on each side
MIN_SIDE = 2.7  # shortest side of a room between wall centres
SIDES = ("west", "east", "north", "south")  # −x, +x, −z, +z


@dataclass(frozen=True)
class Rect:
    """Axis-aligned rectangle in x and z, metres."""

    x0: float
    z0: float
    x1: float
    z1: float

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def depth(self) -> float:
        return self.z1 - self.z0

    @property
    def area(self) -> float:
        return self.width * self.depth

    @property
    def centre(self) -> tuple[float, float]:
        return (self.x0 + self.x1) / 2, (self.z0 + self.z1) / 2

    def grown(self, by: float) -> "Rect":
        """The rectangle with every side moved outwards by `by` metres (inwards when negative)."""
        return Rect(self.x0 - by, self.z0 - by, self.x1 + by, self.z1 + by)

    def overlaps(self, other: "Rect") -> bool:
        return self.x0 < other.x1 and other.x0 < self.x1 and self.z0 < other.z1 and other.z0 < self.z1

    def contains(self, x: float, z: float) -> bool:
        return self.x0 <= x <= self.x1 and self.z0 <= z <= self.z1

    def distance(self, x: float, z: float) -> float:
        """Distance from the point to the rectangle, 0 inside."""
        return float(np.hypot(max(self.x0 - x, 0, x - self.x1), max(self.z0 - z, 0, z - self.z1)))


@dataclass(frozen=True)
class Door:
    """Opening in the wall between two rooms.

    `axis` is "x" when the wall runs along z (crossed by moving in x), "z" otherwise; `at` is the wall's coordinate on
    that axis; `centre` the middle of the opening along the wall.
    """

    index: int
    rooms: tuple[int, int]
    axis: str
    at: float
    centre: float

    @property
    def point(self) -> tuple[float, float]:
        return (self.at, self.centre) if self.axis == "x" else (self.centre, self.at)

    def zone(self, along: float, half_width: float) -> Rect:
        """Rectangle reaching `along` metres to both sides of the wall, `half_width` to both sides of the middle."""
        x, z = self.point
        dx, dz = (along, half_width) if self.axis == "x" else (half_width, along)
        return Rect(x - dx, z - dz, x + dx, z + dz)


@dataclass(frozen=True)
class Window:
    """Window on an outer wall of a room: `side` of SIDES, `lo`…`hi` along the wall."""

    room: int
    side: str
    lo: float
    hi: float


@dataclass
class Room:
    """A room; `rect` lies on wall centres, `inside` on the wall faces."""

    index: int
    rect: Rect
    kind: str = ""
    colour: str = ""
    wall_texture: str = "plain"
    floor: str = ""

    @property
    def inside(self) -> Rect:
        return self.rect.grown(-WALL / 2)


@dataclass
class Plan:
    """Rooms with their doors and windows; `style` names the look."""

    style: Style
    outline: Rect
    rooms: list[Room]
    doors: list[Door]
    windows: list[Window] = field(default_factory=list)

    def room_at(self, x: float, z: float) -> int:
        """Index of the room whose rectangle (on wall centres) holds the point, −1 outside."""
        for room in self.rooms:
            if room.rect.contains(x, z):
                return room.index
        return -1

    def doors_of(self, room: int) -> list[Door]:
        return [door for door in self.doors if room in door.rooms]


def make_plan(rng: np.random.Generator, style: Style) -> Plan:
    """Draw a plan whose rooms all connect; draws again until they do."""
    while True:
        width = round(float(rng.uniform(7.0, 13.0)), 1)
        depth = round(float(rng.uniform(6.0, 10.0)), 1)
        outline = Rect(0.0, 0.0, width, depth)
        wanted = int(np.clip(round(outline.area / rng.uniform(11.0, 18.0)), 3, 8))
        rects = _split(rng, outline, wanted)
        doors = _make_doors(rng, rects)
        if len(rects) >= 3 and doors is not None:
            break
    rooms = [Room(index, rect) for index, rect in enumerate(rects)]
    _decorate(rng, rooms, doors, style)
    return Plan(style, outline, rooms, doors, make_windows(rng, rooms, outline))


def _split(rng: np.random.Generator, outline: Rect, wanted: int) -> list[Rect]:
    rects = [outline]
    while len(rects) < wanted:
        splittable = [r for r in rects if max(r.width, r.depth) >= 2 * MIN_SIDE]
        if not splittable:
            break
        rect = max(splittable, key=lambda r: r.area)
        along_x = rect.width >= 2 * MIN_SIDE
        if along_x and rect.depth >= 2 * MIN_SIDE:
            along_x = bool(rng.random() < (0.85 if rect.width > rect.depth else 0.15))
        length = rect.width if along_x else rect.depth
        cut = round(float(np.clip(length * rng.uniform(0.36, 0.64), MIN_SIDE, length - MIN_SIDE)), 2)
        rects.remove(rect)
        if along_x:
            middle = rect.x0 + cut
            rects += [Rect(rect.x0, rect.z0, middle, rect.z1), Rect(middle, rect.z0, rect.x1, rect.z1)]
        else:
            middle = rect.z0 + cut
            rects += [Rect(rect.x0, rect.z0, rect.x1, middle), Rect(rect.x0, middle, rect.x1, rect.z1)]
    return rects


def _shared_edge(a: Rect, b: Rect) -> tuple[str, float, float, float] | None:
    """(axis, at, lo, hi) of the wall that the two rectangles share, if any."""
    for p, q in ((a, b), (b, a)):
        if abs(p.x1 - q.x0) < 1e-6:
            return "x", p.x1, max(p.z0, q.z0), min(p.z1, q.z1)
        if abs(p.z1 - q.z0) < 1e-6:
            return "z", p.z1, max(p.x0, q.x0), min(p.x1, q.x1)
    return None


def _make_doors(rng: np.random.Generator, rects: list[Rect]) -> list[Door] | None:
    """A random spanning tree of doors and some more; None when the rooms cannot all be joined."""
    margin = DOOR_WIDTH / 2 + FRAME + 0.25
    walls = []
    for a in range(len(rects)):
        for b in range(a + 1, len(rects)):
            edge = _shared_edge(rects[a], rects[b])
            if edge and edge[3] - edge[2] > 2 * margin + 0.1:
                walls.append((a, b, edge))
    group = list(range(len(rects)))
    doors: list[Door] = []
    for index in rng.permutation(len(walls)):
        a, b, (axis, at, lo, hi) = walls[int(index)]
        extra = bool(rng.random() < 0.2)
        place = float(rng.uniform(lo + margin, hi - margin))
        if group[a] == group[b] and not extra:
            continue
        old, new = group[a], group[b]
        group = [new if g == old else g for g in group]
        doors.append(Door(len(doors), (a, b), axis, round(at, 3), round(place, 2)))
    return doors if len(set(group)) == 1 else None


def _decorate(rng: np.random.Generator, rooms: list[Room], doors: list[Door], style: Style) -> None:
    """Give every room a kind and a wall colour of its own, a wall texture and a floor."""
    colours = rng.permutation(sorted(style.wall_colours))
    kinds = [str(k) for k in rng.permutation(sorted(set(ROOM_KINDS) - {"hallway"}))]
    ways = [sum(room.index in door.rooms for door in doors) for room in rooms]
    hallway = max(rooms, key=lambda r: (ways[r.index], -r.rect.area))
    for room in rooms:
        room.colour = str(colours[room.index])
        room.wall_texture = str(rng.choice(style.wall_textures))
        room.kind = "hallway" if room is hallway and len(rooms) > 4 else kinds.pop()
        wet = room.kind in ("kitchen", "bathroom")
        room.floor = str(rng.choice(["tile", "stone"] if wet else ["wood", "wood", "carpet", "carpet", "stone"]))


def make_windows(rng: np.random.Generator, rooms: list[Room], outline: Rect) -> list[Window]:
    """Draw a window on some of the outer walls."""
    windows = []
    for room in rooms:
        r = room.rect
        outer = {
            "west": (r.x0 == outline.x0, r.z0, r.z1),
            "east": (r.x1 == outline.x1, r.z0, r.z1),
            "north": (r.z0 == outline.z0, r.x0, r.x1),
            "south": (r.z1 == outline.z1, r.x0, r.x1),
        }
        for side, (is_outer, lo, hi) in outer.items():
            if is_outer and rng.random() < 0.6:
                half = float(rng.uniform(0.45, 0.75))
                middle = float(rng.uniform(lo + half + 0.4, hi - half - 0.4))
                windows.append(Window(room.index, side, round(middle - half, 2), round(middle + half, 2)))
    return windows
