import doctest

import pytest

from habitat_vlnr1 import rewards
from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.rewards import (
    REWARDS,
    answer_value,
    balanced,
    hard,
    linear,
    make_reward,
    ndtw,
    progress,
    spl,
    success,
    time_decayed,
    uniform,
)

SPACE = ActionSpace()
RIGHT = SPACE.format([1, 2, 3])
FIRST_ONLY = SPACE.format([1, 1, 1])
LAST_ONLY = SPACE.format([3, 3, 3])
RECORDED = [1, 2, 3]


def test_time_decayed_is_equation_9():
    got = time_decayed([RIGHT, FIRST_ONLY, LAST_ONLY], actions=[RECORDED] * 3, gamma=0.5)
    assert got == pytest.approx([1 + 0.5 + 0.25, 1.0, 0.25])


def test_balanced_is_equation_9_with_a_smaller_weight_for_recorded_forwards():
    columns = {"actions": [RECORDED] * 3, "gamma": 0.5}
    texts = [RIGHT, FIRST_ONLY, LAST_ONLY]
    assert balanced(texts, **columns, forward=0.2) == pytest.approx([0.2 + 0.5 + 0.25, 0.2, 0.25])
    assert balanced(texts, **columns, forward=1.0) == pytest.approx(time_decayed(texts, **columns))


def test_the_others():
    columns = {"actions": [RECORDED] * 3}
    completions = [RIGHT, FIRST_ONLY, LAST_ONLY]
    assert uniform(completions, **columns) == [3, 1, 1]
    assert linear(completions, **columns) == pytest.approx([1 + 2 / 3 + 1 / 3, 1, 1 / 3])
    assert hard(completions, **columns) == [1, 0, 0]


def test_the_value_of_an_answer_decays_with_the_position():
    headway = [[1.0, -0.5, 1.0], [-1.0, -1.0, -1.0]]
    assert answer_value([RIGHT] * 2, headway=headway, gamma=0.5) == pytest.approx([1 - 0.25 + 0.25, -1.75])
    # A STOP where the goal is not costs more, if that is wanted; a step in a wrong direction does not.
    stops = SPACE.format([1, 0, 0])
    wrong = [[-1.0, -1.0, -1.0]]
    assert answer_value([stops], headway=wrong, gamma=0.5, wrong_stop=3) == pytest.approx([-1 - 3 * 0.75])
    assert answer_value([stops], headway=[[1.0, 1.0, 1.0]], gamma=0.5, wrong_stop=3) == pytest.approx([1.75])
    # Equation 9 where going right is worth 1 and anything else nothing.
    matched = [[1.0, 0.0, 0.0]]
    assert answer_value([FIRST_ONLY], headway=matched) == time_decayed([FIRST_ONLY], actions=[RECORDED])


@pytest.mark.parametrize("name", sorted(set(REWARDS) - {"answer_value"}))
@pytest.mark.parametrize("text", ["", "go on", SPACE.format([1, 2]), SPACE.format([1, 2, 3, 1]), RIGHT + ", E. Fly"])
def test_not_exactly_n_actions_earns_nothing(name, text):
    assert REWARDS[name]([text], actions=[RECORDED]) == [0.0]


def test_chat_completions_and_foreign_columns_are_taken():
    message = [{"role": "assistant", "content": RIGHT}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": RIGHT}]}]
    assert uniform([message, parts], actions=[RECORDED] * 2, prompts=["p"] * 2, trainer_state=None) == [3, 3]


def test_words_of_another_angle_count_by_their_letter():
    assert uniform([ActionSpace(turn_angle=15).format([1, 2, 3])], actions=[RECORDED]) == [3]


def test_row_count_must_match():
    with pytest.raises(ValueError, match="2 completions but 1 rows"):
        uniform([RIGHT, RIGHT], actions=[RECORDED])


def test_docstring_example():
    assert doctest.testmod(rewards).failed == 0


def test_rewards_of_walks():
    columns = {"distance_to_goal": [0.0, 5.0, 12.0, 30.0], "start_distance": [10.0] * 4, "success": [1.0, 0, 0, 0]}
    assert progress([""] * 4, **columns) == pytest.approx([1.0, 0.5, -0.2, -1.0])
    assert success([""] * 4, **columns) == [1, 0, 0, 0]
    assert spl([""], spl=[0.7]) == [0.7] and ndtw([""], ndtw=[0.3]) == [0.3]


def test_a_reward_is_found_by_name_or_import_path_and_its_parameters_are_bound():
    assert make_reward("time_decayed", gamma=0.5)([RIGHT], actions=[RECORDED]) == [1.75]
    assert make_reward("habitat_vlnr1.rewards.uniform")([RIGHT], actions=[RECORDED]) == [3]
    for name in ("praise", "habitat_vlnr1.rewards.praise", "no_such_package.reward"):
        with pytest.raises(ValueError, match=f"unknown reward '{name}'.*time_decayed"):
            make_reward(name)
    with pytest.raises(ValueError, match="REWARDS' is no function"):
        make_reward("habitat_vlnr1.rewards.REWARDS")
