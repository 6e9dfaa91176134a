"""The VLN-R1 policy: a Qwen2-VL that reads the instruction and the chosen frames, and answers with n actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gym import spaces
from habitat_baselines.common.baseline_registry import baseline_registry
from omegaconf import DictConfig

from habitat_vlnr1.config import check_checkpoint, make_decoder
from habitat_vlnr1.errors import MissingFileError
from habitat_vlnr1.policies.answering import AnsweringPolicy
from habitat_vlnr1.policies.scripted import check_spaces

if TYPE_CHECKING:  # Transformers takes seconds to import, and every Habitat run registers this module.
    from habitat_vlnr1.lvlm.decoding import ActionDecoder


@baseline_registry.register_policy
class VLNR1Policy(AnsweringPolicy):
    """Any Qwen2-VL checkpoint as a Habitat policy.

    Args:
        observation_space: as `AnsweringPolicy`.
        action_space: as `AnsweringPolicy`.
        decoder: asks the model.
        execute_horizon: as `AnsweringPolicy`.
        model_id: what the results name as their checkpoint.
    """

    decoder: ActionDecoder

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space,
        decoder: ActionDecoder,
        execute_horizon: int,
        model_id: str = "",
    ):
        super().__init__(observation_space, action_space, decoder, execute_horizon)
        self.model = decoder.model
        self.model_id = model_id

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
        return {"checkpoint": self.model_id, **super().identity}


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
