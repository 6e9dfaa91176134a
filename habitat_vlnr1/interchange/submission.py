"""Submission files of the R2R-CE and RxR-CE leaderboards, made from an evaluation's `episodes.jsonl` and checked.

R2R-CE (VLN-CE challenge), JSON:

    {"<episode_id>": [{"position": [x, y, z], "heading": radians, "stop": false}, …], …}     the initial state first

RxR-CE (RxR-Habitat challenge), JSON lines sorted by instruction:

    {"instruction_id": 1, "path": [[x, y, z], …]}                                            changed positions only

Both are what VLN-CE's own inference writes. Goals play no part, so the split `test` is like any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from habitat_vlnr1.episode_log import read_episodes
from habitat_vlnr1.errors import SubmissionError
from habitat_vlnr1.files import write_atomically

MOST_STEPS = 500  # of an episode, in VLN-CE


def write_submission(
    kind: str, results: Path, output: Path, expected: Iterable[str] | None = None
) -> tuple[Path, int]:
    """Make, check and write a submission file.

    Args:
        kind: `r2r` or `rxr`.
        results: the evaluation's `<policy>/<split>` folder.
        output: folder of the new file.
        expected: ids that the file must hold and no others (of episodes, RxR: of instructions); None: not known.

    Returns:
        The file, `<policy>_<split>_<kind>.json[l]`, and how many episodes are in it.

    Raises:
        SubmissionError: the file would not be valid; nothing is written then.
    """
    lines = results / "episodes.jsonl"
    if not lines.is_file():
        raise SubmissionError(f"{lines}: no such file; evaluate first (vlnr1.convert.input=<policy>/<split>)")
    make, check, suffix = KINDS[kind]
    content = make(read_episodes(lines))
    check(content, expected)
    rows = [json.dumps(content)] if isinstance(content, dict) else [json.dumps(row) for row in content]
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{results.parent.name}_{results.name}_{kind}{suffix}"
    write_atomically(file, ("\n".join(rows) + "\n").encode())
    return file, len(content)


def r2r_submission(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The states of each episode, the initial one first; `stop` tells whether STOP led to the state."""
    content: dict[str, list[dict[str, Any]]] = {}
    for line in map(_walked, lines):
        states = zip(line["positions"], line["headings"], [None, *line["actions"]], strict=True)
        content[_new(line["episode_id"], content)] = [
            {"position": position, "heading": heading, "stop": action == 0} for position, heading, action in states
        ]
    return content


def rxr_submission(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One {"instruction_id", "path"} per episode, sorted; a position that did not change is not repeated.

    Raises:
        SubmissionError: an episode has no instruction_id (it is not from RxR), or one occurs twice.
    """
    rows: dict[int, dict[str, Any]] = {}
    for line in map(_walked, lines):
        number: Any = line.get("instruction_id")
        if not (str(number).isascii() and str(number).isdecimal() and len(str(number)) < 20):
            raise SubmissionError(
                f"episode {line['episode_id']}: instruction_id is {number!r}, not a number: is this RxR?"
            )
        path = [p for i, p in enumerate(line["positions"]) if i == 0 or p != line["positions"][i - 1]]
        rows[_new(int(number), rows)] = {"instruction_id": int(number), "path": path}
    return [rows[number] for number in sorted(rows)]


def _walked(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """The line itself, when it has a walk: an action between each state and the next."""
    columns: list[Any] = [line.get(key) for key in ("positions", "headings", "actions")]
    if not all(isinstance(column, list) for column in columns):
        raise SubmissionError(f"episode {line['episode_id']}: it lacks positions, headings or actions; evaluate again")
    positions, headings, actions = columns
    if not len(positions) == len(headings) == len(actions) + 1:
        raise SubmissionError(
            f"episode {line['episode_id']}: {len(positions)} positions, {len(headings)} headings and {len(actions)} "
            "actions do not belong together; evaluate again"
        )
    return line


def _new(key: Any, known: Mapping[Any, Any]) -> Any:
    if key in known:
        raise SubmissionError(f"{key} occurs twice: the leaderboards take one walk per episode")
    return key


# ------------------------------------------------------------------------------------------------- validation
def check_r2r(content: Any, expected: Iterable[str] | None = None) -> None:
    """Raise SubmissionError when this is not what the R2R-CE leaderboard takes; the first fault is named."""
    if not isinstance(content, dict):
        raise SubmissionError(f"an R2R-CE submission is {{episode_id: states}}, not a {type(content).__name__}")
    for name, states in content.items():
        where = f"episode {name}"
        _walk(states, where)
        for number, state in enumerate(states):
            if not isinstance(state, dict) or sorted(state) != ["heading", "position", "stop"]:
                raise SubmissionError(f"{where}, state {number}: must have just position, heading and stop")
            _point(state["position"], f"{where}, state {number}: position")
            if not _is_finite(state["heading"]):
                raise SubmissionError(f"{where}, state {number}: heading is {state['heading']!r}, not radians")
            if not isinstance(state["stop"], bool):
                raise SubmissionError(f"{where}, state {number}: stop is {state['stop']!r}, not true or false")
            if state["stop"] and number not in range(1, len(states))[-1:]:
                raise SubmissionError(f"{where}, state {number}: stop is true, but only the last action can be STOP")
    _complete(content, expected)


def check_rxr(content: Any, expected: Iterable[str] | None = None) -> None:
    """Raise SubmissionError when these rows are not what the RxR-CE leaderboard takes; the first fault is named."""
    before = None
    for number, row in enumerate(content, start=1):
        if not isinstance(row, dict) or sorted(row) != ["instruction_id", "path"]:
            raise SubmissionError(f"line {number}: must have just instruction_id and path")
        name = row["instruction_id"]
        if not isinstance(name, int) or isinstance(name, bool):
            raise SubmissionError(f"line {number}: instruction_id is {name!r}, not an integer")
        if before is not None and name <= before:
            raise SubmissionError(f"line {number}: instruction {name} follows {before}; ids ascend and occur once")
        before = name
        _walk(row["path"], f"instruction {name}")
        for index, point in enumerate(row["path"]):
            _point(point, f"instruction {name}, point {index}")
            if index and point == row["path"][index - 1]:
                raise SubmissionError(f"instruction {name}, point {index}: repeats the point before it")
    _complete([str(row["instruction_id"]) for row in content], expected)


def _walk(states: Any, where: str) -> None:
    if not isinstance(states, list) or not states:
        raise SubmissionError(f"{where}: no states")
    if len(states) > MOST_STEPS + 1:
        raise SubmissionError(f"{where}: {len(states) - 1} steps, but VLN-CE ends an episode after {MOST_STEPS}")


def _point(value: Any, what: str) -> None:
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_finite, value)):
        raise SubmissionError(f"{what} is {value!r}, not three finite numbers")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _complete(names: Iterable[str], expected: Iterable[str] | None) -> None:
    have = set(names)
    if not have:
        raise SubmissionError("no episodes")
    if expected is None:
        return
    wanted = set(expected)
    for those, what in ((wanted - have, "are missing"), (have - wanted, "are not of this split")):
        if those:
            first = sorted(those, key=lambda name: (len(name), name))[0]
            raise SubmissionError(f"{len(those)} of {len(wanted)} episodes {what}, for example {first}")


Lines = Iterable[Mapping[str, Any]]
KINDS: dict[str, tuple[Callable[[Lines], Any], Callable[..., None], str]] = {
    "r2r": (r2r_submission, check_r2r, ".json"),
    "rxr": (rxr_submission, check_rxr, ".jsonl"),
}
