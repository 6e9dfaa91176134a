"""Evaluation inside Habitat-Baselines' own flow (`habitat_baselines.evaluator._target_` names `VLNR1Evaluator`).

`habitat_baselines.evaluate=True` → BaseTrainer.eval → PPOTrainer._eval_checkpoint → `evaluate_agent` here, which
evaluates every policy in `vlnr1.eval.policies` (name → registered policy) on the same episodes in the same
environments, one after the other, and prints one table. Needs `habitat.env_task: VLNR1GymEnv`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from habitat.core.logging import logger
from habitat_baselines.common.obs_transformers import apply_obs_transforms_batch
from habitat_baselines.rl.ppo.evaluator import Evaluator, pause_envs
from habitat_baselines.utils.common import batch_obs, get_action_space_info, inference_mode
from habitat_baselines.utils.info_dict import extract_scalars_from_info
from omegaconf import DictConfig
from tqdm import tqdm

from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.config import plain
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.evaluation import pictures
from habitat_vlnr1.evaluation.rows import Row, RowMaker
from habitat_vlnr1.observations import EXPERT
from habitat_vlnr1.results import (
    METRICS,
    EpisodeLog,
    LeftOut,
    episode_key,
    episode_line,
    protocol_text,
    summarise,
    table,
    write_json,
)
from habitat_vlnr1.sim.gym_env import TRACE
from habitat_vlnr1.sim.task_files import task_identity
from habitat_vlnr1.sim.vector_env import LOST, newly_lost
from habitat_vlnr1.weights import folder_fingerprint

MEASURES = {
    "success": "SR",
    "oracle_success": "OS",
    "spl": "SPL",
    "distance_to_goal": "NE",
    "path_length": "TL",
    "ndtw": "nDTW",
    "sdtw": "sDTW",
}
"""Habitat's measure → its name in VLN's tables."""

TEXT, INVALID = "vlnr1_text", "vlnr1_invalid"
"""What a policy may put into `policy_info`, per environment: a new answer, and whether it was invalid."""


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
        """Habitat's entry point; returns the summaries that it also writes and prints."""
        protocol: Any = plain(config.vlnr1.protocol)
        print(protocol_text(protocol), flush=True)
        agent.eval()
        rows = RowMaker(agent, config, env_spec, envs.observation_spaces[0], obs_transforms).rows(device)
        chosen = choose_episodes(envs, config.habitat_baselines.test_episode_count)
        task = task_identity(config, config.habitat_baselines.eval.split)
        left_out = list(getattr(envs, "left_out", ()))  # before any was walked, by our environment factory
        summaries = []
        for name, row in rows.items():
            if EXPERT in env_spec.observation_space.spaces:
                for index in range(envs.num_envs):  # the expert plans at every step, as dear as the picture
                    envs.call_at(index, "silence", {"uuid": EXPERT, "silent": not row.reads(EXPERT)})
            summary = _Evaluation(name, row, envs, config, protocol, task, chosen, device).run(left_out)
            for metric in METRICS:
                if summary[metric] is not None:
                    writer.add_scalar(f"eval_{name}/{metric}", summary[metric], step_id)
            summaries.append(summary)
        print(table(summaries), flush=True)
        envs.left_out = list(dict.fromkeys(LeftOut(**entry) for s in summaries for entry in s["left_out"]))
        return summaries


def choose_episodes(envs: Any, count: int) -> list[list[tuple[str, str]]]:
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
    chosen: list[list[tuple[str, str]]] = [[] for _ in range(envs.num_envs)]
    for key in keys:
        min((chosen[index] for index in having[key]), key=len).append(key)
    return chosen


@dataclass
class _Running:
    """An episode under way in one environment."""

    episode: Any
    started: float
    poses: list[list[float]]
    unusable: str | None = None
    actions: list[int] = field(default_factory=list)
    invalid_answers: int = 0
    replay: pictures.Replay | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.episode.scene_id, str(self.episode.episode_id)


def _rounded(pose: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in pose]


