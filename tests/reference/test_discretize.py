"""The definition of discretisation: what the methods are, and how fast they converge."""

from __future__ import annotations

from typing import Any

import flint
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from assay.reference import discretize as reference
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.objects import Ball
from assay.reference.arithmetic.oracle import evaluate, oracle
from assay.reference.arithmetic.precision import PRECISIONS
from assay.reference.arithmetic.rounded import Rounded


def drawn(seed: int, n: int, dt: float, method: str) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((n, n)), random.standard_normal(n)
    return {"A": a.astype(np.float32), "B": b.astype(np.float32), "dt": dt, "method": method, "alpha": 0.3}


def scalar(method: str, rate: float, dt: float, alpha: float | None = None) -> tuple[Any, Any]:
    """Ab and Bb of one state with B = 1, as balls."""
    given_ = {"A": np.array([[rate]]), "B": np.ones(1), "dt": dt, "method": method, "alpha": alpha}
    found = evaluate(reference.discretize, Ball(160), given_)
    return tuple(x.parts[0].ravel()[0] for x in found)  # type: ignore[return-value]


FORMULAS = {
    "euler": lambda z, dt: (1 + z, dt),
    "backward": lambda z, dt: (1 / (1 - z), dt / (1 - z)),
    "bilinear": lambda z, dt: ((1 + z / 2) / (1 - z / 2), dt / (1 - z / 2)),
    "gbt": lambda z, dt: ((1 + z * 3 / 4) / (1 - z / 4), dt / (1 - z / 4)),
    "zoh": lambda z, dt: (z.exp(), dt * z.expm1() / z),
    "mamba": lambda z, dt: (z.exp(), dt),
}


@pytest.mark.parametrize("method", reference.METHODS)
@settings(max_examples=20)
@given(rate=st.floats(-50, 50).filter(lambda x: abs(x) > 1e-3), dt=st.floats(1e-3, 1.9e-2))
def test_one_state_has_the_formula_of_its_method(method: str, rate: float, dt: float) -> None:
    with Ball(160).context():
        found = scalar(method, rate, dt, 0.25)
        wanted = FORMULAS[method](flint.arb(rate) * flint.arb(dt), flint.arb(dt))
        for got, want in zip(found, wanted, strict=True):
            assert got.overlaps(want)
            assert got.rad() < abs(want) * flint.arb(2) ** -120


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("backward", 1), ("bilinear", 2), ("gbt", 1)])
def test_the_order_of_convergence(method: str, order: int) -> None:
    """|Ab - exp(dt A)| is O(dt**(order + 1)): a step a tenth as long, an error 10**-(order + 1) of what it was."""
    errors = []
    for dt in (2.0**-10, 2.0**-20):
        given_ = drawn(0, 4, dt, method)
        ab, exact = (evaluate(reference.discretize, Ball(200), {**given_, "method": m})[0] for m in (method, "zoh"))
        errors.append(max(abs(float(x - y)) for x, y in zip(ab.parts[0].ravel(), exact.parts[0].ravel(), strict=True)))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(10 * (order + 1), abs=0.1)


@pytest.mark.parametrize("method", reference.METHODS)
def test_an_integrator_is_exact(method: str) -> None:
    """A = 0: Ab = 1 and Bb = dt, where (exp(z) - 1) / z of itself is nothing."""
    ab, bb = scalar(method, 0.0, 0.3)
    assert ab == 1
    assert bb.contains(flint.arb(0.3))


@pytest.mark.parametrize("rate", [-1e-3, -1.0, -1e3, -1e9])
def test_bilinear_steps_decay_whatever_their_length(rate: float) -> None:
    assert abs(scalar("bilinear", rate, 1.0)[0]) < 1
    assert (abs(scalar("euler", rate, 1.0)[0]) < 1) == (abs(1 + rate) < 1)


def test_a_defective_matrix() -> None:
    """exp of dt [[0, 1], [0, 0]] is [[1, dt], [0, 1]], and B = e_1 gives (dt**2 / 2, dt)."""
    given_ = {"A": np.array([[0.0, 1], [0, 0]]), "B": np.array([0.0, 1]), "dt": 0.375, "method": "zoh"}
    found = evaluate(reference.discretize, Ball(113), given_)
    values = [float(x) for part in found for x in part.parts[0].ravel()]
    assert values == [1, 0.375, 0, 1, 0.375**2 / 2, 0.375]


@pytest.mark.parametrize("method", reference.METHODS)
@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.floats(2.0**-10, 2))
def test_rounded_arithmetic_keeps_the_bound(method: str, seed: int, n: int, dt: float) -> None:
    given_ = drawn(seed, n, dt, method)
    single = PRECISIONS["float32"]
    limits = [x.parts[1] for x in evaluate(reference.discretize, Bounded(single), given_)]
    exact = oracle(reference.discretize, given_, limits)
    for got, truth, limit in zip(evaluate(reference.discretize, Rounded(single), given_), exact, limits, strict=True):
        assert (np.abs(got.parts[0] - truth.midpoint) <= limit + truth.radius)[np.isfinite(limit)].all()


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="bilinear, euler"):
        reference.discretize(np.eye(2), np.ones(2), dt=1.0, method="tustin")
    with pytest.raises(ValueError, match=r"A must be \[n, n\]"):
        reference.discretize(np.eye(2), np.ones(3), dt=1.0)
