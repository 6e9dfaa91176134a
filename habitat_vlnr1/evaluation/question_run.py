"""Evaluation of answers to questions about histories: rows of a table, each with its predictions on disk.

    <folder>/<row>/<split>/predictions.jsonl   one line per answer as it is given: {"question_id": …, "answer": …}
                           run.json            what the row's answers depend on; another run does not go on with them
                           answers.json        marks per question, and the averages

A run that was stopped goes on with the questions that have no line yet.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from habitat_vlnr1.errors import ResultsError, VLNR1Error
from habitat_vlnr1.files import differences, drop_half_line, parse_json, read_json
from habitat_vlnr1.lvlm.frames import Frame, FrameError, read_frame
from habitat_vlnr1.memory import Memory
from habitat_vlnr1.qa_metrics import METRICS
from habitat_vlnr1.questions import CATEGORIES, Question
from habitat_vlnr1.results import write_json

PREDICTIONS, CLAIM, ANSWERS = "predictions.jsonl", "run.json", "answers.json"


class Answerer(Protocol):
    """What answers the questions of a row."""

    @property
    def identity(self) -> dict[str, Any]:
        """What its answers depend on, beside the questions."""

    def answer(self, questions: Sequence[Question]) -> list[str]:
        """One answer to each of some questions about one history, asked at one step.

        Raises:
            FrameError: a frame of the history cannot be read.
        """


class Frequent:
    """Answers without looking: what was most often right, in training, for the same category, or the same wording.

    Args:
        training: the questions that were trained on.
        by: `category` (the majority answer) or `question` (as much as the words alone tell).
    """

    def __init__(self, training: Sequence[Question], by: str):
        self.by = by
        counts: dict[str, Counter[str]] = {}
        for question in training:
            counts.setdefault(getattr(question, by), Counter())[question.answers[0]] += 1
        self.most = {key: min(own, key=lambda text: (-own[text], text)) for key, own in counts.items()}
        every = Counter(question.answers[0] for question in training)
        self.fallback = min(every, key=lambda text: (-every[text], text))

    @property
    def identity(self) -> dict[str, Any]:
        return {"frequent": self.by, "training": _digest(sorted(self.most.items()))}

    def answer(self, questions: Sequence[Question]) -> list[str]:
        return [self.most.get(getattr(question, self.by), self.fallback) for question in questions]


class Looking:
    """A model that answers by what a memory shows of the history.

    Args:
        ask: from questions and frames to answers (`TextDecoder.answer`).
        shown: from a question and a memory to the frames that are shown.
        memory: chooses the frames of the past.
        identity: what the model's answers depend on.
        blind: every frame is black.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[str], Sequence[Frame]], list[str]],
        shown: Callable[[Question, Memory], Sequence[Frame]],
        memory: Memory,
        identity: Mapping[str, Any],
        blind: bool = False,
    ):
        self.ask, self.shown, self.memory, self.blind = ask, shown, memory, blind
        self.identity = {**identity, "memory": repr(memory), "blind": blind}

    def answer(self, questions: Sequence[Question]) -> list[str]:
        frames = self.shown(questions[0], self.memory)
        if self.blind:
            frames = [np.zeros_like(read_frame(frame)) for frame in frames]
        return self.ask([question.question for question in questions], frames)


@dataclass
class Answered:
    """A row's answers.

    Args:
        row: its name.
        questions: that were answered.
        answers: by question id.
        left_out: a line for each history that could not be shown.
    """

    row: str
    questions: list[Question]
    answers: dict[str, str]
    left_out: list[str] = field(default_factory=list)


