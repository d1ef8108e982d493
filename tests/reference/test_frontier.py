"""Estimators of the softmax kernel beyond Performer's: what is claimed of them, recomputed from their definitions.

Source: V. Likhosherstov et al., Chefs' Random Tables, arXiv:2205.15317 (generalised exponential features); I. Reid et
al., Simplex Random Features, arXiv:2301.13856.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy import integrate, special

from assay.reference.projection import Estimator, context


MP = context(160)


def generalised(A: Any, w: Any, x: Any) -> Any:
    """f of one channel: (1 - 4 A)^(1/4) exp(A w^2 + (1 - 4 A)^(1/2) w x - x^2)."""
    return (1 - 4 * A) ** MP.mpf("0.25") * MP.exp(A * w * w + MP.sqrt(1 - 4 * A) * w * x - x * x)


def second_moment(A: Any, d: int, t: Any, lengths: Any) -> Any:
    """E (f(w, x) f(w, y))^2, t = |x + y|^2, `lengths` = |x|^2 + |y|^2."""
    return (1 - 4 * A) ** d * (1 - 8 * A) ** (-MP.mpf(d) / 2) * MP.exp(2 * (1 - 4 * A) / (1 - 8 * A) * t - 2 * lengths)


def best(d: int, t: Any) -> tuple[Any, Any]:
    """rho, and the A of the least second moment: (1 - 1 / rho) / 8."""
    rho = (MP.sqrt((2 * t + d) ** 2 + 8 * d * t) - 2 * t - d) / (4 * t)
    return rho, (1 - 1 / rho) / 8


@pytest.mark.parametrize("A", ["-0.3", "0", "0.1"])
def test_moments_of_generalised_features_are_their_integrals(A: str) -> None:
    """One channel, x = 0.4 and y = -0.9; channels multiply."""
    a, x, y = MP.mpf(A), MP.mpf("0.4"), MP.mpf("-0.9")
    wanted = MP.exp(-((x - y) ** 2) / 2), second_moment(a, 1, (x + y) ** 2, x * x + y * y)
    for p, closed in enumerate(wanted, 1):

        def density(w: Any, p: int = p) -> Any:
            return (generalised(a, w, x) * generalised(a, w, y)) ** p * MP.npdf(w)

        assert abs(MP.quad(density, range(-48, 49, 6)) / closed - 1) < MP.mpf(10) ** -20


def test_the_best_generalised_features() -> None:
    """The second moment is stationary there, and the figures are those published: d = 16, |x + y|^2 = 2."""
    d, t = 16, MP.mpf(2)
    rho, A = best(d, t)
    assert MP.nstr(rho, 12) == "0.701562118716"
    assert MP.nstr(A, 12) == "-0.0531738162099"
    gain = MP.log(second_moment(A, d, t, 0) / second_moment(MP.mpf(0), d, t, 0))
    assert MP.nstr(gain, 10) == "-0.3469164348"
    assert abs(MP.diff(lambda a: MP.log(second_moment(a, d, t, 0)), A)) < MP.mpf(10) ** -20
    small = MP.mpf(10) ** -9
    assert abs(best(d, small)[1]) < small


def together(d: int, t: Any) -> Any:
    """E exp(<w_1 + w_2, z>) of two rows of a simplex in d dimensions, directions at -1 / (d - 1), lengths chi_d.

    A uniform direction gives 0F1(; d/2; |w_1 + w_2|^2 t / 4), whose powers are moments of the two lengths.
    """

    def length(p: int) -> Any:
        return MP.mpf(2) ** (MP.mpf(p) / 2) * MP.gamma(MP.mpf(d + p) / 2) / MP.gamma(MP.mpf(d) / 2)

    def power(k: int) -> Any:
        """E (r_1^2 + r_2^2 - 2 r_1 r_2 / (d - 1))^k"""
        return MP.fsum(
            math.factorial(k) // (math.factorial(a) * math.factorial(b) * math.factorial(k - a - b))
            * length(2 * a + k - a - b) * length(2 * b + k - a - b) * (-MP.mpf(2) / (d - 1)) ** (k - a - b)
            for a in range(k + 1) for b in range(k - a + 1)
        )  # fmt: skip

    return MP.fsum((t / 4) ** k / (MP.rf(MP.mpf(d) / 2, k) * MP.factorial(k)) * power(k) for k in range(40))


def test_two_rows_of_a_simplex_in_two_dimensions_are_the_integral_over_their_lengths() -> None:
    """They are opposite: E I_0((r_1 - r_2) |z|)."""
    t = 0.67

    def density(a: float, b: float) -> float:
        return float(a * b * math.exp(-(a * a + b * b) / 2) * special.i0(abs(a - b) * math.sqrt(t)))

    found, error = integrate.dblquad(density, 0, 12, 0, 12)
    assert abs(float(together(2, MP.mpf("0.67"))) - found) <= error + 1e-12


def test_a_simplex_is_better_than_orthogonal_rows_and_these_than_independent_ones() -> None:
    """The figures published: d = 4, |z|^2 = 0.67."""
    t = MP.mpf("0.67")
    orthogonal = Estimator("positive", 2, 4)._together((1, 1), t, MP)
    assert [MP.nstr(x, 10) for x in (together(4, t), orthogonal, MP.exp(t))] == [
        "1.578306125",
        "1.892397724",
        "1.954237321",
    ]
