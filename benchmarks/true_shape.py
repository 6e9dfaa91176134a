"""What a Qwen-VL of the real shape takes: random weights in bfloat16, the largest prompt (16 history frames of 256²).

    python benchmarks/true_shape.py [--model qwen2_vl_2b | qwen2_5_vl_3b | …] [--layers 4] [--parts disk group] \
        [--json out.json]

Building, saving, loading, a decision under the grammar and in free text, a LoRA SFT step, and a step on a group of
--generations answers of one prompt as GRPO takes it (drawn, rewarded, weighted by advantage, the prompt run once;
without KL and without TRL's trainer). --layers keeps so many layers of both halves, where the whole is too slow;
--parts measures some of it only. One row a measure: seconds, and the process's peak memory so far. On a machine with a
GPU: benchmarks/gpu.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, PretrainedConfig

from benchmarks.narrow import wide_products
from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.decoding import ActionDecoder, Prompt
from habitat_vlnr1.lvlm.inputs import PromptEncoder, answer_logits
from habitat_vlnr1.lvlm.shared_prefix import share_prefixes
from habitat_vlnr1.lvlm.tiny import build_shape
from habitat_vlnr1.prompt import get_template

SPACE = ActionSpace(0.25, 15)
WORDS = "Walk past the kitchen, turn left after the stairs and wait beside the second door on your right."
ACTIONS = [Action(number) for number in (1, 1, 2, 1, 3, 0)]
Facts = dict[str, Any]
MODELS: dict[str, tuple[str, Facts, Facts]] = {
    "qwen2_vl_2b": (
        "qwen2_vl",
        {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
         "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
        {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": 1536},
    ),
    "qwen2_vl_7b": (
        "qwen2_vl",
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
        {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": 3584},
    ),
    "qwen2_5_vl_3b": (
        "qwen2_5_vl",
        {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
         "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
        {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 2048},
    ),
    "qwen3_vl_2b": (
        "qwen3_vl",
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
         "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True},
        {"depth": 24, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096, "out_hidden_size": 2048,
         "deepstack_visual_indexes": [5, 11, 17]},
    ),
}  # fmt: skip
"""Name → model type, language model, vision tower, as their config.json has them."""
PARTS = ("disk", "decision", "free", "sft", "group")
"""Saving and loading; a decision under the grammar; in free text; a step of each stage."""


def shape(name: str, layers: int | None) -> PretrainedConfig:
    """The config of a model, with the first `layers` layers of both halves where that is given."""
    kind, text, vision = MODELS[name]
    if layers is not None:
        text, vision = text | {"num_hidden_layers": layers}, vision | {"depth": layers}
        if kind == "qwen3_vl":
            vision["deepstack_visual_indexes"] = [0]
    tied = text["tie_word_embeddings"]
    return AutoConfig.for_model(kind, text_config=text, vision_config=vision, tie_word_embeddings=tied)


def measured(function: Callable[[], Any], device: torch.device) -> tuple[Any, float, float]:
    """The function's value, its seconds until the device has finished, and a peak of memory in GiB: of the GPU
    meanwhile, without one of the process so far."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    value = function()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return value, seconds, torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else process


