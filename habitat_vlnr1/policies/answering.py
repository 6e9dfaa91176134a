"""Policies that answer with n actions at a time, and are asked again when some of these are done.

Of the n predicted actions the first `execute_horizon` are executed before the model is asked again. Everything that
is kept between steps is keyed by the rollout id that travels in the observation (`vlnr1_clock`), so environments may
pause, reset and be reordered.
"""

from __future__ import annotations

import math
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from gym import spaces
from torch import Tensor

from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.obs_transform import memory_frames
from habitat_vlnr1.observations import CLOCK, INSTRUCTION, MEMORY, MEMORY_STEPS, decode_text, environment_of
from habitat_vlnr1.plan import Plan
from habitat_vlnr1.policies.scripted import ScriptedPolicy

if TYPE_CHECKING:  # Transformers takes seconds to import, and every Habitat run registers this module.
    from habitat_vlnr1.lvlm.decoding import Answer, Prompt

MAX_ROLLOUTS = 256


class Decoder(Protocol):
    """What asks a model: `lvlm.decoding.ActionDecoder`, or `remote.decoder.RemoteDecoder`."""

    num_actions: int
    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        """What its answers depend on."""

    def decode(self, prompts: Sequence[Prompt], *, seeds: Sequence[Any] | None = None) -> list[Answer]:
        """An answer to each prompt; what is drawn depends on its seed alone."""


class AnsweringPolicy(ScriptedPolicy):
    """A policy that asks a decoder.

    Args:
        observation_space: must hold rgb, the instruction, the clock and what `LongShortMemory` adds.
        action_space: Habitat's four VLN actions.
        decoder: asks the model.
        execute_horizon: how many of the predicted actions are executed before the model is asked again, 1 … n.
    """

    needs = ("rgb", INSTRUCTION, CLOCK, MEMORY, MEMORY_STEPS)

    def __init__(
        self, observation_space: spaces.Dict, action_space: spaces.Space, decoder: Decoder, execute_horizon: int
    ):
        super().__init__(observation_space, action_space)
        if not 1 <= execute_horizon <= decoder.num_actions:
            raise VLNR1Error(
                f"vlnr1.decoding.execute_horizon is {execute_horizon}, but the model predicts "
                f"{decoder.num_actions} actions: choose 1 … {decoder.num_actions}"
            )
        self.decoder = decoder
        self.execute_horizon = execute_horizon
        self._plans: OrderedDict[int, Plan] = OrderedDict()

    @property
    def identity(self) -> dict[str, Any]:
        return {
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
        return [[int(action) for action in plan.behind(step)] for plan, step in self._at(observations)]

    def actions(self, observations: dict[str, Tensor]) -> list[int]:
        self._ask(observations)
        planned: list[Any] = [plan.action(step) for plan, step in self._at(observations)]  # no None after asking
        return [int(action) for action in planned]

    def confidence(self, observations: dict[str, Tensor]) -> list[float]:
        """The probability of each environment's action now, given those of its answer before it.

        Raises:
            ValueError: answers are decoded freely, where letters have no probability of their own.
        """
        self._ask(observations)
        plans = self._at(observations)
        if not all(plan.answer.log_probs for plan, _ in plans):
            raise VLNR1Error("how sure a model is can be said with vlnr1.decoding.constrained=true only")
        return [math.exp(plan.answer.log_probs[step - plan.step]) for plan, step in plans]

    def forget(self, rollouts: Sequence[int]) -> None:
        """Drop the plans of these rollouts: somebody else has acted there."""
        for rollout in rollouts:
            self._plans.pop(rollout, None)

    def said(self, observations: dict[str, Tensor]) -> list[dict[str, Any]]:
        return [
            {"vlnr1_text": plan.answer.text, "vlnr1_invalid": not plan.answer.valid} if plan.step == step else {}
            for plan, step in self._at(observations)
        ]

    def _at(self, observations: dict[str, Tensor]) -> list[tuple[Plan, int]]:
        """The plan of each environment, and its step."""
        return [(self._plans[rollout], step) for rollout, step in observations[CLOCK].tolist()]

    def _ask(self, observations: dict[str, Tensor]) -> None:
        """Ask the model for those environments that have no action planned."""
        clocks = observations[CLOCK].tolist()
        asked = [row for row, (rollout, step) in enumerate(clocks) if self._has_none(rollout, step)]
        while len(self._plans) > MAX_ROLLOUTS:
            self._plans.popitem(last=False)
        # What is drawn depends on (seed, instruction, step) alone, whatever else is in the batch or was asked before.
        told = observations[INSTRUCTION].cpu().numpy()
        seeds = [(self.decoder.seed, zlib.crc32(told[row].tobytes()), clocks[row][1]) for row in asked]
        prompts = [self._prompt(observations, row) for row in asked]
        answers = self.decoder.decode(prompts, seeds=seeds) if asked else []
        for row, answer in zip(asked, answers, strict=True):
            rollout, step = clocks[row]
            self._plans[rollout] = Plan(step, answer, self.execute_horizon)
            self._plans.move_to_end(rollout)

    def _has_none(self, rollout: int, step: int) -> bool:
        plan = self._plans.get(rollout)
        return plan is None or plan.number(step) is None

    def _prompt(self, observations: dict[str, Tensor], row: int) -> Prompt:
        prompt = prompt_of(observations, row)
        return replace(prompt, frames=self._see(prompt.frames))

    def _see(self, frames: Sequence[Any]) -> Sequence[Any]:
        return frames


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
