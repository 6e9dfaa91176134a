"""DAgger (Ross et al. 2011) for answers of n actions, as a Habitat-Baselines trainer.

An expert's own walks never show what to do after a mistake. In each round of `vlnr1_dagger` a mixture of expert and
newest checkpoint walks training episodes, the expert says at every state what *its* next n actions from there would be
(the lab sensor `vlnr1_plan`), and training goes on, on the original records and on those of all rounds. A round's
walks are a VLN-Ego set of their own, `<root>/<source>_<run>_dagger_<round>`, that says where it comes from. Whatever
is interrupted goes on: whole walks, the newest checkpoint, finished rounds are found again.

The expert takes over where the model errs (`vlnr1.dagger.take_over`), so that every walk soon comes to its goal after
a mistake; or it acts with probability beta, as in the original.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from habitat_baselines.common.obs_transformers import (
    apply_obs_transforms_batch,
    apply_obs_transforms_obs_space,
    get_active_obs_transforms,
)
from habitat_baselines.utils.common import batch_obs, inference_mode
from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.actions import Action
from habitat_vlnr1.config import check_sources, edited, export_folder, plain
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.files import write_atomically
from habitat_vlnr1.observations import EXPERT, PLAN
from habitat_vlnr1.optimisation import sft_arguments
from habitat_vlnr1.policies.mixture import HELPED, MixturePolicy, make_rule
from habitat_vlnr1.records import VLNEgo, summarize
from habitat_vlnr1.results import LeftOut, left_out_text, print_left_out
from habitat_vlnr1.sim.task_files import task_identity
from habitat_vlnr1.trainers.base import VLNR1Trainer, only_trainer, register_trainer
from habitat_vlnr1.trainers.export import depth_meta, is_exported
from habitat_vlnr1.trainers.walks import Walk, Walkers
from habitat_vlnr1.weights import folder_fingerprint

SPLIT = "train"


@register_trainer("vlnr1_dagger")
class DAggerTrainer(VLNR1Trainer):
    """Trains `vlnr1.dagger.start` for `vlnr1.dagger.rounds` rounds, then evaluates it beside where it started."""

    def train(self) -> None:
        from habitat_vlnr1.lvlm.checkpoint import newest_checkpoint
        from habitat_vlnr1.trainers.fitting import (
            check_start,
            join_processes,
            last_checkpoint,
            leave_processes,
            open_records,
        )
        from habitat_vlnr1.trainers.processes import by_one
        from habitat_vlnr1.trainers.sft_fit import fit

        # What the config gets wrong is said before any work.
        sft_arguments(self.config)
        rules = schedule(self.config)
        data = self.config.vlnr1.data
        check_sources(self.config, [(source, SPLIT) for source in data.sources])
        walked = [data.source, *round_config(self.config, len(rules)).vlnr1.data.sources]
        check_sources(self.config, [(source, SPLIT) for source in walked], missing=True)
        start = check_start(self.config, "dagger")
        state = join_processes(self.config)
        with only_trainer(Path(self.config.vlnr1.run_dir) / "dagger", state.is_main_process):
            for number, rule in enumerate(rules, start=1):
                config = round_config(self.config, number)
                folder = config.habitat_baselines.checkpoint_folder
                if not last_checkpoint(folder, config.vlnr1.sft)[1]:
                    print(f"DAgger round {number} of {len(rules)}, from {start}")
                    by_one("walks and labels episodes", partial(self._roll_in, config, number, rule, start))
                records = open_records(config, [(source, SPLIT) for source in config.vlnr1.data.sources])
                fit(config, start, records, stage="dagger")  # a finished round is only compared
                state.wait_for_everyone()  # the main process writes the last checkpoint's card
                newest = newest_checkpoint(folder)
                assert newest is not None, "a training saves at its last step"
                start = newest
        leave_processes(state)
        if self.config.vlnr1.sft.evaluate:
            self.eval()

    def _roll_in(self, config: DictConfig, number: int, rule: dict[str, Any], start: str) -> None:
        """The walks of a round, where they are not there yet; `config` is the round's."""
        if config.vlnr1.dagger.episodes > 0 and not is_exported(config, SPLIT):
            roll_in(self, self.config, number, rule, start)


