"""The simulator by itself: moving, colliding, seeing, following paths, and saying what it cannot do."""

import copy
import os
from pathlib import Path

import habitat_sim
import magnum as mn
import numpy as np
import pytest
import quaternion as qt
from habitat_embedded_sim import scene as scenes
from habitat_embedded_sim.navmesh import NavMeshSettings
from habitat_embedded_sim.scene import open_scene
from habitat_sim.errors import GreedyFollowerError

from tests.embedded_sim import small_scene

STOP, FORWARD, LEFT, RIGHT, LOOK_UP = range(5)
FACING_X = [0.0, -np.sqrt(0.5), 0.0, np.sqrt(0.5)]  # −90° around y: forward is +x


def camera(uuid: str, kind: habitat_sim.SensorType, **options) -> habitat_sim.CameraSensorSpec:
    spec = habitat_sim.CameraSensorSpec()
    spec.uuid, spec.sensor_type, spec.resolution, spec.position = uuid, kind, [32, 48], [0.0, 1.25, 0.0]
    for name, value in options.items():
        setattr(spec, name, value)
    return spec


def configuration(scene: str, *sensors: habitat_sim.CameraSensorSpec, **options) -> habitat_sim.Configuration:
    sim_cfg = habitat_sim.SimulatorConfiguration()
    sim_cfg.scene_id = scene
    for name, value in options.items():
        setattr(sim_cfg, name, value)
    agent = habitat_sim.AgentConfiguration(sensor_specifications=list(sensors))
    turn = habitat_sim.ActuationSpec(amount=30.0)
    agent.action_space = {
        STOP: habitat_sim.ActionSpec("stop"),
        FORWARD: habitat_sim.ActionSpec("move_forward", habitat_sim.ActuationSpec(amount=0.25)),
        LEFT: habitat_sim.ActionSpec("turn_left", turn),
        RIGHT: habitat_sim.ActionSpec("turn_right", turn),
        LOOK_UP: habitat_sim.ActionSpec("look_up", habitat_sim.ActuationSpec(amount=30.0, constraint=45.0)),
    }
    return habitat_sim.Configuration(sim_cfg, [agent])


def all_cameras() -> list[habitat_sim.CameraSensorSpec]:
    kinds = habitat_sim.SensorType
    return [camera("rgb", kinds.COLOR), camera("depth", kinds.DEPTH), camera("ids", kinds.SEMANTIC)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_scene.write_scene(tmp_path_factory.mktemp("scene")))


@pytest.fixture
def sim(scene: str) -> habitat_sim.Simulator:
    return habitat_sim.Simulator(configuration(scene, *all_cameras()))


def put(sim: habitat_sim.Simulator, position: list, rotation: list) -> None:
    sim.get_agent(0).set_state(habitat_sim.AgentState(position, rotation))


def where(sim: habitat_sim.Simulator) -> np.ndarray:
    return sim.get_agent(0).get_state().position


# ---- moving --------------------------------------------------------------------------------------


def test_forward_is_minus_z_and_left_turns_towards_minus_x(sim: habitat_sim.Simulator) -> None:
    put(sim, [1.5, 0.0, 3.0], [0, 0, 0, 1])
    assert not sim.step(FORWARD)["collided"]
    assert np.allclose(where(sim), (1.5, 0, 2.75), atol=1e-5)
    for _ in range(3):
        sim.step(LEFT)
    sim.step(FORWARD)
    assert np.allclose(where(sim), (1.25, 0, 2.75), atol=1e-5)
    for _ in range(6):
        sim.step(RIGHT)
    sim.step(FORWARD)
    assert np.allclose(where(sim), (1.5, 0, 2.75), atol=1e-5)


def test_stop_moves_nothing(sim: habitat_sim.Simulator) -> None:
    before = sim.get_agent(0).get_state()
    assert not sim.step(STOP)["collided"]
    assert np.array_equal(where(sim), before.position)


@pytest.mark.parametrize("sliding", [True, False])
def test_walls_collide_and_sliding_goes_along_them(scene: str, sliding: bool) -> None:
    sim = habitat_sim.Simulator(configuration(scene, *all_cameras(), allow_sliding=sliding))
    slanted = qt.as_float_array(qt.from_rotation_vector([0, np.radians(30), 0]))
    put(sim, [1.5, 0.0, 0.2], [*slanted[1:], slanted[0]])  # towards the wall z = 0, 30° off its normal
    assert sim.step(FORWARD)["collided"]
    gone = np.array([1.5, 0.0, 0.2]) - where(sim)
    assert gone[2] == pytest.approx(0.1, abs=0.06)  # stopped by the agent's radius, to a cell of 5 cm
    assert (gone[0] > 0.1) == sliding


