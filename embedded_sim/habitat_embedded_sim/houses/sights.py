"""What a walk through a made house has shown: furniture, walls and floors, read back from the house's files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from habitat_embedded_sim.bvh import Bvh
from habitat_embedded_sim.houses.expert import FORWARD, LEFT, RIGHT
from habitat_embedded_sim.houses.furniture import KINDS
from habitat_embedded_sim.houses.world import EYE_HEIGHT, SIGHT
from habitat_embedded_sim.mesh import Mesh
from habitat_embedded_sim.render import local_rays
from habitat_embedded_sim.semantics import read_annotations

CLEAR = 0.04  # share of a frame's pixels from which on it can be told what a thing is
THERE = 0.02  # … from which on that it is there
FAINT = 0.004  # … and up to which it is as good as unseen


@dataclass(frozen=True)
class Thing:
    """A piece of furniture: its semantic id, kind and colour, and the room that it stands in."""

    semantic_id: int
    kind: str
    colour: str
    room: int


@dataclass
class House:
    """What a house's annotations say: its furniture, and by room the colour of the walls and the kind of floor."""

    things: list[Thing] = field(default_factory=list)
    walls: dict[int, str] = field(default_factory=dict)
    floors: dict[int, str] = field(default_factory=dict)
    wall_ids: dict[int, int] = field(default_factory=dict)  # room → semantic id
    floor_ids: dict[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, scene: Path) -> "House":
        """The house of a scene file with its annotations beside it."""
        house = cls()
        for item in read_annotations(scene):
            first, _, kind = item.category.partition(" ")
            if kind == "wall":
                house.walls[item.region] = first
                house.wall_ids[item.region] = item.semantic_id
            elif kind == "floor":
                house.floors[item.region] = first
                house.floor_ids[item.region] = item.semantic_id
            elif kind in KINDS:
                house.things.append(Thing(item.semantic_id, kind, first, item.region))
        return house


class Walked:
    """The frames of one walk as semantic ids, [T, H, W] of `SIGHT` (the field of view of the embedded protocol).

    Attributes:
        share: by semantic id the largest share of a frame's pixels that it has had.
        last: semantic ids of the last frame [H, W]; 0 where there is none.
    """

    def __init__(self, frames: Sequence[np.ndarray]):
        self.last = frames[-1]
        self.share: dict[int, float] = {}
        for frame in frames:
            for semantic_id, count in zip(*np.unique(frame, return_counts=True), strict=True):
                self.share[int(semantic_id)] = max(self.share.get(int(semantic_id), 0.0), count / frame.size)

    def clear(self, semantic_id: int) -> bool:
        """Whether a frame has shown it well."""
        return self.share.get(semantic_id, 0.0) >= CLEAR

    def there(self, semantic_id: int) -> bool:
        """Whether a frame has shown that it is there."""
        return self.share.get(semantic_id, 0.0) >= THERE

    def glimpsed(self, semantic_id: int) -> bool:
        """Whether a frame has shown so much of it that it could be meant."""
        return self.share.get(semantic_id, 0.0) > FAINT

    def share_now(self, semantic_id: int) -> float:
        """Its share of the last frame's pixels."""
        return float((self.last == semantic_id).mean())


class Eyes:
    """Casts a house's frames."""

    def __init__(self, scene: Path):
        mesh = Mesh.load(scene, with_textures=False)
        self._caster = Bvh(mesh.vertices, mesh.faces)
        self._ids = np.append(mesh.semantic_ids, 0)  # −1, nothing hit, picks the extra last entry
        self._rays = local_rays(SIGHT)

    def look(self, position: Sequence[float], heading: float) -> np.ndarray:
        """Semantic ids [H, W] from a position (metres, the floor's height) with a heading (radians)."""
        cos, sin = math.cos(heading), math.sin(heading)
        rotation = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]], np.float32)
        origin = np.asarray(position, np.float32) + np.array([0.0, EYE_HEIGHT, 0.0], np.float32)
        faces = self._caster.cast(origin, np.ascontiguousarray(self._rays @ rotation.T))[0]
        return self._ids[faces].reshape(SIGHT.height, SIGHT.width)

    def walk(self, poses: Sequence[tuple[Sequence[float], float]]) -> Walked:
        """The frames of these poses."""
        return Walked([self.look(position, heading) for position, heading in poses])


def poses_of(episode: dict, truth: dict, turn_angle: float) -> list[tuple[list[float], float]]:
    """Position and heading before each action of an episode's ground truth; `turn_angle` in degrees."""
    rotation = episode["start_rotation"]
    heading, moved = 2 * math.atan2(rotation[1], rotation[3]), 0
    poses = []
    for action in truth["actions"]:
        poses.append((truth["locations"][moved], heading))
        moved += action == FORWARD
        heading += math.radians(turn_angle) * ((action == LEFT) - (action == RIGHT))
    return poses
