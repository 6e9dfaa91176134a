"""What a GPU makes of Qwen2-VL-2B and -7B: random weights of the true shapes, random frames, own walks, no download.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --models qwen2_vl_2b --batches 1 8 32 --peak-tflops 362
    python benchmarks/gpu.py --device cpu --layers 1 --models qwen2_vl_2b --batches 1 2     # a trial without a GPU

Queries, at each batch size: stock `generate`, and each way of benchmarks/decoding.py with its ratio against stock in
the same run. Steps, from benchmarks/true_shape.py: SFT on one record and a group of G answers as GRPO takes it (drawn,
rewarded, weighted by advantage; no KL, no trainer around it), with LoRA on bfloat16 weights, and with all of float32
weights under autocast. Layers are recomputed where their activations would not fit. What memory does not suffice for
is left out by name, before it is tried or when it fails, and the rest goes on.

Planned memory is the dry run's (docs/planning.md): of one process, without a reference model; for a query weights and
both caches, full. Peak memory is what PyTorch had allocated on the GPU; on a CPU, that of the process so far.

A query's FLOPs are those of tokens and frames that no earlier query paid for, as counted by the decoder; tried answers
that come to nothing and layers run twice count nothing. One formula for all, `flops`; MFU is its value, divided by
seconds and by the device's peak for dense bfloat16.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import PreTrainedModel

from benchmarks.decoding import INSTRUCTION, MEMORIES, SPACE, Bench
from benchmarks.grpo import jpeg
from benchmarks.true_shape import ACTIONS, MODELS, Training, measured, shape
from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.doctor.model_sizes import Size, activations, empty_model, training_memory
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.lvlm.decoding import Prompt
from habitat_vlnr1.lvlm.fast_vision import core_of
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.shared_prefix import share_prefixes
from habitat_vlnr1.lvlm.tiny import build_shape
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.prompt import get_template
from habitat_vlnr1.records import Episode

GIB = 2**30
CACHES = 2 * GIB  # of a decoder: `feature_cache_mb` and `prefix_cache_mb`
PEAKS = {
    "B200": 2250, "GH200": 989, "H200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362,
    "A40": 150, "L4": 121, "A10": 125, "4090": 165, "3090": 71,
}  # fmt: skip
"""TFLOPS of dense bfloat16 by words of a device's name, as the makers give them; the first that fits counts."""


@dataclass
class Row:
    """One measure.

    Args:
        batch: prompts, or answers of a group, at a time.
        seconds: of one query of the batch or one step; None: `note` says why not.
        tokens: of prompts and answers in it.
        mfu: share of the device's peak; None where that is not known.
        peak, planned: GiB.
        ratio: stock `generate`'s seconds over these.
    """

    model: str
    what: str
    batch: int
    seconds: float | None = None
    tokens: int = 0
    mfu: float | None = None
    peak: float | None = None
    planned: float | None = None
    ratio: float | None = None
    note: str = ""

    def __str__(self) -> str:
        name = f"{self.model:12} {self.what:26} {self.batch:5}"
        if self.seconds is None:
            return f"{name}   {self.note}"
        rates = f"{self.batch / self.seconds:8.2f} {self.tokens / self.seconds:9,.0f}"
        share = "      " if self.mfu is None else f"{self.mfu:6.1%}"
        planned, ratio = ("" if x is None else f"{x:.1f}" for x in (self.planned, self.ratio))
        return f"{name} {self.seconds:9.3f} {rates} {share} {self.peak:6.1f} {planned:>8} {ratio:>6}  {self.note}"


HEAD = (
    f"{'model':12} {'what':26} {'batch':>5} {'seconds':>9} {'a second':>8} {'tokens/s':>9} {'MFU':>6} {'GiB':>6} "
    f"{'planned':>8} {'ratio':>6}"
)


