"""Export → training → evaluation on two generated houses, in one process, through the registered trainers."""

import json
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.config.default import get_config
from safetensors.torch import load_file

from habitat_vlnr1.agent import VLNR1Agent
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.records import RecordError, VLNEgo
from habitat_vlnr1.weights import chain
from tests.paths import CONFIGS, ROOT

pytest.importorskip("habitat_embedded_sim")
SCENES = ["train_scenes=2", "train_episodes_per_scene=3", "val_seen_episodes=2", "val_unseen_scenes=1"]
SMALL = [
    *(f"vlnr1.task.scenes.{setting}" for setting in [*SCENES, "val_unseen_episodes_per_scene=2"]),
    "vlnr1.model.build.warmup.steps=4",
    "vlnr1.model.build.warmup.batch_size=4",
    "vlnr1.model.build.warmup.words={steps: 2, batch_size: 8, learning_rate: 1e-3}",
    "vlnr1.extra_sensors.vlnr1_description.cells=3",
    "vlnr1.sft.max_steps=4",
    "vlnr1.sft.save_steps=2",
    "vlnr1.sft.per_device_train_batch_size=2",
    "vlnr1.sft.evaluate=false",
    "vlnr1.model.cpu_threads=1",
    "vlnr1.eval.videos=1",
]
SMALL_RFT = [
    "vlnr1/setup=embedded",
    "vlnr1/rft=quickstart",
    *(f"vlnr1.task.scenes.{setting}" for setting in [*SCENES, "val_unseen_episodes_per_scene=2"]),
    "vlnr1.data.rft_records.embedded=12",
    "vlnr1.rft.held_out.records=2",
    "vlnr1.rft.max_steps=4",
    "vlnr1.rft.save_steps=2",
    "vlnr1.rft.eval_steps=2",
    "vlnr1.rft.logging_steps=1",
    "vlnr1.rft.per_device_train_batch_size=8",
    "vlnr1.rft.num_generations=4",
    "vlnr1.rft.evaluate=false",
    "vlnr1.model.cpu_threads=1",
    "vlnr1.eval.videos=0",
]


