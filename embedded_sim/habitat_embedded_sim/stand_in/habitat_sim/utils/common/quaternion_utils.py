"""Quaternions: numpy-quaternion's and Magnum's; coefficients x, y, z, w."""

from __future__ import annotations

import math
from collections.abc import Sequence

import magnum as mn
import numpy as np
import quaternion as qt
from habitat_embedded_sim.unsupported import missing_attribute


def quat_from_coeffs(coeffs: Sequence[float] | np.ndarray) -> qt.quaternion:
    """[x, y, z, w] → quaternion."""
    x, y, z, w = (float(c) for c in coeffs)
    return qt.quaternion(w, x, y, z)


def quat_to_coeffs(quat: qt.quaternion) -> np.ndarray:
    """Quaternion → [x, y, z, w]."""
    return np.array([quat.x, quat.y, quat.z, quat.w])


def quat_from_magnum(quat: mn.Quaternion) -> qt.quaternion:
    """Magnum's quaternion → numpy-quaternion."""
    return qt.quaternion(quat.scalar, *(float(v) for v in quat.vector))


def quat_to_magnum(quat: qt.quaternion) -> mn.Quaternion:
    """Numpy-quaternion → Magnum's quaternion."""
    return mn.Quaternion((quat.x, quat.y, quat.z), quat.w)


def quat_from_angle_axis(theta: float, axis: np.ndarray) -> qt.quaternion:
    """The rotation by `theta` radians around `axis`."""
    axis = np.asarray(axis, dtype=np.float64)
    x, y, z = np.sin(theta / 2) * axis / np.linalg.norm(axis)
    return qt.quaternion(np.cos(theta / 2), x, y, z)


def quat_rotate_vector(quat: qt.quaternion, vector: np.ndarray) -> np.ndarray:
    """`vector` [3] rotated by a unit quaternion."""
    return qt.as_rotation_matrix(quat) @ np.asarray(vector, dtype=np.float64)


def quat_to_angle_axis(quat: qt.quaternion) -> tuple[float, np.ndarray]:
    """The angle in radians and the unit axis [3]; +x where it does not turn."""
    vector = qt.as_rotation_vector(quat)
    angle = float(np.linalg.norm(vector))
    return (angle, vector / angle) if angle >= 1e-5 else (0.0, np.array([1, 0, 0]))


def quat_from_two_vectors(v0: np.ndarray, v1: np.ndarray) -> qt.quaternion:
    """The rotation that takes the direction of the first onto that of the second."""
    a, b = (np.asarray(v, np.float64) / np.linalg.norm(v) for v in (v0, v1))
    if a @ b < -1 + 1e-8:  # opposite: half a turn around any axis at right angles
        axis = np.cross(a, np.eye(3)[np.argmin(np.abs(a))])
        return qt.quaternion(0.0, *axis / np.linalg.norm(axis))
    return qt.quaternion(1.0 + a @ b, *np.cross(a, b)).normalized()


def angle_between_quats(q1: mn.Quaternion, q2: mn.Quaternion) -> float:
    """Radians between two of Magnum's unit quaternions, 0 to π."""
    between = q1.inverted() * q2
    return 2 * math.atan2(between.vector.length(), abs(between.scalar))


def random_quaternion() -> mn.Quaternion:
    """A rotation, uniform over all, from numpy's global random state."""
    x, y, z, w = np.random.standard_normal(4)
    return mn.Quaternion((x, y, z), w).normalized()


__getattr__ = missing_attribute(__name__)
