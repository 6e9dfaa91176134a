"""The embedded simulator's navigation mesh, on rooms built of boxes. Lengths in metres."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from habitat_embedded_sim import surface
from habitat_embedded_sim.navmesh import NavGrid, NavMeshSettings

RADIUS = 0.18
SETTINGS = NavMeshSettings(agent_radius=RADIUS)
QUADS = ((0, 4, 6, 2), (1, 3, 7, 5), (0, 1, 5, 4), (2, 6, 7, 3), (0, 2, 3, 1), (4, 5, 7, 6))


def scene(*boxes, turn=0.0):
    """(vertices, faces) of boxes (x0, y0, z0, x1, y1, z1), turned about the y axis by `turn` degrees."""
    vertices, faces = [], []
    for n, b in enumerate(boxes):
        vertices += [(b[0 + 3 * (i & 1)], b[1 + 3 * (i >> 1 & 1)], b[2 + 3 * (i >> 2 & 1)]) for i in range(8)]
        faces += [[8 * n + q[k] for k in t] for q in QUADS for t in ((0, 1, 2), (0, 2, 3))]
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    turned = np.array(vertices) @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    return turned.astype(np.float32), np.array(faces, np.int32)


def room(width=6.0, depth=4.0, *extra, turn=0.0):
    """A floor from (0, 0) with walls 0.1 thick and 2.5 high around it, and further boxes."""
    w, d, h = width, depth, 2.5
    walls = (0, 0, 0, w, h, 0.1), (0, 0, d - 0.1, w, h, d), (0, 0, 0, 0.1, h, d), (w - 0.1, 0, 0, w, h, d)
    return scene((0, -0.1, 0, w, 0, d), *walls, *extra, turn=turn)


def two_rooms(door=0.8):
    """Rooms left and right of a wall at x = 3, with a door at z = 2."""
    low, high = 2 - door / 2, 2 + door / 2
    wall = (2.9, 0, 0, 3.0, 2.5, low), (2.9, 0, high, 3.0, 2.5, 4), (2.9, 2.1, low, 3.0, 2.5, high)
    return room(6, 4, *wall)


def storeys(rise=0.17, steps=18):
    """A floor, a second one above it, and a straight flight of stairs at x = 4 .. 5 that leads up to it."""
    top, run = rise * steps, 0.28
    flight = [(4, 0, 1 + run * i, 5, rise * (i + 1), 1 + run * steps) for i in range(steps)]
    end = 1 + run * steps
    upper = (0, top - 0.1, 0, 3.5, top, 9), (0, top - 0.1, end, 6, top, 9)
    return scene((0, -0.1, 0, 6, 0, 9), *upper, *flight)


@pytest.fixture(scope="module")
def house():
    furniture = (0.6, 0, 0.6, 1.4, 0.8, 1.5), (4.2, 0, 2.2, 4.8, 0.5, 3.1), (1.2, 0, 2.6, 1.5, 1.0, 3.9)
    vertices, faces = two_rooms()
    more, more_faces = scene(*furniture)
    return NavGrid.build(
        np.concatenate([vertices, more]), np.concatenate([faces, more_faces + len(vertices)]), SETTINGS
    )


def points(grid, n, seed=0, island=None):
    rng = np.random.default_rng(seed)
    return [grid.random_point(rng, island) for _ in range(n)]


def length(path):
    return np.linalg.norm(np.diff(path, axis=0), axis=1).sum()


# ---- standing ---------------------------------------------------------------------------------------------


def test_a_box_room_is_navigable_up_to_the_radius_from_its_walls():
    grid = NavGrid.build(*room(), SETTINGS)
    width, depth = 5.8 - 2 * RADIUS, 3.8 - 2 * RADIUS
    assert grid.area == pytest.approx(width * depth, rel=0.01)
    assert len(grid.island_areas) == 1
    assert grid.is_navigable([0.1 + RADIUS + 0.01, 0, 2])
    assert not grid.is_navigable([0.1 + RADIUS - 0.02, 0, 2])
    np.testing.assert_allclose(grid.snap([0.15, 0, 2]), [0.1 + RADIUS, 0, 2], atol=2e-3)
    assert not grid.is_navigable([3, 0.8, 2]) and grid.is_navigable([3, 0.8, 2], max_y_delta=1)
    np.testing.assert_allclose(grid.bounds(), [[0, -0.1, 0], [6, 2.5, 4]], atol=1e-6)


@pytest.mark.parametrize("bad", [(-9, 0, 2), (3, 5, 2), (np.nan, 0, 2)])
def test_points_far_from_the_mesh_do_not_project(house, bad):
    assert np.isnan(house.snap(bad)).all() and not house.is_navigable(bad)
    assert house.island_radius(bad) == 0 and house.find_path(bad, [[1, 0, 2]])[0] == np.inf
    np.testing.assert_array_equal(house.step(bad, [1, 0, 2], True), np.array(bad, np.float32))


def test_snapping_finds_a_navigable_point_that_is_not_farther_than_others(house):
    rng, known = np.random.default_rng(1), np.array(points(house, 400))
    for p in rng.uniform([-0.5, -0.3, -0.5], [6.5, 0.3, 4.5], (200, 3)):
        s = house.snap(p)
        assert house.is_navigable(s, 0.01)
        np.testing.assert_allclose(house.snap(s), s, atol=1e-5)
        assert np.linalg.norm(s - p) <= np.linalg.norm(known - p, axis=1).min() + 0.03


def test_the_radius_is_respected_and_obstacles_are_measured(house):
    inner = [(0.6, 0.6, 1.4, 1.5), (2.9, 0, 3.0, 1.6), (2.9, 2.4, 3.0, 4)]
    inner += [(1.2, 2.6, 1.5, 3.9), (4.2, 2.2, 4.8, 3.1)]
    outer = [(-1, -1, 7, 0.1), (-1, 3.9, 7, 5), (-1, -1, 0.1, 5), (5.9, -1, 7, 5)]
    boxes = np.array(inner + outer)
    for p in points(house, 300):
        q = p[[0, 2]]
        exact = np.linalg.norm(q - np.clip(q, boxes[:, :2], boxes[:, 2:]), axis=1).min()
        assert exact >= RADIUS - 1e-3
        distance, hit, normal = house.closest_obstacle(p)
        assert distance == pytest.approx(exact - RADIUS, abs=2e-3)
        np.testing.assert_allclose(hit + distance * normal, p, atol=1e-5)
    assert house.distance_to_obstacle([4.5, 0, 1], 0.1) == pytest.approx(0.1)


def test_random_points_are_uniform_by_area(house):
    left = np.mean([p[0] < 2.95 for p in points(house, 4000)])
    grid = house.topdown(0.02, 0.0)
    assert left == pytest.approx(grid[:, : int(2.95 / 0.02)].sum() / grid.sum(), abs=0.03)
    rng = np.random.default_rng(2)
    for _ in range(50):
        p = house.random_point_near([1, 0, 2], 0.7, rng)
        assert house.is_navigable(p) and np.linalg.norm(p - [1, 0, 2]) <= 0.7 + 1e-6
    assert np.isnan(house.random_point_near([1, 9, 2], 0.7, rng)).all()


def test_the_map_agrees_with_is_navigable(house):
    image = house.topdown(0.1, 0.2, eps=0.5)
    assert image.shape == (40, 60) and image.dtype == bool
    expected = [[house.is_navigable([x * 0.1, 0.2, z * 0.1]) for x in range(60)] for z in range(40)]
    assert np.mean(image != np.array(expected)) < 0.005
    assert not house.topdown(0.1, 3.0, eps=0.5).any()


def test_slope_headroom_and_climb():
    def ramp(degrees):
        v, f = scene((0, -0.1, 0, 3, 0, 3), (6, -0.1, 0, 9, 0, 3))
        rise = 3 * np.tan(np.radians(degrees))
        v = np.concatenate([v, [(3, 0, 0), (3, 0, 3), (6, rise, 3), (6, rise, 0)]]).astype(np.float32)
        return NavGrid.build(v, np.concatenate([f, [(16, 17, 18), (16, 18, 19)]]), SETTINGS)

    assert ramp(40).is_navigable([4.5, 1.5 * np.tan(np.radians(40)), 1.5], 0.05)
    assert not ramp(50).is_navigable([4.5, 1.5 * np.tan(np.radians(50)), 1.5], 0.3)
    table = NavGrid.build(*room(6, 4, (2, 1.3, 1, 4, 1.35, 3)), SETTINGS)
    assert not table.is_navigable([3, 0, 2], 0.3)
    beam = NavGrid.build(*room(6, 4, (2, 1.6, 0, 4, 1.65, 4)), SETTINGS)
    assert beam.is_navigable([3, 0, 2], 0.3)
    for step, climbs in ((0.19, True), (0.25, False)):
        grid = NavGrid.build(*room(6, 4, (3, 0, 0, 6, step, 4)), SETTINGS)
        assert np.isfinite(grid.find_path([1, 0, 2], [[5, step, 2]])[0]) == climbs


def test_small_islands_are_dropped_and_larger_ones_kept_apart():
    grid = NavGrid.build(*room(6, 4, (2.9, 0, 0, 3.0, 2.5, 4), (4, 0, 1, 5, 0.5, 2)), SETTINGS)
    assert len(grid.island_areas) == 2  # not the box top of 1 m^2
    assert grid.island([1, 0, 2]) != grid.island([5.5, 0, 2])
    assert grid.find_path([1, 0, 2], [[5.5, 0, 2]])[0] == np.inf
    assert grid.find_path([1, 0, 2], [[5.5, 0, 2], [2, 0, 2]])[2] == 1
    assert grid.island_radius([1, 0, 2]) == pytest.approx(np.hypot(1.4 - RADIUS, 1.9 - RADIUS), abs=0.05)
    rng = np.random.default_rng(0)
    assert {grid.island(grid.random_point(rng, island=1)) for _ in range(20)} == {1}


# ---- several storeys --------------------------------------------------------------------------------------


def test_storeys_are_kept_apart_and_joined_by_stairs():
    grid = NavGrid.build(*storeys(), SETTINGS)
    top = 0.17 * 18
    np.testing.assert_allclose(grid.snap([1, 0.3, 5]), [1, 0, 5], atol=1e-6)
    np.testing.assert_allclose(grid.snap([1, top - 0.3, 5]), [1, top, 5], atol=1e-6)
    distance, path, _ = grid.find_path([1, 0, 5], [[1, top, 5]])
    assert 12 < distance < 16 and distance == pytest.approx(length(path), abs=1e-4)
    p = np.array([4.5, 0, 0.6])
    for _ in range(30):
        p = grid.step(p, np.add(p, [0, 0, 0.25]), slide=False)
        assert grid.is_navigable(p, 0.01)
    assert p[1] == pytest.approx(top, abs=1e-3) and p[2] == pytest.approx(0.6 + 30 * 0.25, abs=1e-3)
    steep = NavGrid.build(*storeys(rise=0.25, steps=12), SETTINGS)
    assert steep.find_path([1, 0, 5], [[1, 3, 5]])[0] == np.inf
    assert grid.topdown(0.1, 0.0).sum() != grid.topdown(0.1, top).sum()


def test_a_drop_is_a_boundary():
    grid = NavGrid.build(*scene((0, -0.1, 0, 3, 0, 4), (3, -0.6, 0, 6, -0.5, 4)), SETTINGS)
    assert grid.step([2, 0, 2], [2.95, 0, 2], slide=True)[0] == pytest.approx(3 - RADIUS, abs=0.06)


@pytest.mark.parametrize("end", [[4, 0, 2], [9, 0, 2]])  # over the lower floor; over nothing
def test_a_step_towards_another_island_or_nowhere_stays(end):
    grid = NavGrid.build(*scene((0, -0.1, 0, 3, 0, 4), (3, -0.6, 0, 6, -0.5, 4)), SETTINGS)
    assert np.array_equal(grid.step([2, 0, 2], end, slide=True), [2, 0, 2])


# ---- moving -----------------------------------------------------------------------------------------------


def test_a_free_step_arrives_exactly(house):
    np.testing.assert_allclose(house.step([4, 0, 1], [4.2, 0, 1.15], False), [4.2, 0, 1.15], atol=1e-6)
    np.testing.assert_allclose(house.step([4, 0, 1], [4.2, 0.4, 1.15], True), [4.2, 0, 1.15], atol=1e-6)


@pytest.mark.parametrize("slide", [True, False])
def test_random_walks_never_leave_the_mesh(house, slide):
    rng = np.random.default_rng(3)
    for p in points(house, 40, seed=3):
        for _ in range(25):
            asked = rng.normal(0, 0.25, 3) * [1, 0, 1]
            q = house.step(p, p + asked, slide)
            moved = (q - p)[[0, 2]]
            assert house.is_navigable(q, 0.05) and np.linalg.norm(house.snap(q) - q) < 1e-3
            assert np.linalg.norm(p + asked - q) <= np.linalg.norm(asked) + 1e-5
            assert np.linalg.norm(moved) <= 1.05 * np.linalg.norm(asked) + 1e-3
            if not slide:
                u = asked[[0, 2]] / np.linalg.norm(asked)
                assert abs(moved @ [-u[1], u[0]]) < 2e-3 and moved @ u >= -1e-3
            p = q


@pytest.mark.parametrize("turn", [0, 17, 45, 60])
def test_sliding_follows_a_wall_at_any_angle(turn):
    grid = NavGrid.build(*room(6, 4, turn=turn), SETTINGS)
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    to_world = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    start = grid.step(np.array([3, 0, 2]) @ to_world, np.array([3, 0, -1]) @ to_world, slide=False)
    assert (start @ to_world.T)[2] == pytest.approx(0.1 + RADIUS, abs=0.07)
    p = start
    for _ in range(8):  # 25 cm ahead at 30 degrees into the wall
        p = grid.step(p, p + np.array([0.25 * np.cos(0.5236), 0, -0.125]) @ to_world, slide=True)
        assert 0.1 + RADIUS - 0.01 <= (p @ to_world.T)[2] <= 0.1 + RADIUS + 0.075
    along = ((p - start) @ to_world.T)[0]
    assert along == pytest.approx(8 * 0.25 * np.cos(0.5236), rel=0.01 if turn == 0 else 0.12)
    ahead = grid.step(start, start + np.array([0, 0, -0.25]) @ to_world, slide=False)
    np.testing.assert_allclose(ahead, start, atol=0.02)


def test_sliding_ends_in_a_corner():
    grid = NavGrid.build(*room(), SETTINGS)
    end = grid.step([1, 0, 1], [-1, 0, -1.5], slide=True)
    np.testing.assert_allclose(end, [0.1 + RADIUS, 0, 0.1 + RADIUS], atol=3e-3)


# ---- paths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [0, 30])
def test_the_distance_around_a_corner_is_exact_to_one_percent(turn):
    vertices, faces = room(6, 4, (2.0, 0, 0, 3.0, 2.5, 2.5), turn=turn)
    grid = NavGrid.build(vertices, faces, NavMeshSettings(agent_radius=0.1))
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    to_world = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    corners = np.array([(2.0, 2.5), (3.0, 2.5)])
    for a, b in (((1, 1), (4, 1)), ((0.5, 0.5), (5.5, 2.0)), ((1.5, 2.0), (3.6, 0.4))):
        exact = _around(np.array(a), np.array(b), corners, 0.1 + (0.02 if turn else 0))
        start, end = (np.array([p[0], 0, p[1]]) @ to_world for p in (a, b))
        distance, path, k = grid.find_path(start, [end])
        assert distance == pytest.approx(exact, rel=0.01) and k == 0
        assert len(path) <= 8 and length(path) == pytest.approx(distance, abs=1e-4)


def _around(a, b, corners, radius):
    """Length of the string from a over discs around two corners (left to right, passed above) to b."""
    arcs = np.linspace(np.pi, 0, 721)
    ring = corners[:, None] + radius * np.stack([np.cos(arcs), np.sin(arcs)], -1)[None]
    hull = np.concatenate([[a], ring[0], ring[1], [b]])
    keep = [0]
    for i in range(1, len(hull)):  # upper hull of the chain = taut string
        while len(keep) > 1 and np.cross(hull[keep[-1]] - hull[keep[-2]], hull[i] - hull[keep[-2]]) >= 0:
            keep.pop()
        keep.append(i)
    return np.linalg.norm(np.diff(hull[keep], axis=0), axis=1).sum()


@pytest.mark.timeout(120)
def test_a_line_of_sight_along_a_border_of_cells_comes_to_its_end():
    """Ends that rounding puts a hair to one side of the border; the way is leapt over, up to the roof above its end."""
    vertices, faces = room(20.0, 4.0, (11.0, 2.6, 1.0, 13.0, 2.7, 3.0))
    rng = np.random.default_rng(0)
    for low in rng.uniform(-12, -5, 3).astype(np.float32):
        grid = NavGrid.build(vertices + np.array([0, 0, low]), faces, SETTINGS)
        cells = grid._cells
        for border in cells.z0 + cells.size * np.arange(30, 51):
            for above, further in itertools.product(range(-3, 4), range(-3, 4)):
                z = border + np.spacing(abs(border)) * above
                ends = (8.5, z), (11.5, z + np.spacing(abs(border)) * further)
                assert surface.visible(cells, *sight(grid, *ends)), ends


def sight(grid, start, end):
    """What `surface.visible` takes for a line between two points (x, z) of a floor at 0."""
    cells = (surface.cell_at(grid._cells, x, 0.0, z, 1.0, 1e-6) for x, z in (start, end))
    return (next(cells), *start, next(cells), *end)


def test_distance_is_symmetric_and_obeys_the_triangle_inequality(house):
    p = points(house, 12, seed=5)
    d = np.array([[house.find_path(a, [b])[0] for b in p] for a in p])
    np.testing.assert_allclose(d, d.T, atol=0.01)
    assert (d >= np.linalg.norm(np.array(p)[:, None] - np.array(p)[None], axis=2) - 1e-3).all()
    assert (d[:, None, :] <= d[:, :, None] + d[None, :, :] + 0.015).all()


@pytest.mark.parametrize("turn", [0, 25])
def test_the_distance_changes_no_more_than_the_start_moves(turn):
    grid = NavGrid.build(*room(6, 4, (2.0, 0, 0, 3.0, 2.5, 2.5), (3.8, 0, 1, 4.2, 1, 4), turn=turn), SETTINGS)
    rng, goal = np.random.default_rng(4), points(grid, 1, seed=1, island=0)[0]
    for p in points(grid, 100, seed=2, island=0):
        q = grid.step(p, p + rng.normal(0, 0.1, 3) * [1, 0, 1], slide=True)
        change = abs(grid.find_path(p, [goal])[0] - grid.find_path(q, [goal])[0])
        assert change <= np.linalg.norm(q - p) + 0.02


def test_a_path_can_be_walked(house):
    for a, b in zip(points(house, 30, seed=6), points(house, 30, seed=7), strict=True):
        distance, path, k = house.find_path(a, [b])
        assert k == 0 and distance == pytest.approx(length(path), abs=1e-3)
        np.testing.assert_allclose(path[[0, -1]], [a, b], atol=1e-4)
        p = a
        for corner in path[1:]:
            p = house.step(p, corner, slide=True)
            assert np.linalg.norm(p - corner) < 0.02


def test_the_nearest_of_several_goals_is_found_and_remembered(house):
    goals = np.array([[5, 0, 0.5], [2.2, 0, 3.2], [np.nan, 0, 0], [0.4, 0, 2.2], [50, 0, 0]])
    for p in points(house, 30, seed=8):
        single = [house.find_path(p, [goal])[0] for goal in goals]
        distance, path, k = house.find_path(p, goals)
        assert distance == pytest.approx(min(single), abs=0.01)
        assert single[k] == pytest.approx(distance, abs=0.01)
        np.testing.assert_allclose(path[-1], goals[k], atol=1e-4)
    distance, path, k = house.find_path([1, 0, 2], [[50, 0, 0]])
    assert distance == np.inf and path.shape == (0, 3) and k == -1


@pytest.mark.parametrize("door, passable", [(0.8, True), (0.5, True), (0.3, False)])
def test_doors(door, passable):
    grid = NavGrid.build(*two_rooms(door), SETTINGS)
    assert np.isfinite(grid.find_path([1, 0, 1], [[5, 0, 3]])[0]) == passable
    assert (grid.step([2.5, 0, 2], [3.5, 0, 2], False)[0] > 3.4) == passable


# ---- files and mistakes -----------------------------------------------------------------------------------


def test_save_and_load(house, tmp_path):
    house.save(tmp_path / "house.navmesh")
    again = NavGrid.load(tmp_path / "house.navmesh")
    assert again.settings == house.settings and again.area == house.area
    a, b = points(house, 2, seed=9)
    assert again.find_path(a, [b])[0] == house.find_path(a, [b])[0]
    np.testing.assert_array_equal(points(again, 5), points(house, 5))


def test_a_foreign_file_is_named(tmp_path):
    (tmp_path / "x.navmesh").write_bytes(b"TESM 1234")
    with pytest.raises(ValueError, match=r"x\.navmesh: not a navmesh"):
        NavGrid.load(tmp_path / "x.navmesh")
    np.savez(tmp_path / "y.npz", a=np.array([{}], object))
    with pytest.raises(ValueError, match="not a navmesh"):
        NavGrid.load(tmp_path / "y.npz")


def test_bad_input_is_explained():
    vertices, faces = room()
    with pytest.raises(ValueError, match="no triangles"):
        NavGrid.build(vertices, faces[:0])
    with pytest.raises(ValueError, match="outside of"):
        NavGrid.build(vertices[:-1], faces)
    with pytest.raises(ValueError, match="agent_radius"):
        NavMeshSettings(agent_radius=-1)
    with pytest.raises(ValueError, match="raise cell_size"):
        NavGrid.build(vertices * 1000, faces, SETTINGS)
    nothing = NavGrid.build(vertices, faces[:, ::-1][:2], SETTINGS)
    assert nothing.area == 0 and np.isnan(nothing.random_point(np.random.default_rng(0))).all()
