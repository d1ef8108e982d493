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

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from assay.reference.arithmetic.array import COMPARISONS, Arithmetic, Array, Mask, Part
from assay.reference.arithmetic.precision import FLOAT64, FORMATS, QUAD, Format, Precision


ULPS = {"exp": 2, "expm1": 2, "log": 1, "log1p": 1, "sin": 2, "cos": 2, "tanh": 2, "pow": 4}
"""Units in the last place by which a library's elementary function may be off; an ulp is at most 2 u."""

EXTENDED = np.longdouble
_SPLIT = EXTENDED(2) ** (np.finfo(EXTENDED).nmant // 2 + 1) + 1


class Bounded(Arithmetic):
    """Values and the worst-case error of a kernel that computes in `precision`.

    An array has two parts: value[...] (extended precision) and error[...] >= 0. Where the working format would
    overflow, the error is infinite: nothing can be demanded there.
    """

    __name__ = "assay.bounded"

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.format = precision.working
        self._formats = {self.format.name: self}

    @contextmanager
    def context(self) -> Iterator[None]:
        """What overflows or is undefined becomes an infinite error, without NumPy's warning about it."""
        with np.errstate(all="ignore"):
            yield

    def at(self, working: Format) -> Bounded:
        """The same precision, for steps in another format: arrays of the two can meet."""
        if working.name not in self._formats:
            other = Bounded(self.precision)
            other.format, other._formats = working, self._formats
            self._formats[working.name] = other
        return self._formats[working.name]

    # Making and reading arrays -----------------------------------------------------------------------------------

    def limited(self, value: Part, error: Part) -> Array:
        """Value and error; what overflowed or is undefined gets an infinite error."""
        value, error = np.asarray(value, EXTENDED), np.asarray(error, EXTENDED)
        lost = ~(np.abs(value) + error <= self.format.max)  # a NaN is lost as well
        return Array(self, (np.where(np.isnan(value), EXTENDED(0), value), np.where(lost, np.inf, error)))

    def either(self, ways: Sequence[Callable[[], Array]]) -> Array:
        """The loosest of the ways."""
        found = [way() for way in ways]
        return Array(found[0].xp, (found[0].parts[0], np.maximum.reduce([f.parts[1] for f in found])))

    def lift(self, values: Part) -> Array:
        value = np.asarray(values).astype(EXTENDED)
        return Array(self, (value, np.zeros_like(value)))

    def parameter(self, value: float) -> Array:
        """A scalar of the host language, in double: it is rounded when it first meets an array."""
        return self.at(FLOAT64).lift(np.asarray(value))

    def approximate(self, values: Part, error: Part) -> Array:
        """Numbers known to within error: what a kernel returned, as against what it should have."""
        return self.limited(np.asarray(values).astype(EXTENDED), error)

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

    @property
    def pi(self) -> Array:
        # A constant of the host language, like a parameter: rounded when it first meets an array.
        value = np.asarray(4 * np.arctan(EXTENDED(1)))
        return Array(self.at(QUAD), (value, np.finfo(EXTENDED).eps * value))

    def wrap(self, x: Array) -> Array:
        # Integers in wrapping arithmetic, or fmod: exact, and an error moves the point along the circle.
        value, error = x.parts
        return self.limited(value - np.rint(value), error)

    # Roundings that a definition names ---------------------------------------------------------------------------

    def astype(self, x: Array, dtype: object, *, copy: bool = True) -> Array:
        """Integers (positions) become numbers of the working format, which may not hold them."""
        return _of(x).rounded(*x.parts)

    def store(self, x: Array, kind: str) -> Array:
        kept = self.precision.storage.get(kind)
        if kept is None:
            return x
        return Array(x.xp, self.at(kept).rounded(*x.parts).parts)

    def widen(self, x: Array, form: str) -> Array:
        wide, own = FORMATS[form], _of(x).format
        if wide.quantum:  # a fixed-point format is not wider everywhere: getting there is a rounding
            return self.at(wide).rounded(*x.parts)
        return x if own.bits >= wide.bits else Array(self.at(wide), x.parts)

    def narrow(self, x: Array) -> Array:
        own = self.at(self.precision.working)
        return x if x.xp is own else own.rounded(*x.parts)

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
        x, y = _meet(x, y)
        xp = _of(x)
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
            # An exact zero annihilates whatever is finite; an overflow times zero is a NaN.
            annihilated = ((a == 0) & (ea == 0) & (eb < np.inf)) | ((b == 0) & (eb == 0) & (ea < np.inf))
            carried = np.where(annihilated, 0, np.where(np.isnan(carried), np.inf, carried))
            out = xp.rounded(value, carried, residual=_product_residual(a, b, value))
            # Times 1, or any power of two of known value, is exact but for underflow, whatever the other operand is.
            holds = xp.format.holds
            scaled = (_doubles(a, ea) & ((eb > 0) | holds(b))) | (_doubles(b, eb) & ((ea > 0) | holds(a)))
            return Array(xp, (out.parts[0], np.where(scaled & np.isfinite(out.parts[1]), carried, out.parts[1])))
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

    @property
    def _accumulator(self) -> Format:
        """The format of sums: never narrower than that of the terms."""
        accumulator = self.precision.accumulator or self.format
        return accumulator if accumulator.bits >= self.format.bits else self.format

    def total(self, x: Array) -> Array:
        accumulator = self._accumulator
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

    def matmul(self, x: Array, y: Array) -> Array:
        product = self.precision.product
        if product is not None:
            x, y = (Array(self, self.at(product).rounded(*a.parts).parts) for a in (x, y))
        x, y = _meet(x, y)
        parts = (*x.parts, *y.parts)
        return _of(x)._contracted(*parts) if all(np.isfinite(p).all() for p in parts) else super().matmul(x, y)

    def _contracted(self, a: Part, ea: Part, b: Part, eb: Part) -> Array:
        """What `binary` and `total` charge, for whole matrices: never less, and nothing where all partial sums fit."""
        f, accumulator = self.format, self._accumulator
        value, magnitude = a @ b, np.abs(a) @ np.abs(b)
        carried = np.abs(a) @ eb + ea @ (np.abs(b) + eb)
        # Products with zeros and powers of two are exact; so is everything that is a multiple of one quantum.
        many, others = (~_is_unit(x, e) for x, e in ((a, ea), (b, eb)))
        inexact = (many.astype(EXTENDED) @ others.astype(EXTENDED)) * f.tiny
        products = f.u * ((np.where(many, np.abs(a), 0) @ np.where(others, np.abs(b), 0)) + carried) + inexact
        terms = ((a != 0) | (ea != 0)).astype(EXTENDED) @ ((b != 0) | (eb != 0)).astype(EXTENDED)
        k = np.maximum(terms - 1, 0) * accumulator.u
        sums = k / (1 - k) * (magnitude + carried + products)
        dropped = np.finfo(EXTENDED).eps * (terms + 1) * magnitude  # by extended precision itself
        quantum = _lowest_bit(a).min(axis=-1, initial=np.inf)[..., :, None]
        quantum = quantum * _lowest_bit(b).min(axis=-2, initial=np.inf)[..., None, :]
        exact = (
            (carried == 0) & (magnitude <= np.ldexp(quantum, min(f.bits, accumulator.bits))) & (quantum >= 2 * f.tiny)
        )
        exact &= f.holds(a).all(axis=-1)[..., :, None] & f.holds(b).all(axis=-2)[..., None, :]
        error = np.where(exact, 0, carried + products + sums + dropped)
        lost = ~(magnitude + error <= f.max)  # a product or a partial sum overflows
        wide = self.at(accumulator).limited(value, np.where(lost, np.inf, error))
        return wide if accumulator == f else self.rounded(*wide.parts)

    def peak(self, x: Array) -> Array:
        # A shift, so any number would do, and the one that a kernel found is known to it exactly: no error is carried.
        # Of the numbers that it may have found the greatest is taken, from where all others are furthest.
        value, error = x.parts
        return Array(self, ((value + error).max(axis=-1), np.zeros(value.shape[:-1], EXTENDED)))

    def compare(self, name: str, x: Array, y: Array) -> Mask:
        # Values decide: a definition branches on inputs, which are exact.
        return Mask(np.asarray(COMPARISONS[name](x.parts[0], y.parts[0])))


def _of(x: Array) -> Bounded:
    assert isinstance(x.xp, Bounded)
    return x.xp


def _meet(x: Array, y: Array) -> tuple[Array, Array]:
    """Two operands in one format: a scalar takes that of the array that it meets, otherwise the wider one wins."""
    a, b = _of(x), _of(y)
    if a is b:
        return x, y
    if (x.ndim == 0) != (y.ndim == 0):
        return (b.rounded(*x.parts), y) if x.ndim == 0 else (x, a.rounded(*y.parts))
    return (x, Array(a, y.parts)) if a.format.bits >= b.format.bits else (Array(b, x.parts), y)


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


def _doubles(x: Part, error: Part) -> Part:
    """Which numbers are 1, 2, 4, ... or their negatives, and known: to multiply by them is exact, without underflow."""
    return (np.abs(np.frexp(x)[0]) == 0.5) & (np.abs(x) >= 1) & (error == 0)


def _is_unit(x: Part, error: Part) -> Part:
    """Which numbers change nothing but the exponent of those that they multiply: 0, 1, 2, 4, ..."""
    return _doubles(x, error) | ((x == 0) & (error == 0))


def _lowest_bit(x: Part) -> Part:
    """The value of the last significant bit of each number; infinite for zero."""
    significand, exponent = np.frexp(x)
    digits = np.ldexp(np.abs(significand), 64).astype(np.uint64)
    last = (digits & (~digits + np.uint64(1))).astype(EXTENDED)
    return np.where(x == 0, np.inf, np.ldexp(last, exponent - 64))
