"""Houses with a corridor: doors in a row, rooms and furniture that look alike, so that what was passed is what counts.

Rooms lie on both sides of a corridor, each with a door to it, some with a door to the next room. A house has two wall
colours for its rooms and one colour for each kind of furniture, so nothing but its place tells one door, room or chair
from another.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from habitat_embedded_sim.houses.furnish import Piece, footprint_of, place_piece
from habitat_embedded_sim.houses.furniture import KINDS
from habitat_embedded_sim.houses.plan import Door, Plan, Rect, Room, make_windows
from habitat_embedded_sim.houses.style import ROOM_KINDS, Style, contrast

CORRIDOR = 0  # index of the corridor among the rooms
LENGTH = (11.5, 14.5)  # of the corridor, metres
_WIDTH, _DEPTH = (2.4, 2.7), (3.0, 3.9)  # of the corridor, and how deep its rooms are, metres
_SHORTEST = 2.8  # side of a room along the corridor, between wall centres
_NEXT = 0.35  # how often two neighbours share a door
_JITTER = 0.3  # metres that a door or a piece of the corridor is off its middle
_IN_ROW = ("chair", "plant", "lamp")  # kinds that stand along the corridor
_IN_ROOMS = ("sofa", "armchair", "table", "cabinet", "bench", "bed", "wardrobe")
_KINDS, _PER_ROOM = 5, 3  # kinds of furniture of a house's rooms, and pieces in each
_APART = 2.4  # metres between two of a kind on one side: farther than success
_WALL_GAP = 0.02
_FILLED = 0.85  # how many of the places along the corridor are taken
_MIN_CONTRAST = 115.0  # RGB distance of a piece's colour from the walls around it


def make_corridor_plan(rng: np.random.Generator, style: Style, long: Sequence[float] = LENGTH) -> Plan:
    """Draw a corridor along x or z, so `long` (metres, from … to), with three rooms or more on each side."""
    length, width = round(float(rng.uniform(long[0], long[1])), 1), round(float(rng.uniform(*_WIDTH)), 1)
    above, below = (round(float(d), 1) for d in rng.uniform(*_DEPTH, 2))
    low, high = above, round(above + width, 1)
    rects = [Rect(0.0, low, length, high)]
    doors: list[Door] = []
    for z0, z1, wall in ((0.0, low, low), (high, round(high + below, 1), high)):
        cuts = _cut(rng, length)
        for x0, x1 in itertools.pairwise(cuts):
            middle = (x0 + x1) / 2 + rng.uniform(-_JITTER, _JITTER)
            doors.append(Door(len(doors), (CORRIDOR, len(rects)), "z", wall, round(float(middle), 2)))
            if x0 > 0 and rng.random() < _NEXT:
                centre = (z0 + z1) / 2 + rng.uniform(-_JITTER, _JITTER)
                doors.append(Door(len(doors), (len(rects) - 1, len(rects)), "x", x0, round(float(centre), 2)))
            rects.append(Rect(x0, z0, x1, z1))
    if rng.random() < 0.5:
        rects = [Rect(r.z0, r.x0, r.z1, r.x1) for r in rects]
        doors = [Door(d.index, d.rooms, "x" if d.axis == "z" else "z", d.at, d.centre) for d in doors]
    outline = Rect(0.0, 0.0, max(r.x1 for r in rects), max(r.z1 for r in rects))
    rooms = [Room(index, rect) for index, rect in enumerate(rects)]
    _decorate(rng, rooms, style)
    return Plan(style, outline, rooms, doors, make_windows(rng, rooms, outline))


def _cut(rng: np.random.Generator, length: float) -> list[float]:
    """Where the walls between the rooms of one side meet the corridor, its ends included."""
    most = int(length // _SHORTEST)
    count = int(rng.integers(3, most + 1))
    spare = length - count * _SHORTEST
    ends = np.cumsum(_SHORTEST + spare * rng.dirichlet(np.full(count, 2.0)))
    return [0.0, *(round(float(end), 2) for end in ends[:-1]), length]


def _decorate(rng: np.random.Generator, rooms: list[Room], style: Style) -> None:
    """One wall colour and floor for the corridor, two of each for all rooms."""
    colours = [str(c) for c in rng.permutation(sorted(style.wall_colours))]
    kinds = [str(k) for k in rng.permutation(sorted(set(ROOM_KINDS) - {"hallway"}))]
    floors = [str(f) for f in rng.permutation(sorted(style.floors))]
    texture = str(rng.choice(style.wall_textures))
    for room in rooms:
        look = 0 if room.index == CORRIDOR else 1 + int(rng.integers(2))
        room.colour, room.floor, room.wall_texture = colours[look], floors[look], texture
        room.kind = "hallway" if room.index == CORRIDOR else kinds[look]


def furnish_corridor_plan(rng: np.random.Generator, plan: Plan) -> list[Piece]:
    """Things in a row along the corridor, and in every room some of the same few kinds, no kind twice in a room."""
    rows = [str(k) for k in rng.permutation(_IN_ROW)][:2]
    kinds = [str(k) for k in rng.permutation(_IN_ROOMS)][:_KINDS]
    walls = {room.colour for room in plan.rooms}
    colours = {kind: _colour(rng, plan.style, kind, walls) for kind in (*rows, *kinds)}
    pieces = _row(rng, plan, rows, colours)
    for room in plan.rooms:
        if room.index == CORRIDOR:
            continue
        for kind in rng.permutation(kinds)[:_PER_ROOM]:
            piece = place_piece(rng, plan, room, str(kind), colours[str(kind)], pieces)
            if piece:
                pieces.append(piece)
    return pieces


def _colour(rng: np.random.Generator, style: Style, kind: str, walls: set[str]) -> str:
    """A colour of the kind that stands out from all walls, or the one that does best."""
    colours = [c for c in KINDS[kind].colours if c in style.item_colours]
    gaps = {c: min(contrast(style.item_colours[c], style.wall_colours[w]) for w in walls) for c in colours}
    clear = [c for c in colours if gaps[c] >= _MIN_CONTRAST and c not in walls]
    return str(rng.choice(clear)) if clear else max(colours, key=lambda c: gaps[c])


def _row(rng: np.random.Generator, plan: Plan, kinds: list[str], colours: dict[str, str]) -> list[Piece]:
    """Pieces between the doors on both sides of the corridor; two of a kind on one side stand _APART."""
    room = plan.rooms[CORRIDOR]
    inside, along_x = room.inside, room.rect.width > room.rect.depth
    first, last = (inside.x0, inside.x1) if along_x else (inside.z0, inside.z1)
    pieces: list[Piece] = []
    for far in (False, True):
        at = {(True, False): inside.z0, (True, True): inside.z1, (False, False): inside.x0, (False, True): inside.x1}
        turns = {(True, False): 0, (True, True): 2, (False, False): 1, (False, True): 3}[along_x, far]
        wall = at[along_x, far]
        doors = sorted(d.centre for d in plan.doors_of(CORRIDOR) if abs(d.at - wall) < 0.2)
        edges = [first - 0.7, *doors, last + 0.7]
        row: list[Piece] = []
        for a, b in itertools.pairwise(edges):
            kind = kinds[int(rng.random() < 0.3)]
            spare = (b - a) / 2 - 0.8 - KINDS[kind].width / 2
            if spare < 0 or rng.random() > _FILLED:
                continue
            place = round((a + b) / 2 + float(rng.uniform(-1, 1)) * min(spare, _JITTER), 3)
            back = round(wall - _WALL_GAP if far else wall + _WALL_GAP, 3)
            x, z = (place, back) if along_x else (back, place)
            piece = Piece(kind, colours[kind], CORRIDOR, turns, x, z, footprint_of(KINDS[kind], turns, x, z))
            near = [p for p in row if p.kind == kind and abs(p.x - x) + abs(p.z - z) < _APART]
            if not near:
                row.append(piece)
        pieces += row
    return pieces
