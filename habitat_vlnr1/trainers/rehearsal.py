"""The rehearsal (`vlnr1.doctor.rehearse=true`): the configured job in miniature, with random weights of its shape.

Two episodes are exported, both stages take three steps on them, and one for each environment is evaluated: each stage
by its own trainer, in a process of its own on each of torchrun's processes, with the configured model, batch, engine
and memory. What that took is held against the plan (`doctor/planning.py`), and the whole job's hours follow from it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.config import action_space, edited, model_card, processes
from habitat_vlnr1.doctor.host_memory import GIB, machine_bytes, shared_free
from habitat_vlnr1.doctor.planning import Plan, engine_of, known_model, make_plan
from habitat_vlnr1.errors import MissingFileError, RunError
from habitat_vlnr1.lifetime import end_with_pipe
from habitat_vlnr1.lock import FolderLock
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.tiny import build_shape
from habitat_vlnr1.optimisation import accumulation
from habitat_vlnr1.records import VLNEgo
from habitat_vlnr1.sim.env_factory import make_scenes, open_dataset

EPISODES, STEPS = 2, 3
POLL = 0.5  # seconds between two looks at a stage's memory
TIMEOUT = timedelta(hours=3)  # for the slowest stage of another process
TIGHT, ROOMY = 0.92, 0.5  # shares of a GPU's memory above and below which something is said
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class Report:
    """What one process took for a stage.

    Args:
        seconds: from its start to its end.
        host: bytes of host memory at most, with its children; pages that they share are counted once.
        gpu: bytes of its GPU at most, as the driver sees them; 0 without a GPU.
        shared: bytes of /dev/shm taken at most.
        error: its last line, where it failed.
    """

    seconds: float
    host: int
    gpu: int
    shared: int
    error: str = ""


def rehearse(config: DictConfig) -> None:
    """Run it, and print what was seen; under torchrun on every process.

    Raises:
        RunError: a stage failed on some process; its last line and its log are named.
        FolderInUse: another rehearsal of this run is under way.
    """
    rank, world = int(os.environ.get("RANK", 0)), processes()
    if world > 1:
        torch.distributed.init_process_group("gloo", timeout=TIMEOUT)
    folder = Path(config.vlnr1.run_dir, "rehearsal").absolute()
    lock = FolderLock(folder.parent, "rehearsal") if rank == 0 else None
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make_scenes(config)
    _wait(world)
    small = miniature(config, folder)
    if rank == 0:
        print(
            f"Rehearsal in {folder}: {EPISODES} episodes, {STEPS} steps of each stage, {world} process(es)", flush=True
        )
        if config.vlnr1.model.path is not None:
            make_weights(config, small)
    seen: dict[str, list[Report]] = {}
    for number, (stage, stage_config) in enumerate(stages(small).items()):
        _wait(world)
        alone = stage == "export"
        mine = None if alone and rank else run_stage(stage, stage_config, folder, rank, 1 if alone else world, number)
        seen[stage] = [report for report in _gather(mine, world) if report is not None]
        failed = next((report.error for report in seen[stage] if report.error), "")
        if failed:
            raise RunError(f"the rehearsal's {stage} failed: {failed}")
        if rank == 0:
            print(stage_line(stage, seen[stage]), flush=True)
    if lock is not None:
        print("\n".join(verdict(config, small, seen)), flush=True)
    if lock is not None:
        lock.release()


def _wait(world: int) -> None:
    if world > 1:
        torch.distributed.barrier()


def _gather(mine: Report | None, world: int) -> list[Report | None]:
    if world == 1:
        return [mine]
    every: list[Report | None] = [None] * world
    torch.distributed.all_gather_object(every, mine)
    return every


def miniature(config: DictConfig, folder: Path) -> DictConfig:
    """The job's config with everything that it writes below `folder`, few episodes, and few steps."""
    ours, source = config.vlnr1, config.vlnr1.data.source
    changes: dict[str, Any] = {
        "vlnr1.doctor.rehearse": False,
        "vlnr1.run_dir": str(folder / "run"),
        "vlnr1.results_dir": str(folder / "run/results"),
        "vlnr1.data.root": str(folder / "vln_ego"),
        "vlnr1.data.sources": [source],
        "vlnr1.data.rft_records": {source: -1},
        "vlnr1.export.splits": ["train", ours.rft.held_out.split],
        "vlnr1.export.num_shards": 1,
        "vlnr1.export.shard": 0,
        "vlnr1.export.num_environments": min(EPISODES, ours.export.num_environments),
        "vlnr1.checkpoint": None,
        "vlnr1.eval.policies": {"vlnr1_rft": "VLNR1Policy"},
        "vlnr1.eval.videos": 0,
        "vlnr1.rft.start": str(folder / "run/checkpoints"),
        "vlnr1.rft.held_out.records": -1,
        "vlnr1.rft.eval_strategy": "no",
        "vlnr1.rft.eval_on_start": False,
        "habitat.dataset.max_episodes": EPISODES,
        "habitat_baselines.test_episode_count": -1,
    }
    for stage in ("sft", "rft"):
        steps = {"max_steps": STEPS, "save_steps": STEPS, "logging_steps": 1, "evaluate": False}
        changes |= {f"vlnr1.{stage}.{key}": value for key, value in steps.items()}
    if ours.rft.online is not None:
        answers = ours.rft.per_device_train_batch_size * accumulation(config, "rft", processes()) * processes()
        changes["vlnr1.rft.online.episodes"] = max(EPISODES, answers // ours.rft.num_generations)
    if ours.model.path is not None:
        changes["vlnr1.model.path"] = str(folder / "weights")
    elif ours.model.build.warmup is not None:
        changes["vlnr1.model.build.warmup"] = None
    return edited(config, **changes)


def make_weights(config: DictConfig, small: DictConfig) -> None:
    """Random weights of the configured model's shape, in the folder that `small` loads its model from.

    Raises:
        MissingFileError: the shape is not known.
    """
    model_config, processor, how = known_model(config)
    if model_config is None:
        raise MissingFileError(
            f"{config.vlnr1.model.path} is not on this machine, and vlnr1.model.architecture is not its: fetch its "
            "config.json and processor, or fill vlnr1.model.architecture"
        )
    texts = [episode.instruction.instruction_text for episode in open_dataset(small.habitat).episodes]
    model, processor = build_shape(
        model_config,
        texts,
        space=action_space(config),
        image_size=config.vlnr1.model.image_size,
        dtype=config.vlnr1.model.dtype,
        processor=processor if how == "with the model's tokenizer" else None,
    )
    checkpoint.save(small.vlnr1.model.path, model, processor, model_card(config))


def stages(small: DictConfig) -> dict[str, DictConfig]:
    """The config of each stage, for its own trainer."""

    def stage(trainer: str, checkpoints: str = "checkpoints", **changes: object) -> DictConfig:
        run = Path(small.vlnr1.run_dir)
        paths = {
            "checkpoint_folder": checkpoints,
            "eval_ckpt_path_dir": checkpoints,
            "tensorboard_dir": f"tb/{trainer}",
        }
        ours = {f"habitat_baselines.{key}": str(run / value) for key, value in paths.items()}
        return edited(small, **{"habitat_baselines.trainer_name": trainer, **ours, **changes})

    online = small.vlnr1.rft.online
    walks = EPISODES if online is None else online.episodes
    asked = processes() * small.habitat_baselines.num_environments  # each process has them all, and walks its share
    evaluation = {"habitat_baselines.evaluate": True, "habitat.dataset.max_episodes": asked}
    return {
        "export": stage("vlnr1_export"),
        "sft": stage("vlnr1_sft"),
        "rft": stage("vlnr1_rft", "rft/checkpoints", **{"habitat.dataset.max_episodes": walks}),
        "evaluation": stage("vlnr1_rft", "rft/checkpoints", **evaluation),
    }


def run_stage(stage: str, config: DictConfig, folder: Path, rank: int, world: int, number: int) -> Report:
    """Run a stage as its command would, and look at its memory meanwhile.

    Args:
        world: with how many processes; 1: alone, also under torchrun.
        number: of the stage; each has a rendezvous of its own.
    """
    name, log = f"{stage}-{rank}", folder / f"{stage}-{rank}.log"
    (folder / f"{name}.yaml").write_text("# @package _global_\n" + OmegaConf.to_yaml(config, resolve=True))
    environment: dict[str, str] = {key: value for key, value in os.environ.items() if world > 1 or key not in TORCHRUN}
    if world > 1:
        environment["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        environment["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1 + number)
    hydra = [f"hydra.run.dir={folder}", "hydra.output_subdir=null", "hydra.job.chdir=false"]
    where = [f"--config-dir={folder}", f"--config-name={name}"]
    command = [sys.executable, "-m", "habitat_baselines.run", *where, *hydra]
    began, shared = time.monotonic(), shared_free()
    report = Report(0.0, 0, 0, 0)
    ends, held = os.pipe()  # a stage ends with this process, which holds the other end
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, pass_fds=[ends],
            preexec_fn=partial(end_with_pipe, ends),
        )  # fmt: skip
        os.close(ends)
        while process.poll() is None:
            report.host = max(report.host, host_bytes(process.pid))
            report.gpu = max(report.gpu, gpu_bytes())
            report.shared = max(report.shared, shared - shared_free())
            time.sleep(POLL)
    os.close(held)
    report.seconds = time.monotonic() - began
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        report.error = f"{lines[-1]} (process {rank}, see {log})"
    return report


