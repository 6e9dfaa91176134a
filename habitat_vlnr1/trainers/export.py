"""VLN-Ego export: an expert walks every episode, and what it saw and did is written down.

`vlnr1_export` walks with the expert sensor (`vlnr1_expert`) in `num_environments` worker processes. Frames are JPEGs,
one per step; an episode's line is written when it is whole, so an interrupted export goes on where it stopped.
A path is walked once: episodes that differ in their instruction alone share its frames.

`vlnr1.export.num_shards` processes, on as many machines as you like, may fill one folder together: each walks the
scenes of its own `vlnr1.export.shard` and writes `episodes-<shard>.jsonl` and `summary-<shard>.json`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.config import action_space, check_shard, edited, export_folder, plain, records_of
from habitat_vlnr1.episode_writer import EpisodeWriter, check_claim
from habitat_vlnr1.files import read_json, write_atomically
from habitat_vlnr1.interchange.card import name_of, write_card, write_sheet
from habitat_vlnr1.interchange.mp3d_eqa import questions_of
from habitat_vlnr1.observations import DESCRIPTION, EXPERT
from habitat_vlnr1.questions import FILE, read_questions, write_questions
from habitat_vlnr1.records import RecordError, VLNEgo, read_episode_lines, read_meta, summarize
from habitat_vlnr1.results import LeftOut, left_out_text, print_left_out
from habitat_vlnr1.sim.datasets import EmptyShard
from habitat_vlnr1.sim.env_factory import make_parts
from habitat_vlnr1.sim.task_files import task_identity
from habitat_vlnr1.trainers.base import VLNR1Trainer, exit_if_left_out, register_trainer
from habitat_vlnr1.trainers.walks import Walkers


@register_trainer("vlnr1_export")
class ExportTrainer(VLNR1Trainer):
    """Writes `<vlnr1.data.root>/<vlnr1.data.source>/<split>` for each of `vlnr1.export.splits`, or a shard of it."""

    def train(self) -> None:
        summaries = [export_split(self, self.config, split) for split in self.config.vlnr1.export.splits]
        if self.config.vlnr1.export.questions:
            for split in self.config.vlnr1.export.splits:
                add_questions(self.config, split)
        exit_if_left_out(LeftOut(**entry) for summary in summaries for entry in summary["left_out"])


def is_exported(config: DictConfig, split: str) -> bool:
    """Whether the export of a split ran to its end, in every shard."""
    parts = summary_files(export_folder(config, split))
    return bool(parts) and all(part.is_file() for part in parts)


def export_if_missing(trainer: VLNR1Trainer, config: DictConfig, split: str) -> None:
    """Export what a training needs, or make sure that what is there is of the configured task. Where another process
    exports it at this moment, it is waited for.

    Raises:
        RecordError: it is of other episodes. Where the episodes' files are not, the exported folder is trusted.
    """
    if not is_exported(config, split):
        export_split(trainer, config, split, patient=True)
        return
    task = task_identity(config, split)
    if task["episodes"]:
        meta = export_folder(config, split) / "meta.json"
        check_claim(meta, {**read_meta(meta), "task": task}, "choose another vlnr1.data.source")


def add_questions(config: DictConfig, split: str) -> None:
    """Put the task's questions (`vlnr1.task.questions`) beside the exported walks of a split, unless they are there.
    Where the task has none, a `questions.jsonl` of one's own stays.

    Raises:
        RecordError: the task has none, none is about these walks, or the folder has others.
    """
    root, options = export_folder(config, split), OmegaConf.select(config, "vlnr1.task.questions")
    if options is None and (root / FILE).is_file():
        return
    if options is None:
        raise RecordError(f"task {config.vlnr1.task.name} has no questions (vlnr1.task.questions is null)")
    make_parts(options.make)
    questions, left_out = questions_of(Path(options.data_path.format(split=split)), VLNEgo(root))
    print_left_out(left_out)
    if not questions:
        raise RecordError(f"{options.data_path.format(split=split)}: no question about the walks of {root}")
    if (root / FILE).is_file():
        if [*map(asdict, read_questions(VLNEgo(root))[0])] != [*map(asdict, questions)]:
            raise RecordError(f"{root / FILE} has other questions than vlnr1.task.questions: delete the file")
        return
    print(f"{write_questions(root, questions)}: {len(questions)} questions")


def summary_files(root: Path) -> list[Path]:
    """The files that the processes which export into a folder leave at their ends; none before it was begun."""
    meta = root / "meta.json"
    if not meta.is_file():
        return []
    num_shards = read_meta(meta).get("num_shards", 1)
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
        "task": task_identity(config, split),
        "protocol": plain(config.vlnr1.protocol),
        "expert": config.vlnr1.task.expert,
        "described": bool(export.describe),
        "jpeg_quality": export.jpeg_quality,
    }
    meta |= depth_meta(config) | ({"packed": True} if export.pack else {})
    meta |= {key: list(dataset[key]) for key in ("roles", "languages") if key in dataset}
    return meta | ({"num_shards": export.num_shards} if export.num_shards > 1 else {})


def depth_meta(config: DictConfig) -> dict[str, str]:
    """What `meta.json` says about depth images, where walks are written down with them."""
    return {"depth": "16-bit PNG"} if "depth" in config.vlnr1.observations else {}  # vlnr1/sensors=[expert,depth]


def export_split(trainer: VLNR1Trainer, config: DictConfig, split: str, *, patient: bool = False) -> dict[str, Any]:
    """Export one split, or the configured shard of it; print and return its summary.

    Goes on where an earlier call was stopped. The process that finishes last also leaves the whole's summary.

    Args:
        patient: wait for another process that exports the same, instead of refusing.
    """
    root, export = export_folder(config, split), config.vlnr1.export
    check_shards(root, export.shard, export.num_shards)
    shard = shard_name(export.shard, export.num_shards)
    name = f"{split}, shard {export.shard} of {export.num_shards}" if shard else split
    writer = EpisodeWriter(root, export_meta(config, split), shard, patient=patient)
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
        whole = merged([read_json(part, "delete it and export again", RecordError) for part in parts])
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
    write_sheet(records_of(config, [ego]), ego.space or action_space(config), root)
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
            f"habitat.task.lab_sensors.{EXPERT}.mode": config.vlnr1.task.expert,
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
        walkers = Walkers(trainer.envs, writer, config, share=True)
        walkers.walk_all()
    finally:
        trainer.envs.close()
    return walkers.skipped, [*trainer.envs.left_out, *walkers.unusable]


def check_shards(root: Path, shard: int, num_shards: int) -> None:
    """Before anything is written: ValueError for a shard that there is not, RecordError when the folder was begun with
    another number of them."""
    check_shard("vlnr1.export.shard", shard, num_shards)
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
    walks = sum(summary.get("walks", summary["episodes"]) for summary in summaries)
    left_out = dict.fromkeys(LeftOut(**entry) for summary in summaries for entry in summary["left_out"])
    return {
        **{key: sum(summary[key] for summary in summaries) for key in ("episodes", "records", "looks_skipped")},
        "seeds": summaries[0]["seeds"],
        "actions": {name: actions[name] for name in summaries[0]["actions"]},
        "skipped": {name: why for summary in summaries for name, why in summary["skipped"].items()},
        "left_out": [entry._asdict() for entry in left_out],
        **({"walks": walks} if any("walks" in summary for summary in summaries) else {}),
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
    shared = f" of {summary['walks']} walks" if "walks" in summary else ""
    print(f"{name}: {summary['episodes']} episodes{shared}, {summary['records']} records; actions: {actions}")
    reasons = Counter(reason.split(":")[0] for reason in summary["skipped"].values())
    print(f"{name}: skipped {len(summary['skipped'])}" + "".join(f"; {n} × {why}" for why, n in reasons.items()))
    if summary["looks_skipped"]:
        print(f"{name}: {summary['looks_skipped']} LOOK_UP and LOOK_DOWN of the ground truth were skipped")
    print_left_out(left_out_text(LeftOut(**entry) for entry in summary["left_out"]), name)
