"""The semantic annotation beside a scene: `<stem>.semantic.txt` in the form of Habitat-Matterport 3D."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .gltf import SceneError

_HEADER = "HM3D Semantic Annotations"


@dataclass(frozen=True)
class Annotation:
    """One object: its semantic id, the colour of the annotation (RRGGBB), its category and the region it is in."""

    semantic_id: int
    colour: str
    category: str
    region: int


def read_annotations(scene_file: str | Path) -> list[Annotation]:
    """The annotations of a scene, [] where it has no `<stem>.semantic.txt`; SceneError where a line is broken."""
    path = Path(scene_file).with_suffix(".semantic.txt")
    if not path.is_file():
        return []
    return list(_parse(path, path.read_text(encoding="utf-8").splitlines()))


def _parse(path: Path, lines: list[str]) -> Iterator[Annotation]:
    if not lines or not lines[0].startswith(_HEADER):
        raise SceneError(f"{path}: the first line must be {_HEADER!r}; write the file again")
    for number, row in enumerate(csv.reader(lines[1:]), start=2):
        if not row:
            continue
        try:
            semantic_id, colour, category, region = row
            yield Annotation(int(semantic_id), colour, category, int(region))
        except ValueError:
            raise SceneError(
                f'{path}:{number}: expected id,RRGGBB,"category",region but found {",".join(row)!r}'
            ) from None
