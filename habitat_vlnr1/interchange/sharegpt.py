"""VLN-Ego as its authors released it: ShareGPT JSON, the multimodal form that LLaMA-Factory trains on.

A JSON list has one object per step:

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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm

from habitat_vlnr1.actions import SEPARATOR, Action, ActionSpace, read_letters
from habitat_vlnr1.episode_writer import place_frame
from habitat_vlnr1.errors import RecordError
from habitat_vlnr1.files import is_folder_name, is_text, read_json, write_atomically
from habitat_vlnr1.frame_files import check_jpeg
from habitat_vlnr1.memory import Uniform
from habitat_vlnr1.prompt import PromptTemplate
from habitat_vlnr1.records import Episode, Record, Records

IMAGE = "<image>"
RECORDS_PER_FILE = 20_000
LABELLED = "labels_of_another_walk"
"""Key of a record whose answer is not what was done next (DAgger); LLaMA-Factory takes no notice of it."""
EPISODE = "episode_id"
"""Key of a record whose frames are those of another episode, walked the same way: whose record it is."""
_BEFORE, _AFTER = "Your instruction is ", ".\nYou are provided with:"
_ANGLE = re.compile(r"Turn left (\S+) degrees")
_STEP = re.compile(r"forward (\S+) cm")
_FRAME = re.compile(
    r"(?P<folder>(?:.*/)?(?:ep_(?P<id>[^/]+)/traj_(?P<trajectory>[^/]+)|frames/(?P<scene>[^/]+)/(?P<own_id>[^/]+)))"
    r"/(?P<stem>step_|)(?P<step>\d{1,6})\.jpe?g"
)
_GAP = re.compile(r"[\s,]*")
_CHUNK, _LONGEST = 1 << 20, 1 << 24  # characters read at once; of one record
_LONGEST_PATH = 4096


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
    actions = read_json(file, "fetch it again", RecordError, list)
    if any(type(action) is not int for action in actions):
        raise RecordError(f"{file}: not a list of action numbers")
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
    if (source / "dataset_info.json").is_file() and (source / "records").is_dir():  # a folder that we have written
        source = source / "records"
    files = sorted(source.glob("*.json")) if source.is_dir() else [source]
    if not files or not files[0].is_file():
        raise RecordError(f"{source}: no such file, or no *.json in it")
    released = ReleasedEpisodes(images or source.parent, label_offset, {}, 0, 0, 0.25, 30.0, 0)
    with tqdm(desc="reading", unit="record") as bar:
        for file in files:
            for number, row in enumerate(_array(file), start=1):
                try:
                    _take(_read_record(row), released)
                except RecordError as error:
                    raise RecordError(f"{file}, record {number}: {error}") from None
                bar.update()
    if not released.walks:
        raise RecordError(f"{source}: no records")
    return released


class _Turns(NamedTuple):
    """What a record holds: question, answer, the images' paths, and the episode's id where they do not tell it."""

    question: str
    answer: str
    images: list[str]
    episode: str | None


def _read_record(row: Any) -> _Turns:
    """Look at a record's form; a system turn before the question is left out, and one image need not stand in a list.

    Raises:
        RecordError: it is of another form.
    """
    if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
        raise RecordError("not a ShareGPT record: an object with the lists conversations and images is needed")
    if row.get(LABELLED):
        raise RecordError(
            "its answers are labels of a walk that was not the expert's (DAgger), which this form cannot give back: "
            "take the VLN-Ego folder itself, or its Parquet"
        )
    turns = row["conversations"]
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        raise RecordError("every turn of conversations must be an object with the text value")
    if not all(is_text(turn["value"]) for turn in turns):
        raise RecordError("its words are not UTF-8 (or half of a surrogate pair): save the file as UTF-8")
    if turns and turns[0].get("from") == "system":
        turns = turns[1:]
    if len(turns) != 2:
        raise RecordError(f"{len(turns)} turns (not counting system), but a question and its answer are needed")
    images = [row["images"]] if isinstance(row.get("images"), str) else row.get("images")
    if not isinstance(images, list) or not all(is_text(path) and len(path) <= _LONGEST_PATH for path in images):
        raise RecordError(f"images must be a list of paths of at most {_LONGEST_PATH} characters")
    question, answer = (turn["value"] for turn in turns)
    if question.count(IMAGE) != len(images) or not images:
        raise RecordError(f"{question.count(IMAGE)} times {IMAGE}, but {len(images)} images")
    if EPISODE in row and not is_folder_name(row[EPISODE]):
        raise RecordError(f"{EPISODE} {shortened(str(row[EPISODE]))} cannot be a folder name")
    return _Turns(question, answer, images, row.get(EPISODE))


def _take(record: _Turns, released: ReleasedEpisodes) -> None:
    """Put one record to its episode."""
    question, answer, images, episode = record
    actions = read_letters(answer)
    if not actions or len(actions) != len(answer.split(SEPARATOR)):
        raise RecordError(f"the answer {shortened(answer)} is not a list of options such as 'A. Move forward 25 cm'")
    released.num_actions = released.num_actions or len(actions)
    if len(actions) != released.num_actions:
        raise RecordError(f"{len(actions)} actions, but {released.num_actions} in the first record")
    instruction = _instruction(question)
    _take_words(question[question.rindex(IMAGE) :], released)
    frame = _FRAME.fullmatch(images[-1])
    if frame is None:
        raise RecordError(
            f"{shortened(images[-1])} is neither ep_<id>/traj_<id>/step_<k>.jpg nor frames/<scene>/<id>/<k>.jpg"
        )
    step, named = int(frame["step"]), images[-1].removeprefix(frame["folder"] + "/")
    named = "step_{}" + Path(named).suffix if frame["stem"] else "{:04d}" + Path(named).suffix
    scene = frame["scene"] or _folder_name(frame["folder"])
    walk = _Walk(frame["folder"], scene, frame["trajectory"], named, instruction)
    walk = released.walks.setdefault(episode or frame["id"] or frame["own_id"], walk)
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


def _take_words(options: str, released: ReleasedEpisodes) -> None:
    """Steps and angles as the prompt's options say them; no record may say anything else than the first."""
    step, angle = _STEP.search(options), _ANGLE.search(options)
    if step is None or angle is None:
        raise RecordError("its prompt has no options 'forward <number> cm' and 'Turn left <number> degrees'")
    try:
        said = float(step[1]) / 100, float(angle[1])
        ActionSpace(*said)
    except ValueError as error:
        raise RecordError(f"the prompt's options are not usable: {error}") from None
    if not released.records:
        released.forward_step, released.turn_angle = said
    elif said != (released.forward_step, released.turn_angle):
        raise RecordError(
            f"its prompt says steps of {said[0]:g} m and turns of {said[1]:g} degrees, the first record's "
            f"{released.forward_step:g} m and {released.turn_angle:g} degrees: convert the sources one by one"
        )


