"""A model that a server holds as a Habitat policy, so that simulators and model may be on different machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gym import spaces
from habitat_baselines.common.baseline_registry import baseline_registry
from omegaconf import DictConfig

from habitat_vlnr1.config import action_space as action_space_of
from habitat_vlnr1.config import plain
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.policies.answering import AnsweringPolicy
from habitat_vlnr1.policies.scripted import check_spaces
from habitat_vlnr1.prompt import get_template

if TYPE_CHECKING:  # Transformers takes seconds to import, and every Habitat run registers this module.
    from habitat_vlnr1.remote.decoder import RemoteDecoder

HOW = ("grammar", "image", "max_tokens", "in_flight", "cache")


@baseline_registry.register_policy
class RemoteVLMPolicy(AnsweringPolicy):
    """Any model behind an OpenAI-compatible endpoint (`vlnr1.remote`), fine-tuned here or not at all.

    It is asked with the configured memory, prompt and number of actions (`vlnr1.memory`, `vlnr1.prompt`), at
    `vlnr1.decoding.temperature`.

    Args:
        observation_space: as `AnsweringPolicy`.
        action_space: as `AnsweringPolicy`.
        decoder: asks the endpoint.
        execute_horizon: as `AnsweringPolicy`.
    """

    decoder: RemoteDecoder

    @classmethod
    def from_config(
        cls, config: DictConfig, observation_space: spaces.Dict, action_space: spaces.Space, **kwargs: Any
    ) -> RemoteVLMPolicy:
        return cls(observation_space, action_space, make_remote(config), config.vlnr1.decoding.execute_horizon)

    @classmethod
    def check_config(cls, config: DictConfig, observation_space: spaces.Dict, action_space: spaces.Space) -> None:
        """What `from_config` would find wrong. Nothing is asked for it.

        Raises:
            VLNR1Error: what is wrong.
        """
        check_spaces(cls.__name__, cls.needs, observation_space, action_space)
        cls.from_config(config, observation_space, action_space)

    @property
    def identity(self) -> dict[str, Any]:
        return {"model": self.decoder.endpoint.model, **super().identity}

    @property
    def asks_at_once(self) -> bool:
        """Questions of all environments are on their way together: it is the server that takes time."""
        return True


def make_remote(config: DictConfig) -> RemoteDecoder:
    """What asks the configured endpoint.

    Raises:
        VLNR1Error: a key of `vlnr1.remote` is missing or wrong, or the client is not installed.
    """
    from habitat_vlnr1.remote.decoder import Asking, RemoteDecoder
    from habitat_vlnr1.remote.endpoint import Allowance, Endpoint
    from habitat_vlnr1.settings import check_settings

    check_settings(config)  # a row may have keys of its own
    remote = plain(config.vlnr1.remote)
    for key in ("url", "model"):
        if remote[key] is None:
            raise VLNR1Error(
                f"RemoteVLMPolicy needs vlnr1.remote.{key}: give vlnr1.remote.url=http://localhost:8000/v1 and "
                "vlnr1.remote.model=<its name there>, or a row {name: RemoteVLMPolicy, remote: {url: …, model: …}}"
            )
    kept = f"its answers are kept in {remote['cache']}" if remote["cache"] else "finished episodes are kept"
    return RemoteDecoder(
        Endpoint(*(remote[key] for key in ("url", "model", "key_variable", "timeout", "tries"))),
        get_template(config.vlnr1.prompt.template),
        action_space_of(config),
        config.vlnr1.prompt.num_actions,
        Asking(**{key: remote[key] for key in HOW}),
        Allowance(remote["max_requests"], remote["max_total_tokens"], f"{kept}: raise it and start again"),
        config.vlnr1.decoding.temperature,
        config.habitat.seed,
    )
