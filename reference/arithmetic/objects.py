"""Exact (mpmath) and Ball (Arb): arithmetics whose numbers are Python objects of a library.

The two share no code below this file, so each checks the other. Exact is a number of many digits with no certificate;
Ball is a rigorous enclosure: the exact value lies within it, whatever the working precision.

Source: F. Johansson, Arb: efficient arbitrary-precision midpoint-radius interval arithmetic, arXiv:1611.02831.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import flint
import mpmath
import numpy as np

from assay.reference.arithmetic.array import COMPARISONS, Arithmetic, Array, Mask, Part, Uncertain


OPERATORS: dict[str, Callable[[Part, Part], Part]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.true_divide,
    "pow": np.power,
}


class Objects(Arithmetic):
    """What Exact and Ball have in common: one object array, and NumPy's loops over the objects' own operators."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        """The working precision, in bits of significand."""

    def boxed(self, part: Any) -> Array:
        out: Part = np.empty(np.shape(part), dtype=object)
        out[...] = part
        return Array(self, (out,))

    def binary(self, name: str, x: Array, y: Array) -> Array:
        if name in OPERATORS:
            return self.boxed(OPERATORS[name](x.parts[0], y.parts[0]))
        return self.boxed(np.frompyfunc(self.extremum(name), 2, 1)(x.parts[0], y.parts[0]))

    def total(self, x: Array) -> Array:
        return self.boxed(np.add.reduce(x.parts[0], axis=-1, initial=self.number(0)))

    def peak(self, x: Array) -> Array:
        return self.boxed(np.frompyfunc(self.extremum("maximum"), 2, 1).reduce(x.parts[0], axis=-1))

    def number(self, value: int) -> Any:
        raise NotImplementedError

    def extremum(self, name: str) -> Callable[[Any, Any], Any]:
        raise NotImplementedError


class Exact(Objects):
    """mpmath numbers of `bits` bits, in a context of their own: mpmath's global precision is neither read nor set."""

    __name__ = "assay.exact"

    def __init__(self, bits: int = 256) -> None:
        super().__init__(bits)
        self.mp = mpmath.MPContext()
        self.mp.prec = bits

    def number(self, value: int) -> Any:
        return self.mp.mpf(value)

    @property
    def pi(self) -> Array:
        return self.boxed(+self.mp.pi)

    def lift(self, values: Part) -> Array:
        return self.boxed(np.frompyfunc(self.mp.mpf, 1, 1)(_python(values)))

    def unary(self, name: str, x: Array) -> Array:
        if name == "negative":
            return self.boxed(-x.parts[0])
        function = abs if name == "abs" else getattr(self.mp, name)
        return self.boxed(np.frompyfunc(function, 1, 1)(x.parts[0]))

    def extremum(self, name: str) -> Callable[[Any, Any], Any]:
        return max if name == "maximum" else min

    def compare(self, name: str, x: Array, y: Array) -> Mask:
        return Mask(np.asarray(COMPARISONS[name](x.parts[0], y.parts[0]), dtype=bool))


