"""Furniture: what each kind is built of.

Local frame of a piece in metres: y up from the floor, z from its back (0) to its front (its depth), x = 0 in its
middle. `Builder` turns it by quarter turns and moves it into the house.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from habitat_embedded_sim.houses.scene import Point, SceneObject
from habitat_embedded_sim.houses.style import RGB

WHITE: RGB = (244, 244, 240)
DARK: RGB = (34, 32, 34)
WOOD: RGB = (150, 104, 62)
GREY: RGB = (150, 152, 158)
LEAF: RGB = (40, 130, 50)
GLOW: RGB = (255, 150, 30)


def shade(colour: RGB, factor: float) -> RGB:
    """The colour made darker (< 1) or mixed with white (> 1)."""
    if factor <= 1:
        return tuple(int(c * factor) for c in colour)  # type: ignore[return-value]
    return tuple(int(c + (255 - c) * (factor - 1)) for c in colour)  # type: ignore[return-value]


@dataclass
class Builder:
    """Adds parts in a piece's local frame to a scene object: `turns` quarter turns about y, then a shift (x, z)."""

    item: SceneObject
    turns: int
    x: float
    z: float

    def _place(self, x: float, y: float, z: float) -> Point:
        for _ in range(self.turns):
            x, z = z, -x
        return x + self.x, y, z + self.z

    def box(self, x: float, z: float, w: float, d: float, y0: float, y1: float, colour: RGB, texture="plain"):
        """Box with the middle of its back at (x, z), `w` wide, `d` deep, from height y0 to y1."""
        ax, _, az = self._place(x - w / 2, 0.0, z)
        bx, _, bz = self._place(x + w / 2, 0.0, z + d)
        faces = "xXYzZ" if y0 < 0.01 else "xXyYzZ"
        low, high = (min(ax, bx), y0, min(az, bz)), (max(ax, bx), y1, max(az, bz))
        self.item.box(low, high, colour, texture, faces)

    def cone(self, x: float, z: float, r0: float, r1: float, y0: float, y1: float, colour: RGB, texture="plain"):
        """Upright frustum (8 sides) about (x, z), radius r0 at height y0 and r1 at y1, closed at both ends."""
        ring = [(math.cos(k * math.pi / 4), -math.sin(k * math.pi / 4)) for k in range(9)]
        low = [self._place(x + c * r0, y0, z + s * r0) for c, s in ring]
        high = [self._place(x + c * r1, y1, z + s * r1) for c, s in ring]
        for k in range(8):
            self.item.quad((low[k], low[k + 1], high[k + 1], high[k]), colour, texture)
        for k in (1, 3, 5):
            self.item.quad((high[0], high[k], high[k + 1], high[k + 2]), colour, texture)
            if y0 > 0.01:
                self.item.quad((low[0], low[k + 2], low[k + 1], low[k]), colour, texture)


def _legs(b: Builder, w: float, d: float, top: float, colour: RGB, thick: float = 0.09) -> None:
    for x in (-w / 2 + thick / 2, w / 2 - thick / 2):
        for z in (0.0, d - thick):
            b.box(x, z, thick, thick, 0, top, colour)


def _seat(b: Builder, w: float, d: float, back: float, colour: RGB) -> None:
    soft = shade(colour, 1.12)
    b.box(0, 0.2, w - 0.4, d - 0.2, 0, 0.44, soft, "fabric")
    b.box(0, 0, w, 0.22, 0, back, colour, "fabric")
    for x in (-w / 2 + 0.1, w / 2 - 0.1):
        b.box(x, 0.2, 0.2, d - 0.2, 0, 0.64, shade(colour, 0.85), "fabric")


def _sofa(b: Builder, colour: RGB) -> None:
    _seat(b, 2.0, 0.9, 0.9, colour)
    b.box(0, 0.86, 0.03, 0.05, 0.05, 0.44, shade(colour, 0.5))


def _armchair(b: Builder, colour: RGB) -> None:
    _seat(b, 0.95, 0.85, 1.1, colour)


def _bed(b: Builder, colour: RGB) -> None:
    b.box(0, 0, 1.6, 0.1, 0, 1.05, WOOD, "grain")
    b.box(0, 0.1, 1.6, 1.9, 0, 0.3, WOOD, "grain")
    b.box(0, 0.1, 1.56, 0.55, 0.3, 0.5, WHITE)
    b.box(0, 0.65, 1.6, 1.37, 0.28, 0.52, colour, "fabric")
    for x in (-0.38, 0.38):
        b.box(x, 0.16, 0.55, 0.36, 0.5, 0.62, WHITE)


def _table(b: Builder, colour: RGB) -> None:
    b.box(0, 0, 1.4, 0.85, 0.66, 0.78, colour)
    _legs(b, 1.32, 0.83, 0.66, shade(colour, 0.75), 0.1)


