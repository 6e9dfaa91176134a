"""How often a model answers otherwise when its frames have gone through the export's JPEG, as in training they had.

    python benchmarks/codec.py --checkpoint data/vlnr1/quickstart/checkpoints [--episodes 20] [overrides of vlnr1_sft]

An expert walks episodes of `val_unseen`; at every `vlnr1.decoding.execute_horizon`-th step the model is asked twice,
with the simulator's frames and with the same frames encoded and decoded, and the answers are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from habitat_baselines.config.default import get_config

from habitat_vlnr1.actions import Action
from habitat_vlnr1.config import edited, make_decoder, memory_of
from habitat_vlnr1.frame_files import jpeg_roundtrip
from habitat_vlnr1.lvlm.checkpoint import resolve
from habitat_vlnr1.lvlm.decoding import Prompt
from habitat_vlnr1.observations import EXPERT, INSTRUCTION, decode_text
from habitat_vlnr1.register import register
from habitat_vlnr1.sim.env_factory import VLNVectorEnvFactory

CONFIGS = str(Path(__file__).parents[1] / "configs" / "trainer")


def walks(config: Any, episodes: int) -> Iterator[tuple[str, np.ndarray]]:
    """(instruction, frames uint8 [N, H, W, 3]) of an expert's walks."""
    envs = VLNVectorEnvFactory().construct_envs(config)
    try:
        (seen,) = envs.reset()
        for _ in range(episodes):
            instruction, frames, done = decode_text(seen[INSTRUCTION]), [], False
            while not done:
                frames.append(seen["rgb"][..., :3])
                (result,) = envs.step([int(seen[EXPERT].item())])
                seen, _, done, _ = result
            yield instruction, np.stack(frames)
    finally:
        envs.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="data/vlnr1/quickstart/checkpoints")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--quality", type=int, default=92)
    options, overrides = parser.parse_known_args()
    register()
    config = get_config("vlnr1_sft.yaml", overrides, CONFIGS)
    changes = {
        f"habitat.task.lab_sensors.{EXPERT}.mode": config.vlnr1.task.expert,
        "habitat.dataset.split": "val_unseen",
    }
    config = edited(config, **changes, **{"habitat_baselines.num_environments": 1})
    decoder, memory = make_decoder(config, resolve(options.checkpoint)), memory_of(config)
    answers: list[tuple[tuple[Action, ...], tuple[Action, ...]]] = []
    for number, (instruction, raw) in enumerate(walks(config, options.episodes)):
        shown = [(*memory.select(step), step) for step in range(0, len(raw), config.vlnr1.decoding.execute_horizon)]
        said = []
        for name, frames in (("raw", raw), ("jpeg", jpeg_roundtrip(raw, options.quality))):
            prompts = [
                Prompt(instruction, [*frames[list(steps)]], [(name, number, s) for s in steps]) for steps in shown
            ]
            said.append([tuple(answer.actions) for answer in decoder.decode(prompts)])
        answers += zip(*said, strict=True)
    other = sum(raw != jpeg for raw, jpeg in answers)
    first = sum(raw[0] != jpeg[0] for raw, jpeg in answers)
    print(f"{len(answers)} questions in {options.episodes} episodes, JPEG quality {options.quality}:")
    print(f"  other answers       {other} ({other / len(answers):.1%})")
    print(f"  other first actions {first} ({first / len(answers):.1%})")


if __name__ == "__main__":
    main()
