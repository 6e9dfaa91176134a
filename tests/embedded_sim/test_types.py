"""What comes out of the stand-in has habitat-sim's and Magnum's types, and what it lacks says so."""

import copy
import json
import pickle

import habitat_sim
import magnum as mn
import numpy as np
import pytest
from habitat_sim.utils import common, settings, viz_utils
from omegaconf import OmegaConf

from tests.embedded_sim import nav_data, small_scene


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> habitat_sim.Simulator:
    scene = small_scene.write_scene(tmp_path_factory.mktemp("scene"))
    chosen = {**settings.default_sim_settings, "scene": str(scene), "width": 48, "height": 32, "depth_sensor": True}
    return habitat_sim.Simulator(settings.make_cfg(chosen))


def is_point(value) -> bool:
    """A Vector3 that JSON and OmegaConf take as it is."""
    numbers = [*value]
    assert json.loads(json.dumps(numbers)) == numbers and OmegaConf.create({"p": numbers}).p == numbers
    return isinstance(value, mn.Vector3) and all(type(number) is float for number in numbers)


def test_the_path_finder_answers_with_vectors_of_python_floats(sim: habitat_sim.Simulator) -> None:
    finder = sim.pathfinder
    point = finder.get_random_navigable_point()
    near = finder.get_random_navigable_point_near(point, 1.0)
    ahead = point + np.array([0.1, 0.0, 0.0])
    hit = finder.closest_obstacle_surface_point(point, 5.0)
    points = [point, near, ahead, finder.snap_point(ahead), finder.try_step(point, ahead), *finder.get_bounds()]
    assert all(map(is_point, [*points, finder.try_step_no_sliding(point, ahead), hit.hit_pos, hit.hit_normal]))
    assert hit.hit_dist == pytest.approx(finder.distance_to_closest_obstacle(point, 5.0))
    path = habitat_sim.MultiGoalShortestPath()
    path.requested_start, path.requested_ends = point, np.array([near, ahead])
    assert finder.find_path(path) and type(path.geodesic_distance) is float
    assert all(map(is_point, [path.requested_start, *path.requested_ends, *path.points]))
    assert is_point(sim.get_agent(0).scene_node.translation)


def test_maps_and_meshes_of_islands(sim: habitat_sim.Simulator) -> None:
    finder = sim.pathfinder
    islands = finder.get_topdown_island_view(0.1, 0.0)
    assert islands.dtype == np.int32 and set(np.unique(islands)) == {-1, *range(finder.num_islands)}
    assert np.array_equal(islands >= 0, finder.get_topdown_view(0.1, 0.0))
    point = finder.get_random_navigable_point()
    assert finder.island_radius(point) == finder.island_radius(finder.get_island(point)) > 0
    corners, faces = np.array(finder.build_navmesh_vertices()), np.array(finder.build_navmesh_vertex_indices())
    a, b, c = (corners[faces[i::3]].astype(float) for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    assert area == pytest.approx(finder.navigable_area, rel=0.1)  # squares on the border count whole
    assert (np.cross(b - a, c - a)[:, 1] > 0).all()


def test_habitat_labs_generator_writes_numbers(tmp_path) -> None:
    from habitat.datasets.pointnav.pointnav_generator import generate_pointnav_episode
    from habitat.sims import make_sim

    scene = tmp_path / "small" / "small.glb"
    config = nav_data.vln_config(tmp_path, ("small",), f"habitat.simulator.scene={scene}")
    sim = make_sim("Sim-v0", config=config.habitat.simulator)
    episodes = list(generate_pointnav_episode(sim, 2, False, closest_dist_limit=0.5, geodesic_to_euclid_min_ratio=1.0))
    assert len(episodes) == 2
    for episode in episodes:
        numbers = json.loads(json.dumps([episode.start_position, episode.goals[0].position]))
        assert np.isfinite(np.array(numbers, dtype=float)).all()
    sim.close()


def test_vectors() -> None:
    v = mn.Vector3(1.0, 2.0, 0.1)
    assert v[2] == v.z == float(np.float32(0.1)) and np.array(v).dtype == np.float32
    assert isinstance(v - np.ones(3), mn.Vector3) and isinstance(np.ones(3) - v, np.ndarray)
    assert (2.0 * v == v * 2 == v + v) is True and v != mn.Vector3(1.0)
    assert pickle.loads(pickle.dumps(v)) == copy.deepcopy(v) == v
    assert mn.math.dot(v, v) == v.dot() == pytest.approx(v.length() ** 2)
    assert mn.math.cross(mn.Vector3.x_axis(), mn.Vector3.y_axis()) == mn.Vector3.z_axis()
    assert mn.math.angle(mn.Vector3.x_axis(), mn.Vector3.y_axis()) == mn.Deg(90.0)
    with pytest.raises(TypeError, match="give 3 numbers"):
        mn.Vector3(1.0, 2.0)


def test_rotations_agree_with_matrices() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b, vector = (common.random_quaternion(), common.random_quaternion(), mn.Vector3(rng.normal(size=3)))
        matrix = np.array(a.to_matrix())
        assert np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-5) and np.linalg.det(matrix) > 0
        assert np.allclose(a.transform_vector(vector), matrix @ np.array(vector), atol=1e-5)
        assert (a * b).transform_vector(vector) == a.transform_vector(b.transform_vector(vector))
        assert a.inverted().transform_vector(a.transform_vector(vector)) == vector
        assert common.angle_between_quats(a, mn.Quaternion.from_matrix(a.to_matrix())) == pytest.approx(0, abs=1e-3)
    quarter = mn.Quaternion.rotation(mn.Deg(90.0), mn.Vector3.y_axis())
    assert quarter.transform_vector(habitat_sim.geo.FRONT) == habitat_sim.geo.LEFT
    assert quarter.angle() == mn.Deg(90.0) and mn.Deg(mn.Rad(mn.math.pi)) == mn.Deg(180.0) > mn.Rad(3.0)
    assert mn.Matrix4.translation((1.0, 2.0, 3.0)).translation == mn.Vector3(1.0, 2.0, 3.0)


