"""Unmodified habitat-lab and habitat-baselines on the embedded simulator."""

import os
from pathlib import Path

import habitat
import numpy as np
import pytest
from habitat.config import read_write
from habitat.config.default_structured_configs import CollisionsMeasurementConfig, TopDownMapMeasurementConfig
from habitat.gym import make_gym_from_config
from habitat.tasks.nav.shortest_path_follower import ShortestPathFollower

from tests.embedded_sim import nav_data


def follow(env: habitat.Env) -> int:
    """Walk to the goal with Habitat's own follower; the number of steps."""
    follower = ShortestPathFollower(env.sim, goal_radius=0.2, return_one_hot=False, stop_on_error=False)
    steps = 0
    while not env.episode_over:
        env.step(follower.get_next_action(nav_data.GOAL))
        steps += 1
    return steps


def test_a_vln_episode_with_maps_and_collisions(tmp_path: Path) -> None:
    config = nav_data.vln_config(tmp_path)
    with read_write(config):
        config.habitat.task.measurements.success.success_distance = 3.0
        config.habitat.task.measurements.top_down_map = TopDownMapMeasurementConfig(map_resolution=128)
        config.habitat.task.measurements.collisions = CollisionsMeasurementConfig()
    with habitat.Env(config) as env:
        first = env.reset()
        assert np.array_equal(env.sim.get_observations_at()["rgb"], first["rgb"])
        assert first["rgb"].shape == (64, 64, 3) and first["depth"].shape == (64, 64, 1)
        assert 0 < first["depth"].max() <= 1
        assert np.allclose(env.sim.get_agent_state().position, nav_data.START)
        start_distance = env.get_metrics()["distance_to_goal"]
        assert 3.9 < start_distance < 4.4
        steps = follow(env)
        metrics = env.get_metrics()
        assert metrics["success"] == 1.0 and metrics["spl"] > 0.9
        assert metrics["distance_to_goal"] < 0.25 and metrics["collisions"]["count"] == 0
        assert steps < start_distance / 0.25 + 12
        top_down = metrics["top_down_map"]
        assert (top_down["map"] == 1).mean() > 0.3 and top_down["fog_of_war_mask"].any()
        seen_again = env.reset()  # the only episode again
        assert np.array_equal(seen_again["rgb"], first["rgb"])


def test_looking_up_and_down_with_semantics(tmp_path: Path) -> None:
    config = nav_data.vln_config(
        tmp_path,
        ("small",),
        "+habitat/task/actions@habitat.task.actions.look_up=look_up",
        "+habitat/task/actions@habitat.task.actions.look_down=look_down",
        "+habitat/simulator/sim_sensors@habitat.simulator.agents.main_agent.sim_sensors.ids=semantic_sensor",
    )
    with habitat.Env(config) as env:
        level = env.reset()
        assert level["semantic"].dtype == np.int32 and set(np.unique(level["semantic"])) <= {0, 1, 2, 3}
        down = env.step("look_down")
        assert not np.array_equal(down["rgb"], level["rgb"])
        assert np.abs(env.step("look_up")["rgb"].astype(int) - level["rgb"]).mean() < 0.5


def test_workers_and_changing_scenes(tmp_path: Path) -> None:
    config = nav_data.vln_config(
        tmp_path,
        ("one", "two"),
        "habitat.environment.iterator_options.shuffle=False",
        "habitat.environment.iterator_options.max_scene_repeat_steps=-1",
    )
    with read_write(config):  # the text of an instruction does not pass between processes as an observation
        config.habitat.gym.obs_keys = ["rgb", "depth"]
        config.habitat.task.reward_measure, config.habitat.task.success_measure = "distance_to_goal", "success"
    envs = habitat.VectorEnv(make_gym_from_config, [(config,), (config,)], multiprocessing_start_method="forkserver")
    try:
        frames = envs.reset()
        assert all(frame["rgb"].shape == (64, 64, 3) for frame in frames)
        assert np.array_equal(frames[0]["rgb"], frames[1]["rgb"])
        scenes = [[episode.scene_id for episode in envs.current_episodes()]]
        for _ in range(2):
            results = envs.step([0, 0])  # stop
            assert all(done for _, _, done, _ in results)
            scenes.append([episode.scene_id for episode in envs.current_episodes()])
        assert len({row[0] for row in scenes}) == 2  # each worker came through both houses
    finally:
        envs.close()


PPO = """# @package _global_
defaults:
  - /benchmark/nav/pointnav: pointnav_base
  - /habitat_baselines: habitat_baselines_rl_config_base
  - _self_
habitat:
  dataset:
    type: PointNav-v1
habitat_baselines:
  trainer_name: ppo
  num_environments: 2
  total_num_steps: 64
  num_updates: -1
  num_checkpoints: 1
  checkpoint_folder: checkpoints
  tensorboard_dir: tb
  rl:
    ppo:
      num_steps: 16
      ppo_epoch: 1
"""


@pytest.mark.slow
def test_the_stock_ppo_trainer_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from habitat_baselines.config.default import get_config
    from habitat_baselines.run import execute_exp

    data_path, scenes_dir = nav_data.write_dataset(tmp_path, ("one", "two"), instructions=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "ppo.yaml").write_text(PPO)
    camera = "habitat.simulator.agents.main_agent.sim_sensors"
    sizes = [f"{camera}.{s}_sensor.{side}=64" for s in ("rgb", "depth") for side in ("width", "height")]
    config = get_config(
        str(tmp_path / "ppo.yaml"),
        [f"habitat.dataset.data_path={data_path}", f"habitat.dataset.scenes_dir={scenes_dir}", *sizes],
    )
    execute_exp(config, "train")
    assert any(name.startswith("ckpt") for name in os.listdir(tmp_path / "checkpoints"))
