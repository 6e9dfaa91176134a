"""VLN-Ego export: an expert walks every episode, and what it saw and did is written down.

`vlnr1_export` walks with the expert sensor (`vlnr1_expert`) in `num_environments` worker processes. Frames are JPEGs,
one per step; an episode's line is written when it is whole, so an interrupted export goes on where it stopped.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from habitat_baselines.common.baseline_registry import baseline_registry
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from habitat_vlnr1.records import Episode, EpisodeWriter, VLNEgo, summarize, write_atomically
from habitat_vlnr1.sim.text import decode_text
from habitat_vlnr1.trainers.base import VLNR1Trainer, edited

EXPERT = "vlnr1_expert"
DESCRIPTION = "vlnr1_description"


@dataclass
class Walk:
    """What one environment has seen of its current episode."""

    jpegs: list[bytes] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)
    depths: list[bytes] = field(default_factory=list)


def encode_jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """uint8 [H, W, 3 or 4] to JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(rgb[..., :3]).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode_depth(depth: np.ndarray) -> bytes:
    """Normalised depth, float [H, W, 1] in 0 … 1, to 16-bit PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(depth[..., 0] * 65535).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@baseline_registry.register_trainer(name="vlnr1_export")
class ExportTrainer(VLNR1Trainer):
    """Writes `<vlnr1.data.root>/<vlnr1.data.source>/<split>` for each of `vlnr1.export.splits`."""

    def train(self) -> None:
        for split in self.config.vlnr1.export.splits:
            export_split(self, self.config, split)


def is_exported(config: DictConfig, split: str) -> bool:
    """Whether the export of a split ran to its end."""
    return (export_folder(config, split) / "summary.json").is_file()


def export_folder(config: DictConfig, split: str) -> Path:
    """Where the configured task's split is exported to."""
    return Path(config.vlnr1.data.root) / config.vlnr1.data.source / split


def export_split(trainer: VLNR1Trainer, config: DictConfig, split: str) -> dict[str, Any]:
    """Export one split, print and return its summary; goes on where an earlier call was stopped."""
    root = export_folder(config, split)
    export = config.vlnr1.export
    meta = {
        "split": split,
        "dataset": config.habitat.dataset.type,
        "protocol": OmegaConf.to_container(config.vlnr1.protocol, resolve=True),
        "expert": config.vlnr1.task.expert,
        "described": bool(export.describe),
        "jpeg_quality": export.jpeg_quality,
    }
    if "depth" in config.vlnr1.observations:  # vlnr1/sensors=[expert,depth]
        meta["depth"] = "16-bit PNG"
    writer = EpisodeWriter(root, meta)
    config = edited(
        described(config) if export.describe else config,
        **{
            "habitat.dataset.split": split,
            "habitat.task.lab_sensors.vlnr1_expert.mode": config.vlnr1.task.expert,
            "habitat.environment.iterator_options.shuffle": False,
            "habitat_baselines.num_environments": export.num_environments,
        },
    )
    print(f"Exporting {split} to {root}" + (f" ({len(writer.done)} episodes are there)" if writer.done else ""))
    trainer._init_envs(config, is_eval=True)
    try:
        skipped = Walkers(trainer.envs, writer, export.jpeg_quality).walk_all()
    finally:
        trainer.envs.close()
        writer.close()
    summary = {**summarize(VLNEgo(root).episodes), "skipped": skipped}
    write_atomically(root / "summary.json", json.dumps(summary, indent=2).encode())
    print_summary(split, summary)
    return summary


def described(config: DictConfig) -> DictConfig:
    """The config with the description sensor, which is kept apart because it costs time at every step."""
    changes = {
        f"vlnr1.observations.{DESCRIPTION}": "what is seen, in words",
        f"habitat.task.lab_sensors.{DESCRIPTION}": config.vlnr1.extra_sensors[DESCRIPTION],
    }
    return edited(config, **changes)