def flops(
    model: PreTrainedModel,
    tokens: int,
    frames: float,
    patches: int,
    logits: int,
    *,
    group: tuple[int, int],
    known: float = 0,
    factors: tuple[int, int] = (1, 1),
) -> float:
    """Floating-point operations of a prompt and its answers.

        k · [2 P (t − r + G a) + 2 d L (t² − r² + G ((t + a)² − t²)) + 2 V s]  +  j · f · [2 Q v + Q' v / 2 + 4 e D v²]

    P: weights of the language model's matrices without embedding and head; t: tokens of the prompt, r of them known;
    G answers of a tokens; d: width of all heads together, L: layers (causal attention: half of QKᵀ and AV); V: weights
    of the head, s: places whose logits are made; f: frames of v patches; Q and Q': weights of the vision tower's
    matrices before and in its merger, which joins four patches; e: width, D: depth (each patch of a frame sees all).
    A multiplication and an addition are two.

    Args:
        group: G and a.
        known: r.
        factors: k and j: 1 forward; 2 with gradients of activations; 3 of weights as well.
    """
    answers, answer = group
    core, text = core_of(model), model.config.get_text_config()
    vision: Any = model.config.vision_config
    merger = matrices(core.visual.merger)
    one_frame = 2 * (matrices(core.visual) - merger) * patches + merger * patches / 2
    one_frame += 4 * vision.embed_dim * vision.depth * patches**2
    new, seen = tokens - known + answers * answer, answers * ((tokens + answer) ** 2 - tokens**2)
    heads = text.hidden_size * text.num_hidden_layers
    language = 2 * matrices(core.language_model.layers) * new + 2 * heads * (tokens**2 - known**2 + seen)
    return factors[0] * (language + 2 * text.vocab_size * text.hidden_size * logits) + factors[1] * frames * one_frame


def matrices(module: torch.nn.Module) -> int:
    """Weights that are no vectors, without adapters."""
    return sum(p.numel() for name, p in module.named_parameters() if p.dim() > 1 and "lora_" not in name)


def peak_of(device: torch.device, given: float | None) -> float | None:
    """FLOPS of dense bfloat16; None: not known.

    Args:
        given: TFLOPS.
    """
    if given is not None or device.type != "cuda":
        return None if given is None else given * 1e12
    words = re.split(r"[^A-Za-z0-9]+", torch.cuda.get_device_name(device))
    known = (peak for name, peak in PEAKS.items() if set(name.split()) <= set(words))
    return next((peak * 1e12 for peak in known), None)


