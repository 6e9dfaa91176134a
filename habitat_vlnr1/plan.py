"""The answer that a walk is carrying out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from habitat_vlnr1.actions import Action

if TYPE_CHECKING:  # Transformers takes seconds to import
    from habitat_vlnr1.lvlm.decoding import Answer


@dataclass(frozen=True)
class Plan:
    """An answer and what is left of it.

    Args:
        step: at which it was given.
        answer: its actions are for this step and the next ones.
        horizon: how many of them are carried out before the model is asked again.
    """

    step: int
    answer: Answer
    horizon: int

    def number(self, step: int) -> int | None:
        """Which of the answer's actions is carried out at a step, from 0 on; None: the model has to be asked."""
        number = step - self.step
        return number if 0 <= number < min(self.horizon, len(self.answer.actions)) else None

    def action(self, step: int) -> Action | None:
        """What is done at a step; None: the model has to be asked."""
        number = self.number(step)
        return None if number is None else self.answer.actions[number]

    def behind(self, step: int) -> tuple[Action, ...]:
        """What is decided for the steps behind this one."""
        return self.answer.actions[step - self.step + 1 : self.horizon]
