"""The optimisation of stage 1 (eqs. 7 and 8 of VLN-R1): TRL's SFTTrainer on VLN-Ego records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from omegaconf import DictConfig

from habitat_vlnr1.config import action_space, plain, prompt_encoder, trained_card
from habitat_vlnr1.files import differences, full_disk_is_said
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.inputs import SFTCollator, answer_loss
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.lvlm.visual_words import teach_words
from habitat_vlnr1.lvlm.warmup import warm_up
from habitat_vlnr1.optimisation import batch_text, lora, sft_arguments
from habitat_vlnr1.records import Records
from habitat_vlnr1.trainers.base import use_cores
from habitat_vlnr1.trainers.fitting import (
    CardCallback,
    StopsWhenDiverged,
    last_checkpoint,
    load_for_training,
    nothing_left,
    optimise,
    training_run,
)
from habitat_vlnr1.trainers.mixture import Part, mixed, mixed_of
from habitat_vlnr1.trainers.processes import by_one


def starting_model(config: DictConfig, records: Records) -> str:
    """Folder or hub id that training starts from: `vlnr1.model.path` (of a run's folder the newest checkpoint), or a
    tiny model, made and warmed up once, by one process."""
    if config.vlnr1.model.path is not None:
        return checkpoint.resolve(config.vlnr1.model.path)
    folder = Path(config.vlnr1.base_dir)

    def make() -> None:
        with checkpoint.only_maker(folder):
            if not folder.is_dir():
                make_tiny(config, records, folder)

    by_one("makes the starting model", make)
    card = checkpoint.read_card(folder)
    build = plain(config.vlnr1.model.build)
    changed = differences(card.info["build"], build, "vlnr1.model.build") if card and "build" in card.info else []
    if changed:
        raise checkpoint.CheckpointError(
            f"{folder} is another tiny model ({'; '.join(changed)}): choose another vlnr1.base_dir, or delete it"
        )
    return str(folder)


def make_tiny(config: DictConfig, records: Records, folder: Path) -> None:
    """Build the tiny model and show it what things are called, which real weights know from pretraining."""
    build = config.vlnr1.model.build
    episodes = records.episodes
    texts = {episode.instruction for episode in episodes}
    texts |= {line for episode in episodes for text in episode.descriptions for line in text.splitlines()}
    model, processor = build_tiny(
        texts,
        space=action_space(config),
        size=build.size,
        image_size=config.vlnr1.model.image_size,
        initializer_range=build.initializer_range,
        seed=build.seed,
    )
    use_cores(config.vlnr1.model.cpu_threads)
    if build.warmup is not None:
        encoder, captions = prompt_encoder(config, processor), plain(build.warmup)
        words = captions.pop("words")
        if words is not None:
            teach_words(model, encoder, records, seed=build.seed, **words)
        if captions["steps"]:
            warm_up(model, encoder, records, seed=build.seed, **captions)
    made_with = {"build": plain(build)}
    checkpoint.save(folder, model, processor, trained_card(config, "warm-up", **made_with))


def fit(config: DictConfig, start: str, records: Records, stage: str = "sft", more: Sequence[Part] = ()) -> None:
    """Train from `start`, or go on from the newest checkpoint of the run; nothing to do when that one is the last.

    Args:
        more: what is mixed with the records (`mixture.py`).
    """
    run = training_run(config, stage, start, [ego.root for ego in records.sources]) | mixed_of(config, more)
    card = trained_card(config, stage, start, records=records, run=run)
    folder = config.habitat_baselines.checkpoint_folder
    last, finished = last_checkpoint(folder, config.vlnr1.sft, card)
    if finished:
        print(f"SFT is finished: {last}")
        return
    going_on = f", going on from {last}" if last else ""
    beside = "".join(f" and {len(part)} of {part.name}" for part in more)
    print(f"SFT on {len(records)} records{beside} from {start}{going_on}; {batch_text(config, 'sft')}")
    with nothing_left(), full_disk_is_said(folder):
        optimise(make_trainer(config, start, last, records, card, more), last)


def make_trainer(
    config: DictConfig,
    start: str,
    last: str | None,
    records: Records,
    card: checkpoint.ModelCard,
    more: Sequence[Part] = (),
) -> AnswerTrainer:
    """The configured trainer; see `fit`."""
    mixture = mixed(config, records, more)
    model, processor, arguments = load_for_training(config, start, last, sft_arguments)
    return AnswerTrainer(
        model=model,
        args=arguments,
        data_collator=SFTCollator(prompt_encoder(config, processor), mixture.__getitem__),
        train_dataset=Dataset.from_dict(mixture.rows(config.habitat.seed)),
        processing_class=processor,
        peft_config=lora(config),
        callbacks=[CardCallback(card)],
    )


class AnswerTrainer(StopsWhenDiverged, trl.SFTTrainer):
    """TRL's SFTTrainer; on a CPU its loss is computed from the answer's positions alone.

    Without Triton, TRL's fused head works on every position. The loss is the same; a step of the tiny model takes
    three quarters of the time. TRL's token accuracy is logged too, its entropy is not.
    """

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if return_outputs or self.accelerator.device.type != "cpu" or self.accelerator.num_processes > 1:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, hits = answer_loss(model, inputs, with_hits=True)
        self._metrics["train"]["mean_token_accuracy"].append(hits.float().mean().item())
        return loss if num_items_in_batch is None else loss * (len(hits) / num_items_in_batch)
