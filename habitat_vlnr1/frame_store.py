"""The frames of running rollouts, kept in a bounded part of the host's memory."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from habitat_vlnr1.errors import RunError
from habitat_vlnr1.frame_files import decode_picture, encode_jpeg


@dataclass
class _Rollout:
    """Frames as bytes (uint8 arrays of one dimension), or as (offset, length) in `file`; None where not seen."""

    frames: list[np.ndarray | tuple[int, int] | None] = field(default_factory=list)
    held: int = 0
    file: Any = None


class FrameStore(Mapping[int, list[Any]]):
    """Frames v_0 … v_t by rollout, the least recently touched rollout first.

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

    def __getitem__(self, rollout: int) -> list[Any]:
        """A rollout's frames as they are kept; `read` gives their pixels."""
        return self._rollouts[rollout].frames

    def __iter__(self) -> Iterator[int]:
        return iter(self._rollouts)

    def __len__(self) -> int:
        return len(self._rollouts)

    def touch(self, rollout: int) -> int:
        """A rollout is seen again; returns how many frames of it are kept."""
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
            own.frames.append(np.frombuffer(raw, np.uint8))
            own.held += len(raw)
            self.held += len(raw)
            return
        if own.file is None:
            own.file = tempfile.TemporaryFile()  # noqa: SIM115  closed by `drop`, or when it is collected
        own.file.seek(0, 2)
        own.frames.append((own.file.tell(), len(raw)))
        own.file.write(raw)

    def skip(self, rollout: int) -> None:
        """The next frame of a rollout was not seen."""
        self._rollouts[rollout].frames.append(None)

    def read(self, rollout: int, step: int) -> np.ndarray:
        """Frame v_step, uint8 [H, W, C].

        Raises:
            RunError: it was skipped.
        """
        own = self._rollouts[rollout]
        kept = own.frames[step]
        if kept is None:
            raise RunError(f"frame {step} of a walk is wanted, but was not rendered: set vlnr1.eval.render_all=true")
        if isinstance(kept, tuple):
            own.file.seek(kept[0])
            kept = np.frombuffer(own.file.read(kept[1]), np.uint8)
        return kept.reshape(self._shape) if self.jpeg_quality is None else decode_picture(kept.tobytes())

    def drop(self, rollout: int) -> None:
        """Forget a rollout; nothing happens where it is not known."""
        own = self._rollouts.pop(rollout, None)
        if own is not None:
            self.held -= own.held
            if own.file is not None:
                own.file.close()
