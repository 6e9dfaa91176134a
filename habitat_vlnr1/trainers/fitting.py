"""What both stages need around TRL's trainers: records, arguments, LoRA, checkpoints that can be resumed."""

from __future__ import annotations

import gc
import itertools
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from habitat_vlnr1.config import action_space, asked_with, export_folder, plain, records_of, trained_card
from habitat_vlnr1.errors import CheckpointError, MissingFileError, VLNR1Error
from habitat_vlnr1.files import differences, read_json
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.shared_prefix import share_prefixes
from habitat_vlnr1.optimisation import NO_MASTERS, accumulation, rft_arguments
from habitat_vlnr1.records import Records, VLNEgo
from habitat_vlnr1.sim.task_files import task_identity
from habitat_vlnr1.trainers.base import use_cores
from habitat_vlnr1.trainers.export import export_if_missing, is_exported
from habitat_vlnr1.trainers.processes import by_one
from habitat_vlnr1.weights import check_whole, folder_fingerprint, is_adapter, not_finite, resume_problem

if TYPE_CHECKING:
    from habitat_vlnr1.trainers.base import VLNR1Trainer


def export_missing(trainer: VLNR1Trainer, config: DictConfig, splits: Sequence[str]) -> None:
    """Export the splits that a training needs, or make sure that what is there is of the configured task.

    An export may take hours and needs no GPU: several processes ask for it instead of letting all but one wait.

    Raises:
        MissingFileError: of several processes, with the command that exports.
        RecordError: what is there is of other episodes.
    """
    missing = [split for split in dict.fromkeys(splits) if not is_exported(config, split)]
    if missing and PartialState().num_processes > 1:
        folders = ", ".join(str(export_folder(config, split)) for split in missing)
        raise MissingFileError(
            f"{folders}: not exported (to its end), and {PartialState().num_processes} processes do not wait for one "
            f"that exports. Run first, alone: {export_command(missing)}"
        )

    def work() -> None:
        for split in dict.fromkeys(splits):
            export_if_missing(trainer, config, split)

    by_one("compares the exported data with the task's files", work)


def export_command(splits: Sequence[str]) -> str:
    """The running command, made to export."""
    chosen = [f"vlnr1.export.splits=[{','.join(splits)}]", "habitat_baselines.trainer_name=vlnr1_export"]
    if not HydraConfig.initialized():
        return f"the same config with {' '.join(chosen)}"
    hydra = HydraConfig.get()
    options = shlex.join([f"--config-name={hydra.job.config_name}", *hydra.overrides.task, *chosen])
    return f"python -m habitat_baselines.run {options}"


def open_records(config: DictConfig, folders: Sequence[tuple[str, str]]) -> Records:
    """Exported (source, split)s as one, seen with the configured memory and number of actions; their frames are
    checked, by one process per machine."""
    egos = [VLNEgo(Path(config.vlnr1.data.root) / source / split) for source, split in folders]

    def work() -> None:
        for ego in egos:
            ego.check_frames()

    by_one("checks the frames", work, on_each_machine=True)
    return records_of(config, egos)


def check_start(config: DictConfig, stage: str = "rft") -> str:
    """The checkpoint that `vlnr1.<stage>` starts from; ValueError where it was trained to be asked otherwise."""
    start = checkpoint.resolve(config.vlnr1[stage].start)
    # A run's folder that is not there must not be taken for the hub id that it may look like.
    missing_run = start.startswith(f"{config.vlnr1.run_dir}/") and not Path(start).is_dir()
    if missing_run or not checkpoint.is_checkpoint(start):
        # Stage 1 may have a run folder of its own.
        run = Path(start).parent if Path(start).name == "checkpoints" else config.vlnr1.run_dir
        raise MissingFileError(
            f"no SFT checkpoint in {start}: run `python -m habitat_baselines.run "
            f"--config-name={config.vlnr1.sft_config} vlnr1.run_dir={run}` first, or name one with "
            f"vlnr1.{stage}.start=<folder or hub id>"
        )
    check_whole(start)
    card = checkpoint.read_card(start)
    checkpoint.check_card(card, action_space(config))
    for difference in checkpoint.differences(card, **asked_with(config)):
        raise VLNR1Error(f"{start}: {difference}: take the same for both stages")
    return start


