"""Complex numbers over any arithmetic: pairs of its arrays.

    (a + ib)(c + id) = (ac - bd) + i(ad + bc),    exp(a + ib) = exp(a) (cos b + i sin b),    |a + ib|**2 = a**2 + b**2
    exp(a + ib) - 1 = (exp(a) - 1) cos b - 2 sin(b/2)**2 + i exp(a) sin b, which loses nothing near 0
    (a + ib)/(c + id) = ((a c' + b d') + i(b c' - a d')) / (c c' + d d'),    (c', d') = (c, d) / max(|c|, |d|)

Whatever the arithmetic is, real and imaginary parts are numbers of it; so balls enclose both, bounds bound both, and
gradients are those by both. Over running error, a contraction is charged as one sum of twice as many real products, in
any order; division is Smith's, by quotients or by reciprocals, whose error also covers the textbook formula where that
does not leave the range. The product with three multiplications is not covered: its imaginary part is not accurate by
itself.

Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.6; R. L. Smith, Comm. ACM 5
(1962), algorithm 116.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
from array_api_compat import array_namespace

from assay.reference.arithmetic.array import Arithmetic, Array, Mask, Part


COMPLEX = "complex"


class ComplexArray(Array):
    """A real and an imaginary part, arrays of one arithmetic and one shape."""

    __slots__ = ("imag", "real")

    def __init__(self, real: Array, imag: Array) -> None:
        super().__init__(over(real.xp), real.parts + imag.parts)
        self.real = real
        self.imag = imag

    @property
    def dtype(self) -> str:
        return COMPLEX


class Complex(Arithmetic):
    """Complex numbers whose parts are numbers of the arithmetic `below`."""

    __name__ = "assay.complex"
    rank = 1

    def __init__(self, below: Arithmetic) -> None:
        self.below = below

    @contextmanager
    def context(self) -> Iterator[None]:
        with self.below.context():
            yield

    def lift(self, values: Part) -> Array:
        """Real numbers stay real until they meet a complex one."""
        if not np.iscomplexobj(values):
            return self.below.lift(values)
        return ComplexArray(self.below.lift(values.real), self.below.lift(values.imag))

    def parameter(self, value: float) -> Array:
        return self.below.parameter(value)

    @property
    def pi(self) -> Array:
        return self.below.pi

    def unary(self, name: str, x: Array) -> Array:
        a, b = split(x)
        if name == "negative":
            return ComplexArray(-a, -b)
        if name == "abs":
            return a.xp.sqrt(a * a + b * b)
        if name == "exp":
            size = a.xp.exp(a)
            return ComplexArray(size * b.xp.cos(b), size * b.xp.sin(b))
        if name == "expm1":
            half = b.xp.sin(b / 2)
            return ComplexArray(a.xp.expm1(a) * b.xp.cos(b) - 2 * (half * half), a.xp.exp(a) * b.xp.sin(b))
        raise TypeError(f"{name} of a complex number is not defined here")

    def binary(self, name: str, x: Array, y: Array) -> Array:
        (a, b), (c, d) = split(x), split(y)
        if name in ("add", "subtract"):
            real = a.xp.apply(name, a, c)
            # What is real has no imaginary part to add, and none to charge for: only to spread over the shape.
            if not isinstance(y, ComplexArray):
                return ComplexArray(real, b.xp.broadcast_to(b, real.shape))
            if not isinstance(x, ComplexArray):
                d = d if name == "add" else -d
                return ComplexArray(real, d.xp.broadcast_to(d, real.shape))
            return ComplexArray(real, b.xp.apply(name, b, d))
        if name == "multiply":
            if not isinstance(y, ComplexArray):
                return ComplexArray(a * c, b * c)
            if not isinstance(x, ComplexArray):
                return ComplexArray(a * c, a * d)
            return ComplexArray(a * c - b * d, a * d + b * c)
        if name == "divide":
            if not isinstance(y, ComplexArray):
                return ComplexArray(a / c, b / c)
            # A scale, which cancels: a maximum over an axis is one that no derivative passes through.
            scale = c.xp.max(c.xp.stack([abs(c), abs(d)], axis=-1), axis=-1)
            cs, ds = _quotient(c, scale), _quotient(d, scale)
            size = c * cs + d * ds
            if not isinstance(x, ComplexArray):
                return ComplexArray(_quotient(a * cs, size), _quotient(-(a * ds), size))
            return ComplexArray(_quotient(a * cs + b * ds, size), _quotient(b * cs - a * ds, size))
        raise TypeError(f"{name} of complex numbers is not defined here")

    def matmul(self, x: Array, y: Array) -> Array:
        (a, b), (c, d) = split(x), split(y)
        if not isinstance(y, ComplexArray):
            return ComplexArray(a @ c, b @ c)
        if not isinstance(x, ComplexArray):
            return ComplexArray(a @ c, a @ d)
        xp = a.xp
        return ComplexArray(
            xp.concat([a, -b], axis=-1) @ xp.concat([c, d], axis=-2),
            xp.concat([a, b], axis=-1) @ xp.concat([d, c], axis=-2),
        )

    def total(self, x: Array) -> Array:
        a, b = split(x)
        return ComplexArray(a.xp.total(a), b.xp.total(b))

    def compare(self, name: str, x: Array, y: Array) -> Mask:
        (a, b), (c, d) = split(x), split(y)
        if name != "equal":
            raise TypeError("complex numbers are not ordered")
        return (a == c) & (b == d)

    def peak(self, x: Array) -> Array:
        raise TypeError("complex numbers are not ordered")

    def rearrange(self, function: Callable[..., Part], *arrays: Any) -> Any:
        if not any(isinstance(a, ComplexArray) for a in arrays):
            return self.below.rearrange(function, *arrays)
        reals, imags = zip(*(split(a) for a in arrays), strict=True)
        return ComplexArray(self.below.rearrange(function, *reals), self.below.rearrange(function, *imags))

    def vanishes(self, x: Array) -> Mask:
        a, b = split(x)
        return a.xp.vanishes(a) & b.xp.vanishes(b)

    def either(self, ways: Sequence[Callable[[], Array]]) -> Array:
        """Each part in one of the ways by itself."""
        found = [split(way()) for way in ways]
        parts = [[partial(tuple.__getitem__, pair, i) for pair in found] for i in (0, 1)]
        return ComplexArray(*map(self.below.either, parts))

    def store(self, x: Array, kind: str) -> Array:
        return self._each(x, lambda part: part.xp.store(part, kind))

    def widen(self, x: Array, form: str) -> Array:
        return self._each(x, lambda part: part.xp.widen(part, form))

    def narrow(self, x: Array) -> Array:
        return self._each(x, lambda part: part.xp.narrow(part))

    def _each(self, x: Array, function: Callable[[Array], Array]) -> Array:
        return ComplexArray(*map(function, split(x)))


def _quotient(x: Array, y: Array) -> Array:
    """x / y, by a division or by a product with a reciprocal, which may overflow."""
    return (y.xp if y.xp.rank > x.xp.rank else x.xp).either([lambda: x / y, lambda: x * (1 / y)])


def over(below: Arithmetic) -> Complex:
    """The complex numbers over an arithmetic: one namespace for each."""
    known = below.__dict__.get("_complex")
    if known is None:
        known = below.__dict__["_complex"] = Complex(below)
    return cast("Complex", known)


def split(x: Array) -> tuple[Array, Array]:
    """Real and imaginary part; the imaginary part of a real array is an exact zero."""
    return (x.real, x.imag) if isinstance(x, ComplexArray) else (x, x.xp.zeros(x.shape))


def paired(x: Array) -> Array:
    """A complex array as a real one with a last axis of two, real and imaginary part; a real array as it is."""
    return x.real.xp.stack([x.real, x.imag], axis=-1) if isinstance(x, ComplexArray) else x


# For definitions, over the arrays of every namespace -----------------------------------------------------------------


def join(real: Any, imag: Any) -> Any:
    """real + i imag."""
    if isinstance(real, Array):
        return ComplexArray(real, imag)
    xp = array_namespace(real, imag)
    out = xp.empty(real.shape, dtype=xp.result_type(real.dtype, xp.complex64))
    out.real, out.imag = real, imag
    return out


def conj(x: Any) -> Any:
    if isinstance(x, Array):
        return ComplexArray(x.real, -x.imag) if isinstance(x, ComplexArray) else x
    return array_namespace(x).conj(x)


def real(x: Any) -> Any:
    return split(x)[0] if isinstance(x, Array) else array_namespace(x).real(x)


def imag(x: Any) -> Any:
    return split(x)[1] if isinstance(x, Array) else array_namespace(x).imag(x)
