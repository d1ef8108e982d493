"""Linear recurrences whose step changes from position to position, x_k = M_k x_{k-1} + N_k u_k, over every arithmetic.

Over running error, what a step adds passes on through the product of the steps that follow, and not through that of
their absolute values, which grows where the other does not:

    x'_k = M_k x'_{k-1} + N_k u_k + d_k   =>   |x'_k - x_k|  <=  sum_j |M_k ... M_{j+1}| |d_j|

Nothing is left out but the roundoff of extended precision, in which the products are computed. d_k is the error of the
step by itself: at the exact x_{k-1}, and what its roundings may add where x'_{k-1} is beside it, which a step of the
identity tells, column by column: roundings are no more than linear in what is rounded.

Backward, the cotangents go through the transposed steps, the last one first: a recurrence of the same kind, and bounded
likewise.

Axes: t position, n state, p input, m column.

Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 18.1, for powers of one matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from assay.reference.arithmetic.adjoint import Adjoint, Node
from assay.reference.arithmetic.array import Array, Part
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.formatted import EXTENDED


Step = Callable[[int, Any, Any], Any]
"""(k, x[n, m], u[p, m]) -> M_k x + N_k u: linear in both together, and each column by itself."""
Making = Callable[[Any], Step]
"""The step in a namespace of arrays."""

_INEXACT = np.finfo(EXTENDED).tiny
"""Stands for an error that is accounted for elsewhere: what has it is not taken for a number that a format holds."""


def stepped(making: Making, inputs: Any, n: int) -> Any:
    """The x_k[t, n, m] from x_{-1} = 0, for inputs[t, p, m]."""
    xp = inputs.xp if isinstance(inputs, Array) else array_namespace(inputs)
    if not inputs.shape[0]:
        return xp.zeros((0, n, inputs.shape[2]), dtype=inputs.dtype)
    if isinstance(xp, Adjoint) and isinstance(xp.below, Bounded):
        return _taped(xp, making, inputs, n)
    if isinstance(xp, Bounded):
        return _bounded(making(xp), xp.certain(inputs), n)
    step, x, states = making(xp), xp.zeros((n, inputs.shape[2]), dtype=inputs.dtype), []
    for k in range(inputs.shape[0]):
        x = step(k, x, inputs[k, ...])
        states.append(x)
    return xp.stack(states, axis=0)


def _taped(xp: Adjoint, making: Making, inputs: Array, n: int) -> Node:
    """One node: its derivative is the recurrence of the transposed steps."""
    given = xp._node(inputs)
    t, p, _ = given.shape

    def rule(g: Array) -> Array:
        transposed = _transposed(making, n, p, t)

        def back(below: Any) -> Step:
            through = transposed(below)
            return lambda j, x, u: (through(t - j, x)[0] if j else x) + u

        found = stepped(back, g.xp.flip(g, axis=0), n)
        through = transposed(found.xp)
        return found.xp.stack([through(k, found[t - 1 - k, ...])[1] for k in range(t)], axis=0)

    return xp.record(stepped(making, given.value, n), (given, rule), step=f"matmul {n}")


def _transposed(making: Making, n: int, p: int, t: int) -> Callable[[Any], Callable[[int, Array], list[Array]]]:
    """(k, g[n, m]) -> M_k^T g and N_k^T g, from the tape of one step."""

    def at(below: Any) -> Callable[[int, Array], list[Array]]:
        tape = Adjoint(below)
        step = making(tape)

        def through(k: int, g: Array) -> list[Array]:
            x, u = (tape.variable(below.zeros((size, g.shape[1]))) for size in (n, p))
            return tape.gradients([(tape._node(step(k, x, u)), g)], [x, u])

        return through

    return at


def _bounded(step: Step, inputs: Array, n: int) -> Array:
    xp = inputs.xp
    assert isinstance(xp, Bounded)
    t, p, m = inputs.shape
    value, error = np.zeros((n, m), EXTENDED), np.zeros((n, m), EXTENDED)
    products: list[Part] = []  # M_k ... M_{j+1}, of each j so far
    added: list[Part] = []  # d_j
    states = []
    for k in range(t):
        given, off = (part[k] for part in inputs.parts)
        of_state = step(k, _beside(xp, np.eye(n), np.eye(n)), xp.zeros((p, n)))
        of_input = step(k, xp.zeros((n, p)), _beside(xp, np.eye(p), np.eye(p)))
        here = step(k, _beside(xp, value, error), _beside(xp, given, off))
        (matrix, moved), (column, shifted) = xp.certain(of_state).parts, xp.certain(of_input).parts
        local = xp.certain(here).parts[1] + moved @ error + (np.abs(column) + shifted) @ off
        products = [matrix @ earlier for earlier in products] + [np.eye(n, dtype=EXTENDED)]
        added.append(local)
        value = xp.certain(here).parts[0]
        passed = np.einsum("jik,jkm->im", np.abs(np.stack(products)), np.stack(added))
        error = np.where(np.isnan(passed), np.inf, passed)
        states.append(xp.limited(value, error))
    return xp.stack(states, axis=0)


def _beside(xp: Bounded, value: Part, error: Part) -> Array:
    """Numbers of which it is only said that they are not exact, where they have an error."""
    return Array(xp, (np.asarray(value, EXTENDED), np.where(error > 0, _INEXACT, EXTENDED(0))))
