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

ULPS = {"exp": 3, "expm1": 3, "log": 4, "log1p": 2, "sin": 2, "cos": 2, "tanh": 2, "pow": 4}
"""Units in the last place by which a library's elementary function may be off; an ulp is at most 2 u.

The worst of what is documented for CUDA's float32 library without fast-math (2 for exp, sin, cos and tanh, 4 for pow,
1 for the others) and what 4 million points each showed of NumPy's vector loops (exp 2.42, expm1 2.55, log 3.14,
log1p 1.85, sin and cos 1.47, tanh 1.36) and torch's on the CPU (below 1).
"""
ROUNDED = ("add", "subtract", "multiply", "divide", "sqrt", "narrow")
"""Steps that are rounded once."""


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

    def roundoff(self, step: str) -> float:
        """By how much all numbers of one step may be off together, relative to themselves.

        A sum counts once under rounding to nearest, since its partial sums have no common direction but for the last;
        in a direction, each addition counts.
        """
        name, _, kind = step.partition(" ")
        if name == "store":
            kept = self.precision.storage.get(kind)
            return 0.0 if kept is None else kept.u * self.precision.spacings
        unit = self.format.u * self.precision.spacings
        if name in ULPS:
            return 2 * ULPS[name] * self.format.u
        if name in ("total", "matmul"):
            product = self.precision.product if name == "matmul" else None
            operands = 0.0 if product is None else 2 * product.u * self.precision.spacings
            return operands + (unit if self.precision.spacings == 1 else unit * max(int(kind), 1))
        return unit if name in ROUNDED else 0.0

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
        out = wide.contract(Array(wide, x.parts), Array(wide, y.parts))
        return out if wide is own else own.cast(out)

    def contract(self, x: Array, y: Array) -> Array:
        """The product of two matrices in one format."""
        return Arithmetic.matmul(self, x, y)


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
