"""`benchmarks/stand_in_scenes.py`: scenes on which recorded walks can be walked again."""

import gzip
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import quaternion as qt
from habitat_embedded_sim.mesh import Mesh
from habitat_embedded_sim.navmesh import NavGrid, NavMeshSettings
from habitat_embedded_sim.render import Camera, Renderer

from tests.paths import ROOT

SCRIPT = ROOT / "benchmarks/stand_in_scenes.py"
RISE, STEPS = 0.2, 14  # metres a step of 0.25 m: 39°, up to a storey of 2.8 m
ACTIONS = [1] * (12 + STEPS) + [2] * 6 + [1] * 5 + [2] * 6 + [1] * 24 + [0]
"""Along a corridor, up a flight of stairs, five steps to the side, and back above where it came from."""


def recorded(actions):
    """Where the actions lead from the origin towards -z, float [n, 3]; forward steps 13 to 26 climb."""
    locations, yaw, here = [[0.0, 0.0, 0.0]], 0.0, np.zeros(3)
    for action in actions:
        yaw += math.radians({2: 15, 3: -15}.get(action, 0))
        if action == 1:
            climbing = 12 < len(locations) <= 12 + STEPS
            here = here + np.array([-0.25 * math.sin(yaw), RISE * climbing, -0.25 * math.cos(yaw)])
            locations.append(here.tolist())
    return locations


def write(path, data):
    with gzip.open(path, "wt") as file:
        json.dump(data, file)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An episode file with ground truth, one without."""
    folder = tmp_path_factory.mktemp("episodes")
    locations = recorded(ACTIONS)
    episode = {
        "episode_id": 7,
        "scene_id": "mp3d/House/House.glb",
        "start_position": [0.0, 0.0, 0.0],
        "start_rotation": [0.0, 0.0, 0.0, 1.0],
        "goals": [{"position": locations[-1], "radius": 3.0}],
        "reference_path": [locations[0], locations[12], locations[12 + STEPS], locations[17 + STEPS], locations[-1]],
    }
    write(folder / "with.json.gz", {"episodes": [episode]})
    write(folder / "with_gt.json.gz", {"7": {"locations": locations, "actions": ACTIONS}})
    write(folder / "without.json.gz", {"episodes": [episode]})
    return folder, np.array(locations)


def make(episodes, scenes, *options):
    command = [sys.executable, SCRIPT, episodes, "--scenes-dir", scenes, *options]
    return subprocess.run(command, capture_output=True, text=True)


def grid_of(scenes):
    mesh = Mesh.load(str(scenes / "mp3d/House/House.glb"), True)
    return mesh, NavGrid.build(mesh.vertices, mesh.faces, NavMeshSettings())


def walk(grid, actions):
    here, yaw, places = grid.snap(np.zeros(3)), 0.0, []
    for action in actions:
        yaw += math.radians({2: 15, 3: -15}.get(action, 0))
        if action == 1:
            here = grid.step(here, here - 0.25 * np.array([math.sin(yaw), 0, math.cos(yaw)]), slide=True)
            places.append(here)
    return np.array(places)


def test_a_walk_over_two_storeys_is_walked_again_with_and_without_walls(files, tmp_path):
    folder, locations = files
    done = make(folder / "with.json.gz", tmp_path / "walls", "--check")
    assert "1 of 1 replayed within 0.5 m" in done.stdout, done.stderr
    make(folder / "with.json.gz", tmp_path / "bare", "--no-walls")
    _, grid = grid_of(tmp_path / "walls")
    places = walk(grid, ACTIONS)
    assert np.abs(places - locations[1:]).max() < 0.1
    assert np.array_equal(places, walk(grid_of(tmp_path / "bare")[1], ACTIONS))
    # The last steps are above the first ones: both storeys are there, and one way leads from one to the other.
    assert grid.island(locations[0]) == grid.island(locations[-1]) >= 0
    length, _, _ = grid.find_path(locations[0], [locations[-1]])
    assert 10 < length < 18


def test_there_is_something_to_see_everywhere(files, tmp_path):
    folder, locations = files
    make(folder / "with.json.gz", tmp_path)
    renderer = Renderer(grid_of(tmp_path)[0])
    for place in locations[::8]:
        eye = place + np.array([0, 1.25, 0])
        for yaw in (0.0, 2.0, 4.0):
            view = renderer.view(Camera(32, 32, 90.0), eye, qt.from_rotation_vector([0, yaw, 0]))
            assert (view.depth > 0).mean() > 0.98  # a ray that meets nothing has depth 0


def test_without_ground_truth_floors_lie_under_the_reference_path(files, tmp_path):
    folder, locations = files
    done = make(folder / "without.json.gz", tmp_path, "--check")
    assert done.returncode == 0 and "replayed" not in done.stdout
    _, grid = grid_of(tmp_path)
    assert all(grid.is_navigable(place, 0.3) for place in locations)


def test_a_missing_file_is_named(tmp_path):
    done = make(tmp_path / "none.json.gz", tmp_path)
    assert done.returncode == 2 and "none.json.gz: no such file" in done.stderr
