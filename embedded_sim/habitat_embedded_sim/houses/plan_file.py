"""A floor plan with its furniture as a file beside the scene, for whoever follows words on it."""

import json
from dataclasses import asdict
from pathlib import Path

from habitat_embedded_sim.houses.furnish import Piece
from habitat_embedded_sim.houses.plan import Door, Plan, Rect, Room, Window
from habitat_embedded_sim.houses.style import get_style


def write_plan(path: Path, plan: Plan, pieces: list[Piece]) -> None:
    """Write rooms, doors, windows and furniture as JSON; lengths in metres."""
    content = {
        "style": plan.style.name,
        "outline": asdict(plan.outline),
        "rooms": [asdict(room) for room in plan.rooms],
        "doors": [asdict(door) for door in plan.doors],
        "windows": [asdict(window) for window in plan.windows],
        "pieces": [asdict(piece) for piece in pieces],
    }
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def read_plan(path: Path) -> tuple[Plan, list[Piece]]:
    """Plan and furniture of a file that `write_plan` wrote; ValueError names a file that is none."""
    try:
        found = json.loads(path.read_bytes())
        rooms = [Room(**{**room, "rect": Rect(**room["rect"])}) for room in found["rooms"]]
        doors = [Door(**{**door, "rooms": tuple(door["rooms"])}) for door in found["doors"]]
        windows = [Window(**window) for window in found["windows"]]
        plan = Plan(get_style(found["style"]), Rect(**found["outline"]), rooms, doors, windows)
        return plan, [Piece(**{**piece, "footprint": Rect(**piece["footprint"])}) for piece in found["pieces"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"houses: {path} is no floor plan ({error!r}); make the houses again") from error
