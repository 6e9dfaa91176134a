"""The dry run (`vlnr1.dry_run=true`): what a stage would take, before weights, scenes or frames are there.

Everything is computed from the config, from exported data where there is some, and from what is on this machine;
nothing is downloaded. docs/planning.md explains each line.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from transformers import AutoProcessor, PretrainedConfig, ProcessorMixin

from habitat_vlnr1.actions import Action
from habitat_vlnr1.config import action_space, check_sources, memory_of, plain, processes, prompt_encoder, records_of
from habitat_vlnr1.doctor.host_memory import HostMemory, describe_host, host_memory
from habitat_vlnr1.doctor.model_sizes import (
    ENGINES,
    Memory,
    Size,
    activations,
    architecture,
    counting_processor,
    empty_model,
    training_memory,
)
from habitat_vlnr1.frame_files import picture_size
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.optimisation import accumulation
from habitat_vlnr1.records import RecordError, VLNEgo, keep_some

GIB = 2**30
BLOCK = 4096  # bytes; a file takes whole blocks of the file system
PATCHES_PER_TOKEN = 4  # are merged into one visual token


@dataclass(frozen=True)
class Tokens:
    """Lengths in tokens.

    Args:
        frame: one frame.
        frames: how many the largest prompt has, the current one included.
        prompt: the largest prompt.
        answer: the longest answer, with its end token.
        counted: with which tokenizer.
    """

    frame: int
    frames: int
    prompt: int
    answer: int
    counted: str

    @property
    def sample(self) -> int:
        return self.prompt + self.answer


@dataclass(frozen=True)
class Plan:
    """What a stage would take; None where it cannot be known yet.

    Args:
        records: per source: its number of records and how that is known.
        rows: records trained on in an epoch.
        steps: optimizer steps.
        size: of the model.
        memory: per engine, without activations.
        activations: bytes per GPU with and without gradient checkpointing.
        host: host memory of each process.
        frames_disk: bytes of all sources' frames.
        checkpoints_disk: bytes of the kept checkpoints and the one being written.
    """

    stage: str
    gpus: int
    tokens: Tokens
    records: dict[str, tuple[int | None, str]]
    rows: int | None
    steps: int | None
    size: Size | None
    memory: dict[str, Memory]
    activations: tuple[int, int] | None
    host: HostMemory | None
    frames_disk: int | None
    checkpoints_disk: int | None


def make_plan(config: DictConfig, stage: str) -> Plan:
    """Work the plan of a stage (`sft` or `rft`) out."""
    gpus = config.vlnr1.plan.gpus or processes()
    options = config.vlnr1[stage]
    opened = open_sources(config, stage)
    check_sources(config, [(source, "train") for source in opened], missing=True)
    model_config, processor, counted = known_model(config)
    tokens = count_tokens(config, processor, counted, opened)
    records = count_records(config, opened)
    rows = rows_of_epoch(config, stage, opened, records)
    steps = count_steps(config, stage, rows, gpus)
    size, memory, kept, host = None, {}, None, None
    if model_config is not None:
        size = model_size(config, model_config)
        reference = stage == "rft" and options.beta > 0 and config.vlnr1.model.lora is None
        width = 4 if config.vlnr1.model.dtype == "float32" else 2
        sizes = (size, gpus, width, reference, stage == "rft")
        memory = {engine: training_memory(engine, *sizes, offloaded(config, engine)) for engine in ENGINES}
        with_it, without = (kept_bytes(config, stage, model_config, tokens, how) for how in (True, False))
        kept = (with_it, without)
        used = with_it if options.gradient_checkpointing else without
        on_gpu = torch.cuda.is_available() or config.vlnr1.plan.gpus is not None
        loaded = width * size.parameters / (gpus if engine_of(config) == "ZeRO-3" else 1)
        chosen = memory[engine_of(config)]
        in_host = chosen.host + (loaded if on_gpu else chosen.total + used)
        patches = tokens.frames * tokens.frame * PATCHES_PER_TOKEN
        host = host_memory(config, stage, gpus, in_host, patches, model_config.vision_config.patch_size)
    total = _sum(count for count, _ in records.values())
    frames = None if total is None else total * round(frame_bytes(config, opened))
    return Plan(
        stage,
        gpus,
        tokens,
        records,
        rows,
        steps,
        size,
        memory,
        kept,
        host,
        frames,
        checkpoint_bytes(config, stage, size),
    )


def open_sources(config: DictConfig, stage: str) -> dict[str, VLNEgo | None]:
    """The training split of each source of the stage, None where it is not exported."""
    data = config.vlnr1.data
    return {source: open_exported(config, source) for source in (data.sources if stage == "sft" else data.rft_records)}


def open_exported(config: DictConfig, source: str, split: str = "train") -> VLNEgo | None:
    try:
        return VLNEgo(Path(config.vlnr1.data.root) / source / split)
    except RecordError:
        return None


def known_model(config: DictConfig) -> tuple[PretrainedConfig | None, ProcessorMixin, str]:
    """Config (None: unknown) and processor of the model as far as they are on this machine, and whose processor."""
    ours = config.vlnr1.model
    base = Path(config.vlnr1.run_dir) / "base"
    path = str(base) if ours.path is None and base.is_dir() else ours.path
    if path is None:
        model, processor = build_tiny([], space=action_space(config), size=ours.build.size, image_size=ours.image_size)
        return model.config, processor, "with a tiny tokenizer, which the data will make shorter"
    facts: Any = plain(ours.architecture) if ours.get("architecture") else None
    model_config = architecture(path, facts)
    try:
        processor = AutoProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        return model_config, processor, "with the model's tokenizer"
    except (OSError, ValueError):
        patch = 14 if model_config is None else model_config.vision_config.patch_size
        return model_config, counting_processor(patch), "words, digits and marks as one token each: within a per cent"


def model_size(config: DictConfig, model_config: PretrainedConfig) -> Size:
    """Counted on the meta device, with the configured LoRA or frozen vision tower."""
    ours = config.vlnr1.model
    lora: Any = None if ours.lora is None else plain(ours.lora)
    model = empty_model(model_config, lora)
    if ours.freeze_vision and lora is None:
        model.model.visual.requires_grad_(False)
    return Size.of(model)


def count_tokens(
    config: DictConfig, processor: ProcessorMixin, counted: str, opened: dict[str, VLNEgo | None]
) -> Tokens:
    """The largest prompt: the longest instruction known, seen at the protocol's last step."""
    protocol = config.vlnr1.protocol
    encoder = prompt_encoder(config, processor)
    instructions = [episode.instruction for ego in opened.values() if ego for episode in ego.episodes]
    instruction = max(instructions, key=len, default=" go" * config.vlnr1.plan.instruction_words)
    frames = len(memory_of(config).select(protocol.max_steps - 1)) + 1
    black = np.zeros((protocol.height, protocol.width, 3), np.uint8)
    query = encoder.query(instruction, [black] * frames, ["black"] * frames)
    start, end = query.spans[0]
    answer = max(len(encoder.answer_ids([action] * encoder.num_actions)) for action in Action)
    return Tokens(end - start, frames, len(query.ids), answer, counted)


