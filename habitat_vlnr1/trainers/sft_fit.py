"""The optimisation of stage 1 (eqs. 7 and 8 of VLN-R1): TRL's SFTTrainer on VLN-Ego records."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl
from datasets import Dataset
from omegaconf import DictConfig, OmegaConf
from transformers import TrainerCallback, TrainerState

from habitat_vlnr1.actions import Action
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.fast_vision import speed_up_vision
from habitat_vlnr1.lvlm.inputs import SFTCollator, answer_loss
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.lvlm.warmup import warm_up
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.policy import action_space, prompt_encoder
from habitat_vlnr1.records import Record, Records, VLNEgo


def training_records(config: DictConfig, split: str) -> Records:
    """A split seen with the configured memory and number of actions; the end of every frame file is looked at."""
    ego = VLNEgo(Path(config.vlnr1.data.root) / split)
    ego.check_frames()
    memory = make_memory(**config.vlnr1.memory)
    return ego.records(memory, config.vlnr1.prompt.num_actions, config.vlnr1.data.label_offset)


def model_card(config: DictConfig, stage: str) -> checkpoint.ModelCard:
    """What stands beside every checkpoint of this run."""
    return checkpoint.ModelCard(
        space=action_space(config),
        num_actions=config.vlnr1.prompt.num_actions,
        template=config.vlnr1.prompt.template,
        memory=OmegaConf.to_container(config.vlnr1.memory, resolve=True),
        max_pixels=config.vlnr1.model.image_size**2,
        info={"stage": stage, "base": str(config.vlnr1.model.path), "data": str(config.vlnr1.data.root)},
    )


def starting_model(config: DictConfig, records: Records) -> str:
    """Folder or hub id that training starts from: `vlnr1.model.path`, or a tiny model, made and warmed up once."""
    if config.vlnr1.model.path is not None:
        return config.vlnr1.model.path
    folder = Path(config.vlnr1.run_dir) / "base"
    if not folder.is_dir():
        make_tiny(config, records, folder)
    return str(folder)


def make_tiny(config: DictConfig, records: Records, folder: Path) -> None:
    """Build the tiny model and show it what things are called, which real weights know from pretraining."""
    build = config.vlnr1.model.build
    episodes = records.ego.episodes
    texts = {episode.instruction for episode in episodes} | {text for e in episodes for text in e.descriptions}
    model, processor = build_tiny(
        texts,
        space=action_space(config),
        size=build.size,
        image_size=config.vlnr1.model.image_size,
        initializer_range=build.initializer_range,
        seed=build.seed,
    )
    speed_up_vision(model)
    use_cores(config)
    if build.warmup is not None:
        warm_up(model, prompt_encoder(config, processor), records, seed=build.seed, **build.warmup)
    checkpoint.save(folder, model, processor, model_card(config, "warm-up"))


def use_cores(config: DictConfig) -> None:
    """On a CPU, train with `vlnr1.model.cpu_threads` threads, or one per core."""
    if not torch.cuda.is_available():
        torch.set_num_threads(config.vlnr1.model.cpu_threads or os.cpu_count() or 1)


def fit(config: DictConfig, start: str, records: Records) -> None:
    """Train from `start`, or go on from the newest checkpoint of the run; nothing to do when that one is the last."""
    last = checkpoint.newest_checkpoint(config.habitat_baselines.checkpoint_folder)
    if last is not None and is_finished(last, config.vlnr1.sft.max_steps):
        print(f"SFT is finished: {last}")
        return
    # The Trainer resumes optimizer, schedule and data order, but not these weights: checkpoints name Qwen2-VL's
    # parameters as released, the model in memory names them otherwise, and unmatched names are only warned about.
    source = last if last is not None and config.vlnr1.model.lora is None else start
    model, processor = checkpoint.load(source, dtype=config.vlnr1.model.dtype)
    speed_up_vision(model)
    use_cores(config)
    if config.vlnr1.model.freeze_vision:
        model.model.visual.requires_grad_(False)
    trainer = AnswerTrainer(
        model=model.train(),
        args=sft_arguments(config),
        data_collator=SFTCollator(prompt_encoder(config, processor), partial(read_row, records)),
        train_dataset=index_dataset(records, config.vlnr1.sft.keep_straight, config.habitat.seed),
        processing_class=processor,
        peft_config=lora(config.vlnr1.model.lora),
        callbacks=[CardCallback(model_card(config, "sft"))],
    )
    print(f"SFT on {len(records)} records from {start}" + (f", going on from {last}" if last else ""))
    trainer.train(resume_from_checkpoint=last)


def is_finished(folder: str, max_steps: int) -> bool:
    """Whether a checkpoint is the last of a run of `max_steps` steps (-1: of as many as it was planned with)."""
    state = TrainerState.load_from_json(str(Path(folder) / "trainer_state.json"))
    return state.global_step >= (max_steps if max_steps > 0 else state.max_steps)


def index_dataset(records: Records, keep_straight: float = 1.0, seed: int = 0) -> Dataset:
    """TRL takes `datasets` only: a row is the index of a record, and the collator makes the record.

    `length` is proportional to the prompt's tokens, for `train_sampling_strategy: group_by_length`.

    Args:
        keep_straight: share of the records with a whole answer of FORWARD that is trained on, drawn at random. An
            expert mostly walks straight on, and turns decide; VLN-CE weights the loss to the same end (inflection
            weighting).
        seed: of that draw.
    """
    chance = np.random.default_rng(seed)
    longest = max(len(episode.actions) for episode in records.ego.episodes)
    frames = [len(records.memory.select(step)) + 1 for step in range(longest)]
    rows: dict[str, list[int]] = {"index": [], "length": []}
    places = ((episode, step) for episode in records.ego.episodes for step in range(len(episode.actions)))
    for index, (episode, step) in enumerate(places):
        future = episode.actions[step : step + records.num_actions]
        if set(future) != {Action.FORWARD} or chance.random() < keep_straight:
            rows["index"].append(index)
            rows["length"].append(len(episode.instruction) // 4 + 12 * frames[step])
    return Dataset.from_dict(rows)


def read_row(records: Records, row: Mapping[str, int]) -> Record:
    return records[row["index"]]


def sft_arguments(config: DictConfig) -> trl.SFTConfig:
    """TRL's arguments from `vlnr1.sft`, with what this project fixes."""
    options = OmegaConf.to_container(config.vlnr1.sft, resolve=True)
    del options["evaluate"], options["keep_straight"]  # ours
    os.environ["TENSORBOARD_LOGGING_DIR"] = config.habitat_baselines.tensorboard_dir
    try:
        return trl.SFTConfig(
            output_dir=config.habitat_baselines.checkpoint_folder,
            seed=config.habitat.seed,
            use_cpu=not torch.cuda.is_available(),
            report_to=["tensorboard"],
            max_length=None,  # cutting a record would cut its answer, silently
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            save_strategy="steps",
            **options,
        )
    except TypeError as error:
        raise ValueError(f"vlnr1.sft: {error}; its keys are those of trl.SFTConfig") from None


def lora(options: DictConfig | None) -> Any:
    """A PEFT LoRA config from `vlnr1.model.lora`, or None for full fine-tuning."""
    if options is None:
        return None
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **OmegaConf.to_container(options, resolve=True))


class AnswerTrainer(trl.SFTTrainer):
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


class CardCallback(TrainerCallback):
    """Puts our card into each checkpoint, last, so that a folder with a card is a whole checkpoint."""

    def __init__(self, card: checkpoint.ModelCard):
        self.card = card

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            checkpoint.write_card(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.card)
