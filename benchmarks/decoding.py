"""How much faster a query is than stock `generate`, with each memory, in one run on one machine.

    python benchmarks/decoding.py                                # random weights of the tiny model's shape, on the CPU
    python benchmarks/decoding.py --size 30M --queries 4
    python benchmarks/decoding.py --size 2B --queries 1 --ways drafts --memories anchored_blocks  # of Qwen2-VL-2B
    python benchmarks/decoding.py --checkpoint Qwen/Qwen2-VL-2B-Instruct --dtype bfloat16 --device cuda --frame 256

Both answer the prompts of one walk, one query every --horizon steps from --start on. Random weights say anything, so
the answers are recorded ones, in all ways of ours at the same cost as the model's own: every second walk of --ego
answers (a few stand for all), and the frequent answers of the others are the drafts. Stock generation, by the model as
Transformers made it, says as many tokens as an answer of n actions has. Ways: `letters` reads whole prompts and goes
letter by letter, with features of frames kept; `prefix` runs only what differs from the last prompt; `drafts` tries
answers at once as well. A ratio is that of median times within one run; of the --runs runs the least and the median
ratio stand in the table. On a CPU the times are the process's own seconds, which other processes hardly change.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from benchmarks.drafts import passes
from benchmarks.true_shape import shape
from habitat_vlnr1.actions import Action, ActionSpace, next_actions
from habitat_vlnr1.lvlm import checkpoint, tiny
from habitat_vlnr1.lvlm.decoding import ActionDecoder, Prompt
from habitat_vlnr1.lvlm.drafts import choose_drafts
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.memory import Memory, make_memory
from habitat_vlnr1.prompt import get_template
from habitat_vlnr1.records import Records, VLNEgo

INSTRUCTION = "Walk past the blue sofa, turn left behind it and stop at the second door."
SPACE = ActionSpace(turn_angle=15)
START = 48
LONG_SHORT = {"short_window": 8, "short_stride": 1, "long_stride": 6}
BLOCKS = {"short_window": 24, "short_stride": 6, "short_block": 48, "long_stride": 24}
MEMORIES: dict[str, dict[str, Any]] = {
    "anchored_blocks": {"strategy": "anchored", **BLOCKS},
    "anchored": {"strategy": "anchored", **LONG_SHORT},
    "long_short": {"strategy": "long_short", **LONG_SHORT},
    "uniform": {"strategy": "uniform"},
    "anchored_uniform": {"strategy": "anchored_uniform"},
    "exponential": {"strategy": "exponential"},
}
"""By the names of their configs."""
WAYS = ("letters", "prefix", "drafts")
tiny.SIZES["30M"] = tiny.TinySize(4, 256, 4, 8, 512, 8, 4, 1792)
Answers = Sequence[Sequence[Action]]


class Replaying(ActionDecoder):
    """Decides as `answers` say, in their order, whatever the model thinks."""

    answers: Answers = ()

    def _noise(self, rows: int, seeds: Any) -> Tensor:
        taken, self.answers = self.answers[:rows], self.answers[rows:]
        return F.one_hot(torch.tensor(taken), len(Action)) * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder or hub id; random weights without it")
    parser.add_argument("--size", default="tiny", choices=[*tiny.SIZES, "2B"], help="of random weights")
    parser.add_argument("--dtype", help="default: bfloat16 for 2B, else float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frame", type=int, help="side of the frames in pixels; default: 256 for 2B, else 84")
    parser.add_argument("--budget", type=int, default=16, help="history frames")
    parser.add_argument("--memories", nargs="+", choices=MEMORIES, default=list(MEMORIES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of ours")
    parser.add_argument("--template", default="frames_last", help="how the model is asked; vln_ego: as released")
    parser.add_argument("--num-actions", type=int, default=6)
    parser.add_argument("--horizon", type=int, default=6, help="steps between queries")
    parser.add_argument("--start", type=int, default=START, help="step of the first query, which is not timed")
    parser.add_argument("--queries", type=int, default=10, help="timed in each run")
    parser.add_argument("--walks", type=int, default=1, help="environments side by side")
    parser.set_defaults(samples=1)
    parser.add_argument("--drafts", type=int, help="answers tried at once; default: 4 on a CPU, 8 on a GPU")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--ego", type=Path, default=Path("data/vln_ego/embedded/train"), help="whose answers are given"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    model, encoder = model_of(options)
    bench = Bench(model, encoder, options, options.start)
    if not set(options.ways) & set(bench.ways()):
        parser.error(f"without recorded answers there are no drafts: name an export by --ego, not {options.ego}")
    print(bench.about())
    for _ in tqdm(range(options.runs), desc="run"):
        bench.run()
    bench.report()


def model_of(options: argparse.Namespace) -> tuple[Any, PromptEncoder]:
    large = options.size == "2B" or options.checkpoint
    options.dtype = options.dtype or ("bfloat16" if large else "float32")
    options.frame = options.frame or (256 if large else 84)
    if options.checkpoint:
        model, processor = checkpoint.load(options.checkpoint, dtype=options.dtype)
    elif options.size == "2B":
        texts, config = [INSTRUCTION], shape("qwen2_vl_2b", None)
        model, processor = tiny.build_shape(config, texts, space=ActionSpace(0.5, 30), image_size=options.frame)
    else:
        # Made for other steps and angles, so that its answers have about as many tokens as Qwen's.
        texts, space = [INSTRUCTION, *SPACE.options()], ActionSpace(0.5, 30)
        model, processor = tiny.build_tiny(texts, space=space, size=options.size, image_size=options.frame)
    placed: Any = model  # `to` of PreTrainedModel is wrapped without its types
    template, pixels = get_template(options.template), options.frame**2
    encoder = PromptEncoder(processor, template, options.num_actions, SPACE, max_pixels=pixels, single_slot=True)
    return placed.to(options.device, getattr(torch, options.dtype)), encoder


class Bench:
    """The ways to answer, and how long they have taken.

    Args:
        options: of the command line.
        start: step of the first query, which is not timed.
    """

    def __init__(
        self, model: PreTrainedModel, encoder: PromptEncoder, options: argparse.Namespace, start: int = START
    ):
        self.model, self.encoder, self.options = model, encoder, options
        self.steps = [start + options.horizon * k for k in range(options.queries + 1)]
        shown = (options.walks, self.steps[-1] + 1, options.frame, options.frame, 3)
        self.frames = np.random.default_rng(0).integers(0, 256, shown, dtype=np.uint8)
        self.drafts, self.answers = recorded(options)
        self.ratios: dict[tuple[str, str], list[float]] = {}
        self.seconds: dict[tuple[str, str], list[float]] = {}
        self.counts: dict[tuple[str, str], dict[str, float]] = {}

    def about(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        tokens = len(self.encoder.query(INSTRUCTION, [self.frames[0, 0]] * (self.options.budget + 1)).ids)
        return (
            f"{size:.1f}M parameters, {self.options.dtype}, {self.model.device}, {torch.get_num_threads()} thread(s); "
            f"{tokens} tokens a prompt, {self.answer_tokens} an answer, {self.options.walks} prompts at a time"
        )

    @property
    def answer_tokens(self) -> int:
        return len(self.encoder.answer_ids([Action.FORWARD] * self.options.num_actions))

    def run(self) -> None:
        """Every way once: stock generation, then ours with each memory."""
        stock: dict[tuple[int, ...], float] = {}  # by the number of frames of each query: which ones is all the same
        for name in self.options.memories:
            memory = make_memory(budget=self.options.budget, **MEMORIES[name])
            frames = tuple(len(memory.select(step)) for step in self.steps[1:])
            if frames not in stock:
                stock[frames] = self.stock(memory)
            self.seconds.setdefault((name, "stock"), []).append(stock[frames])
            for way, settings in self.ways().items():
                if way not in self.options.ways:
                    continue
                ours = self.ours(name, way, memory, settings)
                self.seconds.setdefault((name, way), []).append(ours)
                self.ratios.setdefault((name, way), []).append(stock[frames] / ours)

    def ways(self) -> dict[str, dict[str, Any]]:
        """Our ways to answer, and the decoder's settings for each."""
        ways: dict[str, dict[str, Any]] = {"letters": {"prefix_cache_mb": 0}, "prefix": {}}
        return ways | ({"drafts": {"drafts": self.drafts}} if self.drafts else {})

    def stock(self, memory: Memory) -> float:
        """Median seconds of stock generation."""
        return statistics.median(self.timed(self._generate, self.prompts(memory, step)) for step in self.steps[1:])

    def ours(self, name: str, way: str, memory: Memory, settings: dict[str, Any]) -> float:
        """Median seconds of one of `ways` with this memory, whose counts are kept under both names."""
        decoder = Replaying(self.model, self.encoder, temperature=1.0, **settings)
        decoder.answers = self.answers
        decoder.decode(self.prompts(memory, self.steps[0]))
        decoder.counts = type(decoder.counts)()
        times = [self.timed(decoder.decode, self.prompts(memory, step)) for step in self.steps[1:]]
        counts = decoder.counts
        self.counts[name, way] = {
            "passes_per_answer": round(counts.passes_of_answers / counts.answers, 2),
            "reused": round(counts.tokens_reused / counts.tokens, 3),
        }
        return statistics.median(times)

    def prompts(self, memory: Memory, step: int) -> list[Prompt]:
        """What all walks ask at a step."""
        shown = [*memory.select(step), step]
        return [
            Prompt(INSTRUCTION, [self.frames[walk, i] for i in shown], [(walk, i) for i in shown], walk)
            for walk in range(self.options.walks)
        ]

    def _generate(self, prompts: list[Prompt]) -> None:
        queries = [self.encoder.query(prompt.instruction, prompt.frames, prompt.keys) for prompt in prompts]
        batch = self.encoder.prompts(queries, self.model.device, single_slot=False)
        tokens, model = self.answer_tokens, self.model
        generate: Any = getattr(model, "generate")  # noqa: B009 - PreTrainedModel alone has none
        with torch.inference_mode(), as_transformers_made_it(model):
            generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

    def timed(self, function: Callable[[list[Prompt]], object], prompts: list[Prompt]) -> float:
        """Seconds of one call, until the device has finished."""
        on_gpu = self.model.device.type == "cuda"
        clock = time.perf_counter if on_gpu else time.process_time
        start = clock()
        function(prompts)
        if on_gpu:
            torch.cuda.synchronize()
        return clock() - start

    def report(self) -> None:
        """Print the table, and write it."""
        print(f"{'memory':16} {'way':8}  reused  passes  stock s    ours  least  median")
        rows = []
        for (name, way), ratios in self.ratios.items():
            row = {"memory": name, "way": way, **self.counts[name, way]}
            row["stock_seconds"] = round(statistics.median(self.seconds[name, "stock"]), 4)
            row["seconds"] = round(statistics.median(self.seconds[name, way]), 4)
            row |= {"ratio_min": round(min(ratios), 2), "ratio_median": round(statistics.median(ratios), 2)}
            rows.append(row)
            print(
                f"{name:16} {way:8} {row['reused']:7.0%} {row['passes_per_answer']:7.2f} "
                f"{row['stock_seconds']:8.3f} {row['seconds']:7.3f} {row['ratio_min']:6.1f} {row['ratio_median']:7.1f}"
            )
        if self.options.json:
            settings = {name: str(value) for name, value in vars(self.options).items()}
            about = {"about": self.about(), "options": settings}
            self.options.json.write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n")


