"""Results of an evaluation on disk: one line per episode as it goes, a summary, and the table.

    <results_dir>/<policy>/<split>/run.json         what was evaluated (the identity that a resumed run must match)
                                   episodes.jsonl   one line per finished episode, appended while it runs
                                   summary.json     the averages

`python -m habitat_vlnr1.results RESULTS_DIR…` prints the table of every summary below the given folders, so that
policies evaluated by different commands stand side by side. Rates are 0–1, lengths are metres.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from habitat_vlnr1.errors import ResultsError
from habitat_vlnr1.files import (
    differences,
    drop_half_line,
    full_disk_is_said,
    is_text,
    parse_json,
    read_json,
    write_atomically,
)
from habitat_vlnr1.lock import FolderLock

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


# ---------------------------------------------------------------------------------------------- episodes.jsonl
class EpisodeLog:
    """The lines of one evaluation, on disk as soon as they are known.

    Opening a folder that already has lines resumes it, if its identity (protocol, policy, checkpoint, …) is the
    same; a last line cut short by an interruption is dropped.

    Args:
        folder: `<results_dir>/<policy>/<split>`.
        identity: JSON-able description of everything that the results depend on.

    Raises:
        ResultsError: the folder holds the results of something else.
        FolderInUse: another evaluation writes there.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]):
        self.folder = Path(folder)
        self.path = self.folder / "episodes.jsonl"
        self.lines: dict[str, dict[str, Any]] = {}
        self._lock = FolderLock(self.folder)
        try:
            self._open(json.loads(json.dumps(identity)))
        except BaseException:
            self._lock.release()
            raise

    def _open(self, identity: dict[str, Any]) -> None:
        run = self.folder / "run.json"
        if self.path.exists():
            self._check_identity(run, identity)
            drop_half_line(self.path)
            self.lines = {episode_key(line): line for line in _parse(self.path, whole=True)}
        write_json(run, identity)
        self._file = self.path.open("a", encoding="utf-8")

    def _check_identity(self, run: Path, identity: Mapping[str, Any]) -> None:
        remedy = f"choose another vlnr1.results_dir or delete {self.folder}"
        if not run.exists():
            raise ResultsError(f"{self.path} has no run.json beside it that says what it holds; {remedy}")
        there = read_json(run, remedy, ResultsError)
        if "task" in identity and "task" not in there:
            raise ResultsError(
                f"{run} does not say which episodes its results are of (an older version wrote it); {remedy}"
            )
        changed = differences(there, identity)
        if changed:
            raise ResultsError(f"{self.path} holds results of another run ({'; '.join(changed[:5])}); {remedy}")

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one finished episode (`episode_line`) and flush it."""
        with full_disk_is_said(self.path):
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        self.lines[episode_key(line)] = dict(line)

    def close(self) -> None:
        """Let another process go on."""
        with suppress(OSError):  # a full disk: the line that does not fit has been said
            self._file.close()
        self._lock.release()


def episode_key(line: Mapping[str, Any]) -> str:
    """Identity of an episode: ids are unique within a scene, as Habitat counts them."""
    return f"{line['scene_id']}:{line['episode_id']}"


def episode_line(metrics: Mapping[str, float], **facts: Any) -> dict[str, Any]:
    """One line of episodes.jsonl. JSON knows no NaN: such metrics become null and `non_finite` says what they were."""
    non_finite = {name: str(float(value)) for name, value in metrics.items() if not math.isfinite(value)}
    finite = {name: None if name in non_finite else round(float(value), 6) for name, value in metrics.items()}
    return {**facts, "metrics": finite, "non_finite": non_finite}


def read_episodes(path: str | Path) -> list[dict[str, Any]]:
    """The complete lines of an `episodes.jsonl`, leaving the file as it is (it may still be being written).

    Raises:
        ResultsError: a line other than the last is not JSON, or not an episode's.
    """
    return _parse(Path(path))


def _parse(path: Path, whole: bool = False) -> list[dict[str, Any]]:
    """The complete lines. A line without its newline is one cut short; `whole` asks for all that a summary needs."""
    content = path.read_bytes()
    lines = []
    for number, raw in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        line = parse_json(raw, f"{path}, line {number}", "delete that line", ResultsError)
        keys = _LINE if whole else _KEY
        wrong = [(key, line.get(key)) for key in keys if not isinstance(line.get(key), _LINE[key])]
        if whole and not wrong:
            wrong = [(name, value) for name, value in line["metrics"].items() if not _is_metric(value, name)]
            wrong += [(key, line[key]) for key in ("steps", "invalid_answers", "seconds") if not 0 <= line[key] < 1e9]
        for key, value in wrong[:1]:
            raise ResultsError(f"{path}, line {number}: not an episode's line ({key} is {value!r}); delete that line")
        lines.append(line)
    return lines


_LINE = {
    **{"scene_id": str, "episode_id": str, "metrics": dict, "non_finite": dict},
    **{"steps": int, "invalid_answers": int, "seconds": int | float},
}
"""What an episode's line has at least."""
_KEY = ("scene_id", "episode_id")


def _is_metric(value: Any, name: str = "") -> bool:
    """A number, or None where it is none; a rate is 0 … 1."""
    if value is None or not isinstance(value, int | float):
        return value is None
    return 0 <= value <= 1 if name in ("SR", "OS") else abs(value) < 1e300


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
        wrong = [name for name in METRICS if name not in summary or not _is_metric(summary[name], name)]
        wrong += [f"standard_error.{name}" for name in METRICS if name not in errors or not _is_metric(errors[name])]
        wrong += ["standard_error.SR"] if summary.get("SR") is not None and errors.get("SR") is None else []
        wrong += ["left_out"] if not all(map(_is_left_out, summary["left_out"])) else []
    if wrong:
        raise ResultsError(f"{file}: not the summary of an evaluation ({wrong[0]}); {remedy}")
    return summary


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
