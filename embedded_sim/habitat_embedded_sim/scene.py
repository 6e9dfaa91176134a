"""Loaded scenes and their navigation meshes, kept within a memory budget: environments change scenes all the time."""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from pathlib import Path

import numpy as np

from .mesh import Mesh
from .navmesh import NavGrid, NavMeshSettings
from .render import Renderer
from .semantics import Annotation, read_annotations

CACHE_BYTES = 512 * 2**20  # a generated house takes about 5 MB, with its distance fields up to 15
EMPTY_SCENES = ("", "none")


class Scene:
    """One scene file: annotations, renderer and navigation meshes, the latter two made when first asked for."""

    def __init__(self, path: str, with_textures: bool) -> None:
        self.path = path
        empty = path.lower() in EMPTY_SCENES
        self._mesh = Mesh.empty() if empty else Mesh.load(path, with_textures)
        self.annotations: list[Annotation] = [] if empty else read_annotations(path)
        self._renderer: Renderer | None = None
        self._grids: dict[NavMeshSettings, NavGrid] = {}

    @property
    def renderer(self) -> Renderer:
        if self._renderer is None:
            self._renderer = Renderer(self._mesh)
            self._mesh.textures = []  # the renderer keeps its own pyramid of them
        return self._renderer

    def nav_grid(self, settings: NavMeshSettings) -> NavGrid | None:
        """The navigation mesh for these settings, None in an empty scene."""
        if not len(self._mesh.faces):
            return None
        if settings not in self._grids:
            self._grids[settings] = NavGrid.build(self._mesh.vertices, self._mesh.faces, settings)
        return self._grids[settings]

    def object_bounds(self, semantic_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner float64 [3] of the faces with this id; zeros where there is none."""
        low, high = self._object_bounds.get(semantic_id, (np.zeros(3), np.zeros(3)))
        return low, high

    @cached_property
    def _object_bounds(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        ids = self._mesh.semantic_ids
        order = np.argsort(ids, kind="stable")
        starts = np.flatnonzero(np.diff(ids[order], prepend=ids.min(initial=0) - 1))
        if not len(starts):
            return {}
        corners = self._mesh.vertices[self._mesh.faces[order]].astype(np.float64)
        low = np.minimum.reduceat(corners.min(axis=1), starts)
        high = np.maximum.reduceat(corners.max(axis=1), starts)
        return {int(ids[order[start]]): (low[i], high[i]) for i, start in enumerate(starts)}

    @property
    def nbytes(self) -> int:
        """Rough size in memory, in bytes."""
        mesh = sum(value.nbytes for value in vars(self._mesh).values() if isinstance(value, np.ndarray))
        textures = sum(texture.nbytes for texture in self._mesh.textures)
        grids = sum(grid.nbytes for grid in self._grids.values())
        return mesh + textures + grids + (self._renderer.surface.nbytes if self._renderer else 0)


_cache: OrderedDict[tuple, Scene] = OrderedDict()


def open_scene(path: str, with_textures: bool = True) -> Scene:
    """The scene at `path` ("" or "NONE": the empty scene), from this process's cache where its file is unchanged.

    The least recently used scenes are dropped where the cache exceeds CACHE_BYTES.
    """
    file = Path(path)
    stamp = file.stat().st_mtime_ns if path.lower() not in EMPTY_SCENES and file.is_file() else None
    key = (path, stamp, with_textures)
    if key not in _cache:
        while sum(scene.nbytes for scene in _cache.values()) > CACHE_BYTES:
            _cache.popitem(last=False)
        _cache[key] = Scene(path, with_textures)
    _cache.move_to_end(key)
    return _cache[key]
