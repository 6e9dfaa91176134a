"""VLN-Ego export: an expert walks every episode, and what it saw and did is written down.

`vlnr1_export` walks with the expert sensor (`vlnr1_expert`) in `num_environments` worker processes. Frames are JPEGs,
one per step; an episode's line is written when it is whole, so an interrupted export goes on where it stopped.

`vlnr1.export.num_shards` processes, on as many machines as you like, may fill one folder together: each walks the
scenes of its own `vlnr1.export.shard` and writes `episodes-<shard>.jsonl` and `summary-<shard>.json`.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from habitat_baselines.common.baseline_registry import baseline_registry
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.card import name_of, write_card, write_sheet
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.records import (
    Episode,
    EpisodeWriter,
    RecordError,
    VLNEgo,
    read_episode_lines,
    summarize,
    write_atomically,
)
from habitat_vlnr1.results import LeftOut, left_out_text
from habitat_vlnr1.sim.datasets import EmptyShard
from habitat_vlnr1.sim.text import decode_text
from habitat_vlnr1.trainers.base import VLNR1Trainer, edited, exit_if_left_out

EXPERT = "vlnr1_expert"
DESCRIPTION = "vlnr1_description"


@dataclass
class Walk:
    """What one environment has seen of its current episode."""

    episode: Any
    unusable: str | None
    looks: int
    jpegs: list[bytes] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)
    depths: list[bytes] = field(default_factory=list)
    # Where somebody else walks (DAgger): the expert's plans by step, and how many steps were its own.
    labels: dict[int, tuple[int, ...]] = field(default_factory=dict)
    expert_steps: int = 0


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
    """Writes `<vlnr1.data.root>/<vlnr1.data.source>/<split>` for each of `vlnr1.export.splits`, or a shard of it."""

    def train(self) -> None:
        summaries = [export_split(self, self.config, split) for split in self.config.vlnr1.export.splits]
        exit_if_left_out(LeftOut(**entry) for summary in summaries for entry in summary["left_out"])


def is_exported(config: DictConfig, split: str) -> bool:
    """Whether the export of a split ran to its end, in every shard."""
    parts = summary_files(export_folder(config, split))
    return bool(parts) and all(part.is_file() for part in parts)


def export_folder(config: DictConfig, split: str) -> Path:
    """Where the configured task's split is exported to."""
    return Path(config.vlnr1.data.root) / config.vlnr1.data.source / split


def summary_files(root: Path) -> list[Path]:
    """The files that the processes which export into a folder leave at their ends; none before it was begun."""
    meta = root / "meta.json"
    if not meta.is_file():
        return []
    num_shards = json.loads(meta.read_text(encoding="utf-8")).get("num_shards", 1)
    if num_shards == 1:
        return [root / "summary.json"]
    return [root / f"summary-{shard_name(shard, num_shards)}.json" for shard in range(num_shards)]


def shard_name(shard: int, num_shards: int) -> str:
    """`'03'` for shard 3 of 16; empty when there is but one."""
    return f"{shard:0{len(str(num_shards - 1))}d}" if num_shards > 1 else ""


def export_meta(config: DictConfig, split: str) -> dict[str, Any]:
    """What decides an export's content, and must be the same when it goes on."""
    export, dataset = config.vlnr1.export, config.habitat.dataset
    meta = {
        "split": split,
        "dataset": dataset.type,
        "protocol": OmegaConf.to_container(config.vlnr1.protocol, resolve=True),
        "expert": config.vlnr1.task.expert,
        "described": bool(export.describe),
        "jpeg_quality": export.jpeg_quality,
    }
    if "depth" in config.vlnr1.observations:  # vlnr1/sensors=[expert,depth]
        meta["depth"] = "16-bit PNG"
    meta |= {key: list(dataset[key]) for key in ("roles", "languages") if key in dataset}
    return meta | ({"num_shards": export.num_shards} if export.num_shards > 1 else {})


