"""Results of an evaluation on disk: one line per episode as it goes, a summary, and the table.

    <results_dir>/<policy>/<split>/episodes.jsonl   one line per finished episode (`habitat_vlnr1.episode_log`)
                                   summary.json     the averages

`python -m habitat_vlnr1.results RESULTS_DIR…` prints the table of every summary below the given folders, so that
policies evaluated by different commands stand side by side. Rates are 0–1, lengths are metres.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from habitat_vlnr1.errors import ResultsError
from habitat_vlnr1.files import is_text, read_json, write_atomically

METRICS = ("SR", "OS", "SPL", "NE", "TL", "nDTW", "sDTW")
"""Success rate, oracle success, success weighted by path length, navigation error (m), trajectory length (m),
normalised dynamic time warping and the same times success."""

_DIGITS = {"NE": 2, "TL": 2}


LISTED = 20
"""How many episodes of one reason are printed by id; all are in summary.json."""


class LeftOut(NamedTuple):
    """An episode that is in no average and no export, and why. `scene_id` is as in the dataset's file."""

    episode_id: str
    scene_id: str
    reason: str


def left_out_text(left_out: Iterable[LeftOut]) -> list[str]:
    """One line per reason: `'no way from start to goal: 12, 17'`."""
    by_reason: dict[str, list[str]] = {}
    for entry in left_out:
        by_reason.setdefault(entry.reason, []).append(entry.episode_id)
    return [
        f"{reason}: {', '.join(ids[:LISTED])}" + (f" and {len(ids) - LISTED} more" if len(ids) > LISTED else "")
        for reason, ids in by_reason.items()
    ]


def print_left_out(lines: Sequence[str], where: str = "") -> None:
    """What could not be used, in a line each; the first ones where there are many.

    Args:
        where: what it is left out of, before each line.
    """
    start = f"{where}: left out" if where else "left out"
    for line in lines[:LISTED]:
        print(f"{start}: {line}")
    if len(lines) > LISTED:
        print(f"{start}: {len(lines) - LISTED} more")


def read_summary(file: Path) -> dict[str, Any]:
    """A `summary.json`.

    Raises:
        ResultsError: it is cut, or not one of an evaluation.
    """
    remedy = "evaluate again, or name folders without it"
    summary = read_json(file, remedy, ResultsError)
    kinds = {"policy": str, "split": str, "protocol": dict, "episodes": int, "standard_error": dict, "left_out": list}
    wrong = [key for key, kind in kinds.items() if not isinstance(summary.get(key), kind)]
    if not wrong:
        errors = summary["standard_error"]
        wrong = [name for name in METRICS if name not in summary or not is_metric(summary[name], name)]
        wrong += [f"standard_error.{name}" for name in METRICS if name not in errors or not is_metric(errors[name])]
        wrong += ["standard_error.SR"] if summary.get("SR") is not None and errors.get("SR") is None else []
        wrong += ["left_out"] if not all(map(_is_left_out, summary["left_out"])) else []
    if wrong:
        raise ResultsError(f"{file}: not the summary of an evaluation ({wrong[0]}); {remedy}")
    return summary


def is_metric(value: Any, name: str = "") -> bool:
    """Whether a value read from JSON is that of a metric: a number, a rate 0 … 1; None where it was none."""
    if value is None or not isinstance(value, int | float):
        return value is None
    return 0 <= value <= 1 if name in ("SR", "OS") else abs(value) < 1e300