def answer_all(row: str, answerer: Answerer, questions: Sequence[Question], folder: Path) -> Answered:
    """Ask every question that has no answer yet, history by history.

    Args:
        row: its name, for the bar.
        folder: the row's and split's own.

    Raises:
        ResultsError: the folder has the answers of another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, {**answerer.identity, "questions": _digest([question.to_json() for question in questions])})
    file = folder / PREDICTIONS
    drop_half_line(file)
    answers = read_predictions(file) if file.exists() else {}
    groups: dict[tuple[str, int | None], list[Question]] = {}
    for question in questions:
        if question.question_id not in answers:
            groups.setdefault((question.history, question.step), []).append(question)
    left_out = []
    with file.open("a", encoding="utf-8") as lines:
        for own in tqdm(groups.values(), desc=row, unit="history", disable=len(groups) < 20):
            try:
                found = answerer.answer(own)
            except FrameError as error:
                left_out.append(f"{len(own)} questions about {own[0].history}: {error}")
                continue
            for question, answer in zip(own, found, strict=True):
                answers[question.question_id] = answer
                lines.write(json.dumps({"question_id": question.question_id, "answer": answer}) + "\n")
            lines.flush()
    return Answered(row, [q for q in questions if q.question_id in answers], answers, left_out)


def read_predictions(file: Path) -> dict[str, str]:
    """Answers by question id.

    Raises:
        ResultsError: a line is none.
    """
    answers = {}
    remedy = "delete the line; its question is asked again"
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        row = parse_json(line, f"{file}, line {number}", remedy, ResultsError)
        if not isinstance(row.get("question_id"), str) or not isinstance(row.get("answer"), str):
            raise ResultsError(f"{file}, line {number}: no answer; {remedy}")
        answers[row["question_id"]] = row["answer"]
    return answers


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """The folder's answers must depend on the same."""
    file, now = folder / CLAIM, json.loads(json.dumps(identity))
    if file.exists():
        changed = differences(read_json(file, f"delete {folder}", ResultsError), now)
        if changed:
            raise ResultsError(
                f"{folder} has the answers of another run ({'; '.join(changed)}): choose another "
                "vlnr1.results_dir, or delete it"
            )
    elif (folder / PREDICTIONS).exists():
        raise ResultsError(f"{folder}: no {CLAIM} says whose answers these are: delete the folder")
    write_json(file, now)


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------- marks
def summarise(answered: Answered, more: Mapping[str, Mapping[str, float]] | None = None) -> dict[str, Any]:
    """Averages of every metric, over all questions and by category, and each question's marks.

    Args:
        more: other metrics, marks 0 to 1 by question id (LLM-Match).
    """
    marks: dict[str, dict[str, float]] = {
        name: {q.question_id: metric(answered.answers[q.question_id], q.answers) for q in answered.questions}
        for name, metric in METRICS.items()
    }
    marks |= {name: dict(own) for name, own in (more or {}).items()}
    groups = {name: [q for q in answered.questions if q.category == name] for name in CATEGORIES}
    parts = {"all": answered.questions} | {name: own for name, own in groups.items() if own}
    summary: dict[str, Any] = {"row": answered.row, "questions": len(answered.questions), "metrics": {}}
    for name, own in parts.items():
        summary["metrics"][name] = {"questions": len(own)}
        for metric, values in marks.items():
            mean, error = mean_and_error([(q.history, values[q.question_id]) for q in own if q.question_id in values])
            summary["metrics"][name][metric] = mean
            summary["metrics"][name][f"{metric}_error"] = error
    summary["left_out"] = answered.left_out
    summary["answers"] = [
        {
            **question.to_json(),
            "prediction": answered.answers[question.question_id],
            **{metric: values.get(question.question_id) for metric, values in marks.items()},
        }
        for question in answered.questions
    ]
    return summary


def mean_and_error(marks: Iterable[tuple[str, float]]) -> tuple[float | None, float | None]:
    """Mean of (history, mark)s, and its standard error with the histories as clusters: questions about one walk do not
    err independently."""
    values = list(marks)
    if not values:
        return None, None
    mean = sum(mark for _, mark in values) / len(values)
    off: Counter[str] = Counter()
    for history, mark in values:
        off[history] += mark - mean  # type: ignore[assignment]  # a Counter adds floats, too
    return mean, math.sqrt(sum(value**2 for value in off.values())) / len(values)


def table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: a line per row with its match (with standard error), F1, and the match per category."""
    there = [name for name in CATEGORIES if any(name in s["metrics"] for s in summaries)]
    llm = any(s["metrics"]["all"].get("llm") is not None for s in summaries)
    lines = [["row", "questions", "match", "F1", *(["LLM-Match"] if llm else []), *there]]
    for s in summaries:
        own = s["metrics"]["all"]
        cells = [s["row"], str(s["questions"]), f"{own['match']:.3f} ± {own['match_error']:.3f}", f"{own['f1']:.3f}"]
        cells += [_number(own.get("llm"))] if llm else []
        lines.append([*cells, *(_number(s["metrics"].get(name, {}).get("match")) for name in there)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["| " + " | ".join(_pad(line, widths)) + " |" for line in lines]
    text.insert(1, "| " + " | ".join("-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |")
    return "\n".join(text)


def _pad(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def check_rows(names: Iterable[str], memories: Iterable[str]) -> None:
    """ValueError for a row that there is not."""
    known = [*BASELINES, "blind", *memories]
    for name in names:
        if name not in known:
            raise VLNR1Error(f"vlnr1.eqa.rows: there is no row {name!r}; there are {', '.join(known)}")


BASELINES = {"majority": "category", "wording": "question"}
"""Rows that look at nothing → what they look an answer up by."""
