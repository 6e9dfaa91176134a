"""Stand-in for `habitat_sim.utils.viz_utils`: observations as pictures and videos."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from habitat_embedded_sim.unsupported import missing_attribute
from PIL import Image

from .common import d3_40_colors_hex, d3_40_colors_rgb


def is_notebook() -> bool:
    """Whether this runs in a Jupyter notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config and "VSCODE_PID" not in os.environ


def save_video(video_file: str, frames: Iterable[np.ndarray], fps: int = 60) -> None:
    """Write frames, uint8 [H, W, 3] each, as a video; the file's ending chooses its kind."""
    import imageio  # Habitat-Lab brings it; the embedded simulator alone does not need it

    writer: Any  # imageio's types have no word of what a writer can do
    with imageio.get_writer(video_file, fps=fps) as writer:
        for frame in frames:
            writer.append_data(np.asarray(frame))


def display_video(video_file: str, height: int = 400) -> None:
    """Show a video: in the notebook, `height` pixels high, else in the system's player."""
    if is_notebook():
        from IPython.display import HTML, display

        data = base64.b64encode(Path(video_file).read_bytes()).decode("ascii")
        kind = f"video/{Path(video_file).suffix[1:]}"
        source = f'<source src="data:{kind};base64,{data}" type="{kind}">'
        display(HTML(f'<video autoplay loop controls style="height: {height}px">{source}</video>'))
    elif sys.platform == "win32":
        os.startfile(video_file)
    else:
        subprocess.call(["open" if sys.platform == "darwin" else "xdg-open", video_file])


def depth_to_rgb(depth_image: np.ndarray, clip_max: float = 10.0) -> np.ndarray:
    """Depth [H, W] in metres as grey levels, uint8 [H, W]: 255 from `clip_max` on."""
    return (np.clip(depth_image, 0, clip_max) / clip_max * 255).astype(np.uint8)


def semantic_to_rgb(semantic_image: np.ndarray) -> Image.Image:
    """Ids [H, W] in the palette's 40 colours, as an RGBA picture."""
    image = Image.fromarray((semantic_image % 40).astype(np.uint8), "P")
    image.putpalette(d3_40_colors_rgb.flatten().tolist())
    return image.convert("RGBA")


def observation_to_image(
    observation_image: np.ndarray, observation_type: str, depth_clip: float = 10.0
) -> Image.Image | None:
    """An observation as a picture; the type is "color", "depth" or "semantic", None comes back for any other."""
    if observation_type == "color":
        return Image.fromarray(np.uint8(observation_image))
    if observation_type == "depth":
        return Image.fromarray(depth_to_rgb(observation_image, clip_max=depth_clip))
    if observation_type == "semantic":
        return semantic_to_rgb(observation_image)
    print(f"observation_to_image: no picture of an observation of type {observation_type!r}")
    return None


def border_frames_from_overlay(
    overlay_settings: list[dict[str, Any]] | None, observation_to_image: Callable[..., Any] = observation_to_image
) -> list[Image.Image]:
    """One plain picture for each overlay, larger than it by its border on every side; grey where no colour is set."""
    frames = []
    for overlay in overlay_settings or []:
        (width, height), border = overlay["dims"], overlay["border"]
        frame = np.empty((height + 2 * border, width + 2 * border, 3), np.uint8)
        frame[:] = np.asarray(overlay.get("border_color", (150, 150, 150)))
        frames.append(observation_to_image(frame, "color"))
    return frames


def make_video_frame(
    ob: dict[str, np.ndarray],
    primary_obs: str,
    primary_obs_type: str,
    video_dims: Sequence[int] | None,
    overlay_settings: list[dict[str, Any]] | None = None,
    observation_to_image: Callable[..., Any] = observation_to_image,
) -> Image.Image:
    """One observation with others laid over it; see `make_video`. RuntimeError where one has no picture."""

    def picture(name: str, kind: str) -> Image.Image:
        image = observation_to_image(ob[name], kind)
        if image is None:
            raise RuntimeError(f"make_video_frame: the observation {name!r} of type {kind!r} has no picture")
        return image

    frame = picture(primary_obs, primary_obs_type)
    borders = border_frames_from_overlay(overlay_settings, observation_to_image)
    for overlay, border in zip(overlay_settings or [], borders, strict=True):
        x, y = overlay["pos"]
        frame.paste(border, box=(x - overlay["border"], y - overlay["border"]))
        frame.paste(picture(overlay["obs"], overlay["type"]).resize(overlay["dims"]), box=(x, y))
    return frame if video_dims is None else frame.resize([*video_dims])


def make_video(
    observations: Iterable[dict[str, np.ndarray]],
    primary_obs: str,
    primary_obs_type: str,
    video_file: str,
    fps: int = 60,
    open_vid: bool = True,
    video_dims: Sequence[int] | None = None,
    overlay_settings: list[dict[str, Any]] | None = None,
    depth_clip: float = 10.0,
    observation_to_image: Callable[..., Any] = observation_to_image,
) -> None:
    """Write observations as an MP4, and show it unless `open_vid` is false.

    `video_dims`: (width, height) of the video where it differs from the observations'. `overlay_settings`: dicts with
    "obs" (which observation), "type", "dims" (width, height), "pos" (x, y), "border" (pixels) and "border_color".
    """
    video_file = video_file if video_file.endswith(".mp4") else video_file + ".mp4"
    to_image = partial(observation_to_image, depth_clip=depth_clip)
    frames = (
        make_video_frame(ob, primary_obs, primary_obs_type, video_dims, overlay_settings, to_image)
        for ob in observations
    )
    save_video(video_file, (np.array(frame) for frame in frames), fps)
    if open_vid:
        display_video(video_file)


def get_island_colored_map(island_top_down_map_data: np.ndarray) -> Image.Image:
    """The map of `PathFinder.get_topdown_island_view` as an RGB picture, each island in a colour, the rest white.

    As in habitat-sim, its rows become the picture's columns, and its columns go upwards.
    """
    count = max(int(island_top_down_map_data.max(initial=-1)) + 1, 0)
    colours = np.random.default_rng(0).integers(0, 256, (count + 1, 3), np.uint8)
    known = min(count, len(d3_40_colors_hex))
    colours[:known] = d3_40_colors_rgb[:known]
    colours[-1] = 255
    # habitat-sim writes column y to pixel −y: 0 stays, the others are mirrored
    return Image.fromarray(np.roll(colours[island_top_down_map_data][:, ::-1], 1, axis=1).swapaxes(0, 1).copy())


__getattr__ = missing_attribute(__name__)
