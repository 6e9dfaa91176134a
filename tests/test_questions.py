import json

import pytest

from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.errors import RecordError
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.questions import FILE, Question, QuestionRecords, read_questions, write_questions
from habitat_vlnr1.records import Episode, VLNEgo
from tests.tiny_run import jpeg

GOOD = {"question_id": "1", "episode_id": "a", "question": "What?", "answer": "red", "category": "object recognition"}


@pytest.fixture
def ego(tmp_path):
    writer = EpisodeWriter(tmp_path / "train", {})
    for name, length in (("a", 4), ("b", 2)):
        writer.write(Episode(name, "s", "Go.", (*[1] * length, 0)), [jpeg((length, i)) for i in range(length + 1)])
    writer.close()
    return VLNEgo(tmp_path / "train")


def put(ego, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (ego.root / FILE).write_text(text, encoding="utf-8")


def test_a_question_is_asked_behind_the_frames_that_the_memory_chooses(ego):
    questions = [
        Question("1", "What?", ("red", "red sofa"), "object recognition", "a"),
        Question("2", "Where?", ("left",), "spatial understanding", "a", step=2),
    ]
    write_questions(ego.root, questions)
    read, left_out = read_questions(ego)
    assert (read, left_out) == (questions, [])
    records = QuestionRecords(ego, read, make_memory("uniform", budget=2))
    assert [[frame.name for frame in record.frames] for record in records] == [
        ["0000.jpg", "0003.jpg", "0004.jpg"],
        ["0000.jpg", "0001.jpg", "0002.jpg"],
    ]
    assert (records[0].instruction, records[0].answer, records[0].is_question) == ("What?", "red", True)


def test_questions_about_one_history_share_a_row(ego):
    about = ["a", "b", "a", "a", "b"]
    questions = [Question(str(i), "What?", ("red",), "object recognition", name) for i, name in enumerate(about)]
    records = QuestionRecords(ego, questions, make_memory("current"))
    assert records.rows(8) == [[0, 2, 3], [1, 4]]
    assert records.rows(2) == [[0, 2], [3], [1, 4]]


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        ({"episode_id": "c"}, "its walk c has no frames"),
        ({"step": 5}, "its walk a has 5 frames, it asks at 5"),
        ({"category": "riddles"}, "unknown category 'riddles'; there are object recognition, "),
        ({"answer": " "}, "its answers are [' ']: it needs at least one, and none that is empty"),
        ({"answer": 3}, "its answers are [3]"),
        ({"extra_answers": "red"}, "extra_answers is 'red': it must be a list"),
        ({"question_id": "1"}, "its id stands there twice, and the first one counts"),
        ({"question": ""}, "question is ''"),
        ({"question": None}, "question is 'None'"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_the_rest_goes_on(ego, bad, line):
    put(ego, GOOD, {**GOOD, "question_id": "2", **bad})
    questions, left_out = read_questions(ego)
    assert [question.question_id for question in questions] == ["1"]
    assert len(left_out) == 1 and line in left_out[0] and FILE in left_out[0]


def test_broken_lines_are_left_out_too(ego):
    put(ego, "{", "[]", {**GOOD, "category": 7}, {k: v for k, v in GOOD.items() if k != "answer"}, GOOD)
    questions, left_out = read_questions(ego)
    assert len(questions) == 1 and len(left_out) == 4
    assert all(line.startswith(f"{ego.root / FILE}, line ") for line in left_out)


def test_a_folder_without_a_question_says_how_to_add_some(ego):
    with pytest.raises(RecordError, match=r"vlnr1\.export\.questions"):
        read_questions(ego)
    put(ego, {**GOOD, "category": "riddles"})
    with pytest.raises(RecordError, match=r"no question that can be asked \(.*riddles"):
        read_questions(ego)
