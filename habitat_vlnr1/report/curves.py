"""Curves of training runs, from TensorBoard's files: every trainer here writes them, Habitat's own too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from habitat_vlnr1.report.recording import spread

POINTS = 300
"""Of a curve at most."""
FILES = "events.out.tfevents.*"


def curves(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Every scalar that was logged below the folders: a chart each, with a line per folder of files.

    Numbers that are not finite are left out, and what has one point only (an evaluation's values: the table has
    them). A step that was logged twice (a run that went on) has its last value.
    """
    if not any(True for folder in folders for _ in folder.rglob(FILES)):
        return []
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]  # has no types
        EventAccumulator,
    )

    seen: dict[str, dict[str, dict[int, float]]] = {}
    for file in sorted({path for folder in folders for path in folder.rglob(FILES)}, key=_age):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            line = seen.setdefault(tag, {}).setdefault(str(file.parent), {})
            line |= {event.step: event.value for event in events.Scalars(tag) if math.isfinite(event.value)}
    charts = []
    for tag in sorted(seen):
        lines = {name: sorted(points.items()) for name, points in seen[tag].items() if len(points) > 1}
        several = len(lines) > 1
        thin = [
            {"name": name if several else "", "points": [points[i] for i in spread(len(points), POINTS)]}
            for name, points in lines.items()
        ]
        if thin:
            charts.append({"name": tag, "lines": thin})
    return charts


def _age(file: Path) -> tuple[float, str]:
    return file.stat().st_mtime, str(file)
