"""Linear systems and exponentials of matrices: the arithmetics agree, and solvers of others keep the bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.linear import expm, identity, solve, substituted
from assay.reference.arithmetic.objects import Ball, Exact, enclosure
from assay.reference.arithmetic.oracle import differentiate, evaluate, oracle
from assay.reference.arithmetic.precision import PRECISIONS
from assay.reference.arithmetic.rounded import Rounded


SINGLE = PRECISIONS["float32"]


def exponential(a: Any) -> Any:
    return expm(a)


def matrices(seed: int, n: int, size: float) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    a = random.standard_normal((n, n))
    return {"a": (a * size / np.abs(a).sum(axis=-1).max()).astype(np.float32)}


def system(seed: int, n: int, m: int = 2) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "a": random.standard_normal((n, n)).astype(np.float32),
        "b": random.standard_normal((n, m)).astype(np.float32),
    }


@pytest.mark.parametrize("n", [1, 2, 5])
def test_elimination_over_mpmath_is_that_over_balls(n: int) -> None:
    for seed in range(5):
        given = system(seed, n)
        (exact,), (ball,) = (evaluate(solve, xp, given) for xp in (Exact(200), Ball(300)))
        for x, y in zip(exact.parts[0].ravel(), ball.parts[0].ravel(), strict=True):
            assert abs(float(x) - float(y)) <= 1e-15 * abs(float(y))


@pytest.mark.parametrize("size", [0.01, 1, 30])
def test_the_series_over_mpmath_is_the_exponential_over_balls(size: float) -> None:
    for seed in range(3):
        given = matrices(seed, 4, size)
        (exact,), (ball,) = (evaluate(exponential, xp, given) for xp in (Exact(200), Ball(300)))
        for x, y in zip(exact.parts[0].ravel(), ball.parts[0].ravel(), strict=True):
            assert abs(float(x) - float(y)) <= 1e-15 * abs(float(y))


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_solvers_of_others_keep_the_bound_element_by_element(n: int) -> None:
    """By elimination; and zeros are rejected."""
    rejected = 0
    for seed in range(30):
        given = system(seed, n)
        (bound,) = evaluate(solve, Bounded(SINGLE), given)
        (exact,) = oracle(solve, given, [bound.parts[1]])
        tensors = [torch.from_numpy(x) for x in given.values()]
        (own,) = evaluate(solve, Rounded(SINGLE), given)
        for got in (np.linalg.solve(**given), torch.linalg.solve(*tensors).numpy(), own.parts[0]):
            assert (np.abs(got - exact.midpoint) <= bound.parts[1] + exact.radius).all()
        rejected += bool((np.abs(exact.midpoint) > bound.parts[1]).any())
    assert rejected > 20


@pytest.mark.parametrize("n", [3, 4, 6])
def test_pivots_that_are_nearly_as_large_as_each_other(n: int) -> None:
    """I - v 1^T and its transpose, with one large v: after one step, pivots are 1 and -1 but for roundings."""
    for seed in range(30):
        random = np.random.default_rng((n, seed))
        v = random.standard_normal((n, 1)) * np.exp2(random.integers(-16, -4, (n, 1)))
        v[-1] = random.uniform(22, 40)
        left, right = ((np.eye(n) + sign * v / 20).astype(np.float32) for sign in (-1, 1))
        for given in ({"a": left, "b": right}, {"a": left.T.copy(), "b": right}):
            (bound,) = evaluate(solve, Bounded(SINGLE), given)
            (exact,) = oracle(solve, given, [bound.parts[1]])
            tensors = [torch.from_numpy(x) for x in given.values()]
            for got in (np.linalg.solve(**given), torch.linalg.solve(*tensors).numpy()):
                assert (np.abs(got - exact.midpoint) <= bound.parts[1] + exact.radius)[
                    np.isfinite(bound.parts[1])
                ].all()


@pytest.mark.parametrize("size", [1e-3, 0.03, 0.3, 1.0, 3.0, 20.0])
def test_exponentials_of_others_keep_the_bound(size: float) -> None:
    """torch's, of several matrices at once; and the series, rounded."""
    for seed in range(10):
        given = matrices(seed, 4, size)
        (bound,) = evaluate(exponential, Bounded(SINGLE), given)
        (exact,) = oracle(exponential, given, [bound.parts[1]])
        pair = torch.from_numpy(given["a"]).expand(2, 4, 4)
        (own,) = evaluate(exponential, Rounded(SINGLE), given)
        for got in (torch.linalg.matrix_exp(pair)[0].numpy(), own.parts[0]):
            assert (np.abs(got - exact.midpoint) <= bound.parts[1] + exact.radius).all()
        assert (np.abs(exact.midpoint - np.eye(4)) > bound.parts[1]).any()


