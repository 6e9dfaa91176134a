"""VLN-Ego on disk, and the training records seen through it.

A VLN-Ego folder holds episodes, not records:

    meta.json               what was exported: protocol, split, expert, format
    episodes*.jsonl         one line per episode (several files when the export was split over processes)
    frames/<scene>/<episode_id>/0000.jpg …    one JPEG per step (and 0000.depth.png …, if depth was exported),
                            or <episode_id>.zip with them in it (see `habitat_vlnr1.frame_files`)
    frames_checked.json     how many episodes' frames were found whole, and for which episode lines

`actions[i]` is the action taken at frame i, and the last one is STOP, so there are as many frames as actions. A
record is a *view*, made when it is read: at frame i the model sees what the memory chooses of v_0 … v_{i-1}, and v_i;
its answer is `actions[i : i+n]` padded with STOP. So memory, n and prompt can change without a new export.

Episodes that were walked the same way have the same frames, which are stored once: `frames_of` names whose they are.

A walk that was not the expert's (DAgger) carries `labels`: what the expert would have done from a step on. They are
the answers then, and steps without one are no records.

Examples:
    >>> ego = VLNEgo("data/vln_ego/embedded/train")                                       # doctest: +SKIP
    >>> record = ego.records(make_memory("long_short"), num_actions=6)[0]                 # doctest: +SKIP
    >>> record.instruction, record.frames, record.answer                                  # doctest: +SKIP
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from habitat_vlnr1.actions import Action, ActionSpace, next_actions
from habitat_vlnr1.errors import RecordError, VLNR1Error
from habitat_vlnr1.files import is_folder_name, is_text, parse_json, read_json, write_atomically
from habitat_vlnr1.frame_files import check_jpeg
from habitat_vlnr1.memory import Memory

FORMAT = 1
CHECK_THREADS = 16  # opening a file waits for the disk or the network, not for the processor
CHECKED = "frames_checked.json"
CHECK_PART = 1000  # episodes after which a check is remembered, and within which a fault ends it
SPOT_CHECKS = 200


@dataclass(frozen=True)
class Episode:
    """One trajectory: a line of `episodes.jsonl`.

    Args:
        episode_id: unique in the folder; a file name (letters, digits, `_`, `-`, `.`).
        scene: the scene's short name, a file name too.
        instruction: what the agent was told.
        actions: numbers of `Action`, one per frame; the last is STOP (with labels: whatever was done at last).
        info: provenance, kept as it is (trajectory id, expert, success, distance to goal in metres, …).
        descriptions: what each frame shows, in words; empty unless the export was asked for it. A second line says it
            cell by cell (see `cells`).
        labels: the expert's next actions by step, up to its STOP or as many as were planned; empty where the expert
            itself has walked.
        frames_of: the episode whose frames these are, walked the same way in the same scene; empty: its own.
    """

    episode_id: str
    scene: str
    instruction: str
    actions: tuple[int, ...]
    info: dict[str, Any] = field(default_factory=dict)
    descriptions: tuple[str, ...] = ()
    labels: dict[int, tuple[int, ...]] = field(default_factory=dict)
    frames_of: str = ""

    def __post_init__(self) -> None:
        for name in (self.episode_id, self.scene, self.frames_of or self.episode_id):
            if not is_folder_name(name):
                raise RecordError(f"episode {self.episode_id!r}: {name!r} cannot be a folder name")
        if not all(map(is_text, (self.instruction, *self.descriptions))) or not isinstance(self.info, dict):
            raise RecordError(
                f"episode {self.episode_id}: instruction and descriptions must be text that UTF-8 can write, info an "
                "object"
            )
        stops = bool(self.actions) and (self.actions[-1] == Action.STOP or bool(self.labels))
        if not stops or Action.STOP in self.actions[:-1]:
            raise RecordError(f"episode {self.episode_id}: actions must end with the one STOP (0)")
        if not all(map(_is_action, chain(self.actions, *self.labels.values()))):
            raise RecordError(f"episode {self.episode_id}: actions must be 0, 1, 2 or 3")
        for step, label in self.labels.items():
            if not 0 <= step < len(self.actions) or not label or Action.STOP in label[:-1]:
                raise RecordError(
                    f"episode {self.episode_id}: label of step {step}: it must have a frame and actions, STOP last"
                )
        if self.descriptions and len(self.descriptions) != len(self.actions):
            raise RecordError(
                f"episode {self.episode_id}: {len(self.descriptions)} descriptions for {len(self.actions)} frames"
            )

    @property
    def folder(self) -> str:
        """Path of the frames' folder relative to that of the data; where they are packed, `.zip` follows it."""
        return f"frames/{self.scene}/{self.frames_of or self.episode_id}"

    def frame(self, step: int) -> str:
        """Path of frame `step` relative to the folder."""
        return f"{self.folder}/{step:04d}.jpg"

    def depth(self, step: int) -> str:
        """Path of the depth image of frame `step`: 16-bit PNG, 65535 for a normalised depth of 1, if exported."""
        return f"{self.folder}/{step:04d}.depth.png"

    def cells(self, step: int) -> list[str]:
        """What each cell of frame `step` shows, row by row; empty where the export has not said it."""
        lines = self.descriptions[step].splitlines() if self.descriptions else []
        return lines[1].split("; ") if len(lines) > 1 else []

    @property
    def steps(self) -> Sequence[int]:
        """The steps that are records, ascending."""
        return sorted(self.labels) if self.labels else range(len(self.actions))

    def answer(self, step: int, n: int, offset: int = 0) -> tuple[Action, ...]:
        """The expert's next n actions at `step`, padded with STOP; `offset` leaves out so many.

        Raises:
            RecordError: fewer actions than that were planned when the episode was exported.
        """
        if not self.labels:
            return next_actions(self.actions, step + offset, n)
        label = self.labels[step]
        if label[-1] != Action.STOP and len(label) < offset + n:
            raise RecordError(
                f"episode {self.episode_id}: {offset + n} actions are asked for, but its labels have {len(label)}: "
                "export again with a longer plan, or lower vlnr1.prompt.num_actions"
            )
        return next_actions(label, offset, n)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Episode:
        """The episode of a line; RecordError where a key is missing, unknown, or holds something else."""
        unknown = sorted(row.keys() - {known.name for known in fields(cls)})
        if unknown:
            raise RecordError(f"unknown key {unknown[0]!r}; what is your own belongs into info")
        values = {**row}
        try:
            for name in ("actions", "descriptions"):
                values[name] = tuple(row.get(name, ()))
            values["labels"] = {int(step): tuple(label) for step, label in row.get("labels", {}).items()}
            return cls(**values)
        except RecordError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            missing = [name for name in ("episode_id", "scene", "instruction", "actions") if name not in row]
            raise RecordError(f"no key {missing[0]!r}" if missing else f"not an episode ({error})") from None

    def to_json(self) -> dict[str, Any]:
        """The line's content; the inverse of `from_json`."""
        row = asdict(self)
        for optional in ("descriptions", "labels", "frames_of"):
            if not row[optional]:
                del row[optional]
        return row