@contextmanager
def as_transformers_made_it(model: PreTrainedModel) -> Iterator[None]:
    """Within, the model is without `speed_up_vision` and its like, which replace methods of instances."""
    replaced = [(module, module.__dict__.pop("forward")) for module in model.modules() if "forward" in vars(module)]
    try:
        yield
    finally:
        for module, method in replaced:
            module.forward = method


def recorded(options: argparse.Namespace) -> tuple[Answers, Answers]:
    """Drafts, and the answers that are given: those of other walks, as they are asked for."""
    n, together = options.num_actions, options.walks * options.samples
    wanted = options.queries * together
    if not (options.ego / "meta.json").is_file():
        print(f"{options.ego} is not there: answers are at random, which no draft says beforehand")
        drawn = np.random.default_rng(0).integers(1, len(Action), (wanted + together, n))
        return (), [[Action(a) for a in answer] for answer in drawn]
    ego = VLNEgo(options.ego)
    known: Records = ego.records(make_memory("current"), n)
    known.episodes, others = known.episodes[::2], known.episodes[1::2]
    asked = [
        next_actions(episode.actions, step, n)
        for episode in others
        for step in range(0, len(episode.actions), options.horizon)
    ]
    drafts = choose_drafts(known.frequent_answers(32), options.drafts, n, torch.device(options.device).type)
    # A few that stand for all: quantiles by the passes that they take.
    asked.sort(key=lambda answer: (passes(answer, drafts), answer))
    chosen = [asked[int((k + 0.5) / wanted * len(asked))] for k in np.random.default_rng(0).permutation(wanted)]
    return drafts, [*chosen[:together], *chosen]  # the first query is not timed


if __name__ == "__main__":
    main()
