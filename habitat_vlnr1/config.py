"""Where the config's `vlnr1.*` keys become objects.

Training, evaluation, export and the doctor all call these, so that what is trained is what is asked. Torch,
Transformers, TRL and Habitat are imported when a function needs them: every Habitat run registers the rooms above, and
these packages take seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.memory import Memory, make_memory
from habitat_vlnr1.prompt import PromptTemplate, get_template
from habitat_vlnr1.records import RecordError, Records, VLNEgo, read_meta, recorded_space
from habitat_vlnr1.weights import check_whole, origin

if TYPE_CHECKING:
    from gym import spaces
    from habitat_baselines.rl.ppo.policy import Policy
    from transformers import ProcessorMixin

    from habitat_vlnr1.lvlm.checkpoint import ModelCard
    from habitat_vlnr1.lvlm.decoding import ActionDecoder
    from habitat_vlnr1.lvlm.inputs import PromptEncoder


NOTED = 32
"""How many frequent answers a card has: more than are tried by default, so that more can be."""


def plain(node: Any) -> Any:
    """A group of the config as dicts and lists, resolved; what is none stays as it is."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def edited(config: DictConfig, **changes: object) -> DictConfig:
    """A copy of the config with dotted keys set, e.g. `edited(config, **{"habitat.dataset.split": "train"})`."""
    config = config.copy()
    OmegaConf.set_readonly(config, False)
    for key, value in changes.items():
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    return config


def processes() -> int:
    """How many processes torchrun has started, this one among them."""
    return int(os.environ.get("WORLD_SIZE", 1))


def import_modules(config: DictConfig) -> None:
    """Import what `vlnr1.imports` names, so that Habitat's registries know what is defined there.

    Raises:
        ValueError: a module cannot be imported.
    """
    for name in OmegaConf.select(config, "vlnr1.imports", default=None) or ():
        try:
            import_module(name)
        except ImportError as error:
            raise VLNR1Error(
                f"vlnr1.imports: {name!r} cannot be imported ({error}); modules are looked for where the command "
                "runs, on PYTHONPATH and among the installed packages"
            ) from None


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


def question_memories(config: DictConfig) -> dict[str, Memory]:
    """The memories of `vlnr1.data.question_memories` by name, under which questions are trained and evaluated.

    Raises:
        ValueError: one is none.
    """
    named = config.vlnr1.data.question_memories
    return {name: make_memory(**plain(options)) for name, options in named.items()}


def template_of(config: DictConfig) -> PromptTemplate:
    """The template of `vlnr1.prompt`.

    Raises:
        ValueError: there is no such template.
    """
    return get_template(config.vlnr1.prompt.template)


def prompt_encoder(config: DictConfig, processor: ProcessorMixin) -> PromptEncoder:
    """The configured way to ask, for a model with `speed_up_vision`; training and evaluation both call it."""
    from habitat_vlnr1.lvlm.inputs import PromptEncoder

    return PromptEncoder.from_card(processor, model_card(config))


def asked_with(config: DictConfig) -> dict[str, Any]:
    """How the configured model is asked, in the words of `checkpoint.ModelCard`."""
    return {
        "num_actions": config.vlnr1.prompt.num_actions,
        "template": config.vlnr1.prompt.template,
        "memory": plain(config.vlnr1.memory),
        "max_pixels": config.vlnr1.model.image_size**2,
    }


def model_card(config: DictConfig, **info: Any) -> ModelCard:
    """How the configured model is asked, as it stands beside its checkpoints.

    Args:
        info: provenance.
    """
    from habitat_vlnr1.lvlm.checkpoint import ModelCard

    return ModelCard(space=action_space(config), **asked_with(config), info=info)


