"""VLN-Ego as its authors released it: ShareGPT JSON, the multimodal form that LLaMA-Factory trains on.

A JSON list has one object per step::

    {"conversations": [{"from": "human", "value": "… <image> …"}, {"from": "gpt", "value": "D. Stop, …"}],
     "images": [history …, current]}

`ReleasedEpisodes` puts the steps of such files together again into episodes, so that memory, n and prompt can be
chosen anew; `write_sharegpt` writes records in this form. Both prompts that circulate are read: what differs (numbers
as words or digits, the order of the options, `None` or nothing for an empty history) does not touch what is taken from
them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from habitat_vlnr1.actions import SEPARATOR, Action, ActionSpace, read_letters
from habitat_vlnr1.files import write_atomically
from habitat_vlnr1.memory import Uniform
from habitat_vlnr1.prompt import PromptTemplate
from habitat_vlnr1.records import Episode, Record, RecordError, Records, check_jpeg, place_frame

IMAGE = "<image>"
RECORDS_PER_FILE = 20_000
_INSTRUCTION = re.compile(r"Your instruction is (.+)\.\nYou are provided with:", re.DOTALL)
_ANGLE = re.compile(r"Turn left ([\d.]+) degrees")
_STEP = re.compile(r"forward ([\d.]+) cm")
_FRAME = re.compile(
    r"(?P<folder>(?:.*/)?(?:ep_(?P<id>[^/]+)/traj_(?P<trajectory>[^/]+)|frames/(?P<scene>[^/]+)/(?P<own_id>[^/]+)))"
    r"/(?P<stem>step_|)(?P<step>\d+)\.jpe?g"
)
_GAP = re.compile(r"[\s,]*")
_CHUNK, _LONGEST = 1 << 20, 1 << 24  # characters read at once; of one record


# ------------------------------------------------------------------------------------------------------ reading
@dataclass
class _Walk:
    """What the records of one episode say, put together while the files are read."""

    folder: str
    scene: str
    trajectory: str | None
    named: str  # what a frame's name is made of: "step_{}.jpg"
    instruction: str
    labels: dict[int, int] = field(default_factory=dict)  # step → action
    last: int = 0  # the last step that a record is of


@dataclass
class ReleasedEpisodes:
    """The episodes of released files, put together; made by `read_sharegpt`.

    Attributes:
        images: folder that the frames' paths are relative to.
        label_offset: how far the files' labels are shifted.
        records: how many records were read.
        num_actions: n of their answers.
        forward_step, turn_angle: metres and degrees, as the prompt says them.
        other_history: records whose history is not what `uniform_16` chooses, as the released ones have it.
        skipped: {episode_id: reason}, filled by `episodes`.
    """

    images: Path
    label_offset: int
    walks: dict[str, _Walk]
    records: int
    num_actions: int
    forward_step: float
    turn_angle: float
    other_history: int
    skipped: dict[str, str] = field(default_factory=dict)

    def episodes(self) -> Iterator[tuple[Episode, list[Path]]]:
        """Whole episodes with the files of their frames; others are noted in `skipped`."""
        for episode_id, walk in self.walks.items():
            try:
                folder = find_folder(self.images, walk.folder)
                actions = self._actions(walk, folder)
                info = {"trajectory_id": walk.trajectory} if walk.trajectory else {}
                episode = Episode(episode_id, walk.scene, walk.instruction, tuple(actions), info)
                frames = [folder / walk.named.format(step) for step in range(len(actions))]
                for frame in frames:
                    check_jpeg(frame)
            except RecordError as error:
                self.skipped[episode_id] = str(error)
                continue
            yield episode, frames

    @property
    def first_label(self) -> int:
        """1 when the first action of some episode is unknown: shifted labels do not hold it; else 0."""
        if self.label_offset == 0:
            return 0
        for walk in self.walks.values():
            try:
                folder = find_folder(self.images, walk.folder)
            except RecordError:
                continue
            if not (folder / "action_list.json").is_file():
                return 1
        return 0

    def _actions(self, walk: _Walk, folder: Path) -> list[int]:
        """The actions of a whole episode, from `action_list.json` beside its frames or from the labels alone."""
        listed = folder / "action_list.json"
        if listed.is_file():
            return _listed_actions(listed, walk, self.label_offset)
        start, end = self.label_offset, walk.last
        if end < start:  # one frame, whose own action shifted labels do not hold: it can only be STOP
            return [int(Action.STOP)]
        missing = [step for step in range(start, end + 1) if step not in walk.labels]
        if missing:
            raise RecordError(
                f"{walk.folder}: no record tells the action at step {missing[0]}, and there is no action_list.json"
            )
        actions = [walk.labels[step] for step in range(start, end + 1)]
        if Action.STOP not in actions or actions.index(Action.STOP) != len(actions) - 1:
            raise RecordError(
                f"{walk.folder}: the labels' first Stop is not at the last frame, {end}, if they are shifted by "
                f"{self.label_offset}: check vlnr1.data.label_offset (the authors' release: 1)"
            )
        # Stands in for the unknown first action; `first_label` keeps it from ever being a label.
        return [int(Action.FORWARD)] * start + actions


def _listed_actions(file: Path, walk: _Walk, offset: int) -> list[int]:
    try:
        actions = [int(action) for action in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise RecordError(f"{file}: not a list of action numbers ({error})") from None
    for step, label in walk.labels.items():
        if label != (actions[step] if step < len(actions) else Action.STOP):
            raise RecordError(
                f"{file}: step {step} has another action in the records, if their labels are shifted by {offset}: "
                "check vlnr1.data.label_offset (the authors' release: 1)"
            )
    return actions


def read_sharegpt(source: Path, images: Path | None = None, label_offset: int = 0) -> ReleasedEpisodes:
    """Read a ShareGPT file, or a folder of them, and put the steps together into episodes.

    A file is read record by record, whatever its size; in memory stays one entry per episode.

    Args:
        images: folder that the frames' paths are relative to (LLaMA-Factory's `media_dir`), or any folder above the
            episodes' own; None: the one that `source` lies in.
        label_offset: 1 when record i is labelled `actions[i+1 … i+n]`, as in the authors' release.

    Raises:
        RecordError: a record is not of this form; the message names file and record.
    """
    files = sorted(source.glob("*.json")) if source.is_dir() else [source]
    if not files or not files[0].is_file():
        raise RecordError(f"{source}: no such file, or no *.json in it")
    released = ReleasedEpisodes(images or source.parent, label_offset, {}, 0, 0, 0.25, 30.0, 0)
    with tqdm(desc="reading", unit="record") as bar:
        for file in files:
            for number, row in enumerate(_array(file), start=1):
                try:
                    _take(row, released)
                except (RecordError, KeyError, TypeError, IndexError, AttributeError) as error:
                    what = error if isinstance(error, RecordError) else f"not a ShareGPT record ({error!r})"
                    raise RecordError(f"{file}, record {number}: {what}") from None
                bar.update()
    if not released.walks:
        raise RecordError(f"{source}: no records")
    return released


def _take(row: Mapping[str, Any], released: ReleasedEpisodes) -> None:
    """Put one record to its episode."""
    question, answer = (turn["value"] for turn in row["conversations"])
    images = row["images"]
    if question.count(IMAGE) != len(images) or not images:
        raise RecordError(f"{question.count(IMAGE)} times {IMAGE}, but {len(images)} images")
    actions = read_letters(answer)
    if not actions or len(actions) != len(answer.split(SEPARATOR)):
        raise RecordError(f"the answer {answer!r} is not a list of options such as 'A. Move forward 25 cm'")
    released.num_actions = released.num_actions or len(actions)
    if len(actions) != released.num_actions:
        raise RecordError(f"{len(actions)} actions, but {released.num_actions} in the first record")
    if not released.records:
        if angle := _ANGLE.search(question):
            released.turn_angle = float(angle[1])
        if length := _STEP.search(question):
            released.forward_step = float(length[1]) / 100
    frame = _FRAME.fullmatch(images[-1])
    if frame is None:
        raise RecordError(f"{images[-1]!r} is neither ep_<id>/traj_<id>/step_<k>.jpg nor frames/<scene>/<id>/<k>.jpg")
    step, named = int(frame["step"]), images[-1].removeprefix(frame["folder"] + "/")
    named = "step_{}" + Path(named).suffix if frame["stem"] else "{:04d}" + Path(named).suffix
    instruction = _instruction(question)
    scene = frame["scene"] or _folder_name(frame["folder"])
    walk = _Walk(frame["folder"], scene, frame["trajectory"], named, instruction)
    walk = released.walks.setdefault(frame["id"] or frame["own_id"], walk)
    if walk.folder != frame["folder"]:
        raise RecordError(f"its episode is below {walk.folder} and {frame['folder']}: convert the sources one by one")
    if walk.instruction != instruction:
        raise RecordError(f"{walk.folder} has another instruction in the records before")
    released.other_history += images[:-1] != [f"{walk.folder}/{named.format(i)}" for i in Uniform(16).select(step)]
    walk.last = max(walk.last, step)
    for at, action in enumerate(actions, start=step + released.label_offset):
        if walk.labels.setdefault(at, int(action)) != action:
            raise RecordError(f"step {at} of {walk.folder} has two different labels")
    released.records += 1


def _instruction(question: str) -> str:
    """The instruction within a prompt: in plain quotes, or as Python's repr has it (an apostrophe changes them)."""
    found = _INSTRUCTION.search(question)
    if found is None:
        raise RecordError("no instruction: the prompt is not that of VLN-Ego ('Your instruction is …')")
    quoted = found[1].strip()
    try:
        text = ast.literal_eval(quoted)
    except (ValueError, SyntaxError):
        text = None
    return (text if isinstance(text, str) and repr(text) == quoted else quoted[1:-1]).strip()


