import json

import pytest

from habitat_vlnr1.errors import ResultsError, RunError
from habitat_vlnr1.evaluation.llm_match import Judge
from habitat_vlnr1.evaluation.question_run import (
    PREDICTIONS,
    Frequent,
    Looking,
    answer_all,
    mean_and_error,
    summarise,
    table,
)
from habitat_vlnr1.evaluation.question_sheet import write_sheet
from habitat_vlnr1.lvlm.frames import FrameError
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.questions import Question
from tests.remote.fake import fake_server
from tests.tiny_run import jpeg


def question(name, history="w", answer="red", category="object recognition", text="What?"):
    return Question(name, text, (answer,), category, history)


class Says:
    """Answers with the history's name, except about `broken`; remembers what it was asked."""

    def __init__(self, broken=""):
        self.asked, self.broken = [], broken
        self.identity = {"model": 1}

    def answer(self, questions):
        self.asked.append([question.question_id for question in questions])
        if questions[0].history == self.broken:
            raise FrameError("0001.jpg: cut")
        return [question.history for question in questions]


def test_questions_about_a_history_are_asked_together_and_only_once(tmp_path):
    questions = [question("1", "a"), question("2", "b"), question("3", "a")]
    says = Says()
    answered = answer_all("row", says, questions, tmp_path)
    assert says.asked == [["1", "3"], ["2"]] and answered.answers == {"1": "a", "3": "a", "2": "b"}
    file = tmp_path / PREDICTIONS
    file.write_text(file.read_text().splitlines()[0] + '\n{"question_id": "2", "ans')  # was interrupted
    again = Says()
    assert answer_all("row", again, questions, tmp_path).answers == answered.answers
    assert again.asked == [["3"], ["2"]] or again.asked == [["2"], ["3"]]


def test_answers_of_another_run_are_refused(tmp_path):
    answer_all("row", Says(), [question("1")], tmp_path)
    with pytest.raises(ResultsError, match=r"another run.*questions"):
        answer_all("row", Says(), [question("2")], tmp_path)


def test_a_history_that_cannot_be_shown_is_left_out_and_the_rest_goes_on(tmp_path):
    questions = [question("1", "a"), question("2", "b")]
    answered = answer_all("row", Says(broken="a"), questions, tmp_path)
    assert [q.question_id for q in answered.questions] == ["2"]
    assert answered.left_out == ["1 questions about a: 0001.jpg: cut"]
    assert answer_all("row", Says(), questions, tmp_path).left_out == []  # mended, it is asked again


def test_baselines_answer_with_what_was_most_often_right():
    training = [question(str(i), text=text, answer=answer) for i, (text, answer) in enumerate(
        [("A?", "red"), ("A?", "red"), ("B?", "blue"), ("B?", "blue"), ("B?", "blue")]
    )]  # fmt: skip
    asked = [question("1", text="A?"), question("2", text="B?"), question("3", text="C?")]
    assert Frequent(training, "category").answer(asked) == ["blue"] * 3
    assert Frequent(training, "question").answer(asked) == ["red", "blue", "blue"]


def test_a_blind_row_sees_black_frames(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    seen = []
    row = Looking(
        lambda texts, frames: seen.append(frames) or ["red"] * len(texts),
        lambda question, memory: [tmp_path / "a.jpg"],
        make_memory("current"),
        identity={},
        blind=True,
    )
    assert row.answer([question("1")]) == ["red"]
    assert seen[0][0].shape == (56, 56, 3) and not seen[0][0].any()


def test_marks_by_category_and_the_table(tmp_path):
    questions = [question("1", "red"), question("2", "b", category="world knowledge")]
    summary = summarise(answer_all("row", Says(), questions, tmp_path), {"llm": {"1": 1.0, "2": 0.5}})
    assert summary["metrics"]["all"]["match"] == 0.5
    assert summary["metrics"]["object recognition"]["match"] == 1.0
    text = table([summary])
    assert "| row" in text and "0.500 ± 0.354" in text and "0.750" in text and "world knowledge" in text
    json.dumps(summary, allow_nan=False)


def test_the_error_counts_walks_not_questions():
    alone = [(str(i), float(i % 2)) for i in range(16)]
    together = [(str(i % 2), float(i % 2)) for i in range(16)]
    assert mean_and_error(alone) == (0.5, pytest.approx(0.125))
    assert mean_and_error(together) == (0.5, pytest.approx(0.5 / 2**0.5))


def test_a_sheet_is_drawn(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    asked = [question("1"), question("2")]
    frames = {"1": [tmp_path / "a.jpg"] * 17, "2": [tmp_path / "a.jpg"]}
    answers = {"row": {"1": "red", "2": "blue"}, "other": {"1": "red"}}
    file = write_sheet(tmp_path / "sheet.png", asked, frames, answers)
    assert file.stat().st_size > 10_000


def test_a_judge_marks_once_and_keeps_its_marks(tmp_path):
    asked = [question("1"), question("2"), question("3")]
    answers = {"1": "red. And more", "2": "blue", "3": ""}
    marks = {"1": 0.75, "2": 0.25, "3": 0.0}
    with fake_server(["Your mark: 4", "2", "no idea"]) as server:
        judge = Judge(server.url, "m")
        assert judge.mark_all(asked, answers, tmp_path) == marks
        assert judge.mark_all(asked, answers, tmp_path) == marks
        assert len(server.bodies) == 2 and "Answer to mark: red." in server.bodies[0]["messages"][0]["content"]
        with pytest.raises(RunError, match="question 2: no mark"):
            judge.mark_all(asked, {**answers, "2": "green"}, tmp_path)


def test_a_judge_needs_an_address():
    with pytest.raises(ValueError, match=r"vlnr1\.eqa\.judge\.url is 'file:///etc/passwd': give an address"):
        Judge("file:///etc/passwd", "m")