SMALL_DAGGER = [
    *(f"vlnr1.task.scenes.{setting}" for setting in [*SCENES, "val_unseen_episodes_per_scene=2"]),
    "vlnr1/task=embedded",
    "vlnr1/setup=embedded",
    "vlnr1/memory=first",
    "vlnr1.run_dir=data/vlnr1/quickstart",
    "vlnr1.dagger.rounds=2",
    "vlnr1.dagger.episodes=2",
    "vlnr1.sft.max_steps=2",
    "vlnr1.sft.save_steps=1",
    "vlnr1.sft.per_device_train_batch_size=2",
    "vlnr1.sft.evaluate=false",
    "vlnr1.model.cpu_threads=1",
    "vlnr1.eval.videos=0",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def run(home, monkeypatch):
    """Run a config's trainer in the data folder, as `habitat_baselines.run` does."""
    monkeypatch.chdir(home)
    threads = torch.get_num_threads()

    def start(name, *overrides, evaluate=False):
        settings = {"vlnr1_sft": SMALL, "vlnr1_rft": SMALL_RFT, "vlnr1_dagger": SMALL_DAGGER, "vlnr1_export": []}[name]
        config = get_config(f"{name}.yaml", [*settings, *overrides], CONFIGS)
        trainer = baseline_registry.get_trainer(config.habitat_baselines.trainer_name)(config)
        trainer.eval() if evaluate else trainer.train()
        return config

    yield start
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_one_command_exports_trains_and_leaves_a_checkpoint(run, home, capsys):
    run("vlnr1_sft")
    root = home / "data/vln_ego/embedded/train"
    summary = json.loads((root / "summary.json").read_text())
    ego = VLNEgo(root)
    ego.check_frames()
    assert summary["episodes"] + len(summary["skipped"]) == 6
    assert summary["actions"]["stop"] == len(ego.episodes) == summary["episodes"]
    assert summary["records"] == len(ego.records(make_memory("current"), 6))
    assert all(len(episode.descriptions) == len(episode.actions) for episode in ego.episodes)
    assert {len(episode.cells(step)) for episode in ego.episodes for step in episode.steps} == {9}
    assert f"train: {summary['episodes']} episodes, {summary['records']} records" in capsys.readouterr().out
    checkpoint = home / "data/vlnr1/quickstart/checkpoints/checkpoint-4"
    assert (checkpoint / "model.safetensors").is_file()
    card = json.loads((checkpoint / "vlnr1.json").read_text())
    assert (card["turn_angle"], card["num_actions"], card["info"]["stage"]) == (30, 6, "sft")


@pytest.mark.slow
def test_a_second_start_finds_everything_made(run, home, capsys):
    before = (home / "data/vlnr1/quickstart/checkpoints/checkpoint-4/model.safetensors").stat().st_mtime_ns
    run("vlnr1_sft")
    out = capsys.readouterr().out
    assert "Exporting" not in out
    assert "SFT is finished: data/vlnr1/quickstart/checkpoints/checkpoint-4" in out
    assert (home / "data/vlnr1/quickstart/checkpoints/checkpoint-4/model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_resuming_goes_on_as_if_nothing_had_happened(run, home):
    """Weights, optimizer, schedule, data order: a run stopped after step 2 ends with an unbroken one's weights."""
    checkpoints = home / "data/vlnr1/quickstart/checkpoints"
    unbroken = load_file(checkpoints / "checkpoint-4/model.safetensors")
    (checkpoints / "checkpoint-4").rename(home / "unbroken")
    run("vlnr1_sft")
    resumed = load_file(checkpoints / "checkpoint-4/model.safetensors")
    assert unbroken.keys() == resumed.keys()
    for name, weight in unbroken.items():
        torch.testing.assert_close(resumed[name], weight, msg=name)


@pytest.mark.slow
def test_half_a_checkpoint_is_not_taken_for_whole(run, home, capsys):
    half = home / "data/vlnr1/quickstart/checkpoints/checkpoint-9"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"cut")
    run("vlnr1_sft")
    assert "checkpoint-4" in capsys.readouterr().out


@pytest.mark.slow
def test_evaluation_writes_what_others_rely_on(run, home, capsys):
    torch.set_num_threads(2)
    run("vlnr1_sft", evaluate=True)
    assert torch.get_num_threads() == 1  # vlnr1.model.cpu_threads
    table = capsys.readouterr().out
    results = home / "data/vlnr1/quickstart/results"
    for policy in ("random", "forward_only", "oracle", "vlnr1_sft", "vlnr1_sft_blind"):
        folder = results / policy / "val_unseen"
        lines = (folder / "episodes.jsonl").read_text().splitlines()
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["policy"] == policy and summary["split"] == "val_unseen"
        assert summary["episodes"] == len(lines) == 2
        assert {"protocol", "SR", "OS", "SPL", "NE", "TL", "nDTW", "sDTW"} <= set(summary)
        assert 0 <= summary["SR"] <= 1
        assert f"| {policy} " in table
    assert json.loads((results / "oracle/val_unseen/summary.json").read_text())["SR"] == 1
    assert list((results / "vlnr1_sft/val_unseen/videos").glob("*.mp4"))
    assert list((results / "vlnr1_sft/val_unseen/videos").glob("*.png"))
    assert f"report: {Path('data/vlnr1/quickstart/results/report.html')}" in table
    page = (results / "report.html").read_text()
    assert all(f'"{policy}"' in page for policy in ("random", "vlnr1_sft")) and "data:image/jpeg" in page


@pytest.mark.slow
def test_habitats_benchmark_finds_what_our_evaluation_found(run, home):
    """On the same episodes, with the agent that needs no config; the example is what a user would run."""
    example = runpy.run_path(str(ROOT / "examples/benchmark_agent.py"))
    agent = VLNR1Agent.from_checkpoint("data/vlnr1/quickstart/checkpoints")
    walks = example["benchmark"](str(example["CONFIGS"] / "vlnr1_benchmark.yaml"), [])
    found = walks.evaluate(agent)
    ours = json.loads((home / "data/vlnr1/quickstart/results/vlnr1_sft/val_unseen/summary.json").read_text())
    for name, metric in {"success": "SR", "spl": "SPL", "distance_to_goal": "NE", "path_length": "TL"}.items():
        assert found[name] == pytest.approx(ours[metric], abs=1e-5), metric
    assert found["steps_taken"] == ours["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rft"])
