"""Answers walked ahead: against the simulator itself, and against what a right and a wrong answer are worth."""

from pathlib import Path

import numpy as np
import pytest
from habitat_baselines.config.default import get_config

from habitat_vlnr1.actions import Action
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.errors import RecordError
from habitat_vlnr1.frame_files import encode_jpeg
from habitat_vlnr1.records import Episode, VLNEgo
from habitat_vlnr1.register import register
from habitat_vlnr1.sim.env_factory import make_scenes, open_dataset
from habitat_vlnr1.sim.headway import Headway
from habitat_vlnr1.sim.task_files import task_identity
from habitat_vlnr1.sim.vector_env import make_env
from tests.paths import CONFIGS

F, L, R, S = Action.FORWARD, Action.LEFT, Action.RIGHT, Action.STOP
HOUSES = [
    f"vlnr1.task.scenes.{key}"
    for key in ("train_scenes=2", "train_episodes_per_scene=4", "val_seen_episodes=1", "val_unseen_scenes=1")
]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Config, episodes and their recorded actions, and a source that says that it was recorded from them."""
    register()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("headway"))
        config = get_config("vlnr1_rft_recorded.yaml", HOUSES, CONFIGS)
        make_scenes(config)
        dataset = open_dataset(config.habitat)
        walks = {str(e.episode_id): tuple(dataset.ground_truth(e.episode_id).actions) for e in dataset.episodes}
        meta = {"split": "train", "task": task_identity(config, "train")}
        yield config, dataset, walks, source(Path("ego"), meta)


def source(root, meta):
    writer = EpisodeWriter(root, meta)
    writer.write(Episode("1", "s", "Stop.", (0,)), [encode_jpeg(np.zeros((8, 8, 3), np.uint8), 90)])
    writer.close()
    return VLNEgo(root)


def test_poses_are_the_simulators(task):
    config, dataset, walks, ego = task
    headway = Headway(config, [ego])
    env = make_env(config, dataset)
    try:
        for _ in range(3):
            env.reset()
            episode = env.current_episode(all_info=True)
            actions = walks[str(episode.episode_id)]
            for step, action in enumerate(actions[:-1]):
                pose, state = headway.pose(episode, actions[:step]), env.unwrapped.habitat_env.sim.get_agent_state()
                assert pose.position == pytest.approx(state.position, abs=1e-4)
                assert np.cos(pose.heading / 2) ** 2 == pytest.approx(state.rotation.w**2, abs=1e-4)
                env.step(int(action))
    finally:
        env.close()


def test_a_recorded_walk_earns_most_of_what_can_be_earned_and_its_opposite_nothing(task):
    config, _, walks, ego = task
    headway = Headway(config, [ego])
    opposite = {F: F, L: R, R: L, S: S}
    for name, actions in walks.items():
        assert np.mean(headway("train", name, (), actions)) > 0.6
        turn = next((i for i, action in enumerate(actions) if action in (L, R)), None)
        if turn is not None:
            assert headway("train", name, actions[:turn], (actions[turn],))[0] > 0.4
            assert headway("train", name, actions[:turn], (opposite[actions[turn]],))[0] < -0.4


def test_stop_earns_by_where_it_stands(task):
    config, _, walks, ego = task
    headway = Headway(config, [ego])
    for name, actions in walks.items():
        assert headway("train", name, actions[:-1], (S, F, F)) == [1, 1, 1]
        assert headway("train", name, (), (S, S, S)) == [-1, -1, -1]
        # A STOP too late in the answer is judged where the actions before it have led.
        ahead = actions[:-1][-2:]
        assert headway("train", name, actions[: -1 - len(ahead)], (*ahead, S, S))[-2:] == [1, 1]


def test_records_of_other_episodes_are_refused(task, tmp_path):
    config, _, _, ego = task
    others = ({}, {"split": "train"}, {"split": "train", "task": {"episodes": {"train.json.gz": "0123456789abcdef"}}})
    for number, meta in enumerate(others):
        with pytest.raises(RecordError, match=r"not recorded from episodes of the task embedded.*answer_value"):
            Headway(config, [source(tmp_path / str(number), meta)])
    with pytest.raises(RecordError, match="episode 999 of split train is among the records"):
        Headway(config, [ego])("train", "999", (), (S,))
