"""How much faster grammar decoding is than stock `generate`, in one run on one machine.

    python benchmarks/decoding.py --checkpoint Qwen/Qwen2-VL-2B-Instruct --dtype bfloat16 --device cuda
    python benchmarks/decoding.py                      # a random model with the tiny model's shape, on the CPU

Both answer the same prompts of one walk (the history of each step holds frames of earlier ones). Stock generation is
told the answer's length in tokens and may say anything, as an untrained model never ends by itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.decoding import ActionDecoder, Prompt
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.prompt import get_template

INSTRUCTION = "Walk past the blue sofa, turn left behind it and stop at the second door."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="folder or hub id; a random tiny model without it")
    parser.add_argument("--size", default="tiny", help="of the random model: tiny or small")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frame", type=int, default=84, help="side of the frames in pixels")
    parser.add_argument("--budget", type=int, default=16, help="history frames")
    parser.add_argument("--num-actions", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8, help="prompts timed")
    parser.add_argument("--walks", type=int, default=1, help="environments side by side")
    options = parser.parse_args()

    space = ActionSpace(turn_angle=15)
    if options.checkpoint:
        model, processor = checkpoint.load(options.checkpoint, dtype=options.dtype, device=options.device)
    else:
        # Made for other steps and angles, so that its answers have about as many tokens as Qwen's.
        made_for = ActionSpace(0.5, 30)
        texts = [INSTRUCTION, *space.options()]
        model, processor = build_tiny(texts, space=made_for, size=options.size, image_size=options.frame)
        model = model.to(options.device, getattr(torch, options.dtype))
    encoder = PromptEncoder(processor, get_template("vln_ego"), options.num_actions, space)
    memory = make_memory("uniform", budget=options.budget)
    rng = np.random.default_rng(0)
    length = 4 * options.budget + options.steps
    shape = (options.walks, length, options.frame, options.frame, 3)
    frames = rng.integers(0, 256, shape, dtype=np.uint8)

    def prompts(step: int) -> list[Prompt]:
        shown = [*memory.select(step), step]
        return [
            Prompt(INSTRUCTION, [frames[walk, i] for i in shown], [(walk, i) for i in shown])
            for walk in range(options.walks)
        ]

    answer_tokens = len(encoder.answer_ids([Action.FORWARD] * options.num_actions))
    steps = range(length - options.steps, length)
    stock = [timed(lambda step=step: generate(model, encoder, prompts(step), answer_tokens), model) for step in steps]
    decoder = ActionDecoder(model, encoder)
    for step in range(length - options.steps - 1, length - options.steps):
        decoder.decode(prompts(step))
    ours = [timed(lambda step=step: decoder.decode(prompts(step)), model) for step in steps]
    prompt_tokens = len(encoder.query(INSTRUCTION, [frames[0, 0]] * (options.budget + 1)).ids)
    print(f"{prompt_tokens} prompt tokens, {answer_tokens} answer tokens, {options.walks} prompts at a time")
    slow, fast = statistics.median(stock), statistics.median(ours)
    print(f"stock generate {slow:.3f} s, grammar decoding {fast:.3f} s, ratio {slow / fast:.1f}")


def generate(model: Any, encoder: PromptEncoder, prompts: list[Prompt], tokens: int) -> None:
    queries = [encoder.query(prompt.instruction, prompt.frames, prompt.keys) for prompt in prompts]
    batch = encoder.prompts(queries, model.device)
    with torch.inference_mode():
        model.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


def timed(function: Callable[..., object], model: PreTrainedModel) -> float:
    """Seconds of one call, until the device has finished."""
    start = time.perf_counter()
    function()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
