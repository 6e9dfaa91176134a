"""Stand-in for `habitat_sim.utils.common`: quaternions (numpy-quaternion; coefficients x, y, z, w) and a palette."""

from __future__ import annotations

from collections.abc import Sequence

import magnum as mn
import numpy as np
import quaternion as qt
from habitat_embedded_sim.unsupported import add_placeholders, missing_attribute


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


def _colours(text: str) -> np.ndarray:
    return np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in text.split()], dtype=np.uint8)


d3_40_colors_rgb: np.ndarray = _colours(
    "1f77b4 aec7e8 ff7f0e ffbb78 2ca02c 98df8a d62728 ff9896 9467bd c5b0d5 "
    "8c564b c49c94 e377c2 f7b6d2 7f7f7f c7c7c7 bcbd22 dbdb8d 17becf 9edae5 "
    "393b79 5254a3 6b6ecf 9c9ede 637939 8ca252 b5cf6b cedb9c 8c6d31 bd9e39 "
    "e7ba52 e7cb94 843c39 ad494a d6616b e7969c 7b4173 a55194 ce6dbd de9ed6"
)
"""The 40 colours of D3's category20 and category20b, uint8 [40, 3]."""

add_placeholders(globals(), "orthonormalize_rotation_shear")
__getattr__ = missing_attribute(__name__)
