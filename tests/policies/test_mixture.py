"""The mixture: who acts where, and that nobody's memory or plans are mixed up."""

import numpy as np
import pytest
import torch
from gym import spaces
from habitat_baselines.rl.ppo.policy import PolicyActionData

from habitat_vlnr1.policies.mixture import GOAL, HELPED, MixturePolicy, make_rule
from habitat_vlnr1.policies.scripted import ScriptedPolicy

SPACE = spaces.Dict(
    {
        "vlnr1_instruction": spaces.Box(0, 255, (4,), np.uint8),
        "vlnr1_clock": spaces.Box(0, 2**62, (2,), np.int64),
        GOAL: spaces.Box(0, np.inf, (2,), np.float32),
    }
)
ADVISED = spaces.Dict({**SPACE.spaces, "vlnr1_expert": spaces.Box(0, 3, (1,), np.int64)})
FOUR = spaces.Discrete(4)


class Always(ScriptedPolicy):
    """Does one thing, says so, and notes where it was asked and what it had to forget."""

    def __init__(self, action, sure=1.0):
        super().__init__(SPACE, FOUR)
        self.action, self.sure, self.asked, self.forgot = action, sure, [], []

    def actions(self, observations):
        self.asked.append(observations["vlnr1_clock"][:, 0].tolist())
        return [self.action] * len(self.asked[-1])

    def said(self, observations):
        return [{"said_by": float(self.action)}] * len(self.asked[-1])

    def confidence(self, observations):
        return [self.sure if rollout % 2 else 1.0 for rollout in observations["vlnr1_clock"][:, 0].tolist()]

    def forget(self, rollouts):
        self.forgot.append(list(rollouts))


class Recurrent(Always):
    """Its hidden state [2, 3] counts the steps that it has seen."""

    hidden_state_shape = (2, 3)

    def act(self, observations, rnn_hidden_states, prev_actions, masks, deterministic=False, **kwargs):
        assert rnn_hidden_states.shape[1:] == (2, 3)
        actions = torch.tensor(self.actions(observations)).unsqueeze(1)
        return PolicyActionData(rnn_hidden_states=rnn_hidden_states + 1, actions=actions)


