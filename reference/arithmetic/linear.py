"""Linear systems and exponentials of matrices, over every arithmetic.

Over balls they are Arb's, which are rigorous. Over rounded numbers they are Gaussian elimination with partial pivoting,
and Taylor's series, scaled and squared. Over running error:

    (a + e) x' = b,  |e| <= gamma(3 n) P' |L| |U| + (the error of a)   =>
    |x' - x|  <=  m (|x| + s 1) + |a**-1| (the error of b),   m = |a**-1| |e|,   s = max (m |x| + ...) / (1 - ||m||)

element by element, and infinite where the maximum norm of m is not below 1. No element of L is above 1, so |L| |U| is
at most the sum of a column of |U|; and that, unlike |L| |U|, is hardly another where two pivots are nearly as large as
each other and a kernel takes the other one. Factors of the transpose count too. Where a is triangular and rows are
substituted, |e| <= gamma(n + 3) |a| + (the error of a), whatever the order of the sums: n + 1 as a rule, and two more
where a factor of a whole row is taken out of its sum.

An exponential is computed, with running errors, for a matrix that is off by u ||a|| in every element, the backward
error of a truncated series or of a rational approximation of it; scaled to a norm below 1/2, and below 4, of which the
looser counts. Assumed of a kernel: it scales to a norm between the two.

Axes: n state, m column.

Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., theorems 8.5, 9.3 and 9.4; A. Al-Mohy and
N. J. Higham, SIAM J. Matrix Anal. Appl. 31 (2009), for scaling and squaring, and 30 (2009), theorem 4.1, for the
derivative of an exponential as a block of one.
"""

from __future__ import annotations

from functools import partial, singledispatch
from typing import Any

import flint
import numpy as np
from array_api_compat import array_namespace

from assay.reference.arithmetic.adjoint import Adjoint, Node
from assay.reference.arithmetic.array import Arithmetic, Array, Part
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.formatted import Formatted
from assay.reference.arithmetic.normwise import eliminated, gamma
from assay.reference.arithmetic.objects import Ball, Exact


REACHES = ((1, 2), (4, 1))
"""The norms to which a matrix is scaled, as ratios."""
SPARE = 4
"""By so many bits is what is left out of a series below a roundoff."""


def solve(a: Any, b: Any) -> Any:
    """x[n, m] of a x = b, for a[n, n] and b[n, m]. Not finite where a is singular."""
    if not isinstance(a, Array):
        return array_namespace(a, b).linalg.solve(a, b)
    xp = b.xp if isinstance(b.xp, Adjoint) else a.xp
    return _solve(xp, a, b)


def substituted(a: Any, b: Any) -> Any:
    """The same for a lower triangular a, row by row from the first, each from the rows before it."""
    if not isinstance(a, Array):
        return solve(a, b)
    xp = b.xp if isinstance(b.xp, Adjoint) else a.xp
    return _substituted(xp, a, b, False)


def expm(a: Any) -> Any:
    """The exponential of a[n, n]."""
    return _expm(a.xp, a) if isinstance(a, Array) else squared(a, REACHES[0])


def identity(xp: Any, n: int, like: Any) -> Any:
    """The identity [n, n], in the arithmetic or dtype of `like`."""
    i = xp.arange(n)
    one = xp.ones((n, n), dtype=like.dtype)
    return xp.where(i[:, None] == i[None, :], one, xp.zeros_like(one))


def squared(a: Any, reach: tuple[int, int]) -> Any:
    """Taylor's series of a / 2**s, whose norm is below `reach`, squared s times."""
    xp, n = array_namespace(a), a.shape[0]
    values = a.parts[0] if isinstance(a, Array) else a
    norm = float(abs(values).sum(-1).max()) if n else 0.0
    if not np.isfinite(norm):
        return a * xp.inf
    squarings = max(0, int(np.ceil(np.log2(norm * reach[1] / reach[0])))) if norm else 0
    scaled = a / 2**squarings if squarings < 60 else a / 2**59 / 2 ** (squarings - 59)
    term = total = identity(xp, n, a)
    for k in range(1, _terms(a, reach) + 1):
        term = term @ scaled / k
        total = total + term
    for _ in range(squarings):
        total = total @ total
    return total


