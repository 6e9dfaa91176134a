"""Reinforcement fine-tuning, stage 2 of VLN-R1, as a Habitat-Baselines trainer.

`vlnr1_rft` starts from an SFT checkpoint, draws its records at random from exported VLN-Ego (the configured task's is
exported when it is missing), trains with GRPO, draws the curves and evaluates both stages on the same episodes.
"""

from __future__ import annotations

import torch
from habitat_baselines.common.baseline_registry import baseline_registry

from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.prompt import get_template
from habitat_vlnr1.trainers.base import VLNR1Trainer
from habitat_vlnr1.trainers.export import export_split, is_exported


@baseline_registry.register_trainer(name="vlnr1_rft")
class RFTTrainer(VLNR1Trainer):
    """Trains `vlnr1.rft.start` on `vlnr1.rft.records` into Habitat's checkpoint folder, then evaluates."""

    def train(self) -> None:
        from accelerate import PartialState

        from habitat_vlnr1.trainers.fitting import open_records
        from habitat_vlnr1.trainers.rft_fit import check_start, draw_records, fit, rewards, rft_arguments

        # What the config gets wrong is said before any work.
        config, rft = self.config, self.config.vlnr1.rft
        get_template(config.vlnr1.prompt.template)
        make_memory(**config.vlnr1.memory)
        rewards(config)
        rft_arguments(config)
        start = check_start(config)
        state = PartialState(cpu=not torch.cuda.is_available())
        held_out = {config.vlnr1.data.source: rft.held_out.records}
        folders = [*((source, "train") for source in rft.records), (config.vlnr1.data.source, rft.held_out.split)]
        for source, split in folders:
            if state.is_main_process and source == config.vlnr1.data.source and not is_exported(config, split):
                export_split(self, config, split)
        state.wait_for_everyone()
        records = open_records(config, folders)
        *drawn, held = draw_records(records, [*rft.records.items(), *held_out.items()], config.habitat.seed)
        fit(config, start, records, [number for part in drawn for number in part], held)
        if state.is_main_process and rft.evaluate:
            self.eval()
