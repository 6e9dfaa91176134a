"""LLM-Match: a language model marks answers 1 to 5, as OpenEQA's scorer does; through any OpenAI-compatible endpoint.

Nothing is asked unless an address is configured (`vlnr1.eqa.judge.url`). The words of our request are our own, so for
figures beside published ones use OpenEQA's `evaluate-predictions.py`; the scale and what is cut off are the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from habitat_vlnr1.errors import ResultsError, RunError
from habitat_vlnr1.files import drop_half_line, parse_json
from habitat_vlnr1.questions import Question
from habitat_vlnr1.remote.endpoint import Endpoint

FILE = "llm_match.jsonl"
_ASK = """\
Compare an answer with the right one. Mark it with a whole number from 1 to 5: 5 where it means the same as the right \
answer or as another accepted one, 1 where it means something else entirely.
Question: {question}
Right answer: {answer}
Other accepted answers: {extra}
Answer to mark: {prediction}
Reply in this form, and nothing else:
Your mark: <number>"""
_MARK = re.compile(r"(?:Your mark:\s*)?([1-5])\b")
_MARK_TOKENS = 32


class Judge:
    """Asks for marks.

    Args:
        url: of the endpoint, up to and without `/chat/completions`.
        model: its name there.
        key_variable: environment variable that has the key; where it is not set, none is sent.

    Raises:
        ValueError: the address is none of http or https, or the client is not installed.
    """

    def __init__(self, url: str, model: str, key_variable: str = "OPENAI_API_KEY"):
        self.endpoint, self.model = Endpoint(url, model, key_variable, place="vlnr1.eqa.judge"), model

    def mark_all(self, questions: Sequence[Question], answers: Mapping[str, str], folder: Path) -> dict[str, float]:
        """(mark - 1) / 4 by question id; marks that the folder has from before are not asked for again."""
        file = folder / FILE
        drop_half_line(file)
        marks = self._known(file, answers)
        with file.open("a", encoding="utf-8") as lines:
            left = [question for question in questions if question.question_id not in marks]
            for question in tqdm(left, desc="LLM-Match", disable=len(left) < 20):
                name = question.question_id
                marks[name] = self.mark(question, answers[name])
                row = {"question_id": name, "answer": answers[name], "model": self.model, "mark": marks[name]}
                lines.write(json.dumps(row) + "\n")
                lines.flush()
        return {name: (mark - 1) / 4 for name, mark in marks.items()}

    def _known(self, file: Path, answers: Mapping[str, str]) -> dict[str, int]:
        """Marks of the same answers by the same model."""
        known = {}
        for number, line in enumerate(file.read_bytes().splitlines() if file.is_file() else [], start=1):
            row = parse_json(line, f"{file}, line {number}", "delete the line", ResultsError)
            if row.get("model") == self.model and answers.get(row.get("question_id")) == row.get("answer"):
                known[row["question_id"]] = row["mark"]
        return known

    def mark(self, question: Question, answer: str) -> int:
        """1 to 5; an empty answer is 1.

        Raises:
            RunError: the endpoint cannot be reached, or gives no mark.
        """
        answer = cut(answer)
        if not answer:
            return 1
        text = _ASK.format(
            question=question.question,
            answer=question.answers[0],
            extra="; ".join(question.answers[1:]) or "none",
            prediction=answer,
        )
        message = {"role": "user", "content": text}
        reply = self.endpoint.ask([message], max_tokens=_MARK_TOKENS, temperature=0).text
        found = _MARK.search(reply)
        if found is None:
            raise RunError(f"{self.endpoint.url}: question {question.question_id}: no mark 1 to 5 in {reply[:80]!r}")
        return int(found[1])


def cut(answer: str) -> str:
    """Without what stands behind the last full stop, as OpenEQA's scorer takes it."""
    end = answer.rfind(".")
    return answer[: end + 1].strip() if end >= 0 else answer.strip()
