"""Long-Short Memory Sampling as a Habitat-Baselines observation transform.

An ObservationTransformer sees a batch and nothing else: no reset, no mask, no environment id, and the batch shrinks
when environments pause. So the history is keyed by what travels in the observation, the `vlnr1_clock`: a rollout's
unique id and its step. Pausing, resets and reordering of environments then cannot mix histories.

In the policy's config:

    obs_transforms:
      long_short_memory:
        type: LongShortMemory
        memory: {strategy: long_short, budget: 16, short_window: 8, short_stride: 1, long_stride: 6}
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gym import spaces
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.common.obs_transformers import ObservationTransformer
from habitat_baselines.config.default_structured_configs import ObsTransformConfig
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from habitat_vlnr1.memory import Memory, make_memory
from habitat_vlnr1.observations import CLOCK, MEMORY, MEMORY_STEPS


@dataclass
class LongShortMemoryConfig(ObsTransformConfig):
    """Config of `LongShortMemory`; see its arguments."""

    type: str = "LongShortMemory"
    memory: dict[str, Any] = field(default_factory=lambda: {"strategy": "long_short"})
    rgb_key: str = "rgb"
    max_rollouts: int = 64


ConfigStore.instance().store(
    group="habitat_baselines/rl/policy/obs_transforms", name="long_short_memory", node=LongShortMemoryConfig
)


@baseline_registry.register_obs_transformer(name="LongShortMemory")
class LongShortMemory(ObservationTransformer):
    """Adds the history frames that a memory strategy chooses to each observation.

    Reads `rgb` uint8 [N, H, W, 3] and `vlnr1_clock` int64 [N, 2] (rollout id, step); adds

    - `vlnr1_memory` uint8 [N, H, budget · W, 3]: the chosen frames side by side in order of time, zeros behind them (a
      strip, because Habitat draws whatever has the shape of an image into its videos; `memory_frames` cuts it);
    - `vlnr1_memory_steps` int64 [N, budget]: the steps of those frames, -1 behind them.

    Args:
        memory: the strategy.
        rgb_key: the frames' observation key.
        max_rollouts: histories kept at once; the longest unseen one is dropped first. At least the number of
            environments that share the transform.
    """

    def __init__(self, memory: Memory, rgb_key: str = "rgb", max_rollouts: int = 64):
        super().__init__()
        self.memory = memory
        self.rgb_key = rgb_key
        self.max_rollouts = max_rollouts
        self._frames: OrderedDict[int, list[torch.Tensor]] = OrderedDict()

    @classmethod
    def from_config(cls, config: DictConfig) -> LongShortMemory:
        return cls(make_memory(**config.memory), config.rgb_key, config.max_rollouts)

    def transform_observation_space(self, observation_space: spaces.Dict, **kwargs: Any) -> spaces.Dict:
        for key in (self.rgb_key, CLOCK):
            if key not in observation_space.spaces:
                raise ValueError(
                    f"LongShortMemory needs the observation {key!r}, but there are only "
                    f"{', '.join(observation_space.spaces)}: add it to habitat.gym.obs_keys"
                )
        observation_space = copy.deepcopy(observation_space)
        budget = self.memory.budget
        frame = observation_space.spaces[self.rgb_key]
        height, width, channels = frame.shape
        observation_space.spaces[MEMORY] = spaces.Box(0, 255, (height, budget * width, channels), np.uint8)
        observation_space.spaces[MEMORY_STEPS] = spaces.Box(-1, np.iinfo(np.int64).max, (budget,), np.int64)
        return observation_space

    @torch.no_grad()
    def forward(self, observations: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rgb = observations[self.rgb_key]
        clocks = observations[CLOCK].cpu().tolist()
        count, height, width, channels = rgb.shape
        strip = rgb.new_zeros((count, height, self.memory.budget * width, channels))
        steps = torch.full((count, self.memory.budget), -1, dtype=torch.int64)
        for row, (rollout, step) in enumerate(clocks):
            history = self._remember(rollout, step, rgb[row])
            chosen = self.memory.select(step)
            for slot, past in enumerate(chosen):
                strip[row, :, slot * width : (slot + 1) * width] = history[past]
                steps[row, slot] = past
        observations = copy.copy(observations)
        observations[MEMORY] = strip
        observations[MEMORY_STEPS] = steps.to(rgb.device)
        return observations

    def _remember(self, rollout: int, step: int, frame: torch.Tensor) -> list[torch.Tensor]:
        """The rollout's frames v_0 … v_step; one transform may be shown the same step twice."""
        history = self._frames.setdefault(rollout, [])
        self._frames.move_to_end(rollout)
        if step > len(history):
            raise RuntimeError(
                f"LongShortMemory saw step {step} of a rollout after {len(history)} frames: it must see every step "
                f"(more than max_rollouts={self.max_rollouts} environments share it?)"
            )
        if step == len(history):
            history.append(frame.clone())
        while len(self._frames) > self.max_rollouts:
            self._frames.popitem(last=False)
        return history


def memory_frames(observations: dict[str, torch.Tensor]) -> torch.Tensor:
    """The strip that `LongShortMemory` added, cut into its frames: uint8 [N, budget, H, W, 3], a view."""
    strip, budget = observations[MEMORY], observations[MEMORY_STEPS].shape[1]
    return strip.unflatten(2, (budget, strip.shape[2] // max(budget, 1))).movedim(2, 1)
