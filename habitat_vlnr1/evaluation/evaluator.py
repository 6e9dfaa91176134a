"""Evaluation inside Habitat-Baselines' own flow (`habitat_baselines.evaluator._target_` names `VLNR1Evaluator`).

`habitat_baselines.evaluate=True` → BaseTrainer.eval → PPOTrainer._eval_checkpoint → `evaluate_agent` here, which
evaluates every policy in `vlnr1.eval.policies` (name → registered policy) on the same episodes in the same
environments, one after the other, and prints one table. Needs `habitat.env_task: VLNR1GymEnv`.

Processes that torchrun has started, or that are told their `vlnr1.eval.shard`, divide the episodes among them. They
never wait for each other: whoever finds that all episodes are through writes the summaries and prints the table.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from habitat.core.logging import logger
from habitat_baselines.common.tensorboard_utils import TensorboardWriter, WeightsAndBiasesWriter
from habitat_baselines.rl.ppo.evaluator import Evaluator
from omegaconf import DictConfig
from PIL import Image

from habitat_vlnr1.config import evaluation_shard, plain
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.evaluation.policy_run import VIDEOS, Outcome, PolicyRun
from habitat_vlnr1.evaluation.rows import RowMaker
from habitat_vlnr1.observations import EXPERT
from habitat_vlnr1.report.build import NAME, write_results_report
from habitat_vlnr1.results import METRICS, LeftOut, protocol_text, table
from habitat_vlnr1.sim.task_files import task_identity

Keys = list[tuple[str, str]]
"""Episodes as (scene_id, episode_id)."""


class VLNR1Evaluator(Evaluator):
    """Evaluates policies episode by episode; see the module's text."""

    def evaluate_agent(  # type: ignore[override]  # Habitat's own returns nothing, and its caller looks at nothing
        self,
        agent: Any,
        envs: Any,
        config: DictConfig,
        checkpoint_index: int,
        step_id: int,
        writer: Any,
        device: torch.device,
        obs_transforms: Sequence[Any],
        env_spec: Any,
        rank0_keys: set[str],
    ) -> list[dict[str, Any]]:
        """Habitat's entry point; returns the summaries that it also writes and prints.

        Of several processes that divide the episodes only the last one to finish has them, the others return none.
        """
        protocol: Any = plain(config.vlnr1.protocol)
        shard = evaluation_shard(config)
        print(protocol_text(protocol), flush=True)
        agent.eval()
        maker = RowMaker(agent, config, env_spec, envs.observation_spaces[0], obs_transforms)
        maker.check()
        chosen = choose_episodes(envs, config.habitat_baselines.test_episode_count)
        task = task_identity(config, config.habitat_baselines.eval.split)
        left_out = list(getattr(envs, "left_out", ()))  # before any was walked, by our environment factory
        outcomes: list[Outcome] = []
        for name in maker.names:
            row = maker.make(name, device)
            if EXPERT in env_spec.observation_space.spaces:
                for index in range(envs.num_envs):  # the expert plans at every step, as dear as the picture
                    envs.call_at(index, "silence", {"uuid": EXPERT, "silent": not row.reads(EXPERT)})
            outcomes.append(PolicyRun(name, row, envs, config, protocol, task, chosen, shard, device).run())
            outcomes[-1].summarise(left_out)
            del row
            free_memory()
        summaries = [outcome.summarise(left_out) for outcome in outcomes]
        whole = [summary for summary in summaries if summary is not None]
        envs.left_out = []
        if len(whole) < len(summaries):
            print(f"process {shard[0]} of {shard[1]} is done; the table comes from the last one to finish", flush=True)
            return []
        if shard[0] == 0 or any(outcome.walked for outcome in outcomes):
            report(whole, writer, step_id)
            show_walks(outcomes, writer, step_id)
            write_page(config)
            envs.left_out = list(dict.fromkeys(LeftOut(**entry) for s in whole for entry in s["left_out"]))
        return whole


def report(summaries: Sequence[dict[str, Any]], writer: Any, step_id: int) -> None:
    """Curves for TensorBoard, and the table."""
    for summary in summaries:
        for metric in METRICS:
            if summary[metric] is not None:
                writer.add_scalar(f"eval_{summary['policy']}/{metric}", summary[metric], step_id)
    print(table(summaries), flush=True)


def show_walks(outcomes: Sequence[Outcome], writer: Any, step_id: int) -> None:
    """The pictures of the rows' first walks (`vlnr1.eval.videos`), where Habitat's tracker takes pictures."""
    for outcome in outcomes:
        for file in sorted((outcome.log.folder / VIDEOS).glob("*.png")):
            name = f"walks_{outcome.policy}/{file.stem}"
            if isinstance(writer, TensorboardWriter):
                picture = np.asarray(Image.open(file).convert("RGB"))
                writer.add_image(name, picture, step_id, dataformats="HWC")
            elif isinstance(writer, WeightsAndBiasesWriter):
                import wandb  # installed, where there is such a writer

                writer.run.log({name: wandb.Image(str(file))})


def write_page(config: DictConfig) -> None:
    """`report.html` beside the results, of all that lies there, with the run's curves."""
    if config.vlnr1.eval.report_mb:
        results, logs = Path(config.vlnr1.results_dir), [Path(config.habitat_baselines.tensorboard_dir)]
        page = write_results_report(results / NAME, [results], config.vlnr1.eval.report_mb, logs)
        print(f"report: {page}", flush=True)


def free_memory() -> None:
    """Of a policy that is done, before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def choose_episodes(envs: Any, count: int) -> list[Keys]:
    """Which episodes each environment goes through, as (scene_id, episode_id).

    Every episode appears once, even when environments share scenes. Out of all, `count` are chosen evenly over the
    sorted list, so the choice depends on neither seed nor number of environments; -1 stands for all.
    """
    if count == 0 or count < -1:
        raise VLNR1Error(f"habitat_baselines.test_episode_count must be positive, or -1 for all; got {count}")
    having: dict[tuple[str, str], list[int]] = {}
    for index in range(envs.num_envs):
        for key in envs.call_at(index, "episode_keys"):
            having.setdefault(tuple(key), []).append(index)
    keys = sorted(having, key=lambda key: (key[0], len(key[1]), key[1]))  # episode 9 comes before 10
    if 0 < count < len(keys):
        keys = [keys[round(i)] for i in np.linspace(0, len(keys) - 1, count)]
    elif count > len(keys):
        logger.warning(f"habitat_baselines.test_episode_count is {count}, but there are {len(keys)} episodes")
    chosen: list[Keys] = [[] for _ in range(envs.num_envs)]
    for key in keys:
        min((chosen[index] for index in having[key]), key=len).append(key)
    return chosen
