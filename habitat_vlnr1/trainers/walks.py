"""Walks that are written down as VLN-Ego: an expert's, or those of whoever decides in a subclass."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from habitat_vlnr1.actions import Action
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.frame_files import encode_depth, encode_jpeg
from habitat_vlnr1.observations import DESCRIPTION, EXPERT, decode_text
from habitat_vlnr1.records import Episode
from habitat_vlnr1.results import LeftOut
from habitat_vlnr1.sim.episode_files import GroundTruth
from habitat_vlnr1.sim.gym_env import TRACE
from habitat_vlnr1.sim.vector_env import LOST, newly_lost

STRAYED = 0.5
"""Metres that a replay may be from the recorded path. In the simulator that recorded it, it is on it to a centimetre;
another version or navmesh shifts it by some more; another turn angle leads metres away, and to a goal by luck."""
WORDS = ("instruction_id", "language", "role")
"""What an episode's `info` has of its instruction."""


@dataclass
class Walk:
    """What one environment has seen of its current episode."""

    episode: Any
    unusable: str | None
    recorded: GroundTruth | None = None  # what is replayed
    strayed: float = 0.0  # metres that a replay has been from the recorded path at most
    jpegs: list[bytes] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)
    depths: list[bytes] = field(default_factory=list)
    # Where somebody else walks (DAgger): the expert's plans by step, and how many steps were its own.
    labels: dict[int, tuple[int, ...]] = field(default_factory=dict)
    expert_steps: int = 0

    def follow(self, position: Sequence[float] | None) -> None:
        """Note how far a replay's last step has led from the recorded path."""
        if self.recorded is None or position is None:
            return
        locations, forwards = self.recorded.locations, self.actions.count(Action.FORWARD)
        if self.actions[-1] == Action.STOP:
            self.strayed = max(self.strayed, math.dist(position, locations[-1]))
        elif len(locations) == self.recorded.actions.count(Action.FORWARD) + 1:  # VLN-CE's have one per forward step
            self.strayed = max(self.strayed, math.dist(position, locations[forwards]))


