"""Rewards as plain functions with TRL's signature: of recorded actions, and of rolled-out walks.

Each takes the group's `completions` (texts, or chat messages) and the data set's columns by keyword, and returns one
reward per completion. `actions` holds, per completion, the n recorded actions a*_t … a*_{t+n-1} (numbers of `Action`).
`answer_value` looks at `headway` instead: what each action of the answer itself brings, where it was given.
`progress` to `ndtw` are for `vlnr1.rft.online`, whose columns are a walk's measures; the last two for questions.

An answer that is not exactly n valid actions earns 0: a parser that forgave a wrong count would let answers grow.

Examples:
    >>> time_decayed(["A. Move forward 25 cm, D. Stop"], actions=[[1, 2]], gamma=0.5)
    [1.0]
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from habitat_vlnr1.actions import LETTERS, SEPARATOR, Action
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.lookup import find
from habitat_vlnr1.qa_metrics import normalised_match, token_f1

_PART = re.compile(r"([A-D])\. \S.*")


def matches(completion: Any, recorded: Sequence[int]) -> list[bool] | None:
    """[a_{t+k} = a*_{t+k}] for k = 0 … n-1, or None when the completion is not exactly n actions."""
    answered = answered_actions(completion)
    if answered is None or len(answered) != len(recorded):
        return None
    return [got == want for got, want in zip(answered, recorded, strict=True)]


def answered_actions(completion: Any) -> list[Action] | None:
    """The actions of an answer, however many; None where it is anything else."""
    parts = [_PART.fullmatch(part) for part in text_of(completion).strip().removesuffix(".").split(SEPARATOR)]
    return [LETTERS[part.group(1)] for part in parts] if all(parts) else None  # type: ignore[union-attr]


def text_of(completion: Any) -> str:
    """The words of a completion: a text, or chat messages of which the last one counts."""
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return text if isinstance(text, str) else "".join(part.get("text", "") for part in text)


def _rewards(
    completions: Sequence[Any], actions: Sequence[Sequence[int]], weigh: Callable[[list[bool], Sequence[int]], float]
) -> list[float]:
    if len(completions) != len(actions):
        raise VLNR1Error(f"{len(completions)} completions but {len(actions)} rows of recorded actions")
    hits = [matches(completion, recorded) for completion, recorded in zip(completions, actions, strict=True)]
    return [0.0 if hit is None else float(weigh(hit, recorded)) for hit, recorded in zip(hits, actions, strict=True)]


def time_decayed(
    completions: Sequence[Any], actions: Sequence[Sequence[int]], gamma: float = 0.9, **columns: Any
) -> list[float]:
    """Time-Decayed Reward, eq. 9: sum over k of gamma^k [a_{t+k} = a*_{t+k}]."""
    return _rewards(completions, actions, lambda hit, _: sum(gamma**k for k, ok in enumerate(hit) if ok))


def balanced(
    completions: Sequence[Any],
    actions: Sequence[Sequence[int]],
    gamma: float = 0.9,
    forward: float = 0.33,
    **columns: Any,
) -> list[float]:
    """Eq. 9 where a recorded FORWARD counts less: sum over k of gamma^k w(a*_{t+k}) [a_{t+k} = a*_{t+k}].

    w is `forward` for FORWARD and 1 for turns and STOP. Most recorded actions are FORWARD, so eq. 9 pays a model in
    doubt for going straight on, and it misses turns. VLN-CE weights its imitation loss to the same end.
    """

    def weigh(hit: list[bool], recorded: Sequence[int]) -> float:
        weights = [forward if action == Action.FORWARD else 1.0 for action in recorded]
        return sum(gamma**k * weight for k, (ok, weight) in enumerate(zip(hit, weights, strict=True)) if ok)

    return _rewards(completions, actions, weigh)


def uniform(completions: Sequence[Any], actions: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """Every future position counts the same: eq. 9 with gamma = 1."""
    return _rewards(completions, actions, lambda hit, _: sum(hit))


def linear(completions: Sequence[Any], actions: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """Weights fall linearly from 1 to 1/n: sum over k of (1 - k/n) [a_{t+k} = a*_{t+k}]."""
    return _rewards(completions, actions, lambda hit, _: sum(1 - k / len(hit) for k, ok in enumerate(hit) if ok))


def hard(completions: Sequence[Any], actions: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """1 when the whole sequence is right, else 0."""
    return _rewards(completions, actions, lambda hit, _: all(hit))


def answer_value(
    completions: Sequence[Any],
    headway: Sequence[Sequence[float]],
    gamma: float = 0.9,
    wrong_stop: float = 1.0,
    **columns: Any,
) -> list[float]:
    """The value of the answer where it was given: sum over k of gamma^k v_{t+k}, eq. 9 with v in the match's place.

    v_{t+k} is how much nearer to the goal the action a_{t+k} leads, in steps, from where the actions before it have
    led: 1 for going on or turning along a shortest way, -1 for the opposite; for STOP, and for every place behind
    it, 1 within the distance of success and -`wrong_stop` outside, from where a walk cannot go back as it can from a
    wrong step (`habitat_vlnr1.sim.headway`). On the recorded walk itself, where that is a shortest way, it is eq. 9;
    other right ways earn as much as the recorded one, and so does a STOP anywhere inside the distance of success.
    """

    def worth(completion: Any, values: Sequence[float]) -> float:
        actions = answered_actions(completion) or []
        stop = actions.index(Action.STOP) if Action.STOP in actions else len(values)
        weights = [wrong_stop if k >= stop and value < 0 else 1.0 for k, value in enumerate(values)]
        return sum(gamma**k * weight * value for k, (weight, value) in enumerate(zip(weights, values, strict=True)))

    return [worth(completion, values) for completion, values in zip(completions, headway, strict=True)]


def progress(
    completions: Sequence[Any], distance_to_goal: Sequence[float], start_distance: Sequence[float], **columns: Any
) -> list[float]:
    """Of a rolled-out walk: the share of the way to the goal that it has gone, at least -1."""
    pairs = zip(distance_to_goal, start_distance, strict=True)
    return [max(-1.0, (start - end) / start) for end, start in pairs]


def success(completions: Sequence[Any], success: Sequence[float], **columns: Any) -> list[float]:
    """Of a rolled-out walk: 1 when it stopped at the goal, else 0."""
    return [float(value) for value in success]


def spl(completions: Sequence[Any], spl: Sequence[float], **columns: Any) -> list[float]:
    """Of a rolled-out walk: success weighted by path length."""
    return [float(value) for value in spl]


def ndtw(completions: Sequence[Any], ndtw: Sequence[float], **columns: Any) -> list[float]:
    """Of a rolled-out walk: how closely it followed the reference path, 0 to 1."""
    return [float(value) for value in ndtw]


def answer_match(completions: Sequence[Any], answers: Sequence[Sequence[str]], **columns: Any) -> list[float]:
    """Of an answer in words: 1 when it has the words of an accepted answer (`qa_metrics.normalised_match`)."""
    return [normalised_match(text_of(text), right) for text, right in zip(completions, answers, strict=True)]


def answer_f1(completions: Sequence[Any], answers: Sequence[Sequence[str]], **columns: Any) -> list[float]:
    """Of an answer in words: F1 of its words with the accepted answer that fits best (`qa_metrics.token_f1`)."""
    return [token_f1(text_of(text), right) for text, right in zip(completions, answers, strict=True)]


REWARDS: dict[str, Callable[..., list[float]]] = {
    "time_decayed": time_decayed,
    "balanced": balanced,
    "uniform": uniform,
    "linear": linear,
    "hard": hard,
    "answer_value": answer_value,
}
"""Of answers to records."""

WALK_REWARDS: dict[str, Callable[..., list[float]]] = {
    "progress": progress,
    "success": success,
    "spl": spl,
    "ndtw": ndtw,
}
"""Of rolled-out walks."""


ANSWER_REWARDS: dict[str, Callable[..., list[float]]] = {"answer_match": answer_match, "answer_f1": answer_f1}
"""Of answers to questions; the column `answers` has all that are right."""


def make_reward(name: str, **params: Any) -> Callable[..., list[float]]:
    """A reward by its name here or by import path (`package.module.function`), with its parameters bound.

    Raises:
        ValueError: no such reward, or it has no such parameter.
    """
    reward = find("reward", name, {**REWARDS, **WALK_REWARDS, **ANSWER_REWARDS})
    if not callable(reward):
        raise VLNR1Error(f"reward {name!r} is no function")
    known = inspect.signature(reward).parameters
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise VLNR1Error(f"reward {name!r} has no parameter {unknown[0]!r}")
    return functools.update_wrapper(functools.partial(reward, **params), reward)
