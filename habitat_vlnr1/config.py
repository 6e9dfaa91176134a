"""Where the config's `vlnr1.*` keys become objects.

Training, evaluation, export and the doctor all call these, so that what is trained is what is asked. Torch,
Transformers, TRL and Habitat are imported when a function needs them: every Habitat run registers the rooms above, and
these packages take seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.memory import Memory, make_memory
from habitat_vlnr1.prompt import PromptTemplate, get_template
from habitat_vlnr1.records import Records, VLNEgo
from habitat_vlnr1.rewards import make_reward

if TYPE_CHECKING:
    import trl
    from gym import spaces
    from habitat_baselines.rl.ppo.policy import Policy
    from transformers import ProcessorMixin, TrainingArguments

    from habitat_vlnr1.lvlm.checkpoint import ModelCard
    from habitat_vlnr1.lvlm.decoding import ActionDecoder
    from habitat_vlnr1.lvlm.inputs import PromptEncoder

    Arguments = TypeVar("Arguments", bound=TrainingArguments)

SFT_KEYS = ("evaluate", "keep_straight", "steps_per_row")
"""Keys of `vlnr1.sft` that are not TRL's."""
RFT_KEYS = ("start", "held_out", "rewards", "rollout", "train_forced", "online", "keep_straight", "evaluate")
"""Keys of `vlnr1.rft` that are not TRL's."""
ROLLOUTS = ("grammar", "trl")


def edited(config: DictConfig, **changes: object) -> DictConfig:
    """A copy of the config with dotted keys set, e.g. `edited(config, **{"habitat.dataset.split": "train"})`."""
    config = config.copy()
    OmegaConf.set_readonly(config, False)
    for key, value in changes.items():
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    return config


# -------------------------------------------------------------------------------------------- what the model is asked
def action_space(config: DictConfig) -> ActionSpace:
    """The words of the configured protocol's actions."""
    return ActionSpace(config.vlnr1.protocol.forward_step, config.vlnr1.protocol.turn_angle)


def memory_of(config: DictConfig) -> Memory:
    """The memory strategy of `vlnr1.memory`.

    Raises:
        ValueError: no such strategy, or it does not take these options.
    """
    return make_memory(**config.vlnr1.memory)


def template_of(config: DictConfig) -> PromptTemplate:
    """The template of `vlnr1.prompt`.

    Raises:
        ValueError: there is no such template.
    """
    return get_template(config.vlnr1.prompt.template)


def prompt_encoder(config: DictConfig, processor: ProcessorMixin) -> PromptEncoder:
    """The configured way to ask, for a model with `speed_up_vision`; training and evaluation both call it."""
    from habitat_vlnr1.lvlm.inputs import PromptEncoder

    return PromptEncoder(
        processor,
        template_of(config),
        config.vlnr1.prompt.num_actions,
        action_space(config),
        max_pixels=config.vlnr1.model.image_size**2,
        single_slot=True,
    )


def asked_with(config: DictConfig) -> dict[str, Any]:
    """How the configured model is asked, in the words of `checkpoint.ModelCard`."""
    return {
        "num_actions": config.vlnr1.prompt.num_actions,
        "template": config.vlnr1.prompt.template,
        "memory": OmegaConf.to_container(config.vlnr1.memory, resolve=True),
        "max_pixels": config.vlnr1.model.image_size**2,
    }


def model_card(config: DictConfig, stage: str) -> ModelCard:
    """What stands beside every checkpoint of this run."""
    from habitat_vlnr1.lvlm.checkpoint import ModelCard

    info = {"stage": stage, "base": str(config.vlnr1.model.path), "data": list(config.vlnr1.data.sources)}
    return ModelCard(space=action_space(config), **asked_with(config), info=info)


# -------------------------------------------------------------------------------------------------- data and policies
def export_folder(config: DictConfig, split: str) -> Path:
    """Where the configured task's split is exported to."""
    return Path(config.vlnr1.data.root) / config.vlnr1.data.source / split


