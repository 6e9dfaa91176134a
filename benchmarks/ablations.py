"""Tables, tests and plots of the ablations (`--config-name=vlnr1_ablations`), from the episode lines of their runs.

    python benchmarks/ablations.py data/vlnr1/ablations/embedded_counting --output ablations

Reads `<folder>/<setting>/seed_<seed>/…/results/<row>/<split>` and writes `ablations.md`, `ablations.json` and a PNG
for each sub-table. A run counts when it has its `summary.json`; those that do not are named.

- Means are over seeds. Two standard errors stand behind each: over seeds (each one's mean is a sample), and in
  parentheses over episodes (each one's mean over the seeds is a sample).
- Tests are paired: every setting against the paper's choice, on the episodes that both have, of the seeds that both
  have. SR and OS: McNemar's exact test over all (episode, seed) pairs. SPL and NE: signs of the episodes' differences,
  averaged over seeds, flipped at random 10,000 times. All are two-sided and not corrected for their number.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from habitat_vlnr1.episode_log import episode_key, read_episodes
from habitat_vlnr1.errors import ResultsError
from habitat_vlnr1.results import write_json

METRICS = ("SR", "OS", "SPL", "NE")
LEVEL = 0.05
"""Of a test, below which two settings are told apart."""
Values = dict[str, dict[str, float]]
"""Episode → metric → value, of one run."""


@dataclass(frozen=True)
class SubTable:
    """One of Table 3's parts.

    Args:
        title: as printed.
        settings: value → option of `vlnr1/ablation`, in the order of the table.
        chosen: the paper's choice among the values.
        paper: value → (SR, OS) in per cent as the paper has them; None where it is not legible or not given.
        rows: value → row of the evaluation; `all_executed` where it is not named.
    """

    title: str
    settings: Mapping[str, str]
    chosen: str
    paper: Mapping[str, tuple[float | None, float | None]]
    rows: Mapping[str, str] = field(default_factory=dict)


N_SETTINGS = {"1": "actions_1", "4": "actions_4", "6": "stage_1", "8": "actions_8"}
N_PAPER = {"1": (15.1, 33.6), "4": (21.4, 29.6), "6": (24.9, 31.7), "8": (22.7, 30.4)}
MEMORIES = {
    "uniform_8": "memory_uniform_8",
    "uniform_16": "memory_uniform_16",
    "exponential": "memory_exponential",
    "long_short": "stage_1",
    "anchored": "memory_anchored",
    "anchored_blocks": "memory_anchored_blocks",
    "current": "memory_current",
}
MEMORY_PAPER = {
    "uniform_8": (20.8, 28.9),
    "uniform_16": (22.0, 31.3),
    "exponential": (23.8, 34.3),
    "long_short": (24.9, 31.7),
}
TABLES = {
    "actions": SubTable("Table 3a: predicted actions n, all executed", N_SETTINGS, "6", N_PAPER),
    "actions_one_executed": SubTable(
        "Table 3a: predicted actions n, one executed",
        N_SETTINGS,
        "6",
        N_PAPER,
        {"4": "one_executed", "6": "one_executed", "8": "one_executed"},  # of n = 1 they are the same
    ),
    "memory": SubTable("Table 3b: memory", MEMORIES, "long_short", MEMORY_PAPER),
    "memory_blind": SubTable(
        "Beside Table 3b: the same checkpoints with every frame black",
        MEMORIES,
        "long_short",
        paper={},
        rows=dict.fromkeys(MEMORIES, "blind"),
    ),
    "group": SubTable(
        "Table 3c: answers of a group G, stage 2",
        {"2": "group_2", "4": "group_4", "6": "group_6", "8": "stage_2"},
        "8",
        {"2": (24.7, 32.5), "4": (26.5, 35.4), "6": (28.4, 37.2), "8": (None, None)},
    ),
    "reward": SubTable(
        "Table 3d: reward, stage 2",
        {"hard": "reward_hard", "uniform": "reward_uniform", "linear": "reward_linear", "time_decayed": "stage_2"},
        "time_decayed",
        {"hard": (23.8, 32.3), "uniform": (25.0, 33.0), "linear": (None, 33.6), "time_decayed": (None, None)},
    ),
}


# --------------------------------------------------------------------------------------------------- what was measured
def run_folder(root: Path, setting: str, seed: int, row: str, split: str) -> Path:
    """Where a run's episodes are, after one stage or two."""
    results = "rft/results" if setting.startswith(("stage_2", "group_", "reward_")) else "results"
    return root / setting / f"seed_{seed}" / results / row / split


def read_run(folder: Path) -> Values | str:
    """The episodes of a finished run that have all metrics, or why there are none."""
    lines = folder / "episodes.jsonl"
    if not (folder / "summary.json").is_file():
        parts = sorted(folder.glob("episodes*.jsonl"))
        done = sum(len(read_episodes(part)) for part in parts)
        return f"unfinished ({done} episodes)" if parts else "missing"
    values = {
        episode_key(line): {name: line["metrics"].get(name) for name in METRICS}
        for line in read_episodes(lines)
        if not line.get("unusable")
    }
    whole = {key: own for key, own in values.items() if None not in own.values()}
    return whole or "has no episode with all metrics"