def count_records(config: DictConfig, opened: dict[str, VLNEgo | None]) -> dict[str, tuple[int | None, str]]:
    """Records of each source's training split: exported, as `vlnr1.plan.records` says, or unknown."""
    counts: dict[str, tuple[int | None, str]] = {}
    for source, ego in opened.items():
        told = config.vlnr1.plan.records.get(source)
        if ego is not None:
            counts[source] = (sum(len(episode.actions) for episode in ego.episodes), "exported")
        elif told is not None:
            counts[source] = (told, "vlnr1.plan.records, nothing exported yet")
        else:
            counts[source] = (None, f"unknown: nothing exported yet, and no vlnr1.plan.records.{source}")
    return counts


def rows_of_epoch(
    config: DictConfig,
    stage: str,
    opened: dict[str, VLNEgo | None],
    records: dict[str, tuple[int | None, str]],
) -> int | None:
    """Rows of one epoch: those drawn for RFT; for SFT all records, thinned out exactly where they are exported."""
    if stage == "rft":
        if config.vlnr1.rft.online is not None:
            return None if config.vlnr1.rft.online.episodes < 0 else config.vlnr1.rft.online.episodes
        wanted = config.vlnr1.data.rft_records
        return _sum(records[source][0] if count < 0 else count for source, count in wanted.items())
    sft = config.vlnr1.sft
    sides = 2 if sft.mirror else 1
    egos = [ego for ego in opened.values() if ego is not None]
    if len(egos) == len(opened):
        view = records_of(config, egos)
        rows = view.rows(sft.steps_per_row, keep_some(view.num_actions, sft.keep_straight, config.habitat.seed))
        return sides * len(rows)
    exact = sft.steps_per_row == 1 and sft.keep_straight == 1
    return _sum(count and sides * count for count, _ in records.values()) if exact else None


