"""Both stages of VLN-R1 in one job, for sweeps: jobs share the stage 1 that they start from."""

from __future__ import annotations

from omegaconf import DictConfig

from habitat_vlnr1.config import edited
from habitat_vlnr1.trainers.base import register_trainer
from habitat_vlnr1.trainers.rft import RFTTrainer
from habitat_vlnr1.trainers.sft import SFTTrainer


@register_trainer("vlnr1_stages")
class StagesTrainer(RFTTrainer):
    """`vlnr1_sft` in the run's folder `vlnr1.ablation.stage_1`, without its evaluation, then `vlnr1_rft`."""

    def train(self) -> None:
        SFTTrainer(stage_1(self.config)).train()
        super().train()


def stage_1(config: DictConfig) -> DictConfig:
    """The config of the supervised fine-tuning that a job of stage 2 starts from."""
    folder = config.vlnr1.ablation.stage_1
    return edited(
        config,
        **{
            "vlnr1.run_dir": folder,
            "vlnr1.sft.evaluate": False,
            "habitat_baselines.trainer_name": "vlnr1_sft",
            "habitat_baselines.checkpoint_folder": f"{folder}/checkpoints",
            "habitat_baselines.tensorboard_dir": f"{folder}/tb",
        },
    )
