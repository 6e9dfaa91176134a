"""A palette of 40 colours."""

from __future__ import annotations

import numpy as np
from habitat_embedded_sim.unsupported import missing_attribute


def _colours(text: str) -> np.ndarray:
    return np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in text.split()], dtype=np.uint8)


d3_40_colors_rgb: np.ndarray = _colours(
    "1f77b4 aec7e8 ff7f0e ffbb78 2ca02c 98df8a d62728 ff9896 9467bd c5b0d5 "
    "8c564b c49c94 e377c2 f7b6d2 7f7f7f c7c7c7 bcbd22 dbdb8d 17becf 9edae5 "
    "393b79 5254a3 6b6ecf 9c9ede 637939 8ca252 b5cf6b cedb9c 8c6d31 bd9e39 "
    "e7ba52 e7cb94 843c39 ad494a d6616b e7969c 7b4173 a55194 ce6dbd de9ed6"
)
"""The 40 colours of D3's category20 and category20b, uint8 [40, 3]."""

d3_40_colors_hex: list[str] = [f"0x{r:02x}{g:02x}{b:02x}" for r, g, b in d3_40_colors_rgb.tolist()]


def colorize_ids(ids: np.ndarray) -> np.ndarray:
    """Ids [H, W] as colours, uint8 [H, W, 3]; negative ones are black."""
    return np.where(ids[..., None] >= 0, d3_40_colors_rgb[ids % 40], 0).astype(np.uint8)


__getattr__ = missing_attribute(__name__)