def _sum(counts: Iterable[int | None]) -> int | None:
    """None where one of them is unknown."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def count_steps(config: DictConfig, stage: str, rows: int | None, gpus: int) -> int | None:
    """Optimizer steps; a row of RFT is answered `num_generations` times."""
    options = config.vlnr1[stage]
    if options.max_steps > 0:
        return options.max_steps
    if rows is None:
        return None
    batch = options.per_device_train_batch_size * accumulation(config, stage, gpus) * gpus
    answers = options.num_generations * options.num_iterations if stage == "rft" else 1
    return math.ceil(rows * answers / batch * options.num_train_epochs)


def kept_bytes(
    config: DictConfig, stage: str, model_config: PretrainedConfig, tokens: Tokens, checkpointing: bool
) -> int:
    """Activations of one micro-batch of the largest samples."""
    options = config.vlnr1[stage]
    batch = options.per_device_train_batch_size
    prompts, answers = batch, batch * (options.steps_per_row if stage == "sft" else 1)
    if stage == "rft" and not checkpointing:  # a group's prompt runs once
        prompts = math.ceil(batch / options.num_generations)
    total = prompts * tokens.prompt + answers * tokens.answer
    patches = prompts * tokens.frames * tokens.frame * PATCHES_PER_TOKEN
    trained = not config.vlnr1.model.freeze_vision
    return activations(model_config, total, patches, checkpointing, trained)


def frame_bytes(config: DictConfig, opened: dict[str, VLNEgo | None], looked_at: int = 200) -> float:
    """Disk that a frame takes: the mean of exported ones, else pixels times `vlnr1.plan.jpeg_bytes_per_pixel`."""
    sizes = []
    for ego in filter(None, opened.values()):
        for episode in ego.episodes[:: max(1, len(ego.episodes) // looked_at)]:
            size = picture_size(ego.root / episode.frame(len(episode.actions) // 2))
            if size is not None:
                sizes.append(on_disk(size))
    protocol = config.vlnr1.protocol
    pixels = protocol.width * protocol.height
    return float(np.mean(sizes)) if sizes else on_disk(pixels * config.vlnr1.plan.jpeg_bytes_per_pixel)


def on_disk(size: float) -> int:
    """Bytes in whole blocks."""
    return math.ceil(size / BLOCK) * BLOCK


def checkpoint_bytes(config: DictConfig, stage: str, size: Size | None) -> int | None:
    """`save_total_limit` checkpoints and the one being written: weights to load, and what training resumes from."""
    if size is None:
        return None
    width = 4 if config.vlnr1.model.dtype == "float32" else 2
    lora = config.vlnr1.model.lora is not None
    weights = width * (size.trained if lora else size.parameters)
    state = 12 * size.trained + 2 * size.parameters if config.vlnr1.deepspeed else 2 * width * size.trained
    return (config.vlnr1[stage].save_total_limit + 1) * (weights + state)


def engine_of(config: DictConfig) -> str:
    """The configured one of `ENGINES`."""
    return f"ZeRO-{config.vlnr1.deepspeed.zero_optimization.stage}" if config.vlnr1.deepspeed else "DDP"


def offloaded(config: DictConfig, engine: str) -> list[str]:
    """Which of `optimizer` and `param` the configured engine keeps in host memory; none of another engine."""
    if engine == "DDP" or engine != engine_of(config):
        return []
    zero = config.vlnr1.deepspeed.zero_optimization
    devices = {part: (zero.get(f"offload_{part}") or {}).get("device", "none") for part in ("optimizer", "param")}
    return [part for part, device in devices.items() if device == "cpu"]


def print_plan(config: DictConfig, stage: str) -> Plan:
    """Print what a stage would take, and return it."""
    plan = make_plan(config, stage)
    print("\n".join(describe(config, plan)))
    return plan


def describe(config: DictConfig, plan: Plan) -> list[str]:
    """The plan as lines of text."""
    ours, protocol, tokens = config.vlnr1, config.vlnr1.protocol, plan.tokens
    name = ours.model.path or f"a new {ours.model.build.size} model"
    options = ours[plan.stage]
    lines = [
        f"Dry run of {plan.stage} on {plan.gpus} GPU(s): {name}, task {ours.task.name}, protocol {protocol.name}",
        f"  frame       {tokens.frame} tokens ({protocol.width} × {protocol.height} pixels)",
        f"  prompt      at most {tokens.prompt} tokens, with {tokens.frames} frames (memory {ours.memory.strategy})",
        f"  answer      at most {tokens.answer} tokens; a sample at most {tokens.sample}, counted {tokens.counted}",
    ]
    lines += [f"  records     {source}: {number(count)} ({how})" for source, (count, how) in plan.records.items()]
    batch = options.per_device_train_batch_size, accumulation(config, plan.stage, plan.gpus)
    lines.append(f"  steps       {number(plan.steps)}: {number(plan.rows)} rows an epoch, "
                 f"{batch[0]} per GPU × {batch[1]} accumulated × {plan.gpus}")  # fmt: skip
    if plan.size is None:
        lines.append(f"  parameters  unknown: {name} is not on this machine, and vlnr1.model.architecture is not its")
    else:
        lines += describe_model(config, plan)
    if plan.host is not None:
        lines += describe_host(plan.host, plan.gpus)
    free = f"{free_bytes(ours.data.root) / GIB:.0f} GiB are free"
    lines.append(f"  disk        frames {gib(plan.frames_disk)}, checkpoints {gib(plan.checkpoints_disk)}; {free}")
    return lines


def describe_model(config: DictConfig, plan: Plan) -> list[str]:
    """Parameters and memory as lines of text."""
    assert plan.size is not None and plan.activations is not None
    size, (with_it, without) = plan.size, plan.activations
    lines = [
        f"  parameters  {size.parameters:,} ({size.parameters / 1e9:.2f}B), of the vision tower {size.vision:,}, "
        f"trained {size.trained:,}",
        "  memory per GPU, GiB  weights  reference  gradients  optimizer  activations        sum",
    ]
    used = bool(config.vlnr1[plan.stage].gradient_checkpointing)
    for engine, memory in plan.memory.items():
        for checkpointing, kept in ((True, with_it), (False, without)):
            mine = engine == engine_of(config) and checkpointing == used
            parts = (memory.weights, memory.reference, memory.gradients, memory.optimizer)
            columns = "  ".join(f"{part / GIB:9.1f}" for part in parts)
            how = "checkpointed" if checkpointing else "kept"
            lines.append(
                f"    {engine:6} {how:12}  {columns}  {kept / GIB:11.1f}  {(memory.total + kept) / GIB:9.1f}"
                + ("  ← configured" if mine else "")
            )
    moved = plan.memory[engine_of(config)].host
    if moved:
        what = " and ".join(f"offload_{part}" for part in offloaded(config, engine_of(config)))
        lines.append(f"    {what}: {moved / GIB:.1f} GiB of a process in host memory instead")
    if engine_of(config) == "DDP" and config.vlnr1.model.dtype == "bfloat16":
        lines.append(
            "    DDP updates bfloat16 weights in place, and a step below 1/256 of a weight is lost: take "
            "vlnr1/deepspeed=zero2, which keeps float32 masters, or vlnr1.model.dtype=float32"
        )
    return lines


def number(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.1f} GiB"


def free_bytes(folder: str | os.PathLike[str]) -> int:
    """Free bytes where a folder is or would be made."""
    place = existing_parent(folder)
    stat: Any = os.statvfs(place)
    return stat.f_bavail * stat.f_frsize


def existing_parent(folder: str | os.PathLike[str]) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    place = Path(folder).absolute()
    while not place.is_dir():
        place = place.parent
    return place
