"""Walls, floors, ceilings, doors, windows and furniture of a plan as scene objects."""

from habitat_embedded_sim.houses.furnish import Piece
from habitat_embedded_sim.houses.furniture import KINDS, Builder
from habitat_embedded_sim.houses.plan import (
    CEILING,
    DOOR_HEIGHT,
    DOOR_WIDTH,
    FRAME,
    WALL,
    Door,
    Plan,
    Rect,
    Room,
)
from habitat_embedded_sim.houses.plan import Window as WindowPlan
from habitat_embedded_sim.houses.scene import SHADE_TOP, Point, SceneObject
from habitat_embedded_sim.houses.style import RGB

# habitat-sim's navmesh rounds heights up to whole cells (20 cm) above the lowest point: this brings its floor to 1 mm.
_SLAB = 0.199
_SILL, _WINDOW_TOP = 0.95, 2.05
_SKIRTING = 0.1
_SKY: RGB = (176, 222, 255)
_OUT = 0.03  # how far frames stand out of the wall
_HOLE = DOOR_WIDTH / 2 + FRAME

Hole = tuple[float, float, float, float]  # lo, hi along the wall, bottom, top


def build(plan: Plan, pieces: list[Piece]) -> list[SceneObject]:
    """All semantic objects of the house, ids from 1; region = index of the room."""
    objects: list[SceneObject] = []

    def new(category: str, region: int) -> SceneObject:
        objects.append(SceneObject(len(objects) + 1, category, region))
        return objects[-1]

    for room in plan.rooms:
        _room_shell(plan, room, new)
    for door in plan.doors:
        _door_frame(plan, door, new("door frame", door.rooms[0]))
    for window in plan.windows:
        _window(plan, window, new("window", window.room))
    for piece in pieces:
        builder = Builder(new(piece.name, piece.room), piece.turns, piece.x, piece.z)
        KINDS[piece.kind].build(builder, plan.style.item_colours[piece.colour])
    return objects


def _room_shell(plan: Plan, room: Room, new) -> None:
    style, r = plan.style, room.inside
    paint = style.wall_colours[room.colour]
    walls = new(f"{room.colour} wall", room.index)
    skirting = new("skirting board", room.index)
    for side in ("west", "east", "north", "south"):
        holes = _holes(plan, room, side)
        lo, hi = (r.z0, r.z1) if side in ("west", "east") else (r.x0, r.x1)
        at = {"west": r.x0, "east": r.x1, "north": r.z0, "south": r.z1}[side]
        for a, b, y0, y1 in _strips(lo, hi, holes):
            for bottom, top in ((max(y0, 0.0), min(y1, SHADE_TOP)), (max(y0, SHADE_TOP), y1)):
                if top > bottom:
                    walls.quad(_panel(side, at, a, b, bottom, top), paint, room.wall_texture)
            if y0 == 0.0:
                skirting.quad(_panel(side, at, a, b, 0.0, _SKIRTING, 0.01), style.trim, graded=False)
    floor = new(f"{room.floor} floor", room.index)
    texture, colour = style.floors[room.floor]
    floor.quad(_flat(r, 0.0), colour, texture)
    floor.quad(_flat(r, -_SLAB)[::-1], colour)
    ceiling = new("ceiling", room.index)
    ceiling.quad(_flat(r, CEILING)[::-1], style.ceiling)


def _holes(plan: Plan, room: Room, side: str) -> list[Hole]:
    """Door openings in one wall of the room, sorted along the wall (windows are panes before a whole wall)."""
    r = room.rect
    axis, at = {"west": ("x", r.x0), "east": ("x", r.x1), "north": ("z", r.z0), "south": ("z", r.z1)}[side]
    doors = [d for d in plan.doors_of(room.index) if d.axis == axis and abs(d.at - at) < 1e-3]
    return sorted((d.centre - _HOLE, d.centre + _HOLE, 0.0, DOOR_HEIGHT + FRAME) for d in doors)


def _strips(lo: float, hi: float, holes: list[Hole]) -> list[Hole]:
    """Rectangles (a, b, bottom, top) that cover the wall lo…hi except the holes."""
    strips, place = [], lo
    for a, b, _, top in holes:
        strips += [(place, a, 0.0, CEILING), (a, b, top, CEILING)]
        place = b
    return [*strips, (place, hi, 0.0, CEILING)]


def _panel(side: str, at: float, a: float, b: float, y0: float, y1: float, out: float = 0.0) -> list[Point]:
    """Corners [4, 3] of a wall panel that looks into the room, moved `out` metres into it."""
    if side == "west":
        x = at + out
        return [(x, y0, b), (x, y0, a), (x, y1, a), (x, y1, b)]
    if side == "east":
        x = at - out
        return [(x, y0, a), (x, y0, b), (x, y1, b), (x, y1, a)]
    if side == "north":
        z = at + out
        return [(a, y0, z), (b, y0, z), (b, y1, z), (a, y1, z)]
    z = at - out
    return [(b, y0, z), (a, y0, z), (a, y1, z), (b, y1, z)]


def _flat(r: Rect, y: float) -> list[Point]:
    """Corners [4, 3] of a horizontal rectangle that looks up."""
    return [(r.x0, y, r.z1), (r.x1, y, r.z1), (r.x1, y, r.z0), (r.x0, y, r.z0)]


def _door_frame(plan: Plan, door: Door, item: SceneObject) -> None:
    """Two jambs and a lintel around the opening, and the threshold between the two floors."""
    half, clear = WALL / 2 + _OUT, DOOR_WIDTH / 2

    def box(lo: float, hi: float, y0: float, y1: float, faces: str) -> None:
        if door.axis == "x":
            low, high = (door.at - half, y0, door.centre + lo), (door.at + half, y1, door.centre + hi)
        else:
            low, high = (door.centre + lo, y0, door.at - half), (door.centre + hi, y1, door.at + half)
        item.box(low, high, plan.style.frame, "plain", faces)

    box(-clear - FRAME, -clear, 0.0, DOOR_HEIGHT + FRAME, "xXzZ")
    box(clear, clear + FRAME, 0.0, DOOR_HEIGHT + FRAME, "xXzZ")
    box(-clear, clear, DOOR_HEIGHT, DOOR_HEIGHT + FRAME, "xXyzZ")
    item.quad(_flat(door.zone(WALL / 2, clear), 0.0), plan.style.frame)


def _window(plan: Plan, window: WindowPlan, item: SceneObject) -> None:
    """A pane with a view of the sky, framed, with a cross bar; it hangs a little before the wall."""
    r = plan.rooms[window.room].inside
    side, lo, hi = window.side, window.lo, window.hi
    at = {"west": r.x0, "east": r.x1, "north": r.z0, "south": r.z1}[side]
    bar = 0.07
    item.quad(_panel(side, at, lo, hi, _SILL, _WINDOW_TOP, 0.01), _SKY, graded=False)
    middle = (lo + hi) / 2
    bars = [(lo - bar, lo, _SILL - bar, _WINDOW_TOP + bar), (hi, hi + bar, _SILL - bar, _WINDOW_TOP + bar)]
    bars += [(middle - 0.02, middle + 0.02, _SILL, _WINDOW_TOP)]
    bars += [(lo, hi, _SILL - bar, _SILL), (lo, hi, _WINDOW_TOP, _WINDOW_TOP + bar)]
    for a, b, y0, y1 in bars:
        item.quad(_panel(side, at, a, b, y0, y1, 0.02), plan.style.trim, graded=False)
