"""The walkable surface as a continuous thing: clearance, visibility, projection and motion on voxel cells.

A point on the surface is a cell and a position (x, z) in it. It is navigable if its *clearance*, the exact
distance in the floor plane to the nearest blocked square, is at least the agent's radius. So the navigable
region is the cells shrunk by a disc: straight along walls, rounded at outer corners, independent of cell
centres.

All functions are jitted. Lengths are metres; y is up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .voxels import STEP_X, STEP_Z, jit

BLOCKED, PARTIAL, OPEN = 0, 1, 2
TOUCH = 1e-3  # a point counts as navigable down to this much below the radius
GRAZE = 8e-3  # a line of sight may cut a rounded corner by this much
STRIDE = 0.01  # longest piece of a motion between two contact checks


class Cells(NamedTuple):
    """A navigation mesh with N cells on a grid of nz x nx columns, as the jitted functions take it."""

    x0: float  # lower corner of the grid
    z0: float
    size: float  # edge of a column
    nx: int
    nz: int
    radius: float  # of the agent
    climb: float  # largest step
    start: np.ndarray  # int64 [nx * nz + 1]: first cell of each column
    column: np.ndarray  # int64 [N]
    floor: np.ndarray  # float64 [N]: height at the cell's centre
    link: np.ndarray  # int64 [N, 8]: neighbours (see voxels.py)
    source: np.ndarray  # int64 [N, 2]: nearest blocked square
    kind: np.ndarray  # uint8 [N]: BLOCKED, PARTIAL or OPEN (no, some or all points navigable)
    free: np.ndarray  # float64 [N]: from any point of the cell, this far any way is navigable
    node: np.ndarray  # float64 [N, 3]: a navigable point of the cell, NaN for BLOCKED
    island: np.ndarray  # int64 [N]: connected component, -1 for BLOCKED


@jit
def _to_square(g, x, z, sx, sz):
    """Distance from (x, z) to grid square (sx, sz), and the nearest point of the square."""
    low_x, low_z = g.x0 + sx * g.size, g.z0 + sz * g.size
    qx, qz = min(max(x, low_x), low_x + g.size), min(max(z, low_z), low_z + g.size)
    return np.sqrt((x - qx) ** 2 + (z - qz) ** 2), qx, qz


@jit
def clearance(g, c, x, z):
    """(distance, x, z): the nearest blocked point seen from (x, z) in cell c."""
    ix, iz = g.column[c] % g.nx, g.column[c] // g.nx
    a = 0 if (x - g.x0) / g.size - ix >= 0.5 else 2
    b = 1 if (z - g.z0) / g.size - iz >= 0.5 else 3
    diagonal = (4 if b == 1 else 7) if a == 0 else (5 if b == 1 else 6)
    best, best_x, best_z = _to_square(g, x, z, g.source[c, 0], g.source[c, 1])
    for k in (a, b, diagonal):
        m = g.link[c, k]
        if m >= 0:
            sx, sz = g.source[m, 0], g.source[m, 1]
        elif k < 4:
            sx, sz = ix + STEP_X[k], iz + STEP_Z[k]
        else:
            continue
        d, qx, qz = _to_square(g, x, z, sx, sz)
        if d < best:
            best, best_x, best_z = d, qx, qz
    return best, best_x, best_z


@jit
def height(g, c, x, z):
    """Floor height at (x, z) in cell c, interpolated between the centres of linked cells."""
    ix, iz = g.column[c] % g.nx, g.column[c] // g.nx
    u, v = (x - g.x0) / g.size - ix - 0.5, (z - g.z0) / g.size - iz - 0.5
    a, b = (0 if u >= 0 else 2), (1 if v >= 0 else 3)
    diagonal = (4 if b == 1 else 7) if a == 0 else (5 if b == 1 else 6)
    u, v = min(abs(u), 1.0), min(abs(v), 1.0)
    y = g.floor[c]
    ya = g.floor[g.link[c, a]] if g.link[c, a] >= 0 else y
    yb = g.floor[g.link[c, b]] if g.link[c, b] >= 0 else y
    yd = g.floor[g.link[c, diagonal]] if g.link[c, diagonal] >= 0 else ya + yb - y
    return (1 - v) * ((1 - u) * y + u * ya) + v * ((1 - u) * yb + u * yd)


@jit
def push_out(g, c, x, z):
    """Move (x, z) away from blocked squares until its clearance is the radius.

    Returns (ok, x, z); not ok if that fails or leads more than a hair out of cell c.
    """
    low_x, low_z = g.x0 + (g.column[c] % g.nx) * g.size, g.z0 + (g.column[c] // g.nx) * g.size
    for _ in range(8):
        d, qx, qz = clearance(g, c, x, z)
        if d >= g.radius - 1e-6:
            return True, x, z
        if d < 1e-9:  # on the square's edge: leave it towards the cell's centre
            x, z = x + 1e-3 * (low_x + 0.5 * g.size - x), z + 1e-3 * (low_z + 0.5 * g.size - z)
            d, qx, qz = clearance(g, c, x, z)
            if d < 1e-9:
                return False, x, z
        x, z = x + (x - qx) / d * (g.radius - d), z + (z - qz) / d * (g.radius - d)
        if abs(x - low_x - 0.5 * g.size) > 0.501 * g.size or abs(z - low_z - 0.5 * g.size) > 0.501 * g.size:
            return False, x, z
    return False, x, z


@jit
def trace(g, c, x, z, to_x, to_z):
    """Walk the straight line from (x, z) in cell c; the cell reached, or -1 if something is in the way."""
    ix, iz = g.column[c] % g.nx, g.column[c] // g.nx
    d_x, d_z = to_x - x, to_z - z
    kx, kz = (0 if d_x > 0 else 2), (1 if d_z > 0 else 3)
    next_x, pace_x, next_z, pace_z = np.inf, np.inf, np.inf, np.inf
    if d_x != 0.0:
        pace_x = g.size / abs(d_x)
        next_x = max((g.x0 + (ix + (d_x > 0)) * g.size - x) / d_x, 0.0)
    if d_z != 0.0:
        pace_z = g.size / abs(d_z)
        next_z = max((g.z0 + (iz + (d_z > 0)) * g.size - z) / d_z, 0.0)
    t, pace = 0.0, 1.0 / max(np.hypot(d_x, d_z), 1e-12)
    while True:
        if g.free[c] > 4 * g.size:  # far from obstacles: leap, where that cannot land on another storey
            s = t + g.free[c] * pace
            if s >= 1.0:
                s = 1.0
            ix = int(np.floor((x + s * d_x - g.x0) / g.size))
            iz = int(np.floor((z + s * d_z - g.z0) / g.size))
            column = iz * g.nx + ix
            if g.start[column + 1] - g.start[column] == 1:
                c, t = g.start[column], s
                # Along a border of cells, where rounding may put the next one behind us, time must not go back.
                next_x = max((g.x0 + (ix + (d_x > 0)) * g.size - x) / d_x, t) if d_x != 0.0 else np.inf
                next_z = max((g.z0 + (iz + (d_z > 0)) * g.size - z) / d_z, t) if d_z != 0.0 else np.inf
                if t >= 1.0:
                    return c
                continue
        leave = min(next_x, next_z, 1.0)
        if g.kind[c] == BLOCKED:
            return -1
        if g.kind[c] == PARTIAL:
            for s in (0.5 * (t + leave), leave):
                if clearance(g, c, x + s * d_x, z + s * d_z)[0] < g.radius - GRAZE:
                    return -1
        if leave >= 1.0:
            return c
        if next_x < next_z:
            c, next_x = g.link[c, kx], next_x + pace_x
        else:
            c, next_z = g.link[c, kz], next_z + pace_z
        if c < 0:
            return -1
        t = leave


@jit
def visible(g, c, x, z, target, to_x, to_z):
    """Whether the straight line from (x, z) in cell c to (to_x, to_z) in cell `target` stays navigable."""
    reached = trace(g, c, x, z, to_x, to_z)
    if reached < 0 or reached == target:
        return reached >= 0
    beside = False
    for k in range(8):  # the end lies on the border of two cells
        beside = beside or g.link[reached, k] == target
    return beside


@jit
def snap(g, x, y, z, reach, reach_y):
    """Nearest navigable point within +-reach in x and z and +-reach_y in y: (cell, x, y, z), cell -1 if none.

    A floor straight below or above counts as nearer by the climb, as in Detour.
    """
    ix0, iz0 = int(np.floor((x - g.x0) / g.size)), int(np.floor((z - g.z0) / g.size))
    best, cell, bx, by, bz = np.inf, -1, np.nan, np.nan, np.nan
    for ring in range(int(np.ceil(reach / g.size)) + 1):
        if ring > 1 and ((ring - 1) * g.size) ** 2 > best:
            break
        for iz in range(max(iz0 - ring, 0), min(iz0 + ring, g.nz - 1) + 1):
            stride = 1 if abs(iz - iz0) == ring else max(2 * ring, 1)
            for ix in range(ix0 - ring, ix0 + ring + 1, stride):
                if ix < 0 or ix >= g.nx:
                    continue
                for c in range(g.start[iz * g.nx + ix], g.start[iz * g.nx + ix + 1]):
                    rise = abs(g.floor[c] - y)
                    if g.kind[c] == BLOCKED or rise > reach_y + g.climb:
                        continue
                    px = min(max(x, g.x0 + ix * g.size + 1e-9), g.x0 + (ix + 1) * g.size - 1e-9)
                    pz = min(max(z, g.z0 + iz * g.size + 1e-9), g.z0 + (iz + 1) * g.size - 1e-9)
                    if (px - x) ** 2 + (pz - z) ** 2 + max(rise - g.climb - g.size, 0.0) ** 2 >= best:
                        continue
                    if g.kind[c] == PARTIAL and clearance(g, c, px, pz)[0] < g.radius - TOUCH:
                        ok, px, pz = push_out(g, c, px, pz)
                        if not ok:
                            px, pz = g.node[c, 0], g.node[c, 2]
                    if abs(px - x) > reach or abs(pz - z) > reach:
                        continue
                    py = height(g, c, px, pz)
                    flat = (px - x) ** 2 + (pz - z) ** 2
                    up = abs(py - y) if flat > 1e-12 else max(abs(py - y) - g.climb, 0.0)
                    if abs(py - y) <= reach_y and flat + up * up < best:
                        best, cell, bx, by, bz = flat + up * up, c, px, py, pz
    return cell, bx, by, bz


@jit
def _hop(g, c, x, z):
    """The cell holding (x, z), which lies in cell c or next to it; -1 if there is none."""
    d_x = int(np.floor((x - g.x0) / g.size)) - g.column[c] % g.nx
    d_z = int(np.floor((z - g.z0) / g.size)) - g.column[c] // g.nx
    if d_x == 0 and d_z == 0:
        return c
    for k in range(8):
        if STEP_X[k] == d_x and STEP_Z[k] == d_z:
            return g.link[c, k]
    return -1


@jit
def _touch(g, c, x, z):
    """Put (x, z) near cell c, at most a stride off the navigable region, back on it: (cell or -1, x, z)."""
    for _ in range(4):
        m = _hop(g, c, x, z)
        if m < 0:
            return -1, x, z
        d, qx, qz = clearance(g, m, x, z)
        if d >= g.radius - 0.5 * TOUCH and g.kind[m] != BLOCKED:
            return m, x, z
        if d < 1e-9:
            return -1, x, z
        gain = (g.radius - d + 1e-6) / d
        x, z = x + (x - qx) * gain, z + (z - qz) * gain
    return -1, x, z


@jit
def move(g, c, x, z, to_x, to_z, slide):
    """Walk from the navigable point (x, z) in cell c towards (to_x, to_z): (cell, x, z) where the walk ends.

    Without `slide` it ends at the first contact. With it, it goes on along the boundary as long as that leads
    nearer to the target and the way is not longer than the straight one.
    """
    budget = np.sqrt((to_x - x) ** 2 + (to_z - z) ** 2) + 1e-9
    while budget > 0.0:
        d_x, d_z = to_x - x, to_z - z
        left = np.sqrt(d_x * d_x + d_z * d_z)
        if left < 1e-7:
            break
        if slide and g.kind[c] == PARTIAL:
            d, qx, qz = clearance(g, c, x, z)
            if 0.0 < d < g.radius + TOUCH:  # in contact: keep the part of the motion along the boundary
                into = ((x - qx) * d_x + (z - qz) * d_z) / d
                if into < 0.0:
                    d_x, d_z = d_x - into * (x - qx) / d, d_z - into * (z - qz) / d
        along = np.sqrt(d_x * d_x + d_z * d_z)
        if along < 1e-6:
            break
        share = min(1.0, STRIDE / along, budget / along)
        m, nx, nz = c, x, z
        for _ in range(10):
            nx, nz = x + share * d_x, z + share * d_z
            m = _hop(g, c, nx, nz)
            if m >= 0 and slide:
                m, nx, nz = _touch(g, m, nx, nz)
            elif m >= 0 and (g.kind[m] == BLOCKED or clearance(g, m, nx, nz)[0] < g.radius - 0.5 * TOUCH):
                m = -1
            if m >= 0:
                break
            share *= 0.5
        if m < 0 or left - np.sqrt((to_x - nx) ** 2 + (to_z - nz) ** 2) < 1e-6:
            break
        budget -= max(np.sqrt((nx - x) ** 2 + (nz - z) ** 2), 1e-6)
        c, x, z = m, nx, nz
    return c, x, z


@jit
def find_nodes(g):
    """Fill g.kind, g.free and g.node from the clearance; float64 [N]: the navigable m^2 of each cell."""
    half = np.sqrt(0.5) * g.size
    area = np.zeros(g.column.size)
    for c in range(g.column.size):
        low_x, low_z = g.x0 + (g.column[c] % g.nx) * g.size, g.z0 + (g.column[c] // g.nx) * g.size
        x, z = low_x + 0.5 * g.size, low_z + 0.5 * g.size
        d = clearance(g, c, x, z)[0]
        g.kind[c] = OPEN if d >= g.radius + half else (PARTIAL if d >= g.radius - half - TOUCH else BLOCKED)
        g.free[c] = max(d - half - g.radius, 0.0)
        area[c] = g.size * g.size if g.kind[c] == OPEN else 0.0
        if g.kind[c] == PARTIAL:
            ok, x, z = push_out(g, c, x, z)
            best = g.radius - TOUCH
            for i in range(16):
                sx, sz = low_x + (i % 4 + 0.5) * g.size / 4, low_z + (i // 4 + 0.5) * g.size / 4
                d = clearance(g, c, sx, sz)[0]
                area[c] += g.size * g.size / 16 if d >= g.radius else 0.0
                if not ok and d >= best:
                    best, x, z = d, sx, sz
            g.kind[c] = PARTIAL if ok or best > g.radius - TOUCH else BLOCKED
        if g.kind[c] != BLOCKED:
            g.node[c, 0], g.node[c, 1], g.node[c, 2] = x, height(g, c, x, z), z
    return area


@jit
def find_islands(g):
    """Fill g.island by flooding from node to visible node; the number of islands."""
    stack = np.empty(g.column.size, np.int64)
    count = 0
    for seed in range(g.column.size):
        if g.kind[seed] == BLOCKED or g.island[seed] >= 0:
            continue
        g.island[seed], stack[0], top = count, seed, 1
        while top > 0:
            top -= 1
            c = stack[top]
            for k in range(8):
                m = g.link[c, k]
                if m < 0 or g.kind[m] == BLOCKED or g.island[m] >= 0:
                    continue
                if visible(g, c, g.node[c, 0], g.node[c, 2], m, g.node[m, 0], g.node[m, 2]):
                    g.island[m], stack[top] = count, m
                    top += 1
        count += 1
    return count


@jit
def cell_at(g, x, y, z, reach_y, slack):
    """The cell at (x, z) with the floor nearest to y, within reach_y, clearance >= radius - slack; or -1."""
    ix, iz = int(np.floor((x - g.x0) / g.size)), int(np.floor((z - g.z0) / g.size))
    if ix < 0 or iz < 0 or ix >= g.nx or iz >= g.nz:
        return -1
    best, found = reach_y, -1
    for c in range(g.start[iz * g.nx + ix], g.start[iz * g.nx + ix + 1]):
        if g.kind[c] == BLOCKED or abs(g.floor[c] - y) > reach_y + g.size:
            continue
        rise = abs(height(g, c, x, z) - y)
        if rise <= best and (g.kind[c] == OPEN or clearance(g, c, x, z)[0] >= g.radius - slack):
            best, found = rise, c
    return found


@jit
def draw_map(g, x0, z0, step, y, reach_y, out):
    """Fill the map out [rows, columns]: island of (x0 + column * step, y, z0 + row * step), -1 if not navigable."""
    for row in range(out.shape[0]):
        for col in range(out.shape[1]):
            c = cell_at(g, x0 + col * step, y, z0 + row * step, reach_y, TOUCH)
            out[row, col] = g.island[c] if c >= 0 else -1