def _is_action(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 3


@dataclass(frozen=True)
class Record:
    """One training record: what is seen at `step` and what the expert did next.

    Args:
        episode: the trajectory it belongs to.
        step: the index i of the current frame.
        history: steps of the history frames, ascending, all smaller than `step`.
        frames: files of the history frames and, last, of the current one.
        answer: the next n actions, padded with STOP.
    """

    episode: Episode
    step: int
    history: tuple[int, ...]
    frames: tuple[Path, ...]
    answer: tuple[Action, ...]

    @property
    def instruction(self) -> str:
        return self.episode.instruction


class VLNEgo:
    """An exported folder, opened for reading: all its episode lines, none of its frames.

    Attributes:
        meta: what `meta.json` holds.
        episodes: of all `episodes*.jsonl`, in their order.

    Raises:
        RecordError: the folder, a line or a frame is missing or broken; the message says where and what to do.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root)
        meta = self.root / "meta.json"
        if not meta.is_file():
            raise RecordError(f"no VLN-Ego data in {self.root} (no meta.json): run --config-name=vlnr1_export first")
        self.meta = read_meta(meta)
        if self.meta.get("format") != FORMAT:
            raise RecordError(f"{meta}: format {self.meta.get('format')!r}, but this version reads {FORMAT}")
        for key, kind in (("protocol", dict | None), ("first_label", int), ("num_shards", int)):
            if key in self.meta and not isinstance(self.meta[key], kind):
                raise RecordError(f"{meta}: {key} is {self.meta[key]!r}; delete the folder and export again")
        self.episodes = self._read_episodes()

    def _read_episodes(self) -> list[Episode]:
        episodes: dict[str, Episode] = {}
        for file in sorted(self.root.glob("episodes*.jsonl")):
            for episode in read_episode_lines(file):
                if episode.episode_id in episodes:
                    raise RecordError(f"{file}: episode {episode.episode_id} stands in the folder twice")
                episodes[episode.episode_id] = episode
        if not episodes:
            raise RecordError(f"{self.root}: no episodes; run --config-name=vlnr1_export to fill it")
        for episode in episodes.values():
            if episode.frames_of:
                self._check_owner(episode, episodes.get(episode.frames_of))
        return list(episodes.values())

    def _check_owner(self, episode: Episode, owner: Episode | None) -> None:
        """RecordError where an episode does not have the frames that it names."""
        what = f"{self.root}: episode {episode.episode_id} has the frames of episode {episode.frames_of}"
        if owner is None:
            raise RecordError(f"{what}, which is not in the folder: export again")
        if (owner.frames_of, owner.scene, len(owner.actions)) != ("", episode.scene, len(episode.actions)):
            raise RecordError(f"{what}, which was walked otherwise: delete its line and export again")

    @property
    def walked(self) -> list[Episode]:
        """The episodes that have frames of their own, from which the others' are taken."""
        return [episode for episode in self.episodes if not episode.frames_of]

    @property
    def space(self) -> ActionSpace | None:
        """The actions in the words of the protocol that the data were recorded under; None where that is unknown."""
        return recorded_space(self.root / "meta.json", self.meta)

    def check_frames(self) -> None:
        """Find missing or cut frames before training starts.

        Every frame's two ends are looked at once; `frames_checked.json` remembers it for these episode lines, so that
        a check that was stopped goes on, and later calls look at the first frames of 200 episodes spread over the
        folder. A frame that is damaged after that is named when it is read. Where the folder cannot be written,
        nothing is remembered.
        """
        walked = self.walked
        lines, seen = self._checked()
        if seen == len(walked):
            for episode in walked[:: len(walked) // SPOT_CHECKS + 1]:
                check_jpeg(self.root / episode.frame(0))
            return
        total = sum(len(episode.actions) for episode in walked)
        bar = tqdm(total=total, desc=f"checking frames of {self.root}", unit="frame", disable=total < 10_000)
        bar.update(sum(len(episode.actions) for episode in walked[:seen]))
        writable = os.access(self.root, os.W_OK)
        with bar, ThreadPoolExecutor(CHECK_THREADS) as pool:
            for start in range(seen, len(walked), CHECK_PART):
                part = walked[start : start + CHECK_PART]
                for episode, _ in zip(part, pool.map(self._check_episode, part), strict=True):
                    bar.update(len(episode.actions))
                if writable:
                    checked = {"lines": lines, "episodes": start + len(part)}
                    write_atomically(self.root / CHECKED, json.dumps(checked).encode())

    def _checked(self) -> tuple[dict[str, list[int]], int]:
        """Size and time of the files of episode lines, and how many episodes' frames were found whole with these."""
        files = sorted(self.root.glob("episodes*.jsonl"))
        lines = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
        try:
            stamp = json.loads((self.root / CHECKED).read_bytes())
            seen = stamp["episodes"] if stamp["lines"] == lines else 0
        except (OSError, ValueError, KeyError, TypeError):  # it only saves time
            return lines, 0
        return lines, seen if type(seen) is int and seen >= 0 else 0

    def _check_episode(self, episode: Episode) -> None:
        for step in range(len(episode.actions)):
            check_jpeg(self.root / episode.frame(step))

    def records(self, memory: Memory, num_actions: int, label_offset: int = 0) -> Records:
        """The folder seen as training records; `label_offset=1` labels as the authors' release does."""
        return Records([self], memory, num_actions, label_offset)


class Records(Sequence[Record]):
    """Every step (that is labelled) of every episode of one or more folders as a `Record`.

    Stored is only where each episode starts.

    Args:
        sources: opened folders; their records follow each other.
        memory: chooses the history frames.
        num_actions: n of an answer.
        label_offset: 1 labels as the authors' release does.

    Raises:
        RecordError: `label_offset` is less than a folder's `first_label` (`meta.json`): its first actions are unknown.
    """

    def __init__(self, sources: Sequence[VLNEgo], memory: Memory, num_actions: int, label_offset: int = 0):
        for ego in sources:
            if label_offset < ego.meta.get("first_label", 0):
                raise RecordError(
                    f"{ego.root}: its first actions are unknown (it was converted from shifted labels, without "
                    "action_list.json): set vlnr1.data.label_offset=1"
                )
        self.sources = tuple(sources)
        self.episodes = [episode for ego in sources for episode in ego.episodes]
        self.memory = memory
        self.num_actions = num_actions
        self.label_offset = label_offset
        self._ends = np.cumsum([len(episode.steps) for episode in self.episodes])
        self._source_ends = np.cumsum([len(ego.episodes) for ego in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def spans(self) -> list[range]:
        """The numbers of each source's records."""
        ends = [int(self._ends[last - 1]) for last in self._source_ends]
        return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def locate(self, index: int) -> tuple[Episode, int]:
        """Episode and step of record `index`."""
        which, step = self._place(index)
        return self.episodes[which], step

    def _place(self, index: int) -> tuple[int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        which = int(np.searchsorted(self._ends, index, side="right"))
        return which, self.episodes[which].steps[index - int(self._ends[which])]

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        which, step = self._place(index)
        episode = self.episodes[which]
        root = self.sources[int(np.searchsorted(self._source_ends, which, side="right"))].root
        history = tuple(self.memory.select(step))
        frames = tuple(root / episode.frame(i) for i in (*history, step))
        answer = episode.answer(step, self.num_actions, self.label_offset)
        return Record(episode, step, history, frames, answer)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def frequent_answers(self, count: int) -> tuple[tuple[Action, ...], ...]:
        """The `count` most frequent answers of all records, the most frequent first."""
        found: Counter[tuple[Action, ...]] = Counter()
        for episode in self.episodes:
            if episode.labels:
                found.update(episode.answer(step, self.num_actions, self.label_offset) for step in episode.steps)
            else:  # the same, ten times as fast: there may be millions
                stops = (Action.STOP,) * (self.num_actions + self.label_offset - 1)
                ahead = (*episode.actions, *stops)[self.label_offset :]
                found.update(zip(*(ahead[k:] for k in range(self.num_actions)), strict=False))
        first = sorted(found, key=lambda answer: (-found[answer], answer))[:count]
        return tuple(tuple(map(Action, answer)) for answer in first)

    def rows(self, size: int, keep: Callable[[Episode, int], bool] = lambda episode, step: True) -> list[list[int]]:
        """Numbers of the records, at most `size` of one episode together, spread evenly over it.

        Args:
            keep: whether an episode's step is wanted.
        """
        if size < 1:
            raise VLNR1Error(f"a row holds at least 1 step of an episode, got {size}")
        rows: list[list[int]] = []
        first = 0
        for episode in self.episodes:
            wanted = [first + place for place, step in enumerate(episode.steps) if keep(episode, step)]
            parts = -(-len(wanted) // size)
            rows += [wanted[part::parts] for part in range(parts)]
            first += len(episode.steps)
        return rows


def keep_some(num_actions: int, keep_straight: float, seed: int) -> Callable[[Episode, int], bool]:
    """Which steps of an episode are trained on (for `Records.rows`).

    An expert mostly walks straight on, and turns and stops decide; VLN-CE weights the loss to the same end
    (inflection weighting). In GRPO it matters as much: rewarded for what is recorded, a model that is in doubt learns
    to go on, and misses its stop.

    Args:
        keep_straight: share of the records with a whole answer of FORWARD that is kept, drawn at random.
        seed: of that draw.
    """
    chance = np.random.default_rng(seed)

    def keep(episode: Episode, step: int) -> bool:
        future = (episode.labels[step] if episode.labels else episode.actions[step:])[:num_actions]
        return set(future) != {Action.FORWARD} or chance.random() < keep_straight

    return keep


def summarize(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Counts of an export: episodes, records and how often each action was done.

    Where walks are labelled (DAgger) also how often each action is `taught`, as the first of an answer; where episodes
    share their frames, how many `walks` have frames of their own.
    """
    counts = {
        "episodes": len(episodes),
        "records": sum(len(episode.steps) for episode in episodes),
        "actions": _histogram(action for episode in episodes for action in episode.actions),
    }
    if any(episode.labels for episode in episodes):
        counts["taught"] = _histogram(episode.answer(step, 1)[0] for episode in episodes for step in episode.steps)
    walks = sum(not episode.frames_of for episode in episodes)
    if walks < len(episodes):
        counts["walks"] = walks
    return counts


def _histogram(actions: Iterable[int]) -> dict[str, int]:
    counts = Counter(actions)
    return {action.name.lower(): counts[action] for action in Action}


def read_episode_lines(file: Path) -> Iterator[Episode]:
    """Episodes of one `episodes*.jsonl`; a broken line is an error that names it."""
    remedy = "delete the line and export again"
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            row = parse_json(line, f"{file}, line {number}", remedy, RecordError)
            try:
                yield Episode.from_json(row)
            except RecordError as error:
                raise RecordError(f"{file}, line {number}: {error}; {remedy}") from None


def read_meta(file: Path) -> dict[str, Any]:
    """What a folder's `meta.json` holds.

    Raises:
        RecordError: it is empty or damaged.
    """
    return read_json(file, "delete the folder and export again", RecordError)


def recorded_space(file: Path, meta: dict[str, Any]) -> ActionSpace | None:
    """The actions in the words of the protocol of a `meta.json`; None where it has none.

    Raises:
        RecordError: its steps or angles are none.
    """
    protocol = meta.get("protocol")
    if not protocol:
        return None
    try:
        return ActionSpace(protocol["forward_step"], protocol["turn_angle"])
    except (ValueError, KeyError, TypeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        remedy = "delete the folder and export again"
        raise RecordError(f"{file}: protocol: {what}; {remedy}") from None
