"""Rendering: geometry of the camera, colours, what both ray casters agree on."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import quaternion as qt
from habitat_embedded_sim.bvh import Bvh
from habitat_embedded_sim.mesh import Mesh
from habitat_embedded_sim.render import Camera, Renderer, local_rays
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.embedded_sim import small_scene

ENGINES = ["numba"] + ["embree"] * (importlib.util.find_spec("embreex") is not None)
EYE = np.array([4.0, 1.25, 2.0])
AHEAD = qt.one  # looking along −z
TO_BOX = qt.from_rotation_vector(np.array([0.0, -math.pi / 2, 0.0]))  # looking along +x
DOWN = qt.from_rotation_vector(np.array([-math.pi / 2, 0.0, 0.0]))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh.load(small_scene.write_scene(tmp_path_factory.mktemp("scene")))


@pytest.fixture(params=ENGINES)
def renderer(request: pytest.FixtureRequest, mesh: Mesh) -> Renderer:
    return Renderer(mesh, request.param)


def test_depth_is_planar(renderer: Renderer) -> None:
    depth = renderer.view(Camera(9, 9, 90.0), EYE, AHEAD).depth
    wall = depth[2:6]  # rows that see the wall z = 0, 2 m away, and neither floor nor the open top
    assert np.allclose(wall[:, 2:8], 2.0, atol=1e-4)
    assert np.allclose(wall[:, 1], 1.35, atol=1e-4)  # the wall between the rooms, 0.9 m to the left at slope 2/3


def test_nothing_hit_is_zero_and_black(renderer: Renderer) -> None:
    up = qt.from_rotation_vector(np.array([math.pi / 2, 0.0, 0.0]))
    view = renderer.view(Camera(8, 8, 30.0), EYE, up)  # the house has no ceiling
    assert not view.depth.any() and not view.semantic.any()
    assert (view.colour == (0, 0, 0, 255)).all()


def test_left_right_up_down(renderer: Renderer) -> None:
    # From a point beside the box: facing +x, the box (z 1.6–2.4) lies to the left of an eye at z 3.
    view = renderer.view(Camera(101, 101, 90.0), np.array([4.0, 1.25, 3.0]), TO_BOX)
    rows, columns = np.nonzero(view.semantic == small_scene.BOX[1])
    assert columns.max() < 50  # left of the middle
    assert rows.min() > 50  # below the horizon: the box is 0.8 m high
    assert (view.semantic[-1] == small_scene.FLOOR[1]).any()


def test_field_of_view(renderer: Renderer) -> None:
    # The wall z = 0 is 2 m away; at hfov 2·atan(1/2) the image shows exactly 2 m of it, at 2 : 1 also 1 m of height.
    camera = Camera(50, 100, math.degrees(2 * math.atan(0.5)))
    rays = local_rays(camera)
    assert rays[:, 0].max() == pytest.approx(0.5 * 99 / 100)
    assert rays[:, 1].max() == pytest.approx(0.25 * 49 / 50)
    assert (renderer.view(camera, EYE, AHEAD).semantic == small_scene.WALL[1]).all()


def test_unlit_colours_are_shown_as_they_are(renderer: Renderer) -> None:
    view = renderer.view(Camera(64, 64, 60.0), EYE, TO_BOX)
    red = view.colour[view.semantic == small_scene.BOX[1]]
    wall = view.colour[view.semantic == small_scene.WALL[1]]
    assert len(red) and (red == (255, 0, 0, 255)).all()
    assert (wall == (204, 204, 204, 255)).all()  # base colour 0.8


def test_lit_materials_differ_by_the_direction_of_the_wall_only(tmp_path: Path) -> None:
    renderer = Renderer(Mesh.load(small_scene.write_scene(tmp_path, unlit=False)), "numba")
    ahead = renderer.view(Camera(8, 8, 30.0), EYE, AHEAD).colour
    sideways = renderer.view(Camera(8, 8, 30.0), np.array([4.0, 2.0, 0.5]), TO_BOX).colour
    assert len(np.unique(ahead[..., 0])) == len(np.unique(sideways[..., 0])) == 1
    assert 0.6 * 204 < ahead[0, 0, 0] < sideways[0, 0, 0] <= 204


def test_textures_near_and_far(renderer: Renderer) -> None:
    # The floor repeats a checker of 255 and 80 every metre.
    near = renderer.view(Camera(64, 64, 60.0), np.array([1.5, 1.0, 2.0]), DOWN).colour[..., 0]
    assert {80, 255} <= set(np.unique(near).tolist())
    far = renderer.view(Camera(16, 16, 10.0), np.array([1.5, 200.0, 2.0]), DOWN)
    floor = far.colour[..., 0][far.semantic == small_scene.FLOOR[1]]
    assert len(floor) and np.abs(floor.astype(int) - 168).max() <= 2  # the mean of the checker


def test_a_checker_square_is_where_its_coordinates_say(renderer: Renderer) -> None:
    # uv = (x, z): the square with x and z below 0.5 is bright, its neighbour along x dark.
    camera = Camera(3, 3, 10.0)
    bright = renderer.view(camera, np.array([1.25, 1.0, 1.25]), DOWN).colour[1, 1, 0]
    dark = renderer.view(camera, np.array([1.75, 1.0, 1.25]), DOWN).colour[1, 1, 0]
    assert (bright, dark) == (255, 80)


def test_vertex_colours_are_interpolated(tmp_path: Path) -> None:
    quad = small_scene.panel((0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 0, 0))
    colours = [[0, 0, 0, 255], [0, 0, 0, 255], [200, 100, 0, 255], [200, 100, 0, 255]]
    node = {"quads": [quad], "colour": (1, 1, 1), "semantic_id": 1, "checker": False, "colours": colours}
    path = tmp_path / "quad.glb"
    path.write_bytes(small_scene.glb([node]))
    middle = Renderer(Mesh.load(path)).view(Camera(1, 1, 1.0), np.array([0.5, 1.0, 0.5]), DOWN).colour[0, 0]
    assert np.abs(middle.astype(int) - (100, 50, 0, 255)).max() <= 1


def test_what_is_beyond_the_far_plane_is_not_seen(renderer: Renderer) -> None:
    assert not renderer.view(Camera(4, 4, 0.1), np.array([1.5, 1001.0, 2.0]), DOWN).depth.any()


def test_the_empty_scene() -> None:
    view = Renderer(Mesh.empty()).view(Camera(4, 4, 90.0), np.zeros(3), AHEAD)
    assert not view.depth.any() and not view.semantic.any() and not view.colour[..., :3].any()


def test_views_of_one_pose_are_cast_once(mesh: Mesh) -> None:
    renderer = Renderer(mesh, "numba")
    first = renderer.view(Camera(4, 4, 90.0), EYE, AHEAD)
    assert renderer.view(Camera(4, 4, 90.0), EYE.copy(), AHEAD) is first
    assert renderer.view(Camera(4, 4, 80.0), EYE, AHEAD) is not first
    assert renderer.view(Camera(4, 4, 90.0), EYE + 0.01, AHEAD) is not first
    for i in range(renderer.keep):
        renderer.view(Camera(4, 4, 90.0), EYE + i + 1.0, AHEAD)
    assert renderer.view(Camera(4, 4, 90.0), EYE, AHEAD) is not first


@pytest.mark.parametrize("turn", np.linspace(0, 2 * math.pi, 5))
def test_all_engines_agree(renderer: Renderer, mesh: Mesh, turn: float) -> None:
    rotation = qt.from_rotation_vector(np.array([0.0, turn, 0.0]))
    camera = Camera(96, 128, 79.0)
    a, b = renderer.view(camera, EYE, rotation), Renderer(mesh, "numba").view(camera, EYE, rotation)
    assert np.abs(a.depth - b.depth).max() < 1e-4
    assert (a.semantic == b.semantic).mean() > 0.999
    assert np.abs(a.colour.astype(int) - b.colour).mean() < 0.1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60))
def test_the_tree_finds_what_testing_every_triangle_finds(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    vertices = rng.uniform(-1, 1, (count * 3, 3)).astype(np.float32)
    faces = np.arange(count * 3, dtype=np.int32).reshape(-1, 3)
    directions = rng.normal(size=(50, 3)).astype(np.float32)
    face, u, v, t = Bvh(vertices, faces).cast(np.zeros(3, np.float32), directions)
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    for ray, d in enumerate(directions.astype(np.float64)):
        solved = np.linalg.solve(np.stack([np.broadcast_to(-d, a.shape), b - a, c - a], axis=-1), -a[..., None])[
            ..., 0
        ]
        inside = (solved[:, 0] > 0) & (solved[:, 1:] >= 0).all(1) & (solved[:, 1:].sum(1) <= 1)
        nearest = solved[inside, 0].min(initial=np.inf)
        edge = min(np.abs(solved[:, 1:]).min(), np.abs(solved[:, 1:].sum(1) - 1).min())
        if edge > 1e-4:  # on an edge, rounding decides
            assert (face[ray] < 0) == np.isinf(nearest)
            if face[ray] >= 0:
                assert t[ray] == pytest.approx(nearest, rel=1e-3)
                assert solved[face[ray], 1:] == pytest.approx((u[ray], v[ray]), abs=1e-3)


def test_bad_cameras_are_refused() -> None:
    with pytest.raises(ValueError, match="hfov"):
        Camera(4, 4, 180.0)