def read_table(root: Path, table: SubTable, seeds: Sequence[int], split: str) -> tuple[dict[str, Any], list[str]]:
    """Value → seed → episodes, of the finished runs; and a line for each of the others."""
    found: dict[str, dict[int, Values]] = {value: {} for value in table.settings}
    absent = []
    for (value, setting), seed in itertools.product(table.settings.items(), seeds):
        folder = run_folder(root, setting, seed, table.rows.get(value, "all_executed"), split)
        run = read_run(folder)
        if isinstance(run, str):
            absent.append(f"{folder}: {run}")
        else:
            found[value][seed] = run
    return found, absent


# --------------------------------------------------------------------------------------------------------- statistics
def mean_and_errors(runs: Mapping[int, Values], metric: str) -> dict[str, Any]:
    """Mean over seeds, its standard error over seeds and over episodes; null where there is one alone."""
    by_seed = {seed: float(np.mean([own[metric] for own in run.values()])) for seed, run in runs.items()}
    episodes: dict[str, list[float]] = {}
    for run in runs.values():
        for key, own in run.items():
            episodes.setdefault(key, []).append(own[metric])
    return {
        "mean": float(np.mean([*by_seed.values()])),
        "error_over_seeds": standard_error([*by_seed.values()]),
        "error_over_episodes": standard_error([float(np.mean(own)) for own in episodes.values()]),
        "by_seed": by_seed,
    }


def standard_error(samples: Sequence[float]) -> float | None:
    """Of the mean of independent samples; None of one alone."""
    return float(np.std(samples, ddof=1) / math.sqrt(len(samples))) if len(samples) > 1 else None


def mcnemar(alone: int, other_alone: int) -> float:
    """The exact two-sided p of so many pairs in which the one, or the other, succeeds alone."""
    n, low = alone + other_alone, min(alone, other_alone)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(low + 1)) / 2**n)


def sign_flips(differences: Sequence[float], times: int = 10_000) -> float:
    """The two-sided p of a mean difference under random signs, always drawn alike."""
    own = np.asarray(differences, dtype=float)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(times, len(own)))
    as_far = np.abs(signs @ own) >= abs(own.sum()) - 1e-9
    return float((1 + as_far.sum()) / (1 + times))


def compare(runs: Mapping[int, Values], chosen: Mapping[int, Values]) -> dict[str, Any] | None:
    """Paired tests of a setting against the paper's choice; None where no seed and episode is in both."""
    pairs = [
        (key, runs[seed][key], chosen[seed][key])
        for seed in sorted(runs.keys() & chosen.keys())
        for key in sorted(runs[seed].keys() & chosen[seed].keys())
    ]
    if not pairs:
        return None
    told: dict[str, Any] = {"pairs": len(pairs)}
    for metric in ("SR", "OS"):
        alone = sum(own[metric] > other[metric] for _, own, other in pairs)
        other_alone = sum(own[metric] < other[metric] for _, own, other in pairs)
        told[metric] = {"alone": alone, "chosen_alone": other_alone, "p": mcnemar(alone, other_alone)}
    for metric in ("SPL", "NE"):
        by_episode: dict[str, list[float]] = {}
        for key, own, other in pairs:
            by_episode.setdefault(key, []).append(own[metric] - other[metric])
        means = [float(np.mean(own)) for own in by_episode.values()]
        difference = float(np.mean([own[metric] - other[metric] for _, own, other in pairs]))
        told[metric] = {"difference": difference, "p": sign_flips(means)}
    return told


def better_in_paper(table: SubTable) -> list[tuple[str, str]]:
    """Pairs (better, worse) by the paper's SR; its choice is better than all else that it has, printed or not."""
    pairs = []
    for a, b in itertools.permutations(table.paper, 2):
        first, second = table.paper[a][0], table.paper[b][0]
        printed = first is not None and second is not None and first > second
        if printed or (a == table.chosen and (first is None or second is None)):
            pairs.append((a, b))
    return pairs


def statements(table: SubTable, found: Mapping[str, Mapping[int, Values]]) -> list[str]:
    """What of the paper's order by SR holds here, a line each; of seeds that both settings have."""
    lines = []
    for better, worse in better_in_paper(table):
        test = compare(found[worse], found[better])
        if test is None:
            lines.append(f"{better} above {worse}: not measured")
            continue
        more, less, p = test["SR"]["chosen_alone"], test["SR"]["alone"], test["SR"]["p"]
        apart = f"p = {p:.2g}"
        if more == less:
            verdict = "equal here"
        elif p >= LEVEL:
            verdict = f"not told apart here; {'the same' if more > less else 'the opposite'} direction"
        else:
            verdict = "holds here" if more > less else "the opposite here"
        lines.append(f"{better} above {worse}: {verdict} ({more} against {less} of {test['pairs']} pairs, {apart})")
    return lines


