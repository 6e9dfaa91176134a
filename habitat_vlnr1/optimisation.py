"""Where `vlnr1.sft` and `vlnr1.rft` become what is optimised: TRL's arguments, rewards, LoRA, the batch of a step."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.config import plain, processes
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.rewards import make_reward

if TYPE_CHECKING:
    import trl
    from transformers import TrainingArguments

    Arguments = TypeVar("Arguments", bound=TrainingArguments)

SFT_KEYS = ("evaluate", "global_batch_size", "keep_straight", "mirror", "steps_per_row")
"""Keys of `vlnr1.sft` that are not TRL's."""
RFT_KEYS = (
    *("start", "held_out", "rewards", "rollout", "train_forced", "online", "keep_straight", "evaluate"),
    "global_batch_size",
)
"""Keys of `vlnr1.rft` that are not TRL's."""
FIXED = {
    "output_dir": "take habitat_baselines.checkpoint_folder",
    "seed": "take habitat.seed",
    "use_cpu": "a GPU is used where there is one; hide it with CUDA_VISIBLE_DEVICES=",
    "logging_dir": "take habitat_baselines.tensorboard_dir",
    "remove_unused_columns": "the collator needs all columns",
    "save_strategy": "checkpoints are saved every save_steps steps",
    "logging_nan_inf_filter": "a loss that is not finite ends training",
    "resume_from_checkpoint": "a run goes on from its newest checkpoint by itself, another vlnr1.run_dir starts anew",
    "reward_weights": "each of vlnr1.rft.rewards has its weight",
    "model_init_kwargs": "vlnr1.model has what is loaded",
}
"""TRL's arguments that are decided elsewhere."""
NO_MASTERS = (
    "{dtype} weights would be trained in place, and a step below 1/256 of a weight is rounded away: take "
    "vlnr1/deepspeed=zero2 or zero3 with vlnr1.{stage}.bf16=true, which keep float32 masters (torchrun, one GPU is "
    "enough), or vlnr1.model.dtype=float32, or vlnr1.model.lora"
)
ROLLOUTS = ("grammar", "trl")
TRL_KEYWORDS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What TRL calls every reward with."""
RECORD_COLUMNS = ("actions",)
"""… and what it adds: recorded actions …"""
QUESTION_COLUMNS = ("answers",)
"""… or all right answers to a question …"""
HEADWAY = "headway"
HEADWAY_COLUMNS = (HEADWAY, "split", "episode_id", "taken")
"""… and, where a reward asks for it, how far each action of the answer leads on (`sim.headway`), with the episode and
what was done in it before; …"""
WALK_COLUMNS = ("scene_id", "episode_id", "start_distance", "success", "spl", "ndtw", "distance_to_goal")
"""… or of a walk its episode and measures."""


def reward_functions(config: DictConfig) -> list[Callable[..., list[float]]]:
    """The functions of `vlnr1.rft.rewards`, a list of {name, weight, and the function's own parameters}.

    Raises:
        ValueError: none is named, one is unknown or has no such parameter, or the rollout is unknown.
    """
    if config.vlnr1.rft.rollout not in ROLLOUTS:
        raise VLNR1Error(
            f"unknown vlnr1.rft.rollout {config.vlnr1.rft.rollout!r}; choose one of {', '.join(ROLLOUTS)}"
        )
    if not config.vlnr1.rft.rewards:
        raise VLNR1Error("vlnr1.rft.rewards is empty: name at least one, such as {name: time_decayed, weight: 1}")
    rows = [plain(reward) for reward in config.vlnr1.rft.rewards]
    functions = [make_reward(**{key: value for key, value in row.items() if key != "weight"}) for row in rows]
    columns: tuple[str, ...] = WALK_COLUMNS if config.vlnr1.rft.online is not None else RECORD_COLUMNS
    if config.vlnr1.rft.online is None and asks_for_headway(functions):
        columns += HEADWAY_COLUMNS
    if config.vlnr1.data.rft_questions:
        columns = QUESTION_COLUMNS
        if config.vlnr1.rft.online is not None or config.vlnr1.rft.rollout != "trl":
            raise VLNR1Error(
                "vlnr1.data.rft_questions: answers are free text, which TRL's own generation gives: set "
                "vlnr1.rft.rollout=trl and vlnr1.rft.online=null"
            )
    for row, function in zip(rows, functions, strict=True):
        _check_call(f"vlnr1.rft.rewards: {row['name']}", function, columns)
    return functions


def asks_for_headway(rewards: Sequence[Callable[..., Any]]) -> bool:
    """Whether a reward names the column `headway`."""
    return any(HEADWAY in _parameters(reward) for reward in rewards)


def _parameters(reward: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(reward).parameters
    except (TypeError, ValueError):  # some callables written in C do not say
        return {}


def _check_call(place: str, function: Callable[..., Any], columns: Sequence[str]) -> None:
    """ValueError where a reward cannot be called as TRL does: all by keyword, with the data set's columns."""
    parameters = _parameters(function).values()
    if not parameters:
        return
    given = {*TRL_KEYWORDS, *columns}
    known = {parameter.name for parameter in parameters if parameter.kind != parameter.POSITIONAL_ONLY}
    missing = [p.name for p in parameters if p.default is p.empty and p.kind in (0, 1, 3) and p.name not in given]
    missing = [name for name in missing if name not in getattr(function, "keywords", {})]
    if missing:
        raise VLNR1Error(f"{place} asks for {missing[0]!r}; there are {', '.join(sorted(given))}")
    if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters) and given - known:
        rest = ", ".join(sorted(given - known))
        raise VLNR1Error(f"{place} does not take all that TRL gives ({rest}): add **kwargs")


