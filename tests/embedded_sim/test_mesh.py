"""Reading scenes: frames, transforms, materials, semantic ids, and what is said about broken files."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from habitat_embedded_sim.gltf import GltfFile, SceneError
from habitat_embedded_sim.mesh import Mesh
from habitat_embedded_sim.semantics import read_annotations

from tests.embedded_sim import small_scene

QUAD = small_scene.panel((0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 0, 0))


def write_quad(folder: Path, **node) -> Path:
    path = folder / "quad.glb"
    plain = {"quads": [QUAD], "colour": (0.5, 0.25, 1.0), "semantic_id": 7, "checker": False}
    path.write_bytes(small_scene.glb([plain | node]))
    return path


def edit(path: Path, change) -> Path:
    """Change the JSON of a .glb in place."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    document = json.loads(data[20 : 20 + length])
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    path.write_bytes(struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(rest), len(text), b"JSON") + text + rest)
    return path


def test_a_bare_glb_is_z_up(tmp_path: Path) -> None:
    mesh = Mesh.load(small_scene.write_scene(tmp_path))
    assert np.allclose(mesh.vertices.min(0), 0)
    assert np.allclose(mesh.vertices.max(0), (small_scene.WIDTH, small_scene.HEIGHT, small_scene.DEPTH))
    red = mesh.vertices[mesh.faces[mesh.semantic_ids == small_scene.BOX[1]]].reshape(-1, 3)
    assert np.allclose([red.min(0), red.max(0)], small_scene.BOX_CORNERS)


def test_turning_z_up_to_y_up_keeps_the_winding(tmp_path: Path) -> None:
    mesh = Mesh.load(write_quad(tmp_path))
    a, b, c = mesh.vertices[mesh.faces[0]]
    assert np.allclose(np.cross(b - a, c - a), (0, 1, 0))


@pytest.mark.parametrize(
    "transform",
    [
        {"translation": [1, 2, 3], "scale": [2, 2, 2]},
        {"matrix": [2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 1, 2, 3, 1]},
    ],
)
def test_node_transforms(tmp_path: Path, transform: dict) -> None:
    mesh = Mesh.load(write_quad(tmp_path, transform=transform))
    # file (1, 2, 3) is world (1, 3, −2)
    assert np.allclose(mesh.vertices.min(0), (1, 3, -2))
    assert np.allclose(mesh.vertices.max(0), (3, 3, 0))


def test_rotations_and_children_compose_and_inherit_semantic_ids(tmp_path: Path) -> None:
    half = np.sqrt(0.5)

    def nest(document: dict) -> None:
        child = document["nodes"][0]
        del child["extras"]
        child["translation"] = [1, 0, 0]
        document["nodes"].append({"children": [0], "rotation": [0, 0, half, half], "extras": {"semantic_id": 9}})
        document["scenes"][0]["nodes"] = [1]

    mesh = Mesh.load(edit(write_quad(tmp_path), nest))
    # a quarter turn around the file's z (world y) takes world x to −z
    assert np.allclose(mesh.vertices.min(0), (0, 0, -2), atol=1e-6)
    assert np.allclose(mesh.vertices.max(0), (1, 0, -1), atol=1e-6)
    assert (mesh.semantic_ids == 9).all()


def test_materials_colours_and_textures(tmp_path: Path) -> None:
    colours = [[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [1, 2, 3, 255]]
    mesh = Mesh.load(write_quad(tmp_path, colours=colours, checker=True))
    assert (mesh.colours == np.array(colours)[:, :3]).all()
    assert np.allclose(mesh.base_colour[mesh.face_material], (0.5, 0.25, 1.0))
    assert mesh.unlit[mesh.face_material].all()
    assert mesh.textures[mesh.texture[mesh.face_material[0]]].shape == (16, 16, 3)


def test_triangle_strips_keep_their_winding(tmp_path: Path) -> None:
    def strip(document: dict) -> None:
        document["meshes"][0]["primitives"][0]["mode"] = 5
        del document["meshes"][0]["primitives"][0]["indices"]

    corners = QUAD[[0, 1, 3, 2]]
    mesh = Mesh.load(edit(write_quad(tmp_path, quads=[corners]), strip))
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    assert np.allclose(np.cross(b - a, c - a), (0, 1, 0))


def test_the_empty_scene_has_no_triangle() -> None:
    assert Mesh.empty().faces.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(extensionsRequired=["KHR_texture_basisu"]), "KHR_texture_basisu"),
        (lambda d: d["nodes"][0].update(mesh=5), "broken glTF reference"),
        (lambda d: d.update(scenes=[{"nodes": []}]), "no triangle"),
        (lambda d: d["accessors"][0].update(sparse={}), "sparse"),
        (lambda d: d["images"][0].update(bufferView=1), "cannot be decoded"),
        (lambda d: d["nodes"][0].update(translation=[float("nan"), 0, 0]), "not finite"),
    ],
)
def test_broken_scenes_are_named_in_one_line(tmp_path: Path, change, words: str) -> None:
    path = edit(write_quad(tmp_path, checker=True), change)
    with pytest.raises(SceneError, match=words) as caught:
        Mesh.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"glTF", b"no scene at all", b"glTF\2\0\0\0\xff\0\0\0\xff\0\0\0JSON{"])
def test_files_that_are_no_gltf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.glb"
    path.write_bytes(content)
    with pytest.raises(SceneError):
        Mesh.load(path)
    with pytest.raises(SceneError, match="cannot read"):
        Mesh.load(tmp_path / "missing.glb")


def test_buffers_beside_a_gltf(tmp_path: Path) -> None:
    path = write_quad(tmp_path)
    glb = GltfFile(path)
    (tmp_path / "quad.bin").write_bytes(glb._binary)
    glb.json["buffers"][0]["uri"] = "quad.bin"
    text = tmp_path / "quad.gltf"
    text.write_text(json.dumps(glb.json))
    assert np.array_equal(Mesh.load(text).vertices, Mesh.load(path).vertices)
    (tmp_path / "quad.bin").unlink()
    with pytest.raises(SceneError, match=r"quad\.bin"):
        Mesh.load(text)


def test_annotations(tmp_path: Path) -> None:
    scene = small_scene.write_scene(tmp_path)
    floor, _, box = read_annotations(scene)
    assert (floor.semantic_id, floor.category, floor.region) == (1, "floor", 0)
    assert (box.semantic_id, box.category, box.region) == (3, "red box", 1)
    assert read_annotations(tmp_path / "other.glb") == []
    file = scene.with_suffix(".semantic.txt")
    file.write_text(file.read_text() + "4,FFFFFF,no region\n")
    with pytest.raises(SceneError, match=":5:"):
        read_annotations(scene)
    file.write_text("something else\n")
    with pytest.raises(SceneError, match="first line"):
        read_annotations(scene)
