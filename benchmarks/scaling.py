"""What a query costs against history length, actions per answer, samples, environments and frame size.

    python benchmarks/scaling.py --json scaling.json --picture docs/images/scaling.png        # the tiny model's shape
    python benchmarks/scaling.py --size 30M --queries 3 --json scaling_30M.json --picture scaling_30M.png

One measure after another departs from 16 history frames (`uniform`), six actions, one sample, one environment and
frames of 84². Each point is a process of its own; seconds are per query and environment, its median over the queries,
for the ways of `decoding.py`; memory is the peak of the process over what the imports take.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import resource
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.decoding import START, Bench, Replaying, model_of
from habitat_vlnr1.lvlm import tiny
from habitat_vlnr1.memory import make_memory

MEASURES: dict[str, tuple[str, tuple[int, ...]]] = {
    "budget": ("history frames", (0, 2, 4, 8, 16, 32)),
    "num_actions": ("actions per answer, n", (1, 2, 4, 6, 8)),
    "samples": ("samples of a prompt, G", (1, 2, 4, 8, 16)),
    "walks": ("environments asked together", (1, 2, 4, 8)),
    "frame": ("side of the frames, pixels", (56, 84, 112, 168, 252)),
}
"""Option → its name in the picture, and the values that it takes."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds a query by way, and MiB at the peak."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bench = Bench(*model_of(options), options)
    name = "uniform" if options.budget else "current"
    memory = make_memory(name, budget=options.budget)
    seconds = {}
    for way, settings in bench.ways().items():
        decoder = Replaying(bench.model, bench.encoder, temperature=1.0, **settings)
        decoder.answers = bench.answers
        decoder.decode(bench.prompts(memory, START), options.samples)
        ask = functools.partial(decoder.decode, samples=options.samples)
        times = [bench.timed(ask, bench.prompts(memory, step)) for step in bench.steps[1:]]
        seconds[way] = round(statistics.median(times) / options.walks, 5)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_mib": round((peak - before) / 2**10, 1)}


def draw(found: dict[str, list[dict[str, Any]]], picture: Path) -> None:
    figure = Figure(figsize=(15, 3.4), layout="constrained")
    for axes, (option, points) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        values = [point[option] for point in points]
        for way in points[-1]["seconds"]:  # of one action there is no draft
            known = [point for point in points if way in point["seconds"]]
            times = [1000 * point["seconds"][way] for point in known]
            axes.plot([point[option] for point in known], times, marker="o", label=way)
        axes.set(xlabel=MEASURES[option][0], ylabel="ms a query and environment", ylim=(0, None))
        memory = axes.twinx()
        memory.plot(values, [point["peak_mib"] for point in points], color="grey", linestyle=":", label="peak memory")
        memory.set(ylabel="MiB (dotted)", ylim=(0, None))
        axes.legend(fontsize=8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny", choices=tiny.SIZES)
    parser.add_argument("--queries", type=int, default=6, help="timed at each point")
    parser.add_argument(
        "--ego", type=Path, default=Path("data/vln_ego/embedded/train"), help="whose answers are given"
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    given = parser.parse_args()
    base: dict[str, Any] = {"budget": 16, "num_actions": 6, "samples": 1, "walks": 1, "frame": 84, "horizon": 6}
    base |= {"drafts": None, "checkpoint": None, "dtype": "float32", "device": "cpu", "memories": ["uniform"]}
    found: dict[str, list[dict[str, Any]]] = {}
    for option, (_, values) in MEASURES.items():
        for value in values:
            options = argparse.Namespace(**{**base, **vars(given), option: value})
            with multiprocessing.get_context("fork").Pool(1) as process:
                point = {option: value, **process.apply(measure, (options,))}
            print(point, flush=True)
            found.setdefault(option, []).append(point)
    given.json.write_text(json.dumps({"size": given.size, "measures": found}, indent=2) + "\n")
    draw(found, given.picture)


if __name__ == "__main__":
    main()