def test_lora_trains_resumes_and_evaluates(run, home, stage):
    """An adapter's checkpoints hold the adapter alone; a resumed run ends with an unbroken one's."""
    start = home / "data/vlnr1/quickstart/checkpoints/checkpoint-4"
    settings = [
        f"vlnr1.model.path={start}" if stage == "sft" else f"vlnr1.rft.start={start}",
        "vlnr1.model.lora={r: 4, lora_alpha: 8, target_modules: [q_proj, v_proj]}",
        f"vlnr1.run_dir=lora_{stage}",
        "habitat_baselines.test_episode_count=1",
        f"vlnr1.{stage}.learning_rate=1e-2",
    ]
    checkpoints = home / f"lora_{stage}" / ("checkpoints" if stage == "sft" else "rft/checkpoints")
    run(f"vlnr1_{stage}", *settings)
    unbroken = load_file(checkpoints / "checkpoint-4/adapter_model.safetensors")
    assert not (checkpoints / "checkpoint-4/model.safetensors").exists()
    assert any(weight.abs().sum() > 0 for name, weight in unbroken.items() if "lora_B" in name)
    shutil.rmtree(checkpoints / "checkpoint-4")
    run(f"vlnr1_{stage}", *settings)
    resumed = load_file(checkpoints / "checkpoint-4/adapter_model.safetensors")
    for name, weight in unbroken.items():
        torch.testing.assert_close(resumed[name], weight, msg=name)
    run(f"vlnr1_{stage}", *settings, evaluate=True)


@pytest.mark.slow
def test_rft_starts_from_sft_and_leaves_a_checkpoint_and_curves(run, home, capsys):
    run("vlnr1_rft")
    rft = home / "data/vlnr1/quickstart/rft"
    assert "RFT on 12 records from data/vlnr1/quickstart/checkpoints/checkpoint-4" in capsys.readouterr().out
    card = json.loads((rft / "checkpoints/checkpoint-4/vlnr1.json").read_text())
    assert card["info"]["stage"] == "rft"
    assert (rft / "curves.png").is_file() and list((rft / "tb").rglob("events*"))
    logged = json.loads((rft / "checkpoints/checkpoint-4/trainer_state.json").read_text())["log_history"]
    steps = [row for row in logged if "kl" in row]
    assert len(steps) == 4
    phases = {"seconds/rollout", "seconds/policy_forward"}
    assert {"reward", "entropy", "clip_ratio/region_mean", "answers/valid", "answers/accuracy_6"} | phases <= set(
        steps[0]
    )
    assert [row["step"] for row in logged if "eval_reward" in row] == [0, 2, 4]
    start = load_file(home / "data/vlnr1/quickstart/checkpoints/checkpoint-4/model.safetensors")
    end = load_file(rft / "checkpoints/checkpoint-4/model.safetensors")
    assert start.keys() == end.keys() and any(not torch.equal(start[name], end[name]) for name in start)


@pytest.mark.slow
def test_killed_rft_goes_on_with_the_same_curve(run, home):
    """kill -9 in the middle: the next start ends with the weights and the log of an unbroken run."""
    rft = home / "data/vlnr1/quickstart/rft"
    unbroken = rft / "checkpoints/checkpoint-4"
    broken = home / "broken"
    settings = [*SMALL_RFT, f"habitat_baselines.checkpoint_folder={broken}", "vlnr1.rft.max_steps=4"]
    command = [sys.executable, "-m", "habitat_baselines.run", "--config-name=vlnr1_rft", *settings]
    process = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (broken / "checkpoint-2/vlnr1.json").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    shutil.rmtree(broken / "checkpoint-4", ignore_errors=True)
    (broken / "checkpoint-3").mkdir()  # half a checkpoint
    run("vlnr1_rft", f"habitat_baselines.checkpoint_folder={broken}")
    wanted, got = (load_file(folder / "model.safetensors") for folder in (unbroken, broken / "checkpoint-4"))
    for name, weight in wanted.items():
        torch.testing.assert_close(got[name], weight, msg=name)
    logs = [
        [
            {key: row[key] for key in ("step", "reward", "kl", "loss") if key in row}
            for row in json.loads((folder / "trainer_state.json").read_text())["log_history"]
            if "grad_norm" in row
        ]
        for folder in (unbroken, broken / "checkpoint-4")
    ]
    assert len(logs[0]) == 4
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.slow
def test_both_stages_are_evaluated_side_by_side(run, home, capsys):
    run("vlnr1_rft", evaluate=True)
    table = capsys.readouterr().out
    for policy in ("random", "vlnr1_sft", "vlnr1_rft"):
        folder = home / "data/vlnr1/quickstart/rft/results" / policy / "val_unseen"
        assert json.loads((folder / "summary.json").read_text())["policy"] == policy and f"| {policy} " in table


