"""Magnum's vectors and boxes: float32 (or integer) components that read as Python numbers."""

from __future__ import annotations

import math as _math
from array import array
from collections.abc import Iterable, Iterator
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from habitat_embedded_sim.unsupported import Partial

_EPSILON = 1e-5  # Magnum's for single precision: what == forgives, relative above 1
_NUMBER: Any = Real  # to ask `isinstance`: type checkers take neither int nor float for a Real


class _Vector(Partial):
    """Components of one kind. `Vector3(x, y, z)`, `Vector3(x)` for all alike, `Vector3(iterable)`; no argument: zeros.

    Reads as a sequence of Python numbers, converts to an array of the same precision, and compares as a whole.
    """

    __slots__ = ("_data",)
    _size: ClassVar[int]
    _code: ClassVar[str] = "f"

    def __init__(self, *values: Any) -> None:
        given: Any = values
        if len(values) == 1:
            given = (values[0],) * self._size if isinstance(values[0], _NUMBER) else values[0]
        elif len(values) > 1 and not isinstance(values[0], _NUMBER):  # Vector3(Vector2, z)
            given = (*values[0], *values[1:])
        if isinstance(given, np.ndarray):
            given = given.tolist()  # three times as fast to read
        self._data = array(self._code, given if len(given) else (0,) * self._size)
        if len(self._data) != self._size:
            raise TypeError(f"{type(self).__name__}: give {self._size} numbers, not {len(self._data)}")

    @classmethod
    def zero_init(cls) -> Self:
        return cls()

    # ---- a sequence, and an array --------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[float]:
        return iter(self._data)

    def __getitem__(self, i: int) -> float:
        return self._data[i]

    def __setitem__(self, i: int, value: float) -> None:
        self._data[i] = value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """A copy: writing into it does not change the vector."""
        return np.array(self._data, dtype)

    def __reduce__(self) -> tuple[type, tuple[float, ...]]:
        return type(self), tuple(self._data)

    def __repr__(self) -> str:
        return f"Vector({', '.join(f'{v:.6g}' for v in self._data)})"

    # ---- arithmetic ----------------------------------------------------------------------------------------------

    def _other(self, other: Any) -> Iterable[float] | None:
        """The components of another vector or array of this size, None for anything else."""
        if isinstance(other, _Vector | np.ndarray | tuple | list) and len(other) == self._size:
            return other
        return None

    def __add__(self, other: Any) -> Self:
        values = self._other(other)
        return NotImplemented if values is None else type(self)([a + b for a, b in zip(self, values, strict=True)])

    def __sub__(self, other: Any) -> Self:
        values = self._other(other)
        return NotImplemented if values is None else type(self)([a - b for a, b in zip(self, values, strict=True)])

    def __mul__(self, other: Any) -> Self:
        """With a number, or component by component."""
        values = (other,) * self._size if isinstance(other, _NUMBER) else self._other(other)
        return NotImplemented if values is None else type(self)([a * b for a, b in zip(self, values, strict=True)])

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Self:
        values = (other,) * self._size if isinstance(other, _NUMBER) else self._other(other)
        return NotImplemented if values is None else type(self)([a / b for a, b in zip(self, values, strict=True)])

    def __neg__(self) -> Self:
        return type(self)([-a for a in self])

    def __eq__(self, other: object) -> bool:
        """Whether all components are equal, but for rounding."""
        if not isinstance(other, type(self)):
            return NotImplemented
        pairs = zip(self, other, strict=True)
        return all(a == b or abs(a - b) < _EPSILON * max(1.0, abs(a), abs(b)) for a, b in pairs)

    def dot(self) -> float:
        """The dot product with itself; that of two vectors is `magnum.math.dot`."""
        return sum(a * a for a in self)

    def length(self) -> float:
        return _math.sqrt(self.dot())

    def normalized(self) -> Self:
        return self / self.length()

    def resized(self, length: float) -> Self:
        """The same direction, of that length."""
        return self * (length / self.length())

    def is_zero(self) -> bool:
        return self.dot() < _EPSILON**2

    def is_normalized(self) -> bool:
        return abs(self.dot() - 1.0) < 2 * _EPSILON

    def sum(self) -> float:
        return sum(self)

    def product(self) -> float:
        return _math.prod(self)

    def min(self) -> float:
        return min(self)

    def max(self) -> float:
        return max(self)


