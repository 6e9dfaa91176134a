"""The doctor: looks at environment and data for the configured task, and says what to do. It changes nothing."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from habitat_baselines.common.base_trainer import BaseTrainer
from omegaconf import DictConfig

from habitat_vlnr1.doctor.findings import ERROR, LEVELS, OK, Finding, error, guarded
from habitat_vlnr1.settings import check_settings
from habitat_vlnr1.trainers.base import register_trainer


@register_trainer("vlnr1_doctor")
class Doctor(BaseTrainer):
    """`train` prints the findings, and exits with status 1 when one of them is an ERROR; or it rehearses the job."""

    def __init__(self, config: DictConfig):
        super().__init__()
        self.config = config

    def train(self) -> None:
        if self.config.vlnr1.doctor.rehearse:
            from habitat_vlnr1.trainers.rehearsal import rehearse

            check_settings(self.config)
            rehearse(self.config)
            return
        counts: Counter[str] = Counter()
        for finding in examine(self.config):
            print(finding, flush=True)
            counts[finding.level] += 1
        print(summary(self.config, counts))
        if counts[ERROR]:
            sys.exit(1)

    eval = train


def examine(config: DictConfig) -> Iterator[Finding]:
    """All findings, in the order in which a user would mend them."""
    from habitat_vlnr1.doctor import environment, model_data
    from habitat_vlnr1.doctor.task_data import TaskData

    task = TaskData(config)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "config": partial(settings, config),
        "packages": partial(environment.packages, config),
        "imports": partial(environment.imports, config),
        "simulator": partial(environment.simulator, config),
        "gpu": partial(environment.gpu, config),
        "rendering": partial(environment.rendering, config),
        "limits": partial(environment.limits, config),
        "episodes": task.check_episodes,
        "scenes": task.check_scenes,
        "VLN-Ego": partial(model_data.exported, config),
        "weights": partial(model_data.weights, config),
        "checkpoints": partial(model_data.checkpoints, config),
        "disk": partial(model_data.disk, config, task),
    }
    for topic, check in checks.items():
        yield from guarded(topic, check)


def settings(config: DictConfig) -> Iterator[Finding]:
    """The keys of `vlnr1`; a finding where one is wrong."""
    try:
        check_settings(config)
    except ValueError as wrong:
        yield error("config", str(wrong), "set that key to what is said")


def summary(config: DictConfig, counts: Counter[str]) -> str:
    """The last line."""
    told = ", ".join(f"{counts[level]} {level}" for level in LEVELS)
    if counts[ERROR]:
        verdict = "mend the ERRORs first"
    elif counts[OK] < counts.total():
        verdict = "it will run; read the WARNINGs"
    else:
        verdict = "all is well"
    return f"vlnr1_doctor, task {config.vlnr1.task.name}, protocol {config.vlnr1.protocol.name}: {told}; {verdict}"
