"""Text of any script in pictures: each stretch in a font that has its letters.

Pillow's own font has English letters only. Behind it stand DejaVu (comes with Matplotlib: accents, arrows, Cyrillic,
Greek, …), Noto Sans for Hindi and Telugu (RxR's languages), and whatever fonts this machine has (Chinese, …). Where
no font has a letter, a note stands in its place, and `undrawable` says so: the text then goes beside the picture.
"""

from __future__ import annotations

import io
import re
import unicodedata
from functools import lru_cache
from importlib import util
from itertools import groupby
from pathlib import Path

from fontTools.ttLib import TTFont, TTLibError
from matplotlib import font_manager
from PIL import ImageFont

BUNDLED = {
    "matplotlib": "mpl-data/fonts/ttf/DejaVuSans.ttf",
    "fontpkg_noto_sans_devanagari": "files/NotoSansDevanagari[wdth,wght].ttf",
    "fontpkg_noto_sans_telugu": "files/NotoSansTelugu[wdth,wght].ttf",
}
"""Package → its font."""
NOTE = "[see the .txt beside]"
"""Stands for letters that no font has."""
_WIDE = ("noto", "cjk", "unifont", "wqy", "droid", "unicode", "gothic", "ming")
"""Names of fonts that have many scripts: looked at first."""
_MOST_FONTS = 300
_JOINERS = "\u200c\u200d"


class Face:
    """A font file and the letters that it has; `place` None is Pillow's own."""

    def __init__(self, place: Path | None):
        self.place = place
        source = str(place) if place else io.BytesIO(self.font(10).font_bytes)
        with TTFont(source, fontNumber=0, lazy=True) as opened:
            self.letters = frozenset(opened.getBestCmap() or ())

    def font(self, size: int) -> ImageFont.FreeTypeFont:
        return _font(self.place, size)

    def has(self, letter: str) -> bool:
        return ord(letter) in self.letters


@lru_cache(maxsize=256)
def _font(place: Path | None, size: int) -> ImageFont.FreeTypeFont:
    if place:
        return ImageFont.truetype(str(place), size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # the other kind comes only where no size is asked for
    return font


@lru_cache
def bundled() -> tuple[Face, ...]:
    """Pillow's font and those of `BUNDLED`."""
    found = {name: util.find_spec(name) for name in BUNDLED}
    places = [Path(spec.origin).parent / BUNDLED[name] for name, spec in found.items() if spec and spec.origin]
    return Face(None), *(face for face in map(_opened, places) if face is not None)


@lru_cache(maxsize=4096)
def face_of(letter: str) -> Face | None:
    """The first font that has a letter; None: there is none on this machine."""
    return next((face for face in bundled() if face.has(letter)), None) or _system_face(letter)


def _system_face(letter: str) -> Face | None:
    return next((face for face in map(_opened, _system_fonts()) if face is not None and face.has(letter)), None)


@lru_cache
def _system_fonts() -> tuple[Path, ...]:
    paths = {Path(path) for path in font_manager.findSystemFonts()}
    return tuple(sorted(paths, key=lambda path: (not any(w in path.name.lower() for w in _WIDE), path)))[:_MOST_FONTS]


@lru_cache(maxsize=_MOST_FONTS)
def _opened(path: Path) -> Face | None:
    try:
        return Face(path)
    except (OSError, TTLibError, ValueError, AssertionError):
        return None


def undrawable(text: str) -> str:
    """The letters of a text that no font on this machine has."""
    return "".join(dict.fromkeys(letter for letter in _visible(text) if not _fits(letter, face_of(letter))))


@lru_cache(maxsize=1024)
def stretches(text: str) -> tuple[tuple[str, Face], ...]:
    """A line of text in parts of one font each; a note stands for letters that none has."""
    faces: list[tuple[str, Face | None]] = []
    for word in re.findall(r"\s+|\S+", _visible(text)):
        whole = next((face for face in bundled() if all(_fits(letter, face) for letter in word)), None)
        faces += [(word, whole)] if whole else [(letter, face_of(letter)) for letter in word]
    parts = [(face, "".join(text for text, _ in part)) for face, part in groupby(faces, key=lambda pair: pair[1])]
    return tuple((part, face) if face else (NOTE, bundled()[0]) for face, part in parts)


def _fits(letter: str, face: Face | None) -> bool:
    return letter.isspace() or letter in _JOINERS or (face is not None and face.has(letter))


def _visible(text: str) -> str:
    """Without control characters, which no font shows."""
    return "".join(c for c in text if c in _JOINERS or not unicodedata.category(c).startswith("C"))
