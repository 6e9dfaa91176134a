"""Pictures of an episode: an MP4 of what the agent saw, was told, answered and did, and a one-page PNG.

Pure drawing (numpy, Pillow, imageio): it knows neither torch nor habitat. Positions are Habitat's world frame in
metres; the map shows x to the right and z downwards, so that heading 0 (looking along −z) points up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.evaluation.lettering import bundled, stretches, undrawable

INK, GREY, PAPER, PANEL = (33, 37, 46), (122, 129, 142), (250, 249, 246), (236, 238, 242)
FLOOR, WALL = (255, 255, 255), (74, 82, 98)
BLUE, GREEN, RED, ORANGE = (37, 99, 205), (28, 150, 92), (206, 52, 60), (240, 138, 24)
SMOOTH = 2  # shapes are drawn this much larger and reduced, which smooths their edges


@dataclass
class Replay:
    """What is drawn of one episode. There is one frame, pose and answer more than actions at most: the last view.

    Args:
        frames: RGB uint8 [H, W, 3], one per step.
        actions: numbers of `Action`, one per step.
        answers: what the policy said at each step (the text in force, empty for policies without words).
        poses: [x, y, z, heading] before each action and after the last.
        topdown: `free` bool [Z, X], `origin` [x, z], `meters_per_pixel`, as `VLNR1GymEnv.topdown_map` gives it.
        reference_path: [[x, y, z], …], empty when the split has none.
        goal: [x, y, z], or None.
        radius: success distance in metres.
        metrics: SR, SPL, NE, … ; None stands for a value that is not a number.
    """

    policy: str
    scene: str
    episode_id: str
    instruction: str
    space: ActionSpace
    topdown: Mapping[str, Any]
    reference_path: Sequence[Sequence[float]] = ()
    goal: Sequence[float] | None = None
    radius: float = 3.0
    frames: list[np.ndarray] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    poses: list[Sequence[float]] = field(default_factory=list)
    metrics: dict[str, float | None] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.policy}  ·  {self.scene}  ·  episode {self.episode_id}"

    @property
    def outcome(self) -> str:
        """`'success  ·  SPL 0.91  ·  NE 1.20 m'`."""
        if self.metrics.get("SR") is None:
            return "no result"
        parts = ["success" if self.metrics["SR"] else "failure"]
        parts += [f"{name} {self.metrics[name]:.2f}" for name in ("SPL", "nDTW") if self.metrics.get(name) is not None]
        parts += [f"{name} {self.metrics[name]:.2f} m" for name in ("NE", "TL") if self.metrics.get(name) is not None]
        return "  ·  ".join(parts)


def save(replay: Replay, folder: str | Path, fps: int = 4) -> tuple[Path, Path]:
    """Write `<scene>_<episode_id>.mp4` and `….png` into the folder and return their paths; see `write_beside`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{replay.scene}_{replay.episode_id}")
    video, picture = folder / f"{stem}.mp4", folder / f"{stem}.png"
    sheet(replay).save(picture)
    write_beside(picture, [replay.instruction, *dict.fromkeys(replay.answers)])
    film = Film(replay)
    writer: Any  # the base class that imageio names has no append_data
    with imageio.get_writer(video, fps=fps, quality=8, ffmpeg_log_level="error") as writer:
        for step in range(len(replay.frames)):
            writer.append_data(np.asarray(film.frame(step)))
        end = np.asarray(film.frame(len(replay.frames) - 1, finished=True))
        for _ in range(2 * fps):  # hold the end, where the outcome stands
            writer.append_data(end)
    return video, picture


