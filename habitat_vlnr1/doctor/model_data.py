"""What training reads and writes: exported VLN-Ego, weights, checkpoints, disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from habitat_vlnr1.config import action_space, asked_with
from habitat_vlnr1.doctor.findings import Finding, error, ok, one_line, shown, warning
from habitat_vlnr1.doctor.task_data import RUN
from habitat_vlnr1.errors import CheckpointError
from habitat_vlnr1.frame_files import check_jpeg, picture_size
from habitat_vlnr1.records import RecordError, VLNEgo
from habitat_vlnr1.weights import check_whole, not_finite_on_disk, weight_files

if TYPE_CHECKING:
    from habitat_vlnr1.doctor.task_data import TaskData

GIB = 2**30


def command(config: DictConfig, name: str) -> str:
    """The command that runs a config on the configured task."""
    ours = config.vlnr1
    return f"{RUN}{name} vlnr1/task={ours.task.name} vlnr1/protocol={ours.protocol.name}"


def exported(config: DictConfig) -> Iterator[Finding]:
    """Every source's training split and the own evaluation split, as far as they are exported."""
    data = config.vlnr1.data
    sources = dict.fromkeys([data.source, *data.sources, *data.rft_records])
    folders = [(source, "train") for source in sources]
    folders += [(data.source, split) for split in config.vlnr1.export.splits if split != "train"]
    for source, split in dict.fromkeys(folders):
        yield from check_export(config, source, split)


def check_export(config: DictConfig, source: str, split: str) -> Iterator[Finding]:
    """One exported folder: whole, its frames, its disk, and whether it speaks of the configured angles."""
    root = Path(config.vlnr1.data.root) / source / split
    topic = f"VLN-Ego {source}/{split}"
    own = source == config.vlnr1.data.source
    export = f"{command(config, 'vlnr1_export')} 'vlnr1.export.splits=[{split}]'"
    task = source.removesuffix(f"_{config.vlnr1.protocol.name}")
    export = export if own else export.replace(f"vlnr1/task={config.vlnr1.task.name}", f"vlnr1/task={task}")
    if not (root / "meta.json").is_file():
        yield warning(topic, f"nothing exported in {root}", f"{export}" + ("; SFT does it itself" if own else ""))
        return
    try:
        ego = VLNEgo(root)
    except (RecordError, OSError, ValueError) as problem:
        yield error(topic, str(problem), f"after that {export}")
        return
    records = sum(len(episode.steps) for episode in ego.episodes)
    told = f"{len(ego.episodes):,} episodes, {records:,} records"
    if not (root / "summary.json").is_file():
        yield warning(topic, f"{told}: the export has not ended", f"{export} goes on with it")
    yield from check_words(config, topic, ego.meta.get("protocol") or {}, export)
    yield from check_frames(config, topic, told, ego, export)


def check_words(config: DictConfig, topic: str, protocol: dict, export: str) -> Iterator[Finding]:
    """Whether the frames were made under the configured protocol; other steps or angles make the words untrue."""
    configured = config.vlnr1.protocol
    differ = {key: (value, configured.get(key)) for key, value in protocol.items() if value != configured.get(key)}
    if not differ:
        return
    text = ", ".join(f"{key} {old} (configured: {new})" for key, (old, new) in differ.items())
    name = protocol.get("name", "?")
    remedy = (
        f"vlnr1/protocol={name}, or export under the configured one: vlnr1.data.root=<another folder>, then {export}"
    )
    untrue = {"turn_angle", "forward_step"} & set(differ)
    yield (error if untrue else warning)(topic, f"exported under another protocol: {text}", remedy)


