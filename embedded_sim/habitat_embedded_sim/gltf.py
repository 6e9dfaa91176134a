"""Reading glTF 2.0 (`.glb`, `.gltf`): nodes, triangles, base colours. Nothing that navigation does not show."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_COMPONENT = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_KNOWN_EXTENSIONS = {"KHR_materials_unlit", "KHR_mesh_quantization"}


class SceneError(ValueError):
    """A scene file that cannot be read: one line with the file, what is wrong and what to do."""


@dataclass
class Primitive:
    """One drawn piece of a node, in the file's own frame.

    positions float64 [V, 3]; faces int32 [F, 3]; uv float32 [V, 2] or None; colours float32 [V, 3] or None (0–1);
    material index or None; semantic_id 0 where the node (and its parents) carry none.
    """

    positions: np.ndarray
    faces: np.ndarray
    uv: np.ndarray | None
    colours: np.ndarray | None
    material: int | None
    semantic_id: int


class GltfFile:
    """A parsed file. `primitives()` walks the default scene; `materials`, `image(i)` give what they wear."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise SceneError(f"{path}: cannot read the scene ({error.strerror}); check scenes_dir") from None
        self._binary = b""
        self.json = self._parse(data)
        unknown = set(self.json.get("extensionsRequired", ())) - _KNOWN_EXTENSIONS
        if unknown:
            raise SceneError(
                f"{path}: needs the glTF extensions {sorted(unknown)}, which the embedded simulator cannot "
                "decode; convert the file to plain glTF or use the real habitat-sim"
            )
        self._buffers: dict[int, bytes] = {}

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            if data[:4] != b"glTF":
                return json.loads(data)
            document: dict[str, Any] = {}
            offset = 12
            while offset + 8 <= len(data):
                length, kind = struct.unpack_from("<I4s", data, offset)
                chunk = data[offset + 8 : offset + 8 + length]
                if kind == b"JSON":
                    document = json.loads(chunk)
                elif kind == b"BIN\0":
                    self._binary = chunk
                offset += 8 + length
            return document
        except (ValueError, struct.error) as error:
            raise SceneError(f"{self.path}: not a readable glTF 2.0 file ({error}); export it again") from None

    # ---- buffers -------------------------------------------------------------------------------------------------

    def _buffer(self, index: int) -> bytes:
        if index not in self._buffers:
            uri = self.json["buffers"][index].get("uri")
            self._buffers[index] = self._binary if uri is None else self._uri(uri)
        return self._buffers[index]

    def _uri(self, uri: str) -> bytes:
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2])
        file = self.path.parent / uri
        if not file.is_file():
            raise SceneError(f"{self.path}: refers to {uri}, which is not beside it; copy it there")
        return file.read_bytes()

    def _view(self, index: int) -> tuple[bytes, int, int, int | None]:
        view = self.json["bufferViews"][index]
        return (
            self._buffer(view["buffer"]),
            view.get("byteOffset", 0),
            view["byteLength"],
            view.get("byteStride"),
        )

    def accessor(self, index: int) -> np.ndarray:
        """The values of an accessor [count, width]; normalised integers come as float32 in 0–1 or −1–1."""
        info = self.json["accessors"][index]
        if "sparse" in info:
            raise SceneError(f"{self.path}: accessor {index} is sparse, which is not read; export it dense")
        dtype, width, count = np.dtype(_COMPONENT[info["componentType"]]), _WIDTH[info["type"]], info["count"]
        if "bufferView" not in info:
            return np.zeros((count, width), dtype)
        data, start, _, stride = self._view(info["bufferView"])
        values: np.ndarray = np.ndarray(
            (count, width),
            dtype,
            buffer=data,
            offset=start + info.get("byteOffset", 0),
            strides=(stride or dtype.itemsize * width, dtype.itemsize),
        )
        if info.get("normalized") and dtype.kind in "iu":
            values = np.maximum(values.astype(np.float32) / np.iinfo(dtype).max, -1.0)
        return values

    def image(self, index: int) -> np.ndarray:
        """Image `index` as uint8 [H, W, 3]."""
        info = self.json["images"][index]
        if "bufferView" in info:
            data, start, length, _ = self._view(info["bufferView"])
            raw = data[start : start + length]
        else:
            raw = self._uri(info["uri"])
        try:
            return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
        except OSError:
            kind = info.get("mimeType", "unknown format")
            raise SceneError(
                f"{self.path}: texture {index} ({kind}) cannot be decoded; use the scene with PNG or JPEG textures"
            ) from None

    # ---- the scene -----------------------------------------------------------------------------------------------

    @property
    def materials(self) -> list[dict[str, Any]]:
        return self.json.get("materials", [])

    def primitives(self) -> Iterator[Primitive]:
        """Every triangle primitive of the default scene, node transforms applied."""
        scenes = self.json.get("scenes", [])
        nodes = self.json.get("nodes", [])
        roots = scenes[self.json.get("scene", 0)].get("nodes", []) if scenes else range(len(nodes))
        stack = [(root, np.eye(4), 0) for root in reversed(list(roots))]
        while stack:
            index, parent, semantic_id = stack.pop()
            node = nodes[index]
            transform = parent @ _local_transform(node)
            semantic_id = int((node.get("extras") or {}).get("semantic_id", semantic_id))
            stack.extend((child, transform, semantic_id) for child in reversed(node.get("children", [])))
            if "mesh" in node:
                for primitive in self.json["meshes"][node["mesh"]]["primitives"]:
                    if primitive.get("mode", _TRIANGLES) in (_TRIANGLES, _STRIP, _FAN):
                        yield self._primitive(primitive, transform, semantic_id)

    def _primitive(self, primitive: dict[str, Any], transform: np.ndarray, semantic_id: int) -> Primitive:
        attributes = primitive["attributes"]
        positions = self.accessor(attributes["POSITION"]).astype(np.float64)
        positions = positions @ transform[:3, :3].T + transform[:3, 3]
        if "indices" in primitive:
            order = self.accessor(primitive["indices"])[:, 0].astype(np.int32)
        else:
            order = np.arange(len(positions), dtype=np.int32)
        material = primitive.get("material")
        uv_set = base_colour_texture(self.materials[material]).get("texCoord", 0) if material is not None else 0
        uv = attributes.get(f"TEXCOORD_{uv_set}")
        colours = attributes.get("COLOR_0")
        return Primitive(
            positions=positions,
            faces=_triangles(order, primitive.get("mode", _TRIANGLES)),
            uv=None if uv is None else self.accessor(uv).astype(np.float32),
            colours=None if colours is None else self.accessor(colours)[:, :3].astype(np.float32),
            material=material,
            semantic_id=semantic_id,
        )


