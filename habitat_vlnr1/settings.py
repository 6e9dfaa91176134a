"""What every key of `vlnr1.*` takes. `check_settings` says what is wrong with a config before any work is begun.

Keys of TRL below `vlnr1.sft` and `vlnr1.rft` that stand in our configs are here too; the others TRL checks itself.
What depends on several keys at once is at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.config import plain, registered_policy
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.files import is_folder_name
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.prompt import get_template


@dataclass(frozen=True)
class Rule:
    """What a key takes.

    Args:
        what: in words, behind "give".
        fits: whether a value is one of these.
    """

    what: str
    fits: Callable[[Any], bool]

    def __or__(self, other: Rule) -> Rule:
        return Rule(f"{self.what} or {other.what}", lambda value: self.fits(value) or other.fits(value))


def whole(low: float = -math.inf, high: float = math.inf) -> Rule:
    return Rule(f"a whole number{_range(low, high)}", lambda value: type(value) is int and low <= value <= high)


def number(low: float = -math.inf, high: float = math.inf) -> Rule:
    return Rule(f"a number{_range(low, high)}", lambda value: _is_number(value) and low <= value <= high)


def above(low: float, high: float = math.inf) -> Rule:
    what = f"a number above {low:g}" + ("" if high == math.inf else f", at most {high:g}")
    return Rule(what, lambda value: _is_number(value) and low < value <= high)


def name_of(*names: str) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def all_of(rule: Rule, low: int = 0) -> Rule:
    what = f"a list of {low or 'no'} or more, each {rule.what}"
    return Rule(what, lambda value: type(value) is list and len(value) >= low and all(map(rule.fits, value)))


def each(rule: Rule, low: int = 0) -> Rule:
    what = f"{{name: …}}, each {rule.what}"
    return Rule(what, lambda value: type(value) is dict and len(value) >= low and all(map(rule.fits, value.values())))


def _range(low: float, high: float) -> str:
    if high < math.inf:
        return f" from {low:g} to {high:g}"
    return f", {low:g} or more" if low > -math.inf else ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_reward(value: Any) -> bool:
    return type(value) is dict and TEXT.fits(value.get("name")) and _is_number(value.get("weight"))


NULL = Rule("null", lambda value: value is None)
FLAG = Rule("true or false", lambda value: type(value) is bool)
TEXT = Rule("a text", lambda value: isinstance(value, str) and bool(value.strip()))
FOLDER_NAME = Rule("a folder's name (letters, digits, _ - .)", is_folder_name)
POLICY = Rule("a registered policy's name, or {name: …, …}", lambda value: TEXT.fits(_policy_name(value)))
REWARD = Rule("{name: …, weight: <number>, …}", _is_reward)
OPTIONS = Rule("{…}", lambda value: type(value) is dict)
COUNT, INDEX, ALL = whole(1), whole(0), whole(-1, -1)
SOME_OR_ALL = COUNT | ALL  # -1: all of them
SHARE = number(0, 1)
BACKBONES = name_of("cnn", "resnet18", "resnet50", "resneXt50", "se_resnet50", "se_resneXt50", "se_resneXt101")
ATTENTIONS = name_of("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
EXPERTS = name_of("reference_path", "pursuit", "shortest_path", "ground_truth")

TRL = {  # of both stages
    "learning_rate": number(0),
    "lr_scheduler_type": TEXT,
    "warmup_steps": number(0),
    "weight_decay": number(0),
    "per_device_train_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT | NULL,
    "global_batch_size": COUNT | NULL,
    "max_steps": SOME_OR_ALL,
    "num_train_epochs": above(0),
    "max_grad_norm": number(0),
    "optim": TEXT,
    "bf16": FLAG,
    "gradient_checkpointing": FLAG,
    "logging_steps": above(0),
    "save_steps": above(0),
    "save_total_limit": COUNT | NULL,
    "deepspeed": OPTIONS | NULL,
    "keep_straight": SHARE,
    "evaluate": FLAG,
}
RULES: dict[str, Rule] = {
    "run_dir": TEXT,
    "base_dir": TEXT,
    "sft_config": TEXT,
    "ablation.name": FOLDER_NAME,
    "ablation.root": TEXT,
    "ablation.stage_1": TEXT,
    "checkpoint": TEXT | NULL,
    "results_dir": TEXT,
    "dry_run": FLAG,
    "mixture": OPTIONS | NULL,
    "remote.url": TEXT | NULL,
    "remote.model": TEXT | NULL,
    "remote.key_variable": TEXT,
    "remote.grammar": name_of("vllm", "sglang", "json") | NULL,
    "remote.image": name_of("png", "jpeg"),
    "remote.max_tokens": COUNT,
    "remote.in_flight": COUNT,
    "remote.timeout": above(0),
    "remote.tries": COUNT,
    "remote.max_requests": COUNT | NULL,
    "remote.max_total_tokens": COUNT | NULL,
    "remote.cache": TEXT | NULL,
    "imports": all_of(TEXT),
    "answer_timeout": above(0),
    "deepspeed": OPTIONS | NULL,
    "task.name": FOLDER_NAME,
    "task.source": each(FOLDER_NAME),
    "task.expert": EXPERTS,
    "task.scenes": OPTIONS | NULL,
    "task.questions": OPTIONS | NULL,
    "task.questions.data_path": TEXT,
    "task.questions.make": OPTIONS | NULL,
    "protocol.name": FOLDER_NAME,
    "protocol.forward_step": above(0),
    "protocol.turn_angle": above(0, 180),
    "protocol.hfov": above(0, 179),
    "protocol.width": COUNT,
    "protocol.height": COUNT,
    "protocol.sliding": FLAG,
    "protocol.camera_height": number(0),
    "protocol.agent_height": above(0),
    "protocol.agent_radius": above(0),
    "protocol.max_steps": COUNT,
    "protocol.success_distance": above(0),
    "data.root": TEXT,
    "data.source": FOLDER_NAME,
    "data.setup": TEXT,
    "data.label_offset": whole(0, 1),
    "data.sources": all_of(FOLDER_NAME, 1),
    "data.weights": each(above(0)),
    "data.questions": each(above(0)),
    "data.question_memories": each(OPTIONS),
    "data.image_text": each(above(0)),
    "data.rft_questions": each(SOME_OR_ALL),
    "data.rft_records": each(SOME_OR_ALL, 1),
    "memory.strategy": TEXT,
    "memory.budget": INDEX,
    "memory.short_window": COUNT,
    "memory.short_stride": COUNT,
    "memory.long_stride": COUNT,
    "prompt.template": TEXT,
    "prompt.num_actions": COUNT,
    "decoding.execute_horizon": COUNT,
    "decoding.temperature": number(0),
    "decoding.constrained": FLAG,
    "decoding.drafts": INDEX | NULL,
    "decoding.feature_cache_mb": number(0),
    "decoding.prefix_cache_mb": number(0),
    "decoding.allow_other_angles": FLAG,
    "export.splits": all_of(TEXT, 1),
    "export.shard": INDEX,
    "export.num_shards": COUNT,
    "export.num_environments": COUNT,
    "export.jpeg_quality": whole(1, 95),
    "export.pack": FLAG,
    "export.describe": FLAG,
    "export.questions": FLAG,
    "eval.policies": each(POLICY | NULL),
    "eval.forward_steps": COUNT,
    "eval.videos": INDEX,
    "eval.report_mb": number(0),
    "eval.together": COUNT | NULL,
    "eval.render_all": FLAG,
    "eval.shard": INDEX | NULL,
    "eval.num_shards": COUNT | NULL,
    "plan.gpus": COUNT | NULL,
    "plan.records": each(INDEX),
    "plan.instruction_words": COUNT,
    "plan.jpeg_bytes_per_pixel": above(0),
    "model.name": TEXT,
    "model.path": TEXT | NULL,
    "model.dtype": name_of("float32", "bfloat16", "float16", "auto"),
    "model.attn_implementation": ATTENTIONS | NULL,
    "model.template": TEXT,
    "model.image_size": COUNT,
    "model.freeze_vision": FLAG,
    "model.cpu_threads": COUNT | NULL,
    "model.lora": OPTIONS | NULL,
    "model.architecture": OPTIONS | NULL,
    "model.build": OPTIONS | NULL,
    "model.build.size": name_of("tiny", "small"),
    "model.build.initializer_range": above(0),
    "model.build.seed": INDEX,
    "model.build.warmup": OPTIONS | NULL,
    "model.build.warmup.words": OPTIONS | NULL,
    "model.build.warmup.words.steps": COUNT,
    "model.build.warmup.words.batch_size": COUNT,
    "model.build.warmup.words.learning_rate": number(0),
    "model.build.warmup.steps": INDEX,
    "model.build.warmup.batch_size": COUNT,
    "model.build.warmup.steps_per_row": COUNT,
    "model.build.warmup.learning_rate": number(0),
    "model.build.warmup.workers": INDEX,
    **{f"sft.{key}": rule for key, rule in TRL.items()},
    "sft.dataloader_num_workers": INDEX,
    "sft.steps_per_row": COUNT,
    "sft.mirror": FLAG,
    "sft.train_sampling_strategy": name_of("random", "sequential", "group_by_length", "batch_rebalance"),
    **{f"rft.{key}": rule for key, rule in TRL.items()},
    "rft.start": TEXT,
    "rft.held_out.split": TEXT,
    "rft.held_out.records": SOME_OR_ALL,
    "rft.rewards": all_of(REWARD, 1),
    "rft.online": OPTIONS | NULL,
    "rft.online.episodes": SOME_OR_ALL,
    "rft.online.turns": COUNT,
    "rft.online.num_environments": COUNT,
    "rft.rollout": name_of("grammar", "trl"),
    "rft.train_forced": FLAG,
    "rft.num_generations": whole(2),
    "rft.beta": number(0),
    "rft.epsilon": number(0),
    "rft.epsilon_high": number(0) | NULL,
    "rft.num_iterations": COUNT,
    "rft.temperature": above(0),
    "rft.max_completion_length": COUNT,
    "rft.loss_type": TEXT,
    "rft.scale_rewards": name_of("group", "batch", "none") | FLAG,
    "rft.importance_sampling_level": name_of("token", "sequence"),
    "rft.use_bias_correction_kl": FLAG,
    "rft.eval_strategy": name_of("no", "steps", "epoch"),
    "rft.eval_on_start": FLAG,
    "rft.eval_steps": above(0),
    "rft.per_device_eval_batch_size": COUNT,
    "dagger.start": TEXT,
    "dagger.rounds": COUNT,
    "dagger.take_over": OPTIONS | NULL,
    "dagger.beta": SHARE | all_of(SHARE, 1),
    "dagger.draw_every": COUNT | NULL,
    "dagger.episodes": INDEX,
    "dagger.temperature": number(0),
    "dagger.num_environments": COUNT,
    "dagger.expert": EXPERTS | NULL,
    "eqa.rows": all_of(TEXT, 1),
    "eqa.max_new_tokens": COUNT,
    "eqa.pictures": INDEX,
    "eqa.navigate": FLAG,
    "eqa.open_eqa.file": TEXT | NULL,
    "eqa.open_eqa.frames": TEXT,
    "eqa.judge.url": TEXT | NULL,
    "eqa.judge.model": TEXT,
    "eqa.judge.key_variable": TEXT,
    "il.policy": POLICY,
    "il.run_dir": TEXT,
    "il.learning_rate": number(0),
    "il.batch_size": COUNT,
    "il.epochs": COUNT,
    "il.inflection_weight": above(0),
    "il.max_grad_norm": above(0),
    "il.save_steps": COUNT,
    "il.keep_checkpoints": COUNT,
    "il.log_steps": COUNT,
    "il.workers": INDEX,
    "il.cpu_threads": COUNT | NULL,
    "il.evaluate": FLAG,
    "net.backbone": BACKBONES,
    "net.rgb_weights": TEXT | NULL,
    "net.depth_weights": TEXT | NULL,
    **{f"net.{key}_size": COUNT for key in ("rgb", "depth", "vocabulary", "word", "instruction", "hidden")},
    "net.baseplanes": COUNT,
    "serve.host": TEXT,
    "serve.port": whole(0, 65535),
    "serve.sessions": COUNT,
    "serve.message_mb": above(0),
    "serve.megapixels": above(0),
    "serve.steps": COUNT,
    "serve.idle_seconds": above(0),
    "serve.memory_mb": number(0),
    "serve.batch": COUNT,
    "serve.batch_wait_ms": number(0),
    "doctor.splits": all_of(TEXT),
    "doctor.frames": SOME_OR_ALL,
    "doctor.rehearse": FLAG,
    "convert.to": TEXT,
    "convert.input": TEXT,
    "convert.output": TEXT | NULL,
    "convert.images": TEXT | NULL,
    "convert.template": TEXT,
    "convert.view_records": COUNT,
    "convert.report_mb": number(0),
}
"""Key below `vlnr1` → what it takes. A key that is not in a config is not asked for."""


def check_settings(config: DictConfig) -> None:
    """Every key of `vlnr1` is one that there is, and has a value that it takes.

    Groups that are not ours (`vlnr1.<another package's>`) pass.

    Raises:
        ValueError: the first key that is wrong, and what it takes.
    """
    ours = plain(config.vlnr1)
    wrong = [(key, value) for key, value in _walk(ours) if key in RULES and not RULES[key].fits(value)]
    if wrong:
        key, value = min(wrong, key=lambda pair: _is_borrowed(config, pair[0]))
        raise VLNR1Error(f"vlnr1.{key} is {_shown(value)}: give {RULES[key].what}")
    for key, value in _walk(ours):
        if key not in RULES:
            _check_known(key, value)
    _check_together(ours)


def _is_borrowed(config: DictConfig, key: str) -> bool:
    """Whether a key has its value from another one, which is then the one to name."""
    group, _, name = key.rpartition(".")
    node = OmegaConf.select(config.vlnr1, group) if group else config.vlnr1
    return OmegaConf.is_interpolation(node, name)


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def _walk(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that has a rule, or is a leaf; a group with a rule of its own comes before its keys that have one."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        below = [known for known in RULES if known.startswith(f"{key}.")]
        if key in RULES or type(value) is not dict or not below:
            yield key, value
        if type(value) is dict and below:
            yield from _walk(value, f"{key}.")


def _check_known(key: str, value: Any) -> None:
    """A key without a rule: another package's, TRL's, an option of the memory, or a slip."""
    if _keys_of(key):
        raise VLNR1Error(f"vlnr1.{key} is {_shown(value)}: it is a group, with {', '.join(_keys_of(key))}")
    group = key.rpartition(".")[0]
    if _keys_of(group) and group not in ("", "sft", "rft", "memory"):
        raise VLNR1Error(f"vlnr1.{key}: there is no such key; vlnr1.{group} has {', '.join(_keys_of(group))}")


def _keys_of(group: str) -> list[str]:
    below = (known.removeprefix(f"{group}.") for known in RULES if known.startswith(f"{group}."))
    return list(dict.fromkeys(known.split(".")[0] for known in below))


def _policy_name(value: Any) -> Any:
    return value.get("name") if type(value) is dict else value


def _check_together(ours: dict[str, Any]) -> None:
    """Names that are looked up elsewhere, and what several keys say together."""
    for group in ("model", "prompt"):
        _ask(f"{group}.template", get_template, name=ours[group]["template"])
    _ask("memory", make_memory, **ours["memory"])
    if "convert" in ours:
        _ask("convert.template", get_template, name=ours["convert"]["template"])
    n, horizon = ours["prompt"]["num_actions"], ours["decoding"]["execute_horizon"]
    if horizon > n and ("sft" in ours or "rft" in ours):  # what is trained is asked; else nobody may be
        raise VLNR1Error(f"vlnr1.decoding.execute_horizon is {horizon}: give at most vlnr1.prompt.num_actions, {n}")
    model = ours["model"]
    if model["path"] is None:
        if model["build"] is None:
            raise VLNR1Error("vlnr1.model.path and vlnr1.model.build are null: name a model, or take vlnr1/model=tiny")
        if model["image_size"] % 28:
            raise VLNR1Error(f"vlnr1.model.image_size is {model['image_size']}: a new model takes a multiple of 28")
    _check_policies(ours)


def _ask(key: str, make: Callable[..., Any], **options: Any) -> None:
    try:
        make(**options)
    except (TypeError, ValueError) as error:
        raise VLNR1Error(f"vlnr1.{key}: {error}") from None


def _check_policies(ours: dict[str, Any]) -> None:
    """Rows of the table, and who is taught, must be registered: hours of training come before the table."""
    rows = {row: value for row, value in ours["eval"]["policies"].items() if value is not None}
    named = {f"eval.policies.{row}": _policy_name(value) for row, value in rows.items()}
    if "il" in ours:
        named["il.policy"] = ours["il"]["policy"]
    for key, name in named.items():
        registered_policy(f"vlnr1.{key}", name)
