"""Arrays of any arithmetic, in the clothes of the Python array API standard.

A definition is written once, against the array API (`xp = array_namespace(x)`), and runs on NumPy and torch arrays as
on the arrays of this file. Here stands what is the same in every arithmetic: shapes, indexing, broadcasting, operators,
and the names of the functions. An arithmetic adds what its numbers do: `unary`, `binary`, `sum`, `compare`.

The subset is what definitions use, and it is strict: a Python float is refused, because a float literal such as 0.1 is
not the number that it spells, and a certificate built on it would be false.

Source: Python array API standard, v2025.12, https://data-apis.org/array-api.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from array_api_compat import array_namespace


Operand: TypeAlias = "Array | int"
Part: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Bits: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"
T = TypeVar("T", "Array", "Mask")

REAL = "real"  # the dtype of every Array: what an element is made of is the business of its arithmetic

UNARY = ("negative", "abs", "sqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "floor", "ceil")
BINARY = ("add", "subtract", "multiply", "divide", "pow", "maximum", "minimum")


@dataclass(frozen=True, eq=False)
class Mask:
    """Truth values: a boolean argument, or the outcome of a comparison that is certain."""

    bits: Bits

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        raise TypeError("a mask belongs to no arithmetic: take array_namespace of a number")

    def __getitem__(self, index: Any) -> Mask:
        return Mask(np.asarray(self.bits[index]))

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.bits & other.bits)

    def __or__(self, other: Mask) -> Mask:
        return Mask(self.bits | other.bits)

    def __invert__(self) -> Mask:
        return Mask(~self.bits)

    def __bool__(self) -> bool:
        if self.bits.size != 1:
            raise TypeError("a definition branches on one truth value, not on an array: use xp.where")
        return bool(self.bits.reshape(()))


class Array:
    """An array of one arithmetic.

    `parts` are NumPy arrays of the array's shape: what its arithmetic keeps for each element (one ball; a value and
    its error). An Array is never changed after it is made.
    """

    __slots__ = ("parts", "xp")
    __array_ufunc__ = None  # so that `numpy_array * array` reaches __rmul__, which refuses it, and not NumPy
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, xp: Arithmetic, parts: tuple[Part, ...]) -> None:
        self.xp = xp
        self.parts = parts

    def __array_namespace__(self, *, api_version: str | None = None) -> Arithmetic:
        return self.xp

    def __repr__(self) -> str:
        return f"{self.xp.__name__} array of shape {self.shape}"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> str:
        return REAL

    @property
    def mT(self) -> Array:
        return self.xp.matrix_transpose(self)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Array:
        return self.xp.rearrange(lambda part: part[index], self)

    def __bool__(self) -> bool:
        raise TypeError("a definition branches on a comparison, never on a number")

    def __neg__(self) -> Array:
        return self.xp.unary("negative", self)

    def __abs__(self) -> Array:
        return self.xp.unary("abs", self)

    def __add__(self, other: Operand) -> Array:
        return self.xp.apply("add", self, other)

    def __radd__(self, other: Operand) -> Array:
        return self.xp.apply("add", other, self)

    def __sub__(self, other: Operand) -> Array:
        return self.xp.apply("subtract", self, other)

    def __rsub__(self, other: Operand) -> Array:
        return self.xp.apply("subtract", other, self)

    def __mul__(self, other: Operand) -> Array:
        return self.xp.apply("multiply", self, other)

    def __rmul__(self, other: Operand) -> Array:
        return self.xp.apply("multiply", other, self)

    def __truediv__(self, other: Operand) -> Array:
        return self.xp.apply("divide", self, other)

    def __rtruediv__(self, other: Operand) -> Array:
        return self.xp.apply("divide", other, self)

    def __pow__(self, other: Operand) -> Array:
        return self.xp.apply("pow", self, other)

    def __rpow__(self, other: Operand) -> Array:
        return self.xp.apply("pow", other, self)

    def __matmul__(self, other: Array) -> Array:
        if self.shape[-1] != other.shape[-2]:  # which products of elements would broadcast
            raise ValueError(f"{list(self.shape)} and {list(other.shape)} cannot be multiplied as matrices")
        return (other.xp if other.xp.rank > self.xp.rank else self.xp).matmul(self, other)

    def __lt__(self, other: Operand) -> Mask:
        return self.xp.compared("less", self, other)

    def __le__(self, other: Operand) -> Mask:
        return self.xp.compared("less_equal", self, other)

    def __gt__(self, other: Operand) -> Mask:
        return self.xp.compared("less", other, self)

    def __ge__(self, other: Operand) -> Mask:
        return self.xp.compared("less_equal", other, self)

    def __eq__(self, other: object) -> Mask:  # type: ignore[override]  # the array API's ==, element by element
        return self.xp.compared("equal", self, other)

    def __ne__(self, other: object) -> Mask:  # type: ignore[override]
        return ~self.xp.compared("equal", self, other)


class Arithmetic(ABC):
    """A number system that definitions run in: a namespace of the array API over its own arrays."""

    __name__: str  # array_namespace compares namespaces by name
    rank = 0
    """Where arrays of two arithmetics meet, the step belongs to the higher (complex over real)."""

    # What an arithmetic must say of its numbers ----------------------------------------------------------------

    @abstractmethod
    def lift(self, values: Part) -> Array:
        """Exact numbers (NumPy integers or floats of any width, ml_dtypes included) as an array of this arithmetic."""

    @abstractmethod
    def unary(self, name: str, x: Array) -> Array:
        """One of UNARY, element by element."""

    @abstractmethod
    def binary(self, name: str, x: Array, y: Array) -> Array:
        """One of BINARY, element by element, shapes broadcast."""

    @abstractmethod
    def total(self, x: Array) -> Array:
        """The sum over the last axis."""

    @abstractmethod
    def compare(self, name: str, x: Array, y: Array) -> Mask:
        """`less`, `less_equal` or `equal`; raises Uncertain where the answer depends on what is not known."""

    @abstractmethod
    def peak(self, x: Array) -> Array:
        """The maximum over the last axis. It may serve as a shift only: no derivative passes through it."""

    @property
    @abstractmethod
    def pi(self) -> Array:
        """The ratio of a circle's circumference to its diameter."""

    @property
    def inf(self) -> Array:
        """Positive infinity: what a definition returns where that is the answer, and computes nothing with."""
        return self.lift(np.asarray(math.inf))

    def parameter(self, value: float) -> Array:
        """A real parameter, a Python float taken at its exact binary value."""
        return self.lift(np.asarray(value, dtype=np.float64))

    def chosen(self, x: Array, y: Array, yes: Array, no: Array) -> Array:
        """`yes` where x >= y, else `no`: a branch that kernels take on computed numbers, at a kink."""
        return self.where(x >= y, yes, no)

    def scaled(self, x: Array) -> Array:
        """x, which kernels may carry with another factor, and without it later on: one rounding more."""
        return x

    def exactly(self, x: Array, value: Array) -> Array:
        """`value`, which x comes to whatever was rounded in it; differentiated as x is."""
        return value

    def vanishes(self, x: Array) -> Mask:
        """Which numbers are known to be 0. Never raises: what is divided by a number that may be 0 is not known."""
        return self.compare("equal", x, self.zeros(()))

    def wrap(self, x: Array) -> Array:
        """x minus the nearest integer: the same point of a circle of circumference 1, in [-1/2, 1/2)."""
        return x - self.floor(x + self.asarray(1) / 2)

    # How a precision reaches a definition; each is the identity unless the arithmetic models roundings ---------

    def store(self, x: Array, kind: str) -> Array:
        """What real kernels keep in a storage format: `table`, `weights`, `state`."""
        return x

    def widen(self, x: Array, form: str) -> Array:
        """From here on, compute in a wider format: `float32`, `float64`, `turn64`."""
        return x

    def narrow(self, x: Array) -> Array:
        """Back from a wider format, rounded once."""
        return x

    def either(self, ways: Sequence[Callable[[], Array]]) -> Array:
        """The same number, computed in one of several ways: the first, unless the arithmetic models roundings."""
        return ways[0]()

    def mixed(self, ways: Sequence[Callable[[], Array]]) -> Array:
        """The same sum, some of its terms computed in one of several ways and the others in another."""
        return self.either(ways)

    @contextmanager
    def context(self) -> Iterator[None]:
        """Whatever global state the numbers need (a working precision), for the duration of an evaluation."""
        yield

    # The array API, for all of them ----------------------------------------------------------------------------

    def asarray(self, x: object, *, dtype: str | None = None) -> Array:
        """An integer, a NumPy array or an Array; never a Python float.

        Raises: TypeError for a float, which would make a constant inexact.
        """
        if isinstance(x, Array):
            return x
        if isinstance(x, int):
            return self.lift(np.asarray(x, dtype=np.int64 if abs(x) < 2**63 else object))
        if isinstance(x, np.ndarray | np.integer):
            return self.lift(np.asarray(x))
        raise TypeError(
            f"{x!r} in a definition is a {type(x).__name__}, which is not exact: "
            "write a ratio of integers, or pass it as a parameter"
        )

    def apply(self, name: str, x: object, y: object) -> Array:
        x, y = self.asarray(x), self.asarray(y)
        return self.above(y).binary(name, x, y)

    def compared(self, name: str, x: object, y: object) -> Mask:
        return self.compare(name, self.asarray(x), self.asarray(y))

    def above(self, *arrays: Array | Mask) -> Arithmetic:
        """The arithmetic that arrays are handled in together: this one, unless one of them has numbers of a higher."""
        for a in arrays:
            if not isinstance(a, Mask) and a.xp.rank > self.rank:
                return a.xp
        return self

    def rearrange(self, function: Callable[..., Part], *arrays: T) -> T:
        """Move elements about, changing none: `function` takes and returns NumPy arrays."""
        first = arrays[0]
        if isinstance(first, Mask):
            return Mask(np.asarray(function(*(a.bits for a in arrays))))
        above = self.above(*arrays)
        if above is not self:
            return above.rearrange(function, *arrays)
        if len(arrays) == 1:
            return Array(first.xp, tuple([_array(function(part)) for part in first.parts]))
        parts = zip(*(a.parts for a in arrays), strict=True)
        return Array(first.xp, tuple([_array(function(*part)) for part in parts]))

    def astype(self, x: Array, dtype: object, *, copy: bool = True) -> Array:
        return x

    def arange(self, start: int, stop: int | None = None, step: int = 1, *, dtype: str | None = None) -> Array:
        return self.lift(np.arange(start, stop, step) if stop is not None else np.arange(start))

    def zeros(self, shape: int | tuple[int, ...], *, dtype: str | None = None) -> Array:
        return self.lift(np.zeros(shape, dtype=np.int64))

    def ones(self, shape: int | tuple[int, ...], *, dtype: str | None = None) -> Array:
        return self.lift(np.ones(shape, dtype=np.int64))

    def zeros_like(self, x: Array) -> Array:
        return self.zeros(x.shape)

    def ones_like(self, x: Array) -> Array:
        return self.ones(x.shape)

    def abs(self, x: Array) -> Array:
        return x.xp.unary("abs", x)

    def sqrt(self, x: Array) -> Array:
        return x.xp.unary("sqrt", x)

    def exp(self, x: Array) -> Array:
        return x.xp.unary("exp", x)

    def expm1(self, x: Array) -> Array:
        return x.xp.unary("expm1", x)

    def log(self, x: Array) -> Array:
        return x.xp.unary("log", x)

    def log1p(self, x: Array) -> Array:
        return x.xp.unary("log1p", x)

    def sin(self, x: Array) -> Array:
        return x.xp.unary("sin", x)

    def cos(self, x: Array) -> Array:
        return x.xp.unary("cos", x)

    def tanh(self, x: Array) -> Array:
        return x.xp.unary("tanh", x)

    def floor(self, x: Array) -> Array:
        return x.xp.unary("floor", x)

    def ceil(self, x: Array) -> Array:
        return x.xp.unary("ceil", x)

    def maximum(self, x: Operand, y: Operand) -> Array:
        return self.apply("maximum", x, y)

    def minimum(self, x: Operand, y: Operand) -> Array:
        return self.apply("minimum", x, y)

    def any(self, x: Mask, *, axis: int | None = None, keepdims: bool = False) -> Mask:
        return Mask(np.asarray(x.bits.any(axis=axis, keepdims=keepdims)))

    def all(self, x: Mask, *, axis: int | None = None, keepdims: bool = False) -> Mask:
        return Mask(np.asarray(x.bits.all(axis=axis, keepdims=keepdims)))

    def where(self, condition: Mask, x: Operand, y: Operand) -> Array:
        x, y = self.asarray(x), self.asarray(y)
        return self.rearrange(lambda a, b: np.asarray(np.where(condition.bits, a, b)), x, y)

    def sum(self, x: Array, *, axis: int | None = None, keepdims: bool = False) -> Array:
        if axis is None:
            out = x.xp.total(self.reshape(x, (-1,)))
            return self.reshape(out, (1,) * x.ndim) if keepdims else out
        out = x.xp.total(self.moveaxis(x, axis, -1))
        return self.expand_dims(out, axis=axis if axis >= 0 else x.ndim + axis) if keepdims else out

    def mean(self, x: Array, *, axis: int | None = None, keepdims: bool = False) -> Array:
        count = x.size if axis is None else x.shape[axis]
        return self.sum(x, axis=axis, keepdims=keepdims) / count

    def max(self, x: Array, *, axis: int = -1, keepdims: bool = False) -> Array:
        out = x.xp.peak(self.moveaxis(x, axis, -1))
        return self.expand_dims(out, axis=axis if axis >= 0 else x.ndim + axis) if keepdims else out

    def matmul(self, x: Array, y: Array) -> Array:
        products = self.expand_dims(x, axis=-2) * self.expand_dims(self.matrix_transpose(y), axis=-3)
        return products.xp.total(products)

    def matrix_transpose(self, x: T) -> T:
        return self.rearrange(lambda part: np.swapaxes(part, -1, -2), x)

    def reshape(self, x: T, shape: tuple[int, ...]) -> T:
        return self.rearrange(lambda part: np.reshape(part, shape), x)

    def permute_dims(self, x: T, axes: tuple[int, ...]) -> T:
        return self.rearrange(lambda part: np.transpose(part, axes), x)

    def moveaxis(self, x: T, source: int, destination: int) -> T:
        return self.rearrange(lambda part: np.moveaxis(part, source, destination), x)

    def expand_dims(self, x: T, *, axis: int) -> T:
        return self.rearrange(lambda part: np.expand_dims(part, axis), x)

    def squeeze(self, x: T, axis: int) -> T:
        return self.rearrange(lambda part: np.squeeze(part, axis), x)

    def broadcast_to(self, x: T, shape: tuple[int, ...]) -> T:
        return self.rearrange(lambda part: np.broadcast_to(part, shape), x)

    def flip(self, x: T, *, axis: int) -> T:
        return self.rearrange(lambda part: np.flip(part, axis), x)

    def roll(self, x: T, shift: int, *, axis: int) -> T:
        return self.rearrange(lambda part: np.roll(part, shift, axis), x)

    def take(self, x: T, indices: Part | Sequence[int], *, axis: int) -> T:
        """`indices` are plain integers: an index is a branch, and branches are taken on what is known."""
        return self.rearrange(lambda part: np.take(part, indices, axis), x)

    def concat(self, arrays: Sequence[T], *, axis: int = 0) -> T:
        return self.rearrange(lambda *parts: np.concatenate(parts, axis), *arrays)

    def stack(self, arrays: Sequence[T], *, axis: int = 0) -> T:
        return self.rearrange(lambda *parts: np.stack(parts, axis), *arrays)


