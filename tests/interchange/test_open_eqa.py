import json

import numpy as np
import pytest
from PIL import Image

from habitat_vlnr1.errors import RecordError, SubmissionError
from habitat_vlnr1.interchange.open_eqa import read_open_eqa, write_predictions
from habitat_vlnr1.memory import make_memory


def entry(number, history="hm3d-v0/000-a", **changes):
    row = {"question": "What is it?", "answer": "A sofa", "category": "object recognition"}
    return {**row, "question_id": f"id-{number}", "episode_history": history, **changes}


def write(folder, *entries):
    file = folder / "open-eqa-v0.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    return file


def draw(folder, count):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number:05d}-rgb.png")
        (folder / f"{number:05d}-depth.png").write_bytes(b"not looked at")


def test_questions_and_frames_as_they_lie_there(tmp_path):
    other = entry(3, "scannet-v0/001-b", extra_answers=None)
    file = write(tmp_path, entry(1, extra_answers=["Couch", ""]), entry(2), other)
    draw(tmp_path / "frames/hm3d-v0/000-a", 5)
    data = read_open_eqa(file, tmp_path / "frames")
    assert [question.answers for question in data.questions] == [("A sofa", "Couch"), ("A sofa",), ("A sofa",)]
    assert data.histories == ["hm3d-v0/000-a", "scannet-v0/001-b"] and data.missing == ["scannet-v0/001-b"]
    shown = data.shown(data.questions[0], make_memory("uniform", budget=2))
    assert [path.name for path in shown] == ["00000-rgb.png", "00003-rgb.png", "00004-rgb.png"]
    assert not data.left_out


def test_what_cannot_be_asked_is_listed(tmp_path):
    bad = [entry(1), entry(1), entry(2, category="smell"), entry(3, answer=""), entry(4, "../../etc"), "text"]
    data = read_open_eqa(write(tmp_path, *bad))
    assert [question.question_id for question in data.questions] == ["id-1"]
    assert len(data.left_out) == 5 and "entry 2, question id-1: its id stands there twice" in data.left_out[0]


def test_a_cut_frame_takes_its_history_out(tmp_path):
    draw(tmp_path / "frames/hm3d-v0/000-a", 3)
    frame = tmp_path / "frames/hm3d-v0/000-a/00001-rgb.png"
    frame.write_bytes(frame.read_bytes()[:-5])
    data = read_open_eqa(write(tmp_path, entry(1)), tmp_path / "frames")
    assert data.missing == ["hm3d-v0/000-a"] and "00001-rgb.png is not a whole PNG" in data.left_out[0]


@pytest.mark.parametrize("content", ["", "{}", "[]", "[1", '[{"question": 1}]'])
def test_no_list_of_questions(tmp_path, content):
    file = tmp_path / "open-eqa-v0.json"
    file.write_text(content)
    with pytest.raises(RecordError, match=r"open-eqa-v0\.json"):
        read_open_eqa(file)


def test_predictions_in_the_scorers_form(tmp_path):
    data = read_open_eqa(write(tmp_path, entry(1), entry(2)))
    file = tmp_path / "predictions.json"
    write_predictions(file, data.questions, {"id-2": "b", "id-1": "a"})
    whole = [{"question_id": "id-1", "answer": "a"}, {"question_id": "id-2", "answer": "b"}]
    assert json.loads(file.read_text()) == whole
    with pytest.raises(SubmissionError, match=r"no answer to question id-1 \(1 of 2\)"):
        write_predictions(file, data.questions, {"id-2": "b"})
    with pytest.raises(SubmissionError, match="id-3, which is not asked"):
        write_predictions(file, data.questions, {"id-3": "b"}, partial=True)
    write_predictions(file, data.questions, {"id-2": "b"}, partial=True)
    assert json.loads(file.read_text()) == whole[1:]
