"""Add a policy of one's own to the table: registered with Habitat, named in the config, evaluated as all others are.

After `make quickstart`, in the repository's folder:

    .venv/bin/python examples/own_policy.py

The quick start's rows are found again, so only the new one is walked.
"""

import re
import runpy
import sys
from typing import Any

from habitat_baselines.common.baseline_registry import baseline_registry
from torch import Tensor

from habitat_vlnr1.actions import Action
from habitat_vlnr1.observations import CLOCK, INSTRUCTION, decode_text
from habitat_vlnr1.policies.scripted import ScriptedPolicy


@baseline_registry.register_policy
class FirstTurnPolicy(ScriptedPolicy):
    """Turns to the side that the instruction names first, then walks straight on: how far do words alone go?"""

    needs = (INSTRUCTION, CLOCK)  # of the observations; "rgb" is there, too
    turns, steps = 2, 6

    @property
    def identity(self) -> dict[str, Any]:
        """What the results depend on. Where it has changed, old ones are not taken for the new policy's."""
        return {"turns": self.turns, "steps": self.steps}

    def actions(self, observations: dict[str, Tensor]) -> list[int]:
        """The action of each environment in the batch, from what travels in the observations alone."""
        words = [decode_text(row.cpu().numpy()) for row in observations[INSTRUCTION]]
        return [self.action(text, step) for text, (_, step) in zip(words, observations[CLOCK].tolist(), strict=True)]

    def action(self, instruction: str, step: int) -> Action:
        side = re.search(r"\b(left|right)\b", instruction)
        turns = self.turns if side else 0
        if step < turns:
            return Action.LEFT if side[0] == "left" else Action.RIGHT
        return Action.FORWARD if step < turns + self.steps else Action.STOP


if __name__ == "__main__":  # python -m habitat_baselines.run … in a process that knows the policy
    sys.argv[1:1] = [
        "--config-name=vlnr1_sft",
        "habitat_baselines.evaluate=True",
        "+vlnr1.eval.policies.first_turn=FirstTurnPolicy",
    ]
    runpy.run_module("habitat_baselines.run", run_name="__main__")
