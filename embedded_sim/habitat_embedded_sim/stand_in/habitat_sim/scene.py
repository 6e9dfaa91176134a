"""Stand-in for `habitat_sim.scene`: poses in a tree, and the semantic scene of an annotated file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import magnum as mn
import numpy as np
import quaternion as qt
from habitat_embedded_sim.scene import Scene
from habitat_embedded_sim.unsupported import Partial, missing_attribute

from .utils.common import quat_from_magnum, quat_to_magnum


class SceneNodeType(IntEnum):
    """What a node is for."""

    EMPTY = 0
    SENSOR = 1
    AGENT = 2
    CAMERA = 3
    OBJECT = 4


class SceneNode(Partial):
    """A pose relative to a parent node: `position` float64 [3] (metres) and `orientation` (unit quaternion).

    Those are for the embedded simulator; `translation` and `rotation` are the same as Magnum's types, as habitat-sim
    has them. `sensor`: the sensor on this node, if there is one.
    """

    def __init__(self, parent: SceneNode | None = None) -> None:
        self.parent = parent
        self.children: list[SceneNode] = []
        self.position = np.zeros(3)
        self.orientation = qt.one
        self.type = SceneNodeType.EMPTY
        self.sensor: Any = None
        if parent is not None:
            parent.children.append(self)

    def create_child(self) -> SceneNode:
        return SceneNode(self)

    def absolute_pose(self) -> tuple[np.ndarray, qt.quaternion]:
        """Position [3] and rotation in the world."""
        if self.parent is None:
            return self.position.copy(), self.orientation
        position, rotation = self.parent.absolute_pose()
        return position + qt.as_rotation_matrix(rotation) @ self.position, rotation * self.orientation

    @property
    def subtree_sensors(self) -> dict[str, Any]:
        """The sensors on this node and below it, by uuid."""
        found = {} if self.sensor is None else {self.sensor.uuid: self.sensor}
        for child in self.children:
            found.update(child.subtree_sensors)
        return found

    # ---- as Magnum's objects -------------------------------------------------------------------------------------

    @property
    def translation(self) -> mn.Vector3:
        return mn.Vector3(self.position)

    @translation.setter
    def translation(self, value: Iterable[float]) -> None:
        self.position = np.array([*value], dtype=np.float64)

    @property
    def rotation(self) -> mn.Quaternion:
        return quat_to_magnum(self.orientation)

    @rotation.setter
    def rotation(self, value: mn.Quaternion) -> None:
        self.orientation = quat_from_magnum(value).normalized()

    @property
    def transformation(self) -> mn.Matrix4:
        return mn.Matrix4.from_(qt.as_rotation_matrix(self.orientation), self.position)

    @transformation.setter
    def transformation(self, value: mn.Matrix4) -> None:
        self.translation, self.rotation = value.translation, mn.Quaternion.from_matrix(value.rotation())

    @property
    def absolute_translation(self) -> mn.Vector3:
        return mn.Vector3(self.absolute_pose()[0])

    def absolute_transformation(self) -> mn.Matrix4:
        position, rotation = self.absolute_pose()
        return mn.Matrix4.from_(qt.as_rotation_matrix(rotation), position)

    def reset_transformation(self) -> SceneNode:
        """To the parent's pose."""
        self.position, self.orientation = np.zeros(3), qt.one
        return self

    def translate(self, vector: Iterable[float]) -> SceneNode:
        """Move along the parent's axes."""
        self.position = self.position + np.array([*vector])
        return self

    def translate_local(self, vector: Iterable[float]) -> SceneNode:
        """Move along the node's own axes."""
        return self.translate(qt.as_rotation_matrix(self.orientation) @ np.array([*vector]))

    def rotate(self, angle: mn.Rad, normalized_axis: Iterable[float]) -> SceneNode:
        """Turn around an axis through the parent's origin, as Magnum does."""
        turn = quat_from_magnum(mn.Quaternion.rotation(angle, normalized_axis))
        self.position = qt.as_rotation_matrix(turn) @ self.position
        self.orientation = (turn * self.orientation).normalized()
        return self

    def rotate_local(self, angle: mn.Rad, normalized_axis: Iterable[float]) -> SceneNode:
        """Turn around an axis of the node's own."""
        turn = quat_from_magnum(mn.Quaternion.rotation(angle, normalized_axis))
        self.orientation = (self.orientation * turn).normalized()
        return self

    def rotate_x(self, angle: mn.Rad) -> SceneNode:
        return self.rotate(angle, mn.Vector3.x_axis())

    def rotate_y(self, angle: mn.Rad) -> SceneNode:
        return self.rotate(angle, mn.Vector3.y_axis())

    def rotate_z(self, angle: mn.Rad) -> SceneNode:
        return self.rotate(angle, mn.Vector3.z_axis())

    def rotate_x_local(self, angle: mn.Rad) -> SceneNode:
        return self.rotate_local(angle, mn.Vector3.x_axis())

    def rotate_y_local(self, angle: mn.Rad) -> SceneNode:
        return self.rotate_local(angle, mn.Vector3.y_axis())

    def rotate_z_local(self, angle: mn.Rad) -> SceneNode:
        return self.rotate_local(angle, mn.Vector3.z_axis())


class SceneGraph(Partial):
    """A tree of nodes."""

    def __init__(self) -> None:
        self._root = SceneNode()

    def get_root_node(self) -> SceneNode:
        return self._root


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
class SemanticRegion(Partial):
    """A room: its id ("_3" for region 3), number and objects. It has no category of its own in this annotation."""

    id: str
    index: int
    objects: list[SemanticObject] = field(default_factory=list)
    category: SemanticCategory | None = None


@dataclass
class SemanticObject(Partial):
    """An annotated object; `semantic_id` is what a semantic camera shows; `id` ends in "_<semantic_id>"."""

    id: str
    semantic_id: int
    category: SemanticCategory
    region: SemanticRegion | None
    aabb: mn.Range3D


@dataclass
class SemanticScene(Partial):
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
            box = mn.Range3D(*scene.object_bounds(i))
            objects.append(SemanticObject(f"{name}_{i}", i, categories[name], region, box))
            if region:
                region.objects.append(objects[-1])
        return cls(objects, list(regions.values()), list(categories.values()))


__getattr__ = missing_attribute(__name__)
