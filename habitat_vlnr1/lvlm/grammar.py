"""The token form of the action grammar: where a letter is decided, and which tokens are then determined.

An answer such as "A. Move forward 25 cm, B. Turn left 30 degrees" holds n decisions, its letters; everything else
follows from them. Which tokens these are depends on the tokenizer: Qwen's writes the first letter as `A` and later
ones as ` B` behind a `,`, the tiny model's writes `B` everywhere. So the grammar is read off the tokenised phrases.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.errors import VLNR1Error

ACTIONS = tuple(Action)
Tokens = tuple[int, ...]


class GrammarError(VLNR1Error):
    """A tokenizer under which the option letters are no single decisions."""


@dataclass(frozen=True)
class AnswerGrammar:
    """Tokens of all answers of n actions.

    Args:
        first: the four tokens that decide the first action, in the order of `Action`'s numbers.
        later: `later[a][b]` decides b after a.
        between: `between[a]` stands behind the decision of a, before the next decision.
        ending: `ending[a]` stands behind the decision of a as the last action, with the end token.
    """

    first: Tokens
    later: tuple[Tokens, ...]
    between: tuple[Tokens, ...]
    ending: tuple[Tokens, ...]

    def choices(self, previous: Action | None) -> Tokens:
        """The four tokens among which the next action is decided."""
        return self.first if previous is None else self.later[previous]

    def words(self, actions: Sequence[Action]) -> Tokens:
        """The last action's decision with the determined tokens behind it, up to the next decision."""
        last = actions[-1]
        return (self.choices(actions[-2] if len(actions) > 1 else None)[last], *self.between[last])

    def tokens(self, actions: Sequence[Action]) -> tuple[Tokens, tuple[bool, ...]]:
        """The answer's token ids, end token included, and which of them are decisions."""
        ids: list[int] = []
        decided: list[bool] = []
        for i, action in enumerate(actions):
            forced = self.ending[action] if i == len(actions) - 1 else self.between[action]
            ids += [self.choices(actions[i - 1] if i else None)[action], *forced]
            decided += [True] + [False] * len(forced)
        return tuple(ids), tuple(decided)

    def decisions(self, ids: Sequence[int]) -> list[tuple[int, Tokens]]:
        """Where in an answer's token ids its letters stand, and the four tokens that each is decided among."""
        found: list[tuple[int, Tokens]] = []
        place, previous = 0, None
        while place < len(ids) and ids[place] in (choices := self.choices(previous)):
            found.append((place, choices))
            previous = ACTIONS[choices.index(ids[place])]
            place += 1 + len(self.between[previous])
        return found


def read_grammar(tokenizer: Any, space: ActionSpace, num_actions: int, end_id: int) -> AnswerGrammar:
    """Find decisions and determined tokens by tokenising answers of one and two actions, and check longer ones.

    Raises:
        GrammarError: answers to the same question do not part at exactly one token, the letter.
    """

    def tokenize(*actions: Action) -> Tokens:
        return (*tokenizer(space.format(actions), add_special_tokens=False).input_ids, end_id)

    first, endings = _part([tokenize(a) for a in ACTIONS], 0)
    between: list[Tokens] = []
    later: list[Tokens] = []
    for a in ACTIONS:
        answers = [tokenize(a, b) for b in ACTIONS]
        at = _common(answers)
        if answers[0][0] != first[a]:
            raise GrammarError(
                _message(space, f"{a.name} starts with another token alone than before a second action")
            )
        letters, rest = _part(answers, at)
        if rest != endings:
            raise GrammarError(_message(space, f"the words of a second action depend on {a.name} before it"))
        between.append(answers[0][1:at])
        later.append(letters)
    grammar = AnswerGrammar(first, tuple(later), tuple(between), tuple(endings))
    chance = random.Random(0)
    longer = [chance.choices(ACTIONS, k=num_actions) for _ in range(64)]
    for answer in itertools.chain(itertools.product(ACTIONS, repeat=3), longer):
        if grammar.tokens(answer)[0] != tokenize(*answer):
            raise GrammarError(_message(space, f"{space.format(answer)!r} tokenises unlike its parts"))
    return grammar


def _common(answers: Sequence[Tokens]) -> int:
    """Length of the longest common beginning."""
    return next(i for i, column in enumerate(zip(*answers, strict=False)) if len(set(column)) > 1)


def _part(answers: Sequence[Tokens], at: int) -> tuple[Tokens, list[Tokens]]:
    """The tokens at which the four answers part, and what follows each."""
    letters = tuple(answer[at] for answer in answers)
    if len(set(letters)) != len(answers):
        raise GrammarError(f"the four option letters are not four tokens (ids {letters}): use free decoding")
    return letters, [answer[at + 1 :] for answer in answers]


def _message(space: ActionSpace, what: str) -> str:
    return f"constrained decoding does not fit this tokenizer and {space}: {what}; use free decoding"