# ------------------------------------------------------------------------------------------------------ layouts
class Film:
    """The pictures of the video, 1280 × 720; what stays the same is drawn once."""

    def __init__(self, replay: Replay):
        self.replay = replay
        self.map = Map(replay, (552, 446))
        self.page = Page(1280, 720)
        self.page.text((32, 18), replay.title, 22, bold=True)
        _legend(self.page, 696, 520, 552)
        below = self.page.paragraph((32, 556), replay.instruction, 20, width=1216, lines=3)
        self.words_y = max(below + 14, 640)

    def frame(self, step: int, finished: bool = False) -> Image.Image:
        """The view at `step` and the action taken there, beside the map; at the end with the outcome."""
        replay, page = self.replay, self.page.copy()
        note = replay.outcome if finished else f"step {step + 1} of {len(replay.frames)}"
        page.text((1248, 22), note, 18, fill=_outcome_colour(replay) if finished else GREY, anchor="ra")
        page.picture(Image.fromarray(replay.frames[step]), (32, 60, 672, 540))
        page.picture(self.map.draw(replay.poses if finished else replay.poses[: step + 1]), (696, 60, 1248, 506))
        _answer(page, replay, step, (32, self.words_y), width=1216)
        return page.image


def write_beside(picture: Path, texts: Sequence[str]) -> None:
    """Put the words of a picture into a `.txt` beside it where this machine has no font for some of their letters."""
    if any(map(undrawable, texts)):
        picture.with_suffix(".txt").write_text("".join(f"{text}\n" for text in texts if text), encoding="utf-8")


def sheet(replay: Replay, columns: int = 4, rows: int = 2) -> Image.Image:
    """A page with the instruction, the map with the whole walk, and views along the way."""
    edge, gap, cell, map_width, caption = 32, 16, 300, 700, 46
    view_height = round(cell * replay.frames[0].shape[0] / replay.frames[0].shape[1])
    steps = _spread(len(replay.frames), columns * rows)
    map_height = max(math.ceil(len(steps) / columns) * (view_height + caption) - caption - 24, 440)
    width = edge + map_width + edge + columns * (cell + gap) - gap + edge
    top = 96 + 30 * len(Page(width, 10).wrap(replay.instruction, 22, width - 2 * edge))
    page = Page(width, top + map_height + 60)
    page.text((edge, 24), replay.title, 26, bold=True)
    page.text((width - edge, 28), replay.outcome, 20, fill=_outcome_colour(replay), anchor="ra")
    page.paragraph((edge, 74), replay.instruction, 22, width=width - 2 * edge)
    chart = Map(replay, (map_width, map_height)).draw(replay.poses)
    page.picture(chart, (edge, top, edge + map_width, top + map_height))
    _legend(page, edge, top + map_height + 14, map_width)
    for index, step in enumerate(steps):
        x = edge + map_width + edge + index % columns * (cell + gap)
        y = top + index // columns * (view_height + caption)
        page.picture(Image.fromarray(replay.frames[step]), (x, y, x + cell, y + view_height))
        page.text((x, y + view_height + 6), f"{step + 1}", 16, fill=GREY)
        page.text((x + 36, y + view_height + 6), _phrase(replay, step), 16)
    return page.image


def _phrase(replay: Replay, step: int) -> str:
    return replay.space.phrase(replay.actions[step]) if step < len(replay.actions) else "out of steps"


def _answer(page: Page, replay: Replay, step: int, at: tuple[int, int], width: int) -> None:
    """The action taken at this step, and the answer it came from."""
    x, y = at
    chip = _phrase(replay, step)
    right = x + page.length(chip, 20, bold=True) + 28
    page.draw.rounded_rectangle((x, y, right, y + 38), 8, fill=BLUE)
    page.text((x + 14, y + 7), chip, 20, fill=(255, 255, 255), bold=True)
    answer = replay.answers[step] if step < len(replay.answers) else ""
    if answer:
        page.paragraph((right + 20, y - 4), f"answer: {answer}", 17, width - right + x - 20, lines=2, fill=GREY)


def _outcome_colour(replay: Replay) -> tuple[int, int, int]:
    return GREY if replay.metrics.get("SR") is None else GREEN if replay.metrics["SR"] else RED


