"""The policy's plans: when the model is asked, and that environments cannot mix theirs."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gym import spaces
from torch import nn

from habitat_vlnr1.actions import Action
from habitat_vlnr1.observations import encode_text, rollout_id
from habitat_vlnr1.policies.vlnr1 import BlindVLNR1Policy, VLNR1Policy

BUDGET = 3
SPACE = spaces.Dict(
    {
        "rgb": spaces.Box(0, 255, (4, 4, 3), np.uint8),
        "vlnr1_instruction": spaces.Box(0, 255, (32,), np.uint8),
        "vlnr1_clock": spaces.Box(0, 2**62, (2,), np.int64),
        "vlnr1_memory": spaces.Box(0, 255, (4, BUDGET * 4, 3), np.uint8),
        "vlnr1_memory_steps": spaces.Box(-1, 2**62, (BUDGET,), np.int64),
    }
)
PLAN = (Action.FORWARD, Action.LEFT, Action.RIGHT, Action.STOP)
LOG_PROBS = (-0.1, -0.7, -0.2, 0.0)


class Decoder:
    """Answers PLAN, and notes what it was asked."""

    num_actions = len(PLAN)
    seed = 5

    def __init__(self):
        self.model = nn.Linear(1, 1)
        self.asked = []

    def decode(self, prompts, seeds):
        self.asked.append(prompts)
        self.seeds = seeds
        return [SimpleNamespace(actions=PLAN, text="plan", valid=True, log_probs=LOG_PROBS) for _ in prompts]


def batch(*clocks):
    rows = len(clocks)
    steps = torch.full((rows, BUDGET), -1)
    for row, (_, step) in enumerate(clocks):
        past = list(range(max(0, step - BUDGET), step))
        steps[row, : len(past)] = torch.tensor(past, dtype=torch.int64)
    instructions = [encode_text(f"go {rollout}", 32) for rollout, _ in clocks]
    return {
        "rgb": torch.full((rows, 4, 4, 3), 9, dtype=torch.uint8),
        "vlnr1_instruction": torch.from_numpy(np.stack(instructions)),
        "vlnr1_clock": torch.tensor(clocks),
        "vlnr1_memory": torch.full((rows, 4, BUDGET * 4, 3), 5, dtype=torch.uint8),
        "vlnr1_memory_steps": steps,
    }


def act(policy, *clocks):
    rows = len(clocks)
    data = policy.act(batch(*clocks), torch.zeros(rows, 0, 0), torch.zeros(rows, 1), torch.ones(rows, 1))
    return data.env_actions.flatten().tolist(), data


@pytest.fixture
def policy():
    return VLNR1Policy(SPACE, spaces.Discrete(4), Decoder(), execute_horizon=3)


def test_the_first_actions_are_executed_before_the_model_is_asked_again(policy):
    actions = [act(policy, (1, step))[0][0] for step in range(7)]
    assert actions == [1, 2, 3, 1, 2, 3, 1]
    assert len(policy.decoder.asked) == 3


def test_environments_that_pause_reset_and_change_places_keep_their_own_plans(policy):
    assert act(policy, (1, 0), (2, 0))[0] == [1, 1]
    assert act(policy, (2, 1), (1, 1))[0] == [2, 2]
    assert act(policy, (1, 2), (7, 0))[0] == [3, 1]  # environment 2 was reset: its rollout is 7 now
    assert act(policy, (7, 1))[0] == [2]
    assert [len(prompts) for prompts in policy.decoder.asked] == [2, 1]


def test_the_prompt_holds_history_then_the_current_frame(policy):
    act(policy, (4, 2))
    ((prompt,),) = policy.decoder.asked
    assert prompt.instruction == "go 4"
    assert prompt.keys == [(4, 0), (4, 1), (4, 2)]
    assert [int(frame.mean()) for frame in prompt.frames] == [5, 5, 9]


def test_the_prompts_of_an_environment_are_a_stream(policy):
    """What is kept of one walk's prompts is replaced when the environment begins another."""
    act(policy, *[(walk, 0) for walk in (rollout_id(3, count=1), rollout_id(3, count=2), rollout_id(4, count=1), 9)])
    ((*prompts,),) = policy.decoder.asked
    assert [prompt.stream for prompt in prompts] == [3, 3, 4, 9]  # 9 does not tell its environment


def test_the_answer_is_reported_when_it_is_new(policy):
    assert act(policy, (1, 0))[1].policy_info == [{"vlnr1_text": "plan", "vlnr1_invalid": False}]
    assert act(policy, (1, 1))[1].policy_info == [{}]


def test_it_says_how_sure_it_is_of_the_action_now_without_asking_twice(policy):
    assert policy.confidence(batch((1, 0), (2, 0))) == pytest.approx([math.exp(-0.1)] * 2)
    assert act(policy, (1, 0), (2, 0))[0] == [1, 1]
    assert policy.confidence(batch((1, 1), (2, 2))) == pytest.approx([math.exp(-0.7), math.exp(-0.2)])
    assert len(policy.decoder.asked) == 1


def test_a_forgotten_plan_is_made_anew(policy):
    act(policy, (1, 0), (2, 0))
    policy.forget([1, 99])
    assert act(policy, (1, 1), (2, 1))[0] == [1, 2]
    assert [len(prompts) for prompts in policy.decoder.asked] == [2, 1]


def test_the_blind_policy_sees_nothing():
    policy = BlindVLNR1Policy(SPACE, spaces.Discrete(4), Decoder(), execute_horizon=1)
    act(policy, (1, 2))
    assert all((frame == 0).all() for frame in policy.decoder.asked[0][0].frames)


@pytest.mark.parametrize("horizon", [0, 5])
def test_a_horizon_beyond_the_answer_is_refused(horizon):
    with pytest.raises(ValueError, match=f"execute_horizon is {horizon}, but the model predicts 4 actions"):
        VLNR1Policy(SPACE, spaces.Discrete(4), Decoder(), execute_horizon=horizon)


def test_a_missing_observation_is_named():
    space = spaces.Dict({key: value for key, value in SPACE.spaces.items() if key != "vlnr1_memory"})
    with pytest.raises(ValueError, match="needs the observation vlnr1_memory"):
        VLNR1Policy(space, spaces.Discrete(4), Decoder(), execute_horizon=1)


def test_what_is_drawn_does_not_depend_on_the_batch_or_on_what_was_asked_before():
    """So that an evaluation with sampled answers, interrupted or on more environments, ends with the same lines."""
    policy, again = (VLNR1Policy(SPACE, spaces.Discrete(4), Decoder(), execute_horizon=2) for _ in range(2))
    act(policy, (7, 0), (8, 0))
    both = policy.decoder.seeds
    act(again, (8, 0))
    assert again.decoder.seeds == both[1:] and both[0] != both[1] and both[0][::2] == (5, 0)
    act(again, (8, 2))
    assert again.decoder.seeds[0][2] == 2
