"""From ray hits to colours: textures with mip levels, vertex colours, base colours.

A surface shows texture × vertex colour × base colour, without lights and without colour-space conversion, as
habitat-sim's flat shader does. A material that is not `KHR_materials_unlit` is multiplied by a factor of its face's
normal alone (0.7 to 1.0), so that the walls of an untextured room can be told apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from PIL import Image

from .mesh import Mesh


@dataclass
class Surface:
    """What the shading kernel reads, per face and per texel. See `Surface.of`."""

    corners: np.ndarray  # float32 [F, 3, 5]: texture coordinates and colour (0–1, all factors but the texture)
    texture: np.ndarray  # int32 [F], −1: none
    texel_density: np.ndarray  # float32 [F]: texels of level 0 per metre
    texels: np.ndarray  # uint8 [N, 3]: every level of every texture, one after the other
    levels: np.ndarray  # int64 [T, L, 3]: first texel, height, width; the last level is repeated

    @classmethod
    def of(cls, mesh: Mesh) -> Surface:
        """Prepare a mesh for shading: colours, mip levels and texel densities."""
        a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(np.float64) for i in range(3))
        normal = np.cross(b - a, c - a)
        double_area = np.maximum(np.linalg.norm(normal, axis=1), 1e-20)
        unit = np.abs(normal / double_area[:, None])
        factor = np.minimum(0.7 + 0.3 * unit[:, 1] + 0.15 * unit[:, 0], 1.0)
        factor[mesh.unlit[mesh.face_material]] = 1.0
        light = mesh.base_colour[mesh.face_material] * factor[:, None]
        corners = np.empty((len(mesh.faces), 3, 5), np.float32)
        corners[..., :2] = mesh.uv[mesh.faces]
        corners[..., 2:] = mesh.colours[mesh.faces] / 255 * light[:, None]
        texels, levels = _pyramids(mesh.textures)
        texture = mesh.texture[mesh.face_material].astype(np.int32)
        size = levels[np.maximum(texture, 0), 0, 1:].prod(axis=1) if len(levels) else np.ones(len(texture))
        first, second = (corners[:, i, :2].astype(np.float64) - corners[:, 0, :2] for i in (1, 2))
        double_uv_area = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
        density = np.sqrt(double_uv_area * size / double_area).astype(np.float32)
        return cls(corners, texture, density, texels, levels)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def shade(self, face: np.ndarray, u: np.ndarray, v: np.ndarray, depth: np.ndarray, pixel: float) -> np.ndarray:
        """Colours uint8 [N, 4] of N hits.

        face int32 (−1: nothing, black), barycentric u, v, planar depth in metres (all [N]); `pixel`: the width of a
        pixel at one metre, in metres, from which the mip level follows.
        """
        return _shade(
            face,
            u,
            v,
            depth,
            np.float32(pixel),
            self.corners,
            self.texture,
            self.texel_density,
            self.texels,
            self.levels,
        )


def _pyramids(textures: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All mip levels of all textures (box filter, down to 1 × 1), flat, and where each of them lies."""
    flat, levels, start = [np.zeros((0, 3), np.uint8)], [], 0
    for texture in textures:
        rows, image = [], texture
        while True:
            height, width = image.shape[:2]
            rows.append((start, height, width))
            flat.append(image.reshape(-1, 3))
            start += height * width
            if height == width == 1:
                break
            size = (max(width // 2, 1), max(height // 2, 1))
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        levels.append(rows)
    depth = max((len(rows) for rows in levels), default=0)
    padded = [rows + [rows[-1]] * (depth - len(rows)) for rows in levels]
    return np.concatenate(flat), np.array(padded, np.int64).reshape(len(levels), depth, 3)


@njit(cache=True, fastmath=True, inline="always")
def _bilinear(texels, start, height, width, s, t):
    """The texture at (s, t) in texture coordinates, repeated, as three float32 (0–255)."""
    half = np.float32(0.5)
    x = (s - np.floor(s)) * np.float32(width) - half  # within −0.5 and width − 0.5
    y = (t - np.floor(t)) * np.float32(height) - half
    x0, y0 = np.floor(x), np.floor(y)
    fx, fy = x - x0, y - y0
    i0, j0 = np.int64(x0), np.int64(y0)
    i1, j1 = i0 + 1 if i0 + 1 < width else 0, j0 + 1 if j0 + 1 < height else 0
    i0, j0 = i0 if i0 >= 0 else width - 1, j0 if j0 >= 0 else height - 1
    a, b = start + j0 * width + i0, start + j0 * width + i1
    c, d = start + j1 * width + i0, start + j1 * width + i1
    one = np.float32(1.0)
    wa, wb, wc, wd = (one - fx) * (one - fy), fx * (one - fy), (one - fx) * fy, fx * fy
    return (
        wa * texels[a, 0] + wb * texels[b, 0] + wc * texels[c, 0] + wd * texels[d, 0],
        wa * texels[a, 1] + wb * texels[b, 1] + wc * texels[c, 1] + wd * texels[d, 1],
        wa * texels[a, 2] + wb * texels[b, 2] + wc * texels[c, 2] + wd * texels[d, 2],
    )


@njit(cache=True, nogil=True, fastmath=True)
def _shade(face, us, vs, depth, pixel, corners, face_texture, density, texels, levels):
    rays = len(face)
    out = np.zeros((rays, 4), np.uint8)
    one, half, full = np.float32(1.0), np.float32(0.5), np.float32(255.0)
    last = levels.shape[1] - 1
    for r in range(rays):
        out[r, 3] = 255
        f = face[r]
        if f < 0:
            continue
        a, b, c = corners[f, 0], corners[f, 1], corners[f, 2]
        u, v = us[r], vs[r]
        w = one - u - v
        red = w * a[2] + u * b[2] + v * c[2]
        green = w * a[3] + u * b[3] + v * c[3]
        blue = w * a[4] + u * b[4] + v * c[4]
        texture = face_texture[f]
        if texture < 0:
            red, green, blue = red * full, green * full, blue * full
        else:
            s, t = w * a[0] + u * b[0] + v * c[0], w * a[1] + u * b[1] + v * c[1]
            lod = np.log2(max(depth[r] * pixel * density[f], one))
            k = min(int(lod), last)
            part = lod - np.float32(k)
            level = levels[texture, k]
            x, y, z = _bilinear(texels, level[0], level[1], level[2], s, t)
            if part > 0 and k < last:
                level = levels[texture, k + 1]
                x1, y1, z1 = _bilinear(texels, level[0], level[1], level[2], s, t)
                x, y, z = x + part * (x1 - x), y + part * (y1 - y), z + part * (z1 - z)
            red, green, blue = red * x, green * y, blue * z
        out[r, 0] = np.uint8(min(red + half, full))
        out[r, 1] = np.uint8(min(green + half, full))
        out[r, 2] = np.uint8(min(blue + half, full))
    return out
