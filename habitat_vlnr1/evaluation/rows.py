"""The rows of an evaluation's table: any registered policy, with its weights and the observations that it knows.

`vlnr1.eval.policies` maps a row's name to the name of a registered policy, or to

- `{name, checkpoint}`: a Hugging Face folder for `VLNR1Policy`; for a policy of Habitat-Baselines' kind a `.pth`, or a
  folder of `ckpt.<number>.pth`, of which the newest is taken;
- `{…, deterministic: false}`: draw actions from the policy's distribution instead of taking the likeliest.

A policy from a `.pth` is built from the config in that file, and sees the observations, transformed as they were, that
it was trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gym import spaces
from habitat_baselines.common.obs_transformers import apply_obs_transforms_obs_space, get_active_obs_transforms
from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.config import check_policy, make_policy, plain, registered_policy
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.observations import EXPERT, MEMORY
from habitat_vlnr1.policies.habitat_checkpoint import newest_pth, read_pth
from habitat_vlnr1.weights import folder_fingerprint


@dataclass
class Row:
    """A policy that is evaluated.

    Args:
        policy: Habitat-Baselines' Policy.
        obs_transforms: what its observations go through.
        deterministic: take the likeliest action.
        observations: keys it may read; None: not known, so all.
        identity: what its results depend on besides protocol and split.
    """

    policy: Any
    obs_transforms: Sequence[Any]
    deterministic: bool = True
    observations: frozenset[str] | None = None
    identity: dict[str, Any] = field(default_factory=dict)

    def reads(self, key: str) -> bool:
        return self.observations is None or key in self.observations


class RowMaker:
    """Makes the rows of `vlnr1.eval.policies`: the agent's own policy, and beside it those that are not the agent's.

    Args:
        agent: Habitat's agent access manager, with the policy that the config names.
        config: the run's.
        env_spec: spaces as the agent's policy sees them, after `transforms`.
        raw_space: the observation space before them.
        transforms: the agent's observation transforms.
    """

    def __init__(
        self, agent: Any, config: DictConfig, env_spec: Any, raw_space: spaces.Dict, transforms: Sequence[Any]
    ):
        self.agent, self.config, self.env_spec = agent, config, env_spec
        self.raw_space, self.transforms = raw_space, transforms
        self._made: dict[str, Row] = {}  # small ones, which `check` has made

    @property
    def _seen(self) -> tuple[spaces.Dict, spaces.Space]:
        """The spaces of a policy that sees what the agent's does."""
        return self.env_spec.observation_space, self.env_spec.action_space

    @property
    def names(self) -> list[str]:
        """In the order of the config; a row that is null is none."""
        return [name for name, row in self.config.vlnr1.eval.policies.items() if row is not None]

    def check(self) -> None:
        """All that can be wrong with any row, before the first one's hours; large models are not loaded for it.

        Raises:
            ValueError: none is named, one is not registered or has no weights, or a checkpoint is not its.
        """
        if not self.names:
            raise VLNR1Error("vlnr1.eval.policies is empty: name at least one, such as random: RandomPolicy")
        for name in self.names:
            key, options = self._options(name)
            own, file = self._is_own(options), _pth(options.get("checkpoint"))
            if not own and file is None and hasattr(registered_policy(key, options["name"]), "check_config"):
                check_policy(key, _named(options), self.config, *self._seen)
            else:
                self._made[name] = self._row(key, options)

    def make(self, name: str, device: torch.device) -> Row:
        """One row, on `device`. The agent's own policy waits in the host's memory while others walk: there may be no
        room for two models. A row of the same checkpoint shares the model.

        Raises:
            ValueError: as `check`, which finds the same earlier.
        """
        self.agent.actor_critic.to("cpu")
        row = self._made.pop(name, None) or self._row(*self._options(name))
        row.policy.to(device).eval()
        return row

    def _options(self, name: str) -> tuple[str, dict[str, Any]]:
        """A row's key and what stands there."""
        row = self.config.vlnr1.eval.policies[name]
        return f"vlnr1.eval.policies.{name}", {"name": row} if isinstance(row, str) else plain(row)

    def _is_own(self, options: dict[str, Any]) -> bool:
        """Whether a row is the agent's own policy; with keys of its own it is another one."""
        name = self.config.habitat_baselines.rl.policy[self.agent.agent_name].name
        given = {option for option, value in options.items() if value is not None}
        return options["name"] == name and given <= {"name", "deterministic"}

    def _row(self, key: str, options: dict[str, Any]) -> Row:
        name, weights, own = options["name"], options.get("checkpoint"), self._is_own(options)
        deterministic = options.get("deterministic", True)
        file = _pth(weights)
        if file is not None:
            return self._from_pth(key, registered_policy(key, name), file, deterministic)
        policy = self.agent.actor_critic if own else make_policy(key, _named(options), self.config, *self._seen)
        identity = getattr(policy, "identity", {})
        if policy.should_load_agent_state:  # a network of Habitat-Baselines' kind
            baselines = self.config.habitat_baselines
            if not own or not baselines.eval.should_load_ckpt:
                raise VLNR1Error(
                    f"{key}: {name} needs weights: {{name: {name}, checkpoint: <file.pth, or folder of ckpt.*.pth>}}"
                    + (f"; there is no ckpt.*.pth in {weights}" if weights else "")
                )
            identity = self._identity(Path(baselines.eval_ckpt_path_dir), deterministic)
        needs = getattr(policy, "needs", None)
        transforms = self.transforms if needs is None or {"rgb", MEMORY} & {*needs} else ()  # nobody looks
        return Row(policy, transforms, deterministic, needs and frozenset(needs), identity)

    def _from_pth(self, key: str, policy_class: Any, file: Path, deterministic: bool) -> Row:
        checkpoint = read_pth(file)
        config = OmegaConf.create(checkpoint["config"]) if checkpoint.get("config") else self.config
        # Our configs observe the expert for the oracle's sake; no policy that learns may read it.
        keys = [name for name in config.habitat.gym.obs_keys or self.raw_space.spaces if name != EXPERT]
        missing = [name for name in keys if name not in self.raw_space.spaces]
        if missing:
            raise VLNR1Error(
                f"{key}: {file} was trained with the observation {', '.join(missing)}, which is not among "
                "habitat.gym.obs_keys (depth: vlnr1/sensors=[expert,depth])"
            )
        transforms = get_active_obs_transforms(config)
        space = spaces.Dict({name: self.raw_space[name] for name in keys})
        policy = policy_class.from_config(
            config,
            apply_obs_transforms_obs_space(space, transforms),
            self.env_spec.action_space,
            agent_name=next(iter(config.habitat_baselines.rl.policy)),
        )
        try:
            policy.load_state_dict(checkpoint["state_dict"])
        except RuntimeError as error:
            raise VLNR1Error(
                f"{key}: {file} holds no weights of {policy_class.__name__} for these observations "
                f"({str(error).splitlines()[-1].strip()})"
            ) from None
        return Row(policy, transforms, deterministic, frozenset(keys), self._identity(file, deterministic))

    def _identity(self, file: Path, deterministic: bool) -> dict[str, Any]:
        seed = None if deterministic else self.config.habitat.seed
        return {"checkpoint": str(file), "weights": folder_fingerprint(file), "drawn_with_seed": seed}


def _named(options: dict[str, Any]) -> dict[str, Any]:
    """A row without what is the row's alone: the policy's name and its keys of `vlnr1`."""
    return {option: value for option, value in options.items() if option != "deterministic"}


def _pth(weights: str | None) -> Path | None:
    """The `.pth` that a row's checkpoint names, or None when it is of another kind."""
    if weights is None:
        return None
    return Path(weights) if weights.endswith(".pth") else newest_pth(weights)
