"""OpenEQA (Majumdar et al., CVPR 2024): its questions, its frame folders, and predictions as its scorer takes them.

`open-eqa-v0.json` is a list of questions, each about an `episode_history`; the frames of a history are the files
`<frames>/<episode_history>/*-rgb.png` in the order of their names. Predictions are a list of
`{"question_id": …, "answer": …}`, one for every question.

Examples:
    >>> data = read_open_eqa("data/open_eqa/open-eqa-v0.json", "data/open_eqa/frames")              # doctest: +SKIP
    >>> len(data.questions), len(data.histories), data.missing[:1]                                  # doctest: +SKIP
    (1636, 152, ['hm3d-v0/000-hm3d-BFRyYbPCCPE'])
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from habitat_vlnr1.errors import RecordError, SubmissionError
from habitat_vlnr1.files import printable, read_json, write_atomically
from habitat_vlnr1.memory import Memory
from habitat_vlnr1.questions import Checked, Question

PATTERN = "*-rgb.png"
_HISTORY = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*")


@dataclass
class OpenEQA:
    """The benchmark's questions, and the frames that are there.

    Args:
        questions: all that can be asked, also those whose frames are missing.
        frames: files by history, of those that are there.
        left_out: a line for each question that cannot be asked.
    """

    questions: list[Question]
    frames: dict[str, list[Path]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def histories(self) -> list[str]:
        """Of all questions, each once."""
        return list(dict.fromkeys(question.history for question in self.questions))

    @property
    def missing(self) -> list[str]:
        """Histories without frames."""
        return [history for history in self.histories if history not in self.frames]

    def shown(self, question: Question, memory: Memory) -> tuple[Path, ...]:
        """Files that a memory shows with a question, asked at the history's last frame."""
        files = self.frames[question.history]
        last = len(files) - 1
        return tuple(files[step] for step in (*memory.select(last), last))


def read_open_eqa(file: str | Path, frames: str | Path | None = None) -> OpenEQA:
    """Read the benchmark's questions and look for their frames.

    Args:
        file: `open-eqa-v0.json`.
        frames: the folder above the histories; None: nothing is looked for.

    Raises:
        RecordError: the file is not there or no list of questions.
    """
    place = Path(file)
    checked = Checked()
    for number, row in enumerate(read_json(place, "fetch it again", RecordError, list), start=1):
        checked.take(f"{place}, entry {number}", row, "episode_history")
    for question in [q for q in checked.questions if not _HISTORY.fullmatch(q.history)]:
        checked.questions.remove(question)
        name = printable(question.history)
        checked.left_out.append(f"{place}, question {question.question_id}: episode_history {name!r} is no folder")
    if not checked.questions:
        why = f" ({checked.left_out[0]})" if checked.left_out else ""
        raise RecordError(f"{place}: no question that can be asked{why}")
    data = OpenEQA(checked.questions, left_out=checked.left_out)
    if frames is not None:
        for history in data.histories:
            files = sorted((Path(frames) / history).glob(PATTERN))
            cut = next((path for path in files if not _is_whole(path)), None)
            if cut:
                data.left_out.append(f"history {history}: {cut} is not a whole PNG; extract its frames again")
            elif files:
                data.frames[history] = files
    return data


def _is_whole(path: Path) -> bool:
    """Whether a file begins and ends as a PNG does."""
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(-min(12, path.stat().st_size), 2)
        return head == b"\x89PNG\r\n\x1a\n" and file.read()[4:8] == b"IEND"


def write_predictions(
    file: str | Path, questions: Sequence[Question], answers: Mapping[str, str], *, partial: bool = False
) -> None:
    """Predictions in OpenEQA's form, in the order of its questions.

    Args:
        answers: by question id.
        partial: leave out what has no answer; the scorer then needs its `--force`.

    Raises:
        SubmissionError: an answer is missing, or is to none of the questions.
    """
    ids = [question.question_id for question in questions]
    missing = [name for name in ids if name not in answers]
    extra = sorted(answers.keys() - set(ids))
    if extra:
        raise SubmissionError(f"{file}: an answer to question {extra[0]}, which is not asked ({len(extra)} such)")
    if missing and not partial:
        raise SubmissionError(
            f"{file}: no answer to question {missing[0]} ({len(missing)} of {len(ids)}): OpenEQA's scorer takes whole "
            "lists; add the missing histories and evaluate again, it goes on from there"
        )
    rows = [{"question_id": name, "answer": answers[name]} for name in ids if name in answers]
    write_atomically(Path(file), (json.dumps(rows, indent=2) + "\n").encode())
