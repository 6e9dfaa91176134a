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

from habitat_vlnr1.errors import RunError, VLNR1Error
from habitat_vlnr1.memory import Memory, make_memory
from habitat_vlnr1.observations import CLOCK, MEMORY, MEMORY_STEPS, environment_of


@dataclass
class LongShortMemoryConfig(ObsTransformConfig):
    """Config of `LongShortMemory`; see its arguments."""

    type: str = "LongShortMemory"
    memory: dict[str, Any] = field(default_factory=lambda: {"strategy": "long_short"})
    rgb_key: str = "rgb"


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

    Frames are kept in the host's memory, those of a rollout until its environment begins the next one: at most
    environments × steps × H × W × 3 bytes.
    """

    def __init__(self, memory: Memory, rgb_key: str = "rgb"):
        super().__init__()
        self.memory = memory
        self.rgb_key = rgb_key
        self._frames: OrderedDict[int, list[torch.Tensor]] = OrderedDict()
        self._rollout_of: dict[int, int] = {}  # environment → the rollout it was last seen in
        self._together = 0  # the most rollouts seen in one batch

    @classmethod
    def from_config(cls, config: DictConfig) -> LongShortMemory:
        return cls(make_memory(**config.memory), config.rgb_key)

    def transform_observation_space(self, observation_space: spaces.Dict, **kwargs: Any) -> spaces.Dict:
        for key in (self.rgb_key, CLOCK):
            if key not in observation_space.spaces:
                raise VLNR1Error(
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
        frames = rgb.cpu()
        self._drop_ended([rollout for rollout, _ in clocks])
        count, height, width, channels = frames.shape
        strip = frames.new_zeros((count, height, self.memory.budget * width, channels))
        steps = torch.full((count, self.memory.budget), -1, dtype=torch.int64)
        for row, (rollout, step) in enumerate(clocks):
            history = self._remember(rollout, step, frames[row])
            chosen = self.memory.select(step)
            for slot, past in enumerate(chosen):
                strip[row, :, slot * width : (slot + 1) * width] = history[past]
                steps[row, slot] = past
        observations = copy.copy(observations)
        observations[MEMORY] = strip.to(rgb.device)
        observations[MEMORY_STEPS] = steps.to(rgb.device)
        return observations

    def _drop_ended(self, rollouts: list[int]) -> None:
        """Forget rollouts whose environment is in another one now.

        Ids that do not tell their environment (not `VLNR1ClockSensor`'s) are kept while twice as many as were ever
        seen together have not been seen since: two halves of the environments may take turns.
        """
        for rollout in rollouts:
            environment = environment_of(rollout)
            if environment and self._rollout_of.get(environment) != rollout:
                self._frames.pop(self._rollout_of.get(environment, 0), None)
                self._rollout_of[environment] = rollout
            if rollout in self._frames:
                self._frames.move_to_end(rollout)
        self._together = max(self._together, len(set(rollouts)))
        untold = [rollout for rollout in self._frames if not environment_of(rollout)]
        new = sum(rollout not in self._frames for rollout in {*rollouts} if not environment_of(rollout))
        for rollout in untold[: max(0, len(untold) + new - 2 * self._together)]:
            del self._frames[rollout]

    def _remember(self, rollout: int, step: int, frame: torch.Tensor) -> list[torch.Tensor]:
        """The rollout's frames v_0 … v_step; one transform may be shown the same step twice."""
        history = self._frames.setdefault(rollout, [])
        if step > len(history):
            raise RunError(
                f"LongShortMemory saw step {step} of a rollout after {len(history)} frames: it must see every step"
            )
        if step == len(history):
            history.append(frame.clone())
        return history


def memory_frames(observations: dict[str, torch.Tensor]) -> torch.Tensor:
    """The strip that `LongShortMemory` added, cut into its frames: uint8 [N, budget, H, W, 3], a view."""
    strip, budget = observations[MEMORY], observations[MEMORY_STEPS].shape[1]
    return strip.unflatten(2, (budget, strip.shape[2] // max(budget, 1))).movedim(2, 1)
