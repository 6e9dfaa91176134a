import pytest

from habitat_vlnr1.qa_metrics import exact_match, normalised_match, token_f1
from habitat_vlnr1.rewards import make_reward


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "match", "f1"),
    [
        ("red", ["red"], 1, 1, 1),
        ("The red sofa.", ["red", "red sofa"], 0, 1, 1),
        ("three", ["3"], 0, 1, 1),
        ("in the red room", ["the red room"], 0, 0, 0.8),
        ("sofa red", ["red sofa"], 0, 0, 1),
        ("blue", ["red"], 0, 0, 0),
        ("", ["red"], 0, 0, 0),
        ("the", ["a"], 0, 0, 0),
        ("Küche", ["küche"], 0, 1, 1),
    ],
)
def test_marks(prediction, answers, exact, match, f1):
    assert exact_match(prediction, answers) == exact
    assert normalised_match(prediction, answers) == match
    assert token_f1(prediction, answers) == pytest.approx(f1)


def test_answers_are_rewarded_whatever_form_a_completion_has():
    chat = [[{"role": "assistant", "content": "a red bed"}]]
    assert make_reward("answer_match")(completions=["red bed", "blue"], answers=[["red bed"], ["red"]]) == [1.0, 0.0]
    assert make_reward("answer_match")(completions=chat, answers=[["red bed"]]) == [1.0]
    assert make_reward("answer_f1")(completions=["red room"], answers=[["red"]]) == [pytest.approx(2 / 3)]
