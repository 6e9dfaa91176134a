"""The VLN-R1 policy: a Qwen2-VL that reads the instruction and the chosen frames, and answers with n actions.

Of the n predicted actions the first `execute_horizon` are executed before the model is asked again. Everything that
it keeps between steps is keyed by the rollout id that travels in the observation (`vlnr1_clock`), so environments may
pause, reset and be reordered.
"""

from __future__ import annotations

import math
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gym import spaces
from habitat_baselines.common.baseline_registry import baseline_registry
from omegaconf import DictConfig
from torch import Tensor

from habitat_vlnr1.actions import Action
from habitat_vlnr1.config import check_checkpoint, make_decoder
from habitat_vlnr1.errors import MissingFileError, VLNR1Error
from habitat_vlnr1.obs_transform import memory_frames
from habitat_vlnr1.observations import CLOCK, INSTRUCTION, MEMORY, MEMORY_STEPS, decode_text, environment_of
from habitat_vlnr1.policies.scripted import ScriptedPolicy, check_spaces

if TYPE_CHECKING:  # Transformers takes seconds to import, and every Habitat run registers this module.
    from habitat_vlnr1.lvlm.decoding import ActionDecoder, Prompt

MAX_ROLLOUTS = 256


@dataclass
class Plan:
    """What the model answered at `step`: the actions for this step and the next ones, and the answer's text."""

    step: int
    actions: tuple[Action, ...]
    text: str
    valid: bool
    log_probs: tuple[float, ...] = ()


@baseline_registry.register_policy
class VLNR1Policy(ScriptedPolicy):
    """Any Qwen2-VL checkpoint as a Habitat policy.

    Args:
        observation_space: must hold rgb, the instruction, the clock and what `LongShortMemory` adds.
        action_space: Habitat's four VLN actions.
        decoder: asks the model.
        execute_horizon: how many of the predicted actions are executed before the model is asked again, 1 … n.
        model_id: what the results name as their checkpoint.
    """

    needs = ("rgb", INSTRUCTION, CLOCK, MEMORY, MEMORY_STEPS)

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space,
        decoder: ActionDecoder,
        execute_horizon: int,
        model_id: str = "",
    ):
        super().__init__(observation_space, action_space)
        if not 1 <= execute_horizon <= decoder.num_actions:
            raise VLNR1Error(
                f"vlnr1.decoding.execute_horizon is {execute_horizon}, but the model predicts "
                f"{decoder.num_actions} actions: choose 1 … {decoder.num_actions}"
            )
        self.decoder = decoder
        self.model = decoder.model
        self.execute_horizon = execute_horizon
        self.model_id = model_id
        self._plans: OrderedDict[int, Plan] = OrderedDict()

    @classmethod
    def from_config(
        cls, config: DictConfig, observation_space: spaces.Dict, action_space: spaces.Space, **kwargs: Any
    ) -> VLNR1Policy:
        path = checkpoint_of(config)
        decoder = make_decoder(config, path)
        return cls(observation_space, action_space, decoder, config.vlnr1.decoding.execute_horizon, path)

    @classmethod
    def check_config(cls, config: DictConfig, observation_space: spaces.Dict, action_space: spaces.Space) -> None:
        """What `from_config` would find wrong, as far as can be told without loading the model.

        Raises:
            VLNR1Error: what is wrong.
        """
        check_spaces(cls.__name__, cls.needs, observation_space, action_space)
        check_checkpoint(config, checkpoint_of(config))

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "checkpoint": self.model_id,
            "num_actions": self.decoder.num_actions,
            "execute_horizon": self.execute_horizon,
            **self.decoder.identity,
        }

    @property
    def asks_every(self) -> int:
        """Steps from one question to the next: what the memory shows at these is looked at, and nothing else."""
        return self.execute_horizon

    def ahead(self, observations: dict[str, Tensor]) -> list[list[int]]:
        """For each environment the actions that are decided behind the one of `actions`, until the model is asked."""
        plans = [(self._plans[rollout], step) for rollout, step in observations[CLOCK].tolist()]
        return [
            [int(action) for action in plan.actions[step - plan.step + 1 : self.execute_horizon]]
            for plan, step in plans
        ]

    def actions(self, observations: dict[str, Tensor]) -> list[int]:
        self._ask(observations)
        planned: list[Any] = [self._planned(*clock) for clock in observations[CLOCK].tolist()]  # no None after asking
        return [int(action) for action in planned]

    def confidence(self, observations: dict[str, Tensor]) -> list[float]:
        """The probability of each environment's action now, given those of its answer before it.

        Raises:
            ValueError: answers are decoded freely, where letters have no probability of their own.
        """
        self._ask(observations)
        plans = [(self._plans[rollout], step) for rollout, step in observations[CLOCK].tolist()]
        if not all(plan.log_probs for plan, _ in plans):
            raise VLNR1Error("how sure a model is can be said with vlnr1.decoding.constrained=true only")
        return [math.exp(plan.log_probs[step - plan.step]) for plan, step in plans]

    def forget(self, rollouts: Sequence[int]) -> None:
        """Drop the plans of these rollouts: somebody else has acted there."""
        for rollout in rollouts:
            self._plans.pop(rollout, None)

    def _ask(self, observations: dict[str, Tensor]) -> None:
        """Ask the model for those environments that have no action planned."""
        clocks = observations[CLOCK].tolist()
        asked = [row for row, clock in enumerate(clocks) if self._planned(*clock) is None]
        while len(self._plans) > MAX_ROLLOUTS:
            self._plans.popitem(last=False)
        # What is drawn depends on (seed, instruction, step) alone, whatever else is in the batch or was asked before.
        told = observations[INSTRUCTION].cpu().numpy()
        seeds = [(self.decoder.seed, zlib.crc32(told[row].tobytes()), clocks[row][1]) for row in asked]
        prompts = [self._prompt(observations, row) for row in asked]
        answers = self.decoder.decode(prompts, seeds=seeds) if asked else []
        for row, answer in zip(asked, answers, strict=True):
            rollout, step = clocks[row]
            self._plans[rollout] = Plan(step, answer.actions, answer.text, answer.valid, answer.log_probs)
            self._plans.move_to_end(rollout)

    def said(self, observations: dict[str, Tensor]) -> list[dict[str, Any]]:
        plans = [(self._plans[rollout], step) for rollout, step in observations[CLOCK].tolist()]
        return [
            {"vlnr1_text": plan.text, "vlnr1_invalid": not plan.valid} if plan.step == step else {}
            for plan, step in plans
        ]

    def _planned(self, rollout: int, step: int) -> Action | None:
        """The action planned for this step, or None when the model has to be asked."""
        plan = self._plans.get(rollout)
        if plan is None or not 0 <= step - plan.step < min(self.execute_horizon, len(plan.actions)):
            return None
        return plan.actions[step - plan.step]

    def _prompt(self, observations: dict[str, Tensor], row: int) -> Prompt:
        prompt = prompt_of(observations, row)
        return replace(prompt, frames=self._see(prompt.frames))

    def _see(self, frames: Sequence[Any]) -> Sequence[Any]:
        return frames


