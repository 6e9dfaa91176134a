"""LLM-Match: a language model marks answers 1 to 5, as OpenEQA's scorer does; through any OpenAI-compatible endpoint.

Nothing is asked unless an address is configured (`vlnr1.eqa.judge.url`). The words of our request are our own, so for
figures beside published ones use OpenEQA's `evaluate-predictions.py`; the scale and what is cut off are the same.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from habitat_vlnr1.errors import ResultsError, RunError, VLNR1Error
from habitat_vlnr1.files import drop_half_line, parse_json
from habitat_vlnr1.questions import Question

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
_TRIES, _SECONDS = 4, 60


class Judge:
    """Asks for marks.

    Args:
        url: of the endpoint, up to and without `/chat/completions`.
        model: its name there.
        key_variable: environment variable that has the key; where it is not set, none is sent.

    Raises:
        ValueError: the address is none of http or https.
    """

    def __init__(self, url: str, model: str, key_variable: str = "OPENAI_API_KEY"):
        if not url.startswith(("http://", "https://")):
            raise VLNR1Error(f"vlnr1.eqa.judge.url is {url!r}: give an address, such as http://localhost:8000/v1")
        self.url, self.model = url.rstrip("/") + "/chat/completions", model
        self.key = os.environ.get(key_variable)

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
        reply = self._ask(text)
        found = _MARK.search(reply)
        if found is None:
            raise RunError(f"{self.url}: question {question.question_id}: no mark 1 to 5 in {reply[:80]!r}")
        return int(found[1])

    def _ask(self, text: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "max_tokens": 32}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(self.url, json.dumps({**body, "temperature": 0}).encode(), headers)
        for attempt in range(_TRIES):
            try:
                with urllib.request.urlopen(request, timeout=_SECONDS) as response:
                    reply: Any = json.loads(response.read())
                return str(reply["choices"][0]["message"]["content"])
            except urllib.error.HTTPError as error:
                if error.code not in (429, 500, 502, 503) or attempt == _TRIES - 1:
                    raise RunError(f"{self.url}: {error.code} {error.reason}; what is marked is kept") from None
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                if attempt == _TRIES - 1:
                    raise RunError(f"{self.url}: {error}; what is marked is kept") from None
            time.sleep(2**attempt)
        raise AssertionError("the last attempt returns or raises")


def cut(answer: str) -> str:
    """Without what stands behind the last full stop, as OpenEQA's scorer takes it."""
    end = answer.rfind(".")
    return answer[: end + 1].strip() if end >= 0 else answer.strip()