class Table:
    """Measures one after another, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def measure(self, name: str, function: Callable[[], Any]) -> Any:
        """The function's value; its seconds and the peak of the process's memory in GiB are a row."""
        value, seconds, peak = measured(function, torch.device("cpu"))
        self.rows.append({"what": name, "seconds": round(seconds, 2), "peak_gib": round(peak, 2)})
        print(f"{name:24} {seconds:8.1f} s   peak {peak:6.2f} GiB", flush=True)
        return value


def made_and_loaded(table: Table, options: argparse.Namespace) -> tuple[Any, Any]:
    """The model and its processor, after a way over the disk where that is measured."""
    config = shape(options.model, options.layers)

    def build() -> tuple[Any, Any]:
        return build_shape(config, [WORDS], space=SPACE, image_size=options.side, seed=1)

    if "disk" not in options.parts:
        return table.measure("build", build)
    with tempfile.TemporaryDirectory() as folder:
        path, card, made = Path(folder) / "model", checkpoint.ModelCard(), [table.measure("build", build)]
        table.measure("save", lambda: checkpoint.save(path, made[0][0], made[0][1], card))
        made.clear()
        return table.measure("load", lambda: checkpoint.load(path, dtype="bfloat16"))


def decisions(table: Table, model: Any, encoder: PromptEncoder, prompt: Prompt, parts: Sequence[str]) -> None:
    """One answer to a new prompt, and one with its frames encoded already, under the grammar; then free text."""
    if "decision" in parts:
        decoder = ActionDecoder(model, encoder)
        table.measure("decision, constrained", lambda: decoder.decode([prompt]))
        table.measure("… frames known", lambda: decoder.decode([prompt]))
    if "free" in parts:
        free = ActionDecoder(model, encoder, constrained=False)
        table.measure("decision, free text", lambda: free.decode([prompt]))


class Training:
    """An optimizer's steps on one prompt and its answers.

    Args:
        model: on its device, with `share_prefixes`; bfloat16 for adapters, float32 for itself.
        generations: G, answers of a group.
        lora: train adapters (they stay in the model until `unload`); else the whole model, under autocast.
        checkpointing: recompute layers; the answers of a group then go through whole.
    """

    def __init__(
        self,
        model: Any,
        encoder: PromptEncoder,
        prompt: Prompt,
        generations: int,
        *,
        lora: bool = True,
        checkpointing: bool = False,
    ):
        adapters = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules=["q_proj", "v_proj"])
        self.base, self.lora, self.checkpointing = model, lora, checkpointing
        self.model: Any = get_peft_model(model, adapters) if lora else model.requires_grad_(True)
        self.encoder, self.prompt, self.generations = encoder, prompt, generations
        self.query = encoder.query(prompt.instruction, prompt.frames, prompt.keys)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-5)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    def unload(self) -> None:
        """Leave the model as it came, but for its weights where they were trained."""
        if self.checkpointing:
            self.base.gradient_checkpointing_disable()
        if self.lora:
            self.model.unload()
        self.base.zero_grad()
        self.base.eval()

    def sft(self) -> None:
        """A step on one record."""
        self._update([self.encoder.answer_ids(ACTIONS)], torch.ones(1))

    def group(self) -> None:
        """A step on one group of drawn answers."""
        self.model.eval()
        with self._autocast():
            decoder = ActionDecoder(self.base, self.encoder, temperature=1.0)
            answers = decoder.decode([self.prompt], samples=self.generations)
        rewards = torch.tensor([float(np.mean(np.equal(answer.actions, ACTIONS))) for answer in answers])
        self._update([answer.ids for answer in answers], rewards - rewards.mean())

    def _update(self, answers: Sequence[tuple[int, ...]], weights: torch.Tensor) -> None:
        self.model.train()
        groups = None if self.checkpointing or len(answers) == 1 else [0] * len(answers)
        batch = self.encoder.training_batch([self.query] * len(answers), answers, groups)
        device = self.base.device
        with self._autocast():
            loss = weighted_loss(self.model, {name: x.to(device) for name, x in batch.items()}, weights.to(device))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.base.device.type, torch.bfloat16, enabled=self.base.dtype == torch.float32)


def weighted_loss(model: Any, batch: Mapping[str, torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Mean over the answers' tokens of their negative log-probability times their answer's weight [B]; ones: eq. 7."""
    logits, labels, rows = answer_logits(model, batch)
    return (weights[rows] * F.cross_entropy(logits, labels, reduction="none")).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="qwen2_vl_2b")
    parser.add_argument("--layers", type=int, help="of the language model and of the vision tower; default: all")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured; default: all")
    parser.add_argument("--frames", type=int, default=17, help="history and the current one")
    parser.add_argument("--side", type=int, default=256, help="pixels of a frame's side")
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with wide_products():
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Every part that is asked for, and the file."""
    table = Table()
    model, processor = made_and_loaded(table, options)
    size = sum(parameter.numel() for parameter in model.parameters())
    share_prefixes(model)
    encoder = PromptEncoder(processor, get_template("vln_ego"), len(ACTIONS), SPACE, max_pixels=options.side**2)
    chance = np.random.default_rng(0)
    frames = [chance.integers(0, 256, (options.side, options.side, 3), dtype=np.uint8) for _ in range(options.frames)]
    prompt = Prompt(WORDS, frames, list(range(options.frames)))
    length = len(encoder.query(prompt.instruction, prompt.frames, prompt.keys).ids)
    print(f"{options.model}: {size:,} parameters, a prompt of {length} tokens, {torch.get_num_threads()} thread(s)")
    decisions(table, model, encoder, prompt, options.parts)
    training = Training(model, encoder, prompt, options.generations)
    if "sft" in options.parts:
        table.measure("SFT step, LoRA", training.sft)
    if "group" in options.parts:
        table.measure(f"group step, G = {options.generations}", training.group)
    if options.json:
        about = {"model": options.model, "layers": options.layers, "parameters": size, "prompt_tokens": length}
        options.json.write_text(json.dumps(about | {"rows": table.rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