def _terms(a: Any, reach: tuple[int, int]) -> int:
    """As many terms of the series as the numbers have digits for."""
    bits = 64
    if isinstance(a, Array) and isinstance(a.xp, Formatted | Exact):
        bits = a.xp.format.bits if isinstance(a.xp, Formatted) else a.xp.bits
    k, left = 0, 0.0
    while left > -bits - SPARE or k < 2:
        k += 1
        left += float(np.log2(reach[0] / reach[1] / k))
    return k


# Systems -------------------------------------------------------------------------------------------------------------


@singledispatch
def _solve(xp: Arithmetic, a: Array, b: Array) -> Array:
    """By elimination, whatever the numbers are."""
    n = a.shape[0]
    work = xp.concat([a, b], axis=1)
    for k in range(n):
        p = k + int(np.argmax(np.abs(work.parts[0][k:, k])))
        order = np.arange(n)
        order[[k, p]] = p, k
        work = xp.take(work, order, axis=0)
        below = work[k + 1 :] - work[k + 1 :, k : k + 1] / work[k : k + 1, k : k + 1] * work[k : k + 1]
        work = xp.concat([work[: k + 1], below], axis=0)
    rows = xp.zeros((0, b.shape[1]))
    for k in reversed(range(n)):
        right = work[k : k + 1, n:]
        if k + 1 < n:
            right = right - work[k : k + 1, k + 1 : n] @ rows
        row = right / work[k : k + 1, k : k + 1]
        rows = xp.concat([row, rows], axis=0) if k + 1 < n else row
    return rows


@_solve.register
def _(xp: Ball, a: Array, b: Array) -> Array:
    if not a.size or not b.size:
        return xp.zeros(b.shape)
    try:
        found = _matrix(a.parts[0]).solve(_matrix(b.parts[0]))
    except ZeroDivisionError:
        return xp.boxed(np.full(b.shape, flint.arb("nan"), dtype=object))
    return xp.boxed(np.array(found.entries(), dtype=object).reshape(b.shape))


@_solve.register
def _(xp: Adjoint, a: Array, b: Array) -> Node:
    left, right = xp._node(a), xp._node(b)
    x = solve(left.value, right.value)

    def of_right(g: Array) -> Array:
        return solve(left.value.mT, g)

    return xp.record(x, (right, of_right), (left, lambda g: -(of_right(g) @ x.mT)), step=f"matmul {a.shape[0]}")


@_solve.register
def _(xp: Bounded, a: Array, b: Array) -> Array:
    (left, ea), (right, eb) = (xp.certain(x).parts for x in (a, b))
    n, loss = len(left), xp.format.normal if xp.precision.flushes else float(xp.loss)
    growth, inverse = eliminated(left)
    growth = np.maximum(growth.sum(axis=0), eliminated(left.T)[0].sum(axis=0)[:, None])
    return _perturbed(xp, inverse, right, gamma(3 * n, xp.precision.at(xp.format)) * growth + ea, eb, growth, loss)


def _perturbed(xp: Bounded, inverse: Part, right: Part, e: Part, eb: Part, growth: Part, loss: Any) -> Array:
    """The solution of a system whose matrix is off by e, and its right side by eb; what may underflow is lost."""
    n, x, size = len(inverse), inverse @ right, np.abs(inverse)
    largest = growth.max(initial=0)
    lost = 3 * n * loss * (1 + largest)
    m = size @ (e + lost)
    carried = size @ (eb + lost * (1 + np.abs(x).max(initial=0)))
    c = m.sum(axis=-1).max(initial=0)
    if not (c < 1 and largest <= xp.format.max):
        return xp.limited(x, np.full(x.shape, np.inf))
    reach = (m @ np.abs(x) + carried).max(axis=0, initial=0) / (1 - c)
    return xp.limited(x, m @ (np.abs(x) + reach) + carried)


