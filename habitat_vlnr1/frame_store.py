"""The frames of running rollouts, kept in a bounded part of the host's memory."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from habitat_vlnr1.frame_files import decode_picture, encode_jpeg


@dataclass
class _Rollout:
    """Frames as bytes, or as (offset, length) in `file`."""

    frames: list[bytes | tuple[int, int]] = field(default_factory=list)
    held: int = 0
    file: Any = None


class FrameStore:
    """Frames v_0 … v_t by rollout.

    Args:
        capacity: bytes of memory for all frames; those beyond it go to a temporary file of their rollout, which is
            gone with it.
        jpeg_quality: keep frames as JPEG, and hand them out as that shows them; None: as they are.
    """

    def __init__(self, capacity: int, jpeg_quality: int | None = None):
        self.capacity = capacity
        self.jpeg_quality = jpeg_quality
        self.held = 0
        self._rollouts: OrderedDict[int, _Rollout] = OrderedDict()
        self._shape: tuple[int, ...] = ()

    @property
    def rollouts(self) -> list[int]:
        """Those that frames are kept of, the least recently touched first."""
        return list(self._rollouts)

    def count(self, rollout: int) -> int:
        """Frames of a rollout; it counts as touched."""
        if rollout not in self._rollouts:
            return 0
        self._rollouts.move_to_end(rollout)
        return len(self._rollouts[rollout].frames)

    def add(self, rollout: int, frame: np.ndarray) -> None:
        """Keep the next frame of a rollout, uint8 [H, W, C]; all frames have one shape."""
        self._shape = frame.shape
        raw = frame.tobytes() if self.jpeg_quality is None else encode_jpeg(frame, self.jpeg_quality)
        own = self._rollouts.setdefault(rollout, _Rollout())
        if self.held + len(raw) <= self.capacity:
            own.frames.append(raw)
            own.held += len(raw)
            self.held += len(raw)
            return
        if own.file is None:
            own.file = tempfile.TemporaryFile()  # noqa: SIM115  closed by `drop`, or when it is collected
        own.file.seek(0, 2)
        own.frames.append((own.file.tell(), len(raw)))
        own.file.write(raw)

    def read(self, rollout: int, step: int) -> np.ndarray:
        """Frame v_step, uint8 [H, W, C]."""
        own = self._rollouts[rollout]
        raw = own.frames[step]
        if isinstance(raw, tuple):
            own.file.seek(raw[0])
            raw = own.file.read(raw[1])
        assert isinstance(raw, bytes)
        if self.jpeg_quality is None:
            return np.frombuffer(raw, np.uint8).reshape(self._shape)
        return decode_picture(raw)

    def drop(self, rollout: int) -> None:
        """Forget a rollout; nothing happens where it is not known."""
        own = self._rollouts.pop(rollout, None)
        if own is not None:
            self.held -= own.held
            if own.file is not None:
                own.file.close()
