"""The adjoint bound stays near the true error of recurrences on which running error explodes."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from assay.reference.arithmetic.accumulated import adjoint_bound
from assay.reference.arithmetic.array import Uncertain, store
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.oracle import evaluate, oracle
from assay.reference.arithmetic.precision import PRECISIONS
from assay.reference.arithmetic.rounded import ORDERS, Rounded


SINGLE = PRECISIONS["float32"]


def scan(a: Any, b: Any, u: Any) -> Any:
    """The last state of x_k = a x_{k-1} + b u_k."""
    x = b * 0
    for k in range(u.shape[0]):
        x = store(a @ x, "state") + b * u[k]
    return x


@cache
def legs(n: int, steps: int) -> dict[str, Any]:
    """HiPPO-LegS, discretised by the bilinear rule with dt = 1 / steps, rounded to float32."""
    i = np.arange(n)
    a = -np.where(i[:, None] > i, np.sqrt(2 * i[:, None] + 1) * np.sqrt(2 * i + 1), np.diag(i + 1.0))
    eye, half = np.eye(n), a / (2 * steps)
    b = np.linalg.solve(eye - half, np.sqrt(2 * i + 1)[:, None] / steps)
    u = np.random.default_rng(n).standard_normal(steps)
    return {
        "a": np.linalg.solve(eye - half, eye + half).astype(np.float32),
        "b": b.astype(np.float32),
        "u": u.astype(np.float32),
    }


@pytest.mark.parametrize(("n", "steps"), [(16, 200), (32, 300), (64, 250)])
def test_running_error_explodes_and_the_adjoint_bound_does_not(n: int, steps: int) -> None:
    arguments = legs(n, steps)
    sampled = [(i, 0) for i in (0, n // 2, n - 1)]
    rows = tuple(i for i, _ in sampled)
    bound = adjoint_bound(scan, arguments, SINGLE, sampled)
    (exact,) = oracle(scan, arguments, [np.full((n, 1), 1e-12)])
    running = evaluate(scan, Bounded(SINGLE), arguments)[0].parts[1][rows, 0]
    worst = 0.0
    for order in ORDERS:
        (kernel,) = evaluate(scan, Rounded(SINGLE, order=order), arguments)
        error = np.abs(kernel.parts[0] - exact.midpoint)[rows, 0]
        assert np.all(error <= bound + exact.radius[rows, 0])
        worst = max(worst, float(np.max(error / bound)))
    assert worst > 1e-4
    assert np.all(bound <= 1.1 * running)
    assert running[-1] > 10.0 ** (n / 16) * 100 * bound[-1]


@pytest.mark.parametrize("precision", ["float32", "float32-truncating", "tf32", "bfloat16"])
@pytest.mark.parametrize("seed", range(10))
def test_right_kernels_keep_it(precision: str, seed: int) -> None:
    """Rotations with a little decay, of drawn sizes and lengths, in every order."""
    random = np.random.default_rng(seed)
    n, steps = int(random.integers(2, 9)), int(random.integers(3, 12 if precision == "tf32" else 60))
    a = np.linalg.qr(random.standard_normal((n, n)))[0] * random.uniform(0.8, 1)
    arguments = {
        "a": a.astype(np.float32),
        "b": random.standard_normal((n, 1)).astype(np.float32),
        "u": random.standard_normal(steps).astype(np.float32),
    }
    p = PRECISIONS[precision]
    sampled = [(i, 0) for i in range(n)]
    bound = adjoint_bound(scan, arguments, p, sampled)
    (exact,) = oracle(scan, arguments, [bound[:, None]])
    for order in ORDERS:
        (kernel,) = evaluate(scan, Rounded(p, order=order), arguments)
        assert np.all(np.abs(kernel.parts[0] - exact.midpoint)[:, 0] <= bound + exact.radius[:, 0])


def test_one_step_has_the_bound_of_running_error() -> None:
    x = np.float32([0.1, 0.7, 3.0])
    for text in (lambda x: x * x, lambda x: x.xp.exp(x), lambda x: x + 1, lambda x: x * 2):
        (running,) = evaluate(text, Bounded(SINGLE), {"x": x})
        assert np.allclose(adjoint_bound(text, {"x": x}, SINGLE, [(0,), (1,), (2,)]), running.parts[1], rtol=1e-5)


def test_it_is_refused_where_the_first_order_is_not_small() -> None:
    with pytest.raises(Uncertain, match="first-order"):
        adjoint_bound(lambda x: x * x - x * x, {"x": np.float32([0.1])}, SINGLE, [(0,)])
