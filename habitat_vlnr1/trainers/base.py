"""What the trainers share: made-on-first-use scenes, and Habitat's own evaluation over several policies."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.rl.ppo.ppo_trainer import PPOTrainer
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from habitat_vlnr1.config import edited, import_modules, processes
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.lock import FolderLock
from habitat_vlnr1.results import LeftOut, left_out_text, print_left_out
from habitat_vlnr1.settings import check_settings
from habitat_vlnr1.sim.env_factory import make_scenes

ERROR_STATUS = 1
"""Exit status of a command that an error has ended (docs/reliability.md)."""
LEFT_OUT_STATUS = 3
"""Exit status of a command that has done its work except for some episodes that its data did not allow."""


class JobFailed(RuntimeError):
    """What Hydra gets from a job of a sweep whose error of ours was printed: it goes on with the other jobs."""


def in_sweep() -> bool:
    """Whether this is a job of Hydra's multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def register_trainer(name: str) -> Callable[[type], type]:
    """Habitat's `register_trainer` for a trainer whose errors of ours end the command with their one line."""

    def register(trainer: type) -> type:
        for method in ("__init__", "train", "eval"):
            setattr(trainer, method, _in_one_line(getattr(trainer, method)))
        return baseline_registry.register_trainer(trainer, name=name)

    return register


def _in_one_line(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with errors_in_one_line():
            return method(*args, **kwargs)

    return wrapped


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """An error of ours is printed and ends the command, if there is one: in a program of one's own, called without
    Hydra's `main`, it is raised as it is. HYDRA_FULL_ERROR=1 shows where it comes from.

    Raises:
        SystemExit: with `ERROR_STATUS`.
        JobFailed: in a sweep, whose other jobs go on.
    """
    try:
        yield
    except VLNR1Error as error:
        if not HydraConfig.initialized() or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        if in_sweep():
            raise JobFailed(str(error)) from None
        raise SystemExit(ERROR_STATUS) from None


def exit_if_left_out(left_out: Iterable[LeftOut]) -> None:
    """The last lines of a command: which episodes the data did not allow; none: nothing happens.

    Raises:
        SystemExit: with `LEFT_OUT_STATUS`, so that a script notices; not in a sweep, whose other jobs go on.
    """
    left_out = list(left_out)
    if not left_out:
        return
    print_left_out(left_out_text(left_out))
    if in_sweep():
        return
    print(f"Done, but {len(left_out)} episodes were left out because of the data; exit status {LEFT_OUT_STATUS}")
    raise SystemExit(LEFT_OUT_STATUS)


@contextmanager
def only_trainer(folder: str | Path, is_main: bool = True) -> Iterator[None]:
    """No other training writes checkpoints into this folder meanwhile; of several processes the main one asks.

    Jobs of a sweep may share a training: one does it, the others wait and find it finished.

    Raises:
        FolderInUse: another one does.
    """
    if not is_main:
        yield
        return
    with FolderLock(folder, patient=in_sweep()):
        yield


def use_cores(threads: int | None) -> None:
    """On a CPU, work with so many threads; None: one per core."""
    if not torch.cuda.is_available():
        torch.set_num_threads(threads or os.cpu_count() or 1)


def on_own_gpu(config: DictConfig) -> DictConfig:
    """The config with model and simulators on the GPU of this one of torchrun's processes; alone as configured, and a
    simulator that renders without one (-1) stays so."""
    count = processes()
    if count == 1:
        return config
    gpu = int(os.environ.get("LOCAL_RANK", 0)) % (torch.cuda.device_count() or count)
    simulator = "habitat.simulator.habitat_sim_v0.gpu_device_id"
    renders_on = gpu if config.habitat.simulator.habitat_sim_v0.gpu_device_id >= 0 else -1
    return edited(config, **{"habitat_baselines.torch_gpu_id": gpu, simulator: renders_on})


class VLNR1Trainer(PPOTrainer):
    """PPOTrainer's evaluation, environments and resume; the optimisation is the subclass's.

    Raises:
        ValueError: a key of `vlnr1` is wrong; before any work.
    """

    envs: Any  # of VLNVectorEnvFactory, with left_out

    def __init__(self, config: DictConfig | None = None):
        if "SLURM_JOBID" in os.environ:  # Habitat asks for these, which a shell of salloc does not have
            for name, alone in {"SLURM_LOCALID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}.items():
                os.environ.setdefault(name, alone)
        super().__init__(config)
        self._is_distributed = False  # Habitat would refuse to evaluate; ours divides the episodes
        import_modules(self.config)
        check_settings(self.config)
        if not self.config.vlnr1.dry_run:
            make_scenes(self.config)

    @property
    def cpu_threads(self) -> int | None:
        """Of `use_cores`."""
        return self.config.vlnr1.model.cpu_threads

    def eval(self) -> None:
        """Habitat's evaluation; ends the command with `LEFT_OUT_STATUS` when episodes had to be left out."""
        self.config = on_own_gpu(self.config)
        use_cores(self.cpu_threads)
        super().eval()
        exit_if_left_out(self.envs.left_out)
