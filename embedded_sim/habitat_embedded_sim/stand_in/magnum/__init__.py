"""Stand-in for `magnum`: the few maths types that navigation touches, placeholders for the rest.

Angles are radians inside (`Rad`, `Deg` are floats in radians and degrees); quaternions are (x, y, z, w) vectors and a
scalar, as in Magnum.
"""

from __future__ import annotations

import math as _math
from collections.abc import Iterable
from typing import Any

import numpy as np
from habitat_embedded_sim.unsupported import PlaceholderType, add_placeholders, missing_attribute

from . import trade


class Rad(float):
    """An angle in radians."""


class Deg(float):
    """An angle in degrees."""


def _radians(angle: Rad | Deg | float) -> float:
    return _math.radians(angle) if isinstance(angle, Deg) else float(angle)


class _Vector(np.ndarray):
    """A float32 vector of fixed length: an ndarray, so that it mixes with numpy."""

    _size = 0

    def __new__(cls, *values: float | Iterable[float]) -> _Vector:
        data: Any = values or (0.0,)
        if len(data) == 1 and np.ndim(data[0]) == 1:
            data = data[0]
        return np.array(np.broadcast_to(np.asarray(data, dtype=np.float32), cls._size)).view(cls)

    @classmethod
    def zero_init(cls) -> _Vector:
        return cls(0.0)


class Vector2(_Vector):
    """Two float32 components."""

    _size = 2


class Vector3(_Vector):
    """Three float32 components."""

    _size = 3

    @classmethod
    def x_axis(cls, length: float = 1.0) -> Vector3:
        return cls(length, 0.0, 0.0)

    @classmethod
    def y_axis(cls, length: float = 1.0) -> Vector3:
        return cls(0.0, length, 0.0)

    @classmethod
    def z_axis(cls, length: float = 1.0) -> Vector3:
        return cls(0.0, 0.0, length)


class Quaternion:
    """A rotation: `vector` (x, y, z) and `scalar` (w)."""

    def __init__(self, vector: Iterable[float] = (0.0, 0.0, 0.0), scalar: float = 1.0) -> None:
        self.vector = Vector3(np.asarray(vector, dtype=np.float32))
        self.scalar = float(scalar)

    @classmethod
    def identity_init(cls) -> Quaternion:
        return cls()

    @classmethod
    def rotation(cls, angle: Rad | Deg | float, normalized_axis: Iterable[float]) -> Quaternion:
        """The rotation by `angle` (`Deg`, or radians) around a unit axis."""
        half = _radians(angle) / 2
        return cls(_math.sin(half) * np.asarray(normalized_axis, dtype=np.float64), _math.cos(half))

    def __mul__(self, other: Quaternion) -> Quaternion:
        a, b = self.vector.astype(np.float64), other.vector.astype(np.float64)
        vector = self.scalar * b + other.scalar * a + np.cross(a, b)
        return Quaternion(vector, float(self.scalar * other.scalar - a @ b))

    def __repr__(self) -> str:
        return f"Quaternion({tuple(float(v) for v in self.vector)}, {self.scalar})"


class Matrix4(metaclass=PlaceholderType):
    """Only `identity_init()`, which Habitat-Lab calls in default arguments; it cannot be used further."""

    @classmethod
    def identity_init(cls) -> Matrix4:
        return object.__new__(cls)


add_placeholders(
    globals(),
    "Color3 Color4 Matrix3 MutableImageView2D Range1D Range2D Range3D Vector2i Vector3i Vector4",
)
__getattr__ = missing_attribute(__name__)
__all__ = ["Deg", "Matrix4", "Quaternion", "Rad", "Vector2", "Vector3", "trade"]