def _instruction(question: str) -> str:
    """The instruction within a prompt: in plain quotes, or as Python's repr has it (an apostrophe changes them)."""
    quoted = question.partition(_BEFORE)[2].rpartition(_AFTER)[0].strip()
    if len(quoted) < 2 or quoted[0] not in "'\"" or quoted[-1] != quoted[0]:
        raise RecordError("no instruction: the prompt is not that of VLN-Ego (\"Your instruction is '…'\")")
    try:
        text = ast.literal_eval(quoted)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
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
        raise RecordError(f"{shortened(folder)}: a frame's path must not contain ..")
    for start in range(len(parts)):
        place = root.joinpath(*parts[start:])
        if _is_folder(place):
            return place
    raise RecordError(
        f"{shortened(folder)}: no such folder below {root}; set vlnr1.convert.images to the one that holds its ep_… "
        "folders"
    )


def _is_folder(place: Path) -> bool:
    try:
        return place.is_dir()
    except (OSError, ValueError):  # a name that is too long, or has a NUL in it
        return False


def shortened(text: str) -> str:
    """Text of a file within a message."""
    return repr(text) if len(text) <= 120 else f"{text[:120]!r}…"


def _array(file: Path) -> Iterator[Any]:
    """The values of a JSON array, one by one, so that the file may be larger than memory."""
    try:
        # Bytes that are no UTF-8 become letters that are no text, and their record is then named.
        with file.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
            yield from _values(file, stream)
    except OSError as error:
        raise RecordError(f"{file}: cannot be read ({error.strerror})") from None


