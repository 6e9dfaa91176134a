"""Files that are whole or not there, whoever writes them and whenever it is interrupted."""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

_SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def is_folder_name(name: Any) -> bool:
    """Whether it can name a folder: letters, digits, `_`, `-`, `.`; nothing that leads elsewhere."""
    return isinstance(name, str) and _SAFE_NAME.fullmatch(name) is not None


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
    temporary.write_bytes(content)
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
