"""Instructions are text: what looks like a chat marker in them never becomes one.

A tokenizer cuts its special tokens (`<|im_end|>`, `<|image_pad|>`, …) out of any text. In a prompt they may only come
from the chat template, so each one that stands in an instruction is marked before the template is filled in, and what
is marked is tokenised as the letters that it consists of. Prompts without such words are tokenised as ever.
"""

from __future__ import annotations

import re
from typing import Any

from transformers import PreTrainedTokenizerBase

_PRIVATE_USE = range(0xE000, 0xF8FF)


class PlainText:
    """Guards texts of a tokenizer; `guard` what comes from outside, then `ids` of the filled-in template.

    Args:
        tokenizer: a fast tokenizer whose added tokens match as they are written (Qwen's do).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        # `<tool_call>` is an added token, but not called special; so are the tiny model's words of an action.
        self.control = [token.content for token in added if token.special or token.content.startswith("<")]
        self._control = _any_of(self.control)
        self._added = _any_of([token.content for token in added])

    def guard(self, text: str) -> tuple[str, str]:
        """The text with a character put into each control token, and that character; '' when there is none."""
        if not self._control.search(text):
            return text, ""
        mark = next(chr(code) for code in _PRIVATE_USE if chr(code) not in text)
        return self._control.sub(lambda found: found[0][0] + mark + found[0][1:], text), mark

    def ids(self, text: str, mark: str = "") -> tuple[int, ...]:
        """Token ids of a text in which `mark` keeps control tokens apart."""
        if not mark or mark not in text:
            return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
        ids: list[int] = []
        at = 0
        for found in self._added.finditer(text):
            ids += self._letters(text[at : found.start()].replace(mark, ""))
            added = self.tokenizer.convert_tokens_to_ids(found[0])
            assert isinstance(added, int), "one token, one id"
            ids.append(added)
            at = found.end()
        return (*ids, *self._letters(text[at:].replace(mark, "")))

    def _letters(self, text: str) -> list[int]:
        """Token ids of a text as the tokenizer's model has them, in which no added token is looked for."""
        backend: Any = self.tokenizer.backend_tokenizer
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        parts = backend.pre_tokenizer.pre_tokenize_str(text) if text else []
        return [token.id for part, _ in parts for token in backend.model.tokenize(part)]


def _any_of(texts: list[str]) -> re.Pattern[str]:
    """Finds any of the texts, the longest first; nothing when there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")
