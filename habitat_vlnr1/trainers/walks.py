"""Walks that are written down as VLN-Ego: an expert's, or those of whoever decides in a subclass."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from tqdm import tqdm

from habitat_vlnr1.actions import Action
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.jpeg import encode_jpeg
from habitat_vlnr1.observations import DESCRIPTION, EXPERT, decode_text
from habitat_vlnr1.records import Episode
from habitat_vlnr1.results import LeftOut
from habitat_vlnr1.sim.episode_files import GroundTruth
from habitat_vlnr1.sim.gym_env import TRACE
from habitat_vlnr1.sim.vector_env import LOST, newly_lost

STRAYED = 0.5
"""Metres that a replay may be from the recorded path. In the simulator that recorded it, it is on it to a centimetre;
another version or navmesh shifts it by some more; another turn angle leads metres away, and to a goal by luck."""


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


def encode_depth(depth: np.ndarray) -> bytes:
    """Normalised depth, float [H, W, 1] in 0 … 1, to 16-bit PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(depth[..., 0] * 65535).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


class Walkers:
    """Experts walking in all environments at once.

    Args:
        envs: a VectorEnv whose observations hold rgb, instruction, the expert's action and, if wanted, descriptions.
        writer: where whole episodes go.
        config: the whole one.

    Attributes:
        skipped: episodes that the expert failed, `{episode_id: reason}`.
        unusable: episodes that nobody can walk.
    """

    def __init__(self, envs: Any, writer: EpisodeWriter, config: DictConfig):
        self.envs = envs
        self.writer = writer
        self.jpeg_quality = config.vlnr1.export.jpeg_quality
        self.replays = config.habitat.task.lab_sensors[EXPERT].mode == "ground_truth"
        self.scenes_dir = os.path.join(config.habitat.dataset.scenes_dir, "")
        self.left: list[int] = []
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
        with tqdm(total=sum(self.left), unit="episode", desc="export") as bar:
            while self.envs.num_envs:
                actions = self._decide(walks, observations)
                for walk, observation, action in zip(walks, observations, actions, strict=True):
                    self._look(walk, observation, action)
                outputs = self.envs.step([walk.actions[-1] for walk in walks])
                observations, _, dones, infos = (list(column) for column in zip(*outputs, strict=True))
                for walk, info in zip(walks, infos, strict=True):
                    walk.follow(info[TRACE][:3] if TRACE in info else None)
                if not any(dones):
                    continue
                for i in [i for i, done in enumerate(dones) if done]:
                    if LOST not in infos[i]:
                        self._finish(walks[i], infos[i])
                        self.left[i] -= 1
                        bar.update()
                    self._give_up(i)
                    if self.left[i]:
                        walks[i] = self._begin(i)
                self._pause_finished(walks, observations)

    def _leave_out_the_written(self) -> None:
        for i in reversed(range(self.envs.num_envs)):
            keys = [key for key in self.envs.call_at(i, "episode_keys") if key[1] not in self.writer.done]
            if keys:
                self.envs.call_at(i, "keep_episodes", {"keys": keys})
                self.left.insert(0, len(keys))
            else:
                self.envs.pause_at(i)

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
            self.skipped[episode.episode_id] = f"no stop within the step limit: {len(walk.actions)} steps"
        elif walk.strayed > STRAYED:
            self.skipped[episode.episode_id] = (
                f"replay left the recorded path: {walk.strayed:.2f} m from it (vlnr1/protocol: another turn angle, "
                "step, radius or sliding than it was recorded with?)"
            )
        elif not info["success"]:
            self.skipped[episode.episode_id] = f"expert missed the goal: stopped {distance:.2f} m from it"
        else:
            words = {key: getattr(episode.instruction, key, None) for key in ("instruction_id", "language", "role")}
            skipped = walk.recorded.looks if walk.recorded else 0
            looks = {"looks_skipped": skipped} if skipped else {}
            self._write(walk, info, **{key: value for key, value in words.items() if value is not None}, **looks)

    def _give_up(self, index: int) -> None:
        """Leave out what an environment's simulator has died of."""
        for (scene, name), why in newly_lost(self.envs, index).items():
            self.unusable.append(LeftOut(name, scene.removeprefix(self.scenes_dir), why))
            self.left[index] -= 1

    def leave_out(self, walk: Walk) -> None:
        """Note an episode that nobody can walk."""
        assert walk.unusable is not None, "whoever calls has asked"
        scene = walk.episode.scene_id.removeprefix(self.scenes_dir)
        self.unusable.append(LeftOut(walk.episode.episode_id, scene, walk.unusable))

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
