"""The lines of an evaluation on disk, one per finished episode, written as it goes by one process or by several.

    <folder>/run.json                    what was evaluated (the identity that a resumed run must match)
             episodes.jsonl              one line per finished episode
             episodes-<i>-of-<n>.jsonl   the same of process i of n, until all are through and it is made part of
                                         episodes.jsonl
             given_up-<i>-of-<n>.json    episodes that the simulators of process i died of

`<folder>` is `<results_dir>/<policy>/<split>`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from habitat_vlnr1.errors import ResultsError
from habitat_vlnr1.files import (
    differences,
    drop_half_line,
    full_disk_is_said,
    parse_json,
    read_json,
    write_atomically,
)
from habitat_vlnr1.lock import FolderLock
from habitat_vlnr1.results import LeftOut, is_metric, write_json

PARTS, GIVEN_UP = "episodes-*-of-*.jsonl", "given_up-*-of-*.json"


class EpisodeLog:
    """The lines of one evaluation, on disk as soon as they are known.

    Opening a folder that already has lines resumes it, if its identity (protocol, policy, checkpoint, …) is the
    same; a last line cut short by an interruption is dropped. Several processes may fill one folder together, each a
    shard; how many they were before does not matter to those that go on.

    Args:
        folder: `<results_dir>/<policy>/<split>`.
        identity: JSON-able description of everything that the results depend on.
        shard: which of `num_shards` processes this is.
        num_shards: processes that evaluate side by side.

    Attributes:
        lines: by `episode_key`, those of all processes when this was opened, and those of this one since.

    Raises:
        ResultsError: the folder holds the results of something else, or an episode twice.
        FolderInUse: another evaluation writes there.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], shard: int = 0, num_shards: int = 1):
        self.folder = Path(folder)
        name = f"{shard}-of-{num_shards}"
        self.path = self.folder / (f"episodes-{name}.jsonl" if num_shards > 1 else "episodes.jsonl")
        self._given_up = self.folder / f"given_up-{name}.json"
        self.lines: dict[str, dict[str, Any]] = {}
        self._lock = FolderLock(self.folder, f"run-{name}")
        try:
            self._lock.alone("run-*", f"run-*-of-{num_shards}")
            self._open(json.loads(json.dumps(identity)))
        except BaseException:
            self._lock.release()
            raise

    def _open(self, identity: dict[str, Any]) -> None:
        run = self.folder / "run.json"
        if any(self.folder.glob("episodes*.jsonl")):
            self._check_identity(run, identity)
            if self.path.exists():
                drop_half_line(self.path)
        write_json(run, identity)
        self._given_up.unlink(missing_ok=True)
        with FolderLock(self.folder, "merge"):
            self.lines = self._read()
        self._file = self.path.open("a", encoding="utf-8")

    def _check_identity(self, run: Path, identity: Mapping[str, Any]) -> None:
        remedy = f"choose another vlnr1.results_dir or delete {self.folder}"
        if not run.exists():
            raise ResultsError(f"{self.folder} has episodes, but no run.json that says what they are of; {remedy}")
        there = read_json(run, remedy, ResultsError)
        if "task" in identity and "task" not in there:
            raise ResultsError(
                f"{run} does not say which episodes its results are of (an older version wrote it); {remedy}"
            )
        changed = differences(there, identity)
        if changed:
            raise ResultsError(f"{self.folder} holds results of another run ({'; '.join(changed[:5])}); {remedy}")

    def _read(self) -> dict[str, dict[str, Any]]:
        """The lines of all files; nobody may be merging them meanwhile."""
        lines: dict[str, dict[str, Any]] = {}
        for file in sorted(self.folder.glob("episodes*.jsonl")):
            for line in _parse(file, whole=True):
                key = episode_key(line)
                if lines.setdefault(key, line) != line:
                    raise ResultsError(
                        f"{file}: episode {line['episode_id']} of {line['scene_id']} was evaluated twice, with two "
                        "results: delete one of its lines"
                    )
        return lines

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one finished episode (`episode_line`) and flush it."""
        with full_disk_is_said(self.path):
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        self.lines[episode_key(line)] = dict(line)

    def give_up(self, episodes: Sequence[LeftOut]) -> None:
        """Say to the other processes which episodes will have no line. The next start tries them again."""
        if episodes:
            write_json(self._given_up, [entry._asdict() for entry in episodes])

    def close(self) -> None:
        """Let another process go on."""
        with suppress(OSError):  # a full disk: the line that does not fit has been said
            self._file.close()
        self._lock.release()

    def gather(self, wanted: Sequence[str]) -> list[LeftOut] | None:
        """Make one file of all lines when every wanted episode has been through; `lines` are then all of them.

        Args:
            wanted: `episode_key`s.

        Returns:
            The episodes that simulators died of; None: other processes are still at work, and nothing is changed.

        Raises:
            ResultsError: an episode was evaluated twice.
        """
        with FolderLock(self.folder, "merge"):
            lines, given_up = self._read(), self._read_given_up()
            if set(wanted) - lines.keys() - {episode_key(entry._asdict()) for entry in given_up}:
                return None
            self.lines = lines
            parts = [*self.folder.glob(PARTS)]
            if parts:
                text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines.values())
                write_atomically(self.folder / "episodes.jsonl", text.encode())
            for part in (*parts, *self.folder.glob(GIVEN_UP)):
                part.unlink()
        return given_up

    def _read_given_up(self) -> list[LeftOut]:
        files = sorted(self.folder.glob(GIVEN_UP))
        rows = [parse_json(file.read_bytes(), str(file), "delete it", ResultsError, list) for file in files]
        return [LeftOut(**row) for part in rows for row in part]


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
            wrong = [(name, value) for name, value in line["metrics"].items() if not is_metric(value, name)]
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
