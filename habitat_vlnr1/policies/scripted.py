"""Policies without a model, to compare with and to test the evaluation: random, forward only, oracle.

They follow Habitat-Baselines' Policy interface, so its own evaluator runs them too
(`habitat_baselines.rl.policy.main_agent.name: RandomPolicy`). What they do at a step depends only on what travels in
the observation, so results are the same with any number of environments and after a resume.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from gym import spaces
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.rl.ppo.policy import Policy, PolicyActionData
from torch import Tensor, nn

from habitat_vlnr1.actions import Action
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.observations import CLOCK, EXPERT, INSTRUCTION


class ScriptedPolicy(nn.Module, Policy):
    """A policy that computes the actions of a batch from its observations and has nothing to learn.

    Args:
        observation_space: must hold the keys in `needs`.
        action_space: Habitat's four VLN actions.

    Raises:
        ValueError: an observation that the policy needs is missing, or the action space is another one.
    """

    needs: tuple[str, ...] = ()

    def __init__(self, observation_space: spaces.Dict, action_space: spaces.Space):
        nn.Module.__init__(self)
        Policy.__init__(self, action_space)
        check_spaces(type(self).__name__, self.needs, observation_space, action_space)
        # Habitat's updater reads the device from the first parameter and optimises what requires a gradient.
        self._device_marker = nn.Parameter(torch.empty(0), requires_grad=False)

    @classmethod
    def from_config(
        cls, config: Any, observation_space: spaces.Dict, action_space: spaces.Space, **kwargs: Any
    ) -> ScriptedPolicy:
        return cls(observation_space, action_space)

    @property
    def identity(self) -> dict[str, Any]:
        """What the results depend on besides protocol and split (part of `run.json`)."""
        return {}

    @property
    def should_load_agent_state(self) -> bool:
        return False

    @property
    def hidden_state_shape(self) -> tuple[int, int]:
        return (0, 0)

    @property
    def hidden_state_shape_lens(self) -> list[int]:
        return [0]

    def actions(self, observations: dict[str, Tensor]) -> list[int]:
        """The action of each environment in the batch."""
        raise NotImplementedError

    def said(self, observations: dict[str, Tensor]) -> list[dict[str, Any]] | None:
        """What to tell about each environment's action just given (`policy_info`); None: nothing."""
        return None

    def act(
        self,
        observations: dict[str, Tensor],
        rnn_hidden_states: Tensor,
        prev_actions: Tensor,
        masks: Tensor,
        deterministic: bool = False,
        **kwargs: Any,
    ) -> PolicyActionData:
        actions = torch.tensor(self.actions(observations), dtype=torch.long, device=masks.device)
        return PolicyActionData(
            rnn_hidden_states=rnn_hidden_states, actions=actions.unsqueeze(1), policy_info=self.said(observations)
        )


def check_spaces(name: str, needs: Iterable[str], observation_space: spaces.Dict, action_space: spaces.Space) -> None:
    """ValueError when an observation that policy `name` needs is missing, or the action space is another one."""
    missing = [key for key in needs if key not in observation_space.spaces]
    if missing:
        raise VLNR1Error(
            f"{name} needs the observation {', '.join(missing)}; add its lab sensor to habitat.task.lab_sensors and "
            "its name to habitat.gym.obs_keys"
        )
    if getattr(action_space, "n", None) != len(Action):
        raise VLNR1Error(f"{name} needs the {len(Action)} VLN actions, got {action_space}")


@baseline_registry.register_policy
class RandomPolicy(ScriptedPolicy):
    """Uniform over the four actions, drawn anew from (seed, instruction, step)."""

    needs = (INSTRUCTION, CLOCK)

    def __init__(self, observation_space: spaces.Dict, action_space: spaces.Space, seed: int = 0):
        super().__init__(observation_space, action_space)
        self.seed = seed

    @classmethod
    def from_config(
        cls, config: Any, observation_space: spaces.Dict, action_space: spaces.Space, **kwargs: Any
    ) -> RandomPolicy:
        return cls(observation_space, action_space, seed=config.habitat.seed)

    @property
    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def actions(self, observations: dict[str, Tensor]) -> list[int]:
        told = observations[INSTRUCTION].cpu().numpy()
        steps = observations[CLOCK][:, 1].tolist()
        keys = [(self.seed, zlib.crc32(text.tobytes()), step) for text, step in zip(told, steps, strict=True)]
        return [int(np.random.default_rng(key).integers(len(Action))) for key in keys]


@baseline_registry.register_policy
class ForwardOnlyPolicy(ScriptedPolicy):
    """`forward_steps` times FORWARD, then STOP."""

    needs = (CLOCK,)

    def __init__(self, observation_space: spaces.Dict, action_space: spaces.Space, forward_steps: int):
        super().__init__(observation_space, action_space)
        self.forward_steps = forward_steps

    @classmethod
    def from_config(
        cls, config: Any, observation_space: spaces.Dict, action_space: spaces.Space, **kwargs: Any
    ) -> ForwardOnlyPolicy:
        return cls(observation_space, action_space, forward_steps=config.vlnr1.eval.forward_steps)

    @property
    def identity(self) -> dict[str, Any]:
        return {"forward_steps": self.forward_steps}

    def actions(self, observations: dict[str, Tensor]) -> list[int]:
        steps = observations[CLOCK][:, 1].tolist()
        return [Action.FORWARD if step < self.forward_steps else Action.STOP for step in steps]


@baseline_registry.register_policy
class OraclePolicy(ScriptedPolicy):
    """Does what the shortest-path expert would do now (the lab sensor `vlnr1_expert`)."""

    needs = (EXPERT,)

    def actions(self, observations: dict[str, Tensor]) -> list[int]:
        return observations[EXPERT][:, 0].tolist()
