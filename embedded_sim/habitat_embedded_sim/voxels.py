"""Triangles to walkable voxel cells: the first half of building a navigation mesh.

As Recast does it: triangles are cut into columns of a horizontal grid, the pieces of a column are merged into
solid spans, and the top of a span becomes a walkable *cell* if its slope, its headroom and the steps to its
neighbours suit the agent. Unlike Recast, heights stay exact (they are not rounded to voxels).

Coordinates: metres, y up, the floor plane is x-z. A column is numbered `iz * nx + ix` and may hold several
cells (storeys). The eight directions to a neighbour are +x, +z, -x, -z, +x+z, -x+z, -x-z, +x-z.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# A float division by zero gives inf, as in numpy; the check for it would cost time.
jit = njit(cache=True, error_model="numpy")

STEP_X = np.array([1, 0, -1, 0, 1, -1, -1, 1])
STEP_Z = np.array([0, 1, 0, -1, 1, 1, -1, -1])


@jit
def _clip(poly, count, axis, value, sign, out):
    """Cut a polygon [count, 3] by the half space `sign * (p[axis] - value) >= 0`; returns the new count."""
    kept = 0
    for i in range(count):
        j = i + 1 if i + 1 < count else 0
        a = sign * (poly[i, axis] - value)
        b = sign * (poly[j, axis] - value)
        if a >= 0.0:
            for k in range(3):
                out[kept, k] = poly[i, k]
            kept += 1
        if (a > 0.0 and b < 0.0) or (a < 0.0 and b > 0.0):
            t = a / (a - b)
            for k in range(3):
                out[kept, k] = poly[i, k] + t * (poly[j, k] - poly[i, k])
            kept += 1
    return kept


@jit
def _slab(poly, count, axis, origin, size, index, single, spare):
    """Cut `poly` in place to slab `index` along `axis`; a `single` slab is kept whole (no rounding loss)."""
    if single:
        return count
    low = origin + index * size
    count = _clip(poly, count, axis, low, 1.0, spare)
    return _clip(spare, count, axis, low + size, -1.0, poly)


@jit
def _slab_range(poly, count, axis, origin, size, limit):
    """First and last slab that a polygon overlaps by more than 1 % of a slab (always at least one)."""
    low = high = poly[0, axis]
    for i in range(1, count):
        low = min(low, poly[i, axis])
        high = max(high, poly[i, axis])
    first = int(np.floor((low - origin) / size + 0.01))
    last = max(first, int(np.floor((high - origin) / size - 0.01)))
    return min(max(first, 0), limit - 1), min(max(last, 0), limit - 1)


@jit
def _doubled(data):
    larger = np.empty((2 * data.shape[0], 4))
    for i in range(data.shape[0]):
        for k in range(4):
            larger[i, k] = data[i, k]
    return larger


@jit
def rasterise(vertices, faces, min_normal_y, x0, z0, size, nx, nz):
    """Cut every triangle into columns.

    Returns (float64 [capacity, 4], used): per piece its column, its height range, and the height of its
    surface at the column's centre where the triangle is flat enough to walk on (NaN where it is not).
    """
    data, used = np.empty((1024 + 4 * faces.shape[0], 4)), 0
    row, spare, piece = np.empty((12, 3)), np.empty((12, 3)), np.empty((12, 3))
    corner, p, e1, e2 = np.empty((3, 3)), np.empty(3), np.empty(3), np.empty(3)
    for f in range(faces.shape[0]):
        for k in range(3):
            p[k] = vertices[faces[f, 0], k]
            e1[k], e2[k] = vertices[faces[f, 1], k] - p[k], vertices[faces[f, 2], k] - p[k]
        n_x = e1[1] * e2[2] - e1[2] * e2[1]
        n_y = e1[2] * e2[0] - e1[0] * e2[2]
        n_z = e1[0] * e2[1] - e1[1] * e2[0]
        norm = max(np.sqrt(n_x * n_x + n_y * n_y + n_z * n_z), 1e-300)
        walkable = n_y > 0.0 and n_y >= min_normal_y * norm
        for i in range(3):  # a wall on the border of two columns belongs to the one behind it
            corner[i, 0] = vertices[faces[f, i], 0] - 0.02 * size * n_x / norm
            corner[i, 1] = vertices[faces[f, i], 1]
            corner[i, 2] = vertices[faces[f, i], 2] - 0.02 * size * n_z / norm
        row_first, row_last = _slab_range(corner, 3, 2, z0, size, nz)
        for iz in range(row_first, row_last + 1):
            for i in range(3):
                for k in range(3):
                    row[i, k] = corner[i, k]
            count = _slab(row, 3, 2, z0, size, iz, row_first == row_last, spare)
            if count == 0:
                continue
            first, last = _slab_range(row, count, 0, x0, size, nx)
            for ix in range(first, last + 1):
                for i in range(count):
                    for k in range(3):
                        piece[i, k] = row[i, k]
                corners = _slab(piece, count, 0, x0, size, ix, first == last, spare)
                if corners == 0:
                    continue
                low = high = piece[0, 1]
                for i in range(1, corners):
                    low, high = min(low, piece[i, 1]), max(high, piece[i, 1])
                if used == data.shape[0]:
                    data = _doubled(data)
                data[used, 0], data[used, 1], data[used, 2], data[used, 3] = iz * nx + ix, low, high, np.nan
                if walkable:
                    d_x, d_z = x0 + (ix + 0.5) * size - p[0], z0 + (iz + 0.5) * size - p[2]
                    data[used, 3] = min(max(p[1] - (n_x * d_x + n_z * d_z) / n_y, low), high)
                used += 1
    return data, used


@jit
def _by_column(data, used, columns):
    """Order of the pieces by column, then by lower end, and where each column begins in it."""
    begin, filled = np.zeros(columns + 1, np.int64), np.zeros(columns, np.int64)
    order = np.empty(used, np.int64)
    for i in range(used):
        begin[int(data[i, 0]) + 1] += 1
    for c in range(columns):
        begin[c + 1] += begin[c]
    for i in range(used):
        column = int(data[i, 0])
        j = begin[column] + filled[column]
        filled[column] += 1
        while j > begin[column] and data[order[j - 1], 1] > data[i, 1]:  # insertion sort
            order[j] = order[j - 1]
            j -= 1
        order[j] = i
    return order, begin


@jit
def stack_columns(data, used, columns, gap, climb, height):
    """Merge the pieces of each column into solid spans and keep those that can be stood on.

    Pieces closer than `gap` merge. A span is walkable if a walkable surface lies within `climb` of its top
    with `height` free above. Returns (start int64 [columns + 1], cells float64 [N, 3]): column, floor and
    ceiling of each cell, by column and then by height; the cells of column c are start[c] to start[c + 1].
    """
    order, begin = _by_column(data, used, columns)
    start, cells, count = np.zeros(columns + 1, np.int64), np.empty((used, 3)), 0
    for c in range(columns):
        i, last = begin[c], begin[c + 1]
        while i < last:
            high, walk = data[order[i], 2], data[order[i], 3]
            i += 1
            while i < last and data[order[i], 1] <= high + gap:
                high = max(high, data[order[i], 2])
                if np.isnan(walk) or data[order[i], 3] > walk:
                    walk = data[order[i], 3]
                i += 1
            ceiling = data[order[i], 1] if i < last else np.inf
            if high - walk <= climb and ceiling - walk >= height:
                cells[count, 0], cells[count, 1], cells[count, 2] = c, walk, ceiling
                count += 1
        start[c + 1] = count
    return start, cells[:count]


@jit
def _neighbour(start, cells, cell, column, climb, height):
    """The cell of `column` that can be stepped to from `cell` (nearest in height), or -1."""
    best, found = climb + 1e-3, -1
    for other in range(start[column], start[column + 1]):
        rise = abs(cells[other, 1] - cells[cell, 1])
        free = min(cells[other, 2], cells[cell, 2]) - max(cells[other, 1], cells[cell, 1])
        if rise <= best and free >= height - 1e-3:
            best, found = rise, other
    return found


@jit
def link_cells(start, column, cells, nx, nz, climb, height):
    """int64 [N, 8]: the neighbour of every cell in the eight directions, -1 where there is none.

    Links are mutual; a diagonal link exists where both ways around its corner lead to the same cell.
    """
    n = column.size
    link = np.empty((n, 8), np.int64)
    for c in range(n):
        for k in range(8):
            link[c, k] = -1
    for c in range(n):
        ix, iz = column[c] % nx, column[c] // nx
        for k in range(2):
            if ix + STEP_X[k] < nx and iz + STEP_Z[k] < nz:
                there = column[c] + STEP_X[k] + STEP_Z[k] * nx
                other = _neighbour(start, cells, c, there, climb, height)
                if other >= 0 and _neighbour(start, cells, other, column[c], climb, height) == c:
                    link[c, k] = other
                    link[other, k + 2] = c
    for c in range(n):
        for k in range(4):
            one, two = link[c, k], link[c, (k + 1) % 4]
            if one >= 0 and two >= 0 and link[one, (k + 1) % 4] == link[two, k]:
                link[c, k + 4] = link[one, (k + 1) % 4]
    return link


@jit
def nearest_blocked(link, column, nx):
    """int64 [N, 2]: grid position (ix, iz) of the blocked square nearest to the centre of each cell.

    A square is blocked, seen from a cell, where a link is missing: a wall, a drop, the edge of the mesh. The
    squares are handed on from neighbour to neighbour in sweeps until nothing changes (a vector distance
    transform), so storeys do not disturb one another.
    """
    n = column.size
    source, best = np.zeros((n, 2), np.int64), np.empty(n, np.int64)
    for c in range(n):
        best[c] = 1 << 60
        ix, iz = column[c] % nx, column[c] // nx
        for k in range(8):
            inner_corner = k < 4 or (link[c, k - 4] >= 0 and link[c, (k - 3) % 4] >= 0)
            if link[c, k] < 0 and inner_corner and best[c] > (1 if k < 4 else 2):
                best[c] = 1 if k < 4 else 2
                source[c, 0], source[c, 1] = ix + STEP_X[k], iz + STEP_Z[k]
    changed, sweep = True, 0
    while changed:
        changed = False
        for i in range(n):
            c = i if sweep % 2 == 0 else n - 1 - i
            ix, iz = column[c] % nx, column[c] // nx
            for k in range(8):
                m = link[c, k]
                if m >= 0 and best[m] < (1 << 60):
                    d_x = max(2 * abs(source[m, 0] - ix) - 1, 0)  # in half cells, centre to square
                    d_z = max(2 * abs(source[m, 1] - iz) - 1, 0)
                    if d_x * d_x + d_z * d_z < best[c]:
                        best[c] = d_x * d_x + d_z * d_z
                        source[c, 0], source[c, 1] = source[m, 0], source[m, 1]
                        changed = True
        sweep += 1
    return source