def _spread(n: int, most: int) -> list[int]:
    """Up to `most` step numbers out of `n`, first and last included, as even as can be."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, most))})


# ---------------------------------------------------------------------------------------------------------- map
class Map:
    """The map of [width, height] pixels around reference path and walk; all but the walk is drawn once."""

    def __init__(self, replay: Replay, size: tuple[int, int]):
        self.size = size
        self.view = view = _View.around(replay, size[0] * SMOOTH, size[1] * SMOOTH)
        self.unit = unit = SMOOTH * min(size) / 420  # line widths and marks grow with the picture
        self.goal = None if replay.goal is None else view.pixel(replay.goal)
        self.base = view.floor(replay.topdown)
        draw = ImageDraw.Draw(self.base, "RGBA")
        if self.goal:
            (x, y), r = self.goal, replay.radius * view.scale
            box, line = (x - r, y - r, x + r, y + r), round(1.5 * unit)
            draw.ellipse(box, fill=(*GREEN, 30), outline=(*GREEN, 150), width=line)
        _dashes(draw, [view.pixel(p) for p in replay.reference_path], GREEN, 3.5 * unit)
        _scale_bar(draw, view, unit)

    def draw(self, walked: Sequence[Sequence[float]]) -> Image.Image:
        """The map with the walk up to now, the agent at its end."""
        image, unit = self.base.copy(), self.unit
        draw = ImageDraw.Draw(image, "RGBA")
        points = [self.view.pixel(pose) for pose in walked]
        _trail(draw, points, BLUE, 4 * unit)
        _disc(draw, *points[0], 6.5 * unit, BLUE, unit)
        if self.goal:
            _disc(draw, *self.goal, 7.5 * unit, GREEN, unit)
        _arrow(draw, *points[-1], walked[-1][3], 13 * unit, unit)
        return image.reduce(SMOOTH)


@dataclass(frozen=True)
class _View:
    """World metres to pixels: `left`, `top` are the world x, z of pixel (0, 0), `scale` is pixels per metre."""

    left: float
    top: float
    scale: float
    width: int
    height: int

    @classmethod
    def around(cls, replay: Replay, width: int, height: int, margin: float = 1.5) -> _View:
        """Fits all paths with a margin (metres), and the whole house when that is not much larger."""
        goal = [replay.goal] if replay.goal is not None else []
        points = np.array([[p[0], p[2]] for p in [*replay.poses, *replay.reference_path, *goal]], dtype=float)
        low, high = points.min(0) - margin, points.max(0) + margin
        free = np.argwhere(np.asarray(replay.topdown["free"]))
        if len(free):
            mpp, origin = replay.topdown["meters_per_pixel"], np.asarray(replay.topdown["origin"])
            house_low = free.min(0)[::-1] * mpp + origin - 0.4
            house_high = (free.max(0)[::-1] + 1) * mpp + origin + 0.4
            wide = np.maximum(high - low, 8.0)  # at least so many metres around the middle, within the house
            middle = (low + high) / 2
            low = np.minimum(low, np.maximum(middle - wide / 2, house_low))
            high = np.maximum(high, np.minimum(middle + wide / 2, house_high))
            if np.all(house_high - house_low < 16.0):
                low, high = np.minimum(low, house_low), np.maximum(high, house_high)
        scale = float(min(width / (high[0] - low[0]), height / (high[1] - low[1])))
        middle = (low + high) / 2
        return cls(middle[0] - width / scale / 2, middle[1] - height / scale / 2, scale, width, height)

    def pixel(self, point: Sequence[float]) -> tuple[float, float]:
        return (point[0] - self.left) * self.scale, (point[2] - self.top) * self.scale

    def floor(self, topdown: Mapping[str, Any]) -> Image.Image:
        """The navigable area in white with a dark edge, on the panel's grey."""
        free = Image.fromarray(np.asarray(topdown["free"], dtype=np.uint8) * 255)
        grow = 1 / (self.scale * topdown["meters_per_pixel"])
        x, z = topdown["origin"]
        mpp = topdown["meters_per_pixel"]
        corner = ((self.left - x) / mpp, (self.top - z) / mpp)
        soft = free.transform(
            (self.width, self.height),
            Image.Transform.AFFINE,
            (grow, 0, corner[0], 0, grow, corner[1]),
            resample=Image.Resampling.BILINEAR,
        )
        field_ = np.asarray(soft, dtype=np.float32)[..., None] / 255
        inside = np.clip((field_ - 0.5) * 8 + 0.5, 0, 1)
        edge = np.clip(1 - np.abs(field_ - 0.42) * 4, 0, 1)
        ground = np.array(PANEL) * (1 - inside) + np.array(FLOOR) * inside
        return Image.fromarray((ground * (1 - edge) + np.array(WALL) * edge).astype(np.uint8))


