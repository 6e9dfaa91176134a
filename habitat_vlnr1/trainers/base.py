"""What the trainers share: made-on-first-use scenes, and Habitat's own evaluation over several policies."""

from __future__ import annotations

from habitat_baselines.rl.ppo.ppo_trainer import PPOTrainer
from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.sim.env_factory import make_scenes


def edited(config: DictConfig, **changes: object) -> DictConfig:
    """A copy of the config with dotted keys set, e.g. `edited(config, **{"habitat.dataset.split": "train"})`."""
    config = config.copy()
    OmegaConf.set_readonly(config, False)
    for key, value in changes.items():
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    return config


class VLNR1Trainer(PPOTrainer):
    """PPOTrainer's evaluation, environments and resume; the optimisation is the subclass's."""

    def __init__(self, config: DictConfig | None = None):
        super().__init__(config)
        make_scenes(self.config)
