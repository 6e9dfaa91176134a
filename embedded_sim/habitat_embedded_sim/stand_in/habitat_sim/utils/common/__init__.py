"""Stand-in for `habitat_sim.utils.common`: quaternions and a palette."""

from habitat_embedded_sim.unsupported import add_placeholders, missing_attribute

from .common import d3_40_colors_hex, d3_40_colors_rgb
from .quaternion_utils import (
    angle_between_quats,
    quat_from_angle_axis,
    quat_from_coeffs,
    quat_from_magnum,
    quat_from_two_vectors,
    quat_rotate_vector,
    quat_to_angle_axis,
    quat_to_coeffs,
    quat_to_magnum,
    random_quaternion,
)

add_placeholders(globals(), "orthonormalize_rotation_shear")
__getattr__ = missing_attribute(__name__)
__all__ = [
    "angle_between_quats",
    "d3_40_colors_hex",
    "d3_40_colors_rgb",
    "quat_from_angle_axis",
    "quat_from_coeffs",
    "quat_from_magnum",
    "quat_from_two_vectors",
    "quat_rotate_vector",
    "quat_to_angle_axis",
    "quat_to_coeffs",
    "quat_to_magnum",
    "random_quaternion",
]
