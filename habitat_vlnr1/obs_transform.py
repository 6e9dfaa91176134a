"""Long-Short Memory Sampling as a Habitat-Baselines observation transform.

An ObservationTransformer sees a batch and nothing else: no reset, no mask, no environment id, and the batch shrinks
when environments pause. So the history is keyed by what travels in the observation, the `vlnr1_clock`: a rollout's
unique id and its step. Pausing, resets and reordering of environments then cannot mix histories.

In the policy's config:

    obs_transforms:
      long_short_memory:
        type: LongShortMemory
        memory: {strategy: long_short, budget: 16, short_window: 8, short_stride: 1, long_stride: 6}
        jpeg_quality: 92
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from gym import spaces
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.common.obs_transformers import ObservationTransformer
from habitat_baselines.config.default_structured_configs import ObsTransformConfig
from habitat_baselines.utils.common import batch_obs
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from habitat_vlnr1.errors import RunError, VLNR1Error
from habitat_vlnr1.frame_store import FrameStore
from habitat_vlnr1.memory import Memory, make_memory
from habitat_vlnr1.observations import CLOCK, MEMORY, MEMORY_STEPS, environment_of


@dataclass
class LongShortMemoryConfig(ObsTransformConfig):
    """Config of `LongShortMemory`; see its arguments."""

    type: str = "LongShortMemory"
    memory: dict[str, Any] = field(default_factory=lambda: {"strategy": "long_short"})
    rgb_key: str = "rgb"
    jpeg_quality: int | None = None
    memory_mb: float = 4096


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

    Frames of a rollout are kept in the host's memory until its environment begins the next one.

    Args:
        memory: the strategy.
        rgb_key: the frames' observation key.
        jpeg_quality: show all frames, the current one too, as a JPEG of this quality shows them: training reads frames
            from such files. None: as the simulator renders them.
        memory_mb: MiB for the frames of all running rollouts; what is beyond goes to temporary files.
    """

    def __init__(self, memory: Memory, rgb_key: str = "rgb", jpeg_quality: int | None = None, memory_mb: float = 4096):
        super().__init__()
        self.memory = memory
        self.rgb_key = rgb_key
        self.jpeg_quality = jpeg_quality
        self._frames = FrameStore(int(memory_mb * 2**20), jpeg_quality)
        self._rollout_of: dict[int, int] = {}  # environment → the rollout it was last seen in
        self._together = 0  # the most rollouts seen in one batch

    @classmethod
    def from_config(cls, config: DictConfig) -> LongShortMemory:
        # A `.pth` of an earlier version has a config without the later keys.
        later = {key: config[key] for key in ("jpeg_quality", "memory_mb") if key in config}
        return cls(make_memory(**config.memory), config.rgb_key, **later)

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
        clocks = self.remember(observations)
        rgb = observations[self.rgb_key]
        count, height, width, channels = rgb.shape
        strip = np.zeros((count, height, self.memory.budget * width, channels), np.uint8)
        steps = torch.full((count, self.memory.budget), -1, dtype=torch.int64)
        for row, (rollout, step) in enumerate(clocks):
            for slot, past in enumerate(self.memory.select(step)):
                strip[row, :, slot * width : (slot + 1) * width] = self._frames.read(rollout, past)
                steps[row, slot] = past
        observations = copy.copy(observations)
        observations[MEMORY] = torch.from_numpy(strip).to(rgb.device)
        observations[MEMORY_STEPS] = steps.to(rgb.device)
        if self.jpeg_quality is not None:
            now = np.stack([self._frames.read(rollout, step) for rollout, step in clocks])
            observations[self.rgb_key] = torch.from_numpy(now).to(rgb.device)
        return observations

    def remember(self, observations: dict[str, torch.Tensor]) -> list[list[int]]:
        """Keep the frames of these observations, for a later `forward`; returns their clocks.

        Raises:
            RunError: a step of a rollout was not shown.
        """
        clocks: list[list[int]] = observations[CLOCK].cpu().tolist()
        self._drop_ended([rollout for rollout, _ in clocks])
        for (rollout, step), frame in zip(clocks, observations[self.rgb_key].cpu().numpy(), strict=True):
            count = self._frames.touch(rollout)
            if step > count:
                raise RunError(
                    f"LongShortMemory saw step {step} of a rollout after {count} frames: it must see every step"
                )
            if step == count:  # one transform may be shown the same step twice
                self._frames.add(rollout, frame)
        return clocks

    def skip(self, rollout: int, step: int) -> None:
        """A step of a rollout whose frame nobody will look at: it was not rendered."""
        if step == self._frames.touch(rollout):
            self._frames.skip(rollout)

    def _drop_ended(self, rollouts: list[int]) -> None:
        """Forget rollouts whose environment is in another one now.

        Ids that do not tell their environment (not `VLNR1ClockSensor`'s) are kept while twice as many as were ever
        seen together have not been seen since: two halves of the environments may take turns.
        """
        for rollout in rollouts:
            environment = environment_of(rollout)
            if environment and self._rollout_of.get(environment) != rollout:
                self._frames.drop(self._rollout_of.get(environment, 0))
                self._rollout_of[environment] = rollout
            self._frames.touch(rollout)
        self._together = max(self._together, len(set(rollouts)))
        kept = list(self._frames)
        untold = [rollout for rollout in kept if not environment_of(rollout)]
        new = sum(rollout not in kept for rollout in {*rollouts} if not environment_of(rollout))
        for rollout in untold[: max(0, len(untold) + new - 2 * self._together)]:
            self._frames.drop(rollout)


def remember(observations: dict[str, torch.Tensor], transforms: Sequence[ObservationTransformer]) -> None:
    """What must not be left out where nobody reads the transformed observations: memories keep the frames."""
    last = max((i for i, transform in enumerate(transforms) if isinstance(transform, LongShortMemory)), default=-1)
    for transform in transforms[: last + 1]:
        if isinstance(transform, LongShortMemory):
            transform.remember(observations)
        else:
            observations = transform(observations)


def remember_walk(views: Sequence[Any], transforms: Sequence[ObservationTransformer], device: Any = None) -> None:
    """`remember` for what one environment has seen step by step.

    Args:
        views: observations; one without `rgb` was not rendered.
    """
    for rendered, some in groupby(views, lambda view: "rgb" in view):
        if rendered:
            batch: Any = batch_obs(list(some), device=device)
            remember(batch, transforms)
            continue
        for view in some:
            for transform in transforms:
                if isinstance(transform, LongShortMemory):
                    transform.skip(*view[CLOCK].tolist())


def looked_at(transforms: Sequence[ObservationTransformer], asked: Iterable[int]) -> set[int] | None:
    """The steps of a walk whose frames are looked at by who is asked at some steps; None: any, as far as is known."""
    if not all(isinstance(transform, LongShortMemory) for transform in transforms):
        return None
    memories = [transform.memory for transform in transforms if isinstance(transform, LongShortMemory)]
    return {step for now in asked for step in (now, *(past for memory in memories for past in memory.select(now)))}


def memory_frames(observations: dict[str, torch.Tensor]) -> torch.Tensor:
    """The strip that `LongShortMemory` added, cut into its frames: uint8 [N, budget, H, W, 3], a view."""
    strip, budget = observations[MEMORY], observations[MEMORY_STEPS].shape[1]
    return strip.unflatten(2, (budget, strip.shape[2] // max(budget, 1))).movedim(2, 1)
