"""One row of an evaluation's table: a policy walks its episodes, and each is written down when it ends.

A policy that plans (`VLNR1Policy.ahead`) is asked for one group of environments while the others carry out what it
said before, each in a worker process and without a word in between. Frames that no question will show are not even
rendered; memories note the others, and nothing is made of them until the next question. Any other policy is asked at
every step, for all environments at once.
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
from habitat_baselines.utils.common import batch_obs, get_action_space_info, inference_mode
from habitat_baselines.utils.info_dict import extract_scalars_from_info
from omegaconf import DictConfig
from tqdm import tqdm

from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.config import plain
from habitat_vlnr1.episode_log import EpisodeLog, episode_key, episode_line
from habitat_vlnr1.evaluation import pictures
from habitat_vlnr1.evaluation.rows import Row
from habitat_vlnr1.obs_transform import LongShortMemory, looked_at, remember_walk
from habitat_vlnr1.observations import CLOCK, EXPERT, INSTRUCTION, PLAN
from habitat_vlnr1.report.recording import WalkRecord, WalkRecorder, megabytes
from habitat_vlnr1.results import LeftOut, summarise, write_json
from habitat_vlnr1.sim.gym_env import RGB, TRACE
from habitat_vlnr1.sim.side_by_side import SideBySide, groups_of
from habitat_vlnr1.sim.vector_env import LOST, Output, Stretch, newly_lost, walk_at
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


@dataclass
class _Stretch(Stretch):
    """One that may have `begun` an episode; None where none has ended, or none is left."""

    begun: _Running | None


VIDEOS = "videos"
"""In a row's folder: films and pictures of its first walks."""


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
        rows = [row for row in config.vlnr1.eval.policies.values() if row is not None]
        budget = megabytes(config.vlnr1.eval.report_mb) // len(rows)
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
        """Walk what is left."""
        left = sum(map(len, self.left))
        with tqdm(total=self.total, initial=self.total - left, desc=self.label, unit="episode") as self.bar:
            try:
                if left:
                    self._loop()
                self.log.give_up(self.given_up)
            finally:
                self.log.close()
        keys = [self._line_key(key) for key in self.all_keys]
        return Outcome(self.name, self.split, self.protocol, self.log, keys, left)

    def _loop(self) -> None:
        """Answer one group of environments after the other; each takes part until it has no episode left."""
        awake = [index for index, left in enumerate(self.left) if left]
        self._running: dict[int, _Running] = {}
        self._views: dict[int, Mapping[str, Any]] = {}
        self._said: dict[int, tuple[Any, list[int]]] = {}  # what the policy said, and the actions of its last answer
        state = self._first_state(self.envs.num_envs)
        self._needed = self._frames_needed()
        with SideBySide[_Stretch](self._groups(awake)) as at_work:
            try:
                for index in awake:
                    at_work.start(index, partial(self._enter, index))
                while back := at_work.back():
                    self._note(back, state)
                    for index in [index for index in back if not self.left[index]][::-1]:
                        self.policy.on_envs_pause([awake.index(index)])
                        awake.remove(index)
                    rows = [index for index in back if self.left[index]]
                    for index, plan in zip(rows, self._answer(rows, state) if rows else (), strict=True):
                        at_work.start(index, partial(self._carry_out, index, plan, self._shown(index, len(plan))))
            except BaseException:
                getattr(self.envs, "replace_none", lambda: None)()
                raise

    def _groups(self, awake: Sequence[int]) -> list[list[int]]:
        """Which environments are answered together. A policy that does not plan sees all: it may know them by their
        places in the batch."""
        if not hasattr(self.policy, "ahead"):
            return [list(awake)]
        usual = 1 if self.device.type == "cpu" else -(-len(awake) // 2)
        usual = len(awake) if getattr(self.policy, "asks_at_once", False) else usual
        return groups_of(awake, self.config.vlnr1.eval.together or usual)

    def _frames_needed(self) -> set[int] | None:
        """The steps of a walk whose frames the policy may look at; None: any."""
        own = set(self.envs.observation_spaces[0].spaces)
        if self.config.vlnr1.eval.render_all or own - {RGB, INSTRUCTION, CLOCK, EXPERT, PLAN}:
            return None  # who knows what other sensors and policies make of an image
        if not self.row.reads(RGB):
            return set()
        every = getattr(self.policy, "asks_every", None)
        steps = self.config.habitat.environment.max_episode_steps  # 0: no limit
        return looked_at(self.row.obs_transforms, range(0, steps + 1, every)) if every and steps else None

    def _shown(self, index: int, count: int) -> list[bool]:
        """Whether the camera is wanted after each of the next `count` actions of an environment."""
        running = self._running[index]
        if self._needed is None or running.replay is not None:
            return [True] * count
        done = len(running.actions)
        return [step in self._needed for step in range(done + 1, done + count + 1)]

    # ------------------------------------------------------------------------------- in the thread of an environment
    def _enter(self, index: int) -> _Stretch:
        """Bring an environment to the first of its episodes."""
        self.envs.call_at(index, "keep_episodes", {"keys": sorted(self.left[index])})
        (view,) = self.envs.reset_at(index)
        lost = newly_lost(self.envs, index)
        return _Stretch([], view, lost, self._begin(index) if self.left[index] - lost.keys() else None)

    def _carry_out(self, index: int, actions: list[int], shown: list[bool]) -> _Stretch:
        """Let an environment act, and begin its next episode where that ends one."""
        outputs = walk_at(self.envs, index, actions, shown)
        lost, begun = newly_lost(self.envs, index), None
        if outputs[-1][2] and self.left[index] - lost.keys() - {self._running[index].key}:
            begun = self._begin(index)
        return _Stretch(outputs, outputs[-1][0], lost, begun)

    # ------------------------------------------------------------------------------------------- in the main thread
    def _note(self, back: Mapping[int, _Stretch], state: dict[str, torch.Tensor]) -> None:
        """Write down what a group of environments has done."""
        if any(stretch.outputs for stretch in back.values()):
            last = [stretch.outputs[-1] for stretch in back.values()]
            data, _ = self._said[next(iter(back))]
            said = self.policy.get_extra(data, [info for *_, info in last], [done for _, _, done, _ in last])
            for number, (index, stretch) in enumerate(back.items()):
                self._follow(index, stretch.outputs, said[number] if said else {})
                state["masks"][index] = not stretch.outputs[-1][2]
        for index, stretch in back.items():
            for key, why in stretch.lost.items():  # no line says so: the next start tries it again
                self.given_up.append(LeftOut(key[1], self._scene(key[0]), why))
                self.left[index].discard(key)
            self._views[index] = stretch.view
            if stretch.begun is not None:
                self._running[index] = stretch.begun

    def _answer(self, rows: list[int], state: dict[str, torch.Tensor]) -> list[list[int]]:
        """What these environments do next."""
        views = [self._views[index] for index in rows]
        if self._needed == set():  # some have a frame, by chance
            views = [{key: value for key, value in view.items() if key != RGB} for view in views]
        batch: Any = batch_obs(self.envs.post_step(views), device=self.device)
        batch = apply_obs_transforms_batch(batch, self.row.obs_transforms)
        data, actions = self._act(batch, state, rows)
        ahead = self.policy.ahead(batch) if hasattr(self.policy, "ahead") else [[]] * len(rows)
        plans = [[action, *more] for action, more in zip(actions, ahead, strict=True)]
        self._said |= {index: (data, plan) for index, plan in zip(rows, plans, strict=True)}
        return plans

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

    def _follow(self, index: int, outputs: Sequence[Output], said: Mapping[str, Any]) -> None:
        """Note the steps of an answer: what was seen before each, what was done and where that led; and an end.

        Args:
            said: what the policy told about the first of them.
        """
        if LOST in outputs[-1][3]:
            return
        running, view = self._running[index], self._views[index]
        running.invalid_answers += int(said.get(INVALID, 0))
        for number, (output, action) in enumerate(zip(outputs, self._said[index][1], strict=False)):
            running.actions.append(action)
            running.poses.append(_rounded(output[3][TRACE]))
            if running.record is not None:  # of a frame that no question shows, there is none
                running.record.add(view.get(RGB), None if number else said.get(TEXT))
            if running.replay is not None:
                running.replay.frames.append(np.asarray(view[RGB][..., :3]))
                before = running.replay.answers[-1] if running.replay.answers else ""
                running.replay.answers.append(before if number else said.get(TEXT, before))
            view = output[0]
        remember_walk([output[0] for output in outputs[:-1]], self.row.obs_transforms, self.device)
        if outputs[-1][2]:
            self._finish(running, self.left[index], outputs[-1][3])

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
            pictures.save(replay, self.log.folder / VIDEOS, fps=self.config.habitat_baselines.video_fps)