@baseline_registry.register_policy
class BlindVLNR1Policy(VLNR1Policy):
    """The same model with every frame black: what it does by instruction and habit alone."""

    def _see(self, frames: Sequence[Any]) -> Sequence[Any]:
        return [frame * 0 for frame in frames]


def checkpoint_of(config: DictConfig) -> str:
    """The checkpoint that is evaluated: `vlnr1.checkpoint`, or the newest of the run.

    Raises:
        MissingFileError: there is none.
    """
    from habitat_vlnr1.lvlm.checkpoint import newest_checkpoint, resolve

    named = config.vlnr1.checkpoint
    path = resolve(named) if named else newest_checkpoint(config.habitat_baselines.checkpoint_folder)
    if path is None:
        raise MissingFileError(
            f"no checkpoint in {config.habitat_baselines.checkpoint_folder}: train first, or name one with "
            "vlnr1.checkpoint=<folder or hub id>"
        )
    return path


def prompt_of(observations: dict[str, Tensor], row: int) -> Prompt:
    """The question of one environment, from a batch of observations that `LongShortMemory` has seen."""
    from habitat_vlnr1.lvlm.decoding import Prompt

    rollout, step = observations[CLOCK][row].tolist()
    past = [int(s) for s in observations[MEMORY_STEPS][row].tolist() if s >= 0]
    frames = [*memory_frames(observations)[row, : len(past)].contiguous().cpu().numpy()]
    frames.append(observations["rgb"][row].cpu().numpy())
    return Prompt(
        instruction=decode_text(observations[INSTRUCTION][row].cpu().numpy()),
        frames=frames,
        keys=[(rollout, s) for s in (*past, step)],
        stream=environment_of(rollout) or rollout,
    )
