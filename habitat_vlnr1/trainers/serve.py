"""The policy server as a command (docs/serving.md)."""

from __future__ import annotations

import asyncio
import ipaddress
import os

from habitat_baselines.common.base_trainer import BaseTrainer
from omegaconf import DictConfig

from habitat_vlnr1.config import import_modules, plain
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.policies.vlnr1 import checkpoint_of
from habitat_vlnr1.settings import check_settings
from habitat_vlnr1.trainers.base import register_trainer, use_cores

TOKEN = "VLNR1_TOKEN"
"""The environment's variable with what clients must send."""


@register_trainer("vlnr1_serve")
class ServeTrainer(BaseTrainer):
    """`train` serves `vlnr1.checkpoint`, or the run's newest, until it is told to end."""

    def __init__(self, config: DictConfig):
        super().__init__()
        self.config = config

    def train(self) -> None:
        # These bring torch and Transformers, and every Habitat run registers this module.
        from habitat_vlnr1.agent import Navigator
        from habitat_vlnr1.serving.server import Limits, PolicyServer

        config = self.config
        check_settings(config)
        import_modules(config)
        options = plain(config.vlnr1.serve)
        host, port, memory_mb = options.pop("host"), options.pop("port"), options.pop("memory_mb")
        token = os.environ.get(TOKEN) or None
        if token is None and not is_local(host):
            raise VLNR1Error(
                f"vlnr1.serve.host is {host}, and others could ask: set {TOKEN} to a secret that clients send, or "
                "serve localhost"
            )
        use_cores(config.vlnr1.model.cpu_threads)
        decoding = plain(config.vlnr1.decoding)
        path = checkpoint_of(config)
        navigator = Navigator.from_checkpoint(
            path,
            decoding["execute_horizon"],
            memory_mb,
            dtype=config.vlnr1.model.dtype,
            attn_implementation=config.vlnr1.model.attn_implementation,
            seed=config.habitat.seed,
            **{key: decoding[key] for key in DECODING},
        )
        server = PolicyServer(navigator, Limits(**options), token)

        def ready() -> None:
            asked = f"; clients need {TOKEN}" if token else ""
            print(f"serving {path} on ws://{host}:{server.port}{asked}", flush=True)

        asyncio.run(server.run(host, port, ready))

    eval = train


DECODING = ("temperature", "constrained", "drafts", "feature_cache_mb", "prefix_cache_mb")
"""Keys of `vlnr1.decoding` that the decoder takes as they are."""


def is_local(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
