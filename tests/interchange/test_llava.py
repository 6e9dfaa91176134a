import json

import pytest

from habitat_vlnr1.errors import RecordError
from habitat_vlnr1.interchange.llava import read_llava
from tests.tiny_run import jpeg


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def test_every_question_with_its_answer_is_a_record(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    two = {"image": "a.jpg", "conversations": turns("<image>\nWhat is this?", "A sofa.", "Red?", "Yes.")}
    several = {"images": ["a.jpg", "a.jpg"], "conversations": turns("<image><image>Same?", "Yes.")}
    file = tmp_path / "data.json"
    file.write_text(json.dumps([two, several]))
    records, left_out = read_llava(file)
    assert [(r.instruction, r.answer, len(r.frames)) for r in records] == [
        ("What is this?", "A sofa.", 1),
        ("Red?", "Yes.", 1),
        ("Same?", "Yes.", 2),
    ]
    assert not left_out
    lines = tmp_path / "data.jsonl"
    lines.write_text(f"{json.dumps(two)}\n{json.dumps(several)}\n")
    assert read_llava(lines)[0] == records


def test_what_is_no_record_is_listed(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    good = {"image": "a.jpg", "conversations": turns("What?", "A sofa.")}
    bad = [
        {**good, "image": "b.jpg"},
        {**good, "image": None},
        {**good, "conversations": turns("What?")},
        {**good, "conversations": turns("What?", 7)},
        {**good, "conversations": turns("What?", "A.", "B?", "C.")[1:3]},
        {"image": "a.jpg"},
        3,
    ]
    file = tmp_path / "data.json"
    file.write_text(json.dumps([*bad, good]))
    records, left_out = read_llava(file)
    assert len(records) == 1 and len(left_out) == len(bad)
    file.write_text(json.dumps(bad))
    with pytest.raises(RecordError, match=r"no record \(.*entry 1: .*b.jpg is not there"):
        read_llava(file)
