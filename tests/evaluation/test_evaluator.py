"""The evaluator on toy environments: every episode exactly once, whatever pauses, resumes or fails."""

import gzip
import itertools
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gym import spaces
from habitat_baselines.common.baseline_registry import baseline_registry
from omegaconf import OmegaConf

import habitat_vlnr1.policies.mixture  # noqa: F401  # registers MixturePolicy
from habitat_vlnr1.config import evaluation_shard
from habitat_vlnr1.episode_log import EpisodeLog, episode_line, read_episodes
from habitat_vlnr1.evaluation.evaluator import VLNR1Evaluator, choose_episodes
from habitat_vlnr1.policies.mixture import MixturePolicy
from habitat_vlnr1.policies.scripted import ForwardOnlyPolicy, OraclePolicy, RandomPolicy
from habitat_vlnr1.results import LeftOut, ResultsError

SPACE = spaces.Dict(
    {
        "rgb": spaces.Box(0, 255, (8, 8, 3), np.uint8),
        "vlnr1_instruction": spaces.Box(0, 255, (16,), np.uint8),
        "vlnr1_clock": spaces.Box(0, 2**62, (2,), np.int64),
        "vlnr1_expert": spaces.Box(0, 3, (1,), np.int64),
    }
)
FOUR = spaces.Discrete(4)
ROLLOUTS = itertools.count(1)


class Corridor:
    """A worker: a corridor along x in which the goal is `goal` steps ahead; the interface of VLNR1GymEnv."""

    def __init__(self, goals):
        self.all = [
            SimpleNamespace(
                episode_id=str(number),
                scene_id=scene,
                trajectory_id=number,
                instruction=SimpleNamespace(instruction_text=f"go {number}"),
                start_position=[0, 0, 0],
                reference_path=[[0, 0, 0], [goal * 0.25, 0, 0]],
                goals=[SimpleNamespace(position=[goal * 0.25, 0, 0])],
                goal=goal,
            )
            for (scene, number), goal in goals.items()
        ]
        self.kept, self.at, self.rollout, self.expert = self.all, -1, 0, True

    def episode_keys(self):
        return [(e.scene_id, e.episode_id) for e in self.all]

    def keep_episodes(self, keys):
        self.kept, self.at = [e for e in self.all if (e.scene_id, e.episode_id) in keys], -1

    def silence(self, uuid, silent):
        assert uuid == "vlnr1_expert"
        self.expert = not silent

    def current_episode(self, all_info):
        return self.kept[self.at]

    def pose(self):
        return [self.x * 0.25, 0.0, 0.0, 0.0]

    def why_unusable(self):
        return "no way from start to goal" if self.kept[self.at].goal > 50 else None

    def topdown_map(self):
        return {"free": np.ones((20, 40), bool), "origin": [-1.0, -0.5], "meters_per_pixel": 0.05}

    def reset(self):
        self.at, self.x, self.steps, self.rollout = (self.at + 1) % len(self.kept), 0, 0, next(ROLLOUTS)
        return self.observe()

    def observe(self):
        told = np.zeros(16, np.uint8)
        text = self.kept[self.at].instruction.instruction_text.encode()
        told[: len(text)] = list(text)
        return {
            "rgb": np.full((8, 8, 3), self.x, np.uint8),
            "vlnr1_instruction": told,
            "vlnr1_clock": np.array([self.rollout, self.steps]),
            "vlnr1_expert": np.array([int(self.expert and self.x < self.kept[self.at].goal)]),
        }

    def step(self, action):
        self.steps += 1
        self.x += action == 1
        goal = self.kept[self.at].goal
        success = float(action == 0 and abs(goal - self.x) < 2)
        distance = abs(goal - self.x) * 0.25 if goal < 50 else np.inf
        info = {"success": success, "distance_to_goal": distance, "vlnr1_trace": self.pose(), "top_down_map": {}}
        done = action == 0 or self.steps == 8
        return (self.reset() if done else self.observe()), 0.0, done, info