def test_an_action_of_ones_own(sim: habitat_sim.Simulator) -> None:
    """As habitat-sim's tutorial new_actions.py has it."""

    @habitat_sim.registry.register_move_fn(body_action=True)
    class StrafeForTheTest(habitat_sim.SceneNodeControl):
        def __call__(self, scene_node, actuation_spec) -> None:
            ahead = np.array(scene_node.absolute_transformation().rotation_scaling()) @ habitat_sim.geo.FRONT
            turn = common.quat_from_angle_axis(np.pi / 2, habitat_sim.geo.UP)
            scene_node.translate(common.quat_rotate_vector(turn, ahead) * actuation_spec.amount)

    agent = sim.get_agent(0)
    spec = habitat_sim.ActionSpec("strafe_for_the_test", habitat_sim.ActuationSpec(0.25))
    agent.agent_config.action_space["strafe"] = spec
    agent.set_state(habitat_sim.AgentState(mn.Vector3(1.5, 0.0, 3.0)))
    assert not agent.act("strafe")
    assert np.allclose(agent.get_state().position, (1.25, 0.0, 3.0), atol=1e-5)
    assert [agent.act("strafe") for _ in range(8)][-1]  # the wall x = 0 stops it
    assert sim.pathfinder.is_navigable(agent.get_state().position)


def test_pictures_and_videos(sim: habitat_sim.Simulator, tmp_path) -> None:
    seen = sim.get_sensor_observations()
    small = {"obs": "depth_sensor", "type": "depth", "dims": (12, 8), "pos": (4, 4), "border": 1}
    frame = viz_utils.make_video_frame(seen, "color_sensor", "color", (96, 64), [small])
    assert frame.size == (96, 64)
    viz_utils.make_video([seen] * 3, "color_sensor", "color", str(tmp_path / "walk"), open_vid=False)
    assert (tmp_path / "walk.mp4").stat().st_size > 0
    islands = np.array([[-1, 0], [1, -1], [-1, -1]])
    pixels = np.array(viz_utils.get_island_colored_map(islands))  # [2, 3, 3]: rows became columns
    assert np.array_equal(pixels[0, 1], common.d3_40_colors_rgb[1]) and (pixels[1, 2] == 255).all()


@pytest.mark.parametrize(
    "statement",
    [
        "from habitat_sim.sensor import AudioSensorSpec",
        "from habitat_sim.utils import validators",
        "import habitat_sim.attributes_managers",
        "from magnum import shaders",
    ],
)
def test_imports_of_what_is_missing_say_so(statement: str) -> None:
    with pytest.raises(ImportError, match="install the real habitat-sim"):
        exec(statement)
