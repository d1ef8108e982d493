"""The definition of the kernel of a diagonal state space: forms equal to it, figures, and bounds that hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flint
import numpy as np
import pytest

from assay.properties.s4 import S4D_KERNEL, _legs
from assay.reference import s4 as reference
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.complex import paired
from assay.reference.arithmetic.objects import Ball, Exact
from assay.reference.arithmetic.oracle import differentiate, evaluate
from assay.reference.arithmetic.precision import PRECISIONS
from assay.reference.arithmetic.rounded import Rounded


FORMS = (reference.s4d_kernel, reference.products, reference.one_by_one, reference.naive)


def drawn(seed: int, n: int) -> dict[str, Any]:
    random = np.random.default_rng((seed, n))
    given = {name: random.standard_normal(n) + 1j * random.standard_normal(n) for name in ("Lambda", "B", "C")}
    given["Lambda"] -= 1
    return {name: x.astype(np.complex64) for name, x in given.items()} | {"dt": np.asarray(0.3)}


def numbers(x: Any) -> Any:
    x = paired(x)
    return np.array([float(v) for v in x.parts[0].flat]).reshape(x.shape)


@pytest.mark.parametrize("method", reference.METHODS)
@pytest.mark.parametrize("length", [0, 1, 2, 5, 17])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_every_form_is_the_definition(form: Any, length: int, method: str) -> None:
    exact, given = Exact(300), drawn(length, 3)
    wanted, got = (
        evaluate(partial(f, length=length, method=method), exact, given)[0] for f in (reference.s4d_kernel, form)
    )
    assert got.shape == (length,)
    assert all(abs(x - y) <= 2.0**-200 for x, y in zip(wanted.parts[0], got.parts[0], strict=True))


@pytest.mark.parametrize("method", reference.METHODS)
def test_it_is_powers_of_the_discretised_matrix(method: str) -> None:
    """As a real system of all eigenvalues: the pairs as blocks, discretised by `discretize`, powers by `ssm_kernel`."""
    from assay.reference.discretize import discretize
    from assay.reference.state_space import ssm_kernel

    n, length, given, ball = 3, 9, drawn(7, 3), Ball(300)
    a, b, c = (given[name].astype(np.complex128) for name in ("Lambda", "B", "C"))
    A = np.block([[np.diag(a.real), -np.diag(a.imag)], [np.diag(a.imag), np.diag(a.real)]])
    B, C = np.concatenate([b.real, b.imag]), np.concatenate([2 * c.real, -2 * c.imag])

    def text(A: Any, B: Any, C: Any, dt: Any) -> Any:
        return ssm_kernel(*discretize(A, B, dt=dt, method=method), C, length=length)

    (wanted,) = evaluate(text, ball, {"A": A, "B": B, "C": C, "dt": given["dt"]})
    (found,) = evaluate(partial(reference.s4d_kernel, length=length, method=method), ball, given)
    assert len(A) == 2 * n
    for x, y in zip(wanted.parts[0], found.parts[0], strict=True):
        assert x.overlaps(y)
        assert x.rad() < flint.arb(1e-30)


@pytest.mark.parametrize("precision", ["float32", "float32-truncating", "float64"])
@pytest.mark.parametrize("method", reference.METHODS)
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_emulated_kernels_keep_the_bound_of_their_form(form: Any, method: str, precision: str) -> None:
    for seed, length in enumerate((1, 2, 9, 40)):
        given, text = drawn(seed, 1 + seed), partial(form, length=length, method=method)
        if seed == 1:
            given["Lambda"] = given["Lambda"] * np.float32(2.0**-12)
        weight = [np.random.default_rng(seed).standard_normal(length).astype(np.float32)]
        chosen = PRECISIONS[precision]
        runs = [
            differentiate(text, xp, given, weight, list(given)) for xp in (Bounded(chosen), Ball(300), Rounded(chosen))
        ]
        for limit, truth, got in zip(*([*o, *g.values()] for o, g in runs), strict=True):
            wanted = numbers(truth)
            error = np.abs(paired(got).parts[0] - wanted)
            assert (error <= paired(limit).parts[1] + np.abs(wanted) * 2.0**-52).all()


def test_of_no_eigenvalue_the_kernel_and_its_derivative_are_limits() -> None:
    """Lambda = 0: K_l = 2 dt Re B C, and dK_l / dLambda = dt**2 (l + 1/2) B C, as of a Lambda of 2**-200."""
    ball, one = Ball(600), np.ones(1, np.complex128)
    given, weight = {"B": one, "C": one, "dt": np.asarray(0.5)}, [np.arange(1.0, 6)]
    text = partial(reference.s4d_kernel, length=5)
    (kernel,), gradient = differentiate(text, ball, {**given, "Lambda": 0 * one}, weight, ["Lambda"])
    (near,), there = differentiate(text, ball, {**given, "Lambda": one * 2.0**-200}, weight, ["Lambda"])
    assert numbers(kernel).tolist() == [1.0] * 5
    assert np.abs(numbers(near) - 1).max() < 2.0**-50
    assert np.abs(numbers(gradient["Lambda"]) - numbers(there["Lambda"])).max() < 2.0**-40
    assert numbers(gradient["Lambda"])[0, 0] == 2 * 0.25 * sum((lag + 0.5) * (lag + 1) for lag in range(5))


def test_the_naive_quotient_has_hardly_a_digit_near_0() -> None:
    """dt Lambda = -5e-4 in float32: an error of 6.1e-5 of (exp(z) - 1) / z, within u / |z| = 1.2e-4."""
    z = np.float32([-5e-4])
    naive = (np.exp(z) - np.float32(1)) / z
    error = abs(float(naive[0]) / float(np.expm1(z.astype(float))[0] / z[0]) - 1)
    assert f"{error:.1e}" == "6.1e-05"
    assert error < 2.0**-24 / 5e-4 < 1.2e-4
    given = {"Lambda": z.astype(np.complex64), "B": np.complex64([1]), "C": np.complex64([1]), "dt": np.asarray(1.0)}
    stable, as_written = (
        evaluate(partial(f, length=1), Bounded(PRECISIONS["float32"]), given)[0].parts[1][0]
        for f in (reference.s4d_kernel, reference.naive)
    )
    assert stable < 2 * error / 50
    assert as_written > 2 * error


def test_the_sum_over_all_lags_is_the_gain_of_a_constant() -> None:
    """ZOH: sum_l K_l = -2 Re sum C B / Lambda, whatever dt is; the tail after 4,000 lags is below exp(-60)."""
    given = drawn(3, 4) | {"dt": np.asarray(0.0625)}
    kernel = reference.s4d_kernel(**{k: v.astype(complex) if k != "dt" else v for k, v in given.items()}, length=4000)
    a, b, c = (given[name].astype(np.complex128) for name in ("Lambda", "B", "C"))
    decays = bool((a.real < -0.25).all())
    assert not decays or abs(kernel.sum() + 2 * (c * b / a).sum().real) <= 4000 * 2.0**-50 * np.abs(kernel).sum()


@pytest.mark.parametrize(("size", "largest"), [(4, "4.603293"), (8, "19.857410"), (64, "1303.273843")])
def test_eigenvalues_of_the_normal_part(size: int, largest: str) -> None:
    """The greatest imaginary part for N states of HiPPO's matrix for Legendre polynomials."""
    found = _legs(np.random.default_rng(0), size // 2)
    assert len(found) == size // 2
    assert (found.real == -0.5).all()
    assert f"{found.imag.max():.6f}" == largest


def test_initialisations_are_regimes() -> None:
    for name in ("lin", "inv", "real", "legs", "small"):
        regime: Callable[..., Any] = S4D_KERNEL.regimes[name]
        made = regime(np.random.default_rng(0), {"Lambda": (4,), "B": (4,), "C": (4,)}, None)
        assert made["Lambda"].shape == (4,)
        assert (made["Lambda"].real <= 0).all()


@pytest.mark.parametrize(
    "change", [{"Lambda": np.ones(4)}, {"B": np.ones((3, 1))}, {"length": -1}, {"method": "euler"}]
)
def test_wrong_arguments_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|negative"):
        reference.s4d_kernel(**{**drawn(0, 3), "length": 3, **change})
