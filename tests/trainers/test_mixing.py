"""Ours under Habitat's trainers and evaluator, Habitat's under ours: on a few generated houses, in one process."""

import shutil

import pytest
import torch
from habitat_baselines.config.default import get_config
from habitat_baselines.run import execute_exp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from habitat_vlnr1.episode_log import read_episodes
from habitat_vlnr1.policies.habitat_checkpoint import newest_pth, read_pth
from habitat_vlnr1.records import RecordError, VLNEgo
from tests.paths import CONFIGS

pytest.importorskip("habitat_embedded_sim")
pytestmark = pytest.mark.slow
SCENES = [
    f"vlnr1.task.scenes.{setting}"
    for setting in ("train_scenes=2", "train_episodes_per_scene=2", "val_seen_episodes=1", "val_unseen_scenes=2",
                    "val_unseen_episodes_per_scene=2")
]  # fmt: skip
SHORT = ["habitat.environment.max_episode_steps=12"]
SFT = ["vlnr1.model.build.warmup=null", "vlnr1.sft.max_steps=1", "vlnr1.sft.evaluate=false",
       "vlnr1.sft.per_device_train_batch_size=1", "vlnr1.model.cpu_threads=1",
       "vlnr1.export.describe=false"]  # fmt: skip
PPO = ["habitat_baselines.total_num_steps=32", "habitat_baselines.num_checkpoints=1",
       "habitat_baselines.rl.ppo.num_steps=8", "habitat_baselines.rl.ppo.ppo_epoch=1",
       "habitat_baselines.rl.ppo.hidden_size=32"]  # fmt: skip
IL = ["vlnr1.il.epochs=2", "vlnr1.il.batch_size=2", "vlnr1.il.evaluate=false", "vlnr1.il.cpu_threads=1",
      "vlnr1.il.log_steps=1", "vlnr1.il.save_steps=2", "vlnr1.net.baseplanes=4", "vlnr1.net.hidden_size=16",
      "vlnr1.export.describe=false"]  # fmt: skip
STOCK = [
    "habitat_baselines.evaluator._target_=habitat_baselines.rl.ppo.habitat_evaluator.HabitatEvaluator",
    "habitat.environment.iterator_options.shuffle=false",  # shuffled, it may meet an episode twice and miss another
]
ONLY_VLNR1 = ["~vlnr1.eval.policies", "+vlnr1.eval.policies.vlnr1=VLNR1Policy", "vlnr1.eval.videos=0"]
PIXELS = ["vlnr1.protocol.width=64", "vlnr1.protocol.height=64"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("mixing")


@pytest.fixture
def run(home, monkeypatch):
    """What `python -m habitat_baselines.run --config-name=<name> <overrides>` does, in the data folder."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("HABITAT_ENV_DEBUG", "1")  # simulators in threads: nothing is spawned
    threads = torch.get_num_threads()

    def start(name, *overrides, evaluate=False):
        settings = {"vlnr1_sft": SFT, "vlnr1_il": IL}.get(name, PPO)
        config = get_config(f"{name}.yaml", [*SCENES, *SHORT, *PIXELS, *settings, *overrides], CONFIGS)
        execute_exp(config, "eval" if evaluate else "train")
        return config

    yield start
    torch.set_num_threads(threads)


def scalars(folder, prefix="eval_metrics/"):
    """The last value of every TensorBoard curve below `prefix`."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag.removeprefix(prefix): events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"] if prefix in tag
    }


@pytest.fixture
def sft(run, home):
    """The folder of a tiny VLN-R1, trained for a step."""
    run("vlnr1_sft")
    return home / "data/vlnr1/quickstart"


def test_habitats_evaluator_measures_of_vlnr1_what_ours_does(run, home, sft):
    """Habitat's trainers, agent access manager, evaluator and videos, on the policy with its history frames."""
    for trainer, video in (("ppo", "[disk]"), ("ddppo", "[]")):
        run("vlnr1_sft", f"habitat_baselines.trainer_name={trainer}", *STOCK,
            f"habitat_baselines.tensorboard_dir=tb_{trainer}",
            f"habitat_baselines.eval.video_option={video}", evaluate=True)  # fmt: skip
    assert list((sft / "videos").glob("*.mp4"))
    run("vlnr1_sft", *ONLY_VLNR1, evaluate=True)
    ours = [line["metrics"] for line in read_episodes(sft / "results/vlnr1/val_unseen/episodes.jsonl")]
    assert len(ours) == 4
    names = {"success": "SR", "spl": "SPL", "distance_to_goal": "NE", "path_length": "TL", "ndtw": "nDTW"}
    for trainer in ("ppo", "ddppo"):
        stock = scalars(home / f"tb_{trainer}")
        for habitats, name in names.items():
            assert stock[habitats] == pytest.approx(sum(line[name] for line in ours) / 4, abs=1e-5)


