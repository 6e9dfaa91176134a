"""Triangles of a house as semantic objects, in the habitat world frame (metres, y up, floor at y = 0).

Light is baked: every quad's colour is its paint times a factor that depends on where the quad faces, a little darker
near the floor, so that corners and shapes show without any lamp.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from habitat_embedded_sim.houses.style import RGB
from habitat_embedded_sim.houses.textures import repeat

# Brightness of a face by its normal, (negative, positive) direction of x, y, z; the squares of the normal weigh.
_LIGHT = np.array([[0.84, 0.9, 0.77], [0.96, 1.0, 0.9]])
_FLOOR_SHADE = 0.84  # factor of upright faces at y = 0, rising to 1 at SHADE_TOP
SHADE_TOP = 0.9

Point = tuple[float, float, float]


def _shade(corners: np.ndarray, normal: np.ndarray, graded: np.ndarray) -> np.ndarray:
    """Baked brightness [N, 4] of quads: corners [N, 4, 3], unit normals [N, 3], graded [N] (darker at the floor)."""
    facing = (normal > 0).astype(int)
    factor = (normal**2 * np.take_along_axis(_LIGHT, facing, axis=0)).sum(1)[:, None]
    height = np.clip(corners[:, :, 1] / SHADE_TOP, 0, 1)
    upright = (graded & (np.abs(normal[:, 1]) < 0.9))[:, None]
    return factor * np.where(upright, _FLOOR_SHADE + (1 - _FLOOR_SHADE) * height, 1.0)


def _uv(corners: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Planar texture coordinates [N, 4, 2] in metres; v runs down walls."""
    axis = np.abs(normal).argmax(1)[:, None]
    u = np.where(axis == 0, corners[:, :, 2], corners[:, :, 0])
    v = np.where(axis == 1, corners[:, :, 2], -corners[:, :, 1])
    return np.stack([u, v], axis=-1)


@dataclass
class Primitive:
    """Quads of one texture: four corners, paint and whether they are darker towards the floor."""

    texture: str
    corners: list[Iterable[Point]] = field(default_factory=list)
    colours: list[RGB] = field(default_factory=list)
    graded: list[bool] = field(default_factory=list)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions [4N, 3], texture coordinates [4N, 2] and baked colours [4N, 3] uint8 of the N quads."""
        corners = np.array(self.corners, dtype=np.float64)
        normal = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        factor = _shade(corners, normal, np.array(self.graded))
        colours = np.round(np.array(self.colours, dtype=np.float64)[:, None] * factor[..., None])
        uv = _uv(corners, normal) / repeat(self.texture)
        return (
            corners.reshape(-1, 3),
            uv.reshape(-1, 2),
            np.clip(colours, 0, 255).astype(np.uint8).reshape(-1, 3),
        )


@dataclass
class SceneObject:
    """One semantic object: a node of the glTF scene and a line of the semantic file."""

    semantic_id: int
    category: str
    region: int
    primitives: dict[str, Primitive] = field(default_factory=dict)

    def quad(self, corners: Iterable[Point], colour: RGB, texture: str = "plain", graded: bool = True) -> None:
        """Add a quad; the four corners run counter-clockwise as seen from its front."""
        primitive = self.primitives.setdefault(texture, Primitive(texture))
        primitive.corners.append(corners)
        primitive.colours.append(colour)
        primitive.graded.append(graded)

    def box(self, low: Point, high: Point, colour: RGB, texture: str = "plain", faces: str = "xXyYzZ") -> None:
        """Add an axis-aligned box; `faces` lists the sides wanted (x is −x, X is +x, …; y is the underside)."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        sides = {
            "x": [(x0, y0, z0), (x0, y0, z1), (x0, y1, z1), (x0, y1, z0)],
            "X": [(x1, y0, z1), (x1, y0, z0), (x1, y1, z0), (x1, y1, z1)],
            "y": [(x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)],
            "Y": [(x0, y1, z1), (x1, y1, z1), (x1, y1, z0), (x0, y1, z0)],
            "z": [(x1, y0, z0), (x0, y0, z0), (x0, y1, z0), (x1, y1, z0)],
            "Z": [(x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)],
        }
        for face in faces:
            self.quad(sides[face], colour, texture)

    @property
    def triangles(self) -> int:
        return 2 * sum(len(p.corners) for p in self.primitives.values())


def geometry(objects: list[SceneObject]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [V, 3] float32 (habitat world), faces [F, 3] int32 and semantic ids [F] int32 of all objects."""
    parts = [(item.semantic_id, p) for item in objects for p in item.primitives.values()]
    points = np.concatenate([np.array(p.corners, dtype=np.float32).reshape(-1, 3) for _, p in parts])
    first = np.arange(0, len(points), 4, dtype=np.int32)[:, None, None]
    faces = (first + np.array([[0, 1, 2], [0, 2, 3]], dtype=np.int32)).reshape(-1, 3)
    ids = np.concatenate([np.full(2 * len(p.corners), i, dtype=np.int32) for i, p in parts])
    return points, faces, ids
