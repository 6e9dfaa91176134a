"""The recurrent and attention baselines without a simulator: step by step equals whole episodes, words, weights."""

from itertools import chain

import numpy as np
import pytest
import torch
from gym import spaces
from omegaconf import OmegaConf

from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.obs_transform import LongShortMemory
from habitat_vlnr1.observations import encode_text
from habitat_vlnr1.policies.memory_attention import MemoryAttentionNet, MemoryAttentionPolicy
from habitat_vlnr1.policies.vlnce.encoders import attend
from habitat_vlnr1.policies.vlnce.nets import CMANet, Seq2SeqNet
from habitat_vlnr1.policies.vlnce.policies import CMAPolicy, Seq2SeqPolicy
from habitat_vlnr1.policies.vlnce.vocabulary import PAD, UNKNOWN, Vocabulary
from habitat_vlnr1.trainers.il import Imitation, inflection_weights, join, order

FOUR = spaces.Discrete(4)
SIZE = 32
SPACE = spaces.Dict(
    {
        "rgb": spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
        "depth": spaces.Box(0, 1, (SIZE, SIZE, 1), np.float32),
        "vlnr1_instruction": spaces.Box(0, 255, (64,), np.uint8),
        "vlnr1_clock": spaces.Box(0, 2**62, (2,), np.int64),
    }
)
NET = {
    "backbone": "cnn", "baseplanes": 4, "rgb_weights": None, "depth_weights": None, "rgb_size": 8, "depth_size": 6,
    "vocabulary_size": 20, "word_size": 5, "instruction_size": 7, "hidden_size": 16,
}  # fmt: skip
TRANSFORM = LongShortMemory(make_memory("uniform", budget=3))


def forget():
    for rollout in list(TRANSFORM._frames):
        TRANSFORM._frames.drop(rollout)


POLICIES = {
    "seq2seq": (Seq2SeqPolicy, Seq2SeqNet, []),
    "cma": (CMAPolicy, CMANet, []),
    "memory": (MemoryAttentionPolicy, MemoryAttentionNet, [TRANSFORM]),
}
TEXTS = ["Go through the red door.", "Turn left and stop at the bed."]


def make(name, net=NET, seen=("rgb", "depth")):
    policy_class, net_class, transforms = POLICIES[name]
    space = spaces.Dict({key: value for key, value in SPACE.spaces.items() if key in seen or key.startswith("vlnr1")})
    for transform in transforms:
        space = transform.transform_observation_space(space)
    policy = policy_class(net_class(space, OmegaConf.create(net)), FOUR)
    policy.learn_words(TEXTS)
    return policy.eval()


def episode(number, length):
    """An exported episode as the imitation trainer reads it."""
    rng = np.random.default_rng(number)
    actions = torch.tensor([*rng.integers(1, 4, length - 1).tolist(), 0])
    return {
        "rgb": torch.from_numpy(rng.integers(0, 256, (length, SIZE, SIZE, 3), dtype=np.uint8)),
        "depth": torch.from_numpy(rng.random((length, SIZE, SIZE, 1), dtype=np.float32)),
        "vlnr1_instruction": torch.from_numpy(encode_text(TEXTS[number % 2], 64)).expand(length, -1),
        "vlnr1_clock": torch.tensor([[number + 1, step] for step in range(length)]),
        "actions": actions,
        "taught": actions,
    }


def imitation(name, policy):
    """The trainer's optimisation around a policy, without data on disk."""
    trainer = Imitation.__new__(Imitation)
    trainer.il = OmegaConf.create(
        {"learning_rate": 0.01, "inflection_weight": 3.2, "max_grad_norm": 1.0, "batch_size": 3}
    )
    trainer.policy, trainer.device, trainer.transforms = policy, torch.device("cpu"), POLICIES[name][2]
    trainer.optimizer = torch.optim.Adam(policy.parameters(), 0.01)
    trainer.step, trainer.steps = 0, 1000
    return trainer


@pytest.mark.parametrize("name", POLICIES)
def test_whole_episodes_give_what_single_steps_give(name):
    """Teacher forcing over sequences of unequal length is what the policy would do step by step."""
    policy = make(name)
    episodes = [episode(0, 5), episode(1, 2), episode(2, 4)]
    forget()
    with torch.no_grad():
        whole = imitation(name, policy).logits(join(episodes))
        for one, expected in zip(episodes, whole.split([5, 2, 4]), strict=True):
            forget()
            hidden, previous = torch.zeros(1, *policy.hidden_state_shape), torch.zeros(1, 1, dtype=torch.long)
            for step, action in enumerate(one["actions"]):
                seen = {key: value[step : step + 1] for key, value in one.items() if key not in ("actions", "taught")}
                for transform in POLICIES[name][2]:
                    seen = transform(seen)
                features, hidden, _ = policy.net(seen, hidden, previous, torch.tensor([[step > 0]]))
                torch.testing.assert_close(policy.action_distribution(features).logits[0], expected[step])
                previous = action.view(1, 1)


