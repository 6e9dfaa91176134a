"""Stand-in for `habitat_sim.sensor`: pinhole cameras for colour, depth and semantic ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import magnum as mn
import numpy as np
import quaternion as qt
from habitat_embedded_sim.render import Camera, View
from habitat_embedded_sim.unsupported import Partial, add_placeholders, missing_attribute, needs_real

from .scene import SceneNode, SceneNodeType


class SensorType(IntEnum):
    """What a camera measures; numbers as in habitat-sim."""

    NONE = 0
    COLOR = 1
    DEPTH = 2
    NORMAL = 3
    SEMANTIC = 4


class SensorSubType(IntEnum):
    """How a camera projects; only PINHOLE is rendered."""

    NONE = 0
    PINHOLE = 1
    ORTHOGRAPHIC = 2
    FISHEYE = 3
    EQUIRECTANGULAR = 4


_KINDS = {
    "position": mn.Vector3,
    "orientation": mn.Vector3,
    "resolution": mn.Vector2i,
    "hfov": mn.Deg,
    "clear_color": mn.Color4,
}


@dataclass
class SensorSpec(Partial):
    """What every sensor has. position: metres, relative to the agent; orientation: radians around x, then y, then z;
    resolution: [height, width]. They take what converts to Magnum's types, and read as those."""

    uuid: str = ""
    sensor_type: SensorType = SensorType.NONE
    sensor_subtype: SensorSubType = SensorSubType.NONE
    position: Any = (0.0, 1.5, 0.0)
    orientation: Any = (0.0, 0.0, 0.0)
    resolution: Any = (84, 84)
    noise_model: str = "None"
    noise_model_kwargs: dict[str, Any] = field(default_factory=dict)
    gpu2gpu_transfer: bool = False

    def __setattr__(self, name: str, value: Any) -> None:
        kind = _KINDS.get(name)
        super().__setattr__(name, value if kind is None else kind(value))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return vars(self) == vars(other)


@dataclass(eq=False)
class CameraSensorSpec(SensorSpec):
    """A pinhole camera; hfov in degrees; channels: 4 for colour. It sees at every distance, black where nothing is."""

    sensor_type: SensorType = SensorType.COLOR
    sensor_subtype: SensorSubType = SensorSubType.PINHOLE
    hfov: Any = 90.0
    channels: int = 4
    near: float = 0.01
    far: float = 1000.0
    clear_color: Any = (0.0, 0.0, 0.0, 1.0)


class Sensor(Partial):
    """A camera on a node. `render` gives its node's view of the current scene; the simulator supplies it."""

    def __init__(self, spec: SensorSpec, parent: SceneNode, render: Callable[[Sensor], View]) -> None:
        spec = self._spec = _checked(spec)
        self._render = render
        self._image: np.ndarray | None = None
        self.node = SceneNode(parent)
        self.node.type, self.node.sensor = SceneNodeType.SENSOR, self
        self.camera = Camera(int(spec.resolution[0]), int(spec.resolution[1]), float(spec.hfov))
        self.set_transformation_from_spec()

    @property
    def uuid(self) -> str:
        return self._spec.uuid

    @property
    def sensor_type(self) -> SensorType:
        return self._spec.sensor_type

    @property
    def hfov(self) -> mn.Deg:
        return self._spec.hfov

    @property
    def object(self) -> SceneNode:
        return self.node

    def specification(self) -> SensorSpec:
        return self._spec

    def set_transformation_from_spec(self) -> None:
        """Put the node where the specification says."""
        x, y, z = (float(angle) for angle in self._spec.orientation)
        turns = [qt.from_rotation_vector(np.array(v)) for v in ((x, 0, 0), (0, y, 0), (0, 0, z))]
        self.node.position = np.array([float(p) for p in self._spec.position])
        self.node.orientation = turns[2] * turns[1] * turns[0]

    def draw_observation(self) -> None:
        """Render from the node's present pose."""
        view = self._render(self)
        name = {SensorType.COLOR: "colour", SensorType.DEPTH: "depth", SensorType.SEMANTIC: "semantic"}
        self._image = getattr(view, name[self.sensor_type])

    def get_observation(self) -> np.ndarray:
        """The drawn image: uint8 [H, W, 4] (colour), float32 [H, W] (metres) or uint32 [H, W] (semantic ids)."""
        if self._image is None:
            self.draw_observation()
        assert self._image is not None
        return self._image.copy()  # the renderer remembers its views; callers may write into what they get


CameraSensor = VisualSensor = Sensor
add_placeholders(globals(), "SensorFactory")


def _checked(spec: SensorSpec) -> CameraSensorSpec:
    """The specification; raises where it asks for what is not rendered here."""
    if not isinstance(spec, CameraSensorSpec) or spec.sensor_subtype != SensorSubType.PINHOLE:
        raise needs_real(f"sensor {spec.uuid!r}: a camera other than a pinhole")
    if spec.sensor_type not in (SensorType.COLOR, SensorType.DEPTH, SensorType.SEMANTIC):
        raise needs_real(f"sensor {spec.uuid!r}: sensor type {spec.sensor_type!r}")
    if spec.noise_model != "None":
        raise needs_real(f"sensor {spec.uuid!r}: noise model {spec.noise_model!r}")
    if spec.gpu2gpu_transfer:
        raise needs_real(f"sensor {spec.uuid!r}: gpu2gpu_transfer (habitat_sim_v0.gpu_gpu)")
    if spec.near > 0.01 or spec.far < 100.0:
        raise needs_real(f"sensor {spec.uuid!r}: a camera that sees from {spec.near:g} to {spec.far:g} m only")
    if any(spec.clear_color[:3]):
        raise needs_real(f"sensor {spec.uuid!r}: a background colour")
    return spec


__getattr__ = missing_attribute(__name__)
