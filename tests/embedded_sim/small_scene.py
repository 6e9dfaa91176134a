"""A little two-room house as a `.glb`, written by hand: what the tests of the embedded simulator look at.

World frame (metres, y up): rooms over x 0–3 and 3–6, z 0–4, height 2.5, a door at z 1.5–2.5 in the wall between, a red
box in the far room. The file is z-up, as habitat-sim takes it.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

# category, semantic id, region, colour
FLOOR, WALL, BOX = ("floor", 1, 0), ("white wall", 2, 0), ("red box", 3, 1)
BOX_CORNERS = (5.0, 0.0, 1.6), (5.6, 0.8, 2.4)
DOOR = (1.5, 2.5)
WIDTH, DEPTH, HEIGHT = 6.0, 4.0, 2.5


def panel(a: tuple, b: tuple, c: tuple, d: tuple) -> np.ndarray:
    """A quad with its corners in order, [4, 3]."""
    return np.array([a, b, c, d], dtype=np.float64)


def box(low: tuple, high: tuple) -> list[np.ndarray]:
    """The six outward faces of a box."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    return [
        panel((x0, y1, z0), (x0, y1, z1), (x1, y1, z1), (x1, y1, z0)),
        panel((x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)),
        panel((x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)),
        panel((x1, y0, z0), (x0, y0, z0), (x0, y1, z0), (x1, y1, z0)),
        panel((x1, y0, z1), (x1, y0, z0), (x1, y1, z0), (x1, y1, z1)),
        panel((x0, y0, z0), (x0, y0, z1), (x0, y1, z1), (x0, y1, z0)),
    ]


def parts() -> list[dict]:
    """The nodes of the house: quads in the world frame, colour, semantic id, whether the checker texture is on."""
    w, d, h = WIDTH, DEPTH, HEIGHT
    floor = [panel((0, 0, 0), (0, 0, d), (w, 0, d), (w, 0, 0))]
    walls = [
        panel((0, 0, d), (0, h, d), (w, h, d), (w, 0, d)),
        panel((0, 0, 0), (w, 0, 0), (w, h, 0), (0, h, 0)),
        panel((0, 0, 0), (0, h, 0), (0, h, d), (0, 0, d)),
        panel((w, 0, 0), (w, 0, d), (w, h, d), (w, h, 0)),
        *box((2.9, 0, 0), (3.1, h, DOOR[0])),
        *box((2.9, 0, DOOR[1]), (3.1, h, d)),
    ]
    return [
        {"quads": floor, "colour": (1.0, 1.0, 1.0), "semantic_id": FLOOR[1], "checker": True},
        {"quads": walls, "colour": (0.8, 0.8, 0.8), "semantic_id": WALL[1], "checker": False},
        {"quads": box(*BOX_CORNERS), "colour": (1.0, 0.0, 0.0), "semantic_id": BOX[1], "checker": False},
    ]


def write_scene(folder: Path, name: str = "small", unlit: bool = True) -> Path:
    """Write `<name>.glb` and `<name>.semantic.txt`; returns the path of the former."""
    path = folder / f"{name}.glb"
    path.write_bytes(glb(parts(), unlit))
    rows = [f'{i},{"%06X" % (i * 4660)},"{category}",{region}' for category, i, region in (FLOOR, WALL, BOX)]
    path.with_suffix(".semantic.txt").write_text("\n".join(["HM3D Semantic Annotations", *rows]) + "\n")
    return path


def glb(nodes: list[dict], unlit: bool = True) -> bytes:
    """The binary glTF of nodes as `parts` gives them; a node may hold a `transform` (glTF keys) and `colours`."""
    checker = np.kron([[255, 80], [80, 255]], np.ones((8, 8))).astype(np.uint8)
    png = io.BytesIO()
    Image.fromarray(checker).convert("RGB").save(png, "PNG")
    data, views, accessors, meshes, materials, out = bytearray(), [], [], [], [], []

    def view(raw: bytes) -> int:
        data.extend(b"\0" * (-len(data) % 4))
        views.append({"buffer": 0, "byteOffset": len(data), "byteLength": len(raw)})
        data.extend(raw)
        return len(views) - 1

    def accessor(array: np.ndarray, component: int, kind: str, **extra) -> int:
        entry = {"bufferView": view(array.tobytes()), "componentType": component, "count": len(array), "type": kind}
        accessors.append(entry | extra)
        return len(accessors) - 1

    image = view(png.getvalue())
    for node in nodes:
        world = np.concatenate(node["quads"])
        positions = np.stack([world[:, 0], -world[:, 2], world[:, 1]], axis=1).astype("<f4")
        first = np.arange(0, len(world), 4)[:, None]
        attributes = {
            "POSITION": accessor(positions, 5126, "VEC3"),
            "TEXCOORD_0": accessor(np.ascontiguousarray(world[:, [0, 2]], "<f4"), 5126, "VEC2"),
        }
        if "colours" in node:
            attributes["COLOR_0"] = accessor(np.asarray(node["colours"], np.uint8), 5121, "VEC4", normalized=True)
        material = {"pbrMetallicRoughness": {"baseColorFactor": [*node["colour"], 1.0]}}
        if node["checker"]:
            material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
        if unlit:
            material["extensions"] = {"KHR_materials_unlit": {}}
        materials.append(material)
        indices = accessor((first + np.array([0, 1, 2, 0, 2, 3])).reshape(-1).astype("<u2"), 5123, "SCALAR")
        meshes.append({"primitives": [{"attributes": attributes, "indices": indices, "material": len(meshes)}]})
        extras = {"extras": {"semantic_id": node["semantic_id"]}}
        out.append({"mesh": len(meshes) - 1, **extras, **node.get("transform", {})})
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": list(range(len(out)))}],
        "scene": 0,
        **{"nodes": out, "meshes": meshes, "materials": materials, "accessors": accessors, "bufferViews": views},
        "textures": [{"source": 0}],
        "images": [{"bufferView": image, "mimeType": "image/png"}],
        "buffers": [{"byteLength": len(data)}],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    binary = bytes(data) + b"\0" * (-len(data) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
