"""The evaluator on toy environments: rows, tables and lines; every episode exactly once, whatever fails."""

import gzip
import json

import numpy as np
import pytest
import torch
from gym import spaces
from habitat_baselines.common.baseline_registry import baseline_registry

import habitat_vlnr1.policies.mixture  # noqa: F401  # registers MixturePolicy
from habitat_vlnr1.policies.mixture import MixturePolicy
from habitat_vlnr1.policies.scripted import ForwardOnlyPolicy, OraclePolicy, RandomPolicy
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


def test_pictures_of_the_first_walks_go_to_tensorboard(tmp_path):
    from habitat_baselines.common.tensorboard_utils import TensorboardWriter
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(tmp_path, {"forward_only": "ForwardOnlyPolicy"}, **{"vlnr1.eval.videos": 2})
    with TensorboardWriter(str(tmp_path / "tb")) as writer:
        evaluate(config, two_environments(), writer=writer)
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    names = events.Tags()["images"]
    assert len(names) == 2 and all(name.startswith("walks_forward_only/") for name in names)
    assert events.Images(names[0])[0].width > 1000 and "eval_forward_only/SR" in events.Tags()["scalars"]


def test_a_row_of_the_agents_policy_with_keys_of_its_own_heeds_them(tmp_path):
    rows = {"as_trained": "ForwardOnlyPolicy", "longer": {"name": "ForwardOnlyPolicy", "eval.forward_steps": 5}}
    config = make_config(tmp_path, rows, **{"habitat_baselines.rl.policy.main_agent.name": "ForwardOnlyPolicy"})
    evaluate(config, two_environments(), ForwardOnlyPolicy(SPACE, FOUR, 2))
    steps = {row: {len(line["actions"]) for line in lines(tmp_path, row)} for row in rows}
    assert steps == {"as_trained": {3}, "longer": {6}}