def trained_card(
    config: DictConfig,
    stage: str,
    start: str | None = None,
    folder: str | Path | None = None,
    records: Records | None = None,
    **made_with: Any,
) -> ModelCard:
    """What stands beside every checkpoint of this run.

    Args:
        start: the checkpoint that training begins from; None for a new model.
        folder: where the card's checkpoint will lie, as seen from which the start is remembered; None: in the run's
            checkpoint folder.
        records: what is trained on, whose frequent answers are noted; None: those that the start has.
        made_with: more of where it comes from.
    """
    from habitat_vlnr1.lvlm.checkpoint import read_card

    folder = folder or Path(config.habitat_baselines.checkpoint_folder) / "checkpoint"
    began = None if start is None else origin(start, folder)
    card = model_card(config, stage=stage, start=began, data=list(config.vlnr1.data.sources), **made_with)
    known = read_card(start) if records is None and start is not None else None
    frequent = records.frequent_answers(NOTED) if records else known.frequent_answers if known else ()
    return replace(card, jpeg_quality=jpeg_quality(config), frequent_answers=frequent)


def jpeg_quality(config: DictConfig) -> int:
    """That of the frames which training reads: the first exported source says it, else what an export will write."""
    data = config.vlnr1.data
    for source in dict.fromkeys([*data.sources, *(data.get("rft_records") or ())]):
        meta = Path(data.root) / source / "train" / "meta.json"
        quality = read_meta(meta).get("jpeg_quality") if meta.is_file() else None
        if isinstance(quality, int):
            return quality
    return config.vlnr1.export.jpeg_quality


# -------------------------------------------------------------------------------------------------- data and policies
def evaluation_shard(config: DictConfig) -> tuple[int, int]:
    """Which of how many processes that evaluate side by side this one is: `vlnr1.eval.shard` of `num_shards`, or its
    place among those that torchrun has started; (0, 1) where it is alone.

    Raises:
        ValueError: there is no such shard.
    """
    shard, count = config.vlnr1.eval.shard, config.vlnr1.eval.num_shards
    if (shard is None) != (count is None):
        raise VLNR1Error(f"vlnr1.eval.shard is {shard} and num_shards {count}: give both, or neither")
    if shard is None:
        shard, count = int(os.environ.get("RANK", 0)), processes()
    check_shard("vlnr1.eval.shard", shard, count)
    return shard, count


def check_shard(key: str, shard: int, count: int) -> None:
    """ValueError for a shard that there is not."""
    if not 0 <= shard < count:
        raise VLNR1Error(f"{key}={shard} of {count}: shards count from 0 to num_shards - 1")


def export_folder(config: DictConfig, split: str) -> Path:
    """Where the configured task's split is exported to."""
    return Path(config.vlnr1.data.root) / config.vlnr1.data.source / split


def check_sources(config: DictConfig, folders: Iterable[tuple[str, str]], *, missing: bool = False) -> None:
    """Training data must be there, recorded with the steps and angles whose words the model is taught.

    Called before any work. `vlnr1.data.source` itself may be missing: it will be exported under the configured
    protocol. A folder that does not say how it was recorded passes.

    Args:
        folders: (source, split)s of `vlnr1.data.root`.
        missing: others may be missing too.

    Raises:
        RecordError: a source is not there, was recorded otherwise, or is broken.
    """
    configured = action_space(config)
    for source, split in dict.fromkeys(folders):
        root = Path(config.vlnr1.data.root) / source / split
        if not (root / "meta.json").is_file():
            if missing or source == config.vlnr1.data.source:
                continue
            raise RecordError(
                f"{root}: source {source} is not exported, and only vlnr1.data.source is by itself: run "
                f"--config-name=vlnr1_export vlnr1/task=<its task> vlnr1/protocol={config.vlnr1.protocol.name} "
                f"'vlnr1.export.splits=[{split}]' first, or take it out of vlnr1.data"
            )
        meta = read_meta(root / "meta.json")  # of the rest there may be half, where an export was stopped
        space = recorded_space(root / "meta.json", meta)
        if space is None or space.close_to(configured):
            continue
        raise RecordError(
            f"{root}: source {source} was recorded with {_angles(space)}, but vlnr1.protocol has "
            f"{_angles(configured)}, whose words are untrue of its frames: take its protocol "
            f"({meta['protocol'].get('name')}), or export it again into another vlnr1.data.root"
        )


