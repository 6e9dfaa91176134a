"""Which frames of the past the model sees: Long-Short Memory Sampling (VLN-R1, eq. 6) and what it is compared with.

At step t the history is v_0 … v_{t-1}; the current frame v_t is always shown and is not chosen here. A strategy
maps t to the steps it keeps, in ascending order, at most `budget` of them.

Examples:
    >>> make_memory("long_short", budget=6, short_window=2, short_stride=1, long_stride=3).select(12)
    [0, 1, 4, 7, 10, 11]
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.lookup import find


@runtime_checkable
class Memory(Protocol):
    """A rule that chooses history frames."""

    @property
    def budget(self) -> int:
        """The most frames that `select` ever returns."""

    def select(self, t: int) -> list[int]:
        """Steps of the history shown at step `t`: ascending, distinct, each in [0, t)."""


@dataclass(frozen=True)
class LongShort:
    """Long-Short Memory Sampling, eq. 6.

    short: v_{t-1}, v_{t-1-d1}, … not older than v_{t-M}
    long:  v_{t-M-d2}, v_{t-M-2 d2}, … and v_0

    The paper gives no values for M, d1, d2. So that the budget holds for every t, d2 grows to the smallest stride
    with which the long part fits: short episodes see eq. 6 to the letter, long ones a coarser distant past.

    Args:
        budget: the most history frames (16 in the paper).
        short_window: M, the number of recent steps that count as short-term.
        short_stride: d1, every which of those is kept.
        long_stride: d2 > d1, every which older frame is kept.
    """

    budget: int = 16
    short_window: int = 8
    short_stride: int = 1
    long_stride: int = 6

    def __post_init__(self) -> None:
        if min(self.budget, self.short_window, self.short_stride) < 1:
            raise VLNR1Error(f"budget, short_window and short_stride must be at least 1: {self}")
        if self.long_stride <= self.short_stride:
            raise VLNR1Error(f"long_stride must exceed short_stride (eq. 6: d2 > d1): {self}")
        if self.short_size >= self.budget:
            raise VLNR1Error(f"the short part takes {self.short_size} frames, no room for v_0: {self}")

    @property
    def short_size(self) -> int:
        """Frames of the short part once t >= M."""
        return math.ceil(self.short_window / self.short_stride)

    def select(self, t: int) -> list[int]:
        short = list(range(t - 1, max(t - self.short_window, 0) - 1, -self.short_stride))
        return sorted({*short, *self.long(t, self.budget - len(short))})

    def long(self, t: int, room: int) -> list[int]:
        """The long part in at most `room` frames, one of which is v_0 (also while it is still a recent one)."""
        boundary = t - self.short_window
        if boundary <= 0:
            return [0][:t]
        # range(boundary - d, 0, -d) holds ceil(boundary / d) - 1 steps, and v_0 makes ceil(boundary / d).
        stride = max(self.long_stride, math.ceil(boundary / room))
        return [*range(boundary - stride, 0, -stride), 0]


@dataclass(frozen=True)
class AnchoredLongShort(LongShort):
    """Eq. 6 with the long-term grid anchored at v_0 instead of at t; beyond the paper.

    The long part is v_0, v_d, v_2d, … older than v_{t-M}, with d = d2 · 2^j the first that fits. Because the grid
    does not slide with t, consecutive prompts share a prefix, and a key-value cache can be reused.

    With `short_block` the short part stays where it is, too: it begins at the newest multiple of the block that leaves
    it M steps, and has every d1-th frame from there on, so M to M + block - 1 steps. Until the next multiple comes the
    history only grows; where d1 is the number of steps between two questions, by the one frame asked about.

    Args:
        short_block: a multiple of d1; null: the short part slides with t, as in eq. 6.
    """

    short_block: int | None = None

    def __post_init__(self) -> None:
        block = self.short_block
        if block is not None and (type(block) is not int or block < 1 or block % self.short_stride):
            raise VLNR1Error(f"short_block must be a multiple of short_stride, or null: {self}")
        super().__post_init__()

    @property
    def short_size(self) -> int:
        longest = self.short_window + (self.short_block or 1) - 1
        return math.ceil(longest / self.short_stride)

    def select(self, t: int) -> list[int]:
        if self.short_block is None:
            return super().select(t)
        boundary = max(t - self.short_window, 0) // self.short_block * self.short_block
        short = range(boundary, t, self.short_stride)
        return sorted({*short, *self.grid(boundary, self.budget - self.short_size)})

    def long(self, t: int, room: int) -> list[int]:
        boundary = t - self.short_window
        return self.grid(boundary, room) if boundary > 0 else [0][:t]

    def grid(self, boundary: int, room: int) -> list[int]:
        """v_0, v_d, v_2d, … older than v_boundary, at most `room` of them."""
        stride = self.long_stride
        while math.ceil(boundary / stride) > room:
            stride *= 2
        return list(range(0, boundary, stride))


@dataclass(frozen=True)
class Uniform:
    """`budget` frames spread evenly over the whole history, as the authors' released data has them (Table 3b)."""

    budget: int = 16

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise VLNR1Error(f"budget must be at least 1: {self}")

    def select(self, t: int) -> list[int]:
        count = min(t, self.budget)
        if count < 2:
            return list(range(count))
        # Integer form of numpy.linspace(0, t - 1, count, dtype=int), free of rounding.
        return [i * (t - 1) // (count - 1) for i in range(count)]


@dataclass(frozen=True)
class AnchoredUniform:
    """v_0, v_d, v_2d, … with d the smallest power of two with which they fit; beyond the paper.

    Between two doublings of d the history only grows, so consecutive prompts share nearly all of it, and a key-value
    cache is reused. It holds half the budget after a doubling and all of it before the next; the newest frames are in
    it only when their turn comes.
    """

    budget: int = 16

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise VLNR1Error(f"budget must be at least 1: {self}")

    def select(self, t: int) -> list[int]:
        stride = 1
        while math.ceil(t / stride) > self.budget:
            stride *= 2
        return list(range(0, t, stride))


@dataclass(frozen=True)
class Exponential:
    """Ages grow geometrically from 1 (v_{t-1}) to t (v_0), so recent frames are dense (Table 3b)."""

    budget: int = 16

    def __post_init__(self) -> None:
        if self.budget < 2:
            raise VLNR1Error(f"budget must be at least 2: {self}")

    def select(self, t: int) -> list[int]:
        if t <= self.budget:
            return list(range(t))
        ages: list[int] = []
        for i in range(self.budget):
            wanted = round(t ** (i / (self.budget - 1)))
            ages.append(max(wanted, ages[-1] + 1) if ages else 1)
        return [t - age for age in reversed(ages)]


@dataclass(frozen=True)
class CurrentOnly:
    """No history: the model sees v_t alone."""

    budget: int = 0

    def __post_init__(self) -> None:
        if self.budget != 0:
            raise VLNR1Error(f"strategy current keeps no history, so budget must be 0: {self}")

    def select(self, t: int) -> list[int]:
        return []


STRATEGIES: dict[str, type] = {
    "long_short": LongShort,
    "anchored": AnchoredLongShort,
    "uniform": Uniform,
    "anchored_uniform": AnchoredUniform,
    "exponential": Exponential,
    "current": CurrentOnly,
}
CHECKED_STEPS = 501
"""As long as the longest episode of the protocols."""


def make_memory(strategy: str, **params: Any) -> Memory:
    """Make a memory by its name here or by the import path of a class (`package.module.Strategy`).

    Raises:
        ValueError: no such strategy, it has no such parameter, or one by import path breaks what `Memory` promises.
    """
    cls = find("memory strategy", strategy, STRATEGIES)
    if not inspect.isclass(cls):
        raise VLNR1Error(f"memory strategy {strategy!r} is no class")
    known = list(inspect.signature(cls).parameters)
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise VLNR1Error(f"memory strategy {strategy!r} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    memory: Any = cls(**params)
    if strategy not in STRATEGIES:
        _check(strategy, memory)
    return memory


def _check(strategy: str, memory: Any) -> None:
    """Hold a foreign strategy to its promises: a step too many, or of the future, would show the wrong frames."""
    if not isinstance(memory, Memory):
        raise VLNR1Error(f"memory strategy {strategy!r} is no Memory: it needs the int `budget` and `select(t)`")
    for t in range(CHECKED_STEPS):
        steps = list(memory.select(t))
        if len(steps) > memory.budget or steps != sorted(set(steps)) or (steps and not 0 <= steps[0] <= steps[-1] < t):
            raise VLNR1Error(
                f"memory strategy {strategy!r} selects {steps} at t = {t}: wanted are at most {memory.budget} steps, "
                f"ascending and distinct, each at least 0 and below t"
            )