def batch(*clocks, words=None, distances=None):
    words = [rollout for rollout, _ in clocks] if words is None else words
    distances = [9.0] * len(clocks) if distances is None else distances
    return {
        "vlnr1_instruction": torch.tensor([[word % 250, word // 250, 0, 0] for word in words], dtype=torch.uint8),
        "vlnr1_clock": torch.tensor(clocks),
        GOAL: torch.tensor([[distance, 0.0] for distance in distances]),
    }


def act(policy, observations, hidden=None):
    rows = len(observations["vlnr1_clock"])
    hidden = torch.zeros(rows, *policy.hidden_state_shape) if hidden is None else hidden
    data = policy.act(observations, hidden, torch.zeros(rows, 1), torch.ones(rows, 1))
    return data.env_actions.flatten().tolist(), data


def test_each_environment_is_acted_in_by_one_and_the_other_plans_anew():
    lead, helper = Always(1), Always(2)
    policy = MixturePolicy(SPACE, FOUR, lead, helper, make_rule("distance", metres=2.0))
    actions, data = act(policy, batch((7, 0), (8, 0), (9, 3), distances=[1.0, 5.0, 0.5]))
    assert actions == [2, 1, 2]
    assert (lead.asked, helper.asked) == ([[8]], [[7, 9]])
    assert (lead.forgot, helper.forgot) == ([[7, 9]], [[8]])
    assert [said[HELPED] for said in data.policy_info] == [1.0, 0.0, 1.0]
    assert [said["said_by"] for said in data.policy_info] == [2.0, 1.0, 2.0]
    assert act(policy, batch((8, 1)))[0] == [1] and len(helper.asked) == 1  # nobody is asked for nothing


def test_a_recurrent_policy_sees_every_step_and_has_its_own_memory():
    policy = MixturePolicy(SPACE, FOUR, Recurrent(1), Recurrent(2), make_rule("distance", metres=2.0))
    assert policy.hidden_state_shape == (1, 12)
    hidden = torch.arange(24.0).reshape(2, 1, 12)
    actions, data = act(policy, batch((1, 0), (2, 0), distances=[1.0, 5.0]), hidden)
    assert actions == [2, 1]
    assert torch.equal(data.rnn_hidden_states, hidden + 1)
    mixed = MixturePolicy(SPACE, FOUR, Always(1), Recurrent(2), make_rule("distance", metres=0.0))
    assert act(mixed, batch((1, 0)))[1].rnn_hidden_states.unique().tolist() == [1.0]


def test_probability_is_drawn_per_episode_or_every_few_steps_whatever_the_batch():
    observations = batch(*((rollout, 5) for rollout in range(1000)), words=range(1000))
    once = make_rule("probability", share=0.3).helps(observations, None)
    assert sum(once) == pytest.approx(300, abs=60)
    assert make_rule("probability", share=0.3).helps(batch((17, 40), words=[17]), None) == once[17:18]
    assert make_rule("probability", share=0.3, seed=1).helps(observations, None) != once
    steps = batch(*((1, step) for step in range(600)))
    drawn = make_rule("probability", share=0.5, every=6).helps(steps, None)
    assert all(len(set(drawn[start : start + 6])) == 1 for start in range(0, 600, 6)) and len(set(drawn)) == 2
    assert not any(make_rule("probability", share=0.0, every=1).helps(steps, None))
    assert all(make_rule("probability", share=1.0, every=1).helps(steps, None))


def test_an_unsure_lead_is_helped():
    policy = MixturePolicy(SPACE, FOUR, Always(1, sure=0.4), Always(2), make_rule("confidence", below=0.5))
    assert act(policy, batch((1, 0), (2, 0)))[0] == [2, 1]  # the stub is unsure in odd rollouts
    with pytest.raises(ValueError, match="does not say how sure"):
        make_rule("confidence", below=0.5).helps(batch((1, 0)), object())


def test_repeated_collisions_bring_help_for_a_while():
    rule = make_rule("collisions", count=2, window=3, steps=2)
    policy = MixturePolicy(SPACE, FOUR, Always(1), Always(2), rule)
    hits = [True, False, True, True, False, False, True]
    acted = []
    for step, hit in enumerate(hits):
        actions, data = act(policy, batch((1, step), (2, step)))
        infos = [{"collisions": {"is_collision": hit}}, {"collisions": {"is_collision": False}}]
        policy.get_extra(data, infos, [False, False])
        acted.append(actions)
    assert [first for first, _ in acted] == [1, 1, 1, 2, 2, 1, 1]  # helped twice, then the count begins anew
    assert {second for _, second in acted} == {1}
    with pytest.raises(ValueError, match="add habitat's measure"):
        policy.get_extra(data, [{}, {}], [False, False])


def walk(rule, wanted, advised):
    """Who acts (1 the lead, 2 the helper) where the lead wants and the expert advises this, step by step."""
    lead, acted = Always(1), []
    policy = MixturePolicy(ADVISED, FOUR, lead, Always(2), rule)
    for step, (want, advice) in enumerate(zip(wanted, advised, strict=True)):
        lead.action = want
        told = batch((1, step), (2, step)) | {"vlnr1_expert": torch.tensor([[advice], [want]])}
        _, data = act(policy, told)
        assert data.policy_info[1][HELPED] == 0  # the second environment's expert always agrees
        acted.append(1 + int(data.policy_info[0][HELPED]))
    return acted


def test_the_expert_takes_over_for_good_where_the_lead_errs():
    rule = {"name": "disagreement", "count": 2, "window": 3}
    assert walk(make_rule(**rule), [1, 2, 1, 1, 2, 1], [1, 1, 1, 1, 1, 1]) == [1] * 6  # one of three is no error
    assert walk(make_rule(**rule), [1, 2, 1, 2, 1, 1], [1, 1, 1, 1, 1, 1]) == [1, 1, 1, 2, 2, 2]
    assert walk(make_rule(**rule), [1, 0, 1], [1, 1, 1]) == [1, 2, 2]  # would stop too early
    assert walk(make_rule(**rule), [1, 1, 0], [1, 0, 0]) == [1, 2, 2]  # would walk past
    assert walk(make_rule(**rule), [1, 0], [1, 0]) == [1, 1]
    with pytest.raises(ValueError, match="needs the observation vlnr1_expert"):
        MixturePolicy(SPACE, FOUR, Always(1), Always(2), make_rule(**rule))
    with pytest.raises(ValueError, match="object does not say what it would do"):
        make_rule(**rule).helps(batch((1, 0)), object())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dice"}, "unknown vlnr1.mixture.rule 'dice'; choose one of probability, distance"),
        ({"name": "distance", "meters": 1}, "vlnr1.mixture.rule distance: .*meters"),
        ({"name": "probability", "share": 1.5}, r"share must be in 0 … 1"),
        ({"name": "collisions", "count": 9}, "count <= window"),
        ({"name": "disagreement", "count": 0}, "count <= window"),
    ],
)
def test_a_wrong_rule_is_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message):
        make_rule(**options)