class Uncertain(ArithmeticError):
    """An answer depends on digits that the working precision does not give."""


def store(x: Any, kind: str) -> Any:
    """Mark what real kernels keep in a storage format (`table`, `weights`, `state`). The value is not changed."""
    return x.xp.store(x, kind) if isinstance(x, Array) else x


def widen(x: Any, form: str) -> Any:
    """Mark that a form computes from here on in a wider format (`float32`, `float64`, `turn64`)."""
    return x.xp.widen(x, form) if isinstance(x, Array) else x


def narrow(x: Any) -> Any:
    """Mark the end of what `widen` began: one rounding to the working format."""
    return x.xp.narrow(x) if isinstance(x, Array) else x


def either(x: Any, *ways: Callable[[], Any]) -> Any:
    """Mark that kernels compute a number in any of these ways, equal in exact arithmetic (x says which arithmetic)."""
    return x.xp.either(ways) if isinstance(x, Array) else ways[0]()


def mixed(x: Any, *ways: Callable[[], Any]) -> Any:
    """Mark a sum of which kernels compute some terms in one of these ways and the others in another, and add."""
    return x.xp.mixed(ways) if isinstance(x, Array) else ways[0]()


def scaled(x: Any) -> Any:
    """Mark what kernels may multiply by a factor that others apply to the result: one rounding more."""
    return x.xp.scaled(x) if isinstance(x, Array) else x


def exactly(x: Any, value: Any) -> Any:
    """Mark what x comes to whatever was rounded in it, as a number less itself is 0. It is differentiated as x is."""
    return x.xp.exactly(x, value) if isinstance(x, Array) else value


def vanishes(x: Any) -> Any:
    """Where x is known to be 0: so a definition can say what it returns there instead of a quotient."""
    return x.xp.vanishes(x) if isinstance(x, Array) else x == 0


def wrap(x: Any) -> Any:
    """x minus the nearest integer: an angle in turns, reduced. An error in x is then meant along the circle."""
    return x.xp.wrap(x) if isinstance(x, Array) else x - array_namespace(x).round(x)


def _array(part: object) -> Part:
    """Indexing a NumPy array down to one element gives a scalar: put it back into an array without axes."""
    return part if isinstance(part, np.ndarray) else np.array(part, dtype=getattr(part, "dtype", object))


COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "less": operator.lt,
    "less_equal": operator.le,
    "equal": operator.eq,
}
