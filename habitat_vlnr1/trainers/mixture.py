"""What a step of supervised fine-tuning is drawn from: navigation records, as they are and in the mirror, questions
about their walks, and other image-text data, each source with its weight.

A weight says how often a source is seen in an epoch: 1 each record once, 0.5 a half of them drawn at random, 2 each
twice. The loss is on the answers alone, whatever the source (`lvlm/inputs.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from habitat_vlnr1.config import memory_of, plain, question_memories
from habitat_vlnr1.interchange.llava import read_llava
from habitat_vlnr1.lvlm.inputs import Example
from habitat_vlnr1.questions import QuestionRecords, read_questions
from habitat_vlnr1.records import Records, VLNEgo, keep_some
from habitat_vlnr1.results import print_left_out
from habitat_vlnr1.trainers.mirroring import MirroredRecords

FRAME_TOKENS = 12
"""About as many as a frame has; only the proportions of rows' lengths matter."""


@dataclass(frozen=True)
class Part:
    """Records of one source.

    Args:
        name: of the source.
        examples: its records.
        rows: numbers of those that share a row of a batch.
        lengths: of each row, proportional to its tokens.
        weight: how often each row is seen in an epoch.
    """

    name: str
    examples: Sequence[Example]
    rows: list[list[int]]
    lengths: list[int]
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.examples)


class Mixture:
    """The records of several parts, numbered one part after the other."""

    def __init__(self, parts: Sequence[Part]):
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part].examples[index - self._start(part)]

    def _start(self, part: int) -> int:
        return int(self._ends[part]) - len(self.parts[part])

    def rows(self, seed: int) -> dict[str, list[Any]]:
        """Rows for the collator, `{"index": [[…], …], "length": […]}`, each as often as its part's weight says.

        Args:
            seed: of the draw, where a weight is no whole number.
        """
        rows: list[list[int]] = []
        lengths: list[int] = []
        for number, part in enumerate(self.parts):
            for place in _as_often(len(part.rows), part.weight, np.random.default_rng([seed, number])):
                rows.append([self._start(number) + index for index in part.rows[place]])
                lengths.append(part.lengths[place])
        return {"index": rows, "length": lengths}


def _as_often(count: int, weight: float, rng: np.random.Generator) -> list[int]:
    """Numbers 0 … count - 1, each `weight` times; of a fraction, as many drawn at random."""
    times = int(weight)
    drawn = rng.permutation(count)[: round((weight - times) * count)]
    return [*range(count)] * times + sorted(drawn.tolist())


def mixed(config: DictConfig, records: Records, more: Sequence[Part]) -> Mixture:
    """The configured navigation records, in the mirror too with `sft.mirror`, and behind them the rest.

    Rows that a weight of a navigation source leaves out are left out of the one part that all of them are.
    """
    options = config.vlnr1.sft
    rows, lengths = navigation_rows(records, options.steps_per_row, options.keep_straight, config.habitat.seed)
    weights = [float(config.vlnr1.data.weights.get(source, 1)) for source in config.vlnr1.data.sources]
    if set(weights) != {1.0} and len(weights) == len(records.sources):  # DAgger adds sources of its own
        part: list[int] = []
        for number, (span, weight) in enumerate(zip(records.spans(), weights, strict=True)):
            own = [place for place, row in enumerate(rows) if row[0] in span]
            part += [own[i] for i in _as_often(len(own), weight, np.random.default_rng([config.habitat.seed, number]))]
        rows, lengths = [rows[place] for place in part], [lengths[place] for place in part]
    sides = [Part("navigation", records, rows, lengths)]
    if options.mirror:
        sides.append(Part("navigation, mirrored", MirroredRecords(records), rows, lengths))
    return Mixture([*sides, *more])


def navigation_rows(
    records: Records, steps_per_row: int = 1, keep_straight: float = 1.0, seed: int = 0
) -> tuple[list[list[int]], list[int]]:
    """Numbers of one or more records of an episode by row, and the rows' lengths (`group_by_length`).

    Args:
        steps_per_row: the most steps of an episode that go through the model behind one instruction.
        keep_straight: see `keep_some`.
        seed: of that draw.
    """
    rows = records.rows(steps_per_row, keep_some(records.num_actions, keep_straight, seed))
    longest = max(len(episode.actions) for episode in records.episodes)
    frames = [len(records.memory.select(step)) + 1 for step in range(longest)]
    places = ([records.locate(index) for index in row] for row in rows)
    lengths = [len(row[0][0].instruction) // 4 + FRAME_TOKENS * sum(frames[step] for _, step in row) for row in places]
    return rows, lengths


def open_more(config: DictConfig) -> list[Part]:
    """The configured questions (once for each memory) and image-text files; frames and questions that cannot be used
    are left out with a line."""
    data, size = config.vlnr1.data, config.vlnr1.sft.steps_per_row
    parts = []
    for source, weight in data.questions.items():
        ego = VLNEgo(Path(data.root) / source / "train")
        questions, left_out = read_questions(ego)
        print_left_out(left_out)
        memories = question_memories(config) or {"": memory_of(config)}
        for name, memory in memories.items():
            asked = QuestionRecords(ego, questions, memory)
            rows = asked.rows(size)
            lengths = [FRAME_TOKENS * (memory.budget + 1) + 8 * len(row) for row in rows]
            title = f"questions {source}" + (f" ({name})" if name else "")
            parts.append(Part(title, asked, rows, lengths, float(weight) / len(memories)))
    for file, weight in data.image_text.items():
        examples, left_out = read_llava(Path(file))
        print_left_out(left_out)
        rows = [[number] for number in range(len(examples))]
        lengths = [FRAME_TOKENS * len(example.frames) + len(example.answer) // 4 for example in examples]
        parts.append(Part(file, examples, rows, lengths, float(weight)))
    return parts


def mixed_of(config: DictConfig, more: Sequence[Part]) -> dict[str, Any]:
    """What a checkpoint's card says about a mixture; nothing where there is none."""
    data = plain(config.vlnr1.data)
    if not more and not data["weights"]:
        return {}
    keys = ("weights", "questions", "question_memories", "image_text")
    return {"mixture": {**{key: data[key] for key in keys}, "records": {part.name: len(part) for part in more}}}
