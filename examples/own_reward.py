"""Train with a reward of one's own: stage 2, rewarded by the function below.

After `make quickstart`, in the repository's folder (as long as `vlnr1_rft_recorded`; the second, two minutes at most):

    .venv/bin/python examples/own_reward.py
    .venv/bin/python examples/own_reward.py vlnr1.rft.max_steps=20 vlnr1.rft.evaluate=false

A reward takes the group's answers and the columns of the data set, and gives a number per answer; `actions` holds what
the expert did. Any function that can be imported will do; its parameters are keys of the config.
"""

import runpy
import sys
from collections.abc import Sequence
from itertools import takewhile

from habitat_vlnr1.rewards import matches


def until_wrong(
    completions: Sequence[str], actions: Sequence[Sequence[int]], bonus: float = 0.0, **columns: object
) -> list[float]:
    """How many actions are right before the first wrong one, behind which the expert saw other frames.

    Args:
        bonus: for an answer that is right to its end.
    """
    rewards = []
    for completion, recorded in zip(completions, actions, strict=True):
        right = matches(completion, recorded) or []  # None: not n actions, so nothing
        first = len(list(takewhile(bool, right)))
        rewards.append(float(first) + bonus * (first == len(recorded)))
    return rewards


if __name__ == "__main__":  # python -m habitat_baselines.run … with this file's folder where Python looks first
    sys.argv[1:1] = [
        "--config-name=vlnr1_rft_recorded",
        "vlnr1.rft.rewards=[{name: own_reward.until_wrong, weight: 1.0, bonus: 1.0}]",
        "vlnr1.rft.start=data/vlnr1/quickstart/checkpoints",
        "vlnr1.run_dir=data/vlnr1/own_reward",
    ]
    runpy.run_module("habitat_baselines.run", run_name="__main__")