class Ball(Objects):
    """Arb real balls, computed with `bits` bits: every result encloses the exact value.

    Raises: Uncertain where a comparison of overlapping balls would have to be decided.
    """

    __name__ = "assay.ball"

    @contextmanager
    def context(self) -> Iterator[None]:
        with flint.ctx.workprec(self.bits):
            yield

    def number(self, value: int) -> Any:
        return flint.arb(value)

    @property
    def pi(self) -> Array:
        return self.boxed(flint.arb.pi())

    def lift(self, values: Part) -> Array:
        return self.boxed(np.frompyfunc(flint.arb, 1, 1)(_python(values)))

    def unary(self, name: str, x: Array) -> Array:
        if name == "negative":
            return self.boxed(-x.parts[0])
        return self.boxed(np.frompyfunc(_ball_function(name), 1, 1)(x.parts[0]))

    def matmul(self, x: Array, y: Array) -> Array:
        """Matrix by matrix in Arb, which reuses what it has of each row: some times faster than element by element."""
        (a,), (b,) = x.parts, y.parts
        leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = (np.broadcast_to(part, (*leading, *part.shape[-2:])) for part in (a, b))
        out: Part = np.empty((*leading, a.shape[-2], b.shape[-1]), dtype=object)
        if not a.shape[-1]:
            return self.zeros(out.shape)
        for place in np.ndindex(*leading) if out.size else ():
            product = flint.arb_mat(a[place].tolist()) * flint.arb_mat(b[place].tolist())
            out[place] = np.array(product.entries(), dtype=object).reshape(out.shape[-2:])
        return Array(self, (out,))

    def extremum(self, name: str) -> Callable[[Any, Any], Any]:
        # Arb's own max and min of overlapping balls return an enclosure of both.
        return flint.arb.max if name == "maximum" else flint.arb.min

    def vanishes(self, x: Array) -> Mask:
        return Mask(np.asarray(np.frompyfunc(lambda ball: ball == 0, 1, 1)(x.parts[0]), dtype=bool))

    def compare(self, name: str, x: Array, y: Array) -> Mask:
        def certain(a: flint.arb, b: flint.arb) -> bool:
            if COMPARISONS[name](a, b):  # Arb answers True only where it holds for all points of both balls
                return True
            opposite = {"less": a >= b, "less_equal": a > b, "equal": not a.overlaps(b)}[name]
            if opposite:
                return False
            raise Uncertain(f"{a.str(10)} and {b.str(10)} overlap at {self.bits} bits: '{name}' is not decided")

        return Mask(np.asarray(np.frompyfunc(certain, 2, 1)(x.parts[0], y.parts[0]), dtype=bool))


@cache
def _ball_function(name: str) -> Callable[[flint.arb], flint.arb]:
    if name == "abs":
        return abs
    if name in ("floor", "ceil"):
        return _whole(name)
    return getattr(flint.arb, name)


def _whole(name: str) -> Callable[[flint.arb], flint.arb]:
    def function(x: flint.arb) -> flint.arb:
        out = getattr(x, name)()
        if not out.is_exact():
            raise Uncertain(f"{name} of {x}: an integer lies within the ball")
        return out

    return function


def enclosure(x: Array) -> tuple[Part, Part]:
    """Balls x[...] as midpoint[...] (extended precision) and radius[...] (float64, rounded up).

    The exact value of each element lies within radius of midpoint.
    """

    def split(ball: flint.arb) -> tuple[float, float, float]:
        high = float(ball)
        if not np.isfinite(high):
            # An infinity that is exact is an answer; anything else that is not finite is unknown.
            return high, 0.0, 0.0 if ball.is_exact() and not ball.is_finite() else np.inf
        rest = ball - flint.arb(high)
        low = float(rest)
        left = (rest - flint.arb(low)).abs_upper()
        radius = float(left)
        return high, low, np.nextafter(radius, np.inf) if radius else 0.0

    flat = [split(ball) for ball in x.parts[0].ravel()]
    high, low, radius = np.array(flat, dtype=np.float64).reshape(-1, 3).T
    with np.errstate(invalid="ignore"):
        midpoint = high.astype(np.longdouble) + low
        lost = low - (midpoint - high)  # what the extended sum dropped, exactly (fast two-sum)
    lost = np.where(np.isfinite(high), np.abs(lost), 0)
    return midpoint.reshape(x.shape), (radius + lost.astype(np.float64)).reshape(x.shape)


def _python(values: Part) -> Part:
    """Python numbers, each exactly the element: integers stay integers, every float widens to float64."""
    if values.dtype == object:
        return values
    if np.issubdtype(values.dtype, np.integer) or values.dtype == bool:
        return values.astype(object)
    if values.dtype == np.longdouble:
        high = values.astype(np.float64)
        if not np.array_equal(high, values):
            raise TypeError("extended precision is not lifted: pass float64 or narrower")
    return values.astype(np.float64).astype(object)
