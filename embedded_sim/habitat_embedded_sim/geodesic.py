"""Shortest paths on the walkable surface, at any angle.

`distance_field` floods the cells from the goals (lazy Theta*: each cell points straight at the corner, or
the goal, from which it is seen); a query then links its start to the best corner around it, follows the
corners to the goal and pulls the string tight. Distances are three-dimensional, in metres, between the
corners of the path.
"""

from __future__ import annotations

import numpy as np

from .surface import BLOCKED, TOUCH, clearance, height, trace, visible
from .voxels import jit

# numba's cache of this file does not notice a change of surface.py: count it here, so that this file changes too: 2
PULLS = 2  # rounds of pulling the string tight
MIN_GAIN = 2e-3  # metres that moving a way point must promise
MERGE_LOSS = 5e-3  # metres that leaving out a way point may cost


@jit
def _gap(point, a, b):
    return np.sqrt(
        (point[a, 0] - point[b, 0]) ** 2 + (point[a, 1] - point[b, 1]) ** 2 + (point[a, 2] - point[b, 2]) ** 2
    )


@jit
def _push(keys, items, count, key, item):
    i = count
    while i > 0:
        up = (i - 1) >> 1
        if keys[up] <= key:
            break
        keys[i], items[i] = keys[up], items[up]
        i = up
    keys[i], items[i] = key, item
    return count + 1


@jit
def _pop(keys, items, count):
    """Remove the smallest; it is left at position `count - 1`, which is returned as the new count."""
    count -= 1
    key, item, top_key, top_item = keys[count], items[count], keys[0], items[0]
    i = 0
    while 2 * i + 1 < count:
        j = 2 * i + 1
        if j + 1 < count and keys[j + 1] < keys[j]:
            j += 1
        if keys[j] >= key:
            break
        keys[i], items[i] = keys[j], items[j]
        i = j
    keys[i], items[i] = key, item
    keys[count], items[count] = top_key, top_item
    return count


@jit
def _sees(g, point, cell, a, b):
    n = g.column.size
    from_cell = a if a < n else cell[a - n]
    return visible(g, from_cell, point[a, 0], point[a, 2], b, point[b, 0], point[b, 2])


@jit
def _best_parent(g, point, cell, distance, parent, closed, c):
    """(distance, parent) of cell c through its finished neighbours or what they see."""
    best, found, wrong = np.inf, -1, parent[c]
    for k in range(8):
        m = g.link[c, k]
        if m < 0 or not closed[m]:
            continue
        p = parent[m]
        length = distance[p] + _gap(point, p, c)
        if p != wrong and p != found and length < best and _sees(g, point, cell, p, c):
            best, found = length, p
        length = distance[m] + _gap(point, m, c)
        if length < best and _sees(g, point, cell, m, c):
            best, found = length, m
    return best, found


@jit
def distance_field(g, goals, cell):
    """Flood the mesh from the navigable points goals [K, 3] in cells cell int64 [K].

    Returns three arrays for the N cells followed by the K goals: point float64 [N + K, 3]; distance float64
    [N + K] to the nearest goal, inf where there is no way; parent int64 [N + K], the next corner on the
    way, -1 at goals and where there is no way.
    """
    n, k_goals = g.column.size, goals.shape[0]
    total = n + k_goals
    point, distance, parent = np.empty((total, 3)), np.empty(total), np.empty(total, np.int64)
    for c in range(total):
        for k in range(3):
            point[c, k] = g.node[c, k] if c < n else goals[c - n, k]
        distance[c], parent[c] = np.inf, -1
    closed, checked = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    # every cell is relaxed at most once from each side, and pushed again at most once for each
    keys, items, count = np.empty(16 * n + 9 * k_goals), np.empty(16 * n + 9 * k_goals, np.int64), 0
    for k in range(k_goals):
        distance[n + k] = 0.0
        for i in range(9):
            c = g.link[cell[k], i] if i < 8 else cell[k]
            if c < 0 or g.kind[c] == BLOCKED or _gap(point, n + k, c) >= distance[c]:
                continue
            if _sees(g, point, cell, n + k, c):
                distance[c], parent[c], checked[c] = _gap(point, n + k, c), n + k, True
                count = _push(keys, items, count, distance[c], c)
    while count > 0:
        count = _pop(keys, items, count)
        key, c = keys[count], items[count]
        if closed[c] or key > distance[c]:
            continue
        if not checked[c] and not _sees(g, point, cell, parent[c], c):
            distance[c], parent[c] = _best_parent(g, point, cell, distance, parent, closed, c)
            checked[c] = True
            if parent[c] >= 0 and distance[c] > key:
                count = _push(keys, items, count, distance[c], c)
                continue
        if parent[c] < 0:
            continue
        checked[c] = closed[c] = True
        p = parent[c]
        for k in range(8):
            m = g.link[c, k]
            if m < 0 or closed[m] or g.kind[m] == BLOCKED:
                continue
            longer = distance[p] + _gap(point, p, m)
            if longer < distance[m]:
                distance[m], parent[m], checked[m] = longer, p, False
                count = _push(keys, items, count, longer, m)
    return point, distance, parent


@jit
def _remove(way, cell, count, i):
    """Take way point i out. In place; the new count."""
    for j in range(i, count - 1):
        for k in range(3):
            way[j, k] = way[j + 1, k]
        cell[j] = cell[j + 1]
    return count - 1


