"""Independent: running error in which the storage roundings of one contraction add as independent errors do.

Weights p[s] kept in bfloat16 change a contraction sum_s p[s] v[s] by sum_s d[s] v[s], |d[s]| <= c[s]. In the worst case
that is sum_s c[s] |v[s]|, which for long rows is far from anything that happens. If the d are independent with mean
zero, Hoeffding's inequality says

    P(|sum_s d[s] v[s]| > LAMBDA sqrt(sum_s (c[s] v[s])**2))  <=  2 exp(-LAMBDA**2 / 2)  =  2.6e-14

for each element of the contraction. This is charged instead, where it is smaller than the worst case.

When it is honest: the stored numbers are functions of inputs drawn continuously (the caller says so by choosing this
arithmetic), rounded to nearest. Numbers that round to the same value may have the same error, as weights of equal keys
have: they are added up in the worst case, and only such groups are taken as independent of each other. The mean of an
error is not quite zero: where the density of the numbers changes with their size x no faster than x**3 or x**-3, it is
below u c, which is charged as a certain error. Numbers that no input enters (a table of cosines) are not covered.

The independent part passes through negation, rearrangement and multiplication; the first contraction turns it into a
certain error, and so does every other step. So no error is ever taken as independent of itself.

Source: W. Hoeffding, J. Amer. Statist. Assoc. 58 (1963), theorem 2; N. J. Higham and T. Mary, SIAM J. Sci. Comput. 41
(2019), A2815, for rounding errors as random variables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from assay.reference.arithmetic.array import Array, Mask, Part
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.formatted import EXTENDED, meet
from assay.reference.arithmetic.precision import Format


LAMBDA = 8
FIXED = ("table", "angle")
"""Kinds of storage whose contents come from positions and parameters alone."""


class Independent(Bounded):
    """As Bounded, and an array may have further parts, two for each storage rounding that it carries: `reach`[...],
    the most that the rounding changed the element by, and `stored`[...], the number that was rounded there. The errors
    of elements with different `stored` are independent."""

    __name__ = "assay.independent"

    def beside(self) -> Independent:
        return Independent(self.precision)

    def certain(self, x: Array) -> Array:
        value, error, *carried = x.parts
        for reach in carried[::2]:
            error = error + reach
        return Array(x.xp, (value, error))

    # Where independent errors arise ------------------------------------------------------------------------------

    def store(self, x: Array, kind: str) -> Array:
        kept = self.precision.storage.get(kind)
        return super().store(x, kind) if kept is None or kind in FIXED else self.operand(x, kept)

    def operand(self, x: Array, kept: Format) -> Array:
        if self.precision.rounding != "nearest" or kept.quantum:
            return super().operand(x, kept)
        value, error = self.certain(x).parts
        at = self.at(kept)
        charge = at.charge(value, error)
        # Half the spacing of the format at the largest number that may have been rounded.
        size = np.abs(value) + error
        reach = np.maximum(np.ldexp(EXTENDED(kept.u), np.frexp(size)[1] - 1), kept.tiny)
        reach = np.where(charge == 0, 0, reach)
        if self.precision.flushes:  # what may become zero does not do so at random
            low = size < 2 * kept.normal
            error, reach = np.where(low, error + charge, error), np.where(low, 0, reach)
        value, error = at.limited(value, error + kept.u * reach, np.abs(value) + reach).parts
        return Array(x.xp, (value, error, reach, np.abs(kept.round(value))))

    # Where they pass ---------------------------------------------------------------------------------------------

    def rearrange(self, function: Callable[..., Part], *arrays: Any) -> Any:
        most = max((len(a.parts) for a in arrays if not isinstance(a, Mask)), default=2)
        if most > 2 and self.above(*arrays) is self:
            arrays = tuple(Array(a.xp, a.parts + (np.zeros(a.shape),) * (most - len(a.parts))) for a in arrays)
        return super().rearrange(function, *arrays)

    def unary(self, name: str, x: Array) -> Array:
        if name == "negative":
            return Array(self, (-x.parts[0], *x.parts[1:]))
        return super().unary(name, self.certain(x))

    def binary(self, name: str, x: Array, y: Array) -> Array:
        out = super().binary(name, self.certain(x), self.certain(y))
        if name != "multiply" or len(x.parts) + len(y.parts) == 4:
            return out
        # All was charged as certain; what is linear in one rounding is taken out again, and carried on.
        value, error = out.parts
        carried: list[Part] = []
        x, y = meet(x, y)
        for a, b in ((x, y), (y, x)):
            size = np.abs(b.parts[0]) + b.parts[1]
            for reach, stored in zip(a.parts[2::2], a.parts[3::2], strict=True):
                carried += [np.where(reach == 0, 0, reach * size), np.broadcast_to(stored, value.shape)]
        linear = sum(carried[::2])
        error = np.where(np.isfinite(error), np.maximum(error - linear, 0), np.inf)
        return Array(out.xp, (value, error, *carried))

    # Where they become certain -----------------------------------------------------------------------------------

    def total(self, x: Array) -> Array:
        out = super().total(self.certain(x))
        saved: Any = 0
        if x.shape[-1] > 1:
            for reach, stored in zip(x.parts[2::2], x.parts[3::2], strict=True):
                saved = saved + np.maximum(reach.sum(axis=-1) - LAMBDA * quadrature(reach, stored), 0)
        value, error = out.parts
        return Array(out.xp, (value, np.where(np.isfinite(error), error - saved, np.inf)))

    def cast(self, x: Array) -> Array:
        return super().cast(self.certain(x))

    def wrap(self, x: Array) -> Array:
        return super().wrap(self.certain(x))

    def peak(self, x: Array) -> Array:
        return super().peak(self.certain(x))

    def chosen(self, x: Array, y: Array, yes: Array, no: Array) -> Array:
        return super().chosen(*(self.certain(a) for a in (x, y, yes, no)))


def quadrature(reach: Part, stored: Part) -> Part:
    """sqrt(sum over groups of (sum of reach in the group)**2) along the last axis; a group has one `stored` value."""
    *lead, n = reach.shape
    if not reach.size:
        return np.zeros(lead)
    by, size = stored.reshape(-1, n).astype(np.float64), reach.reshape(-1, n)
    order = np.argsort(by, axis=-1)
    by, size = np.take_along_axis(by, order, -1), np.take_along_axis(size, order, -1)
    first = np.ones(by.shape, dtype=bool)
    first[:, 1:] = by[:, 1:] != by[:, :-1]
    groups = np.add.reduceat(size.ravel(), np.flatnonzero(first)) ** 2
    rows = np.cumsum(first.ravel()).reshape(first.shape)[:, 0] - 1  # the number of the first group of each row
    return np.asarray(np.sqrt(np.add.reduceat(groups, rows))).reshape(lead)
