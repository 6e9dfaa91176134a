"""What share of a prompt is what the last prompt of its walk began with, for each memory over the steps of a walk.

    python benchmarks/reuse.py --json reuse.json --picture docs/images/reuse.png

Exact, by the same rule as `PrefixCache`: tokens, and whole frames by their identity. Frames of 256² pixels (81 tokens
each), an instruction of some thirty words; a query every --horizon steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.decoding import MEMORIES
from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.query import common_beginning
from habitat_vlnr1.lvlm.tiny import build_processor, build_tokenizer
from habitat_vlnr1.memory import Memory, make_memory
from habitat_vlnr1.prompt import get_template

INSTRUCTION = (
    "Walk past the kitchen counter and through the door behind it, turn left at the end of the hall, go down the "
    "stairs and wait beside the second door on your right."
)


def shares(encoder: PromptEncoder, memory: Memory, steps: int, horizon: int) -> list[float]:
    """The share at t = horizon … steps of what the query `horizon` steps before began with."""
    frame = np.zeros((256, 256, 3), dtype=np.uint8)
    queries = []
    for t in range(steps + 1):
        shown = [*memory.select(t), t]
        queries.append(encoder.query(INSTRUCTION, [frame] * len(shown), shown))
    pairs = zip(queries[horizon:], queries, strict=False)
    return [common_beginning([now, last])[0] / len(now.ids) for now, last in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--horizon", type=int, nargs="+", default=[6, 1], help="steps between queries")
    parser.add_argument("--budget", type=int, default=16, help="history frames")
    parser.add_argument("--template", default="frames_last", help="how the model is asked; vln_ego: as released")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    space = ActionSpace(0.25, 15)
    processor = build_processor(build_tokenizer([INSTRUCTION, *space.options()], space), 252)
    encoder = PromptEncoder(processor, get_template(options.template), 6, space)
    found: dict[str, dict[str, list[float]]] = {}
    for horizon in options.horizon:
        for name, settings in MEMORIES.items():
            own = shares(encoder, make_memory(budget=options.budget, **settings), options.steps, horizon)
            found.setdefault(str(horizon), {})[name] = own
            late = own[2 * options.budget :]
            full = f"from t = {2 * options.budget} {np.mean(late):4.0%}"
            print(f"every {horizon} steps, {name:16} mean {np.mean(own):4.0%}, {full}")
    if options.json:
        rounded = {h: {name: [round(s, 4) for s in own] for name, own in by.items()} for h, by in found.items()}
        options.json.write_text(json.dumps(rounded) + "\n")
    if options.picture:
        draw(found, options.picture)


def draw(found: dict[str, dict[str, list[float]]], picture: Path) -> None:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(found), sharey=True))
    for axes, (horizon, by_memory) in zip(panels, found.items(), strict=True):
        for name, own in by_memory.items():
            steps = range(int(horizon), int(horizon) + len(own))
            axes.plot(steps, own, label=f"{name} ({np.mean(own):.0%})", linewidth=1)
        every = "every step" if horizon == "1" else f"every {horizon} steps"
        axes.set(title=f"a query {every}", xlabel="step t", ylim=(0, 1))
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    panels[0].set_ylabel("share of the prompt that is reused")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