def _component(i: int) -> property:
    def read(self: _Vector) -> float:
        return self._data[i]

    def write(self: _Vector, value: float) -> None:
        self._data[i] = value

    return property(read, write)


class Vector2(_Vector):
    """Two float32 components."""

    __slots__ = ()
    _size = 2
    x, y = _component(0), _component(1)

    @classmethod
    def x_axis(cls, length: float = 1.0) -> Self:
        return cls(length, 0.0)

    @classmethod
    def y_axis(cls, length: float = 1.0) -> Self:
        return cls(0.0, length)


class Vector3(_Vector):
    """Three float32 components."""

    __slots__ = ()
    _size = 3
    x, y, z = r, g, b = _component(0), _component(1), _component(2)

    @property
    def xy(self) -> Vector2:
        return Vector2(self.x, self.y)

    @classmethod
    def x_axis(cls, length: float = 1.0) -> Self:
        return cls(length, 0.0, 0.0)

    @classmethod
    def y_axis(cls, length: float = 1.0) -> Self:
        return cls(0.0, length, 0.0)

    @classmethod
    def z_axis(cls, length: float = 1.0) -> Self:
        return cls(0.0, 0.0, length)


class Vector4(_Vector):
    """Four float32 components."""

    __slots__ = ()
    _size = 4
    x, y, z, w = r, g, b, a = _component(0), _component(1), _component(2), _component(3)

    @property
    def xyz(self) -> Vector3:
        return Vector3(self.x, self.y, self.z)


class Vector2i(Vector2):
    """Two integers."""

    __slots__ = ()
    _code = "i"


class Vector3i(Vector3):
    """Three integers."""

    __slots__ = ()
    _code = "i"


class Color3(Vector3):
    """Red, green and blue, 0 to 1."""

    __slots__ = ()


class Color4(Vector4):
    """Red, green, blue and opacity, 0 to 1; opaque where three are given."""

    __slots__ = ()

    def __init__(self, *values: Any) -> None:
        if len(values) == 1:
            values = (values[0],) * 3 if isinstance(values[0], _NUMBER) else tuple(values[0])
        super().__init__(*(values if len(values) != 3 else (*values, 1.0)))

    @classmethod
    def from_linear_rgb_int(cls, value: int, a: float = 1.0) -> Self:
        """From 0xrrggbb."""
        return cls(*((value >> shift & 255) / 255 for shift in (16, 8, 0)), a)


class Range3D(Partial):
    """An axis-aligned box from `min` to `max`."""

    def __init__(self, min: Iterable[float] = (0.0,) * 3, max: Iterable[float] = (0.0,) * 3) -> None:
        self.min, self.max = Vector3(min), Vector3(max)

    @classmethod
    def from_size(cls, min: Iterable[float], size: Iterable[float]) -> Self:
        return cls(min, Vector3(min) + Vector3(size))

    @classmethod
    def from_center(cls, center: Iterable[float], half_size: Iterable[float]) -> Self:
        return cls(Vector3(center) - Vector3(half_size), Vector3(center) + Vector3(half_size))

    def center(self) -> Vector3:
        return (self.min + self.max) / 2.0

    def size(self) -> Vector3:
        return self.max - self.min

    def contains(self, point: Iterable[float]) -> bool:
        return all(low <= p < high for low, p, high in zip(self.min, Vector3(point), self.max, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Range3D) and self.min == other.min and self.max == other.max

    def __repr__(self) -> str:
        return f"Range({[*self.min]}, {[*self.max]})"
