"""What travels between a client and the server: MessagePack maps in binary WebSocket messages (docs/serving.md).

A raw frame is the map that openpi's clients make of an array, so that they can be used as they are.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from habitat_vlnr1.errors import VLNR1Error

PROTOCOL = 1
"""Version of what is described in docs/serving.md."""
KEYS = ("instruction", "rgb", "reset", "ask")
LONGEST_INSTRUCTION = 20_000
"""Characters; RxR's longest has some 3,000."""


class RequestError(VLNR1Error):
    """A message that is not what it should be; the client gets the line, and its walk stays as it was."""


@dataclass(frozen=True)
class Request:
    """A client's message.

    Args:
        instruction: what the agent is told.
        frame: what it sees now, uint8 [H, W, 3]; None where the message only resets.
        reset: a new walk begins with it.
        ask: ask the model even where the last answer still has an action.
    """

    instruction: str
    frame: np.ndarray | None
    reset: bool
    ask: bool


def pack(content: Mapping[str, Any]) -> bytes:
    return msgpack.packb(content)


def read_request(content: bytes | str, most_pixels: int) -> Request:
    """The request in a message.

    Args:
        content: as it came.
        most_pixels: of a frame; larger ones are not decoded.

    Raises:
        RequestError: it is none.
    """
    if isinstance(content, str):
        raise RequestError("messages are binary: a MessagePack map, see docs/serving.md")
    try:
        row = msgpack.unpackb(content, strict_map_key=False)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise RequestError(f"not MessagePack ({type(error).__name__})") from None
    if not isinstance(row, dict):
        raise RequestError(f"a message is a map, not {type(row).__name__}")
    row = _with_text_keys(row)
    unknown = sorted(set(row) - set(KEYS))
    if unknown:
        raise RequestError(f"unknown key {unknown[0]!r:.40}; a message has {', '.join(KEYS)}")
    for key in ("reset", "ask"):
        if not isinstance(row.get(key, False), bool):
            raise RequestError(f"{key} is true or false")
    reset, rgb, told = row.get("reset", False), row.get("rgb"), row.get("instruction", "")
    if rgb is None:
        if reset:
            return Request("", None, True, False)
        raise RequestError("no frame: give rgb, or reset alone")
    if not isinstance(told, str) or not told.strip() or len(told) > LONGEST_INSTRUCTION:
        raise RequestError(f"instruction is a text of 1 to {LONGEST_INSTRUCTION} characters")
    return Request(told, read_frame(rgb, most_pixels), reset, row.get("ask", False))


def read_frame(rgb: Any, most_pixels: int) -> np.ndarray:
    """A frame in a message as uint8 [H, W, 3]: the bytes of a JPEG or PNG, or {"data", "shape", "dtype"}.

    Raises:
        RequestError: it is none, or has too many pixels.
    """
    if isinstance(rgb, bytes):
        return _decoded(rgb, most_pixels)
    if not isinstance(rgb, dict):
        raise RequestError("rgb is the bytes of a JPEG or PNG, or a map with data, shape and dtype")
    row = _with_text_keys(rgb)
    data, shape, kind = row.get("data"), row.get("shape"), row.get("dtype")
    if kind not in ("|u1", "uint8", "u1") or not isinstance(data, bytes) or not isinstance(shape, list | tuple):
        raise RequestError("a raw frame has data (bytes), shape [height, width, 3] and dtype '|u1'")
    if len(shape) != 3 or shape[2] != 3 or not all(type(length) is int and length > 0 for length in shape):
        raise RequestError("a raw frame's shape is [height, width, 3]")
    _check_size(shape[1], shape[0], most_pixels)
    if len(data) != shape[0] * shape[1] * 3:
        raise RequestError(f"a raw frame of shape {list(shape)} has {shape[0] * shape[1] * 3} bytes, not {len(data)}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _decoded(content: bytes, most_pixels: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            _check_size(image.width, image.height, most_pixels)  # before anything is unpacked
            return np.array(image.convert("RGB"))
    except RequestError:
        raise
    except Exception as error:  # whatever Pillow's decoders raise on bytes of anybody's
        raise RequestError(f"rgb cannot be read as JPEG or PNG ({type(error).__name__})") from None


def _check_size(width: int, height: int, most_pixels: int) -> None:
    if width * height > most_pixels or max(width, height) > 50 * min(width, height):
        raise RequestError(f"a frame of {width} × {height} pixels; at most {most_pixels}, and no such narrow ones")


def _with_text_keys(row: dict[Any, Any]) -> dict[str, Any]:
    """openpi's packer writes some keys as bytes."""
    return {key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key): v for key, v in row.items()}
