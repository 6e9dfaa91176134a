"""Magnum's angles, quaternions and matrices."""

from __future__ import annotations

import math as _math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

import numpy as np
from habitat_embedded_sim.unsupported import Partial

from .vectors import _EPSILON, _NUMBER, Vector3, Vector4


class _Angle(Partial):
    """Degrees or radians. Arithmetic and comparison convert the other unit; `float(…)` gives the number."""

    __slots__ = ("_value",)
    _in_radians: ClassVar[float]

    def __init__(self, value: _Angle | float = 0.0) -> None:
        unit = value._in_radians / self._in_radians if isinstance(value, _Angle) else 1.0
        self._value = float(value) * unit

    def __float__(self) -> float:
        return self._value

    def __add__(self, other: Any) -> Self:
        return type(self)(self._value + type(self)(other)._value) if isinstance(other, _Angle) else NotImplemented

    def __sub__(self, other: Any) -> Self:
        return type(self)(self._value - type(self)(other)._value) if isinstance(other, _Angle) else NotImplemented

    def __mul__(self, factor: float) -> Self:
        return type(self)(self._value * factor) if isinstance(factor, _NUMBER) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        """By a number: an angle. By an angle: a number."""
        if isinstance(other, _Angle):
            return self._value / type(self)(other)._value
        return type(self)(self._value / other) if isinstance(other, _NUMBER) else NotImplemented

    def __neg__(self) -> Self:
        return type(self)(-self._value)

    def __abs__(self) -> Self:
        return type(self)(abs(self._value))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Angle):
            return NotImplemented
        a, b = self._value, type(self)(other)._value
        return a == b or abs(a - b) < _EPSILON * max(1.0, abs(a), abs(b))

    def __lt__(self, other: _Angle) -> bool:
        return self._value < type(self)(other)._value

    def __le__(self, other: _Angle) -> bool:
        return self._value <= type(self)(other)._value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._value:.6g})"


class Rad(_Angle):
    """An angle in radians."""

    __slots__ = ()
    _in_radians = 1.0


class Deg(_Angle):
    """An angle in degrees."""

    __slots__ = ()
    _in_radians = _math.pi / 180.0


def _radians(angle: Rad | Deg | float) -> float:
    return float(Rad(angle))


class Quaternion(Partial):
    """A rotation: `vector` (x, y, z) and `scalar` (w). No argument: none."""

    __slots__ = ("scalar", "vector")

    def __init__(self, vector: Any = (0.0, 0.0, 0.0), scalar: float = 1.0) -> None:
        if isinstance(vector, Quaternion):
            vector, scalar = vector.vector, vector.scalar
        elif len(vector) == 2:  # ((x, y, z), w)
            vector, scalar = vector
        self.vector: Vector3 = Vector3(vector)
        self.scalar = float(np.float32(scalar))

    @classmethod
    def identity_init(cls) -> Self:
        return cls()

    @classmethod
    def rotation(cls, angle: Rad | Deg | float, normalized_axis: Iterable[float]) -> Self:
        """The rotation by `angle` (`Deg` or `Rad`) around a unit axis; with two vectors, from the one to the other."""
        if isinstance(angle, (_Angle, _NUMBER)):
            half = _radians(angle) / 2
            return cls([_math.sin(half) * a for a in normalized_axis], _math.cos(half))
        a, b = np.asarray(angle, np.float64), np.asarray(normalized_axis, np.float64)
        if a @ b < -1.0 + 1e-6:  # opposite: half a turn around any axis at right angles
            return cls(Vector3(np.cross(a, np.eye(3)[np.argmin(np.abs(a))])).normalized(), 0.0)
        return cls(np.cross(a, b), 1.0 + float(a @ b)).normalized()

    @classmethod
    def from_matrix(cls, matrix: Matrix3) -> Self:
        """From a rotation matrix."""
        m = np.asarray(matrix, np.float64)
        # x, y, z, w, each squared and times four; the largest is divided by
        squares = 1.0 + np.array([m[0, 0], m[1, 1], m[2, 2], 0.0]) * 2.0 - np.trace(m)
        squares[3] = 1.0 + np.trace(m)
        i = int(np.argmax(squares))
        twist = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
        q = np.append(m[i] + m[:, i], twist[i]) if i < 3 else np.append(twist, squares[3])
        if i < 3:
            q[i] = squares[i]
        q /= np.linalg.norm(q)
        return cls(q[:3], q[3])

    def to_matrix(self) -> Matrix3:
        return Matrix3._of(np.stack([np.asarray(self.transform_vector(axis)) for axis in np.eye(3)], axis=1))

    def angle(self) -> Rad:
        """The angle it turns by, 0 to 2π."""
        return Rad(2.0 * _math.acos(max(-1.0, min(1.0, self.scalar))))

    def axis(self) -> Vector3:
        """The unit axis it turns around; NaN where it does not turn."""
        length = self.vector.length()
        return self.vector / length if length else Vector3(_math.nan)

    def dot(self) -> float:
        """The dot product with itself."""
        return self.vector.dot() + self.scalar**2

    def length(self) -> float:
        return _math.sqrt(self.dot())

    def normalized(self) -> Self:
        return self * (1.0 / self.length())

    def is_normalized(self) -> bool:
        return abs(self.dot() - 1.0) < 2 * _EPSILON

    def conjugated(self) -> Self:
        return type(self)(-self.vector, self.scalar)

    def inverted(self) -> Self:
        return self.conjugated() * (1.0 / self.dot())

    inverted_normalized = conjugated

    def transform_vector(self, vector: Iterable[float]) -> Vector3:
        """The vector rotated."""
        v, own = np.asarray(vector, np.float64), np.asarray(self.vector, np.float64)
        twice = 2.0 * np.cross(own, v)
        if not self.is_normalized():
            twice = twice / self.dot()
        return Vector3(v + self.scalar * twice + np.cross(own, twice))

    transform_vector_normalized = transform_vector

    def __mul__(self, other: Any) -> Self:
        """Rotation after rotation, or a scaled quaternion."""
        if isinstance(other, _NUMBER):
            return type(self)(self.vector * other, self.scalar * other)
        if not isinstance(other, Quaternion):
            return NotImplemented
        (ax, ay, az), aw, (bx, by, bz), bw = self.vector, self.scalar, other.vector, other.scalar
        vector = (
            aw * bx + bw * ax + ay * bz - az * by,
            aw * by + bw * ay + az * bx - ax * bz,
            aw * bz + bw * az + ax * by - ay * bx,
        )
        return type(self)(vector, aw * bw - ax * bx - ay * by - az * bz)

    def __neg__(self) -> Self:
        return type(self)(-self.vector, -self.scalar)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Quaternion):
            return NotImplemented
        return self.vector == other.vector and abs(self.scalar - other.scalar) < _EPSILON

    def __reduce__(self) -> tuple[type, tuple[tuple[float, ...], float]]:
        return type(self), (tuple(self.vector), self.scalar)

    def __repr__(self) -> str:
        return f"Quaternion({{{', '.join(f'{v:.6g}' for v in self.vector)}}}, {self.scalar:.6g})"