@jit
def _drop_corners(g, way, cell, count):
    """Leave out the way points that can be passed by in a straight line. In place; the new count."""
    i = 1
    while i < count - 1:
        x, z, to_x, to_z = way[i - 1, 0], way[i - 1, 2], way[i + 1, 0], way[i + 1, 2]
        if visible(g, cell[i - 1], x, z, cell[i + 1], to_x, to_z):
            count = _remove(way, cell, count, i)
        else:
            i += 1
    return count


@jit
def _pull_corner(g, way, cell, i):
    """Move way point i towards the line between its neighbours while both stay in sight. In place."""
    ax, az, bx, bz = way[i - 1, 0], way[i - 1, 2], way[i + 1, 0], way[i + 1, 2]
    x, z = way[i, 0], way[i, 2]
    length_a, length_b = np.hypot(x - ax, z - az), np.hypot(x - bx, z - bz)
    if length_a + length_b - np.hypot(bx - ax, bz - az) < MIN_GAIN:
        return
    t = length_a / (length_a + length_b)
    d_x, d_z = ax + t * (bx - ax) - x, az + t * (bz - az) - z
    share, step = 0.0, 0.5
    for _ in range(5):
        to_x, to_z = x + (share + step) * d_x, z + (share + step) * d_z
        c = trace(g, cell[i], way[i, 0], way[i, 2], to_x, to_z)
        seen = c >= 0 and visible(g, c, to_x, to_z, cell[i - 1], ax, az)
        seen = seen and visible(g, c, to_x, to_z, cell[i + 1], bx, bz)
        if seen and clearance(g, c, to_x, to_z)[0] >= g.radius - TOUCH:
            share += step
            way[i, 0], way[i, 1], way[i, 2], cell[i] = to_x, height(g, c, to_x, to_z), to_z, c
        step *= 0.5


@jit
def _merge_corners(g, way, cell, count):
    """Replace two way points by the one where their outer legs meet, if hardly longer. In place; new count.

    A string around a rounded corner has a way point every few centimetres: too many to walk by.
    """
    i = 1
    while i < count - 2:
        ax, az = way[i, 0] - way[i - 1, 0], way[i, 2] - way[i - 1, 2]
        bx, bz = way[i + 1, 0] - way[i + 2, 0], way[i + 1, 2] - way[i + 2, 2]
        d_x, d_z = way[i + 1, 0] - way[i, 0], way[i + 1, 2] - way[i, 2]
        cross = ax * bz - az * bx
        along_a, along_b = (d_x * bz - d_z * bx) / cross, (d_x * az - d_z * ax) / cross
        longer = along_a * np.hypot(ax, az) + along_b * np.hypot(bx, bz) - np.hypot(d_x, d_z)
        if abs(cross) > 1e-9 and along_a >= 0.0 and along_b >= 0.0 and longer < MERGE_LOSS:
            x, z = way[i, 0] + along_a * ax, way[i, 2] + along_a * az
            c = trace(g, cell[i], way[i, 0], way[i, 2], x, z)
            seen = c >= 0 and visible(g, c, x, z, cell[i + 2], way[i + 2, 0], way[i + 2, 2])
            if seen and clearance(g, c, x, z)[0] >= g.radius - TOUCH:
                way[i, 0], way[i, 1], way[i, 2], cell[i] = x, height(g, c, x, z), z, c
                count = _remove(way, cell, count, i + 1)
                continue
        i += 1
    return count


@jit
def path_to_goal(g, point, cell, distance, parent, c, x, y, z):
    """Shortest path from the navigable point (x, y, z) in cell c by the arrays of `distance_field`.

    Returns (length, points [M, 3], goal index); (inf, no points, -1) if no goal can be reached.
    """
    n = g.column.size
    best, first = np.inf, -1
    for i in range(18):
        m = g.link[c, i % 9] if i % 9 < 8 else c
        if m < 0:
            continue
        p = parent[m] if i < 9 else m
        if p < 0 or p == first or not np.isfinite(distance[p]):
            continue
        flat = (x - point[p, 0]) ** 2 + (z - point[p, 2]) ** 2
        length = distance[p] + np.sqrt(flat + (y - point[p, 1]) ** 2)
        at = p if p < n else cell[p - n]
        if length < best and visible(g, c, x, z, at, point[p, 0], point[p, 2]):
            best, first = length, p
    if first < 0:
        return np.inf, np.empty((0, 3))[:0], -1
    count, p = 2, first
    while p < n:
        p, count = parent[p], count + 1
    way, cells = np.empty((count, 3)), np.empty(count, np.int64)
    way[0, 0], way[0, 1], way[0, 2], cells[0] = x, y, z, c
    goal, p = -1, first
    for i in range(1, count):
        way[i, 0], way[i, 1], way[i, 2] = point[p, 0], point[p, 1], point[p, 2]
        cells[i] = p if p < n else cell[p - n]
        goal, p = p - n, parent[p]
    for _ in range(PULLS):
        count = _drop_corners(g, way, cells, count)
        for i in range(1, count - 1):
            _pull_corner(g, way, cells, i)
    count = _merge_corners(g, way, cells, count)
    total = 0.0
    for i in range(count - 1):
        total += _gap(way, i, i + 1)
    return total, way[:count], goal
