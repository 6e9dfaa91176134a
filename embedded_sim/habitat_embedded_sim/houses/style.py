"""Looks of houses: colours, textures, furniture and wording of each style.

A style is a distribution over houses. `plain` is the easiest; `modern` and `rustic` differ in wall and furniture
shades, in textures, in the kinds of furniture and in the phrasing of the instructions, so that one can be the unseen
domain of the other.
"""

from dataclasses import dataclass, replace

RGB = tuple[int, int, int]

ROOM_KINDS = ("living room", "kitchen", "bedroom", "bathroom", "dining room", "office", "library", "hallway")


@dataclass(frozen=True)
class Style:
    """One distribution of houses; colours are RGB 0–255, textures are names in `textures.TEXTURES`."""

    name: str
    wall_colours: dict[str, RGB]
    item_colours: dict[str, RGB]
    wall_textures: tuple[str, ...]
    floors: dict[str, tuple[str, RGB]]
    frame: RGB
    trim: RGB
    ceiling: RGB
    kinds: dict[str, tuple[str, ...]]  # furniture by kind of room; the first tells the room


_MODERN_KINDS = {
    "living room": ("sofa", "armchair", "tv", "table", "lamp", "plant", "cabinet", "bookshelf"),
    "kitchen": ("fridge", "stove", "table", "chair", "cabinet", "plant"),
    "bedroom": ("bed", "wardrobe", "lamp", "armchair", "plant", "cabinet"),
    "bathroom": ("toilet", "bathtub", "sink", "cabinet", "plant"),
    "dining room": ("table", "chair", "cabinet", "plant", "lamp", "bench"),
    "office": ("desk", "chair", "bookshelf", "lamp", "plant", "armchair"),
    "library": ("bookshelf", "armchair", "table", "lamp", "sofa", "plant"),
    "hallway": ("bench", "plant", "lamp", "cabinet", "wardrobe"),
}

_RUSTIC_KINDS = {
    "living room": ("sofa", "armchair", "fireplace", "table", "lamp", "chest", "bookshelf"),
    "kitchen": ("stove", "table", "bench", "cabinet", "fridge"),
    "bedroom": ("bed", "wardrobe", "chest", "lamp", "chair", "plant"),
    "bathroom": ("toilet", "bathtub", "sink", "chest", "plant"),
    "dining room": ("table", "bench", "fireplace", "cabinet", "plant", "chair"),
    "office": ("desk", "chair", "bookshelf", "chest", "lamp"),
    "library": ("bookshelf", "armchair", "fireplace", "lamp", "table", "chest"),
    "hallway": ("bench", "chest", "plant", "wardrobe"),
}

MODERN = Style(
    name="modern",
    wall_colours={
        "red": (214, 92, 84),
        "orange": (240, 160, 84),
        "yellow": (244, 226, 116),
        "green": (122, 192, 108),
        "blue": (104, 148, 226),
        "purple": (160, 112, 200),
        "pink": (246, 172, 202),
        "white": (240, 240, 236),
        "brown": (132, 94, 66),
    },
    item_colours={
        "red": (210, 16, 24),
        "orange": (250, 124, 0),
        "yellow": (252, 214, 0),
        "green": (0, 140, 40),
        "blue": (16, 52, 206),
        "purple": (112, 16, 160),
        "pink": (255, 90, 170),
        "white": (250, 250, 250),
        "black": (28, 28, 30),
        "brown": (104, 60, 24),
    },
    wall_textures=("plain", "stripes", "dots", "plain"),
    floors={
        "wood": ("planks", (206, 166, 118)),
        "tile": ("tiles", (214, 218, 222)),
        "carpet": ("carpet", (150, 144, 150)),
        "stone": ("stone", (168, 166, 158)),
    },
    frame=(70, 46, 34),
    trim=(250, 250, 250),
    ceiling=(226, 226, 222),
    kinds=_MODERN_KINDS,
)

RUSTIC = Style(
    name="rustic",
    wall_colours={
        "red": (172, 70, 58),
        "orange": (206, 126, 58),
        "yellow": (214, 188, 92),
        "green": (104, 148, 84),
        "blue": (82, 112, 164),
        "purple": (122, 86, 142),
        "pink": (214, 146, 158),
        "white": (222, 216, 202),
        "brown": (104, 74, 52),
    },
    item_colours={
        "red": (152, 22, 20),
        "orange": (210, 98, 18),
        "yellow": (222, 176, 28),
        "green": (34, 98, 34),
        "blue": (30, 60, 138),
        "purple": (84, 30, 104),
        "pink": (224, 102, 138),
        "white": (236, 230, 214),
        "black": (36, 30, 28),
        "brown": (84, 52, 26),
    },
    wall_textures=("bricks", "boards", "plain"),
    floors={
        "wood": ("planks", (132, 88, 54)),
        "tile": ("tiles", (186, 122, 92)),
        "stone": ("stone", (134, 128, 118)),
        "carpet": ("carpet", (122, 106, 96)),
    },
    frame=(236, 228, 206),
    trim=(96, 68, 44),
    ceiling=(190, 170, 142),
    kinds=_RUSTIC_KINDS,
)

_PLAIN_KINDS = {
    "living room": ("sofa", "armchair", "table", "cabinet", "bench"),
    "kitchen": ("fridge", "table", "cabinet", "bench"),
    "bedroom": ("bed", "wardrobe", "armchair", "cabinet"),
    "bathroom": ("bathtub", "cabinet", "bench", "wardrobe"),
    "dining room": ("table", "bench", "cabinet", "armchair"),
    "office": ("armchair", "table", "wardrobe", "bench"),
    "library": ("armchair", "sofa", "wardrobe", "table"),
    "hallway": ("bench", "wardrobe", "cabinet"),
}


def _clear(colours: dict[str, RGB]) -> dict[str, RGB]:
    """The six that few pixels tell apart."""
    return {name: colours[name] for name in ("red", "yellow", "green", "blue", "purple", "pink")}


# Modern houses with plain walls, few kinds of furniture of one clear colour each, told in few words: what a tiny model
# can learn in minutes.
PLAIN = replace(
    MODERN,
    name="plain",
    item_colours=_clear(MODERN.item_colours),
    wall_textures=("plain",),
    kinds=_PLAIN_KINDS,
)

# Told in the same words as `plain`, with the same kinds of furniture; walls, floors, frames and shades are rustic.
PLAIN_RUSTIC = replace(
    RUSTIC,
    name="plain_rustic",
    item_colours=_clear(RUSTIC.item_colours),
    kinds=_PLAIN_KINDS,
)

STYLES: dict[str, Style] = {style.name: style for style in (PLAIN, PLAIN_RUSTIC, MODERN, RUSTIC)}


def get_style(name: str) -> Style:
    """The style called `name`; ValueError names the ones there are."""
    if name not in STYLES:
        raise ValueError(f"houses: unknown style {name!r}; choose one of {', '.join(STYLES)}")
    return STYLES[name]


def contrast(a: RGB, b: RGB) -> float:
    """Euclidean RGB distance, 0–441."""
    return float(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5)
