"""Answers that are tried before they are asked for: the pass that reads a prompt runs them behind it, as a tree.

Where the model decides as one of them does, its decisions need no pass of their own. What it decides is not changed by
what is tried: every letter is decided from the same logits, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

from habitat_vlnr1.actions import Action

Path = tuple[Action, ...]
"""The actions of an answer so far."""


def usual_count(device: str) -> int:
    """How many answers are tried on a kind of device where nobody says how many.

    A GPU hardly notices some tokens more beside a prompt, and each pass costs it the same; on a CPU tokens cost.
    """
    return 4 if device == "cpu" else 8


def choose_drafts(
    frequent: Sequence[Sequence[Action]], count: int | None, num_actions: int, device: str = "cpu"
) -> tuple[Path, ...]:
    """The first `count` of a checkpoint's most frequent answers; FORWARD throughout where it knows none.

    An answer that another one covers (they part at the last action, or behind a STOP) is not counted.

    Args:
        count: None: `usual_count` of the device.
        device: its kind, "cpu" or "cuda".
    """
    if count is None:
        count = usual_count(device)
    chosen: list[Path] = []
    covered: set[Path] = set()
    for answer in frequent or ((Action.FORWARD,) * num_actions,):
        paths = paths_of([answer], num_actions, stop_is_final=True)
        if len(chosen) < count and not covered.issuperset(paths):
            chosen.append(tuple(map(Action, answer)))
            covered.update(paths)
    return tuple(chosen)


def paths_of(answers: Sequence[Sequence[Action]], num_actions: int, stop_is_final: bool) -> tuple[Path, ...]:
    """The beginnings behind which something is left to decide, each once and before those that continue it.

    Args:
        answers: of any length.
        num_actions: n; nothing is decided behind n actions.
        stop_is_final: nor behind a STOP.
    """
    paths: dict[Path, None] = {}
    for answer in answers:
        for length, action in enumerate(answer[: num_actions - 1], 1):
            if action == Action.STOP and stop_is_final:
                break
            paths[tuple(answer[:length])] = None
    return tuple(paths)


def paths_from(path: Path, num_actions: int) -> tuple[Path, ...]:
    """What is tried behind an answer that has left the drafts: its own words, then FORWARD or its last action to the
    end. Walks go straight for long, and turn on the spot in small angles."""
    left = num_actions - 1 - len(path)
    more = (path + (action,) * count for action in (Action.FORWARD, path[-1]) for count in range(1, left + 1))
    return tuple(dict.fromkeys((path, *more)))
