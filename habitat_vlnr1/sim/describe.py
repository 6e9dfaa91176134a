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


def describe_cells(
    semantic: np.ndarray, depth: np.ndarray, names: Mapping[int, str], cells: int, min_share: float
) -> str:
    """What each cell of a grid over the image shows, row by row, cells parted by `; `.

    A cell names what fills at least `min_share` of it, the largest first; behind a thing stands its mean distance in
    whole metres. Arguments as of `describe`, and cells: rows and columns of the grid.

    >>> describe_cells(np.array([[1, 7], [1, 0]]), np.full((2, 2), 2.2), {1: "blue wall", 7: "red sofa"}, 2, 0.1)
    'blue wall; red sofa 2; blue wall; '
    """
    height, width = semantic.shape
    row, column = (np.arange(side) * cells // side for side in (height, width))
    cell = row[:, None] * cells + column
    ids, number = np.unique(semantic, return_inverse=True)
    place = (cell * len(ids) + number.reshape(semantic.shape)).ravel()
    counts = np.bincount(place, minlength=cells**2 * len(ids)).reshape(-1, len(ids))
    metres = np.bincount(place, depth.ravel(), minlength=cells**2 * len(ids)).reshape(-1, len(ids))
    metres = metres / np.maximum(counts, 1)
    texts = []
    for here, far in zip(counts, metres, strict=True):
        seen = [i for i in np.argsort(-here, kind="stable") if here[i] >= max(min_share * here.sum(), 1)]
        found = [(names[int(ids[i])], far[i]) for i in seen if names.get(int(ids[i]), UNNAMED[0]) not in UNNAMED]
        texts.append(", ".join(name if name.split()[-1] in ROOM_KINDS else f"{name} {round(m)}" for name, m in found))
    return "; ".join(texts)