def test_habitats_transforms_before_and_after_ours(run, home, sft):
    """Resized before, the history is resized too; cropped after, only the current frame is."""
    place = "habitat_baselines.rl.policy.main_agent.obs_transforms"
    add = f"+habitat_baselines/rl/policy/obs_transforms@{place}"
    before = [f"~{place}.long_short_memory", f"{add}.resize=resize_shortest_edge_base", f"{place}.resize.size=48",
              f"{add}.memory=long_short_memory", f"{place}.memory.memory=${{vlnr1.memory}}"]  # fmt: skip
    after = [f"{add}.crop=center_cropper_base", f"{place}.crop.height=60", f"{place}.crop.width=60"]
    for results, settings in (("before", before), ("after", after)):
        run("vlnr1_sft", *settings, *ONLY_VLNR1, f"vlnr1.results_dir={results}", evaluate=True)
        assert len(read_episodes(home / results / "vlnr1/val_unseen/episodes.jsonl")) == 4


@pytest.mark.parametrize("name", ["vlnr1_ppo", "vlnr1_ppo_memory"])
def test_habitats_ppo_trains_a_policy_and_evaluates_it(run, home, name):
    """Trainer, evaluator and checkpoints are Habitat's own."""
    config = run(name)
    assert config.habitat_baselines.trainer_name == "ppo"
    folder = home / "data/vlnr1" / name.removeprefix("vlnr1_")
    assert {"success", "reward"} <= scalars(folder / "tb", "").keys() | scalars(folder / "tb", "metrics/").keys()
    torch.load(newest_pth(folder / "checkpoints"), weights_only=True)
    run(name, "habitat_baselines.tensorboard_dir=tb_" + name, evaluate=True)
    assert 0 <= scalars(home / f"tb_{name}")["success"] <= 1


def test_imitation_trains_resumes_and_is_evaluated_by_habitat(run, home):
    run("vlnr1_il")
    checkpoints = home / "data/vlnr1/seq2seq/checkpoints"
    whole = read_pth(checkpoints / "ckpt.4.pth")["state_dict"]
    assert {"il/loss", "il/accuracy"} <= scalars(home / "data/vlnr1/seq2seq/tb", "").keys()
    shutil.move(checkpoints / "ckpt.4.pth", home / "unbroken.pth")
    run("vlnr1_il")
    resumed = read_pth(checkpoints / "ckpt.4.pth")["state_dict"]
    for key, weight in whole.items():
        torch.testing.assert_close(resumed[key], weight, msg=key)
    run("vlnr1_il", "habitat_baselines.trainer_name=ppo", *STOCK, "habitat_baselines.tensorboard_dir=tb_seq2seq",
        "habitat_baselines.eval.should_load_ckpt=true",
        f"habitat_baselines.eval_ckpt_path_dir={checkpoints}/ckpt.4.pth", evaluate=True)  # fmt: skip
    assert 0 <= scalars(home / "tb_seq2seq")["success"] <= 1


def test_imitation_with_depth(run, home):
    rgbd = ["vlnr1/sensors=[expert,depth]", "vlnr1/il=cma"]
    with pytest.raises(RecordError, match="was exported without depth: export to another"):
        run("vlnr1_il", *rgbd)
    own_source = ["vlnr1.data.source=embedded_rgbd", "vlnr1.data.sources=[embedded_rgbd]", "vlnr1.il.evaluate=true"]
    run("vlnr1_il", *rgbd, *own_source, "vlnr1.eval.videos=0")
    ego = VLNEgo(home / "data/vln_ego/embedded_rgbd/train")
    assert all((ego.root / e.depth(len(e.actions) - 1)).is_file() for e in ego.episodes)
    weights = read_pth(newest_pth(home / "data/vlnr1/cma/checkpoints"))["state_dict"]
    assert any(key.startswith("net.cameras.depth") for key in weights)
    assert len(read_episodes(home / "data/vlnr1/cma/results/cma/val_unseen/episodes.jsonl")) == 4


def test_one_table_of_all(run, home, sft, capsys):
    """After the trainings above: scripted policies, PPO, imitation, VLN-R1, each seeing what it was trained with."""
    learned = {
        "ppo": "PointNavResNetPolicy",
        "ppo_memory": "MemoryAttentionPolicy",
        "seq2seq": "Seq2SeqPolicy",
        "cma": "CMAPolicy",
    }
    rows = [
        f"+vlnr1.eval.policies.{name}={{name: {policy}, checkpoint: data/vlnr1/{name}/checkpoints}}"
        for name, policy in learned.items()
    ]
    run("vlnr1_sft", *rows, "vlnr1/sensors=[expert,depth]", "+vlnr1.eval.policies.ppo.deterministic=false",
        "vlnr1.results_dir=table", "vlnr1.eval.videos=0", evaluate=True)  # fmt: skip
    printed = capsys.readouterr().out
    for name in ("random", "forward_only", "oracle", "vlnr1_sft", *learned):
        assert f"| {name} " in printed
        assert len(read_episodes(home / "table" / name / "val_unseen/episodes.jsonl")) == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{name: CMAPolicy, checkpoint: data/vlnr1/cma/checkpoints}", "was trained with the observation depth"),
        ("{name: CMAPolicy, checkpoint: data/vlnr1/seq2seq/checkpoints}", "holds no weights of CMAPolicy"),
        ("CMAPolicy", "CMAPolicy needs weights"),
    ],
)
def test_a_row_without_its_weights_or_observations_is_refused(run, sft, row, message):
    with pytest.raises(ValueError, match=f"vlnr1.eval.policies.x: .*{message}"):
        run("vlnr1_sft", f"+vlnr1.eval.policies.x={row}", "+vlnr1/net=small", "vlnr1.results_dir=no", evaluate=True)
