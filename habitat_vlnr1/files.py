"""Files that are whole or not there, whoever writes them and whenever it is interrupted."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from habitat_vlnr1.errors import FileError

NO_SPACE = 1 << 20
"""Bytes that are as good as none."""
LONGEST_NAME = 100  # two of them and an ending must fit into a file name, 255 bytes
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def is_folder_name(name: Any) -> bool:
    """Whether it can name a folder: at most 100 letters, digits, `_`, `-`, `.`; nothing that leads elsewhere."""
    return isinstance(name, str) and len(name) <= LONGEST_NAME and _SAFE_NAME.fullmatch(name) is not None


def is_text(value: Any) -> bool:
    """Whether it is a string that UTF-8 can write. A lone surrogate, which JSON has as `"\\ud83d"`, is none."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def printable(value: Any) -> str:
    """The value as text that can be written and printed, whatever a file had in it; at most 200 characters."""
    text = str(value).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return text if len(text) <= 200 else f"{text[:200]}…"


def read_json(file: Path, remedy: str, error: type[FileError] = FileError, kind: type = dict) -> Any:
    """What a JSON file holds; `parse_json` with the file's name.

    Args:
        remedy: what to do when the file is not as it should be, for the message.
        error: what is raised then.
        kind: what must stand at the top.

    Raises:
        FileError: the file is missing, empty, cut, or holds something else.
    """
    try:
        content = file.read_bytes()
    except OSError as problem:
        raise error(f"{file}: cannot be read ({problem.strerror}); {remedy}") from None
    return parse_json(content, str(file), remedy, error, kind)


def parse_json(content: bytes, place: str, remedy: str, error: type[FileError] = FileError, kind: type = dict) -> Any:
    """A JSON value, or an error that begins with its `place`; see `read_json`."""
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        what = "empty" if not content.strip() else f"not JSON ({problem})"
        raise error(f"{place}: {what}; {remedy}") from None
    if not isinstance(value, kind):
        raise error(f"{place}: holds {type(value).__name__} instead of {kind.__name__}; {remedy}")
    return value


class DiskFull(FileError, OSError):
    """Nothing more can be written; the message says where, and that the next start goes on."""


@contextmanager
def full_disk_is_said(path: str | os.PathLike[str]) -> Iterator[None]:
    """What is written in here ends in one line where there is no space, or a quota or limit is reached.

    Libraries hide the cause (PyTorch and safetensors raise errors of their own): there the space itself is looked at.
    """
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and not _is_full(path):
            raise
        why = os.strerror(number) if number else "no space left on device"
        raise DiskFull(
            f"{path}: {why}: make room and start again; what is whole stays, and the run goes on from there"
        ) from error


def _is_full(path: str | os.PathLike[str]) -> bool:
    there = next((place for place in (Path(path), *Path(path).absolute().parents) if place.exists()), Path("/"))
    return shutil.disk_usage(there).free < NO_SPACE


def drop_half_line(file: Path) -> None:
    """Cut what an interrupted writer left after the last newline of a JSON-lines file."""
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old or the new one, never half of it."""
    _written_beside(path, content).replace(path)


def write_first(path: Path, content: bytes) -> bool:
    """Write a file that is not there yet; False, and nothing is changed, when another process was first."""
    temporary = _written_beside(path, content)
    try:
        os.link(temporary, path)  # unlike a rename, it fails where the file has come into being
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _written_beside(path: Path, content: bytes) -> Path:
    # Several machines may write into one folder, so a process number is not enough.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with full_disk_is_said(path):
            temporary.write_bytes(content)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """`['protocol.turn_angle: 15 there, 30 now']` for two JSON values: what is on disk, and what is asked for.

    Entries of a mapping named `scenes` count where both have them: a scene that was fetched since changes no other.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        if name.split(".")[-1] == "scenes":
            keys = [key for key in old if key in new]
        return [d for key in keys for d in differences(old.get(key), new.get(key), f"{name}.{key}".strip("."))]
    return [] if old == new else [f"{name}: {json.dumps(old)} there, {json.dumps(new)} now"]