def check_frames(config: DictConfig, topic: str, told: str, ego: VLNEgo, export: str) -> Iterator[Finding]:
    """The ends of frame files, all or evenly spread ones, and the disk that they take."""
    places = [(episode, step) for episode in ego.walked for step in range(len(episode.actions))]
    most = config.vlnr1.doctor.frames
    looked_at = places if most < 0 else places[:: -(-len(places) // max(most, 1))]
    broken, size = [], 0
    for episode, step in looked_at:
        path = ego.root / episode.frame(step)
        try:
            check_jpeg(path)
            size += picture_size(path) or 0
        except (RecordError, OSError) as problem:
            broken.append((episode.episode_id, one_line(problem)))
    seen = f"{len(looked_at):,} of {len(places):,} frames looked at"
    if broken:
        episodes = dict.fromkeys(name for name, _ in broken)
        yield error(
            topic,
            f"{told}; {seen}, {len(broken)} broken: {broken[0][1]}",
            f"delete the lines of episodes {shown(episodes)} from {ego.root}/episodes*.jsonl, then {export}",
        )
    else:
        whole = size / len(looked_at) * len(places)
        yield ok(topic, f"{told}; {seen}, all whole; {whole / GIB:.2f} GiB")


def weights(config: DictConfig) -> Iterator[Finding]:
    """The model that training starts from."""
    path = config.vlnr1.model.path
    if path is None:
        yield ok("weights", f"none needed: a new {config.vlnr1.model.build.size} model is made")
        return
    if Path(path).is_dir():
        problem = broken_link(path)
        if problem:
            yield error("weights", problem, "fetch it again: hf download <hub id> --local-dir <folder>")
        else:
            yield ok("weights", f"{path}: {folder_size(Path(path)) / GIB:.1f} GiB of safetensors, whole")
        return
    from huggingface_hub import constants, try_to_load_from_cache

    if path.count("/") != 1 or path.startswith((".", "/")):
        yield error("weights", f"{path}: no such folder", "vlnr1.model.path=<folder or hub id>")
        return
    found = try_to_load_from_cache(path, "config.json")
    if isinstance(found, str):
        problem = broken_link(str(Path(found).parent))
        if problem:
            yield error("weights", f"{path}: in the cache, but {problem}", f"hf download {path}")
        else:
            yield ok("weights", f"{path}: {folder_size(Path(found).parent) / GIB:.1f} GiB in the cache, whole")
        return
    level = error if constants.HF_HUB_OFFLINE else warning
    how = "and HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "so the first run downloads it"
    yield level("weights", f"{path} is not in {constants.HF_HUB_CACHE}, {how}", f"hf download {path}")


def broken_link(path: str) -> str | None:
    """What is missing, cut or not a number in a checkpoint folder and in what it stands on, or None."""
    try:
        check_whole(path)
    except CheckpointError as broken:
        return str(broken)
    return not_finite_on_disk(path)


def folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in weight_files(folder))


def checkpoints(config: DictConfig) -> Iterator[Finding]:
    """Checkpoints of the run, or the named one: whole, and asked as they were trained."""
    from habitat_vlnr1.lvlm import checkpoint

    named = config.vlnr1.checkpoint
    folder = config.habitat_baselines.checkpoint_folder
    path = checkpoint.resolve(named) if named else checkpoint.newest_checkpoint(folder)
    halves = [p for p in Path(folder).glob("checkpoint-*") if not (p / checkpoint.CARD_FILE).is_file()]
    if halves:
        text = f"{shown(p.name for p in halves)} in {folder}: not whole, left by an interruption"
        yield warning("checkpoints", text, f"training passes over them; to free disk: rm -r {halves[0]}")
    if path is None:
        yield ok("checkpoints", f"none yet in {folder}")
        return
    if not checkpoint.is_checkpoint(path):
        yield error("checkpoints", f"{path}: no such checkpoint", "vlnr1.checkpoint=<folder or hub id>")
        return
    if not Path(path).is_dir():
        yield warning("checkpoints", f"{path}: a hub id, not looked at", f"hf download {path}")
        return
    problem = broken_link(path)
    if problem:
        yield error("checkpoints", problem, "delete the folder and go on from the one before")
        return
    try:
        card = checkpoint.read_card(path)
        checkpoint.check_card(card, action_space(config), allow=config.vlnr1.decoding.allow_other_angles)
    except checkpoint.CheckpointError as mismatch:
        remedy = "vlnr1/protocol=<that one>, or vlnr1.decoding.allow_other_angles=true"
        yield error("checkpoints", f"{path}: {mismatch}", remedy)
        return
    for difference in checkpoint.differences(card, **asked_with(config)):
        yield warning("checkpoints", f"{path}: {difference}", "configure what it was trained with")
    yield ok("checkpoints", f"{path}: whole" + ("" if card else ", without a card: its angles are unknown"))


def disk(config: DictConfig, task: TaskData) -> Iterator[Finding]:
    """Free disk against what the export will write: walks × mean steps × bytes per frame (docs/planning.md)."""
    from habitat_vlnr1.doctor.planning import existing_parent, frame_bytes, open_exported

    place = existing_parent(config.vlnr1.data.root)
    stat = os.statvfs(place)
    free = stat.f_bavail * stat.f_frsize
    source = config.vlnr1.data.source
    frames = 0.0
    unknown: list[str] = []
    for split in config.vlnr1.export.splits:
        ego = open_exported(config, source, split)
        done = sum(len(episode.actions) for episode in ego.walked) if ego else 0
        wanted: float | None
        if split in task.steps:
            wanted = task.walks[split] * task.steps[split]
        else:
            wanted = config.vlnr1.plan.records.get(source) if split == "train" else None
        if wanted is None:
            unknown.append(split)
        else:
            frames += max(0.0, wanted - done)
    each = frame_bytes(config, {source: open_exported(config, source)})
    needed = frames * each
    told = f"{free / GIB:.1f} GiB free in {place}"
    if frames:
        told += f"; {frames:,.0f} frames to export × {each / 1000:.1f} kB = {needed / GIB:.1f} GiB"
    if unknown:
        told += f"; what the export of {', '.join(unknown)} takes is unknown without ground truth"
    remedy = "vlnr1.data.root=<a folder on a larger disk>, or a lower vlnr1.export.jpeg_quality"
    if not os.access(place, os.W_OK):
        yield error("disk", f"{place} cannot be written to", "vlnr1.data.root=<a folder that can>")
    elif needed > free:
        yield error("disk", told, remedy)
    elif needed > 0.8 * free:
        yield warning("disk", f"{told}: hardly enough", remedy)
    else:
        yield ok("disk", told)
    if stat.f_files and frames > stat.f_favail:
        text = f"{stat.f_favail:,} inodes are free, but every frame is a file: {frames:,.0f} are needed"
        yield error("inodes", text, "vlnr1.data.root=<a folder on a file system with more inodes>")