class Envs:
    """Habitat's VectorEnv over corridors, in this process."""

    def __init__(self, *workers):
        self.awake, self.paused, self.sent = list(workers), [], {}
        self.observation_spaces = [SPACE for _ in workers]

    @property
    def num_envs(self):
        return len(self.awake)

    def call_at(self, index, name, arguments=None):
        return getattr(self.awake[index], name)(**(arguments or {}))

    def reset_at(self, index):
        return [self.awake[index].reset()]

    def async_step_at(self, index, action):
        self.sent[index] = action

    def wait_step_at(self, index):
        return self.awake[index].step(self.sent.pop(index))

    def post_step(self, observations):
        return observations

    def pause_at(self, index):
        self.paused.append((index, self.awake.pop(index)))

    def resume_all(self):
        for index, worker in reversed(self.paused):
            self.awake.insert(index, worker)
        self.paused = []


def two_environments():
    return Envs(Corridor({("a", 1): 3, ("a", 2): 4, ("a", 10): 2}), Corridor({("b", 1): 5}))


def make_config(folder, policies, **changes):
    config = {
        "habitat": {
            "seed": 1,
            "dataset": {"type": "VLN-CE-v1", "data_path": f"{folder}/{{split}}.json.gz", "scenes_dir": "scenes/"},
            "task": {"lab_sensors": {}},
            "environment": {"max_episode_steps": 8},
        },
        "habitat_baselines": {
            "test_episode_count": -1,
            "video_fps": 4,
            "tensorboard_dir": f"{folder}/tb",
            "eval": {"split": "val"},
            "rl": {"policy": {"main_agent": {"name": "Model"}}},
        },
        "vlnr1": {
            "task": {"name": "corridors"},
            "protocol": {"name": "toy", "forward_step": 0.25, "turn_angle": 30, "success_distance": 0.5},
            "eval": {
                "policies": policies,
                "forward_steps": 3,
                "videos": 0,
                "report_mb": 1,
                "together": None,
                "render_all": False,
                "shard": None,
                "num_shards": None,
            },
            "memory": {"strategy": "uniform"},
            "results_dir": str(folder),
        },
    }
    return OmegaConf.merge(config, OmegaConf.from_dotlist([f"{k}={v}" for k, v in changes.items()]))


class Scalars(dict):
    def add_scalar(self, name, value, step):
        self[name] = value


def evaluate(config, envs, policy=None, transforms=()):
    agent = SimpleNamespace(actor_critic=policy or torch.nn.Identity(), agent_name="main_agent", eval=lambda: None)
    spec = SimpleNamespace(observation_space=SPACE, action_space=FOUR)
    scalars = Scalars()
    summaries = VLNR1Evaluator().evaluate_agent(
        agent, envs, config, 0, 7, scalars, torch.device("cpu"), list(transforms), spec, set()
    )
    return {summary["policy"]: summary for summary in summaries}, scalars


def lines(folder, policy):
    return read_episodes(folder / policy / "val" / "episodes.jsonl")


def test_several_policies_on_the_same_episodes_make_one_table(tmp_path, capsys):
    policies = {"forward_only": "ForwardOnlyPolicy", "oracle": "OraclePolicy", "random": "RandomPolicy"}
    summaries, scalars = evaluate(make_config(tmp_path, policies), two_environments())
    for name in policies:
        assert sorted((e["scene_id"], e["episode_id"]) for e in lines(tmp_path, name)) == [
            ("a", "1"), ("a", "10"), ("a", "2"), ("b", "1")
        ]  # fmt: skip
    assert summaries["oracle"]["SR"] == 1.0
    assert summaries["forward_only"]["SR"] == 0.75  # 3 steps: right for goals at 2, 3 and 4 steps
    assert summaries["forward_only"]["NE"] == pytest.approx(0.25)
    assert scalars["eval_oracle/SR"] == 1.0
    printed = capsys.readouterr().out
    assert printed.startswith("protocol toy: ") and "| oracle" in printed
    saved = json.loads((tmp_path / "oracle" / "val" / "summary.json").read_text())
    assert saved["SR"] == 1.0 and saved["protocol"]["turn_angle"] == 30
    page = (tmp_path / "report.html").read_text()
    assert f"report: {tmp_path / 'report.html'}" in printed and all(f'"{name}"' in page for name in policies)
    assert page.count('"reference":') == 4 and "data:image/jpeg" in page and len(list(tmp_path.rglob("walks/*"))) == 12