def join_processes(config: DictConfig) -> PartialState:
    """This process among those that torchrun has started; alone without it."""
    state = PartialState(cpu=not torch.cuda.is_available())
    if config.vlnr1.deepspeed is not None and state.num_processes > 1:
        import deepspeed

        deepspeed.init_distributed()  # ZeRO-3 counts processes while a model loads, before the Trainer tells it
    return state


def leave_processes(state: PartialState) -> None:
    """End the common work; in what follows (evaluation) nobody waits for anybody."""
    if state.num_processes > 1:
        state.wait_for_everyone()
        state.destroy_process_group()


FREE = (
    "evaluate", "start", "max_steps", "num_train_epochs", "save_steps", "save_total_limit", "logging_steps",
    "eval_steps", "disable_tqdm", "dataloader_num_workers", "dataloader_prefetch_factor",
    "per_device_train_batch_size",
    "per_device_eval_batch_size", "gradient_accumulation_steps", "global_batch_size", "gradient_checkpointing", "bf16",
    "tf32", "deepspeed",
)  # fmt: skip
"""Keys of `vlnr1.sft` and `vlnr1.rft` that a run may go on with changed: how long, how often, on which machine."""


def training_run(config: DictConfig, stage: str, start: str, folders: Sequence[Path] = ()) -> dict[str, Any]:
    """What decides a training, for the card of its checkpoints: settings, data and where it starts from.

    Args:
        stage: `sft`, `rft` or `dagger`.
        start: checkpoint or hub id.
        folders: exported data.
    """
    key = "rft" if stage == "rft" else "sft"
    options = plain(config.vlnr1[key])
    count = PartialState().num_processes
    per_step = config.vlnr1[key].per_device_train_batch_size * accumulation(config, key, count)
    run = {
        "seed": config.habitat.seed,
        "start": folder_fingerprint(start) or start,
        "lora": plain(config.vlnr1.model.lora) if config.vlnr1.model.lora else None,
        "freeze_vision": config.vlnr1.model.freeze_vision,
        "label_offset": config.vlnr1.data.label_offset,
        "rows_per_step": per_step * count,
        "data": {f"{folder.parent.name}/{folder.name}": lines_digest(folder) for folder in folders},
        "settings": {key: value for key, value in options.items() if key not in FREE},
    }
    if stage == "rft":
        run["records"] = plain(config.vlnr1.data.rft_records)
        if config.vlnr1.data.rft_questions:
            run |= {"records": plain(config.vlnr1.data.rft_questions), "answers": True}
        if options.get("online"):
            run["settings"]["online"] = {k: v for k, v in options["online"].items() if k != "num_environments"}
            run["task"] = task_identity(config, "train")
    if stage == "dagger":
        walks = plain(config.vlnr1.dagger)
        run["dagger"] = {k: v for k, v in walks.items() if k not in ("rounds", "start", "num_environments")}
    return json.loads(json.dumps(run))


