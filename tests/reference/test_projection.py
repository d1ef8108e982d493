"""The moments of random-feature estimators: closed forms against integrals, against each other, and their limits."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from assay.reference.projection import KINDS, Estimator, constant, context


MP = context(160)


def close(a: Any, b: Any, digits: int = 30) -> bool:
    return bool(abs(a - b) <= MP.mpf(10) ** -digits * (abs(a) + abs(b)))


def f(d: int, a: Any) -> Any:
    """E exp(<w_1 + w_2, z>) of two orthogonal rows, |z|^2 = a."""
    return MP.hyp1f1(d, MP.mpf(d) / 2, MP.mpf(a) / 2, zeroprec=MP.prec)


sizes = st.tuples(st.integers(1, 12), st.integers(2, 6), st.fractions(0, 3, max_denominator=16))


@settings(max_examples=20)
@given(sizes)
def test_the_mean_is_the_kernel(sizes: tuple[int, int, Fraction]) -> None:
    """x = 0 and |y|^2 = t: c E X = exp(<x, y>) = 1, for every kind, orthogonal or not."""
    r, d, t = sizes[0], sizes[1], MP.mpf(sizes[2].numerator) / sizes[2].denominator
    for kind in KINDS:
        for orthogonal in (True, False):
            assert close(constant(kind, 0, t, MP) * Estimator(kind, r, d, orthogonal).mean(t, MP), 1)


@settings(max_examples=20)
@given(sizes)
def test_the_variance_is_that_of_lemma_2_for_independent_rows(sizes: tuple[int, int, Fraction]) -> None:
    r, d, t = sizes[0], sizes[1], MP.mpf(sizes[2].numerator) / sizes[2].denominator
    of = {kind: Estimator(kind, r, d, orthogonal=False).variance(t, MP) for kind in KINDS}
    grown = MP.exp(t)
    assert abs(of["positive"] - grown * (grown - 1) / r) < MP.mpf(10) ** -30
    assert abs(of["hyperbolic"] - (grown - 1) ** 2 / (2 * r)) < MP.mpf(10) ** -30
    assert abs(of["trigonometric"] - (1 - MP.exp(-t)) ** 2 / (2 * r)) < MP.mpf(10) ** -30


@settings(max_examples=20)
@given(sizes)
def test_the_variance_of_orthogonal_rows_is_its_closed_form(sizes: tuple[int, int, Fraction]) -> None:
    """With F: (1/r) of one row's square, and the pairs of a block apart from those of different blocks."""
    r, d, t = sizes[0], sizes[1], MP.mpf(sizes[2].numerator) / sizes[2].denominator
    blocks = [d] * (r // d) + [r % d] * bool(r % d)
    pairs = sum(n * (n - 1) for n in blocks)
    apart = r * r - sum(n * n for n in blocks)
    squares = {
        "positive": (MP.exp(2 * t), 1),
        "hyperbolic": ((1 + MP.exp(2 * t)) / 2, 1),
        "trigonometric": ((1 + MP.exp(-2 * t)) / 2, -1),
    }
    for kind, (square, sign) in squares.items():
        wanted = square / r + (pairs * f(d, sign * t) + apart * MP.exp(sign * t)) / r**2 - MP.exp(sign * t)
        assert abs(Estimator(kind, r, d).variance(t, MP) - wanted) < MP.mpf(10) ** -30


def row(c: Any) -> Any:
    """E exp(<w, c u>) over the length alone, for d = 2: the integral of rho exp(-rho^2/2 + c rho)."""
    return 1 + c * MP.exp(c * c / 2) * MP.sqrt(MP.pi / 2) * (1 + MP.erf(c / MP.sqrt(2)))


@pytest.mark.parametrize("powers", [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_two_rows_in_two_dimensions_are_the_integral_over_the_angle(powers: tuple[int, int]) -> None:
    """The other row is the first, turned by a right angle one way or the other."""
    a, b = powers
    t = MP.mpf("0.7")
    root = MP.sqrt(t)
    pieces = [MP.pi * k / 4 for k in range(9)]
    integral = MP.quad(lambda angle: row(a * root * MP.cos(angle)) * row(b * root * MP.sin(angle)), pieces)
    together = Estimator("positive", 2, 2)._together(powers, t, MP)
    assert close(together, integral / (2 * MP.pi), 25)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_of_one_row_are_those_of_a_normal_number(kind: str) -> None:
    """<w, z> is normal with variance t, whatever d."""
    t = MP.mpf("0.6")
    g = {"positive": MP.exp, "trigonometric": MP.cos, "hyperbolic": MP.cosh}[kind]
    for p in (1, 2, 3, 4):

        def density(x: Any, p: int = p) -> Any:
            return g(x) ** p * MP.npdf(x, 0, MP.sqrt(t))

        integral = MP.quad(density, [-24, -12, -6, 0, 6, 12, 24])
        assert close(Estimator(kind, 1, 5).moment(p, t, MP), integral, 20)


def test_many_dimensions_make_rows_independent() -> None:
    near, far = (Estimator("positive", 4, 10**6, orthogonal).variance(1, MP) for orthogonal in (True, False))
    assert 0 < far - near < MP.mpf(10) ** -5


def test_without_distance_there_is_no_error() -> None:
    for kind in KINDS:
        assert Estimator(kind, 5, 3).variance(0, MP) == 0


def test_theorem_2_in_exact_arithmetic() -> None:
    """exp(t) - F(t) >= 2/(d+2) (exp(t/2) - 1)^2 for every t >= 0, coefficient by coefficient.

    With p_k = prod over j < k of (d + j)/(d + 2j), k! times the coefficients of t^k are 1 - p_k and
    2/(d+2) (1 - 2^(1-k)): both 0 for k = 1, equal for k = 2. For k >= 3 the left side grows with k, from 3/(d+4) on,
    and the right side stays below 2/(d+2) <= 3/(d+4).
    """
    for d in range(2, 200):
        product = Fraction(1)
        for k in range(1, 12):
            product *= Fraction(d + k - 1, d + 2 * (k - 1))
            left, right = 1 - product, Fraction(2, d + 2) * (1 - Fraction(2, 2**k))
            assert left >= right
            assert (left == right) == (k < 3)
            assert k != 3 or left == Fraction(3, d + 4) >= Fraction(2, d + 2)


@pytest.mark.parametrize("d", [2, 4, 16, 64])
def test_theorem_2_bounds_the_variance(d: int) -> None:
    """Var_ort <= Var_iid - 2 (r - 1) / (r (d + 2)) (exp(t/2) - 1)^2, in units of X, for r <= d."""
    for r in sorted({2, d // 2, d} - {1}):
        for t in (MP.mpf("0.01"), MP.mpf(1), MP.mpf(9)):
            orthogonal, independent = (Estimator("positive", r, d, o).variance(t, MP) for o in (True, False))
            assert orthogonal <= independent - MP.mpf(2 * (r - 1)) / (r * (d + 2)) * MP.expm1(t / 2) ** 2


REGULARISED = {
    (2, 1): ".94987731255",
    (2, 4): ".575493110699",
    (8, 1): ".977694644801",
    (8, 4): ".75269371707",
    (64, 1): ".996291347077",
    (64, 4): ".945247848333",
    (256, 4): ".984920190138",
}


@pytest.mark.parametrize(("d", "t"), REGULARISED)
def test_equal_lengths_estimate_less_than_the_kernel(d: int, t: int) -> None:
    ratio = Estimator("positive", 3, d, scaling="regularised").mean(t, MP) / MP.exp(MP.mpf(t) / 2)
    assert close(ratio, MP.mpf(REGULARISED[d, t]), 10)
    assert ratio < 1


def test_the_global_precision_is_not_touched_and_wrong_names_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no estimator"):
        Estimator("negative", 1, 1)
    with pytest.raises(ValueError, match="there is no estimator"):
        Estimator("positive", 0, 1)
