"""Stand-in for `magnum`: the maths types that navigation touches, placeholders for the rest.

Elements of vectors are Python floats, as Magnum's are, whatever numpy computed them.
"""

from habitat_embedded_sim.unsupported import add_placeholders, missing_attribute

from . import math, trade
from .rotations import Deg, Matrix3, Matrix4, Quaternion, Rad
from .vectors import Color3, Color4, Range3D, Vector2, Vector2i, Vector3, Vector3i, Vector4

add_placeholders(globals(), "MutableImageView2D PixelFormat PixelStorage Range1D Range2D")
__getattr__ = missing_attribute(__name__)
__all__ = [
    "Color3",
    "Color4",
    "Deg",
    "Matrix3",
    "Matrix4",
    "Quaternion",
    "Rad",
    "Range3D",
    "Vector2",
    "Vector2i",
    "Vector3",
    "Vector3i",
    "Vector4",
    "math",
    "trade",
]
