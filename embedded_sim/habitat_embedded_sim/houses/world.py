"""A generated house as the episode maker sees it: plan, furniture, walkable surface and what a camera sees."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from habitat_embedded_sim.bvh import Bvh
from habitat_embedded_sim.houses.building import build
from habitat_embedded_sim.houses.corridor import furnish_corridor_plan, make_corridor_plan
from habitat_embedded_sim.houses.furnish import Piece, furnish
from habitat_embedded_sim.houses.glb import glb_bytes, semantic_ply, semantic_text
from habitat_embedded_sim.houses.plan import Plan, make_plan
from habitat_embedded_sim.houses.plan_file import write_plan
from habitat_embedded_sim.houses.scene import SceneObject
from habitat_embedded_sim.houses.style import Style
from habitat_embedded_sim.mesh import Mesh
from habitat_embedded_sim.navmesh import NavGrid, NavMeshSettings
from habitat_embedded_sim.render import Camera, local_rays

EYE_HEIGHT = 1.25  # metres, as the VLN-CE camera
SIGHT = Camera(32, 32, 90.0)  # small frames that tell what is visible
_WIDE = NavMeshSettings(cell_size=0.1, agent_radius=0.3)  # reference paths keep this far from things


class World:
    """One house: `pieces[i]` is the semantic object `piece_ids[i]`."""

    def __init__(self, plan: Plan, pieces: list[Piece], objects: list[SceneObject], mesh: Mesh) -> None:
        self.plan, self.pieces = plan, pieces
        self.piece_ids = [item.semantic_id for item in objects[len(objects) - len(pieces) :]]  # they are built last
        self.grid = NavGrid.build(mesh.vertices, mesh.faces)
        self.wide = NavGrid.build(mesh.vertices, mesh.faces, _WIDE)
        self._caster, self._face_ids = (
            Bvh(mesh.vertices, mesh.faces),
            mesh.semantic_ids,
        )  # same hits everywhere
        self.seen = lru_cache(maxsize=4096)(self._seen)

    def _seen(self, x: float, y: float, z: float, heading: float) -> dict[int, int]:
        """Pixels of every semantic object in the SIGHT frame of an agent at (x, y, z) with the heading (radians)."""
        cos, sin = math.cos(heading), math.sin(heading)
        rotation = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]], np.float32)
        rays = np.ascontiguousarray(local_rays(SIGHT) @ rotation.T)
        faces = self._caster.cast(np.array([x, y + EYE_HEIGHT, z], np.float32), rays)[0]
        ids, counts = np.unique(self._face_ids[faces[faces >= 0]], return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def on_floor(self, x: float, z: float) -> bool:
        """Whether the reference path may lead over this point of the floor."""
        return self.wide.is_navigable((x, 0.0, z), max_y_delta=0.1)


def make_world(
    rng: np.random.Generator, style: Style, folder: Path, name: str, corridor: Sequence[float] = ()
) -> World:
    """Draw a house and write `<name>.glb`, `<name>_semantic.txt` and `<name>_semantic.ply` into `folder`.

    With a `corridor` (how long, metres) one for long ways, and `<name>_plan.json` as well.
    """
    plan = make_corridor_plan(rng, style, corridor) if corridor else make_plan(rng, style)
    pieces = furnish_corridor_plan(rng, plan) if corridor else furnish(rng, plan)
    objects = build(plan, pieces)
    folder.mkdir(parents=True, exist_ok=True)
    if corridor:
        write_plan(folder / f"{name}_plan.json", plan, pieces)
    (folder / f"{name}.glb").write_bytes(glb_bytes(objects))
    (folder / f"{name}_semantic.txt").write_text(semantic_text(objects), encoding="utf-8")
    (folder / f"{name}_semantic.ply").write_bytes(semantic_ply(objects))
    return World(plan, pieces, objects, Mesh.load(folder / f"{name}.glb"))