class Walkers:
    """Experts walking in all environments at once.

    Args:
        envs: a VectorEnv whose observations hold rgb, instruction, the expert's action and, if wanted, descriptions.
        writer: where whole episodes go.
        config: the whole one.
        share: walk a path once, however many episodes have it; the others share its frames (`Episode.frames_of`).

    Attributes:
        skipped: episodes that the expert failed, `{episode_id: reason}`.
        unusable: episodes that nobody can walk.
    """

    def __init__(self, envs: Any, writer: EpisodeWriter, config: DictConfig, share: bool = False):
        self.envs = envs
        self.writer = writer
        self.jpeg_quality = config.vlnr1.export.jpeg_quality
        self.expert = config.habitat.task.lab_sensors[EXPERT].mode
        self.replays = self.expert == "ground_truth"
        self.share = share
        self.scenes_dir = os.path.join(config.habitat.dataset.scenes_dir, "")
        self.left: list[int] = []  # walks that each environment has still to make
        self.twins: dict[str, list[Any]] = {}  # episode_id → episodes that wait for its walk
        self.skipped: dict[str, str] = {}
        self.unusable: list[LeftOut] = []

    def walk_all(self) -> None:
        """Walk every episode that is not written yet."""
        self._leave_out_the_written()
        if not self.left:
            return
        observations = self.envs.reset()
        for i in range(self.envs.num_envs):
            self._give_up(i)
        self._pause_finished(observations)
        walks = [self._begin(i) for i in range(self.envs.num_envs)]
        episodes = sum(self.left) + sum(map(len, self.twins.values()))
        with tqdm(total=episodes, unit="episode", desc="export") as bar:
            while self.envs.num_envs:
                actions = self._decide(walks, observations)
                self.envs.async_step(actions)
                for walk, observation, action in zip(walks, observations, actions, strict=True):
                    self._look(walk, observation, action)  # pictures are encoded while the simulators step
                outputs = self.envs.wait_step()
                observations, _, dones, infos = (list(column) for column in zip(*outputs, strict=True))
                for walk, info in zip(walks, infos, strict=True):
                    walk.follow(info[TRACE][:3] if TRACE in info else None)
                if not any(dones):
                    continue
                for i in [i for i, done in enumerate(dones) if done]:
                    if LOST not in infos[i]:
                        self._finish(walks[i], infos[i])
                        self.left[i] -= 1
                        bar.update(1 + len(self._twins_of(walks[i].episode)))
                    self._give_up(i)
                    if self.left[i]:
                        walks[i] = self._begin(i)
                self._pause_finished(walks, observations)

    def _leave_out_the_written(self) -> None:
        wanted = self._walks_to_make()
        for i in reversed(range(self.envs.num_envs)):
            if wanted[i]:
                self.envs.call_at(i, "keep_episodes", {"keys": wanted[i]})
                self.left.insert(0, len(wanted[i]))
            else:
                self.envs.pause_at(i)

    def _walks_to_make(self) -> list[list[tuple[str, str]]]:
        """(scene_id, episode_id) of what each environment must walk; what only lacks its line is written."""
        every = range(self.envs.num_envs)
        if not self.share:
            keys = [self.envs.call_at(i, "episode_keys") for i in every]
            return [[key for key in here if key[1] not in self.writer.done] for here in keys]
        wanted: list[list[tuple[str, str]]] = [[] for _ in every]
        paths: dict[str, list[tuple[int, Any]]] = {}
        for i in every:
            for episode, path in self.envs.call_at(i, "episode_paths", {"expert": self.expert}):
                paths.setdefault(path, []).append((i, episode))
        for path in paths.values():
            written = [self.writer.done[e.episode_id] for _, e in path if e.episode_id in self.writer.done]
            owner = (written[0].frames_of or written[0].episode_id) if written else path[0][1].episode_id
            missing = [(i, episode) for i, episode in path if episode.episode_id not in self.writer.done]
            for i, episode in missing:
                if episode.episode_id == owner:
                    wanted[i].append((episode.scene_id, owner))
            twins = [episode for _, episode in missing if episode.episode_id != owner]
            if owner in self.writer.done:
                self._write_twins(self.writer.done[owner], twins)
            elif twins:
                self.twins[owner] = twins
        return wanted

    def _twins_of(self, episode: Any) -> list[Any]:
        """Episodes that share the walk of one, those alone that lack their line."""
        return self.twins.get(episode.episode_id, [])

    def _write_twins(self, owner: Episode, twins: Iterable[Any]) -> None:
        """Write the lines of episodes with the same path."""
        shared = {key: value for key, value in owner.info.items() if key not in WORDS}
        for episode in twins:
            line = replace(
                owner,
                episode_id=episode.episode_id,
                instruction=episode.instruction.instruction_text,
                info={**shared, "trajectory_id": episode.trajectory_id, **words_of(episode)},
                frames_of=owner.episode_id,
            )
            self.writer.write(line, ())

    def _decide(self, walks: Sequence[Walk], observations: Sequence[dict[str, Any]]) -> list[int]:
        """What each environment does now."""
        return [int(np.asarray(observation[EXPERT]).item()) for observation in observations]

    def _look(self, walk: Walk, observation: dict[str, Any], action: int) -> None:
        walk.jpegs.append(encode_jpeg(observation["rgb"], self.jpeg_quality))
        walk.actions.append(action)
        if "depth" in observation:
            walk.depths.append(encode_depth(observation["depth"]))
        if DESCRIPTION in observation:
            walk.descriptions.append(decode_text(observation[DESCRIPTION]))

    def _finish(self, walk: Walk, info: dict[str, Any]) -> None:
        episode = walk.episode
        distance = float(info["distance_to_goal"])
        if walk.unusable:
            self.leave_out(walk)
        elif walk.actions[-1] != 0:
            self._skip(episode, f"no stop within the step limit: {len(walk.actions)} steps")
        elif walk.strayed > STRAYED:
            self._skip(
                episode,
                f"replay left the recorded path: {walk.strayed:.2f} m from it (vlnr1/protocol: another turn angle, "
                "step, radius or sliding than it was recorded with?)",
            )
        elif not info["success"]:
            self._skip(episode, f"expert missed the goal: stopped {distance:.2f} m from it")
        else:
            skipped = walk.recorded.looks if walk.recorded else 0
            looks = {"looks_skipped": skipped} if skipped else {}
            self._write(walk, info, **words_of(episode), **looks)
            self._write_twins(self.writer.done[episode.episode_id], self._twins_of(episode))

    def _skip(self, episode: Any, why: str) -> None:
        """Note that the expert has failed at a path."""
        self.skipped |= {same.episode_id: why for same in (episode, *self._twins_of(episode))}

    def _give_up(self, index: int) -> None:
        """Leave out what an environment's simulator has died of."""
        for (scene, name), why in newly_lost(self.envs, index).items():
            names = [name, *(episode.episode_id for episode in self.twins.get(name, []))]
            self.unusable += [LeftOut(same, scene.removeprefix(self.scenes_dir), why) for same in names]
            self.left[index] -= 1

    def leave_out(self, walk: Walk) -> None:
        """Note an episode that nobody can walk."""
        assert walk.unusable is not None, "whoever calls has asked"
        scene = walk.episode.scene_id.removeprefix(self.scenes_dir)
        for episode in (walk.episode, *self._twins_of(walk.episode)):
            self.unusable.append(LeftOut(episode.episode_id, scene, walk.unusable))

    def _write(self, walk: Walk, info: dict[str, Any], **facts: Any) -> None:
        """Write a whole walk down, with `facts` about it."""
        episode = walk.episode
        distance = round(float(info["distance_to_goal"]), 3)
        self.writer.write(
            Episode(
                episode_id=str(episode.episode_id),
                scene=Path(episode.scene_id).stem,
                instruction=episode.instruction.instruction_text,
                actions=tuple(walk.actions),
                info={"trajectory_id": episode.trajectory_id, "distance_to_goal": distance, **facts},
                descriptions=tuple(walk.descriptions),
                labels=walk.labels,
            ),
            walk.jpegs,
            walk.depths,
        )

    def _begin(self, index: int) -> Walk:
        episode = self.envs.call_at(index, "current_episode", {"all_info": True})
        recorded = self.envs.call_at(index, "recorded") if self.replays else None
        return Walk(episode, self.envs.call_at(index, "why_unusable"), recorded)

    def _pause_finished(self, *columns: list[Any]) -> None:
        for i in reversed([i for i, left in enumerate(self.left) if not left]):
            self.envs.pause_at(i)
            for column in (*columns, self.left):
                del column[i]


def words_of(episode: Any) -> dict[str, Any]:
    """What an episode's `info` says about its instruction."""
    words = {key: getattr(episode.instruction, key, None) for key in WORDS}
    return {key: value for key, value in words.items() if value is not None}
