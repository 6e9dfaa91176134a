"""The sweep of Table 3: every job composes, has a folder of its own; its figures are counted right."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from habitat_baselines.config.default import get_config
from omegaconf import OmegaConf

from benchmarks.ablations import (
    TABLES,
    SubTable,
    better_in_paper,
    collect,
    draw,
    markdown,
    mcnemar,
    run_folder,
    sign_flips,
)
from habitat_vlnr1.errors import ResultsError
from habitat_vlnr1.settings import check_settings
from habitat_vlnr1.trainers.stages import stage_1
from tests.paths import CONFIGS

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
PARAMS = OmegaConf.load(Path(CONFIGS) / "vlnr1_ablations.yaml").hydra.sweeper.params
SETTINGS = PARAMS["vlnr1/ablation"].replace(" ", "").split(",")
SEEDS = str(PARAMS["habitat.seed"]).split(",")


@pytest.fixture(scope="module")
def jobs():
    def compose(setting, seed):
        return get_config("vlnr1_ablations.yaml", [f"vlnr1/ablation={setting}", f"habitat.seed={seed}"], CONFIGS)

    return {job: compose(*job) for job in itertools.product(SETTINGS, SEEDS)}


# ------------------------------------------------------------------------------------------------------------ configs
def test_the_sweep_has_all_settings_of_the_tables_and_no_other():
    assert {s for table in TABLES.values() for s in table.settings.values()} == set(SETTINGS)
    assert {file.stem for file in (Path(CONFIGS) / "vlnr1/ablation").glob("*.yaml")} == set(SETTINGS)
    assert len(SEEDS) == 3


def test_every_job_is_right_and_has_a_folder_of_its_own(jobs):
    for config in jobs.values():
        check_settings(config)
    assert len({config.vlnr1.run_dir for config in jobs.values()}) == len(SETTINGS) * len(SEEDS) == 51


def test_results_lie_where_the_collector_looks(jobs):
    for (setting, seed), config in jobs.items():
        folder = run_folder(Path(config.vlnr1.ablation.root), setting, seed, "row", "split")
        assert folder == Path(config.vlnr1.results_dir) / "row/split"


def test_every_row_that_is_evaluated_is_in_a_table_and_the_other_way_round(jobs):
    read = {setting: set() for setting in SETTINGS}
    for table in TABLES.values():
        for value, setting in table.settings.items():
            read[setting].add(table.rows.get(value, "all_executed"))
    for (setting, _), config in jobs.items():
        assert {name for name, row in config.vlnr1.eval.policies.items() if row is not None} == read[setting], setting


def test_both_stages_draw_as_many_of_the_records_that_only_go_on(jobs):
    assert {(c.vlnr1.sft.keep_straight, c.vlnr1.rft.keep_straight) for c in jobs.values()} == {(0.1, 0.1)}


def test_a_setting_differs_from_the_papers_choice_in_its_value_alone(jobs):
    def differs(setting, group):
        ours, chosen = (OmegaConf.to_container(jobs[s, "1"].vlnr1, resolve=True) for s in (setting, group))
        apart = {key for key in ours if ours[key] != chosen[key]}
        return apart - {"ablation", "run_dir", "results_dir", "eval", "remote"}  # folders below run_dir, and rows

    for setting in SETTINGS:
        group = "stage_2" if setting.startswith(("group", "reward", "stage_2")) else "stage_1"
        kind = setting.rpartition("_")[0] if setting.startswith(("actions", "group")) else setting.split("_")[0]
        wanted = {"actions": {"prompt", "decoding"}, "memory": {"memory"}, "group": {"rft"}, "reward": {"rft"}}
        assert differs(setting, group) == wanted.get(kind, set()), setting
    assert [jobs[f"actions_{n}", "0"].vlnr1.prompt.num_actions for n in (1, 4, 8)] == [1, 4, 8]
    assert [jobs[f"group_{g}", "0"].vlnr1.rft.num_generations for g in (2, 4, 6)] == [2, 4, 6]
    assert [jobs[f"reward_{r}", "0"].vlnr1.rft.rewards[0].name for r in ("hard", "linear")] == ["hard", "linear"]


def test_stage_2_starts_from_the_very_stage_1_of_its_seed(jobs):
    for setting, seed in jobs:
        theirs, own = jobs["stage_1", seed], stage_1(jobs[setting, seed])
        if jobs[setting, seed].habitat_baselines.trainer_name == "vlnr1_stages":
            assert own.vlnr1.run_dir == theirs.vlnr1.run_dir
            assert own.habitat_baselines.checkpoint_folder == theirs.habitat_baselines.checkpoint_folder
            assert own.vlnr1.rft.start == theirs.habitat_baselines.checkpoint_folder
            for key in ("model", "memory", "prompt", "data", "base_dir"):
                assert own.vlnr1[key] == theirs.vlnr1[key], key


# ---------------------------------------------------------------------------------------------------------- collector
def write_run(root, setting, seed, successes, finished=True, row="all_executed"):
    """A run of as many episodes; each that fails ends 4 m from its goal."""
    folder = run_folder(root, setting, seed, row, "val_unseen")
    folder.mkdir(parents=True)
    lines = [
        {"scene_id": "s", "episode_id": f"{n}", "metrics": {"SR": s, "OS": s, "SPL": s / 2, "NE": 0.0 if s else 4.0}}
        for n, s in enumerate(successes)
    ]
    (folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "summary.json").write_text("{}")


@pytest.fixture
def root(tmp_path):
    """n = 6 succeeds in 8 of 10 and 6 of 10 episodes, n = 1 in 2 and 0; n = 8 as n = 6, in one seed."""
    write_run(tmp_path, "stage_1", 0, [1] * 8 + [0] * 2)
    write_run(tmp_path, "stage_1", 1, [1] * 6 + [0] * 4)
    write_run(tmp_path, "actions_1", 0, [0] * 8 + [1] * 2)
    write_run(tmp_path, "actions_1", 1, [0] * 10)
    write_run(tmp_path, "actions_8", 0, [1] * 8 + [0] * 2)
    write_run(tmp_path, "actions_8", 1, [1] * 3, finished=False)
    return tmp_path


def test_means_and_errors(root):
    own = collect(root, [0, 1])["tables"]["actions"]["values"]["6"]
    assert own["SR"]["mean"] == pytest.approx(0.7) and own["NE"]["mean"] == pytest.approx(1.2)
    assert own["SR"]["error_over_seeds"] == pytest.approx(0.1)  # sd of 0.8 and 0.6 is 0.1414; over the root of 2
    # Means of the ten episodes over the seeds: six 1, two 0.5, two 0. Squares about 0.7: 0.54 + 0.08 + 0.98 = 1.6.
    assert own["SR"]["error_over_episodes"] == pytest.approx((1.6 / 9 / 10) ** 0.5)
    assert (own["seeds"], own["episodes"], own["against_chosen"]) == ([0, 1], 20, None)


def test_pairs(root):
    values = collect(root, [0, 1])["tables"]["actions"]["values"]
    test = values["1"]["against_chosen"]
    assert (test["pairs"], test["SR"]["alone"], test["SR"]["chosen_alone"]) == (20, 2, 14)
    assert test["SR"]["p"] == pytest.approx(2 * (1 + 16 + 120) / 2**16)
    assert test["NE"]["difference"] == pytest.approx(4 * 12 / 20)
    assert values["8"]["against_chosen"]["pairs"] == 10  # its second seed is not finished
    assert values["8"]["against_chosen"]["SR"] == {"alone": 0, "chosen_alone": 0, "p": 1.0}


def test_what_is_absent_is_named_and_the_order_is_read_off(root):
    part = collect(root, [0, 1])["tables"]["actions"]
    assert [line.split(": ")[1] for line in part["absent"]] == ["missing", "missing", "unfinished (3 episodes)"]
    assert "actions_8/seed_1" in part["absent"][-1]
    told = dict(line.split(": ", 1) for line in part["order_of_the_paper"])
    assert told["6 above 1"].startswith("holds here (14 against 2 of 20 pairs")
    assert told["6 above 8"].startswith("equal here")
    assert told["6 above 4"] == told["4 above 1"] == told["8 above 4"] == "not measured"
    assert told["8 above 1"].startswith("not told apart here; the same direction (8 against 2")


def test_an_order_that_is_reversed_is_said_to_be(tmp_path):
    write_run(tmp_path, "group_2", 0, [1] * 10)
    write_run(tmp_path, "stage_2", 0, [0] * 10)
    told = collect(tmp_path, [0])["tables"]["group"]["order_of_the_paper"]
    assert [line for line in told if line.startswith("8 above 2: the opposite here")]


def test_order_of_the_paper():
    table = SubTable("", {}, "c", {"a": (1.0, None), "b": (2.0, None), "x": (None, 9.0), "c": (None, None)})
    assert sorted(better_in_paper(table)) == [("b", "a"), ("c", "a"), ("c", "b"), ("c", "x")]


def test_known_p_values():
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1
    assert mcnemar(0, 6) == mcnemar(6, 0) == pytest.approx(2 / 64)
    assert sign_flips([0.0] * 20) == 1
    assert sign_flips([1.0] * 8) == pytest.approx(2 / 256, abs=0.003)


def test_lefts_out_do_not_count(root):
    folder = run_folder(root, "stage_1", 0, "all_executed", "val_unseen")
    text = (folder / "episodes.jsonl").read_text().splitlines(keepends=True)
    metrics = {"SR": 0.0, "OS": 0.0, "SPL": None, "NE": None}
    broken = json.dumps({"scene_id": "s", "episode_id": "9", "metrics": metrics}) + "\n"
    (folder / "episodes.jsonl").write_text("".join([*text[:-1], broken]))
    values = collect(root, [0, 1])["tables"]["actions"]["values"]
    assert values["6"]["episodes"] == 19 and values["1"]["against_chosen"]["pairs"] == 19


def test_no_run_at_all_is_one_line(tmp_path):
    with pytest.raises(ResultsError, match="no finished run of seeds 0, 1"):
        collect(tmp_path, [0, 1])


def test_what_is_written(root, tmp_path):
    report = collect(root, [0, 1])
    text = markdown(report)
    assert "| **6** | 2 | 20 | 0.700 ± 0.100 (0.133) |" in text and "24.9 / 31.7" in text
    json.dumps(report, allow_nan=False)
    draw(report["tables"]["actions"], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


# -------------------------------------------------------------------------------------------------------------- sweep
SMALL = [
    *(
        "vlnr1/setup=embedded",
        "vlnr1/ablation=actions_1,group_2",
        "habitat.seed=0",
        "habitat_baselines.test_episode_count=1",
    ),
    *(f"vlnr1.task.scenes.{key}=1" for key in ("train_scenes", "val_seen_episodes", "val_unseen_scenes")),
    *(f"vlnr1.task.scenes.{key}=2" for key in ("train_episodes_per_scene", "val_unseen_episodes_per_scene")),
    *("vlnr1.model.build.warmup.words.steps=1", "vlnr1.sft.max_steps=1", "vlnr1.sft.per_device_train_batch_size=1"),
    *("vlnr1.data.rft_records.embedded=12", "vlnr1.rft.held_out.records=2", "vlnr1.rft.max_steps=1"),
    *("vlnr1.rft.eval_on_start=false", "vlnr1.rft.eval_strategy=no"),
]


@pytest.mark.slow
def test_a_killed_sweep_goes_on(tmp_path):
    """Two settings that share a tiny model, of which one makes its stage 1 first. What was done stays as it was, and
    of a finished sweep the same command changes nothing."""
    pytest.importorskip("habitat_embedded_sim")
    command = [sys.executable, "-m", "habitat_baselines.run", "-m", "--config-name=vlnr1_ablations", *SMALL]
    sweep = tmp_path / "data/vlnr1/ablations/embedded"

    work = ("*.safetensors", "episodes*.jsonl", "*.jpg")

    def state():
        return {file: file.stat().st_mtime_ns for kind in work for file in (tmp_path / "data").rglob(kind)}

    def run():
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=ONE_THREAD)
        return state()

    with (
        (tmp_path / "first.log").open("w") as log,
        subprocess.Popen(command, cwd=tmp_path, env=ONE_THREAD, stdout=log, stderr=log) as first,
    ):
        try:
            held_out = tmp_path / "data/vln_ego/embedded/val_unseen/summary.json"
            while not held_out.is_file():  # exported last, before stage 2 of the second job trains
                assert first.poll() is None, (tmp_path / "first.log").read_text()[-3000:]
                time.sleep(0.1)
            before = state()
        finally:
            first.kill()
    assert sweep / "stage_1/seed_0/checkpoints/checkpoint-1/model.safetensors" in before
    after = run()
    assert before.items() <= after.items()
    assert len([file for file in after if file.name == "model.safetensors" and "base" in file.parts]) == 1
    values = collect(sweep, [0])["tables"]
    assert list(values["actions"]["values"]) == ["1"] and list(values["group"]["values"]) == ["2"]
    assert run() == after