class Benchmark:
    """All measures of one model after another; what fails for memory is a row that says so.

    Args:
        options: of the command line.
        rows: where they go.
    """

    def __init__(self, name: str, options: argparse.Namespace, rows: list[Row]):
        self.name, self.options, self.rows = name, options, rows
        self.device = torch.device(options.device)
        self.peak = peak_of(self.device, options.peak_tflops)
        self.room = free_bytes(self.device)
        self.size = Size.of(empty_model(shape(name, options.layers)))
        self.model: Any = None

    def run(self) -> None:
        weights = 2.0 * self.size.parameters
        if not self.attempt(Row(self.name, "build", 1, planned=weights / GIB), self.build):
            return
        for batch in self.options.batches:
            self.queries(batch)
        for lora in (True, False):
            self.steps(lora)

    def attempt(self, row: Row, measure: Callable[[Row], None]) -> bool:
        """Add a row, whether memory suffices for it or not; true: it was measured.

        Args:
            measure: fills in the row.
        """
        if row.planned is not None and row.planned * GIB > self.room:
            row.note = f"left out: {row.planned:.1f} GiB planned, {self.room / GIB:.1f} free"
        else:
            try:
                measure(row)
            except torch.OutOfMemoryError:
                row.seconds, row.note = None, f"ran out of memory ({self.room / GIB:.1f} GiB were free)"
        release(self.device)
        self.rows.append(row)
        print(row, flush=True)
        return row.seconds is not None

    def build(self, row: Row) -> None:
        """The model, made on its device, and what asks it."""
        side, config = self.options.frame, shape(self.name, self.options.layers)

        def make() -> tuple[Any, Any]:
            with self.device:  # a CPU would take minutes for the random numbers of 7B
                return build_shape(config, [INSTRUCTION], space=ActionSpace(0.5, 30), image_size=side)

        (model, processor), row.seconds, row.peak = measured(make, self.device)
        self.model = model.to(self.device)
        share_prefixes(self.model)
        template = get_template(self.options.template)
        self.encoder = PromptEncoder(processor, template, len(ACTIONS), SPACE, max_pixels=side**2, single_slot=True)
        self.answer = len(self.encoder.answer_ids(ACTIONS))
        row.tokens, row.note = 0, f"{self.size.parameters:,} parameters"

    def queries(self, batch: int) -> None:
        """Stock generation and our ways, and their ratios."""
        options = argparse.Namespace(
            **vars(self.options), walks=batch, samples=1, drafts=None, num_actions=len(ACTIONS), budget=16, horizon=6
        )
        bench = Bench(self.model, self.encoder, options)
        memory = make_memory(budget=options.budget, **MEMORIES[options.memory])
        tokens, frames, patches, first = asked(bench, self.encoder, memory)
        every = batch * (tokens + bench.answer_tokens)
        stock = Row(self.name, "query, stock generate", batch, tokens=every)

        def generate(row: Row) -> None:
            row.seconds, _, row.peak = measured(lambda: bench.stock(memory), self.device)
            answer = bench.answer_tokens
            self.rate(row, batch * flops(self.model, tokens, frames, patches, answer, group=(1, answer)))

        self.attempt(stock, generate)
        for way, settings in bench.ways().items():
            planned = (2 * self.size.parameters + CACHES) / GIB

            def decide(row: Row, way: str = way, settings: dict[str, Any] = settings) -> None:
                row.seconds, _, row.peak = measured(
                    lambda: bench.ours(options.memory, way, memory, settings), self.device
                )
                counts = bench.counts[options.memory, way]
                row.note = f"{counts['passes_per_answer']} passes an answer, {counts['reused']:.0%} of prompts reused"
                row.ratio = None if stock.seconds is None else stock.seconds / row.seconds
                known = counts["reused"] * tokens
                one = flops(self.model, tokens, first, patches, 0, group=(1, bench.answer_tokens), known=known)
                self.rate(row, batch * one)

            self.attempt(Row(self.name, f"query, {way}", batch, tokens=every, planned=planned), decide)

    def steps(self, lora: bool) -> None:
        """SFT and GRPO with adapters, or with everything."""
        chance, side = np.random.default_rng(0), self.options.frame
        frames = [chance.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(17)]
        prompt = Prompt(INSTRUCTION, frames, list(range(len(frames))))
        for what, answers in (("SFT step", 1), ("GRPO step", self.options.generations)):
            checkpointing, planned = self.plan(lora, answers, prompt)
            how = ("LoRA" if lora else "full") + (", recomputing" if checkpointing else "")
            row = Row(self.name, f"{what}, {how}", answers, planned=planned / GIB)

            def train(row: Row, answers: int = answers, checkpointing: bool = checkpointing) -> None:
                model = self.model if lora else self.model.float()
                training = Training(model, self.encoder, prompt, answers, lora=lora, checkpointing=checkpointing)
                step = training.sft if answers == 1 else training.group
                try:
                    step()  # kernels are chosen, moments made
                    taken = [measured(step, self.device)[1:] for _ in range(self.options.steps)]
                finally:
                    training.unload()
                row.seconds = statistics.median(seconds for seconds, _ in taken)
                row.peak = max(peak for _, peak in taken)
                self.rate(row, self.work(row, training, lora))

            self.attempt(row, train)

    def work(self, row: Row, training: Training, lora: bool) -> float:
        """FLOPs of a step, whose tokens become the row's: forward and backward, and in GRPO the drawing before it."""
        tokens, answers = len(training.query.ids), row.batch
        row.tokens = tokens + answers * self.answer
        frames, patches = len(training.query.frames), patches_of(training.query)
        places, factors = answers * self.answer, (2, 1) if lora else (3, 3)

        def one(logits: int, factors: tuple[int, int] = (1, 1)) -> float:
            group = (answers, self.answer)
            return flops(self.model, tokens, frames, patches, logits, group=group, factors=factors)

        return one(places, factors) + (answers > 1) * one(0)

    def plan(self, lora: bool, answers: int, prompt: Prompt) -> tuple[bool, float]:
        """Whether layers have to be recomputed, and the dry run's bytes."""
        query = self.encoder.query(prompt.instruction, prompt.frames, prompt.keys)
        config, tokens = self.model.config, len(query.ids)
        adapters = {"r": 16, "target_modules": ["q_proj", "v_proj"]}
        size = Size.of(empty_model(shape(self.name, self.options.layers), adapters if lora else None))
        fixed = training_memory("DDP", size, 1, 2 if lora else 4).total
        patches = len(query.frames) * patches_of(query)
        kept = activations(config, tokens + answers * self.answer, patches, False, not lora)
        if fixed + kept < self.room:
            return False, fixed + kept
        rows = answers * (tokens + self.answer), answers * patches  # a recomputed group goes through whole
        return True, fixed + activations(config, *rows, True, not lora)

    def rate(self, row: Row, work: float) -> None:
        if self.peak is not None and row.seconds is not None:
            row.mfu = work / row.seconds / self.peak


