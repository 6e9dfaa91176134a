"""The networks of Seq2Seq and CMA (Krantz et al. 2020, secs. 4.1 and 4.2), in Habitat-Baselines' `Net` interface.

Differences to VLN-CE's code: an image goes into Seq2Seq's recurrent unit as features of all places (VLN-CE averages
RGB); which encoders there are depends on the cameras that are observed, so RGB alone, depth alone and RGB-D work.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from gym import spaces
from habitat_baselines.rl.models.rnn_state_encoder import build_rnn_state_encoder
from habitat_baselines.rl.ppo.policy import Net
from torch import Tensor, nn

from habitat_vlnr1.actions import Action
from habitat_vlnr1.observations import INSTRUCTION
from habitat_vlnr1.policies.vlnce.encoders import InstructionEncoder, attend, cameras

PREVIOUS_SIZE, PLACE_SIZE = 32, 32
Sequences: TypeAlias = dict[str, Tensor] | None


class PreviousAction(nn.Embedding):
    """[N, PREVIOUS_SIZE] for the action before; an episode's first step (mask False) has none, which is number 0."""

    def __init__(self) -> None:
        super().__init__(len(Action) + 1, PREVIOUS_SIZE)

    def forward(self, prev_actions: Tensor, masks: Tensor) -> Tensor:  # type: ignore[override]  # masks come too
        return super().forward((prev_actions.view(-1) + 1) * masks.view(-1).long())


class VLNNet(Net):
    """What the networks share: the instruction and the cameras.

    Args:
        observation_space: the instruction, and rgb, depth or both.
        net: sizes, `vlnr1.net`.
        bidirectional: of the instruction's LSTM.
    """

    def __init__(self, observation_space: spaces.Dict, net: Any, bidirectional: bool):
        super().__init__()
        self.hidden_size = net.hidden_size
        self.cameras: Any = cameras(observation_space, net)
        self.instruction = InstructionEncoder(net, bidirectional)

    @property
    def output_size(self) -> int:
        return self.hidden_size

    @property
    def recurrent_hidden_size(self) -> int:
        return self.hidden_size

    @property
    def perception_embedding_size(self) -> int:
        return self.hidden_size

    @property
    def is_blind(self) -> bool:
        return False

    def forward(
        self,
        observations: dict[str, Tensor],
        rnn_hidden_states: Tensor,
        prev_actions: Tensor,
        masks: Tensor,
        rnn_build_seq_info: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Habitat's: features [N, hidden], new hidden states [envs, layers, hidden], nothing for auxiliary losses."""
        features, hidden = self.features(observations, rnn_hidden_states, prev_actions, masks, rnn_build_seq_info)
        return features, hidden, {}

    def features(
        self, observations: dict[str, Tensor], hidden: Tensor, previous: Tensor, masks: Tensor, sequences: Sequences
    ) -> tuple[Tensor, Tensor]:
        """Features [N, hidden] and new hidden states [envs, layers, hidden].

        Args:
            hidden: hidden states as they came.
            previous: the actions before these [N, 1].
            masks: bool [N, 1], False at an episode's first step.
            sequences: how N rows are steps of episodes, for Habitat's recurrent units; None: one step of each.
        """
        raise NotImplementedError


def _line(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(True))


class Seq2SeqNet(VLNNet):
    """Instruction and images into one recurrent unit; as in VLN-CE, the previous action is not shown."""

    def __init__(self, observation_space: spaces.Dict, net: Any):
        super().__init__(observation_space, net, bidirectional=False)
        self.images = nn.ModuleDict(
            {key: _line(camera.channels * camera.places, net[f"{key}_size"]) for key, camera in self.cameras.items()}
        )
        inputs = self.instruction.output_size + sum(net[f"{key}_size"] for key in self.cameras)
        self.state = build_rnn_state_encoder(inputs, net.hidden_size)
        self.train()

    @property
    def num_recurrent_layers(self) -> int:
        return self.state.num_recurrent_layers

    def features(
        self, observations: dict[str, Tensor], hidden: Tensor, previous: Tensor, masks: Tensor, sequences: Sequences
    ) -> tuple[Tensor, Tensor]:
        x = [self.instruction(observations[INSTRUCTION]).last]
        x += [self.images[key](camera(observations[key]).flatten(1)) for key, camera in self.cameras.items()]
        return self.state(torch.cat(x, 1), hidden, masks, sequences)


class CMANet(VLNNet):
    """Cross-modal attention: one recurrent unit sees, a second one decides.

    The first unit's state attends to the instruction's words, what was found there attends to the places of each
    image, and all of it goes into the second unit.
    """

    def __init__(self, observation_space: spaces.Dict, net: Any):
        super().__init__(observation_space, net, bidirectional=True)
        hidden, words = net.hidden_size, self.instruction.output_size
        self.key_size = hidden // 2
        self.previous = PreviousAction()
        self.pooled, self.keys_values = nn.ModuleDict(), nn.ModuleDict()
        self.places: Any = nn.ModuleDict()
        for key, camera in self.cameras.items():
            self.places[key] = nn.Embedding(camera.places, PLACE_SIZE)
            self.pooled[key] = _line(camera.channels + PLACE_SIZE, net[f"{key}_size"])
            self.keys_values[key] = nn.Linear(camera.channels + PLACE_SIZE, self.key_size + net[f"{key}_size"])
        seen = sum(net[f"{key}_size"] for key in self.cameras)
        self.first = build_rnn_state_encoder(seen + PREVIOUS_SIZE, hidden)
        self.text_query = nn.Linear(hidden, self.key_size)
        self.text_key = nn.Linear(words, self.key_size)
        self.image_query = nn.Linear(words, self.key_size)
        self.compress = _line(hidden + words + seen + PREVIOUS_SIZE, hidden)
        self.second = build_rnn_state_encoder(hidden, hidden)
        self.train()

    @property
    def num_recurrent_layers(self) -> int:
        return self.first.num_recurrent_layers + self.second.num_recurrent_layers

    def features(
        self, observations: dict[str, Tensor], hidden: Tensor, previous: Tensor, masks: Tensor, sequences: Sequences
    ) -> tuple[Tensor, Tensor]:
        before = self.previous(previous, masks)
        grids = {key: self._grid(key, observations[key]) for key in self.cameras}
        seen = [self.pooled[key](grid.mean(1)) for key, grid in grids.items()]
        layers = self.first.num_recurrent_layers
        state, first = self.first(torch.cat([*seen, before], 1), hidden[:, :layers], masks, sequences)
        words = self.instruction(observations[INSTRUCTION])
        text = attend(self.text_query(state), self.text_key(words.states), words.states, words.mask)
        query = self.image_query(text)
        looked = []
        for key, grid in grids.items():
            keys, values = self.keys_values[key](grid).tensor_split([self.key_size], 2)
            looked.append(attend(query, keys, values))
        features, second = self.second(
            self.compress(torch.cat([state, text, *looked, before], 1)),
            hidden[:, layers:],
            masks,
            sequences,
        )
        return features, torch.cat([first, second], 1)

    def _grid(self, key: str, image: Tensor) -> Tensor:
        """[N, places, channels + PLACE_SIZE]: what is seen where."""
        features = self.cameras[key](image).movedim(1, 2)
        return torch.cat([features, self.places[key].weight.expand(len(features), -1, -1)], 2)