def _folder_name(folder: str) -> str:
    """The folder that the episodes lie in, for a scene's name, which the release does not tell."""
    parts = [part for part in folder.split("/")[:-2] if part]
    return re.sub(r"[^A-Za-z0-9_-]", "_", parts[-1]) if parts else "released"


def find_folder(root: Path, folder: str) -> Path:
    """Where a record's folder is below `root`: under its whole path, or the longest end of it that is there.

    Released files name folders that were renamed, or moved into LLaMA-Factory's data folder, afterwards.

    Raises:
        RecordError: it is nowhere, or the path climbs with `..`.
    """
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise RecordError(f"{folder}: a frame's path must not contain ..")
    for start in range(len(parts)):
        place = root.joinpath(*parts[start:])
        if place.is_dir():
            return place
    raise RecordError(
        f"{folder}: no such folder below {root}; set vlnr1.convert.images to the one that holds its ep_… folders"
    )


def _array(file: Path) -> Iterator[Any]:
    """The values of a JSON array, one by one, so that the file may be larger than memory."""
    decode = json.JSONDecoder().raw_decode
    number = 0
    with file.open(encoding="utf-8") as stream:
        text = stream.read(_CHUNK).lstrip()
        if not text.startswith("["):
            raise RecordError(f"{file}: not a JSON list")
        at = 1
        while True:
            at = _GAP.match(text, at).end()  # type: ignore[union-attr]
            if text.startswith("]", at):
                return
            try:
                value, at = decode(text, at)
            except json.JSONDecodeError as error:
                more = stream.read(_CHUNK)
                if not more or len(text) - at > _LONGEST:
                    raise RecordError(f"{file}, record {number + 1}: cut, or not JSON ({error.msg})") from None
                text, at = text[at:] + more, 0
                continue
            number += 1
            yield value