def schedule(config: DictConfig) -> list[dict[str, Any]]:
    """The mixture's rule in each round: `take_over`, or `beta` as a list or as the base of beta^round.

    Raises:
        ValueError: no round, a list of betas of another length than `rounds`, or options that the rule does not take.
    """
    dagger = config.vlnr1.dagger
    if dagger.rounds < 1:
        raise VLNR1Error(f"vlnr1.dagger.rounds is {dagger.rounds}: give at least 1")
    if dagger.take_over is not None:
        rules = [{"name": "disagreement", **dagger.take_over}] * dagger.rounds
    else:
        listed = OmegaConf.is_list(dagger.beta)
        betas = dagger.beta if listed else [dagger.beta**number for number in range(1, dagger.rounds + 1)]
        if len(betas) != dagger.rounds:
            raise VLNR1Error(f"vlnr1.dagger: {dagger.rounds} rounds and {len(betas)} betas: give one beta per round")
        rules = [
            {"name": "probability", "share": beta, "every": dagger.draw_every, "seed": config.habitat.seed + number}
            for number, beta in enumerate(betas, start=1)
        ]
    try:
        for rule in rules:
            make_rule(**rule)
    except ValueError as error:
        raise VLNR1Error(f"vlnr1.dagger.{'beta' if dagger.take_over is None else 'take_over'}: {error}") from None
    return rules


def round_config(config: DictConfig, number: int) -> DictConfig:
    """The config of a round: what it writes and what it trains on."""
    run = Path(config.vlnr1.run_dir)
    own = [f"{config.vlnr1.data.source}_{run.name}_dagger_{k}" for k in range(1, number + 1)]
    walked = own if config.vlnr1.dagger.episodes > 0 else []
    return edited(
        config,
        **{
            "vlnr1.data.source": own[-1],
            "vlnr1.data.sources": [*config.vlnr1.data.sources, *walked],
            "habitat_baselines.checkpoint_folder": str(run / f"dagger/round_{number}/checkpoints"),
            "habitat_baselines.tensorboard_dir": str(run / f"dagger/round_{number}/tb"),
        },
    )


def draw_episodes(config: DictConfig, number: int) -> list[str]:
    """Ids of a round's episodes: exported ones (the expert can walk those), others in each round while there are."""
    exported = VLNEgo(export_folder(config, SPLIT)).episodes
    count = config.vlnr1.dagger.episodes
    if count > len(exported):
        raise VLNR1Error(f"vlnr1.dagger.episodes is {count}, but {len(exported)} episodes are exported")
    order = np.random.default_rng(config.habitat.seed).permutation(len(exported))
    places = range((number - 1) * count, number * count)
    return sorted(exported[order[place % len(order)]].episode_id for place in places)


def walking_config(config: DictConfig, number: int, rule: dict[str, Any], start: str) -> DictConfig:
    """The config of a roll-in: the mixture, its episodes, and the expert's plan at `every`-th step."""
    dagger = config.vlnr1.dagger
    mode = dagger.expert or ("pursuit" if config.vlnr1.task.expert == "ground_truth" else config.vlnr1.task.expert)
    plan = config.vlnr1.extra_sensors[PLAN]
    return edited(
        config,
        **{
            "habitat.dataset.split": SPLIT,
            "habitat.dataset.episode_ids": draw_episodes(config, number),
            "habitat.environment.iterator_options.shuffle": False,
            "habitat_baselines.num_environments": dagger.num_environments,
            "vlnr1.mixture": {"lead": "VLNR1Policy", "helper": "OraclePolicy", "rule": rule},
            "vlnr1.checkpoint": start,
            "vlnr1.decoding.temperature": dagger.temperature,
            "vlnr1.observations": {**config.vlnr1.observations, PLAN: "the expert's next actions"},
            f"habitat.task.lab_sensors.{PLAN}": plan,
            f"habitat.task.lab_sensors.{PLAN}.mode": mode,
            f"habitat.task.lab_sensors.{EXPERT}.mode": mode,
            f"habitat.task.lab_sensors.{EXPERT}.waypoint_radius": plan.waypoint_radius,
        },
    )


def provenance(config: DictConfig, number: int, rule: dict[str, Any], start: str) -> dict[str, Any]:
    """What stands in the `meta.json` of a round's set; `config` is that of the walk."""
    dagger, plan = config.vlnr1.dagger, config.habitat.task.lab_sensors[PLAN]
    return {
        "split": SPLIT,
        "dataset": config.habitat.dataset.type,
        "task": task_identity(config, SPLIT),
        "protocol": plain(config.vlnr1.protocol),
        "expert": plan.mode,
        "jpeg_quality": config.vlnr1.export.jpeg_quality,
        **depth_meta(config),
        "dagger": {
            "round": number,
            "rule": rule,
            "checkpoint": start,
            "weights": folder_fingerprint(start),
            "temperature": dagger.temperature,
            "execute_horizon": config.vlnr1.decoding.execute_horizon,
            "plan": {"num_actions": plan.num_actions, "every": plan.every},
            "episodes": dagger.episodes,
            "seed": config.habitat.seed,
        },
    }


