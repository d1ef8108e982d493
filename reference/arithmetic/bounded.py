"""Running error: each number carries how far an honest kernel's number may be from it.

A definition or a form, evaluated here under a precision, gives element by element the bound that a kernel of that form
and precision has to keep. The rule for one step, with computed operands within ex of x and ey of y:

    |fl(fl(x) o fl(y)) - x o y|  <=  (propagated from ex, ey)  +  u (|x o y| + propagated)

Nothing is charged where the operands are exact and the result is representable: so one-hot, integer and zero-angle
cases have bound zero by themselves, and are then compared bit for bit. Sums are charged for any order of summation.

The value beside the error is carried in extended precision (64 bits on x86); it serves for magnitudes, never as the
oracle. Second-order terms are kept; nothing is "to first order".

Assumed of a kernel: round to nearest with gradual underflow; +, -, *, /, sqrt correctly rounded; elementary functions
within ULPS. (These are the worst documented figures of CUDA's float32 library without fast-math, and hold for the
vector libraries of CPUs.)

Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.3 (running error analysis)
and 4.2 (any order of summation); T. J. Dekker, Numer. Math. 18 (1971), for the residuals.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from assay.reference.arithmetic.array import COMPARISONS, Array, Mask, Part
from assay.reference.arithmetic.formatted import EXTENDED, ULPS, Formatted, meet, of


_SPLIT = EXTENDED(2) ** (np.finfo(EXTENDED).nmant // 2 + 1) + 1


class Bounded(Formatted):
    """Values and the worst-case error of a kernel that computes in `precision`.

    An array has two parts: value[...] (extended precision) and error[...] >= 0. Where the working format would
    overflow, the error is infinite: nothing can be demanded there.
    """

    __name__ = "assay.bounded"

    def beside(self) -> Bounded:
        return Bounded(self.precision)

    @contextmanager
    def context(self) -> Iterator[None]:
        """What overflows or is undefined becomes an infinite error, without NumPy's warning about it."""
        with np.errstate(all="ignore"):
            yield

    # Making and reading arrays -----------------------------------------------------------------------------------

    def limited(self, value: Part, error: Part) -> Array:
        """Value and error; what overflowed or is undefined gets an infinite error."""
        value, error = np.asarray(value, EXTENDED), np.asarray(error, EXTENDED)
        lost = ~(np.abs(value) + error <= self.format.max)  # a NaN is lost as well
        return Array(self, (np.where(np.isnan(value), EXTENDED(0), value), np.where(lost, np.inf, error)))

    def lift(self, values: Part) -> Array:
        value = np.asarray(values).astype(EXTENDED)
        return Array(self, (value, np.zeros_like(value)))

    def approximate(self, values: Part, error: Part) -> Array:
        """Numbers known to within error: what a kernel returned, as against what it should have."""
        return self.limited(np.asarray(values).astype(EXTENDED), error)

    def cast(self, x: Array) -> Array:
        return self.rounded(*x.parts)

    def rounded(self, value: Part, error: Part, *, residual: Part | float = 0.0, gradual: bool = True) -> Array:
        """One rounding to the working format."""
        return self.limited(value, error + self.charge(value, error, residual=residual, gradual=gradual))

    def charge(self, value: Part, error: Part, *, residual: Part | float = 0.0, gradual: bool = True) -> Part:
        """What one rounding adds to the error: nothing where the operands were exact and the result fits.

        `residual` is what extended precision itself dropped, so that nothing is called exact by accident. `gradual`:
        the step can underflow (a sum of two numbers of the format cannot).
        """
        f = self.format
        exact = (error == 0) & (residual == 0) & f.holds(value)
        if f.quantum:
            charge = np.full_like(error, f.quantum / 2)
        else:
            charge = f.u * (np.abs(value) + error)
            if gradual:
                charge = np.maximum(charge, f.tiny)
        return np.where(exact, 0, charge + np.abs(residual))

    def wrap(self, x: Array) -> Array:
        # Integers in wrapping arithmetic, or fmod: exact, and an error moves the point along the circle.
        value, error = x.parts
        return self.limited(value - np.rint(value), error)

    # Steps -------------------------------------------------------------------------------------------------------

    def unary(self, name: str, x: Array) -> Array:
        v, e = x.parts
        if name == "negative":
            return Array(self, (-v, e))
        if name == "abs":
            return Array(self, (np.abs(v), e))
        if name in ("floor", "ceil"):
            return self.limited(getattr(np, name)(v), np.where(e == 0, 0, e + 1))
        value = getattr(np, name)(v)
        carried = np.where(e == 0, 0, _carried(name, v, e, value))
        carried = np.where(np.isnan(carried), np.inf, carried)
        if name == "sqrt":
            return self.rounded(value, carried, residual=value * value - v)
        # An elementary function is exact where it is trivial: exp(0), cos(0), log(1) and the like.
        trivial = (e == 0) & (v == (1 if name == "log" else 0))
        charge = np.maximum(2 * ULPS[name] * self.format.u * (np.abs(value) + carried), self.format.tiny)
        return self.limited(value, np.where(trivial, 0, carried + charge))

    def binary(self, name: str, x: Array, y: Array) -> Array:
        x, y = meet(x, y)
        xp = of(x)
        assert isinstance(xp, Bounded)
        (a, ea), (b, eb) = x.parts, y.parts
        if name in ("add", "subtract"):
            if name == "subtract":
                b = -b
            value = a + b
            shadow = value - a
            residual = (a - (value - shadow)) + (b - shadow)
            return xp.rounded(value, ea + eb, residual=residual, gradual=False)
        if name == "multiply":
            value = a * b
            carried = np.abs(a) * eb + np.abs(b) * ea + ea * eb
            # An exact zero annihilates whatever is finite.
            carried = np.where(((a == 0) & (ea == 0)) | ((b == 0) & (eb == 0)), 0, carried)
            return xp.rounded(value, carried, residual=_product_residual(a, b, value))
        if name == "divide":
            value = a / b
            room = np.abs(b) - eb
            carried = np.where(room > 0, (ea + np.abs(value) * eb) / room, np.inf)
            carried = np.where((ea == 0) & (eb == 0), 0, carried)
            product = value * b
            residual = (product - a) + _product_residual(value, b, product)
            return xp.rounded(value, carried, residual=np.where(b == 0, np.inf, residual / b))
        if name == "pow":
            return xp._power(a, ea, b, eb)
        value = np.maximum(a, b) if name == "maximum" else np.minimum(a, b)
        return Array(xp, (value, np.maximum(ea, eb)))

    def _power(self, a: Part, ea: Part, b: Part, eb: Part) -> Array:
        """a**b by a library, or as exp(b log a): the looser of the two recipes, since both are in use."""
        value = np.power(a, b)
        spread = np.abs(b * np.log(np.abs(a)))
        relative = np.abs(b) * -np.log1p(-ea / np.abs(a)) + (np.abs(np.log(np.abs(a))) + ea) * eb
        carried = np.where((ea == 0) & (eb == 0), 0, np.abs(value) * np.expm1(relative))
        carried = np.where(np.isnan(carried), np.inf, carried)
        charge = (2 * ULPS["pow"] + 3 * spread) * self.format.u * (np.abs(value) + carried)
        trivial = (eb == 0) & ((b == 0) | ((b == 1) & (ea == 0) & self.format.holds(a)))
        return self.limited(value, np.where(trivial, 0, carried + np.maximum(charge, self.format.tiny)))

    def total(self, x: Array) -> Array:
        accumulator = self.accumulator
        v, e = x.parts
        n = x.shape[-1]
        value, error = v.sum(axis=-1), e.sum(axis=-1)
        if n <= 1:
            return Array(self, (value, error))
        magnitude = np.abs(v)
        terms = ((v != 0) | (e != 0)).sum(axis=-1)  # adding a zero is exact
        # Any order is exact if all partial sums are multiples of one quantum that the format can count.
        quantum = _lowest_bit(v).min(axis=-1)
        exact = (error == 0) & (magnitude.sum(axis=-1) <= np.ldexp(quantum, accumulator.bits))
        k = np.maximum(terms - 1, 0) * accumulator.u
        charge = k / (1 - k) * (magnitude.sum(axis=-1) + error)
        wide = self.at(accumulator).limited(value, error + np.where(exact | (terms <= 1), 0, charge))
        return wide if accumulator == self.format else self.rounded(*wide.parts)

    def peak(self, x: Array) -> Array:
        return Array(self, (x.parts[0].max(axis=-1), x.parts[1].max(axis=-1)))

    def compare(self, name: str, x: Array, y: Array) -> Mask:
        # Values decide: a definition branches on inputs, which are exact.
        return Mask(np.asarray(COMPARISONS[name](x.parts[0], y.parts[0])))


