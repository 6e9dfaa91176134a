"""Frames as JPEG: one codec for what is exported, and so trained on, and for what a model is shown at evaluation."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encode_jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """uint8 [H, W, 3 or 4] to JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(rgb[..., :3]).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def decode_jpeg(jpeg: bytes) -> np.ndarray:
    """JPEG to uint8 [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
