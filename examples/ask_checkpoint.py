"""Ask a checkpoint for actions on frames of one's own: without Habitat, without a config.

After `make quickstart`, in the repository's folder:

    .venv/bin/python examples/ask_checkpoint.py
    .venv/bin/python examples/ask_checkpoint.py --instruction "Stop at the red sofa." walk/0.jpg walk/1.jpg walk/2.jpg

Without frames, the beginning of the first exported episode is shown, and what the expert did next is printed beside.
"""

import argparse
import math
from pathlib import Path

from habitat_vlnr1.actions import next_actions
from habitat_vlnr1.lvlm.checkpoint import read_card, resolve
from habitat_vlnr1.lvlm.decoding import Prompt, load_decoder
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.records import VLNEgo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", nargs="*", type=Path, help="a walk's images in order of time, one per step")
    parser.add_argument("--instruction", help="what the agent was told")
    parser.add_argument("--checkpoint", default="data/vlnr1/quickstart/checkpoints", help="folder, run or hub id")
    parser.add_argument("--export", default="data/vln_ego/embedded/train", help="where frames come from, if none are")
    options = parser.parse_args()
    if bool(options.frames) != bool(options.instruction):
        parser.error("give frames and --instruction together, or neither")

    path = resolve(options.checkpoint)  # of a run's folder, its newest checkpoint
    decoder = load_decoder(path)  # asks as the checkpoint's card says: number of actions, template, words, pixels
    memory = make_memory(**read_card(path).memory)

    frames, instruction = options.frames, options.instruction
    if not frames:
        ego = VLNEgo(options.export)
        episode = ego.episodes[0]
        now = len(episode.actions) // 2
        frames, instruction = [ego.root / episode.frame(step) for step in range(now + 1)], episode.instruction
        words = decoder.encoder.space.format(next_actions(episode.actions, now, decoder.num_actions))
        print(f"the expert did: {words}")

    now = len(frames) - 1
    shown = [frames[step] for step in (*memory.select(now), now)]  # files, or uint8 arrays [H, W, 3]
    (answer,) = decoder.decode([Prompt(instruction, shown)])
    print(f"the model says: {answer.text}")
    for action, log_prob in zip(answer.actions, answer.log_probs, strict=True):
        print(f"{action.name:8} {math.exp(log_prob):.2f}")


if __name__ == "__main__":
    main()
