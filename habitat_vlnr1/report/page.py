"""The page: one HTML file with style, program and data in it, which fetches nothing and lets nothing be fetched.

Its policy (`Content-Security-Policy`) admits this style and this program, by their digests, and pictures that are in
the data; whatever stands in an instruction or an answer is shown as text.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any


@cache
def _part(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}"


def render(data: Mapping[str, Any]) -> str:
    """The file's text.

    Args:
        data: what `page.js` shows: `title`, `subtitle`, `foot`, `tables`, `curves`, `policies`, `episodes`, `maps`,
            `words` (of the actions) and `history` (steps that are shown at each step).
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    parts = {
        "TITLE": html.escape(str(data["title"])),
        "STYLE": _part("page.css"),
        "STYLE_HASH": _hash(_part("page.css")),
        "SCRIPT": _part("page.js"),
        "SCRIPT_HASH": _hash(_part("page.js")),
        "DATA": text.replace("<", "\\u003c"),  # so that nothing in it ends the element that it stands in
    }
    # In one go: what is put in is not looked at again.
    return re.sub(r"@([A-Z_]+)@", lambda found: parts[found[1]], _part("page.html"))