def sft_arguments(config: DictConfig) -> trl.SFTConfig:
    """TRL's arguments from `vlnr1.sft`."""
    import trl

    return _arguments(
        config,
        trl.SFTConfig,
        "sft",
        SFT_KEYS,
        max_length=None,  # cutting a record would cut its answer, silently
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def rft_arguments(config: DictConfig) -> trl.GRPOConfig:
    """TRL's arguments from `vlnr1.rft`."""
    import trl

    drawn = config.vlnr1.data.rft_records
    if not OmegaConf.is_dict(drawn):
        raise VLNR1Error(f"vlnr1.data.rft_records is {drawn}: name the sources, such as {{embedded: 4000}}")
    rft = config.vlnr1.rft
    if rft.get("ds3_gather_for_generation") is False and (rft.online is not None or rft.rollout == "grammar"):
        raise VLNR1Error(
            "vlnr1.rft.ds3_gather_for_generation=false: the processes' rollouts take different numbers of forward "
            "passes, and would wait for each other for ever: leave the key out, or take vlnr1.rft.rollout=trl"
        )
    weights = [float(reward.weight) for reward in rft.rewards]
    return _arguments(config, trl.GRPOConfig, "rft", RFT_KEYS, reward_weights=weights)


def accumulation(config: DictConfig, stage: str, devices: int) -> int:
    """Micro-batches of an optimizer step of `vlnr1.<stage>`: as many as make `global_batch_size` rows on so many
    devices, or, where that is null, `gradient_accumulation_steps`.

    Raises:
        ValueError: they do not make it, or both keys are null, or do not agree.
    """
    options = config.vlnr1[stage]
    rows, given, wanted = (
        options[key] for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "global_batch_size")
    )
    if wanted is None:
        if given is None:
            raise VLNR1Error(f"vlnr1.{stage}: gradient_accumulation_steps and global_batch_size are null: give one")
        return given
    if wanted % (rows * devices) or given not in (None, wanted // (rows * devices)):
        accumulated = "" if given is None else f" × {given} accumulated"
        raise VLNR1Error(
            f"vlnr1.{stage}.global_batch_size is {wanted}, but {rows} rows per device{accumulated} × {devices} "
            "processes do not make it: take another number of processes or per_device_train_batch_size, leave "
            "gradient_accumulation_steps null, or say with global_batch_size how many rows a step shall have"
        )
    return wanted // (rows * devices)


def batch_text(config: DictConfig, stage: str) -> str:
    """`'64 rows a step: 2 × 4 accumulated × 8 processes'`."""
    parts = config.vlnr1[stage].per_device_train_batch_size, accumulation(config, stage, processes()), processes()
    return f"{math.prod(parts)} rows a step: {parts[0]} × {parts[1]} accumulated × {parts[2]} processes"


def _arguments(config: DictConfig, kind: type[Arguments], stage: str, ours: Sequence[str], **fixed: Any) -> Arguments:
    """TRL's arguments from `vlnr1.<stage>`, with what this project fixes.

    Args:
        kind: `trl.SFTConfig` or `trl.GRPOConfig`.
        ours: keys of `vlnr1.<stage>` that are not TRL's.
        fixed: more of TRL's arguments.

    Raises:
        ValueError: an argument that TRL does not have, or a combination that it refuses.
    """
    import torch

    options: Any = plain(config.vlnr1[stage])
    for key in ours:
        options.pop(key, None)
    for key in options:
        if key in FIXED or key in fixed:
            raise VLNR1Error(f"vlnr1.{stage}.{key} cannot be set: {FIXED.get(key, 'it is fixed here')}")
    options["gradient_accumulation_steps"] = accumulation(config, stage, processes())
    adapter, half = lora(config), config.vlnr1.model.dtype in ("bfloat16", "float16")
    if half and adapter is None and not (options.get("deepspeed") and options.get("bf16")):
        raise VLNR1Error(f"vlnr1.model.dtype: {NO_MASTERS.format(dtype=config.vlnr1.model.dtype, stage=stage)}")
    os.environ["TENSORBOARD_LOGGING_DIR"] = config.habitat_baselines.tensorboard_dir
    try:
        return kind(
            output_dir=config.habitat_baselines.checkpoint_folder,
            seed=config.habitat.seed,
            use_cpu=not torch.cuda.is_available(),
            report_to=trackers(stage, options.pop("report_to", "tensorboard")),
            remove_unused_columns=False,
            save_strategy="steps",
            logging_nan_inf_filter=False,  # it would log a loss of 0 for NaN
            **fixed,
            **options,
        )
    except TypeError as error:
        raise VLNR1Error(f"vlnr1.{stage}: {error}; its keys are those of trl.{kind.__name__}") from None
    except ValueError as error:
        raise VLNR1Error(f"vlnr1.{stage}: {error}") from None


def trackers(stage: str, names: Any) -> list[str]:
    """Where the curves of a training go, as Transformers takes it: names of trackers, `all` or `none`.

    Raises:
        ValueError: there is no such tracker, or it is not installed.
    """
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names:
        raise VLNR1Error(f"vlnr1.{stage}.report_to is {names!r}: give a tracker's name, a list of them, all or none")
    for name in names:
        if name in ("all", "none"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise VLNR1Error(f"vlnr1.{stage}.report_to: there is no tracker {name!r}; choose among {known}, all, none")
        if name not in get_available_reporting_integrations():
            raise VLNR1Error(f"vlnr1.{stage}.report_to: {name} is not installed: pip install {name}")
    return names


def lora(config: DictConfig) -> Any:
    """A PEFT LoRA config from `vlnr1.model.lora`, or None for full fine-tuning; ValueError where PEFT refuses it."""
    options = config.vlnr1.model.lora
    if options is None:
        return None
    from peft import LoraConfig

    try:
        return LoraConfig(task_type="CAUSAL_LM", **plain(options))
    except (TypeError, ValueError) as error:
        raise VLNR1Error(f"vlnr1.model.lora: {error}; its keys are those of peft.LoraConfig") from None