def test_whatever_an_agent_does_it_stays_on_the_navmesh(sim: habitat_sim.Simulator) -> None:
    rng = np.random.default_rng(0)
    agent = sim.get_agent(0)
    for action in rng.choice([FORWARD, FORWARD, LEFT, RIGHT], 400):
        before = where(sim)
        collided = agent.act(action)
        moved = np.linalg.norm(where(sim) - before)
        assert sim.pathfinder.is_navigable(where(sim)) and moved < 0.25 + 1e-4
        assert collided == (action == FORWARD and moved**2 + 1e-5 < 0.25**2)


def test_unknown_actions_are_named(sim: habitat_sim.Simulator) -> None:
    with pytest.raises(AssertionError, match="fly"):
        sim.step("fly")


@pytest.mark.parametrize("bad", [([0, 0], [0, 0, 0, 1]), ([0, 0, np.nan], [0, 0, 0, 1]), ([0, 0, 0], [0, 0, 0, 2])])
def test_bad_states_are_refused(sim: habitat_sim.Simulator, bad: tuple) -> None:
    with pytest.raises(ValueError, match="give"):
        put(sim, *bad)


@pytest.mark.parametrize("name", ["move_forward", "turn_left", "look_up"])
def test_an_action_without_its_amount_is_named(sim: habitat_sim.Simulator, name: str) -> None:
    agent = sim.get_agent(0)
    with pytest.raises(ValueError, match=f"{name}.* needs an ActuationSpec"):
        agent.controls.action(agent.scene_node, name, None)


def test_the_follower_needs_actions_that_say_how_far(scene: str) -> None:
    config = configuration(scene)
    config.agents[0].action_space[FORWARD] = habitat_sim.ActionSpec("move_forward")
    with pytest.raises(ValueError, match="needs one 'move_forward' with an actuation"):
        habitat_sim.Simulator(config).make_greedy_follower(0)


def test_a_closed_simulator_says_so(sim: habitat_sim.Simulator) -> None:
    sim.close()
    with pytest.raises(RuntimeError, match="the simulator is closed"):
        sim.recompute_navmesh(sim.pathfinder, habitat_sim.NavMeshSettings())


@pytest.mark.parametrize("path", [habitat_sim.ShortestPath, habitat_sim.MultiGoalShortestPath])
def test_a_path_without_its_ends_is_named(sim: habitat_sim.Simulator, path: type) -> None:
    with pytest.raises(ValueError, match="set requested_start"):
        sim.pathfinder.find_path(path())


def test_reset_returns_to_the_initial_state_and_seeds_repeat_it(scene: str) -> None:
    starts = []
    for seed in (5, 5, 6):
        sim = habitat_sim.Simulator(configuration(scene, *all_cameras(), random_seed=seed))
        starts.append(where(sim))
        assert sim.pathfinder.is_navigable(starts[-1])
        sim.step(FORWARD)
        sim.step(LEFT)
        sim.reset()
        assert np.array_equal(where(sim), starts[-1])
    assert np.array_equal(starts[0], starts[1]) and not np.array_equal(starts[0], starts[2])
    sim.seed(3)
    first = sim.pathfinder.get_random_navigable_point()
    sim.seed(3)
    assert np.array_equal(sim.pathfinder.get_random_navigable_point(), first)


# ---- seeing --------------------------------------------------------------------------------------


def test_observations(sim: habitat_sim.Simulator) -> None:
    put(sim, [4.0, 0.0, 2.0], FACING_X)
    seen = sim.get_sensor_observations()
    assert (seen["rgb"].shape, seen["rgb"].dtype) == ((32, 48, 4), np.uint8)
    assert (seen["depth"].shape, seen["depth"].dtype) == ((32, 48), np.float32)
    assert (seen["ids"].shape, seen["ids"].dtype) == ((32, 48), np.uint32)
    box = seen["ids"] == small_scene.BOX[1]
    assert (seen["rgb"][box] == (255, 0, 0, 255)).all()
    assert seen["depth"][box].min() == pytest.approx(1.0, abs=1e-4)