def test_the_expert_works_only_for_policies_that_need_it(tmp_path):
    envs = two_environments()
    evaluate(make_config(tmp_path, {"oracle": "OraclePolicy"}), envs)
    assert [worker.expert for worker in envs.awake] == [True, True]
    evaluate(make_config(tmp_path, {"random": "RandomPolicy"}), envs)
    assert [worker.expert for worker in envs.awake] == [False, False]


def test_a_line_tells_the_whole_walk(tmp_path):
    evaluate(make_config(tmp_path, {"oracle": "OraclePolicy"}), two_environments())
    line = next(e for e in lines(tmp_path, "oracle") if e["episode_id"] == "10")
    assert (line["actions"], line["stopped"], line["steps"]) == ([1, 1, 0], True, 3)
    assert line["positions"] == [[0, 0, 0], [0.25, 0, 0], [0.5, 0, 0], [0.5, 0, 0]]
    assert line["headings"] == [0, 0, 0, 0]
    assert (line["instruction"], line["trajectory_id"], line["metrics"]["SR"]) == ("go 10", 10, 1)


class Breaking(OraclePolicy):
    """An oracle that fails after some steps."""

    steps = 9

    def actions(self, observations):
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt
        return super().actions(observations)


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path):
    config = make_config(tmp_path, {"model": "Model"})
    envs = two_environments()
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, envs, Breaking(SPACE, FOUR))
    before = lines(tmp_path, "model")
    assert 0 < len(before) < 4 and envs.num_envs == 2
    summaries, _ = evaluate(config, envs, OraclePolicy(SPACE, FOUR))
    assert lines(tmp_path, "model")[: len(before)] == before
    assert summaries["model"]["episodes"] == 4
    evaluate(config, envs, Breaking(SPACE, FOUR))  # nothing is left to do
    assert len(lines(tmp_path, "model")) == 4


def test_another_seed_or_checkpoint_does_not_mix_with_old_results(tmp_path):
    evaluate(make_config(tmp_path, {"random": "RandomPolicy"}), two_environments())
    with pytest.raises(ResultsError, match="seed: 1 there, 2 now"):
        evaluate(make_config(tmp_path, {"random": "RandomPolicy"}, **{"habitat.seed": 2}), two_environments())


def test_results_of_another_task_are_refused_though_scenes_and_ids_are_the_same(tmp_path):
    """R2R-CE and RxR-CE share Matterport3D and count their episodes from 1."""

    def write(words, mtime=0):
        content = {"episodes": [{"scene_id": "a", "instruction": words}]}
        (tmp_path / "val.json.gz").write_bytes(gzip.compress(json.dumps(content).encode(), mtime=mtime))

    def run(**changes):
        return evaluate(make_config(tmp_path, {"random": "RandomPolicy"}, **changes), two_environments())

    write("go")
    before, _ = run()
    write("go", mtime=9)  # packed again: the same episodes
    assert run()[0] == before
    write("come back")
    with pytest.raises(ResultsError, match=r"another run \(task.episodes.val.json.gz: .* there, .*_dir or delete"):
        run()
    write("go")
    with pytest.raises(ResultsError, match=r'task.name: "corridors" there, "stairs" now'):
        run(**{"vlnr1.task.name": "stairs"})
    run_file = tmp_path / "random/val/run.json"
    identity = json.loads(run_file.read_text())
    del identity["task"]
    run_file.write_text(json.dumps(identity))
    with pytest.raises(ResultsError, match=r"does not say which episodes .*older version.*results_dir or delete"):
        run()
    run_file.write_text("")
    with pytest.raises(ResultsError, match=r"run.json: empty; .*results_dir or delete"):
        run()


def test_an_unreachable_goal_enters_no_average(tmp_path, capsys):
    envs = Envs(Corridor({("a", 1): 3, ("a", 2): 99}))
    envs.left_out = [LeftOut("3", "b", "no such scene: b")]
    summaries, _ = evaluate(make_config(tmp_path, {"forward_only": "ForwardOnlyPolicy"}), envs)
    assert (summaries["forward_only"]["episodes"], summaries["forward_only"]["SR"]) == (1, 1.0)
    assert envs.left_out == [LeftOut("3", "b", "no such scene: b"), LeftOut("2", "a", "no way from start to goal")]
    assert summaries["forward_only"]["left_out"] == [entry._asdict() for entry in envs.left_out]
    assert "no such scene: b: 3; no way from start to goal: 2" in capsys.readouterr().out
    row = lines(tmp_path, "forward_only")[1]  # walked all the same: a submission needs its path
    assert (row["episode_id"], row["unusable"]) == ("2", "no way from start to goal") and len(row["positions"]) > 1


