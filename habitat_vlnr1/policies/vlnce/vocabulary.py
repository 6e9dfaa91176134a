"""Words and their numbers, for models that have no tokenizer of their own.

Examples:
    >>> vocabulary = Vocabulary.of(["Go left.", "Go to the bed."])
    >>> vocabulary.encode("Go to bed")
    [3, 7, 4]
    >>> Vocabulary.from_json(vocabulary.to_json()) == vocabulary
    True
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

PAD, UNKNOWN = 0, 1
_WORD = re.compile(r"\w+|[^\w\s]")


def split(text: str) -> list[str]:
    """Lower-case words and punctuation marks."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Vocabulary:
    """`words[i]` has the number i + 2; 0 pads, 1 is every unknown word."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str], size: int | None = None) -> Vocabulary:
        """The words of `texts`, most frequent first, ties in alphabetical order.

        Args:
            size: numbers there are, those of padding and unknown words among them; what is rarer is unknown.
        """
        counts = Counter(word for text in texts for word in split(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(tuple(ranked if size is None else ranked[: size - 2]))

    def encode(self, text: str) -> list[int]:
        """Numbers of the words of `text`."""
        return [self._numbers.get(word, UNKNOWN) for word in split(text)]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, start=2)}

    def to_json(self) -> str:
        return json.dumps(list(self.words), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        return cls(tuple(json.loads(text)))
