"""Exported episodes and a stage 1 in seconds, for what comes after them."""

import io

import numpy as np
from PIL import Image

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.records import Episode
from habitat_vlnr1.results import write_json

SPACE = ActionSpace(0.5, 30)
WORDS = ["Stop at the red sofa.", "Go through the door on your left and stop at the blue bed."]
SPLITS = (("embedded", "train"), ("embedded", "val_unseen"), ("other", "train"))


def jpeg(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tiny_run(home, ego="ego", run="run"):
    """Two exported sources of a few random frames in `ego`, and in `run` a random tiny model as the SFT checkpoint."""
    for source, split in SPLITS:
        writer = EpisodeWriter(home / ego / source / split, {})
        for number, length in enumerate([7, 4]):
            actions = (*(1 + (number + i) % 3 for i in range(length)), 0)
            jpegs = [jpeg((number, i)) for i in range(length + 1)]
            writer.write(Episode(f"{number}", "s", WORDS[number], actions), jpegs)
        writer.close()
        write_json(home / ego / source / split / "summary.json", {})  # the export has ended
    model, processor = build_tiny(WORDS, space=SPACE, image_size=56, seed=1)
    memory = {"strategy": "uniform", "budget": 1}
    card = checkpoint.ModelCard(space=SPACE, num_actions=6, template="compact", memory=memory)
    checkpoint.save(home / run / "checkpoints/checkpoint-7", model, processor, card)
    return home