def _values(file: Path, stream: TextIO) -> Iterator[Any]:
    decode = json.JSONDecoder().raw_decode
    number = 0
    text = stream.read(_CHUNK).lstrip()
    if not text.startswith("["):
        raise RecordError(f"{file}: not a JSON list ([{{…}}, …]; JSON lines are not read)")
    at = 1
    while True:
        at = _GAP.match(text, at).end()  # type: ignore[union-attr]
        if text.startswith("]", at):
            if text[at + 1 :].strip() or stream.read(_CHUNK).strip():
                raise RecordError(f"{file}: more stands after the end of its list, at record {number}")
            return
        try:
            value, at = decode(text, at)
        except json.JSONDecodeError as error:
            more = stream.read(_CHUNK)
            if not more or len(text) - at > _LONGEST:
                raise RecordError(f"{file}, record {number + 1}: cut, or not JSON ({error.msg})") from None
            text, at = text[at:] + more, 0
            continue
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists a thousand deep
            raise RecordError(f"{file}, record {number + 1}: not a ShareGPT record ({error})") from None
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
    row = {"conversations": turns, "images": images}
    if record.episode.labels:
        row[LABELLED] = True
    if record.episode.frames_of:
        row[EPISODE] = record.episode.episode_id
    return row


def write_sharegpt(records: Records, template: PromptTemplate, space: ActionSpace, output: Path, name: str) -> None:
    """Write records as LLaMA-Factory takes them; what an interrupted call has written whole stays.

    `records/00000.json` … hold 20,000 records each, `frames/` links to the frames (copies across file systems), and
    `dataset_info.json` describes the data set `name`.
    """
    place_frames(records, output)
    (output / "records").mkdir(parents=True, exist_ok=True)
    for file, span in missing_files(len(records), output / "records", "{:05d}.json"):
        rows = (sharegpt_row(records[i], template, space) for i in span)
        text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        write_atomically(file, f"[\n{text}\n]\n".encode())
    entry = {
        "file_name": "records",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "images": "images"},
    }
    write_atomically(output / "dataset_info.json", json.dumps({name: entry}, indent=2).encode())


def missing_files(count: int, folder: Path, name: str) -> Iterator[tuple[Path, range]]:
    """Files of `RECORDS_PER_FILE` records that are not there yet, and the numbers of their records, with a bar.

    Args:
        count: of all records.
        name: of a file, with a place for its number.
    """
    with tqdm(total=count, desc="records", unit="record") as bar:
        for number, start in enumerate(range(0, count, RECORDS_PER_FILE)):
            file, span = folder / name.format(number), range(start, min(start + RECORDS_PER_FILE, count))
            if not file.exists():
                yield file, span
            bar.update(len(span))


def place_frames(records: Records, output: Path) -> None:
    """Link, or copy, the frames of all episodes into `output`; those that are there stay."""
    for ego in records.sources:
        for episode in tqdm(ego.walked, desc="frames", unit="episode"):
            last = output / episode.frame(len(episode.actions) - 1)
            if last.exists():
                continue
            last.parent.mkdir(parents=True, exist_ok=True)
            for step in range(len(episode.actions)):
                check_jpeg(ego.root / episode.frame(step))
                place_frame(ego.root / episode.frame(step), output / episode.frame(step))