def test_writing_into_observations_does_not_change_later_ones(sim: habitat_sim.Simulator) -> None:
    first = sim.reset()
    expected = {uuid: image.copy() for uuid, image in first.items()}
    for image in first.values():
        image[:] = 7
    assert all(np.array_equal(image, expected[uuid]) for uuid, image in sim.get_sensor_observations().items())


def test_sensors_sit_where_their_specification_says(scene: str) -> None:
    spec = camera("rgb", habitat_sim.SensorType.COLOR, position=[0.0, 1.0, -0.5], orientation=[0.0, np.pi / 2, 0.0])
    sim = habitat_sim.Simulator(configuration(scene, spec))
    put(sim, [1.5, 0.0, 2.0], FACING_X)
    state = sim.get_agent(0).get_state().sensor_states["rgb"]
    assert np.allclose(state.position, (2.0, 1.0, 2.0))
    forward = qt.as_rotation_matrix(state.rotation) @ (0, 0, -1)
    assert np.allclose(forward, (0, 0, -1), atol=1e-6)  # turned left from +x


def test_tilting_cameras_down_and_up_again(sim: habitat_sim.Simulator) -> None:
    put(sim, [1.5, 0.0, 2.0], [0, 0, 0, 1])
    level, floor = (sim.get_sensor_observations()[uuid] for uuid in ("depth", "ids"))
    for sensor in sim.agents[0].sensors.values():  # as Habitat-Lab's look_down action does
        turn = mn.Quaternion.rotation(mn.Deg(-30.0), mn.Vector3.x_axis())
        sensor.node.rotation = sensor.node.rotation * turn
    more_floor = sim.get_sensor_observations()["ids"] == small_scene.FLOOR[1]
    assert more_floor.mean() > (floor == small_scene.FLOOR[1]).mean() + 0.2
    sim.step(LOOK_UP)
    assert np.allclose(sim.get_sensor_observations()["depth"], level, atol=1e-3)
    for _ in range(3):  # 90°, but the constraint ends it at 45°
        sim.step(LOOK_UP)
    forward = qt.as_rotation_matrix(sim.get_agent(0).get_state().sensor_states["rgb"].rotation) @ (0, 0, -1)
    assert np.degrees(np.arcsin(forward[1])) == pytest.approx(45.0, abs=1e-3)


def test_sensors_can_be_added_placed_and_removed(sim: habitat_sim.Simulator) -> None:
    sim.add_sensor(camera("goal", habitat_sim.SensorType.COLOR))
    agent = sim.get_agent(0)
    state = agent.get_state()
    state.sensor_states["goal"] = habitat_sim.SixDOFPose(np.array([4.0, 1.25, 2.0]), FACING_X)
    agent.set_state(state, infer_sensor_states=False)
    sensor = sim.get_sensor("goal")
    sensor.draw_observation()
    assert (sensor.get_observation()[..., :3] == (255, 0, 0)).all(-1).any()
    with pytest.raises(ValueError, match="goal"):
        sim.add_sensor(camera("goal", habitat_sim.SensorType.COLOR))
    sim.remove_sensor("goal")
    assert set(sim.get_sensor_observations()) == {"rgb", "depth", "ids"}


def test_agents_with_cameras_of_one_uuid_see_with_their_own(scene: str) -> None:
    config = configuration(scene, camera("rgb", habitat_sim.SensorType.COLOR))
    config.agents.append(copy.copy(config.agents[0]))
    sim = habitat_sim.Simulator(config)
    for agent, position in zip(sim.agents, ([1.5, 0.0, 2.0], [4.0, 0.0, 2.0]), strict=True):
        agent.set_state(habitat_sim.AgentState(position, FACING_X))
    far, near = (sim.get_sensor_observations([0, 1])[i]["rgb"] for i in (0, 1))
    red = [(image[..., :3] == (255, 0, 0)).all(-1).mean() for image in (far, near)]
    assert 0 < red[0] < red[1]
    moved = sim.step({0: FORWARD})
    assert set(moved) == {0} and not np.array_equal(moved[0]["rgb"], far)
    assert np.array_equal(sim.get_sensor_observations(1)["rgb"], near)
    assert np.array_equal(sim.render_sensors()["rgb"], near)  # `sensors` has the last agent's