@pytest.mark.slow
def test_online_rft_walks_and_is_rewarded_for_where_it_ends(run, home):
    start = home / "data/vlnr1/quickstart/checkpoints/checkpoint-4"
    only_recorded = ("vlnr1/rft", "held_out", "eval_steps", "num_generations", "per_device")
    settings = [setting for setting in SMALL_RFT if not any(word in setting for word in only_recorded)]
    small = ["vlnr1.rft.num_generations=4", "vlnr1.rft.per_device_train_batch_size=8", "vlnr1.rft.online.turns=2"]
    config = get_config(
        "vlnr1_rft.yaml",
        ["vlnr1/rft=online", *settings, *small, f"vlnr1.rft.start={start}", "vlnr1.run_dir=online"],
        CONFIGS,
    )
    baseline_registry.get_trainer("vlnr1_rft")(config).train()
    state = json.loads((home / "online/rft/checkpoints/checkpoint-4/trainer_state.json").read_text())
    steps = [row for row in state["log_history"] if "walks/answers" in row]
    assert len(steps) == 4 and all(row["walks/answers"] >= 1 for row in steps)
    for row in steps:  # two walks of two rows make a group, so a walk's reward counts twice
        assert row["rewards/success/mean"] == pytest.approx(row["walks/success"])
        assert row["reward"] == pytest.approx(row["rewards/progress/mean"] + row["rewards/success/mean"])


@pytest.mark.slow
def test_dagger_walks_labels_and_trains_on_round_by_round(run, home):
    run("vlnr1_dagger")
    rounds = [home / f"data/vlnr1/quickstart/dagger/round_{number}/checkpoints/checkpoint-2" for number in (1, 2)]
    sources = [f"embedded_quickstart_dagger_{number}" for number in (1, 2)]
    for number, source in enumerate(sources):
        ego = VLNEgo(home / "data/vln_ego" / source / "train")
        ego.check_frames()
        assert len(ego.episodes) == 2
        assert all(list(episode.labels) == list(range(len(episode.actions))) for episode in ego.episodes)
        assert len(ego.records(make_memory("current"), 6)[0].answer) == 6
        origin = ego.meta["dagger"]
        before = "data/vlnr1/quickstart/checkpoints/checkpoint-4" if number == 0 else str(rounds[0].relative_to(home))
        assert (origin["round"], origin["checkpoint"]) == (number + 1, before)
        assert origin["rule"] == {"name": "disagreement", "count": 4, "window": 6}
        assert all(episode.info["success"] == 1 and episode.actions[-1] == 0 for episode in ego.episodes)
        assert ego.meta["expert"] == "pursuit"
        info = json.loads((rounds[number] / "vlnr1.json").read_text())["info"]
        assert (info["stage"], info["data"]) == ("dagger", ["embedded", *sources[: number + 1]])


@pytest.mark.slow
def test_dagger_with_lora_stands_on_all_rounds_before(run, home):
    start = home / "data/vlnr1/quickstart/checkpoints/checkpoint-4"
    lora = "vlnr1.model.lora={r: 4, lora_alpha: 8, target_modules: [q_proj, v_proj]}"
    run("vlnr1_dagger", lora, "vlnr1.run_dir=lora_rounds", f"vlnr1.dagger.start={start}", "vlnr1.dagger.episodes=1")
    rounds = [f"lora_rounds/dagger/round_{number}/checkpoints/checkpoint-2" for number in (2, 1)]
    links = chain(rounds[0])
    assert [Path(link).resolve() for link in links] == [*((home / path).resolve() for path in rounds), start.resolve()]
    first, second = (checkpoint.load(path)[0].state_dict() for path in (rounds[1], rounds[0]))
    assert any(not torch.equal(first[name], weight) for name, weight in second.items())


