"""Linear recurrences x_k = a x_{k-1} + b_k with one matrix, over every arithmetic.

Over running error, what a step adds passes on through the powers of a, and not through those of |a|, which grow where
the others do not:

    x'_k = a x'_{k-1} + b_k + d_k,   |d_k| <= (the error of one step)   =>   |x'_k - x_k|  <=  sum_j |a**(k - j)| |d_j|

A step is linear in what came before it, so that this is no first order: nothing is left out but the roundoff of
extended precision, in which the powers are computed. The error of a itself, if it has one, is that of one matrix in all
steps, and counts among what each step adds. Backward, g_k = a^T g_{k+1} + (the cotangent of x_k) is a recurrence again.

Axes: t position, n state, m column.

Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 18.1, for powers of a matrix.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from assay.reference.arithmetic.adjoint import Adjoint, Node
from assay.reference.arithmetic.array import Arithmetic, Array
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.formatted import EXTENDED


def recurrence(a: Any, b: Any, start: Any = None) -> Any:
    """The x[t, n, m] of x_k = a x_{k-1} + b_k, for a[n, n], b[t, n, m] and what is before, start[n, m] or 0."""
    if not b.shape[0]:
        return b
    if not isinstance(b, Array):
        return _one_by_one(array_namespace(a, b), a, b, start)
    taped = (x.xp for x in (a, b, start) if isinstance(x, Array) and isinstance(x.xp, Adjoint))
    return _run(next(taped, b.xp), a, b, start)


def _one_by_one(xp: Any, a: Any, b: Any, start: Any) -> Any:
    x, states = start, []
    for k in range(b.shape[0]):
        x = b[k, ...] if x is None else a @ x + b[k, ...]
        states.append(x)
    return xp.stack(states, axis=0)


@singledispatch
def _run(xp: Arithmetic, a: Array, b: Array, start: Array | None) -> Array:
    return _one_by_one(xp, a, b, start)


@_run.register
def _(xp: Adjoint, a: Array, b: Array, start: Array | None) -> Node:
    matrix, given = xp._node(a), xp._node(b)
    before = None if start is None else xp._node(start)
    x = recurrence(matrix.value, given.value, None if before is None else before.value)
    known: list[tuple[Array, Array]] = []

    def of_given(g: Array) -> Array:
        if not known or known[-1][0] is not g:
            found = recurrence(matrix.value.mT, g.xp.flip(g, axis=0))
            known[:] = [(g, found.xp.flip(found, axis=0))]
        return known[-1][1]

    def of_matrix(g: Array) -> Array:
        first = x.xp.zeros((1, *x.shape[1:])) if before is None else x.xp.expand_dims(before.value, axis=0)
        earlier = x.xp.concat([first, x[:-1]], axis=0)
        (t, n, m), back = x.shape, of_given(g)
        left = back.xp.reshape(back.xp.permute_dims(back, (1, 0, 2)), (n, t * m))
        return left @ x.xp.reshape(x.xp.permute_dims(earlier, (0, 2, 1)), (t * m, n))

    sources = [(matrix, of_matrix), (given, of_given)]
    if before is not None:
        sources.append((before, lambda g: matrix.value.mT @ of_given(g)[0]))
    return xp.record(x, *sources, step=f"matmul {a.shape[0]}")


@_run.register
def _(xp: Bounded, a: Array, b: Array, start: Array | None) -> Array:
    matrix, given = (x.xp.certain(x) if isinstance(x.xp, Bounded) else x for x in (a, b))
    x = given[0] if start is None else _step(matrix, xp.certain(start), given[0])
    states, value = [x], matrix.parts[0]
    size, powers, added = np.abs(value), [np.eye(len(value), dtype=EXTENDED)], [x.parts[1]]
    for k in range(1, b.shape[0]):
        powers.append(value @ powers[-1])
        carried = x.parts[1]
        step = _step(matrix, x, given[k])
        # What the step itself adds: with an exact x, what it charges; of what x brought, all but |a| times it.
        added.append(np.maximum(step.parts[1] - size @ carried, 0))
        passed = np.einsum("kij,kjm->im", np.abs(np.stack(powers[::-1])), np.stack(added))
        known = xp.limited(step.parts[0], np.where(np.isnan(passed), np.inf, passed))
        x = Array(step.xp, known.parts)
        states.append(x)
    return x.xp.stack(states, axis=0)


def _step(a: Array, x: Array, b: Array) -> Array:
    """a x + b; a kernel may add b first, last, or in between."""
    xp = a.xp

    def together() -> Array:
        products = xp.expand_dims(a, axis=-2) * xp.expand_dims(x.mT, axis=-3)
        return xp.sum(xp.concat([products, xp.expand_dims(b, axis=-1)], axis=-1), axis=-1)

    return xp.either([lambda: a @ x + b, together])
