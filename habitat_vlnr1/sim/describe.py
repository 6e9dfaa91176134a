"""What an agent sees, in words, from semantic ids and depth. Pure numpy."""

from collections.abc import Mapping

import numpy as np

COLUMNS = ("far left", "left", "ahead", "right", "far right")
ROOM_KINDS = ("wall", "floor")  # named last, without place: they surround the agent
UNNAMED = ("ceiling", "skirting board", "baseboard", "unknown")  # everywhere, so they tell nothing


def describe(
    semantic: np.ndarray, depth: np.ndarray, names: Mapping[int, str], min_share: float, max_things: int
) -> str:
    """The things in view from left to right, then the wall and the floor with the most pixels.

    semantic: int [H, W], ids; ids without a name are skipped. depth: float [H, W], metres, 0 = nothing hit.
    names: category name of each id. min_share: of the image's pixels. max_things: the largest are kept.
    A thing's column is that of its median pixel, its distance the median depth, in whole metres.

    >>> describe(np.full((4, 5), 7), np.full((4, 5), 2.2), {7: "red sofa"}, 0.01, 9)
    'ahead 2 m red sofa'
    """
    ids, counts = np.unique(semantic, return_counts=True)
    width = semantic.shape[1]
    room: dict[str, str] = {}
    things: list[tuple[int, str]] = []
    for index in np.argsort(-counts, kind="stable"):
        name = names.get(int(ids[index]))
        if name is None or counts[index] < min_share * semantic.size:
            continue
        kind = name.split()[-1]
        if kind in ROOM_KINDS:
            room.setdefault(kind, name)
        elif name not in UNNAMED and len(things) < max_things:
            mask = semantic == ids[index]
            column = int(np.searchsorted(np.cumsum(mask.sum(axis=0)), counts[index] / 2))
            metres = round(float(np.median(depth[mask])))
            word = COLUMNS[column * len(COLUMNS) // width]
            things.append((column, f"{word} {metres} m {name}"))
    parts = [text for _, text in sorted(things)]
    if room:
        parts.append("room " + " ".join(room[kind] for kind in ROOM_KINDS if kind in room))
    return ", ".join(parts)
