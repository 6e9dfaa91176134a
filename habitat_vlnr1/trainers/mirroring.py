"""Records seen in a mirror: frames turned left for right, and turns and words with them.

A house's mirror image is a house too, so stage 1 has twice as much to learn from and nothing more to export.

Examples:
    >>> mirrored_words("Turn left and stop at the table on your right.")
    'Turn right and stop at the table on your left.'
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from habitat_vlnr1.actions import Action
from habitat_vlnr1.lvlm.frames import Mirrored
from habitat_vlnr1.records import Records

OTHER_SIDE = {"left": "right", "right": "left"}
OTHER_TURN = {Action.LEFT: Action.RIGHT, Action.RIGHT: Action.LEFT}
SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def mirrored_words(text: str) -> str:
    """A text with "left" and "right" exchanged, small or capital as they were.

    Whole words alone, whatever they mean: "right before the stairs" and "once you have left" become wrong too.
    """

    def other(match: re.Match[str]) -> str:
        word = match[0]
        side = OTHER_SIDE[word.lower()]
        return side.upper() if word.isupper() else side.capitalize() if word[0].isupper() else side

    return SIDE.sub(other, text)


@dataclass(frozen=True)
class MirroredRecord:
    """An `lvlm.inputs.Example`: a record in the mirror."""

    instruction: str
    frames: tuple[Mirrored, ...]
    answer: tuple[Action, ...]


class MirroredRecords(Sequence[MirroredRecord]):
    """Each record of `records` in the mirror, under its own number."""

    def __init__(self, records: Records):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> MirroredRecord:  # type: ignore[override]
        record = self.records[index]
        answer = tuple(OTHER_TURN.get(action, action) for action in record.answer)
        return MirroredRecord(mirrored_words(record.instruction), tuple(map(Mirrored, record.frames)), answer)