def base_colour_texture(material: dict[str, Any]) -> dict[str, Any]:
    """The `baseColorTexture` entry of a glTF material, {} where it has none."""
    return material.get("pbrMetallicRoughness", {}).get("baseColorTexture", {})


def _triangles(order: np.ndarray, mode: int) -> np.ndarray:
    """Vertex order → triangles [F, 3], the winding of strips kept."""
    if mode == _TRIANGLES:
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    if mode == _FAN:
        first = np.full(max(len(order) - 2, 0), order[0], np.int32)
        return np.stack([first, order[1:-1], order[2:]], axis=1)
    faces = np.stack([order[:-2], order[1:-1], order[2:]], axis=1)
    faces[1::2] = faces[1::2, [1, 0, 2]]
    return faces


def _local_transform(node: dict[str, Any]) -> np.ndarray:
    """A node's `matrix`, or its translation · rotation · scale, as float64 [4, 4]."""
    if "matrix" in node:
        return np.asarray(node["matrix"], dtype=np.float64).reshape(4, 4).T
    transform = np.eye(4)
    x, y, z, w = node.get("rotation", (0.0, 0.0, 0.0, 1.0))
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    transform[:3, :3] = rotation * np.asarray(node.get("scale", (1.0, 1.0, 1.0)))
    transform[:3, 3] = node.get("translation", (0.0, 0.0, 0.0))
    return transform
