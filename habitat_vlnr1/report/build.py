"""What lies below some folders, as one `report.html`.

`python -m habitat_vlnr1.report.build FOLDER… --output report.html` takes results folders and runs, so that policies
that different commands have evaluated stand side by side; an evaluation writes its own beside its results, and
`vlnr1.convert.to=view` that of an exported data set.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from habitat_vlnr1 import __version__
from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.errors import ResultsError
from habitat_vlnr1.files import write_atomically
from habitat_vlnr1.records import Records
from habitat_vlnr1.report.curves import curves
from habitat_vlnr1.report.exported import exported_episodes, exported_table, history
from habitat_vlnr1.report.page import render
from habitat_vlnr1.report.recording import megabytes
from habitat_vlnr1.report.walks import Evaluations

NAME = "report.html"
DEFAULT_MB = 24.0


def write_results_report(
    output: Path, folders: Sequence[Path], report_mb: float = DEFAULT_MB, logs: Sequence[Path] = ()
) -> Path:
    """The report of evaluations and trainings.

    Args:
        output: the file.
        folders: below which summaries are looked for.
        report_mb: MB of frames at most.
        logs: below which TensorBoard's files are looked for.

    Raises:
        ResultsError: there are neither, or a file is broken.
    """
    found, charts = Evaluations(folders), curves(logs)
    if not found.summaries and not charts:
        raise ResultsError(
            f"neither summary.json of an evaluation nor curves of a training below {', '.join(map(str, folders))}"
        )
    bare = found.keep_within(megabytes(report_mb))
    subtitle = f"{len(found.policies)} policies, {len(found.episodes)} episodes" if found.summaries else "Training"
    foot = f"Frames of {bare} episodes are not kept here (a budget of {report_mb:g} MB)." if bare else ""
    spaces = [_space(summary["protocol"]) for _, summary in found.summaries]
    content = {
        "title": " · ".join(dict.fromkeys(_title(folder) for folder in folders)),
        "subtitle": subtitle,
        "tables": found.tables(),
        "curves": charts,
        "policies": found.policies,
        "episodes": found.episodes,
        "maps": found.maps,
        "words": _words(spaces[0]) if spaces and all(space == spaces[0] for space in spaces) else _words(None),
        "history": [],
    }
    return _write(output, content, foot)


def write_data_report(
    output: Path, name: str, records: Records, space: ActionSpace, report_mb: float = DEFAULT_MB
) -> Path:
    """The report of an exported data set.

    Args:
        output: the file.
        name: what the data set is called.
        records: it, as training sees it.
        space: the actions' words, where the data do not tell them.
        report_mb: MB of frames at most.

    Raises:
        RecordError: a frame cannot be read.
    """
    (ego,) = records.sources
    space = ego.space or space
    episodes = exported_episodes(records, space, megabytes(report_mb))
    bare = sum(not walk.get("frames") for episode in episodes for walk in episode["walks"].values())
    seen = f"Below a frame stand all of its walk; those that {records.memory} shows beside it are bright."
    listed = f", {len(episodes)} listed" if len(episodes) < len(ego.episodes) else ""
    content = {
        "title": name,
        "subtitle": f"{len(ego.episodes)} episodes{listed}",
        "tables": [exported_table(name, ego, space, seen)],
        "curves": [],
        "policies": list(dict.fromkeys(policy for episode in episodes for policy in episode["walks"])),
        "episodes": episodes,
        "maps": {},
        "words": _words(space),
        "history": history(records.memory, episodes),
    }
    foot = f"Frames of {bare} listed episodes are not kept here (a budget of {report_mb:g} MB)." if bare else ""
    return _write(output, content, foot)


def _write(output: Path, content: Mapping[str, Any], foot: str) -> Path:
    written_by = f"Written by habitat-vlnr1 {__version__}."
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, render({**content, "foot": f"{foot} {written_by}".strip()}).encode())
    return output


def _title(folder: Path) -> str:
    """`data/vlnr1/quickstart/results` → `quickstart`."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "results" else folder.name


def _space(protocol: Mapping[str, Any]) -> ActionSpace | None:
    try:
        return ActionSpace(protocol["forward_step"], protocol["turn_angle"])
    except (KeyError, TypeError, ValueError):
        return None


def _words(space: ActionSpace | None) -> list[str]:
    """Of the four actions, by number; without amounts where policies differ in them."""
    return [space.describe(action) if space else action.name.replace("_", " ").capitalize() for action in Action]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report of all evaluations and trainings below some folders."""
    parser = argparse.ArgumentParser(prog="python -m habitat_vlnr1.report.build", description=main.__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="results folders, or runs with their curves")
    parser.add_argument("--output", type=Path, default=Path(NAME), help="the file that is written")
    parser.add_argument("--mb", type=float, default=DEFAULT_MB, help="MB of frames at most")
    options = parser.parse_args(arguments)
    try:
        print(write_results_report(options.output, options.folders, options.mb, logs=options.folders))
    except ResultsError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