def export_split(trainer: VLNR1Trainer, config: DictConfig, split: str) -> dict[str, Any]:
    """Export one split, or the configured shard of it; print and return its summary.

    Goes on where an earlier call was stopped. The process that finishes last also leaves the whole's summary.
    """
    root, export = export_folder(config, split), config.vlnr1.export
    check_shards(root, export.shard, export.num_shards)
    shard = shard_name(export.shard, export.num_shards)
    name = f"{split}, shard {export.shard} of {export.num_shards}" if shard else split
    writer = EpisodeWriter(root, export_meta(config, split), shard)
    print(f"Exporting {name} to {root}" + (f" ({len(writer.done)} episodes are there)" if writer.done else ""))
    try:
        skipped, left_out = walk_split(trainer, config, split, writer)
    finally:
        writer.close()
    episodes = list(read_episode_lines(writer.file))
    summary = {
        **summarize(episodes),
        "looks_skipped": sum(episode.info.get("looks_skipped", 0) for episode in episodes),
        "skipped": skipped,
        "left_out": [entry._asdict() for entry in left_out],
        "seeds": {"habitat": config.habitat.seed, "scenes": OmegaConf.select(config, "vlnr1.task.scenes.seed")},
    }
    write_summary(root, shard, summary)
    print_summary(name, summary)
    parts = summary_files(root)
    finished = all(part.is_file() for part in parts)
    if shard and finished:
        whole = merged([json.loads(part.read_text(encoding="utf-8")) for part in parts])
        write_summary(root, "", whole)
        print_summary(f"{split}, all {export.num_shards} shards", whole)
    if finished:
        leave_card(config, root)
    return summary


def leave_card(config: DictConfig, root: Path) -> None:
    """A README.md and a picture of a few records, as the configured memory shows them, in the exported folder."""
    try:
        ego = VLNEgo(root)
    except RecordError as error:  # every episode was skipped
        print(error)
        return
    records = ego.records(make_memory(**config.vlnr1.memory), config.vlnr1.prompt.num_actions)
    protocol = ego.meta["protocol"]
    write_sheet(records, ActionSpace(protocol["forward_step"], protocol["turn_angle"]), root)
    write_card(ego, name_of(root), root)


def walk_split(
    trainer: VLNR1Trainer, config: DictConfig, split: str, writer: EpisodeWriter
) -> tuple[dict[str, str], list[LeftOut]]:
    """Walk what `writer` lacks; returns the episodes that the expert failed, and those that the data did not allow."""
    export = config.vlnr1.export
    config = edited(
        described(config) if export.describe else config,
        **{
            "habitat.dataset.split": split,
            "habitat.dataset.shard": export.shard,
            "habitat.dataset.num_shards": export.num_shards,
            "habitat.task.lab_sensors.vlnr1_expert.mode": config.vlnr1.task.expert,
            "habitat.environment.iterator_options.shuffle": False,
            "habitat_baselines.num_environments": export.num_environments,
        },
    )
    try:
        trainer._init_envs(config, is_eval=True)
    except EmptyShard as error:
        print(error)
        return {}, []
    try:
        walkers = Walkers(trainer.envs, writer, config)
        walkers.walk_all()
    finally:
        trainer.envs.close()
    return walkers.skipped, [*trainer.envs.left_out, *walkers.unusable]


def check_shards(root: Path, shard: int, num_shards: int) -> None:
    """Before anything is written: ValueError for a shard that there is not, RecordError when the folder was begun with
    another number of them."""
    if not 0 <= shard < num_shards:
        raise ValueError(f"vlnr1.export.shard={shard} of {num_shards}: shards count from 0 to num_shards - 1")
    parts = summary_files(root)
    if parts and len(parts) != num_shards:
        missing = [str(number) for number, part in enumerate(parts) if not part.is_file()]
        what = f"not finished: shard {', '.join(missing)}" if missing else "all are finished"
        raise RecordError(
            f"{root} was begun with vlnr1.export.num_shards={len(parts)}, now {num_shards} ({what}): go on with "
            f"num_shards={len(parts)} and vlnr1.export.shard=<number>, or delete the folder"
        )


def write_summary(root: Path, shard: str, summary: dict[str, Any]) -> None:
    name = f"summary-{shard}.json" if shard else "summary.json"
    write_atomically(root / name, json.dumps(summary, indent=2).encode())