class Recorder(ForwardOnlyPolicy):
    """Notes what it was shown and told about pauses."""

    def __init__(self, *args):
        super().__init__(*args)
        self.paused, self.batches = [], []

    def on_envs_pause(self, envs_to_pause):
        self.paused.append(list(envs_to_pause))

    def act(self, observations, rnn_hidden_states, prev_actions, masks, **kwargs):
        data = super().act(observations, rnn_hidden_states, prev_actions, masks, **kwargs)
        self.batches.append([len(x) for x in (*observations.values(), rnn_hidden_states, prev_actions, masks)])
        data.policy_info = [{"vlnr1_invalid": True} for _ in range(len(masks))]
        return data


def test_a_pause_of_environment_0_reaches_the_policy_and_shrinks_the_batch(tmp_path):
    envs = Envs(Corridor({("a", 1): 3}), Corridor({("b", n): 3 for n in range(3)}))
    policy = Recorder(SPACE, FOUR, 3)
    summaries, _ = evaluate(make_config(tmp_path, {"model": "Model"}), envs, policy)
    assert policy.paused == [[0], [0]]
    assert [set(sizes) for sizes in policy.batches] == [{2}] * 4 + [{1}] * 8
    assert summaries["model"]["invalid_answers"] == 16
    assert envs.num_envs == 2


def test_chosen_episodes_do_not_depend_on_the_environments():
    goals = {(scene, n): 1 for scene in "abc" for n in range(10)}
    one = Envs(Corridor(goals))
    three = Envs(*(Corridor({key: 1 for key in goals if key[0] == scene}) for scene in "abc"))
    (alone,), split = choose_episodes(one, 6), choose_episodes(three, 6)
    assert alone == [key for keys in split for key in keys] and len(set(alone)) == 6
    shared = Envs(Corridor(goals), Corridor(goals))
    halves = choose_episodes(shared, -1)
    assert [len(half) for half in halves] == [15, 15] and not set(halves[0]) & set(halves[1])
    with pytest.raises(ValueError, match="test_episode_count"):
        choose_episodes(one, 0)


class Planner(OraclePolicy):
    """An oracle that is asked at every third step, and says what it does until the next one."""

    asks_every = 3

    def __init__(self):
        super().__init__(SPACE, FOUR)
        self.asked, self.seen = [], []

    def actions(self, observations):
        assert (observations["vlnr1_clock"][:, 1] % 3 == 0).all()
        self.asked.append(len(observations["vlnr1_clock"]))
        return super().actions(observations)

    def ahead(self, observations):
        return [[1, 1] for _ in observations["vlnr1_clock"]]


GOALS = [{("a", n): 3 * n for n in range(1, 4)}, {("b", n): 4 for n in range(3)}, {("c", n): 6 for n in range(3)}]
"""Goals at different distances, so walks end at different times; a plan overshoots, and the limit ends its episode."""


