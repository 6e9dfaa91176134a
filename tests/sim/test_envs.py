"""The environments themselves, in small generated houses on the embedded simulator."""

import gzip
import json
from unittest import mock

import numpy as np
import pytest
from habitat_baselines.config.default import get_config

from habitat_vlnr1.observations import decode_text
from habitat_vlnr1.sim import env_factory
from habitat_vlnr1.sim.env_factory import VLNVectorEnvFactory
from habitat_vlnr1.sim.expert import Walker
from habitat_vlnr1.sim.vector_env import make_env
from tests.paths import SIM_CONFIGS

houses = pytest.importorskip("habitat_embedded_sim.houses")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with two houses and a few episodes."""
    root = tmp_path_factory.mktemp("sim")
    houses.ensure(
        root / "data", train_scenes=2, train_episodes_per_scene=2, val_seen_episodes=1, val_unseen_scenes=1,
        val_unseen_episodes_per_scene=1, forward_step=0.5, num_workers=1,
    )  # fmt: skip
    return root


@pytest.fixture
def config(data, monkeypatch):
    monkeypatch.chdir(data)
    return lambda *overrides: get_config("sim_test.yaml", ["vlnr1.task.scenes=null", *overrides], SIM_CONFIGS)


def walk(env, choose, limit=200):
    """One episode from reset; returns the observations and the last info."""
    observations, done = [env.reset()], False
    while not done and len(observations) <= limit:
        observation, _, done, info = env.step(choose(observations))
        observations.append(observation)
    return observations, info


def expert(observations):
    return int(observations[-1]["vlnr1_expert"][0])


@pytest.mark.parametrize("mode", ["reference_path", "shortest_path", "ground_truth"])
def test_every_expert_reaches_the_goal_and_stops(config, mode):
    env = make_env(config("+vlnr1/sensors=[expert]", f"habitat.task.lab_sensors.vlnr1_expert.mode={mode}"))
    for _ in range(env.unwrapped.number_of_episodes):
        observations, info = walk(env, expert)
        assert expert(observations[:-1]) == 0  # the stop was the expert's, not the step limit's
        assert info["success"] == 1 and info["oracle_success"] == 1
        assert info["steps_taken"] == len(observations) - 1
        assert 0 < info["oracle_navigation_error"] <= info["distance_to_goal"] + 1e-6
        assert info["ndtw"] == info["sdtw"] > (0.95 if mode == "ground_truth" else 0.5)
        assert 0.7 < info["spl"] <= 1
    env.close()


def test_the_expert_finds_back(config):
    """As DAgger needs it: whatever the agent did before, following the expert leads to the goal."""
    env = make_env(config("+vlnr1/sensors=[expert]"))
    rng = np.random.default_rng(0)
    for _ in range(2):
        _, info = walk(env, lambda seen: rng.integers(1, 4) if len(seen) < 25 else expert(seen))
        assert info["success"] == 1
    env.close()


def test_ground_truth_is_open_loop(config):
    env = make_env(config("+vlnr1/sensors=[expert]", "habitat.task.lab_sensors.vlnr1_expert.mode=ground_truth"))
    seen = env.reset()
    with pytest.raises(RuntimeError, match=r"left the recorded actions at step 0.*use reference_path"):
        env.step(1 + int(seen["vlnr1_expert"][0]) % 3)
    env.close()


def test_observations(config):
    env = make_env(config("+vlnr1/sensors=[description]", "habitat.environment.max_episode_steps=5"))
    assert set(env.observation_space.spaces) == {"rgb", "vlnr1_instruction", "vlnr1_clock", "vlnr1_description"}
    uids = set()
    for _ in range(3):
        observations, info = walk(env, lambda seen: 2)
        clocks = np.array([observation["vlnr1_clock"] for observation in observations])
        assert clocks[:, 1].tolist() == [0, 1, 2, 3, 4, 5]
        uids.update(clocks[:, 0].tolist())
        assert info["path_length"] == 0 and info["success"] == 0
        episode = env.unwrapped.habitat_env.current_episode
        for observation in observations:
            assert env.observation_space.contains(observation)
            assert decode_text(observation["vlnr1_instruction"]) == episode.instruction.instruction_text
        texts = {decode_text(observation["vlnr1_description"]) for observation in observations}
        assert len(texts) > 1 and any(" m " in text for text in texts) and all("room " in text for text in texts)
    assert len(uids) == 3 and min(uids) > 0
    env.close()


def test_a_scene_without_annotation_cannot_be_described(config):
    env = make_env(config("+vlnr1/sensors=[description]", "habitat.dataset.split=val_unseen"))  # one scene
    env.reset()
    env.unwrapped.habitat_env.sim.semantic_scene.objects.clear()
    with pytest.raises(ValueError, match=r"unseen_0000.glb: .*no semantic annotation.*vlnr1.export.describe=false"):
        env.reset()
    env.close()


def test_a_long_instruction_is_an_error(config):
    env = make_env(config("habitat.task.lab_sensors.vlnr1_instruction.max_bytes=10"))
    with pytest.raises(ValueError, match=r"episode .* does not fit into 10.*vlnr1_instruction.max_bytes"):
        env.reset()
    env.close()


class Corridor:
    """A simulator that is a line: geodesic distances along x, the follower walks towards the goal."""

    class habitat_config:
        turn_angle = 30

    def __init__(self, x):
        self.x = x

    def get_agent_state(self):
        return self

    @property
    def position(self):
        return np.array([self.x, 0, 0], dtype=np.float32)

    def geodesic_distance(self, a, b):
        return float(np.linalg.norm(np.asarray(a) - b))


def corridor_walker(xs, start):
    walker = Walker(Corridor(start), [[x, 0, 0] for x in xs], waypoint_radius=0.5, goal_radius=0.25)
    walker.targets = []

    class Follower:
        def get_next_action(self, point):
            walker.targets.append(float(point[0]))
            return 0 if abs(walker._sim.x - point[0]) < 0.25 else 1

    walker._follower = Follower()
    return walker


def test_passed_way_points_are_dropped_but_turning_points_are_not():
    walker = corridor_walker([0, 1, 2, 3, 6], start=2.3)
    assert walker.advise(True, True) == 1
    assert walker.targets == [3]  # 1 and 2 lie behind
    walker = corridor_walker([0, 4, 1], start=2)
    assert walker.advise(True, True) == 1
    assert walker.targets == [4]  # on the way back as well, but 4 was not visited yet
    walker = corridor_walker([0, 4, 5, 4, 1], start=3.6)
    assert walker.advise(True, True) == 1
    assert walker.targets == [5]  # on the last leg as well, but 5 was not visited yet


def test_the_stop_survives_unreachable_way_points_and_a_caught_follower():
    walker = corridor_walker([0, 9, 0.1], start=0)
    walker._follower.get_next_action = lambda point: 0  # as Habitat's follower answers when no way leads there
    assert walker.advise(True, True) == 0
    walker = corridor_walker([0, 5], start=0)
    actions = [walker.advise(True, i == 0) for i in range(40)]  # obeyed, yet never nearer
    assert actions[0] == 1 and actions[-1] == 0
    walker = corridor_walker([0, 5], start=0)
    assert {walker.advise(False, i == 0) for i in range(40)} == {1}  # not obeyed: no reason to give up


def test_two_workers_share_the_episodes(config):
    envs = VLNVectorEnvFactory().construct_envs(config("+vlnr1/sensors=[expert]"))
    try:
        assert envs.num_envs == 2 and envs.number_of_episodes == [2, 2]
        observations = envs.reset()
        uids = {int(observation["vlnr1_clock"][0]) for observation in observations}
        left, finished = list(envs.number_of_episodes), []
        while any(left):
            episodes = envs.current_episodes()
            outputs = envs.step([int(observation["vlnr1_expert"][0]) for observation in observations])
            observations = [output[0] for output in outputs]
            for i, (observation, _, done, info) in enumerate(outputs):
                if done and left[i]:
                    left[i] -= 1
                    finished.append((episodes[i].episode_id, info["success"]))
                    assert observation["vlnr1_clock"][1] == 0  # already the next rollout
                    uids.add(int(observation["vlnr1_clock"][0]))
        assert len({name for name, _ in finished}) == 4 and all(success for _, success in finished)
        assert len(uids) == 6
    finally:
        envs.close()


def test_a_failing_worker_says_why(config):
    envs = VLNVectorEnvFactory().construct_envs(
        config(
            "+vlnr1/sensors=[expert]",
            "habitat.task.lab_sensors.vlnr1_expert.mode=ground_truth",
            "habitat.dataset.gt_path=null",
            "habitat.dataset.max_episodes=1",
        )
    )
    assert envs.num_envs == 1  # not more than episodes
    with pytest.raises(RuntimeError, match=r"environment 0, episode 1 of .*: episode 1: .*needs the file"):
        envs.reset()
    envs.close()


def test_what_is_missing_is_said_before_workers_start(config):
    with pytest.raises(FileNotFoundError, match=r"elsewhere.*no such scene"):
        VLNVectorEnvFactory().construct_envs(config("habitat.dataset.scenes_dir=elsewhere"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        VLNVectorEnvFactory().construct_envs(config("habitat.dataset.split=nowhere"))
    with pytest.raises(ValueError, match="at least 1"):
        VLNVectorEnvFactory().construct_envs(config("habitat_baselines.num_environments=0"))


def test_episodes_without_goals(config, data):
    """As in R2R-CE's split test: refused with measures of success, walked without them."""
    folder = data / "data/datasets/vln/embedded"
    content = json.loads(gzip.decompress((folder / "train/train.json.gz").read_bytes()))
    for episode in content["episodes"]:
        for key in ("goals", "reference_path", "info"):
            del episode[key]
    (folder / "test").mkdir(exist_ok=True)
    (folder / "test/test.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    split = ("habitat.dataset.split=test", "habitat.dataset.gt_path=null")
    with pytest.raises(ValueError, match=r"4 episodes of split test have no goal.*r2r_test"):
        VLNVectorEnvFactory().construct_envs(config(*split))
    path = "habitat.dataset.data_path='data/datasets/vln/embedded/{split}/{split}.json.gz'"
    env = make_env(config("vlnr1/task=r2r_test", path))
    _, info = walk(env, lambda seen: 2 if len(seen) < 4 else 0)
    assert info["steps_taken"] == 4 and "success" not in info
    env.close()


def change_episodes(data, split, change):
    """A split like train, of which `change` makes another: a function of the parsed episodes and ground truth."""
    folder = data / "data/datasets/vln/embedded"
    files = {f"{split}.json.gz": "train/train.json.gz", f"{split}_gt.json.gz": "train/train_gt.json.gz"}
    content, truth = (json.loads(gzip.decompress((folder / path).read_bytes())) for path in files.values())
    change(content["episodes"], truth)
    (folder / split).mkdir(exist_ok=True)
    for name, value in zip(files, (content, truth), strict=True):
        (folder / split / name).write_bytes(gzip.compress(json.dumps(value).encode()))


def test_what_cannot_be_walked_is_left_out_and_listed(config, data, monkeypatch):
    """A missing scene, no ground truth, no goal, a long instruction: the rest goes on."""
    monkeypatch.setenv("HABITAT_ENV_DEBUG", "1")

    def spoil(episodes, truth):
        episodes[:] = [episodes[0] | {"episode_id": number} for number in range(5)]
        episodes[1]["scene_id"] = "embedded/none/none.glb"
        del episodes[3]["goals"]
        episodes[4] = episodes[4] | {"instruction": {"instruction_text": "Go. " * 300}}
        truth.update({str(number): truth["1"] for number in (0, 1, 3, 4)})
        del truth["2"]

    change_episodes(data, "spoilt", spoil)
    with mock.patch.object(env_factory.logger, "warning") as warning:
        envs = VLNVectorEnvFactory().construct_envs(config("habitat.dataset.split=spoilt"))
    try:
        assert envs.number_of_episodes == [1] and envs.call_at(0, "episode_keys")[0][1] == "0"
        reasons = {entry.episode_id: entry.reason for entry in envs.left_out}
        assert reasons == {
            "1": "no such scene: data/scene_datasets/embedded/none/none.glb",
            "2": "ground truth: not in the file",
            "3": "no goal",
            "4": "instruction of 1200 bytes: raise habitat.task.lab_sensors.vlnr1_instruction.max_bytes",
        }
        assert envs.left_out[0].scene_id == "embedded/none/none.glb"
        said = [call.args[0] for call in warning.call_args_list]
        assert "split spoilt: left out: ground truth: not in the file: 2" in said
    finally:
        envs.close()


def test_start_and_goal_in_one_place_are_left_out(config, data, monkeypatch):
    """Habitat's SPL divides by the way from start to goal, which ended the run for all episodes."""
    monkeypatch.setenv("HABITAT_ENV_DEBUG", "1")

    def spoil(episodes, truth):
        episodes[0]["goals"] = [{"position": episodes[0]["start_position"], "radius": 3.0}]

    change_episodes(data, "nowhere_to_go", spoil)
    envs = VLNVectorEnvFactory().construct_envs(config("habitat.dataset.split=nowhere_to_go"))
    envs.close()
    ((name, _, reason),) = envs.left_out
    assert (name, reason) == ("1", "start and goal are the same place")


def test_start_and_goal_that_snap_to_one_place_are_unusable(config):
    env = make_env(config("habitat.dataset.max_episodes=1"))
    episode = env.unwrapped.habitat_env.episodes[0]
    x, y, z = episode.start_position
    episode.goals[0].position = [x, y + 0.3, z]
    env.reset()
    assert env.why_unusable() == "start and goal are the same place"
    _, info = walk(env, lambda seen: 0)
    assert np.isnan(info["spl"]) and info["distance_to_goal"] == 0
    env.close()


def test_a_damaged_ground_truth_file_is_an_error(config, data):
    change_episodes(data, "cut", lambda episodes, truth: None)
    path = data / "data/datasets/vln/embedded/cut/cut_gt.json.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"cut_gt.json.gz: the gzip stream is cut or damaged; fetch it again"):
        VLNVectorEnvFactory().construct_envs(config("habitat.dataset.split=cut"))


@pytest.mark.parametrize(
    ("key", "reason"),
    [("start_position", "start is off the navmesh"), ("goals", "goal is off the navmesh")],
)
def test_off_the_navmesh_is_said_and_the_expert_stops(config, key, reason):
    env = make_env(config("habitat.dataset.max_episodes=1", "+vlnr1/sensors=[expert]"))
    habitat_env = env.unwrapped.habitat_env
    env.reset()
    assert env.why_unusable() is None
    far = [500.0, 0.0, 500.0]
    if key == "goals":
        habitat_env.episodes[0].goals[0].position = far
    else:
        habitat_env.episodes[0].start_position = far
    observations, info = walk(env, expert)
    habitat_env._current_episode = habitat_env.episodes[0]
    assert env.why_unusable() == reason
    assert expert(observations[:-1]) == 0  # the expert stops where no way leads on
    assert np.isinf(info["oracle_navigation_error"]) and info["oracle_success"] == 0 and info["success"] == 0
    env.close()
