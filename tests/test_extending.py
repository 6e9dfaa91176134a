"""docs/extending.md (and the examples of docs/data.md): its code blocks are written to files, its commands run."""

import json
import re
import shlex
import sys

import pytest
import torch
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.config.default import get_config
from habitat_baselines.run import execute_exp
from hydra import compose, initialize_config_dir

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.config import import_modules, memory_of, template_of
from habitat_vlnr1.episode_log import read_episodes
from habitat_vlnr1.optimisation import reward_functions
from habitat_vlnr1.records import VLNEgo
from habitat_vlnr1.sim.episode_files import parse_episode
from tests.paths import CONFIGS, ROOT

FENCE = re.compile(r'```(\w+)(?: title="(.*?)")?\n(.*?)```', re.DOTALL)
PAGE = FENCE.findall((ROOT / "docs/extending.md").read_text())
FILES = {title: text for _, title, text in PAGE if title}
COMMANDS = [shlex.split(text.replace("\\\n", " ")) for language, _, text in PAGE if language == "bash"]
SMALL = [
    *(f"vlnr1.task.scenes.{setting}" for setting in ("train_scenes=2", "train_episodes_per_scene=2",
                                                     "val_seen_episodes=1", "val_unseen_scenes=1",
                                                     "val_unseen_episodes_per_scene=2")),
    "vlnr1.model.build.warmup=null", "vlnr1.export.describe=false", "vlnr1.model.cpu_threads=1", "vlnr1.eval.videos=0",
    "vlnr1.protocol.width=64", "vlnr1.protocol.height=64",
    "habitat_baselines.num_environments=1", "vlnr1.export.num_environments=1",  # threads must not share a scene
]  # fmt: skip
ONE_STEP = {
    "vlnr1_sft": ["vlnr1.sft.max_steps=1", "vlnr1.sft.per_device_train_batch_size=1", "vlnr1.sft.evaluate=false"],
    "vlnr1_rft_recorded": ["vlnr1.rft.max_steps=1", "vlnr1.rft.num_generations=4", "vlnr1.rft.evaluate=false",
                           "vlnr1.rft.per_device_train_batch_size=4", "vlnr1.rft.held_out.records=2",
                           "vlnr1.data.rft_records.embedded=4"],
}  # fmt: skip


def command_with(word):
    """Config name and overrides of the page's command that holds `word`."""
    (words,) = [words for words in COMMANDS if any(word in part for part in words)]
    assert words[:3] == ["python", "-m", "habitat_baselines.run"]
    name = next(part.removeprefix("--config-name=") for part in words if part.startswith("--config-name="))
    return name, [part for part in words[3:] if not part.startswith("--")]


def config_of(word, *overrides):
    name, named = command_with(word)
    return get_config(f"{name}.yaml", [*SMALL, *overrides, *named], CONFIGS)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extending")
    for title, text in FILES.items():
        (folder / title).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    """The files lie where the command runs."""
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)
    monkeypatch.setenv("HABITAT_ENV_DEBUG", "1")  # simulators in threads: nothing is spawned


def test_examples_are_short():
    examples = [text for title, text in FILES.items() if title.endswith(".py")]
    assert len(examples) == 4 and all(len(text.splitlines()) < 30 for text in examples)


def test_the_memory_strategy():
    memory = memory_of(config_of("Doubling"))
    assert memory.select(20) == [4, 12, 16, 18, 19] and memory.budget == 8


def test_the_reward():
    first, logged = reward_functions(config_of("my_rewards"))
    space = ActionSpace()
    answers = [space.format(actions) for actions in ([1, 1, 2, 3], [1, 2, 2, 3], [2, 1, 2, 3])]
    assert first([*answers, "A. Fly"], actions=[[1, 1, 2, 3]] * 4) == [1.0, 1 / 16, 0.0, 0.0]
    assert (first.__name__, logged.__name__) == ("prefix", "time_decayed")


def test_the_prompt():
    (message,) = template_of(config_of("my_prompts")).messages("Go.", 2, 6, ActionSpace(turn_angle=15))
    assert [part["type"] for part in message["content"]] == ["image", "image", "text", "image", "text"]
    assert "choose 6 of: A. Move forward 25 cm, B. Turn left 15 degrees" in message["content"][-1]["text"]


def test_the_policy_is_registered():
    import_modules(config_of("my_policy"))
    policy = baseline_registry.get_policy("ZigzagPolicy")
    assert [policy.at(None, step) for step in (0, 2, 3, 7, 16)] == [1, 1, 2, 3, 0]


def test_the_config_file(home):
    (words,) = [words for words in COMMANDS if "--config-dir=." in words]
    assert "--config-name=my_run" in words
    with initialize_config_dir(str(home), version_base=None):
        config = compose("my_run")
    assert config.vlnr1.memory == {"strategy": "my_memory.Doubling", "budget": 8}


def test_the_data_pages_examples(tmp_path, monkeypatch):
    blocks = FENCE.findall((ROOT / "docs/data.md").read_text())
    (episodes,) = [json.loads(text)["episodes"] for language, _, text in blocks if language == "json"]
    assert parse_episode(episodes[0], "data/scene_datasets").episode_id == "1"
    (writing,) = [text for language, _, text in blocks if language == "python"]
    monkeypatch.chdir(tmp_path)
    exec(writing, {"trajectories": [("Go to the sink.", [1, 2, 0], [b"\xff\xd8one\xff\xd9"] * 3)]})
    ego = VLNEgo("data/vln_ego/mine/train")
    ego.check_frames()
    assert ego.episodes[0].actions == (1, 2, 0) and ego.space == ActionSpace(0.25, 15)


@pytest.mark.slow
def test_the_commands_run(home, capsys):
    """Stage 1 with the strategy and with the prompt, stage 2 with the reward, and the policy in the table."""
    pytest.importorskip("habitat_embedded_sim")
    threads = torch.get_num_threads()
    start = get_config("vlnr1_sft.yaml", [*SMALL, *ONE_STEP["vlnr1_sft"]], CONFIGS)
    execute_exp(start, "train")  # what stage 2 starts from
    for word, key, value in (("Doubling", "memory", {"strategy": "my_memory.Doubling", "budget": 8}),
                             ("my_prompts", "template", "my_prompts.polite")):  # fmt: skip
        config = config_of(word, *ONE_STEP["vlnr1_sft"])
        execute_exp(config, "train")
        card = json.loads((home / config.vlnr1.run_dir / "checkpoints/checkpoint-1/vlnr1.json").read_text())
        assert card[key] == value
    execute_exp(config_of("my_rewards", *ONE_STEP["vlnr1_rft_recorded"]), "train")
    state = json.loads(next((home / "data/vlnr1/quickstart/rft_recorded").rglob("trainer_state.json")).read_text())
    assert any("prefix" in key for line in state["log_history"] for key in line)
    config = config_of("my_policy", "habitat_baselines.num_environments=1")
    execute_exp(config, "eval")
    assert "| zigzag " in capsys.readouterr().out
    lines = read_episodes(home / config.vlnr1.results_dir / "zigzag/val_unseen/episodes.jsonl")
    assert len(lines) == 2 and all(line["actions"][:4] == [1, 1, 1, 2] for line in lines)
    torch.set_num_threads(threads)
    assert "my_policy" in sys.modules