# ------------------------------------------------------------------------------------------------------ writing
def sharegpt_row(record: Record, template: PromptTemplate, space: ActionSpace) -> dict[str, Any]:
    """One record in the released form; the frames' paths are relative to the data set's folder."""
    messages = template.messages(record.instruction, len(record.history), len(record.answer), space)
    parts = [part for message in messages for part in message["content"]]
    question = "".join(IMAGE if part["type"] == "image" else part["text"] for part in parts)
    images = [record.episode.frame(step) for step in (*record.history, record.step)]
    if question.count(IMAGE) != len(images):
        raise RecordError(f"episode {record.episode.episode_id}: its instruction contains {IMAGE}")
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": space.format(record.answer)}]
    return {"conversations": turns, "images": images}


def write_sharegpt(records: Records, template: PromptTemplate, space: ActionSpace, output: Path, name: str) -> None:
    """Write records as LLaMA-Factory takes them; what an interrupted call has written whole stays.

    `records/00000.json` … hold 20,000 records each, `frames/` links to the frames (copies across file systems), and
    `dataset_info.json` describes the data set `name`.
    """
    place_frames(records, output)
    (output / "records").mkdir(parents=True, exist_ok=True)
    starts = range(0, len(records), RECORDS_PER_FILE)
    with tqdm(total=len(records), desc="records", unit="record") as bar:
        for number, start in enumerate(starts):
            file = output / "records" / f"{number:05d}.json"
            span = range(start, min(start + RECORDS_PER_FILE, len(records)))
            if not file.exists():
                rows = (sharegpt_row(records[i], template, space) for i in span)
                text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
                write_atomically(file, f"[\n{text}\n]\n".encode())
            bar.update(len(span))
    entry = {
        "file_name": "records",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "images": "images"},
    }
    write_atomically(output / "dataset_info.json", json.dumps({name: entry}, indent=2).encode())


def place_frames(records: Records, output: Path) -> None:
    """Link, or copy, the frames of all episodes into `output`; those that are there stay."""
    for ego in records.sources:
        for episode in tqdm(ego.episodes, desc="frames", unit="episode"):
            last = output / episode.frame(len(episode.actions) - 1)
            if last.exists():
                continue
            last.parent.mkdir(parents=True, exist_ok=True)
            for step in range(len(episode.actions)):
                check_jpeg(ego.root / episode.frame(step))
                place_frame(ego.root / episode.frame(step), output / episode.frame(step))