def _desk(b: Builder, colour: RGB) -> None:
    b.box(0, 0, 1.4, 0.7, 0.68, 0.78, colour)
    b.box(-0.45, 0, 0.45, 0.66, 0, 0.68, shade(colour, 0.8))
    b.box(0.66, 0, 0.08, 0.66, 0, 0.68, shade(colour, 0.8))
    b.box(0, 0.12, 0.75, 0.06, 0.88, 1.32, DARK)
    b.box(0, 0.12, 0.12, 0.06, 0.78, 0.88, DARK)
    b.box(0, 0.4, 0.5, 0.18, 0.78, 0.81, DARK)


def _chair(b: Builder, colour: RGB) -> None:
    b.box(0, 0, 0.55, 0.55, 0.4, 0.5, colour)
    b.box(0, 0, 0.55, 0.1, 0.5, 1.05, colour)
    _legs(b, 0.55, 0.55, 0.4, DARK, 0.08)


def _bench(b: Builder, colour: RGB) -> None:
    b.box(0, 0, 1.4, 0.45, 0.38, 0.5, colour)
    for x in (-0.55, 0.55):
        b.box(x, 0.03, 0.12, 0.39, 0, 0.38, shade(colour, 0.75))


def _lamp(b: Builder, colour: RGB) -> None:
    b.cone(0, 0.3, 0.16, 0.1, 0, 0.28, DARK)
    b.cone(0, 0.3, 0.045, 0.045, 0.28, 1.3, DARK)
    b.cone(0, 0.3, 0.32, 0.18, 1.3, 1.8, colour)


def _wardrobe(b: Builder, colour: RGB) -> None:
    b.box(0, 0, 1.3, 0.6, 0, 2.0, colour, "grain")
    b.box(0, 0.6, 0.03, 0.01, 0.08, 1.95, DARK)
    for x in (-0.1, 0.1):
        b.box(x, 0.6, 0.05, 0.03, 0.9, 1.15, WHITE)


def _bookshelf(b: Builder, colour: RGB) -> None:
    for x in (-0.56, 0.56):
        b.box(x, 0, 0.1, 0.35, 0, 1.9, colour)
    b.box(0, 0, 1.04, 0.05, 0, 1.9, shade(colour, 0.6))
    books = ((190, 60, 50), (230, 220, 190), (60, 110, 160), (220, 180, 70), (90, 140, 90))
    for level in range(5):
        y = level * 0.455
        b.box(0, 0.05, 1.04, 0.3, y, y + 0.08, colour)
        for place in range(5 if level < 4 else 0):
            x = -0.42 + 0.19 * place
            b.box(x, 0.05, 0.17, 0.2, y + 0.08, y + 0.36 - 0.05 * (place % 2), books[(place + 2 * level) % 5])


def _plant(b: Builder, colour: RGB) -> None:
    b.cone(0, 0.35, 0.2, 0.3, 0, 0.5, colour)
    b.cone(0, 0.35, 0.12, 0.34, 0.5, 0.85, LEAF, "leaves")
    b.cone(0, 0.35, 0.34, 0.06, 0.85, 1.4, LEAF, "leaves")
    for x, z, y in (
        (0.2, 0.58, 0.8),
        (-0.24, 0.55, 1.0),
        (0.05, 0.64, 1.05),
        (-0.2, 0.1, 0.95),
        (0.26, 0.2, 1.0),
    ):
        b.box(x, z - 0.07, 0.14, 0.14, y - 0.07, y + 0.07, colour)


def _fridge(b: Builder, colour: RGB) -> None:
    b.box(0, 0, 0.85, 0.75, 0, 1.85, colour)
    b.box(0, 0.75, 0.85, 0.01, 1.2, 1.24, DARK)
    b.box(-0.3, 0.75, 0.06, 0.05, 1.3, 1.65, GREY)
    b.box(-0.3, 0.75, 0.06, 0.05, 0.6, 1.1, GREY)


def _stove(b: Builder, colour: RGB) -> None:
    b.box(0, 0, 0.8, 0.68, 0, 0.88, colour)
    b.box(0, 0, 0.8, 0.68, 0.88, 0.93, DARK)
    b.box(0, 0.68, 0.56, 0.02, 0.2, 0.58, DARK)
    for x in (-0.2, 0.2):
        for z in (0.22, 0.5):
            b.cone(x, z, 0.13, 0.13, 0.93, 0.95, GREY)


def _bathtub(b: Builder, colour: RGB) -> None:
    b.box(0, 0, 1.7, 0.8, 0, 0.5, colour)
    b.box(0, 0, 1.7, 0.1, 0.5, 0.6, colour)
    b.box(0, 0.7, 1.7, 0.1, 0.5, 0.6, colour)
    for x in (-0.8, 0.8):
        b.box(x, 0.1, 0.1, 0.6, 0.5, 0.6, colour)
    b.box(0, 0.1, 1.5, 0.6, 0.5, 0.52, (190, 228, 244))
    b.box(-0.7, 0.35, 0.12, 0.1, 0.6, 0.85, GREY)