@pytest.mark.parametrize("together, most", [(None, 1), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_a_group_of_environments_is_answered_when_all_of_it_waits(tmp_path, together, most):
    walks = []
    for number, goals in enumerate(GOALS):
        alone = OraclePolicy(SPACE, FOUR)
        alone.actions = lambda observations: [
            int(expert) if step % 3 == 0 else 1
            for (_, step), expert in zip(observations["vlnr1_clock"], observations["vlnr1_expert"][:, 0], strict=True)
        ]
        evaluate(make_config(tmp_path / str(number), {"model": "Model"}), Envs(Corridor(goals)), alone)
        walks += lines(tmp_path / str(number), "model")
    planner = Planner()
    config = make_config(tmp_path / "all", {"model": "Model"}, **{"vlnr1.eval.together": together or "null"})
    evaluate(config, Envs(*map(Corridor, GOALS)), planner)
    assert max(planner.asked) == most and sum(planner.asked) == sum(-(-line["steps"] // 3) for line in walks)
    together, apart = (
        sorted(str({key: value for key, value in line.items() if key != "seconds"}) for line in some)
        for some in (walks, lines(tmp_path / "all", "model"))
    )
    assert together == apart


def test_environments_go_on_while_others_are_answered(tmp_path):
    """Environment 1 cannot step before environment 0 was answered three times: who waits for all waits for ever."""
    third = threading.Event()

    class Slow(Corridor):
        def step(self, action):
            assert third.wait(60)
            return super().step(action)

    class Counting(Planner):
        def actions(self, observations):
            if len(self.asked) == 3:
                third.set()
            return super().actions(observations)

    evaluate(make_config(tmp_path, {"model": "Model"}), Envs(Corridor(GOALS[0]), Slow(GOALS[1])), Counting())
    assert len(lines(tmp_path, "model")) == 6


@pytest.mark.parametrize("count", [2, 5])
def test_processes_divide_the_episodes_and_the_last_one_has_the_table(tmp_path, count, capsys):
    policies = {"forward_only": "ForwardOnlyPolicy", "random": "RandomPolicy"}
    (whole, _) = evaluate(make_config(tmp_path / "one", policies), two_environments())
    capsys.readouterr()
    for shard in reversed(range(count)):
        place = {"vlnr1.eval.shard": shard, "vlnr1.eval.num_shards": count}
        summaries, scalars = evaluate(make_config(tmp_path / "many", policies, **place), two_environments())
        through = sum(len(read_episodes(file)) for file in (tmp_path / "many/random/val").glob("episodes*.jsonl"))
        assert ("| random" in capsys.readouterr().out) == bool(summaries) == (through == 4)
    assert scalars["eval_random/SR"] == whole["random"]["SR"]
    for name in policies:
        folder = tmp_path / "many" / name / "val"
        assert sorted(path.name for path in folder.glob("*.json*")) == ["episodes.jsonl", "run.json", "summary.json"]
        one, many = ({k: v for k, v in s[name].items() if k != "seconds"} for s in (whole, summaries))
        assert one == many


def test_an_evaluation_goes_on_with_another_number_of_processes(tmp_path):
    config = make_config(tmp_path, {"model": "Model"})
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, two_environments(), Breaking(SPACE, FOUR))
    for shard in (0, 1):
        place = {"vlnr1.eval.shard": shard, "vlnr1.eval.num_shards": 3}  # the third one never comes
        evaluate(make_config(tmp_path, {"model": "Model"}, **place), two_environments(), OraclePolicy(SPACE, FOUR))
    assert len(list((tmp_path / "model/val").glob("episodes*.jsonl"))) == 3
    summaries, _ = evaluate(config, two_environments(), OraclePolicy(SPACE, FOUR))
    assert summaries["model"]["episodes"] == len(lines(tmp_path, "model")) == 4


def test_an_episode_with_two_results_is_named(tmp_path):
    config = make_config(tmp_path, {"oracle": "OraclePolicy"})
    evaluate(config, two_environments())
    line = lines(tmp_path, "oracle")[0]
    other = json.dumps({**line, "seconds": line["seconds"] + 1})
    (tmp_path / "oracle/val/episodes-0-of-2.jsonl").write_text(other + "\n")
    with pytest.raises(ResultsError, match=r"episodes.jsonl: episode \d+ of \w was evaluated twice"):
        evaluate(config, two_environments())


@pytest.mark.parametrize("shard, count, why", [(0, None, "give both"), (2, 2, "shards count from 0 to num_shards")])
def test_a_shard_that_there_is_not_is_refused(tmp_path, shard, count, why):
    place = {"vlnr1.eval.shard": shard, "vlnr1.eval.num_shards": "null" if count is None else count}
    with pytest.raises(ValueError, match=why):
        evaluate(make_config(tmp_path, {"oracle": "OraclePolicy"}, **place), two_environments())


def test_the_place_among_torchruns_processes_is_the_shard(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert evaluation_shard(make_config(tmp_path, {})) == (1, 4)


def test_what_a_simulator_died_of_in_another_process_is_in_the_summary(tmp_path):
    line = {"scene_id": "a", "episode_id": "1", "steps": 1, "invalid_answers": 0, "seconds": 1.0}
    first, second = (EpisodeLog(tmp_path, {}, shard, 2) for shard in (0, 1))
    first.append(episode_line({"SR": 1.0}, **line))
    first.give_up([LeftOut("2", "a", "died")])
    first.close()
    assert first.gather(["a:1", "a:2", "a:3"]) is None
    second.append(episode_line({"SR": 1.0}, **{**line, "episode_id": "3"}))
    second.close()
    assert second.gather(["a:1", "a:2", "a:3"]) == [LeftOut("2", "a", "died")]
    assert [line["episode_id"] for line in read_episodes(tmp_path / "episodes.jsonl")] == ["1", "3"]


def test_fewer_episodes_than_environments(tmp_path):
    config = make_config(tmp_path, {"oracle": "OraclePolicy"}, **{"habitat_baselines.test_episode_count": 1})
    summaries, _ = evaluate(config, two_environments())
    assert summaries["oracle"]["episodes"] == 1


def test_videos_of_some_episodes(tmp_path):
    config = make_config(tmp_path, {"oracle": "OraclePolicy"}, **{"vlnr1.eval.videos": 2})
    evaluate(config, two_environments())
    videos = tmp_path / "oracle" / "val" / "videos"
    assert len(list(videos.glob("*.png"))) == len(list(videos.glob("*.mp4"))) == 2


def test_mixtures_are_rows_each_with_a_rule_of_its_own(tmp_path):
    def mixture(share):
        rule = {"name": "probability", "share": share}
        return {
            "name": "MixturePolicy",
            "mixture": {"lead": "ForwardOnlyPolicy", "helper": "OraclePolicy", "rule": rule},
        }

    nested = mixture(0.0)
    nested["mixture"]["lead"] = mixture(1.0)
    policies = {"never": mixture(0.0), "always": mixture(1.0), "nested": nested}
    assert baseline_registry.get_policy("MixturePolicy") is MixturePolicy
    summaries, _ = evaluate(make_config(tmp_path, policies), two_environments())
    assert {name: summaries[name]["SR"] for name in policies} == {"never": 0.75, "always": 1.0, "nested": 1.0}
    with pytest.raises(ResultsError):  # another rule is another policy: not mixed with old results
        evaluate(make_config(tmp_path, {"never": mixture(0.5)}), two_environments())
    with pytest.raises(ValueError, match=r"vlnr1.mixture.helper: no policy 'Nobody'"):
        nested["mixture"]["helper"] = "Nobody"
        evaluate(make_config(tmp_path, {"x": nested}), two_environments())


def test_unknown_or_no_policies_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no policy 'Nonsense'"):
        evaluate(make_config(tmp_path, {"x": "Nonsense"}), two_environments())
    with pytest.raises(ValueError, match="is empty"):
        evaluate(make_config(tmp_path, {}), two_environments())


def test_oracle_without_its_sensor_says_what_to_add():
    blind = spaces.Dict({k: v for k, v in SPACE.spaces.items() if k != "vlnr1_expert"})
    with pytest.raises(ValueError, match=r"OraclePolicy needs the observation vlnr1_expert; add its lab sensor"):
        OraclePolicy(blind, FOUR)
    with pytest.raises(ValueError, match="needs the 4 VLN actions"):
        OraclePolicy(SPACE, spaces.Discrete(6))


def test_random_policy_is_uniform_and_independent_of_the_batch():
    told = torch.zeros(400, 16, dtype=torch.uint8)
    clock = torch.stack([torch.arange(400), torch.arange(400)], dim=1)
    actions = RandomPolicy(SPACE, FOUR, seed=3).actions({"vlnr1_instruction": told, "vlnr1_clock": clock})
    again = RandomPolicy(SPACE, FOUR, seed=3).actions({"vlnr1_instruction": told[:5], "vlnr1_clock": clock[:5] + 0})
    assert again == actions[:5]
    assert np.bincount(actions).min() > 60
    assert RandomPolicy(SPACE, FOUR, seed=4).actions({"vlnr1_instruction": told, "vlnr1_clock": clock}) != actions
