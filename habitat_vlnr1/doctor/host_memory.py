"""Host memory of a training: what each process takes beside its GPU, and what goes through /dev/shm.

The arithmetic is explained in docs/planning.md, beside one measured run.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.optimisation import accumulation

GIB = 2**30
PROGRAM = 1.0 * GIB  # interpreter and libraries (Torch, Transformers, TRL, Habitat) of a training process
WORKER = 0.25 * GIB  # what a forked data loader worker does not share with it, without its cut frames
SIMULATOR = 0.4 * GIB  # an environment's process with the embedded simulator: 0.31 to 0.36 seen
PREFETCHED = 2  # batches that a worker has ready: PyTorch's prefetch_factor
FLOAT = 4  # bytes


@dataclass(frozen=True)
class HostMemory:
    """Bytes of host memory of one training process, with the processes that it starts.

    Args:
        program: interpreter and libraries.
        model: weights while they are loaded; on a CPU also gradients, optimizer and activations.
        workers: data loader workers, each with its cut frames.
        simulators: of online RFT.
        prompts: frames that online RFT keeps until the update.
        shared: batches on their way from workers, in /dev/shm.
    """

    program: float
    model: float
    workers: float
    simulators: float
    prompts: float
    shared: float

    @property
    def total(self) -> float:
        return self.program + self.model + self.workers + self.simulators + self.prompts + self.shared


def host_memory(config: DictConfig, stage: str, gpus: int, model: float, patches: int, patch_size: int) -> HostMemory:
    """What a process of a stage takes.

    Args:
        stage: `sft` or `rft`.
        gpus: how many train together.
        model: bytes of its model in host memory.
        patches: of the largest sample's frames.
        patch_size: side of a patch in pixels.
    """
    options, protocol = config.vlnr1[stage], config.vlnr1.protocol
    workers = options.get("dataloader_num_workers") or 0
    prefetch = options.get("dataloader_prefetch_factor") or PREFETCHED
    cut = inspect.signature(PromptEncoder).parameters["cache_mb"].default * 2**20
    batch = options.per_device_train_batch_size * patches * 3 * 2 * patch_size**2 * FLOAT
    online: Any = options.get("online")
    simulators = prompts = 0.0
    if online is not None:
        simulators = online.num_environments * SIMULATOR
        rows = options.per_device_train_batch_size * accumulation(config, stage, gpus)
        prompts = rows * (config.vlnr1.memory.budget + 1) * protocol.width * protocol.height * 3
    frames = workers * (WORKER + cut)
    return HostMemory(PROGRAM, model, frames, simulators, prompts, workers * prefetch * batch)


def processes_here(gpus: int) -> int:
    """How many training processes this machine has: torchrun's LOCAL_WORLD_SIZE, else one for each GPU."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", gpus))


def machine_bytes() -> int:
    """This machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def shared_free() -> int:
    """Free bytes of /dev/shm."""
    stat: Any = os.statvfs("/dev/shm")
    return stat.f_bavail * stat.f_frsize


def describe_host(host: HostMemory, gpus: int) -> list[str]:
    """Lines of the plan."""
    names = ("program", "model", "workers", "simulators", "prompts", "shared")
    parts = ", ".join(f"{name} {getattr(host, name) / GIB:.1f}" for name in names if getattr(host, name))
    here = processes_here(gpus)
    lines = [
        f"  host memory {host.total / GIB:.1f} GiB a process ({parts}); of {here} processes "
        f"{here * host.total / GIB:.1f} GiB, and this machine has {machine_bytes() / GIB:.1f} GiB"
    ]
    if host.shared:
        lines.append(
            f"  /dev/shm    {here * host.shared / GIB:.1f} GiB for {here} processes' data loader workers, "
            f"{shared_free() / GIB:.1f} GiB are free"
        )
    return lines