def _toilet(b: Builder, colour: RGB) -> None:
    b.box(0, 0, 0.5, 0.22, 0, 0.95, colour)
    b.cone(0, 0.47, 0.17, 0.26, 0, 0.42, colour)
    b.cone(0, 0.47, 0.27, 0.27, 0.42, 0.47, WHITE)


def _sink(b: Builder, colour: RGB) -> None:
    b.box(0, 0, 0.9, 0.5, 0, 0.8, colour)
    b.box(0, 0, 0.96, 0.54, 0.8, 0.92, WHITE)
    b.box(0, 0.05, 0.06, 0.18, 0.92, 1.12, GREY)
    b.box(0, 0, 0.8, 0.03, 1.25, 1.95, (176, 206, 222))


def _tv(b: Builder, colour: RGB) -> None:
    b.box(0, 0, 1.5, 0.42, 0, 0.5, colour)
    b.box(0, 0.16, 0.3, 0.1, 0.5, 0.6, DARK)
    b.box(0, 0.16, 1.25, 0.08, 0.6, 1.32, DARK)


def _cabinet(b: Builder, colour: RGB) -> None:
    b.box(0, 0, 1.2, 0.5, 0, 0.95, colour)
    for y in (0.3, 0.6):
        b.box(0, 0.5, 1.12, 0.01, y, y + 0.03, DARK)
    for y in (0.13, 0.43, 0.74):
        b.box(0, 0.5, 0.22, 0.03, y, y + 0.06, WHITE)


def _fireplace(b: Builder, colour: RGB) -> None:
    for x in (-0.55, 0.55):
        b.box(x, 0, 0.4, 0.5, 0, 1.0, colour, "bricks")
    b.box(0, 0, 1.5, 0.5, 0.95, 1.25, colour, "bricks")
    b.box(0, 0, 0.7, 0.2, 0, 0.95, DARK)
    b.box(0, 0.2, 0.45, 0.15, 0.0, 0.3, GLOW)
    b.box(0, 0, 0.8, 0.35, 1.25, 2.4, shade(colour, 0.85), "bricks")


def _chest(b: Builder, colour: RGB) -> None:
    b.box(0, 0, 1.1, 0.6, 0, 0.6, colour, "boards")
    for x in (-0.35, 0.35):
        b.box(x, 0, 0.08, 0.61, 0, 0.62, DARK)
    b.box(0, 0.6, 0.14, 0.03, 0.36, 0.52, (220, 190, 90))


@dataclass(frozen=True)
class Kind:
    """A kind of furniture: footprint `width` × `depth` and `height` in metres; `free` when it may stand off a wall."""

    width: float
    depth: float
    height: float
    build: Callable[[Builder, RGB], None]
    free: bool = False
    colours: tuple[str, ...] = ()


_ANY = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "brown")
_BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
_NO_WHITE = tuple(c for c in _ANY if c != "white")

KINDS: dict[str, Kind] = {
    "sofa": Kind(2.0, 0.9, 0.9, _sofa, colours=_ANY),
    "armchair": Kind(0.95, 0.85, 1.1, _armchair, True, _ANY),
    "bed": Kind(1.6, 2.02, 1.05, _bed, colours=tuple(c for c in _NO_WHITE if c != "brown")),
    "table": Kind(1.4, 0.85, 0.78, _table, True, _ANY),
    "desk": Kind(1.4, 0.7, 1.32, _desk, colours=_BRIGHT),
    "chair": Kind(0.55, 0.55, 1.05, _chair, True, _ANY),
    "bench": Kind(1.4, 0.45, 0.5, _bench, colours=_ANY),
    "lamp": Kind(0.64, 0.62, 1.8, _lamp, colours=tuple(c for c in _BRIGHT)),
    "wardrobe": Kind(1.3, 0.63, 2.0, _wardrobe, colours=_ANY),
    "bookshelf": Kind(1.22, 0.35, 1.9, _bookshelf, colours=_ANY),
    "plant": Kind(0.7, 0.7, 1.4, _plant, colours=tuple(c for c in _BRIGHT if c != "green")),
    "fridge": Kind(0.85, 0.8, 1.85, _fridge, colours=_ANY),
    "stove": Kind(0.8, 0.7, 0.95, _stove, colours=_BRIGHT),
    "bathtub": Kind(1.7, 0.8, 0.6, _bathtub, colours=_ANY),
    "toilet": Kind(0.54, 0.75, 0.95, _toilet, colours=tuple(c for c in _ANY if c not in ("brown",))),
    "sink": Kind(0.96, 0.54, 1.95, _sink, colours=_NO_WHITE),
    "tv": Kind(1.5, 0.42, 1.32, _tv, colours=_BRIGHT),
    "cabinet": Kind(1.2, 0.53, 0.95, _cabinet, colours=_NO_WHITE),
    "fireplace": Kind(1.5, 0.5, 2.4, _fireplace, colours=("red", "white", "brown", "orange", "blue", "green")),
    "chest": Kind(1.1, 0.63, 0.6, _chest, colours=_NO_WHITE),
}
