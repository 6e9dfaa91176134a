"""A prompt as the model takes it, and what several of them have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from habitat_vlnr1.lvlm.frames import Patches


@dataclass(frozen=True)
class Query:
    """One prompt, ready to be batched.

    Args:
        ids: token ids [L], the image placeholders repeated as often as the frame has visual tokens.
        positions: M-RoPE positions [3, L].
        frames: the cut frames in the order of the prompt (history, then the current one).
        keys: identities of those frames; None for frames without one.
        spans: where each frame's tokens start and end in `ids`.
    """

    ids: np.ndarray
    positions: np.ndarray
    frames: tuple[Patches, ...]
    keys: tuple[Hashable, ...]
    spans: tuple[tuple[int, int], ...]


def common_beginning(queries: Sequence[Query]) -> tuple[int, int]:
    """How many tokens, and how many images among them, all prompts begin with.

    Images count whole, and only when they are the same: of one key, or, where they have none, the same cut frame. The
    last token of a prompt is never common: it predicts the answer.
    """
    first = queries[0]
    tokens = min(len(query.ids) for query in queries) - 1
    images = min(len(query.spans) for query in queries)
    for query in queries[1:]:
        differs = (query.ids[:tokens] != first.ids[:tokens]).nonzero()[0]
        tokens = int(differs[0]) if len(differs) else tokens
        images = next((i for i in range(images) if not _same_image(first, query, i)), images)
    for number, (start, end) in enumerate(first.spans):
        if end > tokens or number >= images:
            return min(tokens, start), number
    return tokens, len(first.spans)


def trunk_of(queries: Sequence[Query]) -> tuple[int, list[tuple[int, int]]]:
    """The prompt from which the others branch off so that the fewest tokens are run, and where each does.

    Prompts of a walk's first steps begin with one another: all but the last one are on its way.

    Returns: its number, and for each prompt how many tokens, and how many images among them, it has in common with it;
        for itself, as many as any other has.
    """
    distinct = {id(query): query for query in queries}  # the answers of a GRPO group have one prompt
    times = Counter(map(id, queries))
    best: tuple[int, int, dict[int, tuple[int, int]]] | None = None
    for name, trunk in distinct.items():
        shared = {other: common_beginning([trunk, query]) for other, query in distinct.items()}
        if times[name] == 1:
            shared[name] = max((own for other, own in shared.items() if other != name), default=shared[name])
        cost = max(shared.values())[0] + sum(
            times[other] * (len(query.ids) - shared[other][0]) for other, query in distinct.items()
        )
        if best is None or cost < best[0]:
            best = cost, name, shared
    assert best is not None, "a group has at least one prompt"
    _, name, shared = best
    return [id(query) for query in queries].index(name), [shared[id(query)] for query in queries]


def _same_image(one: Query, other: Query, number: int) -> bool:
    if one.keys[number] is not None or other.keys[number] is not None:
        return one.keys[number] == other.keys[number]
    return bool(one.frames and other.frames) and one.frames[number] is other.frames[number]
