"""The one list of everything that Habitat must be told about. Importing a module registers what it defines."""

import multiprocessing
from importlib import import_module
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from habitat_vlnr1.sim import register_sim

# What Habitat-Baselines looks up by name in the main process.
BASELINES_MODULES = (
    "habitat_vlnr1.obs_transform",
    "habitat_vlnr1.policies.vlnr1",
    "habitat_vlnr1.policies.remote",
    "habitat_vlnr1.policies.scripted",
    "habitat_vlnr1.policies.mixture",
    "habitat_vlnr1.policies.vlnce.policies",
    "habitat_vlnr1.policies.memory_attention",
    "habitat_vlnr1.evaluation.evaluator",
    "habitat_vlnr1.trainers.export",
    "habitat_vlnr1.trainers.convert",
    "habitat_vlnr1.trainers.il",
    "habitat_vlnr1.trainers.sft",
    "habitat_vlnr1.trainers.eqa",
    "habitat_vlnr1.trainers.mp3d_eqa",
    "habitat_vlnr1.trainers.dagger",
    "habitat_vlnr1.trainers.rft",
    "habitat_vlnr1.trainers.stages",
    "habitat_vlnr1.trainers.doctor",
    "habitat_vlnr1.trainers.serve",
)


def register() -> None:
    """Registers everything; harmless when repeated."""
    register_sim()
    for name in BASELINES_MODULES:
        import_module(name)


class RegisterCallback(Callback):
    """Hydra's callback that registers everything where a job runs: a launcher's workers (joblib, Slurm) get the job's
    config ready-made, so our search-path plugin, which does it elsewhere, is never asked there."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        # joblib's workers have a start method of joblib's as their default. Each simulator's process would be told to
        # take it for its own, and knows nothing of it.
        if multiprocessing.get_start_method(allow_none=True) == "loky":
            multiprocessing.set_start_method("spawn", force=True)
        register()
