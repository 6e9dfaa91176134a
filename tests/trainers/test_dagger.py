"""The expert's plans, in small generated houses, and the rounds' configs. The whole of it is in test_pipeline.py."""

import numpy as np
import pytest
from habitat_baselines.config.default import get_config

from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.policies.mixture import GOAL
from habitat_vlnr1.records import Episode, RecordError
from habitat_vlnr1.sim.vector_env import make_env
from habitat_vlnr1.trainers.dagger import draw_episodes, round_config, schedule
from tests.paths import CONFIGS, SIM_CONFIGS

houses = pytest.importorskip("habitat_embedded_sim.houses")
PLAN = "habitat.task.lab_sensors.vlnr1_plan"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("dagger")
    houses.ensure(
        root / "data", style="plain", train_scenes=1, train_episodes_per_scene=4, val_seen_episodes=0,
        val_unseen_scenes=0, forward_step=0.5, num_workers=1,
    )  # fmt: skip
    return root


@pytest.fixture
def make(data, monkeypatch):
    monkeypatch.chdir(data)
    small = ["vlnr1.protocol.width=16", "vlnr1.protocol.height=16"]

    def start(*overrides, sensors="plan"):
        settings = [*small, f"+vlnr1/sensors=[{sensors}]", *overrides]
        return make_env(get_config("sim_test.yaml", settings, SIM_CONFIGS))

    return start


@pytest.mark.parametrize("mode", ["pursuit", "reference_path"])
def test_a_plan_is_what_the_expert_then_does_and_leads_to_the_goal(make, mode):
    """From wherever the agent has strayed: plans looked ahead agree with those made on the way, to the stop."""
    env = make(f"{PLAN}.mode={mode}", f"{PLAN}.within=2.0")
    rng = np.random.default_rng(1)
    for _ in range(4):
        plan, done, step = env.reset()["vlnr1_plan"].tolist(), False, 0
        while not done:
            stray = step < 12
            action = int(rng.choice([1, 1, 1, 2, 3])) if stray else plan[0]
            before = env.unwrapped.habitat_env.sim.get_agent_state()
            seen, _, done, info = env.step(action)
            step += 1
            if done:
                break
            after = seen["vlnr1_plan"].tolist()
            assert -1 not in after and len(after) == 6
            if not stray:
                assert after[:-1] == plan[1:]
            moved = np.linalg.norm(env.unwrapped.habitat_env.sim.get_agent_state().position - before.position)
            assert moved <= 0.5 + 1e-4  # looking ahead leaves the agent where it is
            plan = after
        assert action == 0 and info["success"] == 1
    env.close()


def test_pursuit_walks_as_the_recorded_expert_does(make):
    env = make(f"{PLAN}.mode=pursuit", f"{PLAN}.waypoint_radius=0.35")
    same = []
    for _ in range(4):
        plan = env.reset()["vlnr1_plan"]
        inner = env.unwrapped.habitat_env
        actions = list(inner.task._dataset.ground_truth(inner.current_episode.episode_id).actions)
        for step, action in enumerate(actions):
            same.append((plan == (actions[step : step + 6] + [0] * 6)[:6]).mean())
            plan = env.step(action)[0]["vlnr1_plan"]
    assert np.mean(same) > 0.75
    env.close()


def test_plans_are_made_at_every_few_steps_and_not_where_the_expert_is_lost(make):
    env = make(f"{PLAN}.every=3", f"{PLAN}.num_actions=2")
    plans = [env.reset()["vlnr1_plan"], *(env.step(2)[0]["vlnr1_plan"] for _ in range(6))]
    assert [bool((plan >= 0).all()) for plan in plans] == [True, False, False, True, False, False, True]
    assert {len(plan) for plan in plans} == {2} and plans[1].tolist() == [-1, -1]
    env.close()
    env = make(f"{PLAN}.num_actions=60", f"{PLAN}.within=0.01")  # the expert stops, and that is too far for this limit
    assert env.reset()["vlnr1_plan"].max() == -1
    env.close()


