"""Placing furniture: what stands where, in which colour.

Pieces stand against walls or free, leave doors open and keep `GAP` between each other, so that every room stays
connected. A colour appears once in a room and (colour, kind) once in a house: "the red sofa" names one thing.
"""

from dataclasses import dataclass

import numpy as np

from habitat_embedded_sim.houses.furniture import KINDS, Kind
from habitat_embedded_sim.houses.plan import Plan, Rect, Room
from habitat_embedded_sim.houses.style import Style, contrast

GAP = 0.8  # free width between pieces, and between a piece and a wall it does not stand against
_WALL_GAP = 0.02
_TRIES = 40  # places tried for a piece
_MIN_CONTRAST = 115.0  # RGB distance of a piece's colour from its room's walls


@dataclass(frozen=True)
class Piece:
    """A piece of furniture: its kind, colour and room, its origin (x, z) and quarter turns, and where it stands."""

    kind: str
    colour: str
    room: int
    turns: int
    x: float
    z: float
    footprint: Rect

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"

    @property
    def front(self) -> tuple[float, float]:
        """Unit vector (x, z) to which the front faces."""
        return ((0.0, 1.0), (1.0, 0.0), (0.0, -1.0), (-1.0, 0.0))[self.turns]

    @property
    def height(self) -> float:
        return KINDS[self.kind].height


def furnish(rng: np.random.Generator, plan: Plan) -> list[Piece]:
    """Furnish every room, first with the piece that tells what room it is, where that fits."""
    pieces: list[Piece] = []
    for room in plan.rooms:
        tell_tale, *others = plan.style.kinds[room.kind]
        kinds = [tell_tale, *(str(k) for k in rng.permutation(others))]
        wanted = int(np.clip(round(room.rect.area / 3.2), 2, 5)) - (room.kind == "hallway")
        for kind in kinds:
            if sum(piece.room == room.index for piece in pieces) >= wanted:
                break
            colour = _pick_colour(rng, plan.style, room, kind, pieces)
            if colour:
                piece = place_piece(rng, plan, room, kind, colour, pieces)
                if piece:
                    pieces.append(piece)
    return pieces


def _pick_colour(rng: np.random.Generator, style: Style, room: Room, kind: str, pieces: list[Piece]) -> str | None:
    wall = style.wall_colours[room.colour]
    taken = {piece.colour for piece in pieces if piece.room == room.index or piece.kind == kind} | {room.colour}
    free = [
        colour
        for colour in KINDS[kind].colours
        if colour in style.item_colours
        and colour not in taken
        and contrast(style.item_colours[colour], wall) >= _MIN_CONTRAST
    ]
    return str(rng.choice(free)) if free else None


def place_piece(
    rng: np.random.Generator, plan: Plan, room: Room, name: str, colour: str, pieces: list[Piece]
) -> Piece | None:
    """A place for the piece that blocks nothing, or None after some tries."""
    kind = KINDS[name]
    keep_out = [door.zone(1.2, 0.8) for door in plan.doors_of(room.index)]
    others = [piece.footprint for piece in pieces if piece.room == room.index]
    for _ in range(_TRIES):
        spot = _free_spot(rng, room, kind) if kind.free and rng.random() < 0.4 else _wall_spot(rng, room, kind)
        if spot is None:
            continue
        turns, x, z, footprint = spot
        if any(footprint.overlaps(zone) for zone in keep_out):
            continue
        if any(footprint.grown(GAP).overlaps(other) for other in others):
            continue
        if kind.height > 1.0 and _hides_window(plan, room, footprint):
            continue
        return Piece(name, colour, room.index, turns, x, z, footprint)
    return None


def _wall_spot(rng: np.random.Generator, room: Room, kind: Kind) -> tuple[int, float, float, Rect] | None:
    inside, half = room.inside, kind.width / 2
    turns = int(rng.integers(4))
    along_x = turns in (0, 2)
    length, across = (inside.width, inside.depth) if along_x else (inside.depth, inside.width)
    room_along = length - kind.width - 2 * _WALL_GAP
    if room_along < 0 or across - kind.depth < GAP:
        return None
    offset = float(rng.uniform(0, room_along))
    if length - kind.width < 2 * GAP and kind.depth > 0.9:  # a deep piece goes into a corner of a narrow room
        offset = 0.0 if rng.random() < 0.5 else room_along
    place = offset + _WALL_GAP + half
    if along_x:
        x = round(inside.x0 + place, 3)
        z = round(inside.z0 + _WALL_GAP if turns == 0 else inside.z1 - _WALL_GAP, 3)
    else:
        z = round(inside.z0 + place, 3)
        x = round(inside.x0 + _WALL_GAP if turns == 1 else inside.x1 - _WALL_GAP, 3)
    return turns, x, z, footprint_of(kind, turns, x, z)


def _free_spot(rng: np.random.Generator, room: Room, kind: Kind) -> tuple[int, float, float, Rect] | None:
    turns = int(rng.integers(4))
    w, d = (kind.width, kind.depth) if turns in (0, 2) else (kind.depth, kind.width)
    area = room.inside.grown(-GAP)
    if area.width < w or area.depth < d:
        return None
    cx = float(rng.uniform(area.x0 + w / 2, area.x1 - w / 2))
    cz = float(rng.uniform(area.z0 + d / 2, area.z1 - d / 2))
    dx, dz = ((0, 1), (1, 0), (0, -1), (-1, 0))[turns]
    x, z = round(cx - dx * kind.depth / 2, 3), round(cz - dz * kind.depth / 2, 3)
    return turns, x, z, footprint_of(kind, turns, x, z)


def footprint_of(kind: Kind, turns: int, x: float, z: float) -> Rect:
    """Where a piece of the kind stands whose back's middle is at (x, z), after its quarter turns."""
    half, depth = kind.width / 2, kind.depth
    return (
        Rect(x - half, z, x + half, z + depth),
        Rect(x, z - half, x + depth, z + half),
        Rect(x - half, z - depth, x + half, z),
        Rect(x - depth, z - half, x, z + half),
    )[turns]


def _hides_window(plan: Plan, room: Room, footprint: Rect) -> bool:
    for window in plan.windows:
        if window.room != room.index:
            continue
        r = room.rect
        zone = {
            "west": Rect(r.x0, window.lo, r.x0 + 0.6, window.hi),
            "east": Rect(r.x1 - 0.6, window.lo, r.x1, window.hi),
            "north": Rect(window.lo, r.z0, window.hi, r.z0 + 0.6),
            "south": Rect(window.lo, r.z1 - 0.6, window.hi, r.z1),
        }[window.side]
        if footprint.overlaps(zone):
            return True
    return False
