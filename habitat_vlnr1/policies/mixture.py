"""A policy that delegates between two registered ones, step by step and environment by environment.

`vlnr1.mixture` says who leads, who helps, and by which rule the helper takes a step over:

    vlnr1:
      mixture:
        lead: VLNR1Policy      # name of a registered policy, or {name: …, checkpoint: …, …}: see `make_policy`
        helper: OraclePolicy
        rule: {name: probability, share: 0.5, every: 6}

`probability` (DAgger's beta is its share) and `disagreement` are the rules that DAgger walks with; `distance`,
`confidence` and `collisions` are the others.
Either policy may be a mixture itself: `{name: MixturePolicy, mixture: {…}}`.
"""

from __future__ import annotations

import math
import zlib
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from gym import spaces
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.rl.ppo.policy import Policy, PolicyActionData
from omegaconf import DictConfig
from torch import Tensor

from habitat_vlnr1.actions import Action
from habitat_vlnr1.config import check_policy, make_policy, plain
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.observations import CLOCK, EXPERT, INSTRUCTION
from habitat_vlnr1.policies.scripted import ScriptedPolicy, check_spaces
from habitat_vlnr1.weights import folder_fingerprint

GOAL = "pointgoal_with_gps_compass"
HELPED = "vlnr1_helped"
"""In `policy_info`: 1.0 where the helper has acted, else 0.0."""
MAX_ROLLOUTS = 256


class Rule:
    """When the helper takes over."""

    needs: ClassVar[tuple[str, ...]] = ()

    def helps(self, observations: Mapping[str, Tensor], lead: Policy) -> list[bool]:
        """For each environment of the batch, whether the helper acts now."""
        raise NotImplementedError

    def note(self, clocks: Sequence[Sequence[int]], infos: Sequence[Mapping[str, Any]]) -> None:
        """Told after a step: the clocks that it was decided at, and what the environments said."""


