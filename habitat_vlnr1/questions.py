"""Questions about exported walks, and the training records seen through them.

`questions.jsonl` in a VLN-Ego folder has one line per question:

    {"question_id": "12-1", "episode_id": "12", "question": "What colour is the sofa?", "answer": "red",
     "category": "attribute recognition", "extra_answers": ["red sofa"]}

It is asked at the walk's last frame, or at `step` where the line has one. A record is a *view*, as in `records.py`:
the memory chooses among the frames before, and the frame of then is shown last. So questions can be added to walks,
and the memory changed, without a new export.

Examples:
    >>> ego = VLNEgo("data/vln_ego/embedded/train")                                         # doctest: +SKIP
    >>> questions, left_out = read_questions(ego)                                           # doctest: +SKIP
    >>> QuestionRecords(ego, questions, make_memory("long_short"))[0].answer                # doctest: +SKIP
    'red'
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from habitat_vlnr1.errors import RecordError, VLNR1Error
from habitat_vlnr1.files import is_text, parse_json, printable, write_atomically
from habitat_vlnr1.memory import Memory
from habitat_vlnr1.records import VLNEgo

FILE = "questions.jsonl"
CATEGORIES = (
    "object recognition",
    "attribute recognition",
    "object localization",
    "spatial understanding",
    "object state recognition",
    "functional reasoning",
    "world knowledge",
)
"""OpenEQA's."""


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers.

    Args:
        question_id: unique in its file.
        question: in words.
        answers: all that are right; the first one is what is taught.
        category: one of `CATEGORIES`.
        history: which walk it is about: an episode's id, or OpenEQA's `episode_history`.
        step: the frame at which it is asked; None: the last.
    """

    question_id: str
    question: str
    answers: tuple[str, ...]
    category: str
    history: str
    step: int | None = None

    def __post_init__(self) -> None:
        for name in ("question_id", "question", "history"):
            if not is_text(getattr(self, name)) or not getattr(self, name).strip():
                raise RecordError(f"{name} is {printable(getattr(self, name))!r}: it must be a text")
        if not self.answers or not all(is_text(answer) and answer.strip() for answer in self.answers):
            raise RecordError(f"its answers are {list(self.answers)!r}: it needs at least one, and none that is empty")
        if self.category not in CATEGORIES:
            raise RecordError(f"unknown category {printable(self.category)!r}; there are {', '.join(CATEGORIES)}")
        if self.step is not None and (type(self.step) is not int or self.step < 0):
            raise RecordError(f"step is {printable(self.step)!r}: it must be the number of a frame")

    @classmethod
    def from_json(cls, row: Mapping[str, Any], history: str = "episode_id") -> Question:
        """The question of a line, or of an entry of OpenEQA's file.

        Args:
            history: the key that has the walk.

        Raises:
            RecordError: a key is missing or holds something else.
        """
        missing = [key for key in ("question_id", "question", "answer", "category", history) if key not in row]
        if missing:
            raise RecordError(f"no key {missing[0]!r}")
        extra = row.get("extra_answers")
        if extra is not None and not isinstance(extra, list):
            raise RecordError(f"extra_answers is {printable(extra)!r}: it must be a list")
        # OpenEQA's file has extra answers that are empty; they accept nothing.
        given = [row["answer"], *(text for text in extra or () if text != "")]
        answers = tuple(given) if not all(isinstance(text, str) for text in given) else tuple(dict.fromkeys(given))
        return cls(row["question_id"], row["question"], answers, row["category"], row[history], row.get("step"))

    def to_json(self) -> dict[str, Any]:
        """The line's content; the inverse of `from_json`."""
        row: dict[str, Any] = {
            "question_id": self.question_id,
            "episode_id": self.history,
            "question": self.question,
            "answer": self.answers[0],
            "category": self.category,
        }
        row |= {"extra_answers": list(self.answers[1:])} if len(self.answers) > 1 else {}
        return row | ({"step": self.step} if self.step is not None else {})