def records_of(config: DictConfig, egos: Sequence[VLNEgo]) -> Records:
    """Data sets seen as training does, with the configured memory, n and label offset."""
    return Records(egos, memory_of(config), config.vlnr1.prompt.num_actions, config.vlnr1.data.label_offset)


def make_policy(
    place: str,
    row: str | Mapping[str, Any],
    config: DictConfig,
    observation_space: spaces.Dict,
    action_space: spaces.Space,
) -> Policy:
    """The policy that a row of the config names.

    Args:
        place: the row's key, for the error message.
        row: the name of a registered policy, or {name, …} with keys of `vlnr1` that hold for this policy alone, such
            as `checkpoint` or `mixture`.

    Raises:
        ValueError: no such policy is registered.
    """
    from habitat_baselines.common.baseline_registry import baseline_registry

    options: dict[str, Any] = {"name": row} if isinstance(row, str) else dict(row)
    name = options.pop("name")
    policy_class = baseline_registry.get_policy(name)
    if policy_class is None:
        raise ValueError(f"{place}: no policy {name!r} is registered")
    config = edited(config, **{f"vlnr1.{key}": value for key, value in options.items()}) if options else config
    return policy_class.from_config(config, observation_space, action_space)


def make_decoder(config: DictConfig, path: str) -> ActionDecoder:
    """Load a checkpoint and make what asks it, after checking that it fits the simulator's steps and angles."""
    import torch
    from habitat.core.logging import logger

    from habitat_vlnr1.lvlm import checkpoint
    from habitat_vlnr1.lvlm.decoding import ActionDecoder

    decoding = config.vlnr1.decoding
    card = checkpoint.read_card(path)
    checkpoint.check_card(card, action_space(config), allow=decoding.allow_other_angles)
    for difference in checkpoint.differences(card, **asked_with(config)):  # to compare is allowed, to overlook it not
        logger.warning(f"{path}: {difference}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = checkpoint.load(path, dtype=config.vlnr1.model.dtype, device=device)
    return ActionDecoder(
        model,
        prompt_encoder(config, processor),
        temperature=decoding.temperature,
        constrained=decoding.constrained,
        seed=config.habitat.seed,
    )


# -------------------------------------------------------------------------------------------------- what is optimised
def reward_functions(config: DictConfig) -> list[Callable[..., list[float]]]:
    """The functions of `vlnr1.rft.rewards`, a list of {name, weight, and the function's own parameters}.

    Raises:
        ValueError: none is named, one is unknown or has no such parameter, or the rollout is unknown.
    """
    if config.vlnr1.rft.rollout not in ROLLOUTS:
        raise ValueError(
            f"unknown vlnr1.rft.rollout {config.vlnr1.rft.rollout!r}; choose one of {', '.join(ROLLOUTS)}"
        )
    if not config.vlnr1.rft.rewards:
        raise ValueError("vlnr1.rft.rewards is empty: name at least one, such as {name: time_decayed, weight: 1}")
    rows: list[Any] = [OmegaConf.to_container(reward, resolve=True) for reward in config.vlnr1.rft.rewards]
    return [make_reward(**{key: value for key, value in row.items() if key != "weight"}) for row in rows]


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
        raise ValueError(f"vlnr1.data.rft_records is {drawn}: name the sources, such as {{embedded: 4000}}")
    weights = [float(reward.weight) for reward in config.vlnr1.rft.rewards]
    return _arguments(config, trl.GRPOConfig, "rft", RFT_KEYS, reward_weights=weights)


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

    options: Any = OmegaConf.to_container(config.vlnr1[stage], resolve=True)
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


def lora(config: DictConfig) -> Any:
    """A PEFT LoRA config from `vlnr1.model.lora`, or None for full fine-tuning."""
    options = config.vlnr1.model.lora
    if options is None:
        return None
    from peft import LoraConfig

    keys: Any = OmegaConf.to_container(options, resolve=True)
    return LoraConfig(task_type="CAUSAL_LM", **keys)