def test_a_camera_on_the_wall(sim: habitat_sim.Simulator) -> None:
    wall = sim.get_active_scene_graph().get_root_node().create_child()
    wall.translation = [4.0, 1.25, 2.0]
    wall.rotation = mn.Quaternion.rotation(mn.Deg(-90.0), mn.Vector3.y_axis())
    sensor = sim.create_sensor(camera("wall", habitat_sim.SensorType.SEMANTIC, position=[0.0, 0.0, 0.0]), wall)
    put(sim, [4.0, 0.0, 2.0], FACING_X)  # where an agent's cameras see the same
    assert np.array_equal(sim.render_sensors([sensor])["wall"], sim.get_sensor_observations()["ids"])
    assert set(sim.render_sensors()) == {"rgb", "depth", "ids", "wall"} == {"wall", *sim.get_agent(0).sensors}
    assert "wall" not in sim.get_sensor_observations()
    sim.remove_sensor("wall")
    assert "wall" not in sim.sensors and not sim.get_active_scene_graph().get_root_node().subtree_sensors.get("wall")


def test_semantic_scene(sim: habitat_sim.Simulator) -> None:
    objects = sim.semantic_scene.objects
    box = objects[small_scene.BOX[1]]
    assert box.semantic_id == small_scene.BOX[1] and box.category.name() == "red box"
    assert box.region.id == "_1" and box in box.region.objects
    assert np.allclose([box.aabb.min, box.aabb.max], small_scene.BOX_CORNERS)
    assert np.allclose(box.aabb.size(), (0.6, 0.8, 0.8)) and int(box.id.split("_")[-1]) == box.semantic_id


# ---- the path finder -----------------------------------------------------------------------------


def test_paths(sim: habitat_sim.Simulator) -> None:
    path = habitat_sim.ShortestPath()
    path.requested_start, path.requested_end = [1.5, 0.0, 0.5], [4.0, 0.0, 0.5]
    assert sim.pathfinder.find_path(path)
    straight = 2.5
    around = 2 * np.hypot(1.4, 1.1) + 0.2  # through the door, roughly
    assert straight < path.geodesic_distance < around + 0.3
    legs = np.linalg.norm(np.diff(path.points, axis=0), axis=1)
    assert legs.sum() == pytest.approx(path.geodesic_distance, rel=1e-4)

    many = habitat_sim.MultiGoalShortestPath()
    many.requested_start = [1.5, 0.0, 0.5]
    many.requested_ends = np.array([[4.0, 0.0, 0.5], [1.5, 0.0, 3.0]], dtype=np.float32)
    assert sim.pathfinder.find_path(many)
    assert many.closest_end_point_index == 1 and many.geodesic_distance == pytest.approx(2.5, abs=0.01)

    path.requested_end = [50.0, 0.0, 0.0]
    assert not sim.pathfinder.find_path(path)
    assert path.geodesic_distance == float("inf") and path.points == []


def test_navmeshes_are_kept_in_files_and_fit_the_agent(sim: habitat_sim.Simulator, tmp_path: Path) -> None:
    area = sim.pathfinder.navigable_area
    sim.pathfinder.save_nav_mesh(str(tmp_path / "small.navmesh"))
    other = habitat_sim.PathFinder()
    assert not other.is_loaded
    with pytest.raises(RuntimeError, match="no navmesh"):
        other.get_random_navigable_point()
    other.load_nav_mesh(str(tmp_path / "small.navmesh"))
    assert other.navigable_area == pytest.approx(area)
    settings = habitat_sim.NavMeshSettings(agent_radius=0.4)
    assert sim.recompute_navmesh(other, settings) and other.navigable_area < area
    settings.set_defaults()
    assert settings == habitat_sim.NavMeshSettings()
    (tmp_path / "recast.navmesh").write_bytes(b"TESM" + bytes(64))
    with pytest.raises(ValueError, match="not a navmesh"):
        other.load_nav_mesh(str(tmp_path / "recast.navmesh"))


# ---- the greedy follower -------------------------------------------------------------------------


