"""What the trainers share: made-on-first-use scenes, and Habitat's own evaluation over several policies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from habitat_baselines.rl.ppo.ppo_trainer import PPOTrainer
from omegaconf import DictConfig

from habitat_vlnr1.results import LeftOut, left_out_text
from habitat_vlnr1.sim.env_factory import make_scenes

LEFT_OUT_STATUS = 3
"""Exit status of a command that has done its work except for some episodes that its data did not allow."""


def exit_if_left_out(left_out: Iterable[LeftOut]) -> None:
    """The last lines of a command: which episodes the data did not allow; none: nothing happens.

    Raises:
        SystemExit: with `LEFT_OUT_STATUS`, so that a script notices.
    """
    left_out = list(left_out)
    if not left_out:
        return
    for line in left_out_text(left_out):
        print(f"left out: {line}")
    print(f"Done, but {len(left_out)} episodes were left out because of the data; exit status {LEFT_OUT_STATUS}")
    raise SystemExit(LEFT_OUT_STATUS)


class VLNR1Trainer(PPOTrainer):
    """PPOTrainer's evaluation, environments and resume; the optimisation is the subclass's."""

    envs: Any  # of VLNVectorEnvFactory, with left_out

    def __init__(self, config: DictConfig | None = None):
        super().__init__(config)
        if not self.config.vlnr1.dry_run:
            make_scenes(self.config)

    def eval(self) -> None:
        """Habitat's evaluation; ends the command with `LEFT_OUT_STATUS` when episodes had to be left out."""
        super().eval()
        exit_if_left_out(self.envs.left_out)
