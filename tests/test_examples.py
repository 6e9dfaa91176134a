"""The examples run as their docstrings say, on tiny inputs."""

import json
import math
import re
import runpy
import sys
from types import SimpleNamespace

import pytest

from tests.paths import ROOT
from tests.tiny_run import write_tiny_run

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SCENES = ["train_scenes=2", "train_episodes_per_scene=3", "val_seen_episodes=2", "val_unseen_scenes=1"]
HOUSES = [f"vlnr1.task.scenes.{setting}" for setting in [*SCENES, "val_unseen_episodes_per_scene=2"]]
QUICKSTART = "data/vlnr1/quickstart"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What `make quickstart` leaves, as far as the examples need it."""
    return write_tiny_run(tmp_path_factory.mktemp("examples"), "data/vln_ego", QUICKSTART)


@pytest.fixture
def run(home, monkeypatch):
    """`python examples/<name>.py …` in the data folder."""
    monkeypatch.chdir(home)

    def start(name, *arguments):
        script = ROOT / "examples" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        monkeypatch.syspath_prepend(script.parent)
        runpy.run_path(str(script), run_name="__main__")

    return start


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_examples_are_short_and_say_how_to_run_them(script):
    text = script.read_text()
    assert len(text.splitlines()) <= 60
    assert f".venv/bin/python examples/{script.name}" in text.split('"""')[1]


def test_a_checkpoint_is_asked_about_frames_of_ones_own(run, home, capsys):
    run("ask_checkpoint")
    exported = capsys.readouterr().out
    assert re.search(r"the expert did: (A|B|C|D)\. .*\nthe model says: (A|B|C|D)\. ", exported)
    frames = sorted((home / "data/vln_ego/embedded/train/frames/s/0").glob("*.jpg"))[:5]
    run("ask_checkpoint", "--instruction", "Stop at the red sofa.", *frames)
    own = capsys.readouterr().out
    assert "expert" not in own and own.splitlines() == exported.splitlines()[1:]
    assert len(own.splitlines()) == 7  # the answer, and six actions with their probabilities
    with pytest.raises(SystemExit):
        run("ask_checkpoint", *frames)


def test_a_reward_of_ones_own():
    until_wrong = runpy.run_path(str(ROOT / "examples/own_reward.py"))["until_wrong"]
    right, wrong_at_last, wrong_at_first, other = (
        "A. Move forward 50 cm, D. Stop",
        "A. Move forward 50 cm, B. Turn left 30 degrees",
        "C. Turn right 30 degrees, D. Stop",
        "A. Move forward 50 cm",
    )
    answers = [right, wrong_at_last, wrong_at_first, other]
    assert until_wrong(answers, actions=[[1, 0]] * 4, bonus=0.5) == [2.5, 1.0, 0.0, 0.0]


def test_a_ros_2_node_drives_what_the_server_says(monkeypatch):
    """Against stand-ins for ROS 2 and for the client; what it publishes is looked at."""

    class Node:
        def __init__(self, name):
            self.time, self.sent, self.said = 0.0, [], []

        def declare_parameter(self, name, default):
            return SimpleNamespace(value={"instruction": "go"}.get(name, default))

        def create_publisher(self, *_):
            return SimpleNamespace(publish=self.sent.append)

        def get_clock(self):
            return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=self.time * 1e9))

        def get_logger(self):
            return SimpleNamespace(info=self.said.append)

        create_subscription = create_timer = lambda self, *_: None

    class Twist:
        def __init__(self):
            self.linear, self.angular = SimpleNamespace(x=0.0), SimpleNamespace(z=0.0)

    class Client:
        def __init__(self, address):
            assert address == "ws://localhost:8000"
            self.about = {"forward_step": 0.5, "turn_angle": 30, "words": ["Stop", "Forward", "Left", "Right"]}
            self.actions = [1, 3, 0]

        def act(self, frame, instruction):
            assert (frame, instruction) == (b"jpeg", "go")
            return {"action": self.actions.pop(0)}

    parts = {"rclpy": {}, "rclpy.node": {"Node": Node}, "client": {"PolicyClient": Client}, "geometry_msgs": {}}
    parts |= {"geometry_msgs.msg": {"Twist": Twist}, "sensor_msgs": {}, "sensor_msgs.msg": {"CompressedImage": bytes}}
    for name, content in parts.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    node = runpy.run_path(str(ROOT / "examples/ros2_node.py"))["Navigator"]()
    speeds = []
    for tick in range(200):
        node.time = tick / 20
        node.see(SimpleNamespace(data=b"jpeg"))
        node.drive()
        speeds.append((node.sent[-1].linear.x, node.sent[-1].angular.z))
    assert node.said == ["Forward", "Right", "Stop"] and speeds[-1] == (0, 0)
    assert sum(x for x, _ in speeds) / 20 == pytest.approx(0.5, abs=0.02)  # metres
    assert sum(z for _, z in speeds) / 20 == pytest.approx(-math.radians(30), abs=0.03)


@pytest.mark.slow
def test_training_with_a_reward_of_ones_own(run, home):
    pytest.importorskip("habitat_embedded_sim")
    steps = ["max_steps=2", "save_steps=2", "eval_steps=2", "logging_steps=1", "evaluate=false", "held_out.records=2"]
    batch = ["num_generations=4", "per_device_train_batch_size=8"]
    settings = [f"vlnr1.rft.{setting}" for setting in (*steps, *batch)]
    run("own_reward", *HOUSES, *settings, "vlnr1.data.rft_records.embedded=8", "vlnr1.model.cpu_threads=1")
    state = home / "data/vlnr1/own_reward/rft_recorded/checkpoints/checkpoint-2/trainer_state.json"
    rows = [row for row in json.loads(state.read_text())["log_history"] if "kl" in row]
    assert len(rows) == 2 and all("rewards/until_wrong/mean" in row for row in rows)


@pytest.mark.slow
def test_a_policy_of_ones_own_has_a_row_in_the_table(run, home, capsys):
    pytest.importorskip("habitat_embedded_sim")
    run("own_policy", *HOUSES, "vlnr1.eval.videos=0")
    assert "| first_turn " in capsys.readouterr().out
    folder = home / QUICKSTART / "results/first_turn/val_unseen"
    assert json.loads((folder / "summary.json").read_text())["episodes"] == 2
    assert json.loads((folder / "run.json").read_text())["turns"] == 2
