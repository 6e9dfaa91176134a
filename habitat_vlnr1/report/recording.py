"""What an evaluation keeps of a walk for its report: small frames, answers, the map and the reference path.

    <results_dir>/<policy>/<split>/walks/<scene>_<episode>.json

One file per episode. All files of an evaluation together stay below a budget in MB: where it does not reach for all
episodes, some of them, spread evenly, keep their frames, the same ones for every policy; and of a long walk every
second (third, …) frame is kept. Maps, paths and answers are kept for all.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from habitat_vlnr1.files import write_atomically

WALKS = "walks"
WIDTH, QUALITY = 192, 70  # of a frame in the report: wider ones are scaled down
LEAST_FRAMES_BYTES = 24_000  # with less a walk shows too few frames to be followed
_BASE64 = 4 / 3


def megabytes(count: float) -> int:
    return int(count * 1e6)


def spread(n: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 … n - 1, the first and the last among them, as even as can be."""
    return sorted({round(i) for i in np.linspace(0, n - 1, max(min(n, most), 1))}) if n else []


def small_jpeg(frame: np.ndarray) -> bytes:
    """A frame, uint8 [H, W, 3], as the report shows it."""
    image = Image.fromarray(frame)
    image.thumbnail((WIDTH, WIDTH))
    return _saved(image, "JPEG", quality=QUALITY)


def floor_png(free: np.ndarray) -> bytes:
    """Where one can stand, bool [Z, X], as a PNG: floor white, the rest transparent."""
    image = Image.fromarray(np.asarray(free, np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    return _saved(image, "PNG", bits=1, transparency=0, optimize=True)


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def walk_file(folder: Path, scene_id: str, episode_id: str) -> Path:
    """Where the walk of an episode lies, below an evaluation's folder `<policy>/<split>`."""
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in f"{Path(scene_id).stem}_{episode_id}")[:80]
    return folder / WALKS / f"{stem}_{sha256(f'{scene_id}:{episode_id}'.encode()).hexdigest()[:8]}.json"


class WalkRecorder:
    """Makes the records of a policy's walks.

    Args:
        folder: `<results_dir>/<policy>/<split>`.
        budget: bytes of this policy's frames; 0: nothing is kept.
        keys: all episodes, those of other processes too.
    """

    def __init__(self, folder: Path, budget: int, keys: Sequence[Hashable]):
        self.folder = folder
        self.on = budget > 0
        shown = spread(len(keys), max(budget // LEAST_FRAMES_BYTES, 1))
        self.quota = budget // max(len(shown), 1)
        self._with_frames = {keys[number] for number in shown}

    def begin(
        self, key: Hashable, scene_id: str, topdown: Callable[[], Mapping[str, Any]], facts: Mapping[str, Any]
    ) -> WalkRecord | None:
        """The record of a walk that begins; None where nothing is kept.

        Args:
            scene_id: as in the episode's line.
            topdown: gives the map, as `VLNR1GymEnv.topdown_map`.
            facts: `episode_id`, and what the report needs to draw: `reference_path`, `goal`, `radius`.
        """
        if not self.on:
            return None
        chart = topdown()
        free = np.asarray(chart["free"])
        place = {
            "png": text_of(floor_png(free)),
            "origin": [round(float(value), 3) for value in chart["origin"]],
            "size": [round(length * chart["meters_per_pixel"], 3) for length in reversed(free.shape)],
        }
        file = walk_file(self.folder, scene_id, str(facts["episode_id"]))
        return WalkRecord(file, self.quota if key in self._with_frames else 0, {"map": place, **facts})


class WalkRecord:
    """One walk under way.

    Args:
        file: where it will lie.
        quota: bytes for its frames.
        facts: more of what is written.
    """

    def __init__(self, file: Path, quota: int, facts: dict[str, Any]):
        self.file, self.quota, self.facts = file, quota, facts
        self._frames: dict[int, bytes] = {}
        self._answers: dict[int, str] = {}
        self._steps = 0

    def add(self, frame: np.ndarray | None, answer: str | None) -> None:
        """The next step.

        Args:
            frame: what was seen, uint8 [H, W, 3 or 4]; None where it was not rendered.
            answer: None where nobody was asked.
        """
        if answer is not None:
            self._answers[self._steps] = answer
        if frame is not None and self.quota:
            self._frames[self._steps] = small_jpeg(np.asarray(frame)[..., :3])
        self._steps += 1

    def write(self) -> None:
        """Write it down."""
        whole, steps = sum(map(len, self._frames.values())) * _BASE64, list(self._frames)
        fitting = len(self._frames) if whole <= self.quota else int(len(self._frames) * self.quota / whole)
        frames = {steps[i]: text_of(self._frames[steps[i]]) for i in spread(len(steps), fitting) if fitting}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = {**self.facts, "answers": self._answers, "frames": frames}
        write_atomically(self.file, json.dumps(content, ensure_ascii=False, allow_nan=False).encode())
