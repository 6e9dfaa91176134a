"""Stand-in for `magnum.math`: functions of numbers, angles and vectors."""

from __future__ import annotations

import math as _math
from collections.abc import Callable
from typing import Any

from habitat_embedded_sim.unsupported import missing_attribute

from .rotations import Deg, Quaternion, Rad
from .vectors import Vector3

pi, pi_half, pi_quarter, tau, e, inf, nan = (
    _math.pi,
    _math.pi / 2,
    _math.pi / 4,
    _math.tau,
    _math.e,
    _math.inf,
    _math.nan,
)
sqrt2, sqrt3, sqrt_half = _math.sqrt(2), _math.sqrt(3), _math.sqrt(0.5)


def sin(angle: Rad | Deg) -> float:
    return _math.sin(float(Rad(angle)))


def cos(angle: Rad | Deg) -> float:
    return _math.cos(float(Rad(angle)))


def tan(angle: Rad | Deg) -> float:
    return _math.tan(float(Rad(angle)))


def asin(value: float) -> Rad:
    return Rad(_math.asin(value))


def acos(value: float) -> Rad:
    return Rad(_math.acos(value))


def atan(value: float) -> Rad:
    return Rad(_math.atan(value))


def dot(a: Any, b: Any) -> float:
    """The dot product of two vectors or quaternions."""
    if isinstance(a, Quaternion):
        return dot(a.vector, b.vector) + a.scalar * b.scalar
    return sum(x * y for x, y in zip(a, b, strict=True))


def cross(a: Vector3, b: Vector3) -> Vector3:
    (ax, ay, az), (bx, by, bz) = a, b
    return Vector3(ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)


def angle(normalized_a: Any, normalized_b: Any) -> Rad:
    """The angle between two unit vectors; half the rotation between two unit quaternions."""
    return Rad(_math.acos(clamp(dot(normalized_a, normalized_b), -1.0, 1.0)))


def _by_component(choose: Callable[..., float]) -> Callable[..., Any]:
    def function(*values: Any) -> Any:
        """Of numbers; of vectors, component by component; of one vector, over its components."""
        vector = next((type(v) for v in values if hasattr(v, "__len__")), None)
        if vector is None or len(values) == 1:
            return choose(*values)
        columns = [[*v] if hasattr(v, "__len__") else [v] * len(values[0]) for v in values]
        return vector([choose(*row) for row in zip(*columns, strict=True)])

    return function


min = _by_component(min)
max = _by_component(max)
clamp = _by_component(lambda value, low, high: low if value < low else high if value > high else value)


def lerp(a: Any, b: Any, t: float) -> Any:
    """From a to b by t; quaternions are normalised."""
    if isinstance(a, Quaternion):
        mixed = Quaternion(a.vector * (1.0 - t) + b.vector * t, a.scalar * (1.0 - t) + b.scalar * t)
        return mixed.normalized()
    return a * (1.0 - t) + b * t


def slerp(normalized_a: Quaternion, normalized_b: Quaternion, t: float) -> Quaternion:
    """From one rotation to another at constant speed."""
    cosine = dot(normalized_a, normalized_b)
    if abs(cosine) > 1.0 - 1e-6:
        return lerp(normalized_a, normalized_b, t)
    whole = _math.acos(cosine)
    a, b = (_math.sin(part * whole) / _math.sin(whole) for part in (1.0 - t, t))
    return Quaternion(
        normalized_a.vector * a + normalized_b.vector * b, normalized_a.scalar * a + normalized_b.scalar * b
    )


__getattr__ = missing_attribute(__name__)
