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
    """What the shading kernel reads, per face, per material and per texel. See `Surface.of`."""

    faces: np.ndarray  # int32 [F, 3]
    uv: np.ndarray  # float32 [V, 2]
    colours: np.ndarray  # uint8 [V, 3]
    light: np.ndarray  # float32 [F, 3]: base colour × normal factor
    face_texture: np.ndarray  # int32 [F], −1: none
    texel_density: np.ndarray  # float32 [F]: texels of level 0 per metre
    texels: np.ndarray  # uint8 [N, 3]: every level of every texture, one after the other
    levels: np.ndarray  # int64 [T, L, 3]: first texel, height, width; the last level is repeated
    has_colours: bool

    @classmethod
    def of(cls, mesh: Mesh) -> Surface:
        """Prepare a mesh for shading: mip levels and texel densities."""
        a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(np.float64) for i in range(3))
        normal = np.cross(b - a, c - a)
        double_area = np.linalg.norm(normal, axis=1)
        unit = np.abs(normal / np.maximum(double_area, 1e-20)[:, None])
        factor = 0.7 + 0.3 * unit[:, 1] + 0.15 * unit[:, 0]
        factor = np.where(mesh.unlit[mesh.face_material], 1.0, np.minimum(factor, 1.0))
        texels, levels = _pyramids(mesh.textures)
        face_texture = mesh.texture[mesh.face_material].astype(np.int32)
        ua, ub, uc = (mesh.uv[mesh.faces[:, i]].astype(np.float64) for i in range(3))
        first, second = ub - ua, uc - ua
        double_uv_area = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
        size = levels[np.maximum(face_texture, 0), 0, 1:].prod(axis=1) if len(levels) else np.ones(len(face_texture))
        return cls(
            faces=mesh.faces,
            uv=mesh.uv,
            colours=mesh.colours,
            light=(mesh.base_colour[mesh.face_material] * factor[:, None]).astype(np.float32),
            face_texture=face_texture,
            texel_density=np.sqrt(double_uv_area * size / np.maximum(double_area, 1e-20)).astype(np.float32),
            texels=texels,
            levels=levels,
            has_colours=bool((mesh.colours != 255).any()),
        )

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
            face, u, v, depth, np.float32(pixel), self.faces, self.uv, self.colours, self.light, self.face_texture,
            self.texel_density, self.texels, self.levels, self.has_colours,
        )  # fmt: skip


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
def _shade(
    face, us, vs, depth, pixel, faces, uv, colours, light, face_texture, density, texels, levels, has_colours
):  # fmt: skip
    rays = len(face)
    out = np.zeros((rays, 4), np.uint8)
    one, half, full = np.float32(1.0), np.float32(0.5), np.float32(255.0)
    for r in range(rays):
        out[r, 3] = 255
        f = face[r]
        if f < 0:
            continue
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        u, v = us[r], vs[r]
        w = one - u - v
        red, green, blue = light[f, 0], light[f, 1], light[f, 2]
        if has_colours:
            red *= (w * colours[a, 0] + u * colours[b, 0] + v * colours[c, 0]) / full
            green *= (w * colours[a, 1] + u * colours[b, 1] + v * colours[c, 1]) / full
            blue *= (w * colours[a, 2] + u * colours[b, 2] + v * colours[c, 2]) / full
        texture = face_texture[f]
        if texture >= 0:
            s = w * uv[a, 0] + u * uv[b, 0] + v * uv[c, 0]
            t = w * uv[a, 1] + u * uv[b, 1] + v * uv[c, 1]
            texels_per_pixel = max(depth[r] * pixel * density[f], one)
            lod = np.log2(texels_per_pixel)
            level = min(int(lod), levels.shape[1] - 1)
            part = lod - np.float32(int(lod))
            x, y, z = _bilinear(
                texels, levels[texture, level, 0], levels[texture, level, 1], levels[texture, level, 2], s, t
            )
            if part > 0 and level + 1 < levels.shape[1]:
                level += 1
                x1, y1, z1 = _bilinear(
                    texels, levels[texture, level, 0], levels[texture, level, 1], levels[texture, level, 2], s, t
                )
                x, y, z = x + part * (x1 - x), y + part * (y1 - y), z + part * (z1 - z)
            red, green, blue = red * x, green * y, blue * z
        else:
            red, green, blue = red * full, green * full, blue * full
        out[r, 0] = np.uint8(min(red + half, full))
        out[r, 1] = np.uint8(min(green + half, full))
        out[r, 2] = np.uint8(min(blue + half, full))
    return out
