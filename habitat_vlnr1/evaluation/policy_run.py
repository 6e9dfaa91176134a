"""One row of an evaluation's table: a policy walks its episodes, and each is written down when it ends.

A policy that says which environments wait for it (`ScriptedPolicy.waiting`) is asked when all do: the others go on to
the end of their plans, and one batch then answers for all. Until then memories note the frames and nothing is made
of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from habitat_baselines.common.obs_transformers import apply_obs_transforms_batch
from habitat_baselines.rl.ppo.evaluator import pause_envs
from habitat_baselines.utils.common import batch_obs, get_action_space_info, inference_mode
from habitat_baselines.utils.info_dict import extract_scalars_from_info
from omegaconf import DictConfig
from tqdm import tqdm

from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.config import plain
from habitat_vlnr1.episode_log import EpisodeLog, episode_key, episode_line
from habitat_vlnr1.evaluation import pictures
from habitat_vlnr1.evaluation.rows import Row
from habitat_vlnr1.obs_transform import LongShortMemory, remember
from habitat_vlnr1.observations import EXPERT
from habitat_vlnr1.report.recording import WalkRecord, WalkRecorder, megabytes
from habitat_vlnr1.results import LeftOut, summarise, write_json
from habitat_vlnr1.sim.gym_env import TRACE
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
    record: WalkRecord | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.episode.scene_id, str(self.episode.episode_id)


def _rounded(pose: Sequence[float]) -> list[float]:
    return [round(float(value), 4) for value in pose]


@dataclass
class Outcome:
    """What a policy's run has left on disk.

    Args:
        policy: the row's name.
        split: of the data set.
        protocol: what was measured under.
        log: the episodes' lines.
        keys: `episode_key`s of all episodes, those of other processes too.
        walked: how many this process has finished now.
    """

    policy: str
    split: str
    protocol: dict[str, Any]
    log: EpisodeLog
    keys: list[str]
    walked: int
    summary: dict[str, Any] | None = None

    def summarise(self, left_out: Sequence[LeftOut]) -> dict[str, Any] | None:
        """Write the summary of all episodes, once, and return it; None while other processes are at theirs.

        Args:
            left_out: episodes of the split that no environment has.
        """
        if self.summary is not None:
            return self.summary
        given_up = self.log.gather(self.keys)
        if given_up is None:
            return None
        lines = [self.log.lines[key] for key in self.keys if key in self.log.lines]
        self.summary = summarise(lines, self.policy, self.split, self.protocol, [*left_out, *given_up])
        write_json(self.log.folder / "summary.json", self.summary)
        return self.summary


class PolicyRun:
    """One policy over the episodes of this process.

    Args:
        name: the row's.
        row: the policy, and what its observations go through.
        envs: all awake.
        config: the run's.
        protocol: `vlnr1.protocol`.
        task: identity of the episodes (`task_identity`).
        chosen: all episodes, by the environment that has them.
        shard: which of how many processes this is: of each environment's episodes it takes its share.
        device: where observations go.
    """

    def __init__(
        self,
        name: str,
        row: Row,
        envs: Any,
        config: DictConfig,
        protocol: dict[str, Any],
        task: dict[str, Any],
        chosen: Sequence[Sequence[tuple[str, str]]],
        shard: tuple[int, int],
        device: torch.device,
    ):
        self.name, self.row, self.policy, self.envs, self.config = name, row, row.policy, envs, config
        self.protocol, self.task, self.device = protocol, task, device
        self.split = config.habitat_baselines.eval.split
        self.given_up: list[LeftOut] = []
        number, count = shard
        self.label = f"{name} {number}/{count}" if count > 1 else name
        self.log = EpisodeLog(Path(config.vlnr1.results_dir) / name / self.split, self._identity(), number, count)
        self.all_keys = sorted(key for keys in chosen for key in keys)
        own = [keys[len(keys) * number // count : len(keys) * (number + 1) // count] for keys in chosen]
        self.total = sum(map(len, own))
        self.left = [{key for key in keys if self._line_key(key) not in self.log.lines} for keys in own]
        videos = min(config.vlnr1.eval.videos, len(self.all_keys))
        self.on_video = {self.all_keys[round(i)] for i in np.linspace(0, len(self.all_keys) - 1, videos)}
        budget = megabytes(config.vlnr1.eval.report_mb) // len(config.vlnr1.eval.policies)
        self.recorder = WalkRecorder(self.log.folder, budget, self.all_keys)

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
        for transform in self.row.obs_transforms:
            if isinstance(transform, LongShortMemory):
                identity["jpeg_quality"] = transform.jpeg_quality
        return identity

    def run(self) -> Outcome:
        """Walk what is left; all environments are awake afterwards."""
        left = sum(map(len, self.left))
        with tqdm(total=self.total, initial=self.total - left, desc=self.label, unit="episode") as self.bar:
            try:
                if left:
                    self._loop()
                self.log.give_up(self.given_up)
            finally:
                self.log.close()
                self.envs.resume_all()
        keys = [self._line_key(key) for key in self.all_keys]
        return Outcome(self.name, self.split, self.protocol, self.log, keys, left)

    def _loop(self) -> None:
        """Step the environments that do not wait for an answer; one that has finished its episodes is paused."""
        observations, running = self._start()
        state = self._first_state(self.envs.num_envs)
        observations, running = self._pause_finished(state, observations, running)
        while self.envs.num_envs:
            rows, batch = self._due(observations)
            action_data, actions = self._act(batch, state, rows)
            for index, action in zip(rows, actions, strict=True):
                self.envs.async_step_at(index, action)
            outputs = [self.envs.wait_step_at(index) for index in rows]
            infos, dones = [info for *_, info in outputs], [done for _, _, done, _ in outputs]
            said = self.policy.get_extra(action_data, infos, dones)
            for number, (index, (observation, _, done, info)) in enumerate(zip(rows, outputs, strict=True)):
                episode = running[index]
                assert episode is not None  # `_pause_finished` leaves out environments without one
                if LOST not in info:
                    words = said[number] if said else {}
                    self._follow(episode, observations[index], actions[number], info, words)
                observations[index], state["masks"][index] = observation, not done
                if done:
                    running[index] = self._end(index, episode, info)
            observations, running = self._pause_finished(state, observations, running)

    def _start(self) -> tuple[list[Any], list[_Running | None]]:
        """The first views of the environments that have something to do, and their episodes."""
        envs = self.envs
        for index in reversed([index for index, left in enumerate(self.left) if not left]):
            envs.pause_at(index)
        self.left = [left for left in self.left if left]
        for index, left in enumerate(self.left):
            envs.call_at(index, "keep_episodes", {"keys": sorted(left)})
        observations = envs.reset()
        for index in range(envs.num_envs):
            self._give_up(index)
        return observations, [self._begin(index) if left else None for index, left in enumerate(self.left)]

    def _end(self, index: int, episode: _Running, info: Mapping[str, Any]) -> _Running | None:
        """Write down the episode that environment `index` was in; the one that it has begun since, if any."""
        if LOST not in info:
            self._finish(episode, self.left[index], info)
        self._give_up(index)
        return self._begin(index) if self.left[index] else None

    def _due(self, observations: Sequence[Mapping[str, np.ndarray]]) -> tuple[list[int], Any]:
        """Which environments act now, and their batch: those with a plan, or all, when all wait for an answer."""
        batch: Any = batch_obs(self.envs.post_step(observations), device=self.device)
        ask = getattr(self.policy, "waiting", None)
        waiting = ask(batch) if ask else [True] * len(observations)
        if all(waiting):
            return list(range(len(observations))), apply_obs_transforms_batch(batch, self.row.obs_transforms)
        remember(batch, self.row.obs_transforms)
        rows = [index for index, waits in enumerate(waiting) if not waits]
        return rows, {key: value[rows] for key, value in batch.items()}

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

    def _act(self, batch: Any, state: dict[str, torch.Tensor], rows: list[int]) -> tuple[Any, list[int]]:
        hidden, prev_actions = state["hidden"][rows], state["prev_actions"][rows]
        with inference_mode():
            action_data = self.policy.act(
                batch, hidden, prev_actions, state["masks"][rows], deterministic=self.row.deterministic
            )
            if action_data.should_inserts is None:
                hidden = action_data.rnn_hidden_states
                prev_actions.copy_(action_data.actions)
            else:
                self.policy.update_hidden_state(hidden, prev_actions, action_data)
        state["hidden"][rows], state["prev_actions"][rows] = hidden, prev_actions
        return action_data, [int(action) for action in action_data.env_actions.flatten().tolist()]

    def _begin(self, index: int) -> _Running:
        """Note the episode that environment `index` has just been reset to."""
        episode = self.envs.call_at(index, "current_episode", {"all_info": True})
        pose, unusable = self.envs.call_at(index, "pose"), self.envs.call_at(index, "why_unusable")
        running = _Running(episode, time.monotonic(), [_rounded(pose)], unusable)
        if running.key not in self.left[index]:
            raise RuntimeError(f"environment {index} is at episode {running.key}, which is not its to evaluate")
        running.record = self._record(index, running)
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

    def _record(self, index: int, running: _Running) -> WalkRecord | None:
        """For the report: what is known of a walk before its first step."""
        episode, goals = running.episode, getattr(running.episode, "goals", None) or []
        facts = {
            "episode_id": running.key[1],
            "reference_path": [_rounded(point) for point in getattr(episode, "reference_path", None) or []],
            "goal": _rounded(goals[0].position) if goals else None,
            "radius": self.protocol["success_distance"],
        }
        topdown = partial(self.envs.call_at, index, "topdown_map")
        return self.recorder.begin(running.key, self._scene(episode.scene_id), topdown, facts)

    def _follow(
        self, running: _Running, observation: Mapping[str, Any], action: int, info: Mapping[str, Any], said: Mapping
    ) -> None:
        """Note one step: what was seen before it, what was done, and where that led."""
        running.actions.append(action)
        running.poses.append(_rounded(info[TRACE]))
        running.invalid_answers += int(said.get(INVALID, 0))
        if running.record is not None:
            running.record.add(observation.get("rgb"), said.get(TEXT))
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
        if running.record is not None:
            running.record.write()
        self.log.append(line)
        left.remove(running.key)
        successes = [done["metrics"].get("SR") or 0.0 for done in self.log.lines.values()]
        self.bar.set_postfix(SR=f"{np.mean(successes):.3f}", refresh=False)
        self.bar.update()
        if running.replay is not None:
            replay = running.replay
            replay.actions, replay.poses, replay.metrics = running.actions, [*running.poses], line["metrics"]
            pictures.save(replay, self.log.folder / "videos", fps=self.config.habitat_baselines.video_fps)

    def _pause_finished(
        self, state: dict[str, torch.Tensor], observations: list[Any], running: list[_Running | None]
    ) -> tuple[list[Any], list[_Running | None]]:
        """Put to sleep the environments without episodes, and leave them out of everything."""
        finished = [index for index, left in enumerate(self.left) if not left]
        if not finished:
            return observations, running
        unused = torch.zeros(len(running), 1)  # Habitat's sum of rewards, which VLN has no use for
        no_frames: Any = None  # Habitat takes this for no videos, too
        _, state["hidden"], state["masks"], _, state["prev_actions"], _, _ = pause_envs(
            finished, self.envs, state["hidden"], state["masks"], unused, state["prev_actions"], {}, no_frames
        )
        self.policy.on_envs_pause(finished)
        self.left = [left for left in self.left if left]
        keep = [index for index in range(len(running)) if index not in finished]
        return [observations[index] for index in keep], [running[index] for index in keep]