@pytest.mark.slow
def test_interrupted_dagger_goes_on_where_it_was(run, home, capsys):
    """In the second round: one walk is whole, one line is cut, nothing is trained."""
    first, second = (home / f"data/vlnr1/quickstart/dagger/round_{number}/checkpoints" for number in (1, 2))
    walked = home / "data/vln_ego/embedded_quickstart_dagger_2/train"
    lines = (walked / "episodes.jsonl").read_text().splitlines(keepends=True)
    (walked / "episodes.jsonl").write_text(lines[0] + lines[1][:50])
    (walked / "summary.json").unlink()
    shutil.rmtree(second)
    made = (first / "checkpoint-2/model.safetensors").stat().st_mtime_ns
    run("vlnr1_dagger")
    out = capsys.readouterr().out
    assert "DAgger round 1" not in out and "(1 episodes are there)" in out and "2 episodes (1 in" in out
    assert (first / "checkpoint-2/model.safetensors").stat().st_mtime_ns == made
    again = (walked / "episodes.jsonl").read_text().splitlines(keepends=True)
    assert again[0] == lines[0]
    assert [json.loads(line)["episode_id"] for line in again] == [json.loads(line)["episode_id"] for line in lines]
    run("vlnr1_dagger", evaluate=True)
    table = capsys.readouterr().out
    assert "| vlnr1_sft " in table and "| vlnr1_dagger " in table


@pytest.mark.slow
def test_a_set_of_another_checkpoint_is_not_taken_for_a_rounds(run, home):
    shutil.rmtree(home / "data/vlnr1/quickstart/dagger")
    (home / "data/vln_ego/embedded_quickstart_dagger_1/train/summary.json").unlink()
    with pytest.raises(RecordError, match=r"made from something else .dagger"):
        run("vlnr1_dagger", "vlnr1.dagger.start=data/vlnr1/quickstart/base")


@pytest.mark.slow
def test_rft_without_an_sft_checkpoint_says_what_to_do(run):
    with pytest.raises(FileNotFoundError, match="--config-name=vlnr1_sft"):
        run("vlnr1_rft", "vlnr1.run_dir=nothing")


@pytest.mark.slow
def test_an_interrupted_export_goes_on_without_repeating(run, home):
    root = home / "data/vln_ego/embedded/train"
    lines = (root / "episodes.jsonl").read_text().splitlines(keepends=True)
    kept = {json.loads(line)["episode_id"] for line in lines[:2]}
    (root / "episodes.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    (root / "summary.json").unlink()
    scenes = [f"vlnr1.task.scenes.{setting}" for setting in [*SCENES, "val_unseen_episodes_per_scene=2"]]
    run("vlnr1_export", *scenes)
    ids = [json.loads(line)["episode_id"] for line in (root / "episodes.jsonl").read_text().splitlines()]
    assert set(ids[:2]) == kept and len(ids) == len(set(ids)) == len(lines)


@pytest.mark.slow
def test_another_turn_angle_is_refused(run):
    with pytest.raises(ValueError, match="trained with turn_angle 30, but the simulator is configured with 15"):
        run("vlnr1_sft", "vlnr1.protocol.turn_angle=15", "vlnr1.task.scenes.turn_angle=30", evaluate=True)


@pytest.mark.slow
def test_houses_of_other_settings_are_not_taken_for_these(run):
    with pytest.raises(ValueError, match="holds another set"):
        run("vlnr1_sft", "vlnr1.task.scenes.seed=7")


@pytest.mark.slow
def test_a_cut_frame_is_found_before_training(run, home):
    frame = next((home / "data/vln_ego/embedded/train/frames").rglob("0003.jpg"))
    whole = frame.read_bytes()
    frame.write_bytes(whole[:-20])
    try:
        with pytest.raises(RecordError, match=r"0003.jpg: frame is not a whole JPEG"):
            run("vlnr1_sft", "vlnr1.run_dir=other")
    finally:
        frame.write_bytes(whole)


@pytest.mark.slow
def test_no_checkpoint_says_what_to_do(run):
    with pytest.raises(FileNotFoundError, match=r"train first, or name one with vlnr1\.checkpoint="):
        run("vlnr1_sft", "vlnr1.run_dir=nothing", evaluate=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vlnr1.memory.strategy=elephant", "unknown memory strategy 'elephant'"),
        ("vlnr1.prompt.template=haiku", "unknown prompt template 'haiku'"),
        ("+vlnr1.sft.wings=2", "wings"),
    ],
)
def test_a_wrong_config_is_one_clear_line_before_any_work(run, home, override, message):
    with pytest.raises(ValueError, match=message):
        run("vlnr1_sft", override, "vlnr1.run_dir=wrong")