def merged(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """One summary of all shards. Entries that no shard could read stand in each of theirs, and once here."""
    actions = sum((Counter(summary["actions"]) for summary in summaries), Counter())
    left_out = dict.fromkeys(LeftOut(**entry) for summary in summaries for entry in summary["left_out"])
    return {
        **{key: sum(summary[key] for summary in summaries) for key in ("episodes", "records", "looks_skipped")},
        "seeds": summaries[0]["seeds"],
        "actions": {name: actions[name] for name in summaries[0]["actions"]},
        "skipped": {name: why for summary in summaries for name, why in summary["skipped"].items()},
        "left_out": [entry._asdict() for entry in left_out],
    }


def described(config: DictConfig) -> DictConfig:
    """The config with the description sensor, which is kept apart because it costs time at every step."""
    changes = {
        f"vlnr1.observations.{DESCRIPTION}": "what is seen, in words",
        f"habitat.task.lab_sensors.{DESCRIPTION}": config.vlnr1.extra_sensors[DESCRIPTION],
    }
    return edited(config, **changes)


def print_summary(name: str, summary: dict[str, Any]) -> None:
    total = sum(summary["actions"].values())
    actions = ", ".join(f"{key} {count} ({count / max(total, 1):.0%})" for key, count in summary["actions"].items())
    print(f"{name}: {summary['episodes']} episodes, {summary['records']} records; actions: {actions}")
    reasons = Counter(reason.split(":")[0] for reason in summary["skipped"].values())
    print(f"{name}: skipped {len(summary['skipped'])}" + "".join(f"; {n} × {why}" for why, n in reasons.items()))
    if summary["looks_skipped"]:
        print(f"{name}: {summary['looks_skipped']} LOOK_UP and LOOK_DOWN of the ground truth were skipped")
    for line in left_out_text(LeftOut(**entry) for entry in summary["left_out"]):
        print(f"{name}: left out: {line}")


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
        self.has_looks = config.vlnr1.task.expert == "ground_truth"
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
        walks = [self._begin(i) for i in range(self.envs.num_envs)]
        with tqdm(total=sum(self.left), unit="episode", desc="export") as bar:
            while self.envs.num_envs:
                actions = self._decide(walks, observations)
                for walk, observation, action in zip(walks, observations, actions, strict=True):
                    self._look(walk, observation, action)
                outputs = self.envs.step([walk.actions[-1] for walk in walks])
                observations, _, dones, infos = (list(column) for column in zip(*outputs, strict=True))
                if not any(dones):
                    continue
                for i in [i for i, done in enumerate(dones) if done]:
                    self._finish(walks[i], infos[i])
                    walks[i] = self._begin(i)
                    self.left[i] -= 1
                    bar.update()
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
            scene = episode.scene_id.removeprefix(self.scenes_dir)
            self.unusable.append(LeftOut(episode.episode_id, scene, walk.unusable))
        elif walk.actions[-1] != 0:
            self.skipped[episode.episode_id] = f"no stop within the step limit: {len(walk.actions)} steps"
        elif not info["success"]:
            self.skipped[episode.episode_id] = f"expert missed the goal: stopped {distance:.2f} m from it"
        else:
            words = {key: getattr(episode.instruction, key, None) for key in ("instruction_id", "language", "role")}
            self.writer.write(
                Episode(
                    episode_id=str(episode.episode_id),
                    scene=Path(episode.scene_id).stem,
                    instruction=episode.instruction.instruction_text,
                    actions=tuple(walk.actions),
                    info={
                        "trajectory_id": episode.trajectory_id,
                        "distance_to_goal": round(distance, 3),
                        **{key: value for key, value in words.items() if value is not None},
                        **({"looks_skipped": walk.looks} if walk.looks else {}),
                    },
                    descriptions=tuple(walk.descriptions),
                ),
                walk.jpegs,
                walk.depths,
            )

    def _begin(self, index: int) -> Walk:
        episode = self.envs.call_at(index, "current_episode", {"all_info": True})
        looks = self.envs.call_at(index, "looks_skipped") if self.has_looks else 0
        return Walk(episode, self.envs.call_at(index, "why_unusable"), looks)

    def _pause_finished(self, *columns: list[Any]) -> None:
        for i in reversed([i for i, left in enumerate(self.left) if not left]):
            self.envs.pause_at(i)
            for column in (*columns, self.left):
                del column[i]
