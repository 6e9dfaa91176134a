"""A bounding volume hierarchy in numba: casts rays where embreex has no wheel, with the same results."""

from __future__ import annotations

import numpy as np
from numba import njit

_BINS = 16
_LEAF_SIZE = 4
_STACK = 96
_SAH_DEPTH = 64  # deeper nodes are halved, which bounds the depth by 64 + log2(faces) < _STACK


class Bvh:
    """Binned surface-area-heuristic tree over triangles; `cast` returns the nearest hit of every ray."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        """vertices float32 [V, 3], faces int32 [F, 3]."""
        corners = vertices[faces]
        low, high = corners.min(axis=1), corners.max(axis=1)
        self._bounds, self._child, self._count, order = _build(low, high, (low + high) * np.float32(0.5))
        self._order = order
        # Corner and two edges, in leaf order: one contiguous read per triangle test.
        self._triangles = np.ascontiguousarray(
            np.stack([corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]], axis=1)[order]
        ).reshape(-1, 9)

    def cast(self, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Cast rays from one origin float32 [3] along directions float32 [N, 3] (any length).

        Returns face int32 [N] (−1: no hit), barycentric u, v float32 [N] of the second and third corner, and
        t float32 [N] in units of each direction's length.
        """
        return _cast(origin, directions, self._bounds, self._child, self._count, self._triangles, self._order)


@njit(cache=True)
def _half_area(low: np.ndarray, high: np.ndarray) -> float:
    x, y, z = high[0] - low[0], high[1] - low[1], high[2] - low[2]
    return x * y + y * z + z * x


@njit(cache=True)
def _best_split(centre, low, high, order, start, end):
    """The cheapest of the binned splits of order[start:end]: (axis, position), axis −1 where none helps."""
    best_cost, best_axis, best_position = np.inf, -1, 0.0
    for axis in range(3):
        c_low, c_high = np.inf, -np.inf
        for i in range(start, end):
            c = centre[order[i], axis]
            c_low, c_high = min(c_low, c), max(c_high, c)
        if c_high - c_low < 1e-9:
            continue
        counts = np.zeros(_BINS, np.int64)
        lows = np.full((_BINS, 3), np.inf, np.float32)
        highs = np.full((_BINS, 3), -np.inf, np.float32)
        scale = _BINS / (c_high - c_low)
        for i in range(start, end):
            f = order[i]
            b = min(int((centre[f, axis] - c_low) * scale), _BINS - 1)
            counts[b] += 1
            for k in range(3):
                lows[b, k], highs[b, k] = min(lows[b, k], low[f, k]), max(highs[b, k], high[f, k])
        right_cost = np.zeros(_BINS)
        box_low, box_high, n = np.full(3, np.inf, np.float32), np.full(3, -np.inf, np.float32), 0
        for b in range(_BINS - 1, 0, -1):
            box_low, box_high, n = np.minimum(box_low, lows[b]), np.maximum(box_high, highs[b]), n + counts[b]
            right_cost[b] = n * _half_area(box_low, box_high) if n else 0.0
        box_low, box_high, n = np.full(3, np.inf, np.float32), np.full(3, -np.inf, np.float32), 0
        for b in range(_BINS - 1):
            box_low, box_high, n = np.minimum(box_low, lows[b]), np.maximum(box_high, highs[b]), n + counts[b]
            if n == 0 or n == end - start:
                continue
            cost = n * _half_area(box_low, box_high) + right_cost[b + 1]
            if cost < best_cost:
                best_cost, best_axis, best_position = cost, axis, c_low + (b + 1) / scale
    return best_axis, best_position


@njit(cache=True)
def _build(low, high, centre):
    """Nodes: bounds [K, 6]; child = index of the left child (right is next), or first triangle of a leaf; count = 0
    for inner nodes, the number of triangles for leaves."""
    faces = len(low)
    order = np.arange(faces).astype(np.int32)
    bounds = np.zeros((max(2 * faces, 1), 6), np.float32)
    child = np.zeros(len(bounds), np.int32)
    count = np.zeros(len(bounds), np.int32)
    nodes = 1
    todo = [(0, 0, faces, 0)]
    while len(todo):
        node, start, end, depth = todo.pop()
        bounds[node, :3], bounds[node, 3:] = np.inf, -np.inf
        for i in range(start, end):
            f = order[i]
            for k in range(3):
                bounds[node, k] = min(bounds[node, k], low[f, k])
                bounds[node, 3 + k] = max(bounds[node, 3 + k], high[f, k])
        middle = start
        if end - start > _LEAF_SIZE:
            axis, position = -1, 0.0
            if depth < _SAH_DEPTH:
                axis, position = _best_split(centre, low, high, order, start, end)
            if axis >= 0:
                last = end - 1
                while middle <= last:
                    if centre[order[middle], axis] < position:
                        middle += 1
                    else:
                        order[middle], order[last] = order[last], order[middle]
                        last -= 1
            if middle in (start, end):  # all centres coincide
                middle = (start + end) // 2
        if middle == start:
            child[node], count[node] = start, end - start
        else:
            child[node] = nodes
            todo.append((nodes, start, middle, depth + 1))
            todo.append((nodes + 1, middle, end, depth + 1))
            nodes += 2
    return bounds[:nodes].copy(), child[:nodes].copy(), count[:nodes].copy(), order


