import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from habitat_vlnr1 import actions
from habitat_vlnr1.actions import Action, ActionSpace, next_actions, read_letters

ANY_ACTIONS = st.lists(st.sampled_from(list(Action)), min_size=1, max_size=8)
SPACES = st.builds(ActionSpace, st.sampled_from([0.25, 0.5, 0.125]), st.sampled_from([15, 22.5, 30]))


@given(ANY_ACTIONS, SPACES)
def test_what_is_formatted_is_parsed(sequence, space):
    assert space.parse(space.format(sequence), len(sequence)) == tuple(sequence)
    assert space.parse(space.format(sequence) + ".\n") == tuple(sequence)
    assert read_letters(space.format(sequence)) == tuple(sequence)


@given(ANY_ACTIONS)
def test_a_wrong_number_of_actions_is_no_answer(sequence):
    space = ActionSpace()
    assert space.parse(space.format(sequence), len(sequence) + 1) is None


@pytest.mark.parametrize(
    "text", ["", "A", "A. Move forward 50 cm", "A. Turn left 30 degrees", "A. Move forward 25 cm B. Stop", "D. Stop,"]
)
def test_anything_else_is_no_answer(text):
    assert ActionSpace().parse(text) is None


def test_words_tell_the_configured_angle():
    assert ActionSpace(0.25, 15).options() == [
        "A. Move forward 25 cm",
        "B. Turn left 15 degrees",
        "C. Turn right 15 degrees",
        "D. Stop",
    ]
    assert ActionSpace(0.3, 22.5).phrase(Action.RIGHT) == "C. Turn right 22.5 degrees"


@pytest.mark.parametrize(("step", "angle"), [(0, 30), (-1, 30), (0.25, 0), (0.25, 200)])
def test_impossible_space_is_refused(step, angle):
    with pytest.raises(ValueError, match="must be"):
        ActionSpace(step, angle)


def test_next_actions_pads_with_stop():
    assert next_actions([1, 2, 0], 1, 4) == (Action.LEFT, Action.STOP, Action.STOP, Action.STOP)
    assert next_actions([1, 2, 0], 0, 2) == (Action.FORWARD, Action.LEFT)
    assert next_actions([1, 0], 5, 2) == (Action.STOP, Action.STOP)
    with pytest.raises(ValueError, match="at least 1"):
        next_actions([1, 0], 0, 0)


def test_docstring_example():
    assert doctest.testmod(actions).failed == 0
