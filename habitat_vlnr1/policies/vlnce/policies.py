"""`Seq2SeqPolicy` and `CMAPolicy`: VLN-CE's baselines as Habitat-Baselines policies.

Being `NetPolicy`s, they go where Habitat's own go: taught by `vlnr1_il`, by PPO, evaluated by either evaluator.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from gym import spaces
from habitat import make_dataset
from habitat.core.registry import registry
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.rl.ppo.policy import Net, NetPolicy
from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.config import plain
from habitat_vlnr1.policies.vlnce.nets import CMANet, Seq2SeqNet
from habitat_vlnr1.policies.vlnce.vocabulary import Vocabulary


class InstructedPolicy(NetPolicy):
    """A policy whose net has an `instruction` encoder, sized by `vlnr1.net`."""

    net_class: ClassVar[type[Net]]

    @classmethod
    def from_config(
        cls, config: DictConfig, observation_space: spaces.Dict, action_space: spaces.Space, **kwargs: Any
    ) -> InstructedPolicy:
        """Knows the words of the dataset's training split, if that is here, until `learn_words` or a checkpoint."""
        policy = cls(cls.net_class(observation_space, config.vlnr1.net), action_space)
        policy.learn_words(_training_instructions(config.habitat.dataset))
        return policy

    def learn_words(self, texts: Iterable[str]) -> None:
        """Take the vocabulary from these instructions."""
        encoder = self.net.instruction
        encoder.vocabulary = Vocabulary.of(texts, encoder.size)


def _training_instructions(dataset: Any) -> list[str]:
    dataset = OmegaConf.create(plain(dataset))
    dataset.split = "train"
    for narrowed in ("episode_ids", "max_episodes"):
        dataset[narrowed] = None
    dataset_class: Any = registry.get_dataset(dataset.type)
    if not dataset_class.check_config_paths_exist(dataset):
        return []
    return [episode.instruction.instruction_text for episode in make_dataset(dataset.type, config=dataset).episodes]


@baseline_registry.register_policy
class Seq2SeqPolicy(InstructedPolicy):
    """Sequence to sequence (sec. 4.1 of Krantz et al. 2020)."""

    net_class = Seq2SeqNet


@baseline_registry.register_policy
class CMAPolicy(InstructedPolicy):
    """Cross-modal attention (sec. 4.2 of Krantz et al. 2020)."""

    net_class = CMANet