def collect(root: Path, seeds: Sequence[int], split: str = "val_unseen") -> dict[str, Any]:
    """All sub-tables, as they go into the JSON file.

    Raises:
        ResultsError: there is not one finished run, or a run's lines are damaged.
    """
    report: dict[str, Any] = {"seeds": list(seeds), "split": split, "tables": {}}
    for name, table in TABLES.items():
        found, absent = read_table(root, table, seeds, split)
        values = {
            value: {
                "setting": table.settings[value],
                "seeds": sorted(runs),
                "episodes": sum(map(len, runs.values())),
                **{metric: mean_and_errors(runs, metric) for metric in METRICS},
                "against_chosen": None if value == table.chosen else compare(runs, found[table.chosen]),
                "paper": table.paper.get(value),
            }
            for value, runs in found.items()
            if runs
        }
        order = statements(table, found)
        report["tables"][name] = {
            **{"title": table.title, "chosen": table.chosen, "values": values},
            **{"order_of_the_paper": order, "absent": absent},
        }
    if not any(part["values"] for part in report["tables"].values()):
        raise ResultsError(
            f"{root}: no finished run of seeds {', '.join(map(str, seeds))}: run `python -m habitat_baselines.run -m "
            "--config-name=vlnr1_ablations` first, or name its folder data/vlnr1/ablations/<source>"
        )
    return report


# ------------------------------------------------------------------------------------------------------- as it is read
def markdown(report: Mapping[str, Any]) -> str:
    """Every sub-table, with what of the paper's order holds and which runs are absent."""
    parts = [
        "Mean over seeds ± standard error over seeds (over episodes). p: paired, against the paper's choice (bold), "
        "not corrected for the number of tests. Paper: SR / OS of Qwen2-VL-7B on R2R, per cent."
    ]
    for part in report["tables"].values():
        lines = [
            f"## {part['title']}\n",
            "| value | seeds | episodes | SR | OS | SPL | NE | alone : chosen alone "
            "| p SR | p OS | p SPL | p NE | paper |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            *(_row(value, own, value == part["chosen"]) for value, own in part["values"].items()),
            "",
            *(f"- {line}" for line in part["order_of_the_paper"]),
        ]
        parts.append("\n".join(lines))
        if part["absent"]:
            parts.append("Not in the table:\n\n" + "\n".join(f"- {line}" for line in part["absent"]))
    return "\n\n".join(parts) + "\n"


def _row(value: str, own: Mapping[str, Any], chosen: bool) -> str:
    cells = [f"**{value}**" if chosen else value, str(len(own["seeds"])), str(own["episodes"])]
    for metric in METRICS:
        digits = 2 if metric == "NE" else 3
        seeds, episodes = (_number(own[metric][f"error_over_{what}"], digits) for what in ("seeds", "episodes"))
        cells.append(f"{own[metric]['mean']:.{digits}f} ± {seeds} ({episodes})")
    test = own["against_chosen"]
    cells.append(f"{test['SR']['alone']} : {test['SR']['chosen_alone']}" if test else "")
    cells += [f"{test[metric]['p']:.2g}" if test else "" for metric in METRICS]
    cells.append(" / ".join(_number(figure, 1) for figure in own["paper"]) if own["paper"] else "")
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def draw(part: Mapping[str, Any], picture: Path) -> None:
    """Means with the larger of their two errors, and each seed; rates left, metres right."""
    names = list(part["values"])
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    rates, metres = figure.subplots(1, 2, width_ratios=[2, 1])
    for number, metric in enumerate(METRICS):
        axes = metres if metric == "NE" else rates
        shift = 0.0 if metric == "NE" else (number - 1) * 0.15
        for place, name in enumerate(names):
            own = part["values"][name][metric]
            error = max(own["error_over_seeds"] or 0.0, own["error_over_episodes"] or 0.0)
            label = metric if place == 0 else None
            axes.errorbar(place + shift, own["mean"], error, fmt="o", color=f"C{number}", capsize=3, label=label)
            dots = list(own["by_seed"].values())
            axes.plot([place + shift + 0.05] * len(dots), dots, ".", color=f"C{number}", alpha=0.4, markersize=4)
    for axes, label in ((rates, "rate"), (metres, "NE (m)")):
        axes.set_xticks(range(len(names)), [f"{name}*" if name == part["chosen"] else name for name in names])
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
        if max(map(len, names)) > 6:  # longer than their places are wide
            axes.tick_params(axis="x", rotation=30)
            for tick in axes.get_xticklabels():
                tick.set(ha="right", rotation_mode="anchor")
    rates.legend(fontsize=8)
    figure.suptitle(f"{part['title']}  (* the paper's choice)", fontsize=10)
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="vlnr1.ablation.root of the sweep: data/vlnr1/ablations/<source>")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="val_unseen")
    parser.add_argument("--output", type=Path, default=Path("ablations"), help="folder of table, JSON and plots")
    options = parser.parse_args()
    try:
        report = collect(options.folder, options.seeds, options.split)
    except ResultsError as error:
        raise SystemExit(f"error: {error}") from None
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "ablations.json", report)
    text = markdown(report)
    (options.output / "ablations.md").write_text(text, encoding="utf-8")
    for name, part in report["tables"].items():
        if part["values"]:
            draw(part, options.output / f"{name}.png")
    print(text)


if __name__ == "__main__":
    main()