def test_the_follower_walks_through_the_door_and_stops(sim: habitat_sim.Simulator) -> None:
    goal = np.array([4.5, 0.0, 3.5])
    put(sim, [1.0, 0.0, 0.6], [0, 0, 0, 1])
    follower = sim.make_greedy_follower(0, 0.3, stop_key=STOP)
    plan = follower.find_path(goal)
    collisions = steps = 0
    while (action := follower.next_action_along(goal)) != STOP:
        collisions += sim.step(action)["collided"]
        steps += 1
        assert steps < 60
    assert np.linalg.norm(where(sim) - goal) < 0.3
    assert collisions == 0 and plan[-1] == STOP and abs(len(plan) - 1 - steps) <= 3
    assert steps <= 4.6 / 0.25 + 12  # the way through the door, and a few turns


def test_the_follower_says_when_there_is_no_way(sim: habitat_sim.Simulator) -> None:
    follower = sim.make_greedy_follower(0, 0.3)
    with pytest.raises(GreedyFollowerError):
        follower.next_action_along(np.array([50.0, 0.0, 0.0]))
    with pytest.raises(GreedyFollowerError):
        follower.find_path(np.array([50.0, 0.0, 0.0]))


def test_scenes_are_kept_for_the_next_time_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(small_scene.write_scene(tmp_path, f"scene{i}")) for i in range(12)]
    first = open_scene(paths[0])
    bare = first.nbytes
    grid = first.nav_grid(NavMeshSettings())
    assert grid is not None and first.nbytes == bare + grid.nbytes > 1.5 * bare
    grid.find_path(*(grid.random_point(np.random.default_rng(i)) for i in range(2)))
    assert first.nbytes == bare + grid.nbytes
    for path in paths[1:]:
        open_scene(path)
    assert open_scene(paths[0]) is first
    monkeypatch.setattr(scenes, "CACHE_BYTES", 4 * bare)
    open_scene(str(small_scene.write_scene(tmp_path, "one more")))
    for path in paths[1:]:
        open_scene(path)
    again = open_scene(paths[0])
    assert again is not first
    os.utime(paths[0], ns=(1, 1))  # written anew
    assert open_scene(paths[0]) is not again


# ---- configurations ------------------------------------------------------------------------------


def test_reconfigure_changes_the_scene(sim: habitat_sim.Simulator, tmp_path: Path) -> None:
    quad = small_scene.panel((0, 0, 0), (0, 0, 9), (9, 0, 9), (9, 0, 0))
    path = tmp_path / "plain.glb"
    path.write_bytes(small_scene.glb([{"quads": [quad], "colour": (0, 1, 0), "semantic_id": 1, "checker": False}]))
    area = sim.pathfinder.navigable_area
    sim.close(destroy=False)
    sim.reconfigure(configuration(str(path), *all_cameras()))
    assert sim.pathfinder.navigable_area > 3 * area
    assert not sim.semantic_scene.objects  # no annotation beside it
    assert sim.reset()["rgb"].shape == (32, 48, 4)


def test_the_empty_scene_has_no_navmesh_and_no_walls() -> None:
    sim = habitat_sim.Simulator(configuration("NONE", *all_cameras()))
    assert not sim.pathfinder.is_loaded and sim.semantic_scene.objects == []
    sim.step(FORWARD)
    assert np.linalg.norm(where(sim)) == pytest.approx(0.25)
    assert not sim.get_sensor_observations()["depth"].any()


@pytest.mark.parametrize(
    ("sensor", "options", "words"),
    [
        ({}, {"enable_physics": True}, "physics"),
        ({}, {"scene_dataset_config_file": "data/hm3d.scene_dataset_config.json"}, "scene dataset"),
        ({"noise_model": "RedwoodDepthNoiseModel"}, {}, "RedwoodDepthNoiseModel"),
        ({"sensor_subtype": habitat_sim.SensorSubType.ORTHOGRAPHIC}, {}, "pinhole"),
        ({"gpu2gpu_transfer": True}, {}, "gpu2gpu_transfer"),
    ],
)
def test_what_needs_the_real_simulator_is_named(scene: str, sensor: dict, options: dict, words: str) -> None:
    spec = camera("rgb", habitat_sim.SensorType.COLOR, **sensor)
    with pytest.raises(NotImplementedError, match=words) as caught:
        habitat_sim.Simulator(configuration(scene, spec, **options))
    assert "real habitat-sim" in str(caught.value) and "\n" not in str(caught.value)


def test_parts_that_are_not_there_are_named(sim: habitat_sim.Simulator) -> None:
    with pytest.raises(NotImplementedError, match="get_rigid_object_manager"):
        sim.get_rigid_object_manager()
    assert not hasattr(sim, "gfx_replay_manager")