class Checked:
    """Takes questions one by one, keeps those that can be asked, and says in a line each why others are not.

    Attributes:
        questions: that can be asked.
        left_out: lines.
    """

    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.left_out: list[str] = []
        self._ids: set[str] = set()

    def take(self, place: str, row: Any, history: str = "episode_id") -> None:
        """The question of a row, if it is one and its id is new.

        Args:
            place: where the row stands, for the line.
            history: as in `Question.from_json`.
        """
        named = f", question {printable(row['question_id'])}" if isinstance(row, dict) and "question_id" in row else ""
        try:
            if not isinstance(row, dict):
                raise RecordError(f"holds {type(row).__name__} instead of a question")
            question = Question.from_json(row, history)
            if question.question_id in self._ids:
                raise RecordError("its id stands there twice, and the first one counts")
        except RecordError as error:
            self.left_out.append(f"{place}{named}: {error}")
            return
        self._ids.add(question.question_id)
        self.questions.append(question)


def read_questions(ego: VLNEgo) -> tuple[list[Question], list[str]]:
    """The questions of an exported folder, and a line for each that cannot be asked.

    Raises:
        RecordError: the folder has none, or none that can be asked.
    """
    file = ego.root / FILE
    if not file.is_file():
        raise RecordError(f"{file}: not there; add questions with --config-name=vlnr1_export vlnr1.export.questions=…")
    checked = Checked()
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{file}, line {number}"
            try:
                row = parse_json(line, place, "delete the line", RecordError)
            except RecordError as error:
                checked.left_out.append(str(error))
                continue
            checked.take(place, row)
    questions, without = with_frames(checked.questions, {e.episode_id: len(e.actions) for e in ego.episodes})
    left_out = [*checked.left_out, *(f"{file}, {line}" for line in without)]
    if not questions:
        raise RecordError(f"{file}: no question that can be asked" + (f" ({left_out[0]})" if left_out else ""))
    return questions, left_out


def with_frames(questions: Iterable[Question], frames: Mapping[str, int]) -> tuple[list[Question], list[str]]:
    """Questions whose walk is there, and a line for each whose is not.

    Args:
        frames: number of frames by history.
    """
    kept, left_out = [], []
    for question in questions:
        count = frames.get(question.history, 0)
        if count > (question.step or 0):
            kept.append(question)
        else:
            what = f"has {count} frames, it asks at {question.step}" if count else "has no frames"
            left_out.append(f"question {question.question_id}: its walk {question.history} {what}")
    return kept, left_out


@dataclass(frozen=True)
class QuestionRecord:
    """One question as the model sees it.

    Args:
        question: what is asked.
        frames: files, those of the past and, last, the current one.
    """

    question: Question
    frames: tuple[Path, ...]
    is_question = True  # for the collator: other words stand around it than around an instruction

    @property
    def instruction(self) -> str:
        return self.question.question

    @property
    def answer(self) -> str:
        return self.question.answers[0]


class QuestionRecords(Sequence[QuestionRecord]):
    """Questions about a folder's walks as records.

    Args:
        ego: the folder.
        questions: about its episodes.
        memory: chooses the frames of the past.
    """

    def __init__(self, ego: VLNEgo, questions: Sequence[Question], memory: Memory):
        self.ego = ego
        self.questions = list(questions)
        self.memory = memory
        self._episodes = {episode.episode_id: episode for episode in ego.episodes}

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> QuestionRecord:  # type: ignore[override]
        question = self.questions[index]
        return QuestionRecord(question, self.shown(question, self.memory))

    def __iter__(self) -> Iterator[QuestionRecord]:
        return (self[i] for i in range(len(self)))

    def shown(self, question: Question, memory: Memory) -> tuple[Path, ...]:
        """Files that a memory shows with a question, the current frame last."""
        episode = self._episodes[question.history]
        step = len(episode.actions) - 1 if question.step is None else question.step
        return tuple(self.ego.root / episode.frame(i) for i in (*memory.select(step), step))

    def rows(self, size: int) -> list[list[int]]:
        """Numbers of the records, at most `size` about one history together: they begin with the same frames."""
        if size < 1:
            raise VLNR1Error(f"a row holds at least 1 question about a walk, got {size}")
        histories: dict[tuple[str, int | None], list[int]] = {}
        for number, question in enumerate(self.questions):
            histories.setdefault((question.history, question.step), []).append(number)
        return [own[start : start + size] for own in histories.values() for start in range(0, len(own), size)]


def write_questions(folder: str | os.PathLike[str], questions: Iterable[Question]) -> Path:
    """Write `questions.jsonl`, whole or not at all."""
    file = Path(folder) / FILE
    write_atomically(file, "".join(json.dumps(question.to_json()) + "\n" for question in questions).encode())
    return file