@dataclass
class Probability(Rule):
    """With probability `share`, drawn anew at every `every`-th step of a rollout, or once per rollout.

    What is drawn depends on (seed, instruction, step) alone, so results are the same with any number of environments.
    """

    share: float
    every: int | None = None
    seed: int = 0

    needs: ClassVar[tuple[str, ...]] = (INSTRUCTION,)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or (self.every is not None and self.every < 1):
            raise VLNR1Error(f"share must be in 0 … 1, and every at least 1 or null: {self}")

    def helps(self, observations: Mapping[str, Tensor], lead: Policy) -> list[bool]:
        told = observations[INSTRUCTION].cpu().numpy()
        periods = [0 if self.every is None else step // self.every for step in observations[CLOCK][:, 1].tolist()]
        keys = [(self.seed, zlib.crc32(text.tobytes()), period) for text, period in zip(told, periods, strict=True)]
        return [bool(np.random.default_rng(key).random() < self.share) for key in keys]


@dataclass
class Distance(Rule):
    """Where the goal is nearer than `metres`, as the crow flies: an oracle, read from Habitat's pointgoal sensor."""

    metres: float

    needs: ClassVar[tuple[str, ...]] = (GOAL,)

    def helps(self, observations: Mapping[str, Tensor], lead: Policy) -> list[bool]:
        return (observations[GOAL][:, 0] < self.metres).tolist()


@dataclass
class Confidence(Rule):
    """Where the lead gives its next action a probability of less than `below` (`VLNR1Policy.confidence`)."""

    below: float

    def helps(self, observations: Mapping[str, Tensor], lead: Policy) -> list[bool]:
        if not hasattr(lead, "confidence"):
            raise VLNR1Error(f"vlnr1.mixture.rule confidence: {type(lead).__name__} does not say how sure it is")
        return [sure < self.below for sure in lead.confidence(observations)]


@dataclass
class Collisions(Rule):
    """For `steps` steps after `count` of the last `window` steps have collided (Habitat's measure `collisions`)."""

    count: int = 3
    window: int = 6
    steps: int = 6
    _recent: OrderedDict[int, deque[bool]] = field(default_factory=OrderedDict, init=False, repr=False)
    _until: OrderedDict[int, int] = field(default_factory=OrderedDict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.count <= self.window or self.steps < 1:
            raise VLNR1Error(f"collisions needs 1 <= count <= window and steps of at least 1: {self}")

    def helps(self, observations: Mapping[str, Tensor], lead: Policy) -> list[bool]:
        return [step < self._until.get(rollout, 0) for rollout, step in observations[CLOCK].tolist()]

    def note(self, clocks: Sequence[Sequence[int]], infos: Sequence[Mapping[str, Any]]) -> None:
        for (rollout, step), info in zip(clocks, infos, strict=True):
            if "collisions" not in info:
                raise VLNR1Error("vlnr1.mixture.rule collisions: add habitat's measure `collisions` to the task")
            recent = self._recent.setdefault(rollout, deque(maxlen=self.window))
            recent.append(bool(info["collisions"]["is_collision"]))
            if sum(recent) >= self.count:
                self._until[rollout] = step + 1 + self.steps
                recent.clear()
        _drop_oldest(self._recent, self._until)


@dataclass
class Disagreement(Rule):
    """From where the lead errs to the end of the rollout: it would do something else than the expert advises
    (`vlnr1_expert`) for the `count`-th time within `window` steps, or one of the two would stop and the other not."""

    count: int = 4
    window: int = 6
    _recent: OrderedDict[int, deque[bool]] = field(default_factory=OrderedDict, init=False, repr=False)
    _erred: OrderedDict[int, None] = field(default_factory=OrderedDict, init=False, repr=False)

    needs: ClassVar[tuple[str, ...]] = (EXPERT,)

    def __post_init__(self) -> None:
        if not 1 <= self.count <= self.window:
            raise VLNR1Error(f"disagreement needs 1 <= count <= window: {self}")

    def helps(self, observations: Mapping[str, Tensor], lead: Policy) -> list[bool]:
        if isinstance(lead, MixturePolicy) or not hasattr(lead, "actions"):
            raise VLNR1Error(
                f"vlnr1.mixture.rule disagreement: {type(lead).__name__} does not say what it would do before it acts"
            )
        rollouts = observations[CLOCK][:, 0].tolist()
        advised = observations[EXPERT].flatten().tolist()
        asked = [row for row, rollout in enumerate(rollouts) if rollout not in self._erred]
        wanted = lead.actions({key: value[asked] for key, value in observations.items()}) if asked else []
        for row, action in zip(asked, wanted, strict=True):
            differs = action != advised[row]
            recent = self._recent.setdefault(rollouts[row], deque(maxlen=self.window))
            recent.append(differs)
            if sum(recent) >= self.count or (differs and Action.STOP in (action, advised[row])):
                self._erred[rollouts[row]] = None
        _drop_oldest(self._recent, self._erred)
        return [rollout in self._erred for rollout in rollouts]


def _drop_oldest(*remembered: OrderedDict[int, Any]) -> None:
    """Keep what a rule remembers to the newest rollouts: nobody tells it that one has ended."""
    for by_rollout in remembered:
        while len(by_rollout) > MAX_ROLLOUTS:
            by_rollout.popitem(last=False)


RULES: dict[str, type] = {
    "probability": Probability,
    "distance": Distance,
    "confidence": Confidence,
    "collisions": Collisions,
    "disagreement": Disagreement,
}


def make_rule(name: str, **options: Any) -> Rule:
    """Make a rule by its name in the config.

    Raises:
        ValueError: no such rule, or it does not take these options.
    """
    if name not in RULES:
        raise VLNR1Error(f"unknown vlnr1.mixture.rule {name!r}; choose one of {', '.join(RULES)}")
    try:
        return RULES[name](**options)
    except (TypeError, ValueError) as error:
        raise VLNR1Error(f"vlnr1.mixture.rule {name}: {error}") from None


def rule_of(config: DictConfig) -> Rule:
    """The rule of `vlnr1.mixture`.

    Raises:
        ValueError: nothing is mixed, there is no such rule, or it does not take these options.
    """
    mixture = config.vlnr1.mixture
    if mixture is None:
        raise VLNR1Error("MixturePolicy needs vlnr1.mixture={lead: …, helper: …, rule: {name: …}}")
    options = plain(mixture.rule)
    if options["name"] == "probability":
        options.setdefault("seed", config.habitat.seed)
    return make_rule(**options)


@baseline_registry.register_policy
class MixturePolicy(ScriptedPolicy):
    """Lets the helper act where the rule says so, the lead elsewhere.

    A recurrent policy sees every step, whoever acts; any other only the environments that it acts in. Whoever did not
    act plans anew when it is asked again (`forget`).

    Args:
        observation_space: must hold the clock and what the rule and both policies need.
        action_space: Habitat's four VLN actions.
        lead: acts as a rule.
        helper: acts as an exception.
        rule: says when.
    """

    def __init__(
        self, observation_space: spaces.Dict, action_space: spaces.Space, lead: Policy, helper: Policy, rule: Rule
    ):
        own = [needed for policy in (lead, helper) for needed in getattr(policy, "needs", ())]
        self.needs = tuple(dict.fromkeys([CLOCK, *rule.needs, *own]))
        super().__init__(observation_space, action_space)
        self.lead = lead
        self.helper = helper
        self.rule = rule
        self._shapes = [tuple(policy.hidden_state_shape) for policy in (lead, helper)]
        self._clocks: list[list[int]] = []

    @classmethod
    def from_config(
        cls, config: DictConfig, observation_space: spaces.Dict, action_space: spaces.Space, **kwargs: Any
    ) -> MixturePolicy:
        rule = rule_of(config)
        lead, helper = (
            make_policy(f"vlnr1.mixture.{role}", config.vlnr1.mixture[role], config, observation_space, action_space)
            for role in ("lead", "helper")
        )
        return cls(observation_space, action_space, lead, helper, rule)

    @classmethod
    def check_config(cls, config: DictConfig, observation_space: spaces.Dict, action_space: spaces.Space) -> None:
        """What `from_config` would find wrong, without loading large models.

        Raises:
            VLNR1Error: what is wrong.
        """
        check_spaces(cls.__name__, [CLOCK, *rule_of(config).needs], observation_space, action_space)
        for role in ("lead", "helper"):
            place = f"vlnr1.mixture.{role}"
            check_policy(place, config.vlnr1.mixture[role], config, observation_space, action_space)

    @property
    def identity(self) -> dict[str, Any]:
        kind: Any = self.rule  # each is a dataclass
        rule = {key: value for key, value in asdict(kind).items() if not key.startswith("_")}
        parts = {"lead": _identity(self.lead), "helper": _identity(self.helper)}
        checkpoints = {part["checkpoint"] for part in parts.values() if "checkpoint" in part}
        return {
            "rule": {"name": type(self.rule).__name__, **rule},
            **parts,
            **({"checkpoint": min(checkpoints)} if checkpoints else {}),
        }

    @property
    def hidden_state_shape(self) -> tuple[int, int]:
        return (1, sum(map(math.prod, self._shapes)))

    @property
    def hidden_state_shape_lens(self) -> list[int]:
        return [self.hidden_state_shape[1]]

    def act(
        self,
        observations: dict[str, Tensor],
        rnn_hidden_states: Tensor,
        prev_actions: Tensor,
        masks: Tensor,
        deterministic: bool = False,
        **kwargs: Any,
    ) -> PolicyActionData:
        self._clocks = observations[CLOCK].tolist()
        helped = self.rule.helps(observations, self.lead)
        count = len(helped)
        actions = torch.zeros(count, 1, dtype=torch.long, device=masks.device)
        said: list[dict[str, Any]] = [{HELPED: float(helps)} for helps in helped]
        hidden = list(rnn_hidden_states.flatten(1).split(list(map(math.prod, self._shapes)), dim=1))
        for number, policy in enumerate((self.lead, self.helper)):
            own = [row for row in range(count) if helped[row] == bool(number)]
            seen = list(range(count)) if hidden[number].shape[1] else own
            if seen:
                data: Any = policy.act(
                    {key: value[seen] for key, value in observations.items()},
                    hidden[number][seen].reshape(len(seen), *self._shapes[number]),
                    prev_actions[seen],
                    masks[seen],
                    deterministic=deterministic,
                )
                if hidden[number].shape[1]:
                    hidden[number] = data.rnn_hidden_states.flatten(1)
                for row in own:
                    actions[row] = data.env_actions[seen.index(row)]
                    if data.policy_info:
                        said[row] |= data.policy_info[seen.index(row)]
            if hasattr(policy, "forget"):
                policy.forget([self._clocks[row][0] for row in range(count) if row not in own])
        return PolicyActionData(
            rnn_hidden_states=torch.cat(hidden, dim=1).reshape(rnn_hidden_states.shape),
            actions=actions,
            policy_info=said,
        )

    def get_extra(
        self, action_data: PolicyActionData, infos: Sequence[Mapping[str, Any]], dones: Sequence[bool]
    ) -> list[dict[str, Any]]:
        self.rule.note(self._clocks, infos)
        return super().get_extra(action_data, infos, dones)

    def forget(self, rollouts: Sequence[int]) -> None:
        """Drop what either policy has planned for these rollouts."""
        for policy in (self.lead, self.helper):
            if hasattr(policy, "forget"):
                policy.forget(rollouts)

    def on_envs_pause(self, envs_to_pause: list[int]) -> None:
        for policy in (self.lead, self.helper):
            policy.on_envs_pause(envs_to_pause)


def _identity(policy: Policy) -> dict[str, Any]:
    """What a policy's results depend on, its weights included."""
    own = {"policy": type(policy).__name__, **getattr(policy, "identity", {})}
    return {**own, "weights": folder_fingerprint(own["checkpoint"])} if "checkpoint" in own else own