class _Evaluation:
    """One policy over its episodes."""

    def __init__(
        self,
        name: str,
        row: Row,
        envs: Any,
        config: DictConfig,
        protocol: dict[str, Any],
        task: dict[str, Any],
        chosen: Sequence[Sequence[tuple[str, str]]],
        device: torch.device,
    ):
        self.name, self.row, self.policy, self.envs, self.config = name, row, row.policy, envs, config
        self.protocol, self.task, self.device = protocol, task, device
        self.split = config.habitat_baselines.eval.split
        self.given_up: list[LeftOut] = []
        self.folder = Path(config.vlnr1.results_dir) / name / self.split
        self.log = EpisodeLog(self.folder, self._identity())
        self.all_keys = sorted(key for keys in chosen for key in keys)
        self.left = [{key for key in keys if self._line_key(key) not in self.log.lines} for keys in chosen]
        videos = min(config.vlnr1.eval.videos, len(self.all_keys))
        self.on_video = {self.all_keys[round(i)] for i in np.linspace(0, len(self.all_keys) - 1, videos)}

    def _scene(self, scene_id: str) -> str:
        """The scene as the dataset's file names it; Habitat puts the scenes' folder in front."""
        return scene_id.removeprefix(self.config.habitat.dataset.scenes_dir.rstrip("/") + "/")

    def _line_key(self, key: tuple[str, str]) -> str:
        return episode_key({"scene_id": self._scene(key[0]), "episode_id": key[1]})

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the results; see `EpisodeLog`."""
        own = self.row.identity
        identity = {"policy": self.name, "split": self.split, "protocol": self.protocol, "task": self.task, **own}
        sensors = self.config.habitat.task.lab_sensors
        if EXPERT in sensors and self.row.reads(EXPERT):
            identity["expert"] = plain(sensors[EXPERT])
        if "checkpoint" in own and "weights" not in own:
            memory = plain(self.config.vlnr1.memory)
            identity |= {"memory": memory, "weights": folder_fingerprint(own["checkpoint"])}
        return identity

    def run(self, left_out: Sequence[LeftOut]) -> dict[str, Any]:
        """Evaluate what is left, write and return the summary; all environments are awake afterwards.

        left_out: episodes of the split that no environment has, for the summary.
        """
        total, done = len(self.all_keys), len(self.all_keys) - sum(map(len, self.left))
        with tqdm(total=total, initial=done, desc=self.name, unit="episode") as self.bar:
            try:
                if done < total:
                    self._loop()
            finally:
                self.log.close()
                self.envs.resume_all()
        keys = map(self._line_key, self.all_keys)
        lines = [self.log.lines[key] for key in keys if key in self.log.lines]
        summary = summarise(lines, self.name, self.split, self.protocol, [*left_out, *self.given_up])
        write_json(self.folder / "summary.json", summary)
        return summary

    def _loop(self) -> None:
        """Step all environments together; one that has finished its episodes is paused."""
        envs = self.envs
        idle = [index for index, left in enumerate(self.left) if not left]
        for index in reversed(idle):
            envs.pause_at(index)
        self.left = [left for left in self.left if left]
        for index, left in enumerate(self.left):
            envs.call_at(index, "keep_episodes", {"keys": sorted(left)})
        observations = envs.reset()
        for index in range(envs.num_envs):
            self._give_up(index)
        running: list[_Running | None] = [self._begin(index) if left else None for index, left in enumerate(self.left)]
        state = self._first_state(envs.num_envs)
        batch = self._batch(observations)
        batch, observations, running = self._pause_finished(batch, state, observations, running)
        while envs.num_envs:
            action_data, actions = self._act(batch, state)
            outputs = envs.step(actions)
            infos = [info for _, _, _, info in outputs]
            said = self.policy.get_extra(action_data, infos, [done for _, _, done, _ in outputs])
            for index, (_, _, done, info) in enumerate(outputs):
                given_up, episode = LOST in info, running[index]
                assert episode is not None  # `_pause_finished` leaves out environments without one
                if not given_up:
                    words = said[index] if said else {}
                    self._follow(episode, observations[index], actions[index], info, words)
                if done:
                    if not given_up:
                        self._finish(episode, self.left[index], info)
                    self._give_up(index)
                    if self.left[index]:
                        running[index] = self._begin(index)
            observations = [observation for observation, _, _, _ in outputs]
            state["masks"] = torch.tensor([[not done] for _, _, done, _ in outputs], device=self.device)
            batch = self._batch(observations)
            batch, observations, running = self._pause_finished(batch, state, observations, running)

    def _give_up(self, index: int) -> None:
        """Leave out what an environment's simulator has died of. No line says so: the next start tries it again."""
        for key, why in newly_lost(self.envs, index).items():
            self.given_up.append(LeftOut(key[1], self._scene(key[0]), why))
            self.left[index].discard(key)

    def _first_state(self, n: int) -> dict[str, torch.Tensor]:
        """What Habitat carries from step to step for recurrent policies, of shape [n, …]."""
        shape, discrete = get_action_space_info(self.policy.policy_action_space)
        dtype = torch.long if discrete else torch.float
        return {
            "hidden": torch.zeros(n, *self.policy.hidden_state_shape, device=self.device),
            "prev_actions": torch.zeros(n, *shape, device=self.device, dtype=dtype),
            "masks": torch.zeros(n, 1, device=self.device, dtype=torch.bool),
        }

    def _batch(self, observations: Sequence[Mapping[str, np.ndarray]]) -> Any:
        batch: Any = batch_obs(self.envs.post_step(observations), device=self.device)
        return apply_obs_transforms_batch(batch, self.row.obs_transforms)

    def _act(self, batch: Any, state: dict[str, torch.Tensor]) -> tuple[Any, list[int]]:
        with inference_mode():
            action_data = self.policy.act(
                batch,
                state["hidden"],
                state["prev_actions"],
                state["masks"],
                deterministic=self.row.deterministic,
            )
            if action_data.should_inserts is None:
                state["hidden"] = action_data.rnn_hidden_states
                state["prev_actions"].copy_(action_data.actions)
            else:
                self.policy.update_hidden_state(state["hidden"], state["prev_actions"], action_data)
        return action_data, [int(action) for action in action_data.env_actions.flatten().tolist()]

    def _begin(self, index: int) -> _Running:
        """Note the episode that environment `index` has just been reset to."""
        episode = self.envs.call_at(index, "current_episode", {"all_info": True})
        pose, unusable = self.envs.call_at(index, "pose"), self.envs.call_at(index, "why_unusable")
        running = _Running(episode, time.monotonic(), [_rounded(pose)], unusable)
        if running.key not in self.left[index]:
            raise RuntimeError(f"environment {index} is at episode {running.key}, which is not its to evaluate")
        if running.key in self.on_video:
            goals = getattr(episode, "goals", None) or []
            running.replay = pictures.Replay(
                policy=self.name,
                scene=Path(episode.scene_id).stem,
                episode_id=running.key[1],
                instruction=episode.instruction.instruction_text,
                space=ActionSpace(self.protocol["forward_step"], self.protocol["turn_angle"]),
                topdown=self.envs.call_at(index, "topdown_map"),
                reference_path=getattr(episode, "reference_path", None) or [],
                goal=goals[0].position if goals else None,
                radius=self.protocol["success_distance"],
            )
        return running

    def _follow(
        self, running: _Running, observation: Mapping[str, Any], action: int, info: Mapping[str, Any], said: Mapping
    ) -> None:
        """Note one step: what was seen before it, what was done, and where that led."""
        running.actions.append(action)
        running.poses.append(_rounded(info[TRACE]))
        running.invalid_answers += int(said.get(INVALID, 0))
        if running.replay is not None:
            running.replay.frames.append(np.asarray(observation["rgb"][..., :3]))
            before = running.replay.answers[-1] if running.replay.answers else ""
            running.replay.answers.append(said.get(TEXT, before))

    def _finish(self, running: _Running, left: set[tuple[str, str]], info: Mapping[str, Any]) -> None:
        """Write the episode down."""
        episode = running.episode
        measures = extract_scalars_from_info({key: value for key, value in info.items() if key != TRACE})
        metrics = {MEASURES.get(key, key): value for key, value in measures.items()}
        line = episode_line(
            metrics,
            episode_id=running.key[1],
            scene_id=self._scene(episode.scene_id),
            trajectory_id=getattr(episode, "trajectory_id", None),
            instruction_id=getattr(episode.instruction, "instruction_id", None),
            instruction=episode.instruction.instruction_text,
            unusable=running.unusable,
            stopped=running.actions[-1] == Action.STOP,
            steps=len(running.actions),
            seconds=round(time.monotonic() - running.started, 3),
            invalid_answers=running.invalid_answers,
            actions=running.actions,
            positions=[pose[:3] for pose in running.poses],
            headings=[pose[3] for pose in running.poses],
        )
        self.log.append(line)
        left.remove(running.key)
        successes = [done["metrics"].get("SR") or 0.0 for done in self.log.lines.values()]
        self.bar.set_postfix(SR=f"{np.mean(successes):.3f}", refresh=False)
        self.bar.update()
        if running.replay is not None:
            replay = running.replay
            replay.actions, replay.poses, replay.metrics = running.actions, [*running.poses], line["metrics"]
            pictures.save(replay, self.folder / "videos", fps=self.config.habitat_baselines.video_fps)

    def _pause_finished(
        self, batch: Any, state: dict[str, torch.Tensor], observations: list[Any], running: list[_Running | None]
    ) -> tuple[Any, list[Any], list[_Running | None]]:
        """Put to sleep the environments without episodes, and leave them out of everything."""
        finished = [index for index, left in enumerate(self.left) if not left]
        if not finished:
            return batch, observations, running
        unused = torch.zeros(len(running), 1)  # Habitat's sum of rewards, which VLN has no use for
        no_frames: Any = None  # Habitat takes this for no videos, too
        _, state["hidden"], state["masks"], _, state["prev_actions"], batch, _ = pause_envs(
            finished, self.envs, state["hidden"], state["masks"], unused, state["prev_actions"], batch, no_frames
        )
        self.policy.on_envs_pause(finished)
        self.left = [left for left in self.left if left]
        keep = [index for index in range(len(running)) if index not in finished]
        return batch, [observations[index] for index in keep], [running[index] for index in keep]