# Triangular systems --------------------------------------------------------------------------------------------------


@singledispatch
def _substituted(xp: Arithmetic, a: Array, b: Array, upper: bool) -> Array:
    n = a.shape[0]
    if upper:
        return xp.flip(_substituted(xp, xp.flip(xp.flip(a, axis=0), axis=1), xp.flip(b, axis=0), False), axis=0)
    rows = xp.zeros((0, b.shape[1]))
    for k in range(n):
        right = b[k : k + 1]
        row = (right - a[k : k + 1, :k] @ rows if k else right) / a[k : k + 1, k : k + 1]
        rows = xp.concat([rows, row], axis=0) if k else row
    return rows


@_substituted.register
def _(xp: Ball, a: Array, b: Array, upper: bool) -> Array:
    return solve(a, b)


@_substituted.register
def _(xp: Adjoint, a: Array, b: Array, upper: bool) -> Node:
    left, right = xp._node(a), xp._node(b)
    x = _substituted(left.value.xp, left.value, right.value, upper)

    def of_right(g: Array) -> Array:
        return _substituted(g.xp, left.value.mT, g, not upper)

    return xp.record(x, (right, of_right), (left, lambda g: -(of_right(g) @ x.mT)), step=f"matmul {a.shape[0]}")


@_substituted.register
def _(xp: Bounded, a: Array, b: Array, upper: bool) -> Array:
    (left, ea), (right, eb) = (xp.certain(x).parts for x in (a, b))
    n, loss = len(left), xp.format.normal if xp.precision.flushes else float(xp.loss)
    turned = (slice(None, None, -1),) * 2 if upper else ...
    inverse = _inverse(left[turned])[turned]
    e = gamma(n + 3, xp.precision.at(xp.format)) * np.abs(left) + ea
    return _perturbed(xp, inverse, right, e, eb, np.abs(left), loss)


def _inverse(a: Part) -> Part:
    """Of a lower triangular matrix, in extended precision; infinite or NaN where there is none."""
    out = np.eye(len(a), dtype=a.dtype)
    for k in range(len(a)):
        out[k] = (out[k] - a[k, :k] @ out[:k]) / a[k, k]
    return out


# Exponentials --------------------------------------------------------------------------------------------------------


@singledispatch
def _expm(xp: Arithmetic, a: Array) -> Array:
    return squared(a, REACHES[0])


@_expm.register
def _(xp: Ball, a: Array) -> Array:
    if not a.size:
        return a
    return xp.boxed(np.array(_matrix(a.parts[0]).exp().entries(), dtype=object).reshape(a.shape))


@_expm.register
def _(xp: Adjoint, a: Array) -> Node:
    node = xp._node(a)
    n = a.shape[0]

    def rule(g: Array) -> Array:
        """The derivative in the direction of g is the upper right block of exp [[a', g], [0, a']]."""
        turned = node.value.mT
        both = g.xp.concat(
            [g.xp.concat([turned, g], axis=1), g.xp.concat([g.xp.zeros((n, n)), turned], axis=1)], axis=0
        )
        return expm(both)[:n, n:]

    return xp.record(expm(node.value), (node, rule), step=f"matmul {n}")


@_expm.register
def _(xp: Bounded, a: Array) -> Array:
    value, error = xp.certain(a).parts
    norm = np.abs(value).sum(axis=-1).max(initial=0)
    moved = xp.limited(value, error + xp.unit * norm)
    return xp.either([partial(squared, moved, reach) for reach in REACHES])


def _matrix(part: Part) -> flint.arb_mat:
    return flint.arb_mat(part.tolist())