@njit(cache=True, fastmath={"contract", "arcp", "nsz"})
def _enter(bounds, node, ox, oy, oz, ix, iy, iz, nearest):
    """Distance at which the ray enters a node's box; infinity where it misses it or is farther than `nearest`."""
    x0, x1 = (bounds[node, 0] - ox) * ix, (bounds[node, 3] - ox) * ix
    y0, y1 = (bounds[node, 1] - oy) * iy, (bounds[node, 4] - oy) * iy
    z0, z1 = (bounds[node, 2] - oz) * iz, (bounds[node, 5] - oz) * iz
    near = max(max(min(x0, x1), min(y0, y1)), max(min(z0, z1), np.float32(0.0)))
    far = min(min(max(x0, x1), max(y0, y1)), min(max(z0, z1), nearest))
    # The slack keeps flat boxes (walls along an axis) from being lost to rounding.
    return near if near <= far * np.float32(1.000001) else np.float32(np.inf)


@njit(cache=True, nogil=True, fastmath={"contract", "arcp", "nsz"})
def _cast(origin, directions, bounds, child, count, triangles, order):
    rays = len(directions)
    face = np.full(rays, -1, np.int32)
    us, vs = np.zeros(rays, np.float32), np.zeros(rays, np.float32)
    ts = np.full(rays, np.inf, np.float32)
    if len(triangles) == 0:
        return face, us, vs, ts
    stack = np.empty(_STACK, np.int32)
    stack_t = np.empty(_STACK, np.float32)
    ox, oy, oz = origin[0], origin[1], origin[2]
    one, tiny = np.float32(1.0), np.float32(1e-20)
    for r in range(rays):
        dx, dy, dz = directions[r, 0], directions[r, 1], directions[r, 2]
        ix = one / (dx if abs(dx) > tiny else tiny)
        iy = one / (dy if abs(dy) > tiny else tiny)
        iz = one / (dz if abs(dz) > tiny else tiny)
        nearest, hit, hit_u, hit_v = np.float32(np.inf), -1, np.float32(0), np.float32(0)
        top = 0
        node, node_t = 0, _enter(bounds, 0, ox, oy, oz, ix, iy, iz, nearest)
        while True:
            if node_t < nearest:
                if count[node] == 0:
                    a = child[node]
                    b = a + 1
                    ta = _enter(bounds, a, ox, oy, oz, ix, iy, iz, nearest)
                    tb = _enter(bounds, b, ox, oy, oz, ix, iy, iz, nearest)
                    if tb < ta:
                        a, b, ta, tb = b, a, tb, ta
                    if tb < nearest:
                        stack[top], stack_t[top] = b, tb
                        top += 1
                    node, node_t = a, ta
                    continue
                for i in range(child[node], child[node] + count[node]):
                    e1x, e1y, e1z = triangles[i, 3], triangles[i, 4], triangles[i, 5]
                    e2x, e2y, e2z = triangles[i, 6], triangles[i, 7], triangles[i, 8]
                    px, py, pz = dy * e2z - dz * e2y, dz * e2x - dx * e2z, dx * e2y - dy * e2x
                    det = e1x * px + e1y * py + e1z * pz
                    if det == 0.0:
                        continue
                    inv = one / det
                    sx, sy, sz = ox - triangles[i, 0], oy - triangles[i, 1], oz - triangles[i, 2]
                    u = (sx * px + sy * py + sz * pz) * inv
                    if u < 0.0 or u > 1.0:
                        continue
                    qx, qy, qz = sy * e1z - sz * e1y, sz * e1x - sx * e1z, sx * e1y - sy * e1x
                    v = (dx * qx + dy * qy + dz * qz) * inv
                    if v < 0.0 or u + v > 1.0:
                        continue
                    t = (e2x * qx + e2y * qy + e2z * qz) * inv
                    if 0.0 < t < nearest:
                        nearest, hit, hit_u, hit_v = t, i, u, v
            if top == 0:
                break
            top -= 1
            node, node_t = stack[top], stack_t[top]
        if hit >= 0:
            face[r], us[r], vs[r], ts[r] = order[hit], hit_u, hit_v, nearest
    return face, us, vs, ts
