"""Camera frames as the patches that a Qwen-VL sees: decode, resize and cut each frame once, normalise per batch.

The result equals the stock image processor's; the cache holds patches as bytes (uint8), a quarter of the floats.
Frames for somebody else's processor are scaled beforehand by Qwen's own `qwen_vl_utils`: to the same sizes, with bytes
that differ from the processor's by rounding alone, in two to three times its time.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils import fetch_image
from transformers.image_utils import SizeDict

from habitat_vlnr1.errors import RecordError, VLNR1Error
from habitat_vlnr1.frame_files import decode_picture, read_picture


@dataclass(frozen=True)
class Mirrored:
    """A frame's file, seen left for right."""

    file: Path


Frame = str | Path | Mirrored | np.ndarray


class FrameError(VLNR1Error):
    """A frame that cannot be read or has a wrong shape; the message names it."""


@dataclass(frozen=True)
class Patches:
    """A frame cut up: `pixels` uint8 [h*w, 3, P, P] in the order the model wants, `grid` (h, w) in patches."""

    pixels: torch.Tensor
    grid: tuple[int, int]


class FrameCutter:
    """Turns frames into patches with the resizing of the given image processor, and keeps what it has cut.

    Args:
        image_processor: a Qwen2-VL image processor (torchvision backend).
        cache_mb: memory for the cut frames; the least recently used ones go first. Each process has its own.
    """

    def __init__(self, image_processor: Any, cache_mb: float = 128):
        self.processor = image_processor
        self.capacity = int(cache_mb * 2**20)
        self._kept: OrderedDict[Hashable, Patches] = OrderedDict()
        self._size = 0
        processor = image_processor
        self.merge = processor.merge_size
        self.slots = processor.temporal_patch_size
        mean, std, _ = processor._fuse_mean_std_and_rescale_factor(
            do_normalize=True,
            image_mean=processor.image_mean,
            image_std=processor.image_std,
            do_rescale=True,
            rescale_factor=processor.rescale_factor,
        )
        self._mean, self._std = (table.view(1, 3, 1, 1) for table in (mean, std))

    def cut(self, frame: Frame, key: Hashable = None) -> Patches:
        """Patches of one frame (file, mirrored file, or uint8 array [H, W, 3]).

        Args:
            key: the frame's identity for the cache; a file is its own key, an array without key is not kept.
        """
        if key is None and not isinstance(frame, np.ndarray):
            key = frame if isinstance(frame, Mirrored) else os.fspath(frame)
        if key is not None and key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        patches = self._cut(read_frame(frame))
        if key is not None:
            self._keep(key, patches)
        return patches

    def drop(self, keys: Iterable[Hashable]) -> None:
        """Forget these frames, where they are kept."""
        for key in keys:
            patches = self._kept.pop(key, None)
            self._size -= 0 if patches is None else patches.pixels.nbytes

    def tokens(self, grid: tuple[int, int]) -> int:
        """How many visual tokens a frame of this grid takes in the prompt."""
        return grid[0] * grid[1] // self.merge**2

    def pixel_values(self, frames: Sequence[Patches], single_slot: bool) -> torch.Tensor:
        """Normalised float32 pixels of all frames, `[patches, 3*T*P*P]`; T is 1 with `single_slot`."""
        pixels = torch.cat([frame.pixels for frame in frames])
        values = pixels.to(torch.float32).sub_(self._mean).div_(self._std)
        if not single_slot:
            values = values.unsqueeze(2).expand(-1, -1, self.slots, -1, -1)
        return values.flatten(1)

    def grid_thw(self, frames: Sequence[Patches]) -> torch.Tensor:
        """`image_grid_thw` [frames, 3] of these frames."""
        return torch.tensor([(1, *frame.grid) for frame in frames], dtype=torch.long).view(-1, 3)

    def _cut(self, array: np.ndarray) -> Patches:
        processor = self.processor
        image = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None]
        side = processor.patch_size
        size = SizeDict(shortest_edge=processor.size["shortest_edge"], longest_edge=processor.size["longest_edge"])
        image = processor.resize(image.contiguous(), size, processor.resample, factor=side * self.merge)
        flat, height, width = processor.patchify(image, side, self.merge, 1)
        return Patches(flat[0].view(-1, 3, side, side), (height, width))

    def _keep(self, key: Hashable, patches: Patches) -> None:
        self._kept[key] = patches
        self._size += patches.pixels.nbytes
        while self._size > self.capacity:
            _, oldest = self._kept.popitem(last=False)
            self._size -= oldest.pixels.nbytes


def scaled(frame: Frame, image_processor: Any) -> Image.Image:
    """A frame in the size that the image processor gives to the model, so that no other processor scales it anew.

    Raises:
        FrameError: it cannot be read, or it is so narrow that nothing is left of it within the processor's limit.
    """
    size = image_processor.size
    # The opened image instead of its path: `fetch_image` would download what looks like an address.
    image = Image.fromarray(read_frame(frame))
    limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    try:
        return fetch_image({"image": image, **limits}, image_processor.patch_size)
    except ValueError as error:
        shape = f"{image.width} × {image.height}"
        raise FrameError(
            f"a frame of {shape} pixels cannot be scaled to at most {size['longest_edge']}: {error}"
        ) from None


def read_frame(frame: Frame) -> np.ndarray:
    """A frame as uint8 [H, W, 3]; files, also packed ones, through Pillow."""
    if isinstance(frame, Mirrored):
        return read_frame(frame.file)[:, ::-1]
    if not isinstance(frame, np.ndarray):
        try:
            return decode_picture(read_picture(frame))
        except (OSError, RecordError) as error:
            raise FrameError(f"{frame}: cannot be read as an image ({error}); export its episode again") from None
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise FrameError(f"a frame must be uint8 [height, width, 3], got {frame.dtype} {list(frame.shape)}")
    return frame
