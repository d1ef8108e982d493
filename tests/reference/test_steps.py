"""Recurrences whose step changes: the same in every arithmetic, and bounded through products of steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from assay.properties.truth import bounded
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.objects import Exact
from assay.reference.arithmetic.oracle import differentiate, evaluate
from assay.reference.arithmetic.precision import PRECISIONS
from assay.reference.arithmetic.rounded import Rounded
from assay.reference.arithmetic.steps import Step, stepped


N = 3


def steps(t: int, *, turning: bool = False) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """M[t, n, n] and N[t, n, 2]; `turning`: orthogonal ones, whose absolute values grow."""
    random = np.random.default_rng(t)
    matrices = random.standard_normal((t, N, N))
    if turning:
        matrices = np.linalg.qr(matrices)[0]
    return matrices, random.standard_normal((t, N, 2))


def text(t: int, **which: bool) -> Any:
    matrices, columns = steps(t, **which)

    def making(xp: Any) -> Step:
        if not hasattr(xp, "lift"):
            return lambda k, x, u: matrices[k] @ x + columns[k] @ u
        M, C = xp.lift(matrices), xp.lift(columns)
        return lambda k, x, u: M[k, ...] @ x + C[k, ...] @ u

    return lambda u: stepped(making, u, N)


def inputs(t: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(t + 1).standard_normal((t, 2, 2))


@pytest.mark.parametrize("t", [0, 1, 5])
def test_it_is_the_recurrence(t: int) -> None:
    u, (matrices, columns) = inputs(t), steps(t)
    x, wanted = np.zeros((N, 2)), np.zeros((t, N, 2))
    for k in range(t):
        x = wanted[k] = matrices[k] @ x + columns[k] @ u[k]
    np.testing.assert_array_equal(text(t)(u), wanted)
    value, error = evaluate(text(t), bounded("float64"), {"u": u})[0].parts
    assert (np.abs(value - wanted) <= error).all()
    assert (error < 1e-12).all()


@pytest.mark.parametrize("order", ["forward", "pairwise"])
@pytest.mark.parametrize("turning", [False, True])
def test_rounded_runs_lie_within_the_bound(turning: bool, order: str) -> None:
    u = inputs(30)
    got = evaluate(text(30, turning=turning), Rounded(PRECISIONS["float32"], order=order), {"u": u})[0].parts[0]
    value, error = evaluate(text(30, turning=turning), bounded("float32"), {"u": u})[0].parts
    assert (np.abs(got - value) <= error).all()


def test_the_bound_does_not_grow_where_steps_do_not() -> None:
    """Through orthogonal steps what is added stays as it is; through their absolute values it grows as 1.5**t."""
    t = 60
    u = inputs(t)
    _, error = evaluate(text(t, turning=True), bounded("float32"), {"u": u})[0].parts
    # Of each step: 3 + 2 products, each and their sums rounded, of numbers that grow as sqrt(t) at random.
    assert error.max() < t * 2.0**-24 * 16 * np.sqrt(t) * np.abs(u).max() * 4

    def plain(u: Any) -> Any:
        xp, (matrices, columns) = u.xp, steps(t, turning=True)
        x = xp.zeros((N, 2))
        for k in range(t):
            x = xp.lift(matrices[k]) @ x + xp.lift(columns[k]) @ u[k, ...]
        return x

    running = evaluate(plain, Bounded(PRECISIONS["float32"]), {"u": u})[0].parts[1]
    assert running.max() > 1e3 * error.max()


def test_gradients() -> None:
    """Of the transposed steps over running errors, and of the tape of all steps in exact arithmetic."""
    u, t = inputs(7), 7
    cotangent = np.random.default_rng(9).standard_normal((t, N, 2))
    exact = differentiate(text(t), Exact(200), {"u": u}, [cotangent], ["u"])[1]["u"].parts[0].astype(float)
    value, error = differentiate(text(t), bounded("float64"), {"u": u}, [cotangent], ["u"])[1]["u"].parts
    assert (np.abs(value - exact) <= error + 1e-15 * np.abs(exact)).all()
    assert (error < 1e-10).all()
