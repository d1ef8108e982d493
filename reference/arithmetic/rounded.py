"""Rounded: arithmetic that rounds after every step, in a chosen format and direction.

A definition or a form, evaluated here, is an honest kernel of a precision without any hardware: bounds are tried on
thousands of them, and wrong kernels are made from them by changing one thing.

Each step is computed in extended precision (64 bits on x86) and rounded once more to its format. For +, -, *, / and
sqrt that equals one rounding wherever the format has at most 31 bits; in double it is off by at most 2**-11 of a unit
roundoff more.

Source: S. A. Figueroa, When is double rounding innocuous?, SIGNUM Newsletter 30 (1995), for the 31 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from assay.reference.arithmetic.array import COMPARISONS, Array, Mask, Part
from assay.reference.arithmetic.formatted import EXTENDED, Formatted, meet, of
from assay.reference.arithmetic.precision import Precision


ORDERS = ("forward", "backward", "pairwise")


class Rounded(Formatted):
    """Numbers of the formats of a precision. An array has one part: value[...], in extended precision.

    `mode` is the direction of every rounding (by default, the precision's), `order` that of every sum. Where the
    precision flushes, every subnormal input and result becomes zero.
    """

    __name__ = "assay.rounded"

    def __init__(self, precision: Precision, mode: str | None = None, order: str = "forward") -> None:
        super().__init__(precision)
        self.mode = mode or precision.rounding
        self.order = order

    def beside(self) -> Rounded:
        return Rounded(self.precision, self.mode, self.order)

    @contextmanager
    def context(self) -> Iterator[None]:
        """Overflow gives infinities, undefined steps give NaN, as in a kernel."""
        with np.errstate(all="ignore"):
            yield

    def rounded(self, value: Part) -> Array:
        return self.flushed(self.format.round(np.asarray(value, EXTENDED), self.mode))

    @property
    def plain(self) -> bool:
        """Is a step rounded as the processor rounds in the format?"""
        return self.format.native is not None and self.mode == "nearest" and not self.precision.flushes

    def flushed(self, value: Part) -> Array:
        if self.precision.flushes and not self.format.quantum:
            value = np.where(np.abs(value) < self.format.normal, EXTENDED(0), value)
        return Array(self, (value,))

    def cast(self, x: Array) -> Array:
        return self.rounded(x.parts[0])

    def lift(self, values: Part) -> Array:
        return self.flushed(np.asarray(values).astype(EXTENDED))

    def approximate(self, values: Part, error: Part) -> Array:
        return self.lift(values)

    def unary(self, name: str, x: Array) -> Array:
        (v,) = x.parts
        if name in ("negative", "abs"):
            return Array(self, (getattr(np, name)(v),))
        return self.rounded(getattr(np, name)(v))

    def binary(self, name: str, x: Array, y: Array) -> Array:
        x, y = meet(x, y)
        xp = of(x)
        assert isinstance(xp, Rounded)
        a, b = x.parts[0], y.parts[0]
        if name in ("maximum", "minimum"):
            return Array(xp, (getattr(np, name)(a, b),))
        return xp.rounded(np.power(a, b) if name == "pow" else getattr(np, name)(a, b))

    def total(self, x: Array) -> Array:
        wide = self.at(self.accumulator)
        if x.shape[-1] > 1 and self.order != "pairwise" and wide.plain:
            # The same additions one after the other, by the processor.
            values = x.parts[0] if self.order == "forward" else x.parts[0][..., ::-1]
            return self.rounded(np.add.accumulate(values.astype(wide.format.native), axis=-1)[..., -1])
        terms = [x.parts[0][..., i] for i in range(x.shape[-1])]
        if self.order == "backward":
            terms.reverse()
        if not terms:
            return self.lift(np.zeros(x.shape[:-1]))
        while len(terms) > 1:
            if self.order == "pairwise":
                odd = terms[2 * (len(terms) // 2) :]
                pairs = zip(terms[::2], terms[1::2], strict=False)
                terms = [wide.rounded(a + b).parts[0] for a, b in pairs] + odd
            else:
                terms = [wide.rounded(terms[0] + terms[1]).parts[0], *terms[2:]]
        return self.rounded(terms[0])

    def peak(self, x: Array) -> Array:
        return Array(self, (x.parts[0].max(axis=-1),))

    def compare(self, name: str, x: Array, y: Array) -> Mask:
        return Mask(np.asarray(COMPARISONS[name](x.parts[0], y.parts[0])))

    def wrap(self, x: Array) -> Array:
        return Array(x.xp, (x.parts[0] - np.rint(x.parts[0]),))
