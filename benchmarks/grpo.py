"""How much faster a GRPO step is than plain TRL's, in one run on one machine, and that loss and KL are the same.

    python benchmarks/grpo.py                  # the tiny model's shape
    python benchmarks/grpo.py --size 30M
    python benchmarks/grpo.py --checkpoint Qwen/Qwen2-VL-2B-Instruct --dtype bfloat16 --frame 256 --steps 2

Both trainers start from the same weights and get the same prompts. A step is rollouts, rewards, reference and policy
scores, backward and update. Plain TRL generates exactly as many tokens as an answer has, since a random model ends
nowhere by itself; then it scores our answers, for the comparison of loss and KL. The policy has been moved a little
from the reference, so that there is a KL.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from habitat_baselines.config.default import get_config
from PIL import Image

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.lvlm import checkpoint, tiny
from habitat_vlnr1.records import Episode
from habitat_vlnr1.register import register
from habitat_vlnr1.trainers.fitting import open_records
from habitat_vlnr1.trainers.rft_fit import Recorded, make_trainer

CONFIGS = str(Path(__file__).parents[1] / "configs" / "trainer")
WORDS = "Walk past the blue sofa, turn left behind it and stop at the second door."
SPACE = ActionSpace(0.25, 15)
tiny.SIZES["30M"] = tiny.TinySize(4, 256, 4, 8, 512, 8, 4, 1792)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="folder or hub id; a random model without it")
    parser.add_argument("--size", default="tiny", choices=tiny.SIZES, help="of the random model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--frame", type=int, default=84, help="side of the frames in pixels")
    parser.add_argument("--budget", type=int, default=16, help="history frames")
    parser.add_argument("--generations", type=int, default=8, help="G")
    parser.add_argument("--prompts", type=int, default=2, help="prompts a step")
    parser.add_argument("--steps", type=int, default=4, help="steps timed, after one that is not")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    register()
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        start = options.checkpoint or random_checkpoint(options)
        export(options)
        compare(options, start)


def random_checkpoint(options: argparse.Namespace) -> str:
    # Made for other steps and angles, so that its answers have about as many tokens as Qwen's.
    space, texts = ActionSpace(0.5, 30), [WORDS, *SPACE.options()]
    model, processor = tiny.build_tiny(texts, space=space, size=options.size, image_size=options.frame)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, random")
    return str(checkpoint.save(Path("start"), model, processor, checkpoint.ModelCard(space=SPACE, template="vln_ego")))


def export(options: argparse.Namespace) -> None:
    """Episodes of random frames, long enough to fill the memory."""
    chance = np.random.default_rng(0)
    for split in ("train", "val_unseen"):
        writer = EpisodeWriter(Path("ego/embedded") / split, {})
        for number in range(options.prompts):
            actions = (*chance.integers(1, 4, 4 * options.budget).tolist(), 0)
            writer.write(Episode(str(number), "s", WORDS, actions), [jpeg(chance, options.frame) for _ in actions])
        writer.close()


def jpeg(chance: np.random.Generator, side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(chance.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def compare(options: argparse.Namespace, start: str) -> None:
    fast, plain = (trainer(options, start, rollout) for rollout in ("grammar", "trl"))
    length = len(fast.encoder.answer_ids([1] * 6))
    plain.generation_config.max_new_tokens = plain.generation_config.min_new_tokens = length
    prompt = len(fast._query(fast.train_dataset[0]["record"]).ids)
    print(
        f"{prompt} prompt tokens, {length} of a FORWARD answer, {options.prompts} prompts x G = {options.generations}"
    )
    rivals = (("ours", fast), ("TRL", plain))
    times = {name: [step(each) for _ in range(options.steps + 1)][1:] for name, each in rivals}
    for name, seconds in times.items():
        print(f"{name:5s} {statistics.median(seconds):7.3f} s a step")
    print(f"ratio {statistics.median(times['TRL']) / statistics.median(times['ours']):7.2f}")
    same(fast, plain)


def trainer(options: argparse.Namespace, start: str, rollout: str) -> Any:
    batch = options.prompts * options.generations
    settings = {
        "data.root": "ego",
        "run_dir": rollout,
        "prompt.template": "vln_ego",
        "model.image_size": options.frame,
        "model.dtype": options.dtype,
        "protocol.turn_angle": SPACE.turn_angle,
        "protocol.forward_step": SPACE.forward_step,
        "rft.start": start,
        "rft.rollout": rollout,
        "rft.num_generations": options.generations,
        "rft.per_device_train_batch_size": batch,
        "rft.bf16": options.dtype == "bfloat16",
        "memory.budget": options.budget,
    }
    overrides = [f"vlnr1.{key}={value}" for key, value in settings.items()]
    config = get_config("vlnr1_rft_recorded.yaml", ["vlnr1/memory=uniform_16", *overrides], CONFIGS)
    records = open_records(config, [("embedded", "train"), ("embedded", "val_unseen")])
    ends = np.cumsum([len(episode.actions) for episode in records.episodes[: options.prompts]]) - 2
    made = make_trainer(config, start, None, Recorded(records, ends.tolist(), [0]))
    made.create_optimizer()
    move(made.model)
    return made


def move(model: Any) -> None:
    """The starting weights, a little off."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.003)


def inputs_of(trainer: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in trainer.train_dataset for _ in range(trainer.num_generations)]


def synchronised(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def step(trainer: Any) -> float:
    """Seconds of one optimisation step."""

    def run() -> None:
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        batch = trainer._generate_and_score_completions(inputs_of(trainer))
        trainer.compute_loss(trainer.model, batch).backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return synchronised(run)


def same(fast: Any, plain: Any) -> None:
    """Print loss and KL of both for the same answers and weights."""
    plain.model.load_state_dict(fast.model.state_dict())
    batch: dict[str, Any] = {}
    values = []
    for trainer in (fast, plain):
        trainer.model.train()
        if trainer is plain:
            ids, masks = batch["completion_ids"], batch["completion_mask"].bool()
            answers = [row[mask].tolist() for row, mask in zip(ids, masks, strict=True)]
            plain._generate_single_turn = lambda *args, answers=answers, **kwargs: (answers, None)
        batch = trainer._generate_and_score_completions(inputs_of(trainer))
        loss = trainer.compute_loss(trainer.model, batch)
        values.append((loss.item(), trainer._metrics["train"]["kl"][-1]))
    (loss, kl), (plain_loss, plain_kl) = values
    print(f"same answers: loss {loss:.6f} and {plain_loss:.6f}, KL {kl:.6f} and {plain_kl:.6f}")


if __name__ == "__main__":
    main()
