"""Writing a house: binary glTF 2.0 (`.glb`), and its semantics twice over.

The embedded simulator reads ids from the `.glb`. habitat-sim, given a bare `.glb`, reads them from `_semantic.ply`, a
mesh in the colours that `_semantic.txt` lists; both take the names from the latter.

The `.glb` is z-up, as habitat-sim takes a bare one: world (x, y, z) = mesh (x, z, −y). Materials are unlit
(KHR_materials_unlit), colour = texture × vertex colour.
"""

import json
import struct
from typing import Any

import numpy as np

from habitat_embedded_sim.houses import textures
from habitat_embedded_sim.houses.scene import Primitive, SceneObject, geometry

_FLOAT, _UINT8, _UINT16 = 5126, 5121, 5123
_VERTEX_BUFFER, _INDEX_BUFFER = 34962, 34963


class _Buffer:
    """The binary chunk with its views and accessors."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict] = []
        self.accessors: list[dict] = []

    def add_view(self, data: bytes, target: int | None = None) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        if target:
            view["target"] = target
        self.data += data
        self.views.append(view)
        return len(self.views) - 1

    def add_array(self, array: np.ndarray, kind: str, component: int, target: int, **extra) -> int:
        view = self.add_view(np.ascontiguousarray(array).tobytes(), target)
        accessor = {
            "bufferView": view,
            "componentType": component,
            "count": len(array),
            "type": kind,
            **extra,
        }
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def to_mesh_frame(points: np.ndarray) -> np.ndarray:
    """Habitat world points [N, 3] (y up) in the z-up frame of the file."""
    return np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1)


def _add_primitive(buffer: _Buffer, primitive: Primitive, material: int) -> dict:
    points, uv, paint = primitive.arrays()
    positions = to_mesh_frame(points).astype("<f4")
    colours = np.full((len(positions), 4), 255, dtype=np.uint8)
    colours[:, :3] = paint
    first = np.arange(0, len(positions), 4, dtype="<u2")[:, None]
    indices = (first + np.array([[0, 1, 2, 0, 2, 3]], dtype="<u2")).reshape(-1)
    low, high = positions.min(0).tolist(), positions.max(0).tolist()
    attributes = {
        "POSITION": buffer.add_array(positions, "VEC3", _FLOAT, _VERTEX_BUFFER, min=low, max=high),
        "TEXCOORD_0": buffer.add_array(uv.astype("<f4"), "VEC2", _FLOAT, _VERTEX_BUFFER),
        "COLOR_0": buffer.add_array(colours, "VEC4", _UINT8, _VERTEX_BUFFER, normalized=True),
    }
    index = buffer.add_array(indices, "SCALAR", _UINT16, _INDEX_BUFFER)
    return {"attributes": attributes, "indices": index, "material": material}


def glb_bytes(objects: list[SceneObject]) -> bytes:
    """The `.glb` file of the objects: one node and one mesh each, `extras.semantic_id` on the node."""
    buffer = _Buffer()
    used = [t for t in textures.TEXTURES if any(t in item.primitives for item in objects)]
    images = [{"bufferView": buffer.add_view(textures.png(t)), "mimeType": "image/png", "name": t} for t in used]
    meshes, nodes = [], []
    for item in objects:
        primitives = [_add_primitive(buffer, p, used.index(t)) for t, p in sorted(item.primitives.items())]
        meshes.append({"name": item.category, "primitives": primitives})
        extras = {"semantic_id": item.semantic_id}
        nodes.append({"name": f"{item.category} {item.semantic_id}", "mesh": len(meshes) - 1, "extras": extras})
    unlit: dict[str, dict] = {"KHR_materials_unlit": {}}
    materials = [
        {
            "name": name,
            "pbrMetallicRoughness": {
                "baseColorTexture": {"index": k},
                "metallicFactor": 0.0,
                "roughnessFactor": 1.0,
            },
            "extensions": unlit,
        }
        for k, name in enumerate(used)
    ]
    document = {
        "asset": {"version": "2.0", "generator": "habitat_embedded_sim.houses"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": list(range(len(nodes)))}],
        "nodes": nodes,
        "meshes": meshes,
        "materials": materials,
        "textures": [{"sampler": 0, "source": k} for k in range(len(used))],
        "samplers": [{"magFilter": 9729, "minFilter": 9987, "wrapS": 10497, "wrapT": 10497}],
        "images": images,
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.data)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary = bytes(buffer.data) + b"\0" * (-len(buffer.data) % 4)
    size = 12 + 8 + len(text) + 8 + len(binary)
    header = struct.pack("<4sII", b"glTF", 2, size)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return header + chunks


def _code(semantic_id: Any) -> Any:
    """An int, or an array of int64: the colour (0xRRGGBB) that stands for an id; distinct, as the factor is odd."""
    return (semantic_id * 2654435761) & 0xFFFFFF


def semantic_text(objects: list[SceneObject]) -> str:
    """HM3D semantic annotations: `id,HEXCOLOR,"category",region` per object."""
    lines = ["HM3D Semantic Annotations"]
    lines += [f'{item.semantic_id},{_code(item.semantic_id):06X},"{item.category}",{item.region}' for item in objects]
    return "\n".join(lines) + "\n"


def semantic_ply(objects: list[SceneObject]) -> bytes:
    """The objects' triangles as a binary PLY, each in its colour of the annotation.

    habitat-sim turns a PLY beside a bare `.glb` twice from z-up to y-up, once as the scene's frame asks and once as it
    does with every semantic PLY: world (x, y, z) = mesh (x, −y, −z).
    """
    points, faces, ids = geometry(objects)
    codes = _code(np.repeat(ids[::2].astype(np.int64), 4))  # two faces and four points a quad
    vertices = np.zeros(len(points), [("position", "<f4", 3), ("colour", "u1", 3)])
    vertices["position"] = points * np.array([1, -1, -1], np.float32)
    vertices["colour"] = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    triangles = np.zeros(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    triangles["count"], triangles["corners"] = 3, faces
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"property uchar {colour}" for colour in ("red", "green", "blue")]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(header).encode() + vertices.tobytes() + triangles.tobytes()
