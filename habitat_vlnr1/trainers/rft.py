"""Reinforcement fine-tuning, stage 2 of VLN-R1, as a Habitat-Baselines trainer.

`vlnr1_rft` starts from an SFT checkpoint, draws its records at random from exported VLN-Ego (the configured task's is
exported when it is missing), trains with GRPO, draws the curves and evaluates both stages on the same episodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from habitat_baselines.common.obs_transformers import get_active_obs_transforms

from habitat_vlnr1.config import check_sources, edited
from habitat_vlnr1.optimisation import asks_for_headway, reward_functions, rft_arguments
from habitat_vlnr1.results import LeftOut, left_out_text, print_left_out
from habitat_vlnr1.sim.env_factory import open_dataset
from habitat_vlnr1.trainers.base import VLNR1Trainer, exit_if_left_out, on_own_gpu, only_trainer, register_trainer

if TYPE_CHECKING:  # TRL takes seconds to import, and every Habitat run registers this module.
    from habitat_vlnr1.trainers.rft_fit import Asked, Online, Recorded


@register_trainer("vlnr1_rft")
class RFTTrainer(VLNR1Trainer):
    """Trains `vlnr1.rft.start` on `vlnr1.data.rft_records` into Habitat's checkpoint folder, then evaluates."""

    def train(self) -> None:
        if self.config.vlnr1.dry_run:
            from habitat_vlnr1.doctor.planning import print_plan

            print_plan(self.config, "rft")
            return
        from habitat_vlnr1.trainers.fitting import check_start, join_processes, leave_processes
        from habitat_vlnr1.trainers.rft_fit import fit

        # What the config gets wrong is said before any work.
        config = self.config
        reward_functions(config)
        rft_arguments(config)
        start = check_start(config, "rft")
        if config.vlnr1.rft.online is None:
            check_sources(config, self._folders())
        state = join_processes(config)
        left_out: list[LeftOut] = []
        with only_trainer(config.habitat_baselines.checkpoint_folder, state.is_main_process):
            if config.vlnr1.rft.online is None:
                fit(config, start, self._asked() if config.vlnr1.data.rft_questions else self._recorded())
            else:
                task = self._online()
                try:
                    fit(config, start, task)
                finally:
                    self.envs.close()
                walked = (LeftOut(name, scene, why) for (scene, name), why in task.walkers.left_out.items())
                left_out = [*self.envs.left_out, *walked]
                print_left_out(left_out_text(left_out), "training")
        leave_processes(state)
        if config.vlnr1.rft.evaluate:
            self.eval()
        if state.num_processes == 1:  # of several, one that ends with a status of its own ends the others' evaluation
            exit_if_left_out(left_out)

    def _recorded(self) -> Recorded:
        """Records drawn from each source, after the export of what is missing."""
        from habitat_vlnr1.sim.headway import Headway
        from habitat_vlnr1.trainers.fitting import export_missing, open_records
        from habitat_vlnr1.trainers.rft_fit import Recorded, draw_records

        config, rft = self.config, self.config.vlnr1.rft
        own, folders = config.vlnr1.data.source, self._folders()
        export_missing(self, config, [split for source, split in folders if source == own])
        records = open_records(config, folders)
        wanted = [*config.vlnr1.data.rft_records.items(), (own, rft.held_out.records)]
        *train, held_out = draw_records(records, wanted, rft.keep_straight, config.habitat.seed)
        headway = Headway(config, records.sources) if asks_for_headway(reward_functions(config)) else None
        return Recorded(records, [number for part in train for number in part], held_out, headway)

    def _folders(self) -> list[tuple[str, str]]:
        """(source, split)s: what is trained on, and last what the reward is measured on."""
        data, held_out = self.config.vlnr1.data, self.config.vlnr1.rft.held_out
        trained = data.rft_questions or data.rft_records
        return [*((source, "train") for source in trained), (data.source, held_out.split)]

    def _asked(self) -> Asked:
        """Questions drawn from each source, after the export of what is missing, under the configured memories."""
        from habitat_vlnr1.config import memory_of, question_memories
        from habitat_vlnr1.questions import QuestionRecords, read_questions
        from habitat_vlnr1.trainers.export import add_questions
        from habitat_vlnr1.trainers.fitting import export_missing, open_records
        from habitat_vlnr1.trainers.processes import by_one
        from habitat_vlnr1.trainers.rft_fit import Asked, draw_questions

        config, folders = self.config, self._folders()
        own = [split for source, split in folders if source == config.vlnr1.data.source]
        export_missing(self, config, own)

        def add() -> None:
            for split in dict.fromkeys(own):
                add_questions(config, split)

        by_one("adds questions", add)
        records = open_records(config, folders)  # their frames are checked
        counts = [*config.vlnr1.data.rft_questions.values(), config.vlnr1.rft.held_out.records]
        parts = []
        memories = list(question_memories(config).values()) or [memory_of(config)]
        for ego, (source, _), count in zip(records.sources, folders, counts, strict=True):
            questions, left_out = read_questions(ego)
            print_left_out(left_out)
            parts.append((source, [QuestionRecords(ego, questions, memory) for memory in memories], count))
        *train, held_out = draw_questions(parts, config.habitat.seed)
        roots = [ego.root for ego in records.sources]
        return Asked([record for part in train for record in part], held_out, roots)

    def _online(self) -> Online:
        """Episodes of the training split in environments of this process."""
        from habitat_vlnr1.trainers.online import Walkers
        from habitat_vlnr1.trainers.rft_fit import Online, rows_for_walks

        online = self.config.vlnr1.rft.online
        config = edited(
            on_own_gpu(self.config),
            **{
                "habitat.dataset.split": "train",
                "habitat_baselines.num_environments": online.num_environments,
                "habitat_baselines.vector_env_factory.share_episodes": True,
                "habitat.environment.iterator_options.shuffle": False,
            },
        )
        rows = rows_for_walks(open_dataset(config.habitat).episodes, online.episodes, config.habitat.seed)
        self._init_envs(config, is_eval=False)
        transforms = get_active_obs_transforms(config)
        max_steps = config.habitat.environment.max_episode_steps
        walkers = Walkers(self.envs, transforms, config.vlnr1.decoding.execute_horizon, max_steps)
        return Online(rows, walkers)
