"""An evaluation's results as the report shows them: a table per split, and the episodes with every policy's walk."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from habitat_vlnr1.episode_log import read_episodes
from habitat_vlnr1.errors import ResultsError
from habitat_vlnr1.files import read_json
from habitat_vlnr1.report.recording import WALKS, spread, walk_file
from habitat_vlnr1.results import METRICS, LeftOut, left_out_text, protocol_text, read_summary

DIGITS = {"NE": 2, "TL": 2}
NOTES = ("question", "answer", "expected")
"""Keys of an episode's line that are shown as they are: for questions about a walk, and answers to them."""


class Evaluations:
    """What was evaluated below some folders.

    Args:
        folders: results folders; of every `summary.json` below them the episodes are taken.

    Attributes:
        policies: names of the rows; where a name stands in two folders, they are told apart.
        episodes: as the page wants them, each with the walks of all policies.
        maps: of scenes, by the name that episodes have for them.

    Raises:
        ResultsError: a file of theirs is broken.
    """

    def __init__(self, folders: Sequence[Path]):
        files = sorted({path for folder in folders for path in folder.rglob("summary.json") if _is_ours(path)})
        self.summaries = [(file.parent, read_summary(file)) for file in files]
        self.names = self._names()
        self.policies = list(dict.fromkeys(self.names))
        self.maps: dict[str, dict[str, Any]] = {}
        self._episodes: dict[tuple[str, str], dict[str, Any]] = {}
        for (folder, summary), name in zip(self.summaries, self.names, strict=True):
            self._read(folder, summary, name)
        self.episodes = list(self._episodes.values())

    def _names(self) -> list[str]:
        """Of the rows; one that several folders have gets the part of the path that tells which."""
        split = [(summary["policy"], summary["split"]) for _, summary in self.summaries]
        often = {policy for (policy, _), count in Counter(split).items() if count > 1}
        return [
            f"{summary['policy']} ({folder.parent.parent})" if summary["policy"] in often else summary["policy"]
            for folder, summary in self.summaries
        ]

    def _group(self, summary: Mapping[str, Any]) -> str:
        protocols = {json.dumps(s["protocol"], sort_keys=True) for _, s in self.summaries}
        name = summary["protocol"].get("name", "")
        return f"{summary['split']} · {name}" if len(protocols) > 1 else summary["split"]

    def _read(self, folder: Path, summary: Mapping[str, Any], policy: str) -> None:
        group = self._group(summary)
        lines = folder / "episodes.jsonl"
        for line in read_episodes(lines) if lines.is_file() else ():
            scene = Path(line["scene_id"]).stem
            told = str(line.get("instruction", ""))
            key = f"{group}:{line['scene_id']}:{line['episode_id']}", told
            episode = self._episodes.setdefault(
                key, {"id": line["episode_id"], "scene": scene, "group": group, "instruction": told, "walks": {}}
            )
            facts = [[name, str(line[name])] for name in NOTES if name in line]
            if line.get("unusable"):
                facts.append(["not in the averages", line["unusable"]])
            if facts:
                episode["facts"] = facts
            episode["walks"][policy] = {**_walk(line), **self._recorded(folder, line, episode)}

    def _recorded(self, folder: Path, line: Mapping[str, Any], episode: dict[str, Any]) -> dict[str, Any]:
        """What was kept of the walk for the report; the episode gets map, reference path and goal of it."""
        file = walk_file(folder, line["scene_id"], line["episode_id"])
        if not file.is_file():
            return {}
        kept = read_json(file, "delete it", ResultsError)
        try:
            place = kept["map"]
            name = f"{episode['scene']}_{sha256(place['png'].encode()).hexdigest()[:8]}"
            self.maps.setdefault(name, place)
            episode |= {"map": name, "radius": kept["radius"], "reference": [_flat(p) for p in kept["reference_path"]]}
            episode["goal"] = None if kept["goal"] is None else _flat(kept["goal"])
            return {"answers": dict(kept["answers"]), "frames": dict(kept["frames"])}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ResultsError(f"{file}: not what an evaluation writes ({error}); delete it") from None

    def tables(self) -> list[dict[str, Any]]:
        """One per split and protocol, with standard errors."""
        groups: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
        for (_, summary), name in zip(self.summaries, self.names, strict=True):
            groups.setdefault(self._group(summary), []).append((name, summary))
        return [_table(group, rows) for group, rows in groups.items()]

    def keep_within(self, budget: int) -> int:
        """Leave out frames of some episodes, spread evenly, so that the others' stay below so many bytes.

        Returns:
            How many episodes have none left.
        """
        having = [e for e in self.episodes if any(walk.get("frames") for walk in e["walks"].values())]
        sizes = [sum(len(f) for walk in e["walks"].values() for f in walk.get("frames", {}).values()) for e in having]
        total = sum(sizes)
        fitting = len(having) if total <= budget else math.floor(len(having) * budget / total)
        kept = set(spread(len(having), fitting)) if fitting else set()
        used = 0
        for number, (episode, size) in enumerate(zip(having, sizes, strict=True)):
            if number in kept and used + size <= budget:
                used += size
                continue
            for walk in episode["walks"].values():
                walk["frames"] = {}
        return sum(not any(walk.get("frames") for walk in e["walks"].values()) for e in self.episodes)


def _is_ours(summary: Path) -> bool:
    """An export has a `summary.json` too, beside its `meta.json`; pictures of walks are below `WALKS`."""
    return not (summary.parent / "meta.json").exists() and WALKS not in summary.parts


def _flat(point: Sequence[float]) -> list[float]:
    """[x, y, z] on the map: [x, z]."""
    return [round(point[0], 2), round(point[2], 2)]


def _walk(line: Mapping[str, Any]) -> dict[str, Any]:
    """Of an episode's line: metrics, actions, and the path as x, z in cm and the heading in degrees, in one row."""
    actions = line.get("actions") or []
    path = [
        value
        for (x, _, z), heading in zip(line.get("positions") or [], line.get("headings") or [], strict=False)
        for value in (round(100 * x), round(100 * z), round(math.degrees(heading)))
    ]
    metrics = {name: value for name, value in line.get("metrics", {}).items() if name in METRICS}
    walk = {"metrics": metrics, "steps": line.get("steps", len(actions)), "stopped": line.get("stopped")}
    return {**walk, "actions": actions, **({"path": path} if path else {})}


def _table(group: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    notes = [
        f"{name}: {len(summary['left_out'])} episodes are not in the averages: {text}"
        for name, summary in rows
        for text in ["; ".join(left_out_text(LeftOut(**entry) for entry in summary["left_out"]))]
        if text
    ]
    cells = [[name, str(summary["episodes"]), *(_cell(summary, m) for m in METRICS)] for name, summary in rows]
    about = f"{protocol_text(rows[0][1]['protocol'])}. ± is one standard error; rates are 0 to 1, NE and TL in metres."
    return {
        "title": f"Results on {group}",
        "about": about,
        "columns": ["policy", "episodes", *METRICS],
        "rows": cells,
        "notes": notes,
    }


def _cell(summary: Mapping[str, Any], name: str) -> list[str | None]:
    """Value and standard error."""
    digits = DIGITS.get(name, 3)
    value, error = summary[name], summary["standard_error"][name]
    return ["–" if value is None else f"{value:.{digits}f}", None if error is None else f"{error:.{digits}f}"]
