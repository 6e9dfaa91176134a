"""Small procedural textures, grey patterns that vertex colours tint, as PNG bytes.

Patterns are coarse on purpose: frames are as small as 84×84 pixels, where fine detail would only flicker.
"""

import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

SIZE = 32  # pixels a side


def _grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    return x, y


def _noise(seed: int, amplitude: float) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-amplitude, amplitude, (SIZE, SIZE))


def _plain() -> np.ndarray:
    return np.full((SIZE, SIZE), 1.0)


def _stripes() -> np.ndarray:
    x, _ = _grid()
    return np.where(x // 8 % 2 == 0, 1.0, 0.9)


def _dots() -> np.ndarray:
    x, y = _grid()
    shifted = (x + 8 * (y // 16 % 2)) % 16
    return np.where((shifted - 8) ** 2 + (y % 16 - 8) ** 2 < 14, 0.86, 1.0)


def _bricks() -> np.ndarray:
    x, y = _grid()
    row = y // 8
    mortar = (y % 8 == 0) | ((x + 8 * (row % 2)) % 16 == 0)
    return np.where(mortar, 0.72, 0.97) + _noise(1, 0.03)


def _boards() -> np.ndarray:
    x, _ = _grid()
    return np.where(x % 8 == 0, 0.72, 0.94 + 0.06 * np.cos(x // 8 * 2.1)) + _noise(2, 0.02)


def _planks() -> np.ndarray:
    x, y = _grid()
    shade = 0.9 + 0.08 * np.cos((x // 8) * 2.4 + (y + 16 * (x // 8 % 2)) // 32)
    seam = (x % 8 == 0) | ((y + 13 * (x // 8)) % 32 == 0)
    return np.where(seam, 0.68, shade) + _noise(3, 0.03)


def _tiles() -> np.ndarray:
    x, y = _grid()
    return np.where((x % 16 == 0) | (y % 16 == 0), 0.7, np.where((x // 16 + y // 16) % 2 == 0, 1.0, 0.88))


def _carpet() -> np.ndarray:
    return 0.93 + _noise(4, 0.07)


def _stone() -> np.ndarray:
    rng = np.random.default_rng(5)
    points = rng.uniform(0, SIZE, (9, 2))
    x, y = _grid()
    dx = np.abs(x[..., None] - points[:, 0])
    dy = np.abs(y[..., None] - points[:, 1])
    gaps = np.sort(np.hypot(np.minimum(dx, SIZE - dx), np.minimum(dy, SIZE - dy)), axis=-1)
    nearest = np.hypot(np.minimum(dx, SIZE - dx), np.minimum(dy, SIZE - dy)).argmin(-1)
    return np.where(gaps[..., 1] - gaps[..., 0] < 1.2, 0.7, 0.88 + 0.12 * np.cos(nearest * 1.7))


def _fabric() -> np.ndarray:
    x, y = _grid()
    return np.where((x + y) % 8 < 2, 0.92, 1.0)


def _grain() -> np.ndarray:
    x, y = _grid()
    return 0.95 + 0.05 * np.sin(y * 0.8 + 2 * np.sin(x * 2 * np.pi / SIZE))


def _leaves() -> np.ndarray:
    x, y = _grid()
    return np.where((x // 4 + y // 4) % 2 == 0, 1.0, 0.75) + _noise(6, 0.1)


_PATTERNS: dict[str, Callable[[], np.ndarray]] = {
    "plain": _plain,
    "stripes": _stripes,
    "dots": _dots,
    "bricks": _bricks,
    "boards": _boards,
    "planks": _planks,
    "tiles": _tiles,
    "carpet": _carpet,
    "stone": _stone,
    "fabric": _fabric,
    "grain": _grain,
    "leaves": _leaves,
}

TEXTURES = tuple(_PATTERNS)

# Side of one repetition of the pattern on a surface, metres.
REPEAT = {
    "planks": 1.2,
    "tiles": 1.2,
    "stone": 1.5,
    "bricks": 1.2,
    "boards": 1.6,
    "stripes": 1.2,
    "dots": 1.2,
}


def repeat(texture: str) -> float:
    """Metres that one repetition of the texture covers."""
    return REPEAT.get(texture, 1.0)


@functools.cache
def png(texture: str) -> bytes:
    """PNG bytes (RGB, SIZE×SIZE) of the grey pattern called `texture`."""
    grey = np.clip(np.round(_PATTERNS[texture]() * 255), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2), "RGB").save(out, format="PNG", optimize=True)
    return out.getvalue()