@pytest.mark.parametrize("name", POLICIES)
def test_teaching_two_episodes_learns_them(name):
    forget()
    policy = make(name).train()
    trainer, batch = imitation(name, policy), join([episode(0, 5), episode(1, 4), episode(2, 1)])
    first = trainer.update(batch)["loss"]
    for trainer.step in range(1, 60):
        last = trainer.update(batch)
    assert last["loss"] < first / 4 and last["accuracy"] > 0.8


@pytest.mark.parametrize("seen", [("rgb",), ("depth",), ("rgb", "depth")])
@pytest.mark.parametrize("name", ["seq2seq", "cma"])
def test_cameras_are_what_is_observed(name, seen):
    policy = make(name, seen=seen)
    assert list(policy.net.cameras) == list(seen)
    batch = episode(0, 3)
    act = policy.act(batch, torch.zeros(3, *policy.hidden_state_shape), torch.zeros(3, 1, dtype=torch.long),
                     torch.zeros(3, 1, dtype=torch.bool), deterministic=True)  # fmt: skip
    assert act.actions.shape == (3, 1) and act.rnn_hidden_states.shape == (3, *policy.hidden_state_shape)
    assert policy.hidden_state_shape == ((1, 16) if name == "seq2seq" else (2, 16))
    with pytest.raises(ValueError, match="needs the observation vlnr1_instruction and rgb or depth"):
        make(name, seen=())


def test_a_resnet_of_habitat_can_be_the_eye():
    policy = make("cma", {**NET, "backbone": "resnet18", "baseplanes": 4})
    assert type(policy.net.cameras["rgb"].encoder).__name__ == "ResNetEncoder"
    imitation("cma", policy).logits(join([episode(0, 3), episode(1, 2)]))


def test_pretrained_eyes_are_taken_and_frozen(tmp_path):
    net = {**NET, "backbone": "resnet18"}
    donor = make("cma", net)
    encoder = donor.net.cameras["depth"].encoder.state_dict()
    state = {f"net.visual_encoder.{key}": value for key, value in encoder.items()}
    torch.save({"state_dict": state}, tmp_path / "ppo.pth")
    policy = make("cma", {**net, "depth_weights": str(tmp_path / "ppo.pth")}).train()
    camera = policy.net.cameras["depth"]
    assert not camera.encoder.training and not any(weight.requires_grad for weight in camera.encoder.parameters())
    for key, value in encoder.items():
        torch.testing.assert_close(camera.encoder.state_dict()[key], value)
    with pytest.raises(ValueError, match=r"rgb_weights=.*not the visual encoder of vlnr1.net.backbone"):
        make("cma", {**net, "rgb_weights": str(tmp_path / "ppo.pth")})


def test_the_instruction_decides_and_its_padding_does_not():
    policy = make("seq2seq")
    told = torch.from_numpy(np.stack([encode_text(TEXTS[0], 64), encode_text(TEXTS[1], 64)]))
    both, alone = policy.net.instruction(told), policy.net.instruction(told[:1])
    torch.testing.assert_close(both.last[0], alone.last[0])
    assert not torch.allclose(both.last[0], both.last[1])
    assert both.mask.sum(1).tolist() == [6, 8]


def test_words_travel_in_the_weights(tmp_path):
    policy, other = make("cma"), make("cma")
    other.learn_words(["quite other words"])
    torch.save(policy.state_dict(), tmp_path / "weights.pth")
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert other.net.instruction.vocabulary == policy.net.instruction.vocabulary
    other.learn_words([])
    with pytest.raises(ValueError, match="knows no words"):
        other.net.instruction(torch.zeros(1, 64, dtype=torch.uint8))


def test_the_most_frequent_words_are_known():
    vocabulary = Vocabulary.of(["a a b c", "a b, d"], size=4)
    assert vocabulary.words == ("a", "b")
    assert vocabulary.encode("B a e") == [3, 2, UNKNOWN]
    assert PAD not in vocabulary.encode("a b c")


def test_attention_ignores_what_is_masked():
    query, keys, values = torch.randn(2, 3), torch.randn(2, 4, 3), torch.randn(2, 4, 5)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    torch.testing.assert_close(
        attend(query, keys, values, mask)[0], attend(query[:1], keys[:1, :2], values[:1, :2])[0]
    )


def test_inflections_weigh_more_and_every_episode_the_same():
    actions, lengths = torch.tensor([1, 1, 2, 0, 1, 0]), torch.tensor([4, 2])
    weights = inflection_weights(actions, lengths, 3.0, torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(weights, torch.tensor([0.3, 0.1, 0.3, 0.3, 0.5, 0.5]))
    some = inflection_weights(actions, lengths, 3.0, torch.tensor([True, True, False, False, False, True]))
    torch.testing.assert_close(some, torch.tensor([0.75, 0.25, 0, 0, 0, 1]))  # a step without a label counts nothing


def test_every_episode_once_an_epoch_and_the_same_after_a_stop():
    batches = list(order(7, 3, seed=1, steps=range(6)))
    assert [len(batch) for batch in batches] == [3, 3, 1] * 2
    assert sorted(chain(*batches[:3])) == sorted(chain(*batches[3:])) == list(range(7))
    assert batches[:3] != batches[3:] and list(order(7, 3, seed=1, steps=range(4, 6))) == batches[4:]
