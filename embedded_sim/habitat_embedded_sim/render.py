"""Pinhole cameras by ray casting: one cast gives colours, planar depth and semantic ids."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import quaternion as qt

from .bvh import Bvh
from .mesh import Mesh
from .shading import Surface

FAR = 1000.0
"""What lies farther than this (metres) is not seen, as with habitat-sim's default far plane."""


@dataclass(frozen=True)
class Camera:
    """A pinhole: height and width in pixels, horizontal field of view in degrees."""

    height: int
    width: int
    hfov: float

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or not 0 < self.hfov < 180:
            raise ValueError(
                f"camera {self.width} × {self.height}, hfov {self.hfov}: sizes must be positive, hfov in (0, 180)"
            )

    @property
    def pixel(self) -> float:
        """Width of a pixel at one metre, in metres."""
        return 2 * math.tan(math.radians(self.hfov) / 2) / self.width


@lru_cache(maxsize=16)
def local_rays(camera: Camera) -> np.ndarray:
    """Directions float32 [H·W, 3] through the pixel centres, row by row; x right, y up, z = −1, so that a ray's length
    parameter is planar depth."""
    x = (np.arange(camera.width) + 0.5 - camera.width / 2) * camera.pixel
    y = (camera.height / 2 - np.arange(camera.height) - 0.5) * camera.pixel
    rays = np.empty((camera.height, camera.width, 3), np.float32)
    rays[..., 0], rays[..., 1], rays[..., 2] = x, y[:, None], -1.0
    rays.flags.writeable = False
    return rays.reshape(-1, 3)


class EmbreeCaster:
    """Embree's ray caster. Same contract as `Bvh`."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        self._scene = EmbreeScene()
        self._mesh = TriangleMesh(self._scene, np.ascontiguousarray(vertices[faces], dtype=np.float32))

    def cast(self, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, ...]:
        """See `Bvh.cast`."""
        origins = np.empty_like(directions)
        origins[:] = origin
        hits = self._scene.run(origins, directions, query="INTERSECT", output=True)
        return hits["primID"], hits["u"], hits["v"], hits["tfar"]


def make_caster(mesh: Mesh, engine: str | None = None) -> Bvh | EmbreeCaster:
    """Embree where installed, else the numba BVH; `engine` "embree" or "numba" asks for one of them."""
    if engine not in (None, "embree", "numba"):
        raise ValueError(f"ray casting engine {engine!r} is unknown: use 'embree' or 'numba'")
    if engine != "numba" and len(mesh.faces):
        try:
            return EmbreeCaster(mesh.vertices, mesh.faces)
        except ImportError:
            if engine == "embree":
                raise
    return Bvh(mesh.vertices, mesh.faces)


class View:
    """What one camera sees from one pose. The cast is done; the images are made when asked for."""

    def __init__(self, renderer: Renderer, camera: Camera, hits: tuple[np.ndarray, ...]) -> None:
        self._renderer, self._camera = renderer, camera
        self._face, self._u, self._v, t = hits
        seen = (self._face >= 0) & (t <= FAR)
        self._face = np.where(seen, self._face, -1)
        self._depth = np.where(seen, t, np.float32(0.0))
        self._shape = (camera.height, camera.width)

    @cached_property
    def colour(self) -> np.ndarray:
        """uint8 [H, W, 4]; black where nothing is hit, alpha 255."""
        surface = self._renderer.surface
        return surface.shade(self._face, self._u, self._v, self._depth, self._camera.pixel).reshape(*self._shape, 4)

    @cached_property
    def depth(self) -> np.ndarray:
        """float32 [H, W], metres along the optical axis; 0 where nothing is hit."""
        return self._depth.reshape(self._shape)

    @cached_property
    def semantic(self) -> np.ndarray:
        """uint32 [H, W]; 0 where nothing is hit or the surface has no id."""
        ids = self._renderer.semantic_ids[self._face]  # −1 picks the extra last entry
        return ids.reshape(self._shape)


class Renderer:
    """Renders one mesh. The last `keep` views are remembered: sensors that share a camera and a pose, and a reset that
    renders twice, cost one cast."""

    def __init__(self, mesh: Mesh, engine: str | None = None) -> None:
        self.surface = Surface.of(mesh)
        self.semantic_ids = np.append(mesh.semantic_ids, 0).astype(np.uint32)
        self.keep = 4
        self._caster = make_caster(mesh, engine)
        self._views: OrderedDict[tuple, View] = OrderedDict()

    def view(self, camera: Camera, position: np.ndarray, rotation: qt.quaternion) -> View:
        """The view from `position` [3] (metres) with `rotation` (camera → world, the camera looks along −z)."""
        key = (camera, *(float(x) for x in position), *(float(x) for x in rotation.components))
        if key in self._views:
            self._views.move_to_end(key)
            return self._views[key]
        directions = np.ascontiguousarray(local_rays(camera) @ qt.as_rotation_matrix(rotation).astype(np.float32).T)
        view = View(self, camera, self._caster.cast(np.asarray(position, np.float32), directions))
        self._views[key] = view
        while len(self._views) > self.keep:
            self._views.popitem(last=False)
        return view
