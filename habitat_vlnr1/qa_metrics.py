"""Marks for free-text answers that need no service: exact match, normalised match and token F1.

Every one takes a prediction and all accepted answers, and the best of them counts. Normalisation is SQuAD's (lower
case, no punctuation, no articles); numbers in words become digits, as VQA's evaluation does.

Examples:
    >>> exact_match("red", ["Red"]), normalised_match("The red sofa.", ["red sofa"])
    (0.0, 1.0)
    >>> round(token_f1("in the red room", ["the red room"]), 3)
    0.8
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = {"a", "an", "the"}
_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS.split())}


def words_of(text: str) -> list[str]:
    """The words of an answer as they are compared."""
    folded = unicodedata.normalize("NFKC", text).lower()
    words = re.sub(r"[^\w\s]", " ", folded).split()
    return [_NUMBERS.get(word, word) for word in words if word not in _ARTICLES]


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 when the prediction is one of the answers, letter by letter; spaces around it do not count."""
    return float(any(prediction.strip() == answer.strip() for answer in answers))


def normalised_match(prediction: str, answers: Sequence[str]) -> float:
    """1 when the prediction has the words of one of the answers, in their order."""
    words = words_of(prediction)
    return float(bool(words) and any(words == words_of(answer) for answer in answers))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words, with the answer that fits best (SQuAD's F1)."""
    return max((_f1(words_of(prediction), words_of(answer)) for answer in answers), default=0.0)


def _f1(predicted: list[str], wanted: list[str]) -> float:
    common = (Counter(predicted) & Counter(wanted)).total()
    return 2 * common / (len(predicted) + len(wanted)) if common else 0.0


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact": exact_match,
    "match": normalised_match,
    "f1": token_f1,
}
"""Columns of the table → metric."""
