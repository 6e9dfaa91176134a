"""Several environments and several processes of one evaluation: who waits for whom, and each episode once."""

import json
import threading

import pytest

from habitat_vlnr1.config import evaluation_shard
from habitat_vlnr1.episode_log import EpisodeLog, episode_line, read_episodes
from habitat_vlnr1.evaluation.evaluator import choose_episodes
from habitat_vlnr1.policies.scripted import ForwardOnlyPolicy, OraclePolicy
from habitat_vlnr1.results import LeftOut, ResultsError
from tests.evaluation.corridor import (
    FOUR,
    SPACE,
    Breaking,
    Corridor,
    Envs,
    evaluate,
    lines,
    make_config,
    two_environments,
)


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
