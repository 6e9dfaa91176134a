"""The agent for any program: it acts as the policy does, whoever shows it the frames."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from gym import spaces

from habitat_vlnr1.agent import Navigator, VLNR1Agent
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.lvlm.checkpoint import read_card, resolve
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.observations import encode_text
from tests.tiny_run import WORDS, write_tiny_run

HORIZON, STEPS = 2, 9


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return str(write_tiny_run(tmp_path_factory.mktemp("agent")) / "run/checkpoints")


@pytest.fixture(scope="module")
def navigator(checkpoints):
    """With JPEG, as checkpoints of our own data are asked."""
    made = Navigator.from_checkpoint(checkpoints, execute_horizon=HORIZON)
    made.jpeg_quality = 90
    return made


def frames(seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (56, 56, 3), dtype=np.uint8) for _ in range(STEPS)]


def walk(agent, seed, words):
    agent.reset()
    return [agent.act({"rgb": frame, "instruction": words})["action"] for frame in frames(seed)]


def policy_walk(checkpoints, navigator, seed, words):
    """The same frames through our observation transform and policy, as an evaluation asks them."""
    from habitat_vlnr1.obs_transform import LongShortMemory
    from habitat_vlnr1.policies.vlnr1 import VLNR1Policy

    memory = make_memory(**read_card(resolve(checkpoints)).memory)
    transform = LongShortMemory(memory, jpeg_quality=90)
    raw = spaces.Dict(
        {
            "rgb": spaces.Box(0, 255, (56, 56, 3), np.uint8),
            "vlnr1_instruction": spaces.Box(0, 255, (128,), np.uint8),
            "vlnr1_clock": spaces.Box(0, 2**62, (2,), np.int64),
        }
    )
    space = transform.transform_observation_space(raw)
    policy = VLNR1Policy(space, spaces.Discrete(4), navigator.decoder, HORIZON)
    actions = []
    for step, frame in enumerate(frames(seed)):
        batch = {
            "rgb": torch.from_numpy(frame)[None],
            "vlnr1_instruction": torch.from_numpy(encode_text(words, 128))[None],
            "vlnr1_clock": torch.tensor([[99 + seed, step]]),
        }
        actions += policy.actions(transform(batch))
    return actions


def test_it_acts_as_the_policy_does(checkpoints, navigator):
    agent = VLNR1Agent(navigator)
    walks = [walk(agent, seed, words) for seed, words in enumerate(WORDS)]
    assert walks == [policy_walk(checkpoints, navigator, seed, words) for seed, words in enumerate(WORDS)]
    assert walk(agent, 0, WORDS[0]) == walks[0]  # after a reset nothing is left of the walks before


def test_several_walks_are_asked_about_together_and_do_not_mix(navigator, monkeypatch):
    alone = [walk(VLNR1Agent(navigator), seed, WORDS[seed % 2]) for seed in range(3)]
    asked = []
    decode = navigator.decoder.decode
    monkeypatch.setattr(navigator.decoder, "decode", lambda p, **o: asked.append(len(p)) or decode(p, **o))
    walks, views = [navigator.begin() for _ in range(3)], [frames(seed) for seed in range(3)]
    actions = [[], [], []]
    for step in range(STEPS):
        for seed, one in enumerate(walks):
            one.see(views[seed][step], WORDS[seed % 2])
        for did, decided in zip(actions, navigator.decide(walks), strict=True):
            did.append(decided.action)
    assert actions == alone and asked == [3] * (STEPS // HORIZON + 1)


def test_the_whole_answer_and_what_goes_on_from_it(navigator):
    agent = VLNR1Agent(navigator)
    views = frames(4)
    answer = agent.answer({"rgb": views[0], "instruction": {"text": WORDS[0]}})
    assert len(answer.actions) == 6 and answer.text == agent.space.format(answer.actions)
    assert agent.act({"rgb": views[1], "instruction": WORDS[0]}) == {"action": answer.actions[1]}
    told = {"rgb": views[2], "vlnr1_instruction": encode_text(WORDS[0], 128)}
    agent.act(told)
    assert agent._walk.frames == 3


def test_another_instruction_ends_the_plan(navigator, monkeypatch):
    asked = []
    decode = navigator.decoder.decode
    monkeypatch.setattr(navigator.decoder, "decode", lambda p, **o: asked.append(p[0].instruction) or decode(p, **o))
    agent = VLNR1Agent(navigator)
    for view, words in zip(frames(5), [WORDS[0], WORDS[1], WORDS[1]], strict=False):
        agent.act({"rgb": view, "instruction": words})
    assert asked == WORDS


@pytest.mark.parametrize(
    ("observations", "what"),
    [
        ({"depth": 0}, "needs the observation 'rgb', but there are only depth"),
        ({"rgb": np.zeros((56, 56, 3), np.uint8)}, "needs the observation 'instruction'"),
        ({"rgb": np.zeros((56, 56, 3), np.float32), "instruction": "go"}, r"must be uint8 .* got float32 \[56, 56"),
        ({"rgb": np.zeros((56, 56), np.uint8), "instruction": "go"}, r"must be uint8"),
        ({"rgb": np.zeros((28, 56, 3), np.uint8), "instruction": "go"}, r"one size: \[28, 56, 3\] came after \[56"),
    ],
)
def test_what_it_cannot_see_is_named(navigator, observations, what):
    agent = VLNR1Agent(navigator)
    agent.act({"rgb": np.zeros((56, 56, 4), np.uint8), "instruction": "go"})  # four channels are seen as three
    with pytest.raises(VLNR1Error, match=what):
        agent.act(observations)


def test_a_horizon_that_the_model_does_not_predict(navigator):
    with pytest.raises(VLNR1Error, match="execute_horizon is 7, but the model predicts 6"):
        Navigator(navigator.decoder, navigator.memory, 7)


@pytest.mark.parametrize(("before", "kind"), [("", "object"), ("import habitat; ", "Agent")])
def test_it_imports_no_simulator_and_is_habitats_agent_where_habitat_is(before, kind):
    code = f"{before}import sys; from habitat_vlnr1.agent import VLNR1Agent; print(VLNR1Agent.__base__.__name__, "
    code += "[name for name in sys.modules if name.split('.')[0] in ('habitat', 'habitat_sim')][:3])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    name, _, modules = done.stdout.splitlines()[-1].partition(" ")
    assert name == kind and (before or modules == "[]")
