"""Supervised fine-tuning, stage 1 of VLN-R1, as a Habitat-Baselines trainer.

`vlnr1_sft` exports the training split when it is missing, makes the starting model when the config says so, trains,
and evaluates. Everything it makes is found again by the next start: whole episodes of the export, the starting model,
the newest whole checkpoint, finished evaluation episodes.
"""

from __future__ import annotations

from habitat_vlnr1.config import check_sources
from habitat_vlnr1.optimisation import sft_arguments
from habitat_vlnr1.trainers.base import VLNR1Trainer, only_trainer, register_trainer

SPLIT = "train"


@register_trainer("vlnr1_sft")
class SFTTrainer(VLNR1Trainer):
    """Trains `vlnr1.model` on `vlnr1.data.sources` into Habitat's checkpoint folder, then evaluates."""

    def train(self) -> None:
        if self.config.vlnr1.dry_run:
            from habitat_vlnr1.doctor.planning import print_plan

            print_plan(self.config, "sft")
            return
        # TRL takes seconds to import, and every Habitat run registers this module.
        from habitat_vlnr1.trainers.export import add_questions
        from habitat_vlnr1.trainers.fitting import export_missing, join_processes, leave_processes, open_records
        from habitat_vlnr1.trainers.mixture import open_more
        from habitat_vlnr1.trainers.processes import by_one
        from habitat_vlnr1.trainers.sft_fit import fit, starting_model

        # What the config gets wrong is said before any work.
        sft_arguments(self.config)
        sources, asked = list(self.config.vlnr1.data.sources), list(self.config.vlnr1.data.questions)
        check_sources(self.config, [(source, SPLIT) for source in (*sources, *asked)])
        state = join_processes(self.config)
        with only_trainer(self.config.habitat_baselines.checkpoint_folder, state.is_main_process):
            if self.config.vlnr1.data.source in (*sources, *asked):
                export_missing(self, self.config, [SPLIT])
            if self.config.vlnr1.data.source in asked:
                by_one("adds questions", lambda: add_questions(self.config, SPLIT))
            records = open_records(self.config, [(source, SPLIT) for source in sources])
            more = open_more(self.config)
            fit(self.config, starting_model(self.config, records), records, more=more)
        leave_processes(state)
        if self.config.vlnr1.sft.evaluate:
            self.eval()
