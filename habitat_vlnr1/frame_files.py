"""Frames as files: JPEG and PNG, one file each or all of an episode packed into one.

A frame has one path, whichever way it is stored: `frames/<scene>/<episode>/0007.jpg`. Where the episode is packed, the
file `frames/<scene>/<episode>.zip` holds it under the name `0007.jpg`: an uncompressed ZIP, whose directory at its end
tells where each picture lies, so that one is read without the others. Nothing stays open between two reads, so
processes may fork at any time.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from habitat_vlnr1.errors import RecordError

PACKED = ".zip"
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n", b"IEND\xaeB`\x82"
_HEADER, _LENGTHS = 30, 26  # bytes of an entry's header, and where it says how long name and extra field are
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same frames make the same file
_REMEDY = "delete the episode's line and export again"


# ------------------------------------------------------------------------------------------------------- encoding
def encode_jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """uint8 [H, W, 3 or 4] to JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(rgb[..., :3]).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode_depth(depth: np.ndarray) -> bytes:
    """Normalised depth, float [H, W, 1] in 0 … 1, to 16-bit PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(depth[..., 0] * 65535).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def decode_picture(content: bytes) -> np.ndarray:
    """A picture's bytes as uint8 [H, W, 3]; OSError (Pillow's) when they are none."""
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def jpeg_roundtrip(frames: np.ndarray, quality: int) -> np.ndarray:
    """Camera frames as they come back from an export: through `encode_jpeg` and the decoder of training.

    Args:
        frames: uint8 [N, H, W, 3 or 4].
        quality: 1 … 95, `vlnr1.export.jpeg_quality`.

    Returns:
        uint8 [N, H, W, 3].
    """
    seen = np.empty((*frames.shape[:3], 3), np.uint8)
    for number, frame in enumerate(frames):
        seen[number] = decode_picture(encode_jpeg(frame, quality))
    return seen


# ------------------------------------------------------------------------------------------------------- reading
class _Entry(NamedTuple):
    """Where a picture lies in its pack: first byte of its header, length of the name in it, and of the picture."""

    start: int
    name: int
    size: int


@lru_cache(maxsize=64)  # a record's frames are of one episode; an entry takes some 10 KB
def _directory(pack: str) -> dict[str, _Entry] | None:
    """What a pack holds; None: there is no such file.

    Raises:
        RecordError: it is cut, or not an uncompressed ZIP.
    """
    try:
        with zipfile.ZipFile(pack) as file:
            entries = file.infolist()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise RecordError(f"{pack}: not a whole file of frames ({error}); {_REMEDY}") from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise RecordError(f"{pack}: its frames are compressed once more; pack them without (zip -0)")
    return {
        entry.filename: _Entry(entry.header_offset, len(entry.filename.encode()), entry.file_size) for entry in entries
    }


def _entry(path: Path) -> tuple[str, _Entry | None]:
    """The pack that a frame would lie in, and where; None: it is not packed."""
    pack = os.fspath(path.parent) + PACKED
    directory = _directory(pack)
    return pack, None if directory is None else directory.get(path.name)


def read_picture(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a frame, out of its own file or of its episode's pack.

    Raises:
        FileNotFoundError: it is in neither.
        OSError: it cannot be read.
        RecordError: the pack is damaged.
    """
    path = Path(path)
    pack, entry = _entry(path)
    if entry is None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            forget_packs()  # one may have been written since
            pack, entry = _entry(path)
            if entry is None:
                raise
    return _cut_out(pack, entry)


def _cut_out(pack: str, entry: _Entry) -> bytes:
    file = os.open(pack, os.O_RDONLY)
    try:
        content = os.pread(file, _HEADER + entry.name + entry.size, entry.start)
        if not content.startswith(b"PK\3\4"):
            raise RecordError(f"{pack}: its directory does not fit its content; {_REMEDY}")
        start = _HEADER + sum(struct.unpack_from("<HH", content, _LENGTHS))
        more = start + entry.size - len(content)  # an extra field that the directory does not tell
        if more > 0:
            content += os.pread(file, more, entry.start + len(content))
    finally:
        os.close(file)
    return content[start : start + entry.size]


def forget_packs() -> None:
    """Look into packs anew: some were written."""
    _directory.cache_clear()


def picture_size(path: Path) -> int | None:
    """Bytes of a frame; None: there is none."""
    _, entry = _entry(path)
    if entry is not None:
        return entry.size
    return path.stat().st_size if path.is_file() else None


# ------------------------------------------------------------------------------------------------------- checking
def check_jpeg(path: Path) -> None:
    """Raise RecordError when a frame is missing, empty or cut off.

    A link is followed (the Hugging Face hub's cache consists of them), but must end at a file: no device, no pipe.
    """
    try:
        start, end = _ends(path)
    except FileNotFoundError:
        raise RecordError(f"{path}: frame is missing; {_REMEDY}") from None
    except OSError as error:
        what = "frame is empty" if error.errno == errno.EINVAL else f"frame cannot be read ({error.strerror})"
        raise RecordError(f"{path}: {what}; {_REMEDY}") from None
    if start != _JPEG_START or end != _JPEG_END:
        raise RecordError(f"{path}: frame is not a whole JPEG; {_REMEDY}")


def _ends(path: Path) -> tuple[bytes, bytes]:
    """The first and last two bytes of a frame."""
    pack, entry = _entry(path)
    if entry is not None:
        content = _cut_out(pack, entry)
        return content[:2], content[-2:]
    if not stat.S_ISREG(path.stat().st_mode):
        raise RecordError(f"{path}: not a file; {_REMEDY}")
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(-2, os.SEEK_END)
        return start, file.read(2)


def check_picture(content: Any, place: str, png: bool = False) -> None:
    """Raise RecordError when these are not the bytes of a whole JPEG (or PNG)."""
    start, end = (_PNG_START, _PNG_END) if png else (_JPEG_START, _JPEG_END)
    if not isinstance(content, bytes) or not content.startswith(start) or not content.endswith(end):
        raise RecordError(f"{place}: not a whole {'PNG' if png else 'JPEG'}")


# ------------------------------------------------------------------------------------------------------- packing
def write_pack(folder: Path, pictures: Mapping[str, bytes]) -> None:
    """Write `{name: bytes}` as the pack of the frames that would lie in `folder`, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    half = folder.with_name(f".{folder.name}{PACKED}.half")
    with zipfile.ZipFile(half, "w", zipfile.ZIP_STORED) as file:
        for name, content in pictures.items():
            file.writestr(zipfile.ZipInfo(name, _LONG_AGO), content)
    half.replace(folder.with_name(folder.name + PACKED))
    forget_packs()
