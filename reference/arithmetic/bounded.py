"""Running error: each number carries how far an honest kernel's number may be from it.

A definition or a form, evaluated here under a precision, gives element by element the bound that a kernel of that form
and precision has to keep. The rule for one step, with computed operands within ex of x and ey of y:

    |fl(fl(x) o fl(y)) - x o y|  <=  (propagated from ex, ey)  +  u (|x o y| + propagated)

Nothing is charged where the operands are exact and the result is representable: so one-hot, integer and zero-angle
cases have bound zero by themselves, and are then compared bit for bit. Sums are charged for any order of summation.

The value beside the error is carried in extended precision (64 bits on x86); it serves for magnitudes, never as the
oracle. Second-order terms are kept; nothing is "to first order".

In directed rounding u is twice as large, and an underflow loses up to a whole spacing of the subnormals. Where the
precision flushes, whatever may be subnormal may be zero, inputs included.

Assumed of a kernel: +, -, *, /, sqrt correctly rounded in the precision's direction, with gradual underflow unless it
flushes; elementary functions within ULPS. An infinite error means that a kernel may overflow, or divide by a zero, on
the way: nothing can be demanded there.

Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.3 (running error analysis)
and 4.2 (any order of summation); T. J. Dekker, Numer. Math. 18 (1971), for the residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

import numpy as np

from assay.reference.arithmetic.array import COMPARISONS, Array, Mask, Part
from assay.reference.arithmetic.formatted import EXTENDED, ULPS, Formatted, meet, of


MULTIPLIED = 8
"""Powers up to this are also computed by repeated multiplication."""

KEPT = 1 << 22
"""Products of matrices with more terms are bounded as a whole."""

_DROPPED = EXTENDED(2) ** -(np.finfo(EXTENDED).nmant + 1)
"""What one operation in extended precision may drop, relatively."""
_SPLIT = EXTENDED(2) ** (np.finfo(EXTENDED).nmant // 2 + 1) + 1


class Bounded(Formatted):
    """Values and the worst-case error of a kernel that computes in `precision`.

    An array has two parts: value[...] (extended precision) and error[...] >= 0. Where the working format can
    overflow, the error is infinite.
    """

    __name__ = "assay.bounded"

    @cached_property
    def unit(self) -> float:
        """What one rounding may change a normal number by, relatively."""
        return self.format.u * self.precision.spacings

    @cached_property
    def loss(self) -> np.longdouble:
        """What one rounding may change a subnormal number by."""
        return self.format.tiny * self.precision.spacings

    def beside(self) -> Bounded:
        return Bounded(self.precision)

    @contextmanager
    def context(self) -> Iterator[None]:
        """What overflows or is undefined becomes an infinite error, without NumPy's warning about it."""
        with np.errstate(all="ignore"):
            yield

    # Making and reading arrays -----------------------------------------------------------------------------------

    def limited(self, value: Part, error: Part, reach: Part | None = None) -> Array:
        """Value and error; what may have overflowed or is undefined gets an infinite error. `reach`: the largest
        magnitude met on the way, where that is not the value's."""
        value, error = np.asarray(value, EXTENDED), np.asarray(error, EXTENDED)
        kept = (np.abs(value) if reach is None else reach) + error <= self.format.max
        if kept.all():
            return Array(self, (value, error))
        # A NaN is lost as well.
        return Array(self, (np.where(np.isnan(value), EXTENDED(0), value), np.where(kept, error, np.inf)))

    def either(self, ways: Sequence[Callable[[], Array]]) -> Array:
        """The loosest of the ways."""
        found = [self.certain(way()) for way in ways]
        return Array(found[0].xp, (found[0].parts[0], np.maximum.reduce([f.parts[1] for f in found])))

    def mixed(self, ways: Sequence[Callable[[], Array]]) -> Array:
        """The errors of the ways add up: each term may have that of either, and the sum that of both."""
        found = [self.certain(way()) for way in ways]
        return Array(found[0].xp, (found[0].parts[0], np.add.reduce([f.parts[1] for f in found])))

    def scaled(self, x: Array) -> Array:
        """Charged whatever x is, for it is not x that is rounded. The factor is taken to make nothing subnormal."""
        x = self.certain(x)
        value, error = x.parts
        charge = np.maximum(self.unit * (np.abs(value) + error), self.loss)
        charge = self.underflown(value, error, charge)
        return Array(x.xp, (value, error + np.where((value == 0) & (error == 0), 0, charge)))

    def lift(self, values: Part) -> Array:
        value = np.asarray(values).astype(EXTENDED)
        error = np.zeros_like(value)
        return Array(self, (value, self.underflown(value, error, error)))

    def approximate(self, values: Part, error: Part) -> Array:
        """Numbers known to within error: what a kernel returned, as against what it should have."""
        return self.limited(np.asarray(values).astype(EXTENDED), error)

    def certain(self, x: Array) -> Array:
        """x with its whole error in the worst case: as it is, in this arithmetic."""
        return x

    def cast(self, x: Array) -> Array:
        return self.rounded(*x.parts)

    def rounded(self, value: Part, error: Part, *, residual: Part | float = 0.0) -> Array:
        """One rounding to the working format."""
        return self.limited(value, error + self.charge(value, error, residual=residual))

    def charge(self, value: Part, error: Part, *, residual: Part | float = 0.0) -> Part:
        """What one rounding adds to the error: nothing where the operands were exact and the result fits.

        `residual` is what extended precision itself dropped, so that nothing is called exact by accident.
        """
        f = self.format
        if f.quantum:
            charge = np.abs(residual) + f.quantum / 2 * self.precision.spacings
        else:
            charge = np.maximum(self.unit * (np.abs(value) + error), self.loss) + np.abs(residual)
        exact = (error == 0) & (residual == 0)
        if exact.any():
            exact = exact & (f.holds(value) | np.isinf(value))  # an infinity that was asked for
            charge = np.where(exact, 0, charge)
        return charge if f.quantum else self.underflown(value, error, charge)

    def underflown(self, value: Part, error: Part, charge: Part) -> Part:
        """The charge, or the whole of a number where it may be subnormal and the precision flushes."""
        if not self.precision.flushes or self.format.quantum:
            return charge
        low = np.abs(value) - error < self.format.normal
        return np.where(low, np.maximum(charge, np.minimum(np.abs(value) + error, self.format.normal)), charge)

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
            low, value, high = (getattr(np, name)(x) for x in (v - e, v, v + e))
            return self.limited(value, np.maximum(high - value, value - low))
        value = getattr(np, name)(v)
        carried = np.where(e == 0, 0, _carried(name, v, e, value))
        carried = np.where(np.isnan(carried), np.inf, carried)
        if name == "sqrt":
            square = value * value
            return self.rounded(value, carried, residual=(square - v) + _product_residual(value, value, square))
        # An elementary function is exact where it is trivial: exp(0), cos(0), log(1) and the like.
        trivial = (e == 0) & (v == (1 if name == "log" else 0))
        charge = self.underflown(value, carried, self.elementary(value, carried, ULPS[name]))
        return self.limited(value, np.where(trivial, 0, carried + charge))

    def elementary(self, value: Part, error: Part, ulps: Part | int) -> Part:
        """What a library function within so many units in the last place adds to the error."""
        return 2 * ulps * np.maximum(self.unit * (np.abs(value) + error), self.loss)

    def binary(self, name: str, x: Array, y: Array) -> Array:
        x, y = meet(x, y)
        xp = of(x)
        assert isinstance(xp, Bounded)
        (a, ea), (b, eb) = x.parts, y.parts
        if name in ("add", "subtract"):
            if name == "subtract":
                b = -b
            value, carried = a + b, ea + eb
            shadow = value - a
            residual = (a - (value - shadow)) + (b - shadow)
            return xp.rounded(value, carried, residual=residual)
        if name == "multiply":
            value = a * b
            carried = np.abs(a) * eb + np.abs(b) * ea + ea * eb
            # Zero times what a kernel may have lost to overflow can be a NaN.
            carried = np.where(np.isnan(carried), np.inf, carried)
            # What extended precision dropped matters where the product may be called exact; elsewhere its bound does.
            residual = _DROPPED * np.abs(value) if carried.all() else _product_residual(a, b, value)
            out = xp.rounded(value, carried, residual=residual)
            if self.precision.flushes:
                return out
            # Times 1 or a greater power of two of known value is exact, whatever the other operand is.
            for one, error, other, its in ((a, ea, b, eb), (b, eb, a, ea)):
                if error.all():
                    continue
                scaled = _doubles(one, error) & np.isfinite(out.parts[1])
                if scaled.any():
                    scaled = scaled & ((its > 0) | xp.format.holds(other))
                    out = Array(xp, (out.parts[0], np.where(scaled, carried, out.parts[1])))
            return out
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
        """a**b by a library, or as exp(b log a): the looser of the two recipes, since both are in use.

        Where b is a small integer, by a library or by repeated multiplication, for a of any sign.
        """
        value = np.power(a, b)
        size, whole = np.abs(a), (eb == 0) & (b == np.rint(b)) & (b >= 0) & (b <= MULTIPLIED)
        spread = np.abs(b * np.log(size))
        relative = np.abs(b) * -np.log1p(-ea / size) + (np.abs(np.log(size)) + ea / (size - ea)) * eb
        carried = np.where(whole, np.power(size + ea, b) - np.power(size, b), np.abs(value) * np.expm1(relative))
        carried = np.where((ea == 0) & (eb == 0), 0, carried)
        carried = np.where(np.isnan(carried), np.inf, carried)
        charge = self.elementary(value, carried, ULPS["pow"])
        # The underflow of one product is multiplied by those that follow.
        steps = np.where(whole, b * self.loss * np.maximum(size + ea, 1) ** np.maximum(b - 2, 0), 0)
        charge = charge + np.where(whole, steps, 3 * spread * self.unit * (np.abs(value) + carried))
        charge = self.underflown(value, carried, charge)
        trivial = (eb == 0) & (
            (b == 0) | ((b == 1) & (ea == 0) & self.format.holds(a)) | (whole & (a == 0) & (ea == 0))
        )
        return self.limited(value, np.where(trivial, 0, carried + charge))

    def total(self, x: Array) -> Array:
        accumulator = self.accumulator
        v, e = x.parts
        n = x.shape[-1]
        value, error = v.sum(axis=-1), e.sum(axis=-1)
        if n <= 1:
            return Array(self, (value, error))
        wide = self.at(accumulator)
        magnitude = np.abs(v).sum(axis=-1)
        terms = ((v != 0) | (e != 0)).sum(axis=-1)  # adding a zero is exact
        # Any order is exact if all partial sums are multiples of one quantum that the format can count and that no
        # underflow can touch.
        exact = error == 0
        if exact.any():
            quantum = _lowest_bit(v).min(axis=-1)
            floor = accumulator.normal if self.precision.flushes else 2 * accumulator.tiny
            exact = exact & (magnitude <= np.ldexp(quantum, accumulator.bits)) & (quantum >= floor)
        steps = np.maximum(terms - 1, 0)
        growth = np.expm1(steps * np.log1p(EXTENDED(wide.unit)))  # (1 + u)**steps - 1
        size = magnitude + error
        if self.precision.flushes:
            # What is flushed in one partial sum is gone, so all that is lost is at most the sum of all sizes.
            charge = growth * size + (1 + growth) * np.minimum(steps * accumulator.normal, size)
        else:
            charge = growth * size + steps * wide.loss  # terms from a wider format; those of its own cannot underflow
        error = error + np.where(exact | (steps == 0), 0, charge)
        # No order of summation meets a partial sum beyond that of all positive or of all negative terms.
        out = wide.limited(value, error, (magnitude + np.abs(value)) / 2)
        return out if wide is self else self.rounded(*out.parts)

    @cached_property
    def flushing(self) -> Bounded:
        """The same, where subnormal numbers may become zero."""
        return type(self)(replace(self.precision, flushes=True))

    def matmul(self, x: Array, y: Array) -> Array:
        """As products and sums, and flushed: matrix libraries may treat subnormal numbers as zero, whatever the mode
        of the processor (seen once: torch on the CPU lost 1e-40 in a gradient)."""
        if self.precision.flushes:
            return super().matmul(x, y)
        flushed = []
        for operand in (x, y):
            own = of(operand)
            assert isinstance(own, Bounded)
            twin = own.flushing.at(own.format)
            value, error, *more = operand.parts
            flushed.append(Array(twin, (value, twin.underflown(value, error, error), *more)))
        out = flushed[0] @ flushed[1]
        return Array(self.at(of(out).format), out.parts)

    def contract(self, x: Array, y: Array) -> Array:
        """As products and sums; where these are too many to be kept, n to an element, for any order of summation

            |error| <= ((1 + u)**n - 1) size + what may underflow,    size = |x| |y| + carried

        though some of the operations may be exact. Source: Higham, section 3.5.
        """
        n, lead = x.shape[-1], np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        if np.prod((*lead, *x.shape[-2:], y.shape[-1])) <= KEPT:
            return super().contract(x, y)
        (a, ea), (b, eb) = (self.certain(operand).parts for operand in (x, y))
        value, carried = a @ b, ea @ (np.abs(b) + eb) + np.abs(a) @ eb
        size = np.abs(a) @ np.abs(b) + carried
        growth = np.expm1(n * np.log1p(EXTENDED(self.unit)))
        lost = 2 * n * self.loss  # by n products and n sums
        if self.precision.flushes:
            lost = lost + np.minimum(2 * n * self.format.normal, 2 * size)
        return self.limited(value, carried + growth * size + (1 + growth) * lost, size)

    def chosen(self, x: Array, y: Array, yes: Array, no: Array) -> Array:
        """Where the order of x and y is within their errors, a kernel may have chosen either."""
        out = self.where(x >= y, yes, no)
        apart, reach = np.abs(x.parts[0] - y.parts[0]), x.parts[1] + y.parts[1]
        other = np.abs(yes.parts[0] - no.parts[0]) + yes.parts[1] + no.parts[1]
        either = np.where((reach > 0) & ~(apart > reach), other, 0)
        return Array(out.xp, (out.parts[0], out.parts[1] + either))

    def peak(self, x: Array) -> Array:
        # A shift, so any number would do, and the one that a kernel found is known to it exactly: no error is carried.
        # Of the numbers that it may have found the greatest is taken, from where all others are furthest.
        value, error = x.parts
        return Array(self, ((value + error).max(axis=-1), np.zeros(value.shape[:-1], EXTENDED)))

    def vanishes(self, x: Array) -> Mask:
        value, error = self.certain(x).parts
        return Mask(np.asarray((value == 0) & (error == 0)))

    def compare(self, name: str, x: Array, y: Array) -> Mask:
        # Values decide: a definition branches on inputs, which are exact.
        return Mask(np.asarray(COMPARISONS[name](x.parts[0], y.parts[0])))


def _carried(name: str, v: Part, e: Part, value: Part) -> Part:
    """How far name(v + delta) may be from name(v) = value, over all |delta| <= e."""
    if name in ("exp", "expm1"):
        # The second is for an error so large that the first is infinite, at a v so far below that exp(v + e) is not.
        return np.fmin(np.exp(v) * np.expm1(e), np.exp(v + e))
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


def _doubles(x: Part, error: Part) -> Part:
    """Which numbers are 1, 2, 4, ... or their negatives, and known: to multiply by them is exact, without underflow."""
    return (np.abs(np.frexp(x)[0]) == 0.5) & (np.abs(x) >= 1) & (error == 0)


def _lowest_bit(x: Part) -> Part:
    """The value of the last significant bit of each number; infinite for zero."""
    significand, exponent = np.frexp(x)
    digits = np.ldexp(np.abs(significand), 64).astype(np.uint64)
    last = (digits & (~digits + np.uint64(1))).astype(EXTENDED)
    return np.where(x == 0, np.inf, np.ldexp(last, exponent - 64))