@pytest.mark.parametrize("function", [solve, exponential])
def test_derivatives_are_the_limits_of_difference_quotients(function: Any) -> None:
    given = system(0, 3) if function is solve else matrices(0, 3, 2)
    below, small = Exact(600), 2.0**-60
    weight = np.arange(1, 1 + given[next(reversed(given))].size).reshape(given[next(reversed(given))].shape)
    found = differentiate(function, below, given, [weight], list(given))[1]
    for name, values in given.items():
        for index in np.ndindex(values.shape):
            totals = []
            for sign in (1, -1):
                lifted = {n: below.lift(x) for n, x in given.items()}
                moved = lifted[name].parts[0].copy()
                moved[index] += sign * below.mp.mpf(small)
                totals.append((function(**{**lifted, name: below.boxed(moved)}).parts[0] * weight).sum())
            assert abs((totals[0] - totals[1]) / (2 * below.mp.mpf(small)) - found[name].parts[0][index]) < 2.0**-90


def test_what_has_no_solution_is_not_judged() -> None:
    given = {"a": np.ones((2, 2), np.float32), "b": np.ones((2, 1), np.float32)}
    assert np.isinf(evaluate(solve, Bounded(SINGLE), given)[0].parts[1]).all()
    assert not any(x.is_finite() for x in evaluate(solve, Ball(113), given)[0].parts[0].ravel())


@pytest.mark.parametrize("n", [0, 1, 3])
def test_numpy_has_them_too(n: int) -> None:
    a = np.diag(np.arange(1.0, n + 1))
    exact, bound = (evaluate(expm, xp, {"a": a})[0] for xp in (Ball(113), Bounded(PRECISIONS["float64"])))
    assert (np.abs(expm(a) - enclosure(exact)[0]) <= bound.parts[1]).all()
    np.testing.assert_array_equal(solve(a, a), identity(np, n, a))


def triangle(seed: int, n: int, *, steep: bool = False) -> dict[str, Any]:
    """A lower triangular system; `steep`: with large numbers below the diagonal, for which elimination would pivot."""
    given = system(seed, n)
    below = np.tril(given["a"], -1) * (4 if steep else 1)
    return {**given, "a": (below + np.diag(1 + np.abs(np.diag(given["a"])))).astype(np.float32)}


@pytest.mark.parametrize("n", [1, 2, 5])
def test_substitution_is_the_solution(n: int) -> None:
    for seed in range(3):
        given = triangle(seed, n)
        (exact,), (ball,) = evaluate(substituted, Exact(200), given), evaluate(solve, Ball(300), given)
        for x, y in zip(exact.parts[0].ravel(), ball.parts[0].ravel(), strict=True):
            assert abs(float(x) - float(y)) <= 1e-15 * abs(float(y))


@pytest.mark.parametrize("steep", [False, True])
def test_substitution_is_bounded_element_by_element(steep: bool) -> None:
    """Right ones lie within the bound, torch's too, and what elimination with pivots may do lies far beyond it."""
    for seed in range(5):
        given = triangle(seed, 6, steep=steep)
        value, error = evaluate(substituted, Bounded(SINGLE), given)[0].parts
        for order in ("forward", "pairwise"):
            got = evaluate(substituted, Rounded(SINGLE, order=order), given)[0].parts[0]
            assert (np.abs(got - value) <= error).all()
        torchs = torch.linalg.solve_triangular(*map(torch.from_numpy, given.values()), upper=False)
        assert (np.abs(torchs.numpy() - value) <= error).all()
        assert not (np.abs(value * (1 + 1e-3) - value) <= error).all()
        if steep:
            assert error.max() < evaluate(solve, Bounded(SINGLE), given)[0].parts[1].max() / 2


def test_derivatives_of_a_substitution() -> None:
    """By the transposed system, which is an upper triangle."""
    given = triangle(3, 4)
    cotangent = np.random.default_rng(5).standard_normal((4, 2))
    by = ["b"]
    exact = differentiate(solve, Ball(200), given, [cotangent], by)[1]["b"]
    for xp in (Exact(200), Ball(200)):
        found = differentiate(substituted, xp, given, [cotangent], by)[1]["b"]
        for x, y in zip(found.parts[0].ravel(), exact.parts[0].ravel(), strict=True):
            assert abs(float(x) - float(y)) <= 1e-15 * abs(float(y))
    value, error = differentiate(substituted, Bounded(SINGLE), given, [cotangent], by)[1]["b"].parts
    wanted = np.array([float(y) for y in exact.parts[0].ravel()]).reshape(4, 2)
    assert (np.abs(value - wanted) <= error + 1e-15).all()


def test_substitution_in_numpy() -> None:
    given = triangle(4, 3)
    np.testing.assert_array_equal(substituted(given["a"], given["b"]), np.linalg.solve(given["a"], given["b"]))
