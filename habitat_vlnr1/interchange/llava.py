"""Image-text data in the form of LLaVA and ShareGPT, for mixing into supervised fine-tuning.

A JSON list (or one object per line, `.jsonl`) has objects such as

    {"image": "a/0001.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                              {"from": "gpt", "value": "A red sofa."}]}

`image` may be a list, or be called `images`; paths are relative to the file's folder. Every question with its answer
is a record of its own, with all images of its object.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from habitat_vlnr1.errors import RecordError
from habitat_vlnr1.files import is_text, parse_json, printable, read_json

IMAGE = "<image>"
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True)
class ImageText:
    """A question about images and its answer in words."""

    instruction: str
    frames: tuple[Path, ...]
    answer: str
    is_question = True


def read_llava(file: Path) -> tuple[list[ImageText], list[str]]:
    """The records of a file, and a line for each object that is none.

    Raises:
        RecordError: the file is not there, no list of objects, or has no record.
    """
    if file.suffix == ".jsonl":
        lines = file.read_bytes().splitlines() if file.is_file() else []
        rows = [
            (f"{file}, line {k}", parse_json(line, f"{file}, line {k}", "delete the line", RecordError))
            for k, line in enumerate(lines, start=1)
        ]
    else:
        entries = read_json(file, "check vlnr1.data.image_text", RecordError, list)
        rows = [(f"{file}, entry {k}", row) for k, row in enumerate(entries, start=1)]
    found: list[ImageText] = []
    left_out = []
    for place, row in rows:
        try:
            found += _records(row, file.parent)
        except RecordError as error:
            left_out.append(f"{place}: {error}")
    if not found:
        raise RecordError(f"{file}: no record" + (f" ({left_out[0]})" if left_out else ""))
    return found, left_out


def _records(row: Any, folder: Path) -> list[ImageText]:
    if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
        raise RecordError("has no list of conversations")
    images = row.get("images", row.get("image"))
    names = [images] if isinstance(images, str) else images
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise RecordError(f"image is {printable(images)!r}: it must be a path, or a list of some")
    frames = tuple(folder / name for name in names)
    missing = [frame for frame in frames if not frame.is_file()]
    if missing:
        raise RecordError(f"{missing[0]} is not there")
    turns = [turn for turn in row["conversations"] if not (isinstance(turn, dict) and turn.get("from") == "system")]
    if len(turns) % 2 or not turns or not all(map(_is_turn, turns, (_ASKS + _ANSWERS,) * len(turns))):
        raise RecordError("its turns must be questions and answers in turn, as texts")
    pairs = list(zip(turns[::2], turns[1::2], strict=True))
    if any(ask["from"] not in _ASKS or answer["from"] not in _ANSWERS for ask, answer in pairs):
        raise RecordError("its turns must be questions and answers in turn")
    asked = [ask["value"].replace(IMAGE, "").strip() for ask, _ in pairs]
    return [
        ImageText(question, frames, answer["value"].strip())
        for question, (_, answer) in zip(asked, pairs, strict=True)
        if question and answer["value"].strip()
    ]


def _is_turn(turn: Any, names: tuple[str, ...]) -> bool:
    return isinstance(turn, dict) and turn.get("from") in names and is_text(turn.get("value"))