def lines_digest(folder: Path) -> str:
    """Of the episodes of an exported folder."""
    digest = sha256()
    for file in sorted(folder.glob("episodes*.jsonl")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def last_checkpoint(
    folder: str | Path, options: Mapping[str, Any], card: checkpoint.ModelCard | None = None
) -> tuple[str | None, bool]:
    """The checkpoint that a run goes on from, and whether that is its last; (None, False) where there is none yet.

    A newer one that is broken (a full disk, a loss of power, a copy that was stopped) is set aside, with a line.

    Args:
        options: `vlnr1.sft` or `vlnr1.rft`, whose `max_steps` (-1: `num_train_epochs`) says where a run ends.
        card: of the checkpoints that this training would write; None: not compared.

    Raises:
        CheckpointError: none of them is whole, or it is of another training.
    """
    path, finished = by_one("looks at the checkpoints", lambda: _last_checkpoint(folder, options, card))
    return path, finished


def _last_checkpoint(
    folder: str | Path, options: Mapping[str, Any], card: checkpoint.ModelCard | None
) -> tuple[str | None, bool]:
    broken: dict[str, str] = {}
    for path in checkpoint.checkpoints(folder):
        try:
            finished = _is_finished(Path(path), options)
        except CheckpointError as problem:
            broken[path] = str(problem)
            continue
        for other, why in broken.items():
            print(f"{why}. Going on from {path}; the broken one is now {_set_aside(Path(other))}")
        if card is not None:
            _check_same_training(Path(path), card)
        return path, finished
    if broken:
        newest = next(iter(broken.values()))
        raise CheckpointError(f"{newest}. No older one is whole: delete them to start over")
    return None, False


def _is_finished(folder: Path, options: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is the run's last; CheckpointError where training cannot go on from it."""
    checkpoint.read_card(folder)
    state = read_json(folder / "trainer_state.json", f"restore the file or delete {folder}", CheckpointError)
    for key in ("global_step", "epoch"):
        if isinstance(state.get(key), bool) or not isinstance(state.get(key), int | float):
            raise CheckpointError(f"{folder / 'trainer_state.json'}: no {key}")
    check_whole(folder)
    # The steps that were planned (the file's max_steps) are those of the epochs of then.
    done, wanted = ("global_step", "max_steps") if options["max_steps"] > 0 else ("epoch", "num_train_epochs")
    finished = state[done] >= options[wanted]
    problem = None if finished else resume_problem(folder)
    if problem:
        raise CheckpointError(f"{folder}: {problem}")
    return finished


def _set_aside(folder: Path) -> Path:
    """Rename a folder so that nothing takes it for a checkpoint."""
    names = (folder.with_name(f"broken-{folder.name}{'-again' * count}") for count in itertools.count())
    return folder.rename(next(name for name in names if not name.exists()))


def _check_same_training(folder: Path, card: checkpoint.ModelCard) -> None:
    """CheckpointError when a checkpoint is of other data, another model or other settings than `card` tells."""
    written = checkpoint.read_card(folder)
    assert written is not None, "a folder without a card is not among `checkpoints`"
    there, now = written.to_json(), json.loads(json.dumps(card.to_json()))
    if "run" not in there["info"]:
        print(f"{folder} says little of what it was trained with (an older version wrote it): its card is compared")
        now["info"].pop("run", None)
    for one in (there, now):
        one["info"].pop("start", None)  # where it lay; its weights are compared
    if written.jpeg_quality is None:  # a card of an older version does not say
        now["jpeg_quality"] = None
    changed = differences(there, now)
    if changed:
        raise CheckpointError(
            f"{folder} is of another training ({'; '.join(changed[:5])}): choose another vlnr1.run_dir, or delete "
            f"{folder.parent}"
        )


def load_for_training(
    config: DictConfig, start: str, last: str | None, make_arguments: Callable[[DictConfig], Any]
) -> tuple[PreTrainedModel, ProcessorMixin, Any]:
    """The model that training goes on with, its processor, and TRL's arguments. The model is that of the run's last
    checkpoint, or the one that it starts from.

    The Trainer resumes optimizer, schedule and data order, but not these weights: checkpoints name Qwen2-VL's
    parameters as released, the model in memory names them otherwise, and unmatched names are only warned about. An
    adapter's weights it does resume, on top of the starting model.

    With ZeRO-3 each process holds its part alone, from the first byte: while the arguments live, Transformers parts
    what it loads.
    """
    source = last if last is not None and config.vlnr1.model.lora is None else start
    parted = is_zero3(config) and PartialState().num_processes > 1
    loaded = whole_model(config, source) if parted else source
    arguments = make_arguments(config) if parted else None
    ours = config.vlnr1.model
    model, processor = checkpoint.load(loaded, dtype=ours.dtype, attn_implementation=ours.attn_implementation)
    model.name_or_path = source
    share_prefixes(model)
    use_cores(ours.cpu_threads)
    if ours.freeze_vision:
        model.model.visual.requires_grad_(False)
    arguments = arguments or make_arguments(config)
    if ours.lora is None and model.dtype != torch.float32 and not (arguments.deepspeed and arguments.bf16):
        stage = "rft" if make_arguments is rft_arguments else "sft"
        raise VLNR1Error(f"{start}: {NO_MASTERS.format(dtype=model.dtype, stage=stage)}")
    return model.train(), processor, arguments


def is_zero3(config: DictConfig) -> bool:
    """Whether weights are parted among processes."""
    return config.vlnr1.deepspeed is not None and config.vlnr1.deepspeed.zero_optimization.stage == 3


def whole_model(config: DictConfig, start: str) -> str:
    """The start as a folder that anything loads: itself, or, of an adapter, `reference` beside the checkpoints with
    everything merged, made on first use.
    """
    if not is_adapter(start):
        return start
    folder = Path(config.habitat_baselines.checkpoint_folder).parent / "reference"

    def merge() -> None:
        with checkpoint.only_maker(folder):
            card = checkpoint.read_card(folder)
            if card is None or card.info["start"]["weights"] != folder_fingerprint(start):
                model, processor = checkpoint.load(start, dtype=config.vlnr1.model.dtype)
                checkpoint.save(folder, model, processor, trained_card(config, "reference", start, folder))

    by_one(f"merges {start}", merge)
    return str(folder)


def optimise(trainer: Any, last: str | None) -> list[dict[str, float]]:
    """Train, from the run's newest checkpoint on where there is one; returns what was logged."""
    trainer.train(resume_from_checkpoint=last)
    trainer.accelerator.free_memory()  # DeepSpeed's engine has hooks on the model
    return trainer.state.log_history


@contextmanager
def nothing_left() -> Iterator[None]:
    """What a training in here has set up is gone afterwards: its model, and ZeRO-3's word to Transformers to part
    whatever is loaded among all processes. Keep no trainer beyond it.
    """
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        AcceleratorState._reset_state()  # it keeps DeepSpeed's settings, and so the arguments of this training
        if "deepspeed.runtime.zero.parameter_offload" in sys.modules:
            sys.modules["deepspeed.runtime.zero.parameter_offload"].FWD_MODULE_STACK.clear()  # it keeps every model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class StopsWhenDiverged:
    """Goes before a Trainer: the first loss or gradient norm that is NaN or infinite ends training with an error.

    Both are known before the optimizer's step, except with DeepSpeed, which steps in its backward pass; nothing is
    saved after that either. In fp16 a gradient may overflow, and the loss scaler leaves that step out: the loss alone
    counts.
    """

    def _get_grad_norm(self: Any, model: Any, grad_norm: Any = None) -> Any:
        trainer: Any = super()
        grad_norm = trainer._get_grad_norm(model, grad_norm=grad_norm)
        norm = torch.as_tensor(0.0 if self.args.fp16 or grad_norm is None else grad_norm)
        if not torch.isfinite(norm.to(self._tr_loss.device) + self._tr_loss):  # waits for the device, as Trainer did
            step = self.state.global_step + 1
            loss = self._tr_loss.item() / (step - self._globalstep_last_logged)
            numbers = f"step {step}: loss {loss:g}, gradient norm {norm.item():g}"
            raise diverged(self.args.output_dir, numbers, self.model)
        return grad_norm


def diverged(folder: str, what: str, model: Any) -> CheckpointError:
    """The error that ends a run whose numbers are no longer finite."""
    bad = not_finite(model.named_parameters())
    why = f" ({checkpoint.why_not_finite(model)})" if bad else ""
    return CheckpointError(
        f"{what}: training has diverged and stops{why}; {last_good(folder)}. A lower learning_rate or max_grad_norm, "
        "or a longer warmup may help"
    )


def last_good(folder: str) -> str:
    """Which checkpoint a run that ends with an error has left."""
    last = checkpoint.newest_checkpoint(folder)
    return f"the last good checkpoint is {last}" if last else "no checkpoint has been saved"


class CardCallback(TrainerCallback):
    """Puts our card into each checkpoint, last, so that a folder with a card is a whole checkpoint.

    Weights that are not finite are not saved: they would take the place of an older, good checkpoint.
    """

    def __init__(self, card: checkpoint.ModelCard):
        self.card = card

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if control.should_save and not_finite(model.named_parameters()):
            raise diverged(args.output_dir, f"step {state.global_step}: weights are not finite", model)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            checkpoint.write_card(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.card)
