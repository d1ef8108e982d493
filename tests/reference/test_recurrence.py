"""Linear recurrences: the arithmetics agree, the error passes through powers of the matrix, and kernels keep it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from assay.properties.drawing import DTYPES
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.objects import Ball, Exact
from assay.reference.arithmetic.oracle import differentiate, evaluate, oracle
from assay.reference.arithmetic.precision import PRECISIONS
from assay.reference.arithmetic.recurrence import recurrence
from assay.reference.arithmetic.rounded import Rounded


SINGLE = PRECISIONS["float32"]


def by_steps(a: Any, b: Any, start: Any = None) -> Any:
    """The same loop, each step a step of the arithmetic."""
    x, states = start, []
    for k in range(b.shape[0]):
        x = b[k, ...] if x is None else a @ x + b[k, ...]
        states.append(x)
    return a.xp.stack(states, axis=0)


def turning(seed: int, n: int, t: int, m: int = 2) -> dict[str, Any]:
    """A contraction that turns: its powers stay small, those of the absolute values do not."""
    random = np.random.default_rng(seed)
    skew, one = random.standard_normal((n, n)), np.eye(n)
    a = 0.1 * (skew - skew.T) - 0.01 * one
    given = {"a": np.linalg.solve(one - a, one + a), "b": random.standard_normal((t, n, m))}
    return {k: v.astype(np.float32) for k, v in (given | {"start": random.standard_normal((n, m))}).items()}


def test_all_arithmetics_have_the_same_states_and_gradients() -> None:
    given = turning(0, 3, 7)
    weight = [np.random.default_rng(1).standard_normal((7, 3, 2))]
    exact, ball = Exact(200), Ball(200)
    for text, xp in ((by_steps, exact), (recurrence, ball)):
        outputs, gradients = differentiate(text, xp, given, weight, list(given))
        found = [outputs[0], *gradients.values()]
        if xp is exact:
            wanted = found
    for one, two in zip(wanted, found, strict=True):
        for x, y in zip(one.parts[0].ravel(), two.parts[0].ravel(), strict=True):
            assert abs(float(x) - float(y)) <= 2.0**-50 * (1 + abs(float(x)))


@pytest.mark.parametrize("precision", ["float32", "float32-truncating", "bfloat16-steps"])
def test_right_kernels_keep_the_bound(precision: str) -> None:
    """And their gradients do, of which that of the matrix is a sum over positions."""
    for seed in range(4):
        own = DTYPES[precision.partition("-")[0]]
        given = {name: x.astype(own) for name, x in turning(seed, 4, 24).items()}
        weight = [np.random.default_rng(seed).standard_normal((24, 4, 2)).astype(own)]
        bounds = differentiate(recurrence, Bounded(PRECISIONS[precision]), given, weight, list(given))
        exact = differentiate(recurrence, Ball(200), given, weight, list(given))
        for order in ("forward", "backward"):
            for text in (recurrence, by_steps):
                rounded = Rounded(PRECISIONS[precision], order=order)
                got = differentiate(text, rounded, given, weight, list(given))
                for g, e, b in zip(*([x[0][0], *x[1].values()] for x in (got, exact, bounds)), strict=True):
                    truth = np.array([float(v) for v in e.parts[0].ravel()]).reshape(e.shape)
                    assert (np.abs(g.parts[0] - truth) <= b.parts[1] + 2.0**-50 * np.abs(truth)).all()


def test_running_error_explodes_where_this_does_not() -> None:
    given = turning(0, 6, 300)
    (tight,), (loose,) = (evaluate(text, Bounded(SINGLE), given) for text in (recurrence, by_steps))
    assert (tight.parts[1] <= loose.parts[1] * (1 + 2.0**-50)).mean() > 0.9  # but for b, which may be added first
    assert tight.parts[1].max() < 1e-3
    assert loose.parts[1][-1].min() > 1e9


def test_what_is_exact_is_not_charged() -> None:
    """A delay line of whole numbers."""
    given = {"a": np.eye(3, k=-1), "b": np.arange(30.0).reshape(5, 3, 2)}
    (found,) = evaluate(recurrence, Bounded(SINGLE), given)
    assert not found.parts[1].any()
    assert (found.parts[0] == recurrence(**given)).all()


def test_one_matrix_is_off_in_all_steps() -> None:
    """The error of a, which comes from a step before, counts in full."""
    given = {"a": np.float32([[0.9, 0.2], [-0.2, 0.9]]), "b": np.ones((9, 2, 1), np.float32)}

    def text(a: Any, b: Any) -> Any:
        return recurrence(a / 3, b)

    (bound,) = evaluate(text, Bounded(SINGLE), given)
    (exact,) = oracle(text, given, [bound.parts[1]])
    (got,) = evaluate(text, Rounded(SINGLE, "toward zero"), given)
    error = np.abs(got.parts[0] - exact.midpoint)
    assert (error <= 2 * bound.parts[1]).all()
    assert error.max() > 0


def test_without_positions_there_are_no_states() -> None:
    given = {"a": np.eye(2), "b": np.zeros((0, 2, 1))}
    for xp in (Bounded(SINGLE), Ball(113), Exact(113)):
        assert evaluate(recurrence, xp, given)[0].shape == (0, 2, 1)