class _Matrix(Partial):
    """A square float32 matrix, made of columns; `m[i]` is column i, `np.array(m)` has the usual rows."""

    __slots__ = ("_rows",)
    _size: ClassVar[int]
    _column: ClassVar[type]

    def __init__(self, *columns: Any) -> None:
        columns = columns[0] if len(columns) == 1 else columns
        self._rows = np.array([list(c) for c in columns], np.float32).T if columns else np.eye(self._size, dtype="f4")
        if self._rows.shape != (self._size, self._size):
            raise TypeError(f"{type(self).__name__}: give {self._size} columns of {self._size} numbers")

    @classmethod
    def _of(cls, rows: np.ndarray) -> Self:
        return cls(*np.asarray(rows).T)

    @classmethod
    def identity_init(cls) -> Self:
        return cls()

    def __getitem__(self, i: int) -> Any:
        return self._column(self._rows[:, i])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._rows, dtype)

    def __matmul__(self, other: Any) -> Any:
        """With another matrix, or a vector of its size."""
        if isinstance(other, type(self)):
            return self._of(self._rows @ other._rows)
        return self._column(self._rows @ np.asarray(other)) if isinstance(other, self._column) else NotImplemented

    def transposed(self) -> Self:
        return self._of(self._rows.T)

    def inverted(self) -> Self:
        return self._of(np.linalg.inv(self._rows.astype(np.float64)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and np.allclose(self._rows, other._rows, _EPSILON, _EPSILON)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._rows.tolist()})"


class Matrix3(_Matrix):
    """A 3 × 3 matrix."""

    __slots__ = ()
    _size, _column = 3, Vector3


class _Either:
    """One name for a constructor (asked of the class) and for a part of an instance, as Magnum has them."""

    def __init__(self, make: Callable[..., Any], read: Callable[..., Any], write: Any = None) -> None:
        self._make, self._read, self._write = make, read, write

    def __get__(self, instance: Any, owner: type) -> Any:
        return self._make if instance is None else self._read(instance)

    def __set__(self, instance: Any, value: Any) -> None:
        self._write(instance, value)


class Matrix4(_Matrix):
    """A transformation in space. `Matrix4.translation(vector)` and `Matrix4.rotation(angle, axis)` make one,
    `m.translation` and `m.rotation()` (scaling taken out) read it."""

    __slots__ = ()
    _size, _column = 4, Vector4

    @classmethod
    def from_(cls, rotation_scaling: Any, translation: Iterable[float]) -> Self:
        rows = np.eye(4)
        rows[:3, :3], rows[:3, 3] = np.asarray(rotation_scaling), list(translation)
        return cls._of(rows)

    @classmethod
    def scaling(cls, factors: Iterable[float]) -> Self:
        return cls.from_(np.diag(list(factors)), (0.0, 0.0, 0.0))

    @classmethod
    def rotation_x(cls, angle: Rad | Deg) -> Self:
        return cls.rotation(angle, Vector3.x_axis())

    @classmethod
    def rotation_y(cls, angle: Rad | Deg) -> Self:
        return cls.rotation(angle, Vector3.y_axis())

    @classmethod
    def rotation_z(cls, angle: Rad | Deg) -> Self:
        return cls.rotation(angle, Vector3.z_axis())

    def rotation_scaling(self) -> Matrix3:
        return Matrix3._of(self._rows[:3, :3])

    def _without_scaling(self) -> Matrix3:
        return Matrix3._of(self._rows[:3, :3] / np.linalg.norm(self._rows[:3, :3], axis=0))

    def _put(self, translation: Iterable[float]) -> None:
        self._rows[:3, 3] = list(translation)

    translation = _Either(
        lambda vector: Matrix4.from_(np.eye(3), vector), lambda self: Vector3(self._rows[:3, 3]), _put
    )
    rotation = _Either(
        lambda angle, axis: Matrix4.from_(Quaternion.rotation(angle, axis).to_matrix(), (0.0, 0.0, 0.0)),
        lambda self: self._without_scaling,
    )

    def transform_point(self, point: Iterable[float]) -> Vector3:
        return Vector3(self._rows[:3, :3] @ np.array([*point]) + self._rows[:3, 3])

    def transform_vector(self, vector: Iterable[float]) -> Vector3:
        """As a point, without the translation."""
        return Vector3(self._rows[:3, :3] @ np.array([*vector]))

    inverted_rigid = _Matrix.inverted
