"""What the trainers share: made-on-first-use scenes, and Habitat's own evaluation over several policies."""

from __future__ import annotations

import hydra
from habitat_baselines.rl.ppo.ppo_trainer import PPOTrainer
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf


def make_scenes(config: DictConfig) -> None:
    """Make the task's scenes and episodes when the config names a maker (`vlnr1.task.scenes._target_`)."""
    scenes = OmegaConf.select(config, "vlnr1.task.scenes")
    if scenes is not None:
        try:
            hydra.utils.call(scenes)
        except InstantiationException as error:
            raise (error.__cause__ or error) from None  # the maker's own line, not Hydra's around it


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
        if not self.config.vlnr1.dry_run:
            make_scenes(self.config)
