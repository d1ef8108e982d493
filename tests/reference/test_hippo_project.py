"""The projection of a history: forms equal in exact arithmetic, and zoh the projection of a step function."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from assay.properties.hippo_project import HIPPO_PROJECT, _of_steps
from assay.properties.truth import bounded
from assay.reference import hippo_project as reference
from assay.reference.arithmetic.accumulated import adjoint_bound
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.objects import Ball, Exact, enclosure
from assay.reference.arithmetic.oracle import evaluate
from assay.reference.arithmetic.precision import PRECISIONS


EXACT = Exact(300)


def history(t: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(t)


def far(a: Any, b: Any) -> float:
    """The largest difference of two exact arrays."""
    assert a.shape == b.shape
    return max((abs(float(x - y)) for x, y in zip(a.ravel(), b.ravel(), strict=True)), default=0.0)


@pytest.mark.parametrize("form", ["dense", "eliminated"])
@pytest.mark.parametrize("method", reference.METHODS)
def test_forms_are_equal_in_exact_arithmetic(method: str, form: str) -> None:
    for t, n in ((0, 3), (1, 3), (6, 5), (3, 0)):
        given = {"f": history(t), "n": n, "method": method}
        wanted = evaluate(reference.hippo_project, EXACT, given)[0].parts[0]
        assert far(evaluate(HIPPO_PROJECT.forms[form], EXACT, given)[0].parts[0], wanted) < 1e-80


@pytest.mark.parametrize("method", reference.WEIGHTS)
def test_antidiagonals_are_rows_of_it(method: str) -> None:
    given, rows = {"f": history(9), "n": 5, "method": method}, (0, 1, 4, 8)
    wanted = evaluate(reference.hippo_project, EXACT, given)[0].parts[0][list(rows)]
    found = evaluate(reference.in_antidiagonals, EXACT, {**given, "rows": rows})[0].parts[0]
    assert far(found, wanted) < 1e-80


def test_holding_each_sample_is_the_legendre_projection() -> None:
    """No error but rounding: each coefficient, after each sample."""
    t, n = 12, 9
    f, ball = history(t), Ball(300)
    (c,) = evaluate(reference.hippo_project, ball, {"f": f, "n": n})
    with ball.context():
        for k in range(t):
            wanted = _of_steps([Fraction(x) for x in f[: k + 1]], n)
            for j, w in enumerate(wanted):
                value = ball.asarray(w.numerator) / w.denominator * ball.sqrt(ball.asarray(2 * j + 1))
                assert c.parts[0][k, j].overlaps(value.parts[0][()])
                assert c.parts[0][k, j].rad() < 2.0**-100


@pytest.mark.parametrize("method", reference.METHODS)
def test_a_constant_is_its_first_coefficient(method: str) -> None:
    (c,) = evaluate(reference.hippo_project, EXACT, {"f": np.full(5, 3.0), "n": 4, "method": method})
    assert far(c.parts[0], np.array([[3.0, 0, 0, 0]] * 5)) < 1e-80


@pytest.mark.parametrize("method", ["zoh", "bilinear", "backward"])
def test_more_samples_come_nearer(method: str) -> None:
    """To the coefficients of x, by the order of 1 that the first sample leaves. (Euler's are exact.)"""

    def off(t: int) -> float:
        x = (np.arange(t) + 0.5) / t
        (c,) = evaluate(reference.hippo_project, Ball(200), {"f": x, "n": 2, "method": method})
        # Of f = x over [0, 1]: 1/2 and sqrt(3) / 6.
        return abs(float(enclosure(c)[0][-1, 1]) - 3**0.5 / 6)

    assert off(128) < off(8) / 8


def test_running_error_explodes_and_steps_do_not() -> None:
    """Bilinear, 16 coefficients, 40 samples: the bound through products of steps against running error and the adjoint
    bound of another text of the same function."""
    t, n = 40, 16
    given = {"f": history(t).astype(np.float32), "n": n, "method": "bilinear"}
    by_steps = evaluate(reference.hippo_project, bounded("float32"), given)[0].parts[1][-1]
    running = evaluate(reference.in_antidiagonals, Bounded(PRECISIONS["float32"]), {**given, "rows": (t - 1,)})[
        0
    ].parts[1][0]
    places = [(0, 0), (0, 7), (0, 15)]
    adjoint = adjoint_bound(reference.in_antidiagonals, {**given, "rows": (t - 1,)}, PRECISIONS["float32"], places)
    assert running.max() > 1000 * by_steps.max()
    assert (adjoint < by_steps[[0, 7, 15]]).all()


def test_wrong_arguments_are_refused() -> None:
    f = history(3)
    with pytest.raises(ValueError, match="only the measure legs"):
        reference.hippo_project(f, 2, measure="legt")
    with pytest.raises(ValueError, match="method must be"):
        reference.hippo_project(f, 2, method="tustin")
    for arguments in ((f[:, None], 2), (f, -1)):
        with pytest.raises(ValueError, match="f must be"):
            reference.hippo_project(*arguments)
