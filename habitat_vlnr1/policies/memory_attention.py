"""An example to copy: Long-Short Memory Sampling feeding a policy that is no language model.

`LongShortMemory` (obs_transform.py) puts the chosen frames into the observation, so any Habitat policy can read them.
This one has no recurrent state: what it knows of the past are those frames, over which it attends. It is a plain
`NetPolicy`, so Habitat's PPO trains it (`vlnr1_ppo_memory`), and `vlnr1_il vlnr1/il=memory` teaches it.
"""

from __future__ import annotations

from typing import Any

import torch
from gym import spaces
from habitat_baselines.common.baseline_registry import baseline_registry
from torch import Tensor, nn

from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.obs_transform import memory_frames
from habitat_vlnr1.observations import CLOCK, INSTRUCTION, MEMORY, MEMORY_STEPS
from habitat_vlnr1.policies.vlnce.encoders import attend
from habitat_vlnr1.policies.vlnce.nets import PREVIOUS_SIZE, PreviousAction, Sequences, VLNNet
from habitat_vlnr1.policies.vlnce.policies import InstructedPolicy


class MemoryAttentionNet(VLNNet):
    """Current frame and instruction ask; the frames of the past, each with its age, answer.

    Args:
        observation_space: rgb, the instruction, the clock, and what `LongShortMemory` adds.
        net: sizes, `vlnr1.net`.
    """

    def __init__(self, observation_space: spaces.Dict, net: Any):
        missing = [key for key in ("rgb", CLOCK, MEMORY, MEMORY_STEPS) if key not in observation_space.spaces]
        if missing:
            raise VLNR1Error(
                f"MemoryAttentionPolicy needs the observation {', '.join(missing)}: add rgb and vlnr1_clock to "
                "habitat.gym.obs_keys and long_short_memory to the policy's obs_transforms"
            )
        # Depth has no history, and the strip is read by hand.
        super().__init__(spaces.Dict({key: observation_space[key] for key in ("rgb", INSTRUCTION)}), net, False)
        camera, size = self.cameras["rgb"], net.rgb_size
        self.image = nn.Sequential(nn.Linear(camera.channels * camera.places, size), nn.ReLU(True))
        self.age = nn.Linear(1, size)
        self.query = nn.Linear(size + self.instruction.output_size, size)
        self.previous = PreviousAction()
        inputs = 2 * size + self.instruction.output_size + PREVIOUS_SIZE
        self.decide = nn.Sequential(nn.Linear(inputs, net.hidden_size), nn.ReLU(True))
        self.train()

    @property
    def num_recurrent_layers(self) -> int:
        return 0

    def features(
        self, observations: dict[str, Tensor], hidden: Tensor, previous: Tensor, masks: Tensor, sequences: Sequences
    ) -> tuple[Tensor, Tensor]:
        told = self.instruction(observations[INSTRUCTION]).last
        now = self._see(observations["rgb"])
        past = self._remember(observations, now, told)
        x = torch.cat([now, past, told, self.previous(previous, masks)], 1)
        return self.decide(x), hidden

    def _see(self, images: Tensor) -> Tensor:
        return self.image(self.cameras["rgb"](images).flatten(1))

    def _remember(self, observations: dict[str, Tensor], now: Tensor, told: Tensor) -> Tensor:
        """[N, rgb_size]: what the shown frames of the past say; zeros at an episode's first step."""
        steps = observations[MEMORY_STEPS]
        shown = steps >= 0
        past = now.new_zeros(*steps.shape, now.shape[1])
        if not shown.any():
            return past.sum(1)
        age = (observations[CLOCK][:, 1:] - steps)[shown].unsqueeze(1).float().log()
        past[shown] = self._see(memory_frames(observations)[shown]) + self.age(age)
        found = attend(self.query(torch.cat([now, told], 1)), past, past, shown)
        return found * shown.any(1, keepdim=True)


@baseline_registry.register_policy
class MemoryAttentionPolicy(InstructedPolicy):
    """Attention over the frames that a memory strategy shows."""

    net_class = MemoryAttentionNet
