"""What both stages need around TRL's trainers: records, arguments, LoRA, checkpoints that can be resumed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback, TrainerState, TrainingArguments

from habitat_vlnr1.actions import Action
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.shared_prefix import share_prefixes
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.policy import action_space, asked_with
from habitat_vlnr1.records import Episode, Records, VLNEgo

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def open_records(config: DictConfig, folders: Sequence[tuple[str, str]]) -> Records:
    """Exported (source, split)s as one, seen with the configured memory and number of actions; their frames are
    checked, by one process per machine."""
    egos = [VLNEgo(Path(config.vlnr1.data.root) / source / split) for source, split in folders]
    with PartialState().local_main_process_first():
        for ego in egos:
            ego.check_frames()
    memory = make_memory(**config.vlnr1.memory)
    return Records(egos, memory, config.vlnr1.prompt.num_actions, config.vlnr1.data.label_offset)


def keep_some(num_actions: int, keep_straight: float, seed: int) -> Callable[[Episode, int], bool]:
    """Which steps of an episode are trained on (for `Records.rows`).

    An expert mostly walks straight on, and turns and stops decide; VLN-CE weights the loss to the same end
    (inflection weighting). In GRPO it matters as much: rewarded for what is recorded, a model that is in doubt learns
    to go on, and misses its stop.

    Args:
        keep_straight: share of the records with a whole answer of FORWARD that is kept, drawn at random.
        seed: of that draw.
    """
    chance = np.random.default_rng(seed)

    def keep(episode: Episode, step: int) -> bool:
        future = (episode.labels[step] if episode.labels else episode.actions[step:])[:num_actions]
        return set(future) != {Action.FORWARD} or chance.random() < keep_straight

    return keep


def check_start(config: DictConfig, stage: str = "rft") -> str:
    """The checkpoint that `vlnr1.<stage>` starts from; ValueError where it was trained to be asked otherwise."""
    start = checkpoint.resolve(config.vlnr1[stage].start)
    # A run's folder that is not there must not be taken for the hub id that it may look like.
    missing_run = start.startswith(f"{config.vlnr1.run_dir}/") and not Path(start).is_dir()
    if missing_run or not checkpoint.is_checkpoint(start):
        raise FileNotFoundError(
            f"no SFT checkpoint in {start}: run `python -m habitat_baselines.run "
            f"--config-name={config.vlnr1.sft_config} vlnr1.run_dir={config.vlnr1.run_dir}` first, or name one with "
            f"vlnr1.{stage}.start=<folder or hub id>"
        )
    card = checkpoint.read_card(start)
    checkpoint.check_card(card, action_space(config))
    for difference in checkpoint.differences(card, **asked_with(config)):
        raise ValueError(f"{start}: {difference}: take the same for both stages")
    return start


def model_card(config: DictConfig, stage: str) -> checkpoint.ModelCard:
    """What stands beside every checkpoint of this run."""
    info = {"stage": stage, "base": str(config.vlnr1.model.path), "data": list(config.vlnr1.data.sources)}
    return checkpoint.ModelCard(space=action_space(config), **asked_with(config), info=info)


def join_processes(config: DictConfig) -> PartialState:
    """This process among those that torchrun has started; alone without it."""
    state = PartialState(cpu=not torch.cuda.is_available())
    if config.vlnr1.deepspeed is not None and state.num_processes > 1:
        import deepspeed

        deepspeed.init_distributed()  # ZeRO-3 counts processes while a model loads, before the Trainer tells it
    return state


def leave_processes(state: PartialState) -> None:
    """End the common work; what follows (evaluation) is the main process's alone, and may take long."""
    if state.num_processes > 1:
        state.wait_for_everyone()
        state.destroy_process_group()


def use_cores(config: DictConfig) -> None:
    """On a CPU, train with `vlnr1.model.cpu_threads` threads, or one per core."""
    if not torch.cuda.is_available():
        torch.set_num_threads(config.vlnr1.model.cpu_threads or os.cpu_count() or 1)


def is_finished(folder: str, max_steps: int) -> bool:
    """Whether a checkpoint is the last of a run of `max_steps` steps (-1: of as many as it was planned with)."""
    state = TrainerState.load_from_json(str(Path(folder) / "trainer_state.json"))
    return state.global_step >= (max_steps if max_steps > 0 else state.max_steps)


def arguments(config: DictConfig, kind: type[Arguments], stage: str, ours: Sequence[str], **fixed: Any) -> Arguments:
    """TRL's arguments from `vlnr1.<stage>`, with what this project fixes.

    Args:
        kind: `trl.SFTConfig` or `trl.GRPOConfig`.
        ours: keys of `vlnr1.<stage>` that are not TRL's.
        fixed: more of TRL's arguments.

    Raises:
        ValueError: an argument that TRL does not have, or a combination that it refuses.
    """
    options = OmegaConf.to_container(config.vlnr1[stage], resolve=True)
    for key in ours:
        options.pop(key, None)
    os.environ["TENSORBOARD_LOGGING_DIR"] = config.habitat_baselines.tensorboard_dir
    try:
        return kind(
            output_dir=config.habitat_baselines.checkpoint_folder,
            seed=config.habitat.seed,
            use_cpu=not torch.cuda.is_available(),
            report_to=["tensorboard"],
            remove_unused_columns=False,
            save_strategy="steps",
            **fixed,
            **options,
        )
    except TypeError as error:
        raise ValueError(f"vlnr1.{stage}: {error}; its keys are those of trl.{kind.__name__}") from None
    except ValueError as error:
        raise ValueError(f"vlnr1.{stage}: {error}") from None


def load_for_training(config: DictConfig, start: str, last: str | None) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model that training goes on with: the run's last checkpoint, or the one that it starts from.

    The Trainer resumes optimizer, schedule and data order, but not these weights: checkpoints name Qwen2-VL's
    parameters as released, the model in memory names them otherwise, and unmatched names are only warned about. An
    adapter's weights it does resume, on top of the starting model.
    """
    source = last if last is not None and config.vlnr1.model.lora is None else start
    model, processor = checkpoint.load(source, dtype=config.vlnr1.model.dtype)
    share_prefixes(model)
    use_cores(config)
    if config.vlnr1.model.freeze_vision:
        model.model.visual.requires_grad_(False)
    return model.train(), processor


def lora(options: DictConfig | None) -> Any:
    """A PEFT LoRA config from `vlnr1.model.lora`, or None for full fine-tuning."""
    if options is None:
        return None
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **OmegaConf.to_container(options, resolve=True))


class CardCallback(TrainerCallback):
    """Puts our card into each checkpoint, last, so that a folder with a card is a whole checkpoint."""

    def __init__(self, card: checkpoint.ModelCard):
        self.card = card

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            checkpoint.write_card(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.card)
