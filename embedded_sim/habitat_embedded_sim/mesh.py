"""A scene's triangles in Habitat's world frame (metres, y up), with what the renderer and the navmesh need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .gltf import GltfFile, Primitive, SceneError, base_colour_texture


@dataclass
class Mesh:
    """Triangles with their looks.

    vertices float32 [V, 3] (world, y up); faces int32 [F, 3]; uv float32 [V, 2]; colours uint8 [V, 3];
    face_material int32 [F] into base_colour float32 [M, 3] (0–1), unlit bool [M] and texture int32 [M]
    (−1: none) into textures (uint8 [H, W, 3] each); semantic_ids int32 [F] (0: none).
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    colours: np.ndarray
    face_material: np.ndarray
    semantic_ids: np.ndarray
    base_colour: np.ndarray
    unlit: np.ndarray
    texture: np.ndarray
    textures: list[np.ndarray]

    @classmethod
    def empty(cls) -> Mesh:
        """The scene "NONE": no triangle at all."""
        return _assemble([])

    @classmethod
    def load(cls, path: str | Path, with_textures: bool = True) -> Mesh:
        """Read a `.glb` or `.gltf`.

        As habitat-sim does with a bare scene file, z is taken as up: world (x, y, z) = file (x, z, −y).
        Raises SceneError where the file cannot be read or holds no triangle.
        """
        gltf = GltfFile(path)
        try:
            mesh = _assemble(list(gltf.primitives()))
            mesh._dress(gltf, with_textures)
        except (KeyError, IndexError, TypeError) as error:
            raise SceneError(f"{path}: broken glTF reference ({error!r}); export the scene again") from None
        if not len(mesh.faces):
            raise SceneError(f"{path}: holds no triangle; check the exported scene")
        finite = np.isfinite(mesh.vertices).all() and np.isfinite(mesh.uv).all()
        if not finite or mesh.faces.max() >= len(mesh.vertices) or mesh.faces.min() < 0:
            raise SceneError(f"{path}: has numbers that are not finite or indices out of range; export it again")
        return mesh

    def _dress(self, gltf: GltfFile, with_textures: bool) -> None:
        """Fill in materials and textures; the last material stands for "none given"."""
        count = len(gltf.materials)
        self.face_material[self.face_material < 0] = count
        self.base_colour = np.ones((count + 1, 3), np.float32)
        self.unlit = np.zeros(count + 1, bool)
        self.texture = np.full(count + 1, -1, np.int32)
        slot_of_image: dict[int, int] = {}
        for i, material in enumerate(gltf.materials):
            factor = material.get("pbrMetallicRoughness", {}).get("baseColorFactor", (1.0, 1.0, 1.0, 1.0))
            self.base_colour[i] = factor[:3]
            self.unlit[i] = "KHR_materials_unlit" in material.get("extensions", {})
            texture = base_colour_texture(material)
            if with_textures and texture:
                image = gltf.json["textures"][texture["index"]]["source"]
                if image not in slot_of_image:
                    slot_of_image[image] = len(self.textures)
                    self.textures.append(gltf.image(image))
                self.texture[i] = slot_of_image[image]


def _assemble(primitives: list[Primitive]) -> Mesh:
    """Join primitives into one mesh, rotated from z up to y up. Faces without a material get −1."""
    offsets = np.cumsum([0] + [len(p.positions) for p in primitives])
    positions = _join([p.positions for p in primitives], (0, 3), np.float64)
    return Mesh(
        vertices=np.stack([positions[:, 0], positions[:, 2], -positions[:, 1]], axis=1).astype(np.float32),
        faces=_join([p.faces + start for p, start in zip(primitives, offsets, strict=False)], (0, 3), np.int32),
        uv=_join([np.zeros((len(p.positions), 2)) if p.uv is None else p.uv for p in primitives], (0, 2), np.float32),
        colours=_join([_bytes(p) for p in primitives], (0, 3), np.uint8),
        face_material=_join([_per_face(p, -1 if p.material is None else p.material) for p in primitives], 0, np.int32),
        semantic_ids=_join([_per_face(p, p.semantic_id) for p in primitives], 0, np.int32),
        base_colour=np.ones((1, 3), np.float32),
        unlit=np.zeros(1, bool),
        texture=np.full(1, -1, np.int32),
        textures=[],
    )


def _join(parts: list[np.ndarray], empty_shape: int | tuple[int, ...], dtype: type) -> np.ndarray:
    joined = np.concatenate(parts) if parts else np.empty(empty_shape)
    return np.ascontiguousarray(joined, dtype=dtype)


def _bytes(primitive: Primitive) -> np.ndarray:
    if primitive.colours is None:
        return np.full((len(primitive.positions), 3), 255, np.uint8)
    return np.rint(np.clip(primitive.colours, 0.0, 1.0) * 255).astype(np.uint8)


def _per_face(primitive: Primitive, value: int) -> np.ndarray:
    return np.full(len(primitive.faces), value, np.int32)