def roll_in(trainer: VLNR1Trainer, config: DictConfig, number: int, rule: dict[str, Any], start: str) -> None:
    """Walk and label a round's episodes, and say how that went. Goes on where an earlier call was stopped."""
    root = export_folder(round_config(config, number), SPLIT)
    config = walking_config(config, number, rule, start)
    writer = EpisodeWriter(root, provenance(config, number, rule, start))
    print(f"Rolling in to {root}" + (f" ({len(writer.done)} episodes are there)" if writer.done else ""))
    before, started = len(writer.done), time.monotonic()
    trainer._init_envs(config, is_eval=True)
    try:
        walkers = RollIn(trainer.envs, writer, config, silent=rule.get("share") == 0)
        walkers.walk_all()
    finally:
        trainer.envs.close()
        writer.close()
    seconds = time.monotonic() - started
    episodes = VLNEgo(root).episodes
    done = {
        "success": round(float(np.mean([episode.info["success"] for episode in episodes])), 3),
        "alone": round(float(np.mean([episode.info["expert_steps"] == 0 for episode in episodes])), 3),
        "expert_share": round(
            sum(episode.info["expert_steps"] for episode in episodes) / sum(len(e.actions) for e in episodes), 3
        ),
    }
    left_out = [*trainer.envs.left_out, *walkers.unusable]
    summary = {**summarize(episodes), **done, "skipped": walkers.skipped}
    summary["left_out"] = [entry._asdict() for entry in left_out]
    write_atomically(root / "summary.json", json.dumps(summary, indent=2).encode())
    print(
        f"Round {number}: {summary['episodes']} episodes ({len(episodes) - before} in {seconds:.0f} s), "
        f"{summary['records']} records; success {done['success']:.2f}, {done['alone']:.0%} of the walks without the "
        f"expert, {done['expert_share']:.0%} of the steps the expert's; skipped {len(walkers.skipped)}"
    )
    skipped = [LeftOut(name, "", why) for name, why in walkers.skipped.items()]
    print_left_out(left_out_text([*left_out, *skipped]), f"Round {number}")


class RollIn(Walkers):
    """A mixture of expert and model walks in all environments at once, and the expert's plans are noted.

    Args:
        envs: as `Walkers`, with the expert's plan among the observations.
        writer: where whole episodes go.
        config: of the walk, with `vlnr1.mixture`.
        silent: the expert does not act, so the environments need not ask it at every step.
    """

    def __init__(self, envs: Any, writer: EpisodeWriter, config: DictConfig, silent: bool):
        super().__init__(envs, writer, config)
        self.transforms = get_active_obs_transforms(config)
        space = apply_obs_transforms_obs_space(envs.observation_spaces[0], self.transforms)
        self.policy = MixturePolicy.from_config(config, space, envs.action_spaces[0]).eval()
        for index in range(envs.num_envs if silent else 0):
            envs.call_at(index, "silence", {"uuid": EXPERT, "silent": True})

    def _decide(self, walks: Sequence[Walk], observations: Sequence[dict[str, Any]]) -> list[int]:
        count = len(observations)
        batch: Any = batch_obs(list(observations))
        batch = apply_obs_transforms_batch(batch, self.transforms)
        with inference_mode():
            decided: Any = self.policy.act(
                batch,
                torch.zeros(count, *self.policy.hidden_state_shape),
                torch.zeros(count, 1, dtype=torch.long),
                torch.ones(count, 1, dtype=torch.bool),
            )
        for walk, observation, said in zip(walks, observations, decided.policy_info, strict=True):
            walk.expert_steps += int(said[HELPED])
            plan = observation[PLAN].tolist()
            if plan[0] >= 0:
                stop = plan.index(Action.STOP) + 1 if Action.STOP in plan else None
                walk.labels[len(walk.actions)] = tuple(plan[:stop])
        return decided.env_actions.flatten().tolist()

    def _finish(self, walk: Walk, info: dict[str, Any]) -> None:
        episode = walk.episode
        if walk.unusable:
            self.leave_out(walk)
            return
        if not walk.labels:
            self.skipped[episode.episode_id] = "the expert finds no way to the goal"
            return
        self._write(walk, info, success=float(info["success"]), expert_steps=walk.expert_steps)
