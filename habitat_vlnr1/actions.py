"""The four actions of vision-language navigation, their words and their grammar.

An answer of the model is a sequence of (letter, description) pairs, eq. 8 of VLN-R1:

    A. Move forward 25 cm, B. Turn left 30 degrees, D. Stop

The description phi(letter) tells the truth about the simulator: it is made from the forward step and the turn
angle that the simulator is configured with.

Examples:
    >>> space = ActionSpace(forward_step=0.25, turn_angle=30)
    >>> space.format([Action.FORWARD, Action.STOP])
    'A. Move forward 25 cm, D. Stop'
    >>> space.parse("A. Move forward 25 cm, D. Stop", n=2)
    (<Action.FORWARD: 1>, <Action.STOP: 0>)
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from habitat_vlnr1.errors import VLNR1Error

SEPARATOR = ", "


class Action(enum.IntEnum):
    """Habitat's discrete VLN actions, with Habitat's numbers."""

    STOP = 0
    FORWARD = 1
    LEFT = 2
    RIGHT = 3


LETTERS: dict[str, Action] = {
    "A": Action.FORWARD,
    "B": Action.LEFT,
    "C": Action.RIGHT,
    "D": Action.STOP,
}
_LETTER_OF = {action: letter for letter, action in LETTERS.items()}
_LETTER = re.compile(r"\b([A-D])\.")


def _number(value: float) -> str:
    """`30.0` -> `'30'`, `22.5` -> `'22.5'`."""
    return f"{value:g}"


@dataclass(frozen=True)
class ActionSpace:
    """The words of the actions for one simulator configuration.

    Args:
        forward_step: length of FORWARD in metres.
        turn_angle: angle of LEFT and RIGHT in degrees.
    """

    forward_step: float = 0.25
    turn_angle: float = 30.0

    def __post_init__(self) -> None:
        for name, most, unit in (("forward_step", 100, "metres"), ("turn_angle", 180, "degrees")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
                raise VLNR1Error(f"{name} must be in (0, {most}] {unit}, got {value!r}")

    def close_to(self, other: ActionSpace) -> bool:
        """Whether the words mean the same, up to rounding."""
        same_step = math.isclose(self.forward_step, other.forward_step, abs_tol=1e-6)
        return same_step and math.isclose(self.turn_angle, other.turn_angle, abs_tol=1e-6)

    def describe(self, action: Action | int) -> str:
        """phi of eq. 8: the words of an action, without its letter."""
        action = Action(action)
        if action is Action.STOP:
            return "Stop"
        if action is Action.FORWARD:
            return f"Move forward {_number(round(self.forward_step * 100, 6))} cm"
        side = "left" if action is Action.LEFT else "right"
        return f"Turn {side} {_number(self.turn_angle)} degrees"

    def phrase(self, action: Action | int) -> str:
        """Letter and words, `'A. Move forward 25 cm'`."""
        return f"{letter_of(action)}. {self.describe(action)}"

    def format(self, actions: Iterable[Action | int]) -> str:
        """The answer text for a sequence of actions."""
        return SEPARATOR.join(self.phrase(action) for action in actions)

    def options(self) -> list[str]:
        """The four phrases in the order of their letters."""
        return [self.phrase(action) for action in LETTERS.values()]

    def parse(self, text: str, n: int | None = None) -> tuple[Action, ...] | None:
        """Read an answer strictly: exactly the grammar, exactly `n` actions when `n` is given.

        One final period and surrounding white space are tolerated (the released data has both forms).
        Returns None for anything else, so that a wrong number of actions can never earn a reward.
        """
        text = text.strip().removesuffix(".")
        by_phrase = {self.phrase(action): action for action in LETTERS.values()}
        actions = tuple(by_phrase.get(part) for part in text.split(SEPARATOR))
        if None in actions or (n is not None and len(actions) != n):
            return None
        return actions  # type: ignore[return-value]

    def read(self, text: str, n: int, lenient: bool = True) -> tuple[tuple[Action, ...], bool]:
        """What a free answer says, and whether it keeps to the grammar.

        Args:
            lenient: where it does not, read its option letters alone, filled up with STOP.

        Returns: n actions; where nothing could be read, STOP alone.
        """
        actions = self.parse(text, n)
        if actions is not None:
            return actions, True
        letters = read_letters(text)[:n] if lenient else ()
        return ((*letters, *[Action.STOP] * (n - len(letters))) if letters else (Action.STOP,)), False


def letter_of(action: Action | int) -> str:
    """The option letter of an action."""
    return _LETTER_OF[Action(action)]


def read_letters(text: str) -> tuple[Action, ...]:
    """Read the option letters of an answer leniently, for checkpoints whose words differ from ours."""
    return tuple(LETTERS[letter] for letter in _LETTER.findall(text))


def next_actions(actions: Sequence[int], start: int, n: int) -> tuple[Action, ...]:
    """The record's answer at frame `start`: `actions[start : start + n]`, padded with STOP to `n`."""
    if n < 1:
        raise VLNR1Error(f"the number of actions to predict must be at least 1, got {n}")
    answer = [Action(action) for action in actions[start : start + n]]
    return tuple(answer + [Action.STOP] * (n - len(answer)))
