"""Stand-in for `habitat_sim.scene`: poses in a tree, and the semantic scene of an annotated file."""

from __future__ import annotations

from dataclasses import dataclass, field

import magnum as mn
import numpy as np
import quaternion as qt
from habitat_embedded_sim.scene import Scene
from habitat_embedded_sim.unsupported import missing_attribute, needs_real

from .utils.common import quat_from_magnum, quat_to_magnum


class SceneNode:
    """A pose relative to a parent node: `position` float64 [3] (metres) and `orientation` (unit quaternion)."""

    def __init__(self, parent: SceneNode | None = None) -> None:
        self.parent = parent
        self.position = np.zeros(3)
        self.orientation = qt.one

    def absolute_pose(self) -> tuple[np.ndarray, qt.quaternion]:
        """Position [3] and rotation in the world."""
        if self.parent is None:
            return self.position.copy(), self.orientation
        position, rotation = self.parent.absolute_pose()
        return position + qt.as_rotation_matrix(rotation) @ self.position, rotation * self.orientation

    @property
    def translation(self) -> mn.Vector3:
        return mn.Vector3(self.position)

    @translation.setter
    def translation(self, value: np.ndarray) -> None:
        self.position = np.array(value, dtype=np.float64)

    @property
    def rotation(self) -> mn.Quaternion:
        return quat_to_magnum(self.orientation)

    @rotation.setter
    def rotation(self, value: mn.Quaternion) -> None:
        self.orientation = quat_from_magnum(value).normalized()

    @property
    def absolute_translation(self) -> mn.Vector3:
        return mn.Vector3(self.absolute_pose()[0])

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        raise needs_real(f"habitat_sim.scene.SceneNode.{name}")


@dataclass
class SemanticCategory:
    """A category name and its number among the scene's categories (sorted by name)."""

    _name: str
    _index: int

    def name(self, mapping: str = "") -> str:
        return self._name

    def index(self, mapping: str = "") -> int:
        return self._index


@dataclass
class Aabb:
    """An axis-aligned box in the world; corners float64 [3], metres."""

    min: np.ndarray
    max: np.ndarray

    def center(self) -> np.ndarray:
        return (self.min + self.max) / 2

    def size(self) -> np.ndarray:
        return self.max - self.min

    @property
    def sizes(self) -> np.ndarray:
        return self.size()


@dataclass
class SemanticRegion:
    """A room: its id ("_3" for region 3), number and objects. It has no category of its own in this annotation."""

    id: str
    index: int
    objects: list[SemanticObject] = field(default_factory=list)
    category: SemanticCategory | None = None


@dataclass
class SemanticObject:
    """An annotated object; `semantic_id` is what a semantic camera shows; `id` ends in "_<semantic_id>"."""

    id: str
    semantic_id: int
    category: SemanticCategory
    region: SemanticRegion | None
    aabb: Aabb


@dataclass
class SemanticScene:
    """The annotation of a scene, empty where the file has none. `objects[i]` is the object with semantic id i; ids
    that the annotation leaves out hold an object of category "Unknown" without a region."""

    objects: list[SemanticObject] = field(default_factory=list)
    regions: list[SemanticRegion] = field(default_factory=list)
    categories: list[SemanticCategory] = field(default_factory=list)
    levels: list[object] = field(default_factory=list)

    @classmethod
    def of(cls, scene: Scene) -> SemanticScene:
        """Build it from a loaded scene's annotation."""
        annotations = {a.semantic_id: a for a in scene.annotations}
        if not annotations:
            return cls()
        names = sorted({a.category for a in annotations.values()} | {"Unknown"})
        categories = {name: SemanticCategory(name, i) for i, name in enumerate(names)}
        regions = {r: SemanticRegion(f"_{r}", r) for r in sorted({a.region for a in annotations.values()})}
        objects = []
        for i in range(max(annotations) + 1):
            a = annotations.get(i)
            name = a.category if a else "Unknown"
            region = regions[a.region] if a else None
            box = Aabb(*scene.object_bounds(i))
            objects.append(SemanticObject(f"{name}_{i}", i, categories[name], region, box))
            if region:
                region.objects.append(objects[-1])
        return cls(objects, list(regions.values()), list(categories.values()))


__getattr__ = missing_attribute(__name__)