def asked(bench: Bench, encoder: PromptEncoder, memory: Any) -> tuple[int, int, int, float]:
    """Of one timed query: tokens, frames, patches of a frame, and how many of its frames no query before it had."""
    shown = [{*memory.select(step), step} for step in bench.steps]
    first = statistics.mean(len(now - set().union(*shown[:i])) for i, now in enumerate(shown) if i)
    last = bench.prompts(memory, bench.steps[-1])[0]
    query = encoder.query(last.instruction, last.frames, last.keys)
    return len(query.ids), len(query.frames), patches_of(query), first


def patches_of(query: Any) -> int:
    height, width = query.frames[0].grid
    return height * width


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def release(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def make_walks(folder: Path, number: int = 32) -> None:
    """VLN-Ego of walks as an expert's are, turns on the spot and straight legs; answers and drafts come from them."""
    chance = np.random.default_rng(0)
    picture = jpeg(chance, 28)
    writer = EpisodeWriter(folder, {})
    for walk in range(number):
        actions: list[int] = []
        for _ in range(6):
            actions += [int(chance.integers(2, 4))] * int(chance.integers(1, 7))
            actions += [1] * int(chance.integers(4, 17))
        actions.append(0)
        writer.write(Episode(str(walk), "s", INSTRUCTION, tuple(actions)), [picture] * len(actions))
    writer.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = [name for name, (kind, _, _) in MODELS.items() if kind == "qwen2_vl"]
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, help="of the language model and of the vision tower; default: all")
    parser.add_argument("--frame", type=int, default=256, help="side of the frames in pixels")
    parser.add_argument("--memory", choices=MEMORIES, default="anchored")
    parser.add_argument("--template", default="vln_ego", help="how the model is asked; frames_last: reuses more")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="prompts of a query at a time")
    parser.add_argument("--queries", type=int, default=3, help="timed for each way; the median counts")
    parser.add_argument("--steps", type=int, default=3, help="timed of each kind, after one that is not")
    parser.add_argument("--generations", type=int, default=8, help="G, answers of a group")
    parser.add_argument(
        "--peak-tflops", type=float, help="of the device in dense bfloat16, where its name is not known"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is to be had; --device cpu --layers 1 tries the script")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    peak = peak_of(device, options.peak_tflops)
    known = "peak not known, so no MFU: --peak-tflops gives it" if peak is None else f"peak {peak / 1e12:.0f} TFLOPS"
    print(f"{name}, {free_bytes(device) / GIB:.1f} GiB free, {known}, PyTorch {torch.__version__}\n{HEAD}", flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        options.ego = Path(folder)
        make_walks(options.ego)
        for model in options.models:
            Benchmark(model, options, rows).run()
            release(device)
    if options.json:
        about: dict[str, Any] = {"device": name, "peak_tflops": peak and peak / 1e12, "torch": torch.__version__}
        settings = {key: str(value) for key, value in vars(options).items() if key != "ego"}
        table = [asdict(row) for row in rows]
        options.json.write_text(json.dumps(about | {"options": settings, "rows": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
