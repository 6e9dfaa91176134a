"""The semantic annotation beside a scene, in the form of Habitat-Matterport 3D."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .gltf import SceneError

_HEADER = "HM3D Semantic Annotations"
_SUFFIXES = ("_semantic.txt", ".semantic.txt")  # what habitat-sim looks for beside a bare file; HM3D's own name


@dataclass(frozen=True)
class Annotation:
    """One object: its semantic id, the colour of the annotation (RRGGBB), its category and the region it is in."""

    semantic_id: int
    colour: str
    category: str
    region: int


def read_annotations(scene_file: str | Path) -> list[Annotation]:
    """The annotations of a scene from `<stem>_semantic.txt` or `<stem>.semantic.txt`, [] where it has neither;
    SceneError where a line is broken."""
    stem = Path(scene_file).with_suffix("")
    for path in (stem.with_name(stem.name + suffix) for suffix in _SUFFIXES):
        if path.is_file():
            return list(_parse(path, path.read_text(encoding="utf-8").splitlines()))
    return []


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