def _dashes(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: tuple, width: float) -> None:
    """A dashed line through the points; the dash pattern runs on across corners."""
    dash, phase = 3.2 * width, 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        length = math.hypot(x1 - x0, y1 - y0)
        at = -phase
        while at < length and length > 0:
            a, b = max(at, 0) / length, min(at + dash * 0.6, length) / length
            if b > a:
                ends = [(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in (a, b)]
                draw.line(ends, fill=(*colour, 230), width=round(width))
            at += dash
        phase = length - (at - dash) if length > 0 else phase


def _trail(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: tuple, width: float) -> None:
    """A solid line with round joints, from pale at the start to full at the end."""
    n = max(len(points) - 1, 1)
    for i, (a, b) in enumerate(pairwise(points)):
        blend = 0.35 + 0.65 * (i + 1) / n
        fill = tuple(round(255 + (c - 255) * blend) for c in colour)
        draw.line((a, b), fill=fill, width=round(width))
        r = round(width) / 2 - 1
        draw.ellipse((b[0] - r, b[1] - r, b[0] + r, b[1] + r), fill=fill)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: tuple, unit: float) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline=(255, 255, 255), width=round(2.2 * unit))


def _arrow(draw: ImageDraw.ImageDraw, x: float, y: float, heading: float, size: float, unit: float) -> None:
    """The agent, pointing where it looks: heading 0 is up, positive turns left."""
    shape = [(0.0, -1.0), (0.72, 0.8), (0.0, 0.42), (-0.72, 0.8)]
    c, s = math.cos(heading), math.sin(heading)
    corners = [(x + size * (c * px + s * py), y + size * (-s * px + c * py)) for px, py in shape]
    draw.polygon(corners, fill=ORANGE)
    draw.line([*corners, corners[0], corners[1]], fill=(255, 255, 255), width=round(1.8 * unit), joint="curve")


def _scale_bar(draw: ImageDraw.ImageDraw, view: _View, unit: float) -> None:
    metres = next((m for m in (1, 2, 5, 10) if m * view.scale > view.width / 12), 20)
    right, y = view.width - 14 * unit, view.height - 14 * unit
    left = right - metres * view.scale
    draw.line((left, y, right, y), fill=INK, width=round(2.5 * unit))
    label = font(round(13 * unit))
    draw.text(((left + right) / 2, y - 4 * unit), f"{metres} m", fill=INK, font=label, anchor="mb")


def _legend(page: Page, x: int, y: int, width: int) -> None:
    """Colours of the map, spread over `width`."""
    entries = [("start", BLUE, "disc"), ("walked", BLUE, "line"), ("reference", GREEN, "dash"),
               ("goal", GREEN, "disc"), ("agent", ORANGE, "arrow")]  # fmt: skip
    big = Image.new("RGB", (width * SMOOTH, 24 * SMOOTH), PAPER)
    draw = ImageDraw.Draw(big, "RGBA")
    for i, (_, colour, mark) in enumerate(entries):
        left, middle, u = i * width * SMOOTH / len(entries), 12 * SMOOTH, SMOOTH
        if mark == "disc":
            _disc(draw, left + 12 * u, middle, 7 * u, colour, u)
        elif mark == "arrow":
            _arrow(draw, left + 12 * u, middle, math.pi / -2, 10 * u, u)
        elif mark == "dash":
            _dashes(draw, [(left, middle), (left + 26 * u, middle)], colour, 3.5 * u)
        else:
            _trail(draw, [(left + i * 2.6 * u, middle) for i in range(11)], colour, 4 * u)
    page.image.paste(big.resize((width, 24), Image.Resampling.LANCZOS), (x, y))
    for i, (name, _, _) in enumerate(entries):
        page.text((x + i * width / len(entries) + 34, y + 3), name, 15, fill=GREY)


