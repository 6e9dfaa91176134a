"""Small training runs in one process: a source of a few random frames, and a random tiny model as their start."""

from contextlib import contextmanager

import numpy as np
import torch
from habitat_baselines.config.default import get_config

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.frame_files import encode_jpeg
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.records import Episode
from habitat_vlnr1.trainers.fitting import check_start, open_records
from habitat_vlnr1.trainers.rft_fit import Recorded
from habitat_vlnr1.trainers.rft_fit import fit as fit_rft
from habitat_vlnr1.trainers.sft_fit import fit, starting_model
from tests.paths import CONFIGS

SPACE = ActionSpace(0.5, 30)
WORDS = ["Stop at the red sofa.", "Go through the door on your left and stop at the blue bed."]
COMMON = ["vlnr1.model.image_size=56", "vlnr1.model.cpu_threads=1", "vlnr1.task.scenes=null"]
LORA = "vlnr1.model.lora={r: 2, lora_alpha: 4, target_modules: [q_proj, v_proj]}"
SFT = ["vlnr1.sft.max_steps=2", "vlnr1.sft.save_steps=1", "vlnr1.sft.learning_rate=0.01", "vlnr1.sft.warmup_steps=0"]
RFT = [
    "vlnr1/setup=embedded",
    "vlnr1/rft=quickstart",
    *("vlnr1.rft.max_steps=2", "vlnr1.rft.save_steps=1", "vlnr1.rft.per_device_train_batch_size=4"),
    *("vlnr1.rft.num_generations=4", "vlnr1.rft.eval_strategy=no", "vlnr1.rft.eval_on_start=false"),
]


def furnish(home):
    """The source `embedded` below `data/`, and the model in `base/`."""
    rng = np.random.default_rng(0)
    for split in ("train", "val_unseen"):
        writer = EpisodeWriter(home / "data/vln_ego/embedded" / split, {})
        for number, length in enumerate([7, 4]):
            actions = (*(1 + (number + i) % 3 for i in range(length)), 0)
            jpegs = [encode_jpeg(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8), 90) for _ in actions]
            writer.write(Episode(f"{number}", "s", WORDS[number], actions), jpegs)
        writer.close()
    model, processor = build_tiny(WORDS, space=SPACE, image_size=56, seed=1)
    memory = {"strategy": "uniform", "budget": 1}
    card = checkpoint.ModelCard(space=SPACE, num_actions=6, template="compact", memory=memory, max_pixels=56**2)
    checkpoint.save(home / "base", model, processor, card)
    return home


@contextmanager
def inside(home, monkeypatch):
    """In that folder; the number of threads is afterwards as before."""
    monkeypatch.chdir(home)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def sft_config(run, *overrides):
    return get_config("vlnr1_sft.yaml", [*COMMON, f"vlnr1.run_dir={run}", *SFT, *overrides], CONFIGS)


def rft_config(run, *overrides):
    return get_config("vlnr1_rft.yaml", [*COMMON, f"vlnr1.run_dir={run}", *RFT, *overrides], CONFIGS)


def run_sft(run, *overrides):
    """Train; returns the newest checkpoint's folder."""
    config = sft_config(run, *overrides)
    records = open_records(config, [("embedded", "train")])
    fit(config, starting_model(config, records), records)
    return checkpoint.newest_checkpoint(f"{run}/checkpoints")


def run_rft(run, *overrides):
    """Train; returns the newest checkpoint's folder."""
    config = rft_config(run, *overrides)
    fit_rft(config, check_start(config), recorded(config))
    return checkpoint.newest_checkpoint(f"{run}/rft/checkpoints")


def recorded(config):
    return Recorded(open_records(config, [("embedded", "train")]), [2, 9], [1])