def _angles(space: ActionSpace) -> str:
    return f"turn_angle {space.turn_angle:g} and forward_step {space.forward_step:g}"


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
    policy_class, config = _policy_of(place, row, config)
    return policy_class.from_config(config, observation_space, action_space)


def check_policy(
    place: str,
    row: str | Mapping[str, Any],
    config: DictConfig,
    observation_space: spaces.Dict,
    action_space: spaces.Space,
) -> None:
    """What `make_policy` would find wrong. A policy with a large model says so without loading it (`check_config`).

    Raises:
        ValueError: what is wrong.
    """
    policy_class, config = _policy_of(place, row, config)
    check = getattr(policy_class, "check_config", policy_class.from_config)
    check(config, observation_space, action_space)


COMPLETED = ("decoding", "remote")
"""Groups of `vlnr1` of which a row may name some keys; the others are the config's. Any other group it gives whole."""


def _policy_of(place: str, row: str | Mapping[str, Any], config: DictConfig) -> tuple[type[Policy], DictConfig]:
    """The class that a row names, and the config that holds for it."""
    row = {"name": row} if isinstance(row, str) else dict(row)
    policy_class = registered_policy(place, row.pop("name"))
    for key, value in row.items():
        whole = OmegaConf.merge(config.vlnr1[key], value) if key in COMPLETED else value
        config = edited(config, **{f"vlnr1.{key}": whole})
    return policy_class, config


def registered_policy(place: str, name: str) -> type[Policy]:
    """The policy class of that name in Habitat's registry.

    Args:
        place: the key that names it, for the error message.

    Raises:
        ValueError: there is none.
    """
    from habitat_baselines.common.baseline_registry import baseline_registry

    policy_class = baseline_registry.get_policy(name)
    if policy_class is None:
        raise VLNR1Error(f"{place}: no policy {name!r} is registered; is its module in vlnr1.imports?")
    return policy_class


def make_decoder(config: DictConfig, path: str) -> ActionDecoder:
    """Load a checkpoint and make what asks it, after checking that it fits the simulator's steps and angles.

    It goes to `habitat_baselines.torch_gpu_id`, where there is a GPU.
    """
    import torch
    from habitat.core.logging import logger

    from habitat_vlnr1.lvlm import checkpoint
    from habitat_vlnr1.lvlm.decoding import load_decoder

    decoding = config.vlnr1.decoding
    card = check_checkpoint(config, path)
    asked = {**asked_with(config), "jpeg_quality": config.vlnr1.export.jpeg_quality}
    for difference in checkpoint.differences(card, **asked):  # to compare is allowed, to overlook it not
        logger.warning(f"{path}: {difference}")
    return load_decoder(
        path,
        replace(model_card(config), frequent_answers=card.frequent_answers if card else ()),
        dtype=config.vlnr1.model.dtype,
        device=torch.device("cuda", config.habitat_baselines.torch_gpu_id) if torch.cuda.is_available() else None,
        attn_implementation=config.vlnr1.model.attn_implementation,
        temperature=decoding.temperature,
        constrained=decoding.constrained,
        drafts=decoding.drafts,
        feature_cache_mb=decoding.feature_cache_mb,
        prefix_cache_mb=decoding.prefix_cache_mb,
        seed=config.habitat.seed,
    )


def check_checkpoint(config: DictConfig, path: str) -> ModelCard | None:
    """A checkpoint must be whole and fit the simulator's steps and angles; returns its card.

    Raises:
        CheckpointError: it does not.
    """
    from habitat_vlnr1.lvlm import checkpoint

    check_whole(checkpoint.existing(path))
    card = checkpoint.read_card(path)
    checkpoint.check_card(card, action_space(config), allow=config.vlnr1.decoding.allow_other_angles)
    return card