# --------------------------------------------------------------------------------------------------------- page
@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow, so that pictures look the same everywhere."""
    return bundled()[0].font(size)


class Page:
    """A sheet of paper to write on."""

    def __init__(self, width: int, height: int):
        self.image = Image.new("RGB", (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def copy(self) -> Page:
        other = Page(1, 1)
        other.image = self.image.copy()
        other.draw = ImageDraw.Draw(other.image)
        return other

    def length(self, text: str, size: int, bold: bool = False) -> float:
        parts = stretches(text)
        return sum(self.draw.textlength(part, face.font(size)) for part, face in parts) + (1 if bold else 0)

    def text(
        self,
        at: tuple[float, float],
        text: str,
        size: int,
        fill: tuple = INK,
        bold: bool = False,
        anchor: str = "la",
    ) -> None:
        """Write one line; `anchor` says where `at` is: left or right (l, r), ascender (a)."""
        x, y = at[0] - (self.length(text, size) if anchor[0] == "r" else 0), at[1]
        baseline = y + font(size).getmetrics()[0]
        for part, face in stretches(text):
            # the built-in font has one weight; a thin stroke makes the other
            self.draw.text((x, baseline), part, fill, face.font(size), "ls", stroke_width=0.5 if bold else 0)
            x += self.draw.textlength(part, face.font(size))

    def wrap(self, text: str, size: int, width: float) -> list[str]:
        """Break text into lines no wider than `width` pixels; a longer word is cut (Chinese has no blanks)."""
        lines, line = [], ""
        for word in self._words(text, size, width):
            longer = f"{line} {word}".strip()
            if line and self.length(longer, size) > width:
                lines.append(line)
                longer = word
            line = longer
        return [*lines, line] if line else lines

    def _words(self, text: str, size: int, width: float) -> Iterator[str]:
        for word in text.split():
            while self.length(word, size) > width and len(word) > 1:
                fitting = max(1, int(len(word) * width / self.length(word, size)))
                while fitting > 1 and self.length(word[:fitting], size) > width:
                    fitting -= 1
                yield word[:fitting]
                word = word[fitting:]
            yield word

    def paragraph(
        self, at: tuple[float, float], text: str, size: int, width: float, lines: int | None = None, fill: tuple = INK
    ) -> int:
        """Write wrapped text and return the y below it; what does not fit into `lines` ends in an ellipsis."""
        wrapped = self.wrap(text, size, width)
        if lines is not None and len(wrapped) > lines:
            wrapped = [*wrapped[: lines - 1], wrapped[lines - 1].rstrip(" .,;") + " …"]
        step = round(size * 1.36)
        for i, line in enumerate(wrapped):
            self.text((at[0], at[1] + i * step), line, size, fill)
        return round(at[1] + len(wrapped) * step)

    def picture(self, picture: Image.Image, box: tuple[int, int, int, int]) -> None:
        """Fit a picture into the box, centred, keeping its proportions."""
        width, height = box[2] - box[0], box[3] - box[1]
        scale = min(width / picture.width, height / picture.height)
        if picture.size != (width, height):
            self.draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=PANEL)
            size = (round(picture.width * scale), round(picture.height * scale))
            picture = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        self.image.paste(picture, (box[0] + (width - picture.width) // 2, box[1] + (height - picture.height) // 2))