def host_bytes(pid: int) -> int:
    """Bytes of a process and its children; a page that several share is counted once."""
    total = 0
    try:
        every = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    for process in every:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total


def gpu_bytes() -> int:
    """Bytes taken of this process's GPU, by whomever; 0 without one."""
    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", 0)))
    return total - free


def stage_line(stage: str, reports: list[Report]) -> str:
    """What a stage took, with the memory of each process."""
    gpu = f", GPU {each(report.gpu for report in reports)} GiB" if torch.cuda.is_available() else ""
    seconds, host = max(report.seconds for report in reports), each(report.host for report in reports)
    return f"  {stage:11} {seconds:6.0f} s, host {host} GiB{gpu}"


def each(sizes: Iterable[int]) -> str:
    """Bytes of one process after the other, in GiB."""
    return ", ".join(f"{size / GIB:.1f}" for size in sizes)


def seconds_a_step(folder: str) -> float | None:
    """Between the logged steps of a run, without the first, which compiles and fills caches; None: nothing logged."""
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]  # has no types
        EventAccumulator,
    )

    times: list[float] = []
    for file in sorted(Path(folder).rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file))
        events.Reload()
        if "train/loss" in events.Tags()["scalars"]:
            times += [event.wall_time for event in events.Scalars("train/loss")]
    gaps = sorted(b - a for a, b in pairwise(times))
    return gaps[len(gaps) // 2] if gaps else None


def verdict(config: DictConfig, small: DictConfig, seen: Mapping[str, list[Report]]) -> list[str]:
    """What was seen against the plan, the hours of the whole job, and what to change."""
    lines, advice, hours = [], [], {}
    root = Path(small.vlnr1.data.root, small.vlnr1.data.source)
    frames = sum(len(e.actions) for s in small.vlnr1.export.splits for e in VLNEgo(root / s).episodes)
    rate = frames / seen["export"][0].seconds
    for stage in ("sft", "rft"):
        plan = make_plan(config, stage)
        step = seconds_a_step(stages(small)[stage].habitat_baselines.tensorboard_dir)
        lines += against_plan(config, plan, seen[stage], step)
        advice += changes(config, plan, seen[stage])
        if step is not None and plan.steps is not None:
            hours[stage] = plan.steps * step / 3600
        known = [count for count, _ in plan.records.values() if count is not None]
        if stage == "sft" and known:
            hours["export"] = sum(known) / rate / 3600
            took = f"{sum(known):,} records {hours['export']:.1f} h"
            lines.append(f"export: {rate:.1f} frames a second, start-up included; {took}")
    walked = stages(small)["evaluation"].habitat.dataset.max_episodes
    took = f"{seen['evaluation'][0].seconds:.0f} s"
    lines.append(f"evaluation: {walked} episodes (all, if the split has fewer) in {took}, start-up included")
    parts = ", ".join(f"{stage} {took:.1f}" for stage, took in hours.items())
    lines.append(f"all of it, without evaluation: {sum(hours.values()):.1f} h ({parts or 'no hours are known'})")
    return [*lines, *(advice or ["Nothing to change."])]


def against_plan(config: DictConfig, plan: Plan, reports: list[Report], step: float | None) -> list[str]:
    """A stage's memory beside the plan's, its steps an hour and the hours of all its steps."""
    planned = "unknown" if plan.host is None else f"{plan.host.total / GIB:.1f}"
    lines = [f"{plan.stage}: host {each(report.host for report in reports)} GiB, planned {planned} a process"]
    if torch.cuda.is_available() and plan.activations is not None:
        kept = plan.activations[0 if config.vlnr1[plan.stage].gradient_checkpointing else 1]
        wanted = plan.memory[engine_of(config)].total + kept
        lines.append(
            f"{plan.stage}: GPU {each(report.gpu for report in reports)} GiB, planned {wanted / GIB:.1f} each"
        )
    if step is not None:
        hours = "unknown hours" if plan.steps is None else f"{plan.steps:,} steps {plan.steps * step / 3600:.1f} h"
        lines.append(f"{plan.stage}: {3600 / step:,.0f} steps an hour; {hours}")
    if plan.host is not None and plan.host.shared:
        shared, planned_shared = max(report.shared for report in reports) / GIB, plan.host.shared / GIB
        free = f"{shared_free() / GIB:.1f} free"
        lines.append(f"{plan.stage}: /dev/shm {shared:.2f} GiB taken, {planned_shared:.2f} a process planned, {free}")
    return lines


def changes(config: DictConfig, plan: Plan, reports: list[Report]) -> list[str]:
    """What a stage's numbers ask for."""
    stage, options, here = plan.stage, config.vlnr1[plan.stage], len(reports)
    advice = []
    if torch.cuda.is_available():
        share = max(report.gpu for report in reports) / torch.cuda.get_device_properties(0).total_memory
        if share > TIGHT:
            remedy = f"vlnr1.{stage}.gradient_checkpointing=true, vlnr1/deepspeed=zero3, or fewer rows a GPU"
            advice.append(f"change: the GPU is {share:.0%} full in {stage}: {remedy}")
        elif share < ROOMY:
            remedy = f"vlnr1.{stage}.per_device_train_batch_size={2 * options.per_device_train_batch_size}"
            advice.append(f"change: {1 - share:.0%} of the GPU is free in {stage}: {remedy}, fewer accumulated")
    if sum(report.host for report in reports) > TIGHT * machine_bytes():
        advice.append(f"change: {stage} fills the host's memory: fewer vlnr1.{stage}.dataloader_num_workers")
    if plan.host is not None and plan.host.shared * here > shared_free():
        advice.append(f"change: /dev/shm is too small for {stage}: --shm-size, or fewer dataloader_num_workers")
    return advice
