"""What both stages need around TRL's trainers: records, arguments, LoRA, checkpoints that can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback, TrainerState

from habitat_vlnr1.config import action_space, asked_with, records_of
from habitat_vlnr1.files import differences
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.shared_prefix import share_prefixes
from habitat_vlnr1.records import Records, VLNEgo
from habitat_vlnr1.results import folder_fingerprint
from habitat_vlnr1.sim.task_files import task_identity


def open_records(config: DictConfig, folders: Sequence[tuple[str, str]]) -> Records:
    """Exported (source, split)s as one, seen with the configured memory and number of actions; their frames are
    checked, by one process per machine."""
    egos = [VLNEgo(Path(config.vlnr1.data.root) / source / split) for source, split in folders]
    with PartialState().local_main_process_first():
        for ego in egos:
            ego.check_frames()
    return records_of(config, egos)


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


FREE = (
    "evaluate", "start", "max_steps", "num_train_epochs", "save_steps", "save_total_limit", "logging_steps",
    "eval_steps", "disable_tqdm", "dataloader_num_workers", "dataloader_prefetch_factor",
    "per_device_train_batch_size",
    "per_device_eval_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "bf16", "tf32", "deepspeed",
)  # fmt: skip
"""Keys of `vlnr1.sft` and `vlnr1.rft` that a run may go on with changed: how long, how often, on which machine."""


def training_run(config: DictConfig, stage: str, start: str, folders: Sequence[Path] = ()) -> dict[str, Any]:
    """What decides a training, for the card of its checkpoints: settings, data and where it starts from.

    Args:
        stage: `sft`, `rft` or `dagger`.
        start: checkpoint or hub id.
        folders: exported data.
    """
    options = OmegaConf.to_container(config.vlnr1["rft" if stage == "rft" else "sft"], resolve=True)
    per_step = options.get("per_device_train_batch_size", 8) * options.get("gradient_accumulation_steps", 1)
    run = {
        "seed": config.habitat.seed,
        "start": folder_fingerprint(start) or start,
        "lora": OmegaConf.to_container(config.vlnr1.model.lora, resolve=True) if config.vlnr1.model.lora else None,
        "freeze_vision": config.vlnr1.model.freeze_vision,
        "label_offset": config.vlnr1.data.label_offset,
        "rows_per_step": per_step * PartialState().num_processes,
        "data": {f"{folder.parent.name}/{folder.name}": lines_digest(folder) for folder in folders},
        "settings": {key: value for key, value in options.items() if key not in FREE},
    }
    if stage == "rft":
        run["records"] = OmegaConf.to_container(config.vlnr1.data.rft_records, resolve=True)
        if options.get("online"):
            run["settings"]["online"] = {k: v for k, v in options["online"].items() if k != "num_environments"}
            run["task"] = task_identity(config, "train")
    if stage == "dagger":
        walks = OmegaConf.to_container(config.vlnr1.dagger, resolve=True)
        run["dagger"] = {k: v for k, v in walks.items() if k not in ("rounds", "start", "num_environments")}
    return json.loads(json.dumps(run))


def lines_digest(folder: Path) -> str:
    """Of the episodes of an exported folder."""
    digest = sha256()
    for file in sorted(folder.glob("episodes*.jsonl")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def last_checkpoint(folder: str, card: checkpoint.ModelCard) -> str | None:
    """The checkpoint that a training goes on from, or None: the newest whole one, if it is of this training.

    Raises:
        CheckpointError: it is of other data, another model or other settings; or none is whole.
    """
    found = checkpoint.checkpoints_of(folder)
    for path in found:
        problem = checkpoint.training_problem(path)
        if problem:
            print(f"{path} is not whole and is passed over: {problem}")
            continue
        there, now = checkpoint.read_card(path).to_json(), json.loads(json.dumps(card.to_json()))
        if "run" not in there["info"]:
            print(f"{path} says little of what it was trained with (an older version wrote it): its card is compared")
            now["info"].pop("run", None)
        changed = differences(there, now)
        if changed:
            raise checkpoint.CheckpointError(
                f"{path} is of another training ({'; '.join(changed[:5])}): choose another vlnr1.run_dir, or delete "
                f"{folder}"
            )
        return str(path)
    if found:
        raise checkpoint.CheckpointError(f"{folder}: no checkpoint is whole: restore one, or delete all to start over")
    return None


def is_finished(folder: str, max_steps: int) -> bool:
    """Whether a checkpoint is the last of a run of `max_steps` steps (-1: of as many as it was planned with)."""
    state = TrainerState.load_from_json(str(Path(folder) / "trainer_state.json"))
    return state.global_step >= (max_steps if max_steps > 0 else state.max_steps)


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


class CardCallback(TrainerCallback):
    """Puts our card into each checkpoint, last, so that a folder with a card is a whole checkpoint."""

    def __init__(self, card: checkpoint.ModelCard):
        self.card = card

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            checkpoint.write_card(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.card)