def test_a_mixture_is_told_how_near_the_goal_is(make):
    env = make(sensors="pointgoal")
    seen = env.reset()[GOAL]
    episode = env.unwrapped.habitat_env.current_episode
    away = np.linalg.norm(np.subtract(episode.goals[0].position, episode.start_position))
    assert seen[0] == pytest.approx(away, abs=1e-3)
    env.close()


def test_a_recorded_expert_plans_too(make):
    env = make(f"{PLAN}.mode=ground_truth")
    plan = env.reset()["vlnr1_plan"].tolist()
    inner = env.unwrapped.habitat_env
    assert plan == list(inner.task._dataset.ground_truth(inner.current_episode.episode_id).actions[:6])
    env.close()


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = CONFIGS
    return lambda *overrides, name="vlnr1_dagger": get_config(f"{name}.yaml", list(overrides), folder)


def test_dagger_starts_where_its_first_stage_ends(config):
    first, second = config(name="vlnr1_sft_far"), config()
    assert second.vlnr1.dagger.start == first.habitat_baselines.checkpoint_folder
    assert second.vlnr1.sft_config == "vlnr1_sft_far"
    assert second.vlnr1.task == first.vlnr1.task and second.vlnr1.data == first.vlnr1.data
    assert first.vlnr1.data.sources == [first.vlnr1.data.source] == ["embedded_far"]
    elsewhere = config("vlnr1/setup=r2r")
    assert elsewhere.vlnr1.data.sources == [elsewhere.vlnr1.task.name] == ["r2r"]
    assert elsewhere.vlnr1.sft_config == "vlnr1_sft"


def test_the_expert_takes_over_or_its_share_falls_or_is_listed(config):
    assert schedule(config("vlnr1.dagger.rounds=2")) == [{"name": "disagreement", "count": 4, "window": 6}] * 2
    with pytest.raises(ValueError, match=r"dagger.take_over: .*disagreement.*count <= window"):
        schedule(config("vlnr1.dagger.take_over.count=7"))

    def shares(*overrides):
        return [rule["share"] for rule in schedule(config("vlnr1.dagger.take_over=null", *overrides))]

    assert shares("vlnr1.dagger.rounds=3") == [0.5, 0.25, 0.125]
    assert shares("vlnr1.dagger.beta=[1.0,0.5,0]") == [1.0, 0.5, 0]
    with pytest.raises(ValueError, match="3 rounds and 1 betas"):
        shares("vlnr1.dagger.beta=[1.0]")
    with pytest.raises(ValueError, match=r"dagger.beta: .*share must be in 0 … 1"):
        shares("vlnr1.dagger.beta=2.0")
    with pytest.raises(ValueError, match="at least 1"):
        shares("vlnr1.dagger.rounds=0")


def test_a_round_trains_on_all_rounds_so_far(config):
    of_round = round_config(config("vlnr1.run_dir=runs/seed_1"), 2)
    assert of_round.vlnr1.data.source == "embedded_far_seed_1_dagger_2"
    assert list(of_round.vlnr1.data.sources) == ["embedded_far", *(f"embedded_far_seed_1_dagger_{n}" for n in (1, 2))]
    assert of_round.habitat_baselines.checkpoint_folder == "runs/seed_1/dagger/round_2/checkpoints"
    without = round_config(config("vlnr1.dagger.episodes=0"), 2)
    assert list(without.vlnr1.data.sources) == ["embedded_far"]


def test_rounds_draw_different_exported_episodes(config):
    with pytest.raises(RecordError, match="run --config-name=vlnr1_export first"):
        draw_episodes(config(), 1)
    writer = EpisodeWriter("data/vln_ego/embedded_far/train", {})
    for number in range(7):
        writer.write(Episode(str(number), "house", "Go.", (0,)), [b""])
    writer.close()
    rounds = [draw_episodes(config("vlnr1.dagger.episodes=3"), number) for number in (1, 2, 3)]
    assert len({name for drawn in rounds[:2] for name in drawn}) == 6
    assert all(len(set(drawn)) == 3 for drawn in rounds)
    with pytest.raises(ValueError, match="episodes is 8, but 7 episodes are exported"):
        draw_episodes(config("vlnr1.dagger.episodes=8"), 1)