def print_summary(split: str, summary: dict[str, Any]) -> None:
    total = sum(summary["actions"].values())
    actions = ", ".join(f"{name} {count} ({count / total:.0%})" for name, count in summary["actions"].items())
    print(f"{split}: {summary['episodes']} episodes, {summary['records']} records; actions: {actions}")
    reasons = Counter(reason.split(":")[0] for reason in summary["skipped"].values())
    print(f"{split}: skipped {len(summary['skipped'])}" + "".join(f"; {n} × {why}" for why, n in reasons.items()))


class Walkers:
    """Experts walking in all environments at once.

    Args:
        envs: a VectorEnv whose observations hold rgb, instruction, the expert's action and, if wanted, descriptions.
        writer: where whole episodes go.
        jpeg_quality: 1–95.
    """

    def __init__(self, envs: Any, writer: EpisodeWriter, jpeg_quality: int):
        self.envs = envs
        self.writer = writer
        self.jpeg_quality = jpeg_quality
        self.left: list[int] = []
        self.skipped: dict[str, str] = {}

    def walk_all(self) -> dict[str, str]:
        """Walk every episode that is not written yet; returns the skipped ones, `{episode_id: reason}`."""
        self._leave_out_the_written()
        if not self.left:
            return {}
        observations = self.envs.reset()
        episodes = [self._episode(i) for i in range(self.envs.num_envs)]
        walks = [Walk() for _ in observations]
        with tqdm(total=sum(self.left), unit="episode", desc="export") as bar:
            while self.envs.num_envs:
                for walk, observation in zip(walks, observations, strict=True):
                    self._look(walk, observation)
                outputs = self.envs.step([walk.actions[-1] for walk in walks])
                observations, _, dones, infos = (list(column) for column in zip(*outputs, strict=True))
                if not any(dones):
                    continue
                for i in [i for i, done in enumerate(dones) if done]:
                    self._finish(walks[i], episodes[i], infos[i])
                    walks[i] = Walk()
                    episodes[i] = self._episode(i)
                    self.left[i] -= 1
                    bar.update()
                self._pause_finished(walks, observations, episodes)
        return self.skipped

    def _leave_out_the_written(self) -> None:
        for i in reversed(range(self.envs.num_envs)):
            keys = [key for key in self.envs.call_at(i, "episode_keys") if key[1] not in self.writer.done]
            if keys:
                self.envs.call_at(i, "keep_episodes", {"keys": keys})
                self.left.insert(0, len(keys))
            else:
                self.envs.pause_at(i)

    def _look(self, walk: Walk, observation: dict[str, Any]) -> None:
        walk.jpegs.append(encode_jpeg(observation["rgb"], self.jpeg_quality))
        walk.actions.append(int(np.asarray(observation[EXPERT]).item()))
        if "depth" in observation:
            walk.depths.append(encode_depth(observation["depth"]))
        if DESCRIPTION in observation:
            walk.descriptions.append(decode_text(observation[DESCRIPTION]))

    def _finish(self, walk: Walk, episode: Any, info: dict[str, Any]) -> None:
        distance = float(info["distance_to_goal"])
        if walk.actions[-1] != 0:
            self.skipped[episode.episode_id] = f"no stop within the step limit: {len(walk.actions)} steps"
        elif not info["success"]:
            self.skipped[episode.episode_id] = f"expert missed the goal: stopped {distance:.2f} m from it"
        else:
            self.writer.write(
                Episode(
                    episode_id=str(episode.episode_id),
                    scene=Path(episode.scene_id).stem,
                    instruction=episode.instruction.instruction_text,
                    actions=tuple(walk.actions),
                    info={"trajectory_id": episode.trajectory_id, "distance_to_goal": round(distance, 3)},
                    descriptions=tuple(walk.descriptions),
                ),
                walk.jpegs,
                walk.depths,
            )

    def _episode(self, index: int) -> Any:
        return self.envs.call_at(index, "current_episode", {"all_info": True})

    def _pause_finished(self, *columns: list[Any]) -> None:
        for i in reversed([i for i, left in enumerate(self.left) if not left]):
            self.envs.pause_at(i)
            for column in (*columns, self.left):
                del column[i]
