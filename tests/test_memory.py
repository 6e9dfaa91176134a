import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from habitat_vlnr1 import memory
from habitat_vlnr1.memory import STRATEGIES, LongShort, make_memory

GROUND = [
    ("long_short", {}),
    ("long_short", {"budget": 4, "short_window": 3, "short_stride": 2, "long_stride": 3}),
    ("anchored", {}),
    ("anchored", {"budget": 5, "short_window": 2, "long_stride": 2}),
    ("anchored", {"short_window": 24, "short_stride": 6, "short_block": 48, "long_stride": 24}),
    ("anchored", {"budget": 6, "short_window": 3, "short_stride": 1, "short_block": 2, "long_stride": 2}),
    ("uniform", {"budget": 8}),
    ("uniform", {"budget": 16}),
    ("anchored_uniform", {}),
    ("anchored_uniform", {"budget": 5}),
    ("exponential", {}),
    ("current", {}),
]


@pytest.mark.parametrize(("name", "params"), GROUND)
def test_every_strategy_keeps_its_promises_for_all_t(name, params):
    chooser = make_memory(name, **params)
    for t in range(501):
        steps = chooser.select(t)
        assert len(steps) <= chooser.budget
        assert steps == sorted(set(steps))
        assert all(0 <= step < t for step in steps)
        if t and name != "current":
            assert steps[0] == 0
            assert steps[-1] >= t - params.get("short_stride", 1) or name == "anchored_uniform"


@given(
    budget=st.integers(2, 32),
    window=st.integers(1, 40),
    d1=st.integers(1, 8),
    d2=st.integers(2, 40),
    t=st.integers(0, 500),
)
def test_long_short_is_equation_6(budget, window, d1, d2, t):
    if d2 <= d1 or -(-window // d1) >= budget:
        with pytest.raises(ValueError, match="LongShort"):
            LongShort(budget, window, d1, d2)
        return
    steps = LongShort(budget, window, d1, d2).select(t)
    short = {t - 1 - k * d1 for k in range(window) if k * d1 < window and t - 1 - k * d1 >= 0}
    boundary = t - window
    stride = d2
    while boundary > 0 and len(short) + len({0, *range(boundary - stride, 0, -stride)}) > budget:
        stride += 1
    long = {0, *range(boundary - stride, 0, -stride)} if t else set()
    assert set(steps) == short | long
    assert len(steps) <= budget


def test_uniform_is_the_released_linspace():
    for t in range(1, 501):
        expected = np.linspace(0, t - 1, min(t, 16)).round(9).astype(int)
        assert make_memory("uniform", budget=16).select(t) == expected.tolist()


def test_anchored_grid_does_not_slide():
    chooser = make_memory("anchored", budget=16, short_window=4, long_stride=4)
    assert chooser.select(40)[:9] == chooser.select(41)[:9] == [0, 4, 8, 12, 16, 20, 24, 28, 32]


def test_anchored_in_blocks_only_grows_between_them():
    chooser = make_memory("anchored", budget=16, short_window=24, short_stride=6, short_block=48, long_stride=24)
    shown = {t: chooser.select(t) for t in range(6, 301, 6)}
    assert shown[66] == [*range(0, 66, 6)] and shown[72] == [0, 24, 48, 54, 60, 66]
    assert shown[120] == [0, 24, 48, 72, 96, 102, 108, 114] and shown[168][:5] == [0, 48, 96, 144, 150]
    begun_anew = [t for t in shown if t > 6 and shown[t] != [*shown[t - 6], t - 6]]
    assert begun_anew == [72, 120, 168, 216, 264]
    assert all(len([step for step in shown[t] if step >= t - 24]) == 4 for t in shown if t >= 24)
    with pytest.raises(ValueError, match="short_block must be a multiple of short_stride"):
        make_memory("anchored", short_stride=2, short_block=3)
    with pytest.raises(ValueError, match="short_block must be a multiple of short_stride"):
        make_memory("anchored", short_block="48")
    with pytest.raises(ValueError, match="the short part takes 13 frames, no room"):
        make_memory("anchored", budget=13, short_window=8, short_block=6)


def test_anchored_uniform_only_grows_between_doublings():
    chooser = make_memory("anchored_uniform", budget=4)
    assert [chooser.select(t) for t in (0, 1, 4, 5, 6, 8, 9)] == [
        *([], [0], [0, 1, 2, 3], [0, 2, 4], [0, 2, 4], [0, 2, 4, 6]),
        [0, 4, 8],
    ]
    assert min(len(chooser.select(t)) for t in range(4, 500)) == 3
    with pytest.raises(ValueError, match="budget must be at least 1"):
        make_memory("anchored_uniform", budget=0)


def test_exponential_gets_denser_towards_now():
    gaps = np.diff(make_memory("exponential", budget=8).select(200))
    assert (np.diff(gaps) <= 0).all()


def test_bad_configuration_is_one_clear_line():
    with pytest.raises(ValueError, match="unknown memory strategy 'long'; choose one of long_short"):
        make_memory("long")
    with pytest.raises(ValueError, match="'uniform' has no parameter 'long_stride'; it has budget"):
        make_memory("uniform", long_stride=3)
    assert set(STRATEGIES) == {"long_short", "anchored", "uniform", "anchored_uniform", "exponential", "current"}


class EverySecond:
    """A strategy that is not ours."""

    budget = 3

    def select(self, t):
        return list(range(0, t, 2))[-self.budget :]


class Greedy(EverySecond):
    def select(self, t):
        return list(range(t + 1))[-self.budget :]


def test_a_strategy_is_found_by_its_import_path():
    assert make_memory("tests.test_memory.EverySecond").select(9) == [4, 6, 8]
    assert make_memory("habitat_vlnr1.memory.Uniform", budget=2).select(5) == [0, 4]
    with pytest.raises(ValueError, match="EverySecond' has no parameter 'budget'"):
        make_memory("tests.test_memory.EverySecond", budget=2)
    for name in ("tests.test_memory.Lazy", "no_such_package.Lazy"):
        with pytest.raises(ValueError, match=rf"unknown memory strategy '{name}' \(.*\); choose one of long_short"):
            make_memory(name)


def test_a_strategy_by_import_path_must_keep_the_promises():
    with pytest.raises(ValueError, match=r"Greedy' selects \[0\] at t = 0: wanted are at most 3 steps, ascending"):
        make_memory("tests.test_memory.Greedy")
    with pytest.raises(ValueError, match="is no Memory: it needs the int `budget`"):
        make_memory("habitat_vlnr1.actions.ActionSpace")
    with pytest.raises(ValueError, match="STRATEGIES' is no class"):
        make_memory("habitat_vlnr1.memory.STRATEGIES")


def test_docstring_example():
    assert doctest.testmod(memory).failed == 0