def _is_left_out(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.keys() == set(LeftOut._fields) and all(map(is_text, entry.values()))


# ------------------------------------------------------------------------------------------------ summary.json
def summarise(
    lines: Sequence[Mapping[str, Any]],
    policy: str,
    split: str,
    protocol: Mapping[str, Any],
    left_out: Sequence[LeftOut] = (),
) -> dict[str, Any]:
    """Averages over episodes, with standard errors (binomial for SR and OS, of the mean for the others).

    An episode that is `unusable` (a start or goal off the navmesh), or in which a metric is NaN, infinite or missing,
    enters no average; it is listed under `left_out` with the reason, after those that could not be walked at all
    (the argument `left_out`). A metric that no episode has (a test split) is null.
    """
    known = [name for name in METRICS if any(name in line["metrics"] for line in lines)]
    reasons = [_why_left_out(line, known) for line in lines]
    good = [line for line, reason in zip(lines, reasons, strict=True) if not reason]
    summary: dict[str, Any] = {"policy": policy, "split": split, "protocol": dict(protocol), "episodes": len(good)}
    errors: dict[str, float | None] = {}
    for name in METRICS:
        values = [line["metrics"][name] for line in good] if name in known else []
        summary[name], errors[name] = _mean_and_error(values, binomial=name in ("SR", "OS"))
    summary["standard_error"] = errors
    summary["steps"] = sum(line["steps"] for line in good) / len(good) if good else None
    summary["invalid_answers"] = sum(line["invalid_answers"] for line in good)
    summary["seconds"] = round(sum(line["seconds"] for line in good), 3)
    found = [
        LeftOut(line["episode_id"], line["scene_id"], reason)
        for line, reason in zip(lines, reasons, strict=True)
        if reason
    ]
    summary["left_out"] = [entry._asdict() for entry in (*left_out, *found)]
    return summary


def _why_left_out(line: Mapping[str, Any], known: Iterable[str]) -> str:
    """`'NE is inf, SPL is nan'`, or nothing when every metric is a number."""
    if line.get("unusable"):
        return line["unusable"]
    was = line["non_finite"]
    return ", ".join(f"{n} is {was.get(n, 'missing')}" for n in known if line["metrics"].get(n) is None)


def _mean_and_error(values: Sequence[float], binomial: bool) -> tuple[float | None, float | None]:
    n = len(values)
    if not n:
        return None, None
    mean = sum(values) / n
    if binomial:
        return mean, math.sqrt(mean * (1 - mean) / n)
    if n == 1:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(Path(path), text.encode())


# ---------------------------------------------------------------------------------------------------- the table
def table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, one row per summary; SR carries its binomial standard error.

    Below it stand the episodes that were left out of the averages, by policy and id.
    """
    splits = len({(s["split"], json.dumps(s["protocol"], sort_keys=True)) for s in summaries}) > 1
    where = ["split", "protocol"] if splits else []
    rows = [["policy", *where, "episodes", *METRICS]]
    for s in summaries:
        place = [s["split"], str(s["protocol"].get("name", ""))] if splits else []
        rows.append([s["policy"], *place, str(s["episodes"]), *(_cell(s, name) for name in METRICS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = 1 + len(where)
    text = ["| " + " | ".join(_pad(row, widths, left)) + " |" for row in rows]
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    text.insert(1, "| " + " | ".join(rule) + " |")
    for s in summaries:
        if s["left_out"]:
            why = "; ".join(left_out_text(LeftOut(**entry) for entry in s["left_out"]))
            text.append(f"{s['policy']}: {len(s['left_out'])} episodes are not in the averages: {why}")
    return "\n".join(text)


def _pad(row: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    return [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]


def _cell(summary: Mapping[str, Any], name: str) -> str:
    value = summary[name]
    if value is None:
        return "–"
    digits = _DIGITS.get(name, 3)
    error = summary["standard_error"][name]
    return f"{value:.{digits}f} ± {error:.{digits}f}" if name == "SR" else f"{value:.{digits}f}"


def protocol_text(protocol: Mapping[str, Any]) -> str:
    """`'protocol r2r: forward_step 0.25, turn_angle 15.0, …'`, printed before every evaluation."""
    rest = ", ".join(f"{key} {value}" for key, value in protocol.items() if key != "name")
    return f"protocol {protocol.get('name', '?')}: {rest}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of all summaries below some folders."""
    parser = argparse.ArgumentParser(prog="python -m habitat_vlnr1.results", description=main.__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="results folders")
    options = parser.parse_args(arguments)
    found = sorted(path for folder in options.folders for path in folder.rglob("summary.json"))
    if not found:
        parser.error(f"no summary.json below {' '.join(map(str, options.folders))}; evaluate a policy first")
    try:
        print(table([read_summary(path) for path in found]))
    except ResultsError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
