"""What arithmetics that follow a Precision have in common: every step belongs to a format.

A definition names where kernels change formats (`astype`, `store`, `widen`, `narrow`); here these become casts. Arrays
of one precision in two formats can meet: a scalar takes the format of the array that it meets, else the wider wins.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Self, cast

import numpy as np

from assay.reference.arithmetic.array import Arithmetic, Array
from assay.reference.arithmetic.precision import FLOAT64, FORMATS, QUAD, Format, Precision


if TYPE_CHECKING:
    from assay.reference.arithmetic.array import Part


EXTENDED = np.longdouble


class Formatted(Arithmetic):
    """An arithmetic whose steps end in `format`, under a `precision`."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.format = precision.working
        self._formats: dict[str, Formatted] = {self.format.name: self}

    @abstractmethod
    def beside(self) -> Self:
        """Another arithmetic with the same settings."""

    @abstractmethod
    def cast(self, x: Array) -> Array:
        """x, from any format, after one rounding to this one."""

    @abstractmethod
    def approximate(self, values: Part, error: Part) -> Array:
        """Numbers known to within error."""

    def at(self, working: Format) -> Self:
        """The same, for steps in another format."""
        if working.name not in self._formats:
            other = self.beside()
            other.format, other._formats = working, self._formats
            self._formats[working.name] = other
        return cast("Self", self._formats[working.name])

    def parameter(self, value: float) -> Array:
        """A scalar of the host language, in double: it is rounded when it first meets an array."""
        return self.at(FLOAT64).lift(np.asarray(value))

    @property
    def pi(self) -> Array:
        """A constant of the host language, like a parameter."""
        value = np.asarray(4 * np.arctan(EXTENDED(1)))
        return self.at(QUAD).approximate(value, np.finfo(EXTENDED).eps * value)

    @property
    def accumulator(self) -> Format:
        """The format of sums: never narrower than the steps."""
        wide = self.precision.accumulator or self.format
        return wide if wide.bits >= self.format.bits else self.format

    def astype(self, x: Array, dtype: object, *, copy: bool = True) -> Array:
        """Integers (positions) become numbers of the working format, which may not hold them."""
        return of(x).cast(x)

    def store(self, x: Array, kind: str) -> Array:
        kept = self.precision.storage.get(kind)
        return x if kept is None else Formatted.operand(self, x, kept)

    def operand(self, x: Array, kept: Format) -> Array:
        """x, rounded to what a step takes, as a number of its own format."""
        return Array(x.xp, self.at(kept).cast(x).parts)

    def widen(self, x: Array, form: str) -> Array:
        wide, own = FORMATS[form], of(x).format
        if wide.quantum:  # a fixed-point format is not wider everywhere: getting there is a rounding
            return self.at(wide).cast(x)
        return x if own.bits >= wide.bits else Array(self.at(wide), x.parts)

    def narrow(self, x: Array) -> Array:
        own = self.at(self.precision.working)
        return x if x.xp is own else own.cast(x)

    def matmul(self, x: Array, y: Array) -> Array:
        """Operands rounded to `product`, multiplied and added in the accumulator, rounded once to the format."""
        product = self.precision.product
        if product is not None:
            x, y = self.operand(x, product), self.operand(y, product)
        x, y = meet(x, y)
        own = of(x)
        wide = own.at(own.accumulator)
        out = Arithmetic.matmul(wide, Array(wide, x.parts), Array(wide, y.parts))
        return out if wide is own else own.cast(out)


def of(x: Array) -> Formatted:
    """The arithmetic of x."""
    assert isinstance(x.xp, Formatted)
    return x.xp


def meet(x: Array, y: Array) -> tuple[Array, Array]:
    """Two operands in one format."""
    a, b = of(x), of(y)
    if a is b:
        return x, y
    if (x.ndim == 0) != (y.ndim == 0):
        return (b.cast(x), y) if x.ndim == 0 else (x, a.cast(y))
    return (x, Array(a, y.parts)) if a.format.bits >= b.format.bits else (Array(b, x.parts), y)