def _carried(name: str, v: Part, e: Part, value: Part) -> Part:
    """How far name(v + delta) may be from name(v) = value, over all |delta| <= e."""
    if name == "exp":
        return value * np.expm1(e)
    if name == "expm1":
        return np.exp(v) * np.expm1(e)
    if name in ("log", "log1p"):
        return -np.log1p(-e / np.abs(v + (1 if name == "log1p" else 0)))
    if name == "sqrt":
        return np.where(e < v, e / (value + np.sqrt(np.maximum(v - e, 0))), np.sqrt(e))
    if name == "tanh":
        return e * (1 - np.tanh(np.maximum(np.abs(v) - e, 0)) ** 2)
    slope = np.abs(np.cos(v) if name == "sin" else np.sin(v))
    return np.minimum(np.minimum(slope * e + e * e / 2, e), 2)


def _product_residual(a: Part, b: Part, product: Part) -> Part:
    """a b - product, exactly (Dekker): zero where the extended product is the true one."""

    def split(x: Part) -> tuple[Part, Part]:
        c = _SPLIT * x
        high = c - (c - x)
        return high, x - high

    (ah, al), (bh, bl) = split(a), split(b)
    return ((ah * bh - product) + ah * bl + al * bh) + al * bl


def _lowest_bit(x: Part) -> Part:
    """The value of the last significant bit of each number; infinite for zero."""
    significand, exponent = np.frexp(x)
    digits = np.ldexp(np.abs(significand), 64).astype(np.uint64)
    last = (digits & (~digits + np.uint64(1))).astype(EXTENDED)
    return np.where(x == 0, np.inf, np.ldexp(last, exponent - 64))
