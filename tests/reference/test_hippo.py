"""HiPPO's matrices: golden figures recomputed by balls, and the identities that make them what they are."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import flint
import numpy as np
import pytest

from assay.properties.hippo import HIPPO_MATRICES
from assay.reference import hippo
from assay.reference.arithmetic.array import Array
from assay.reference.arithmetic.linear import expm, identity, solve
from assay.reference.arithmetic.objects import Ball, Exact, enclosure


BITS = 400


def balls(measure: str, n: int, bits: int = BITS) -> tuple[Ball, Array, Array]:
    ball = Ball(bits)
    with ball.context():
        return ball, *hippo.hippo_matrices(n, measure=measure, xp=ball)


def close(x: Array, y: Any, bits: int = 200) -> None:
    """Every ball meets the other and is small."""
    for a, b in zip(x.parts[0].ravel(), np.ravel(y.parts[0] if isinstance(y, Array) else y), strict=True):
        assert a.overlaps(flint.arb(b)), (a, b)
        assert a.rad() < flint.arb(2) ** -bits


def eigenvalues(a: Array, bits: int = BITS) -> list[Any]:
    """Of the midpoints of a matrix of balls, to many more digits than the figures have, though not enclosed."""
    with flint.ctx.workprec(bits):
        matrix = flint.acb_mat([[flint.acb(x.mid()) for x in row] for row in a.parts[0]])
        return list(matrix.eig(multiple=False, algorithm="approx"))


GOLD: dict[str, tuple[list[list[float]], list[float]]] = {
    "legs": ([[-1, 0], [-math.sqrt(3), -2]], [1, math.sqrt(3)]),
    "legt": ([[-1, math.sqrt(3)], [-math.sqrt(3), -3]], [1, math.sqrt(3)]),
    "lmu": ([[-1, -1], [3, -3]], [1, -3]),
    "lagt": ([[-0.5, 0], [-1, -0.5]], [1, 1]),
    "fout": ([[-2, 0], [0, 0]], [2, 0]),
}


@pytest.mark.parametrize("measure", hippo.MEASURES)
def test_two_states(measure: str) -> None:
    """LegS by the paper has A_00 = 1, which tells it from indices that begin at 1, and the sign is that of a decay."""
    a, b = hippo.hippo_matrices(2, measure=measure, xp=np)
    np.testing.assert_array_equal(a, GOLD[measure][0])
    np.testing.assert_array_equal(b, GOLD[measure][1])


@pytest.mark.parametrize("n", [1, 2, 5, 16])
@pytest.mark.parametrize("measure", hippo.RANKS)
def test_the_normal_part(measure: str, n: int) -> None:
    """A + P P^T is a skew matrix, less half the identity for LegS: so its eigenvalues have the real part -1/2 or 0, and
    A + A^T = -2 P P^T, less the identity for LegS, has none above 0: without input the state never grows."""
    ball, a, _ = balls(measure, n)
    with ball.context():
        p = hippo.low_rank(n, measure=measure, xp=ball)
        assert p.shape == (n, hippo.RANKS[measure])
        normal = a + p @ p.mT
        halves = -identity(ball, n, a) if measure == "legs" else ball.zeros((n, n))
        close(normal + normal.mT, halves)


@pytest.mark.parametrize("n", [2, 6, 17])
def test_the_memory_unit_is_legt_in_other_units(n: int) -> None:
    ball, a, b = balls("legt", n)
    _, wanted, column = balls("lmu", n)
    with ball.context():
        scale = ball.sqrt(hippo._odd(ball, n)) * hippo._signs(ball, n)
        close(scale[:, None] * a / scale[None, :], wanted)
        close(scale * b, column)


@pytest.mark.parametrize("n", [4, 8, 16])
def test_legs_is_diagonalised_by_binomials(n: int) -> None:
    """E (-A) E**-1 = V diag(1..n) V**-1 with V_ij = binom(i + j, i - j), exactly, in integers and roots."""
    ball, a, _ = balls("legs", n)
    v = np.array([[math.comb(i + j, i - j) if i >= j else 0 for j in range(n)] for i in range(n)], dtype=object)
    with ball.context():
        scale = hippo._signs(ball, n) / ball.sqrt(hippo._odd(ball, n))
        vectors = ball.lift(v.astype(np.int64))
        close(scale[:, None] * -a / scale[None, :] @ vectors, vectors * ball.arange(1, n + 1)[None, :])


@pytest.mark.parametrize(("n", "figure"), [(4, "4.603293"), (8, "19.857410"), (64, "1303.273843")])
def test_the_greatest_frequency_of_the_normal_part_of_legs(n: int, figure: str) -> None:
    """n**2 / pi - pi / 6, nearly: the figure is met to its last digit."""
    _, a, _ = balls("legs", n)
    with flint.ctx.workprec(BITS):
        ball = Ball(BITS)
        p = hippo.low_rank(n, measure="legs", xp=ball)
        found = eigenvalues(a + p @ p.mT)
        greatest = max(float(x.imag) for x in found)
        assert f"{greatest:.6f}" == figure
        assert abs(greatest - n * n / math.pi + math.pi / 6) < 1 / n


def test_the_least_frequency_at_64() -> None:
    _, a, _ = balls("legs", 64)
    ball = Ball(BITS)
    with ball.context():
        p = hippo.low_rank(64, measure="legs", xp=ball)
        found = [float(x.imag) for x in eigenvalues(a + p @ p.mT)]
    assert f"{min(x for x in found if x > 0):.6f}" == "0.263857"


@pytest.mark.parametrize("p", [0, 1, 3, Fraction(1, 2), Fraction(7, 2)])
def test_legs_of_a_power(p: Any) -> None:
    """(-A + p) v = B for v_n = sqrt(2n+1) Gamma(p+1)**2 / (Gamma(p-n+1) Gamma(p+n+2)): the coefficients of x**p."""
    n = 6
    ball, a, b = balls("legs", n)
    with ball.context():
        q = flint.arb(flint.fmpq(Fraction(p).numerator, Fraction(p).denominator))
        wanted = [
            flint.arb(2 * i + 1).sqrt() * (q + 1).gamma() ** 2 * (q - i + 1).rgamma() * (q + i + 2).rgamma()
            for i in range(n)
        ]
        power = ball.boxed(np.array(q, dtype=object))
        v = solve(identity(ball, n, a) * power - a, b[:, None])[:, 0]
        close(v, wanted)


@pytest.mark.parametrize("s", [0.125, 1.0, 3.0])
@pytest.mark.parametrize("measure", ["legs", "lagt"])
def test_the_answer_to_an_impulse(measure: str, s: float) -> None:
    """exp(s A) B = sqrt(2n+1) P_n(2 exp(-s) - 1) exp(-s) for LegS, and L_n(s) exp(-s/2) for LagT."""
    n = 7
    ball, a, b = balls(measure, n)
    with ball.context():
        t = flint.arb(s)
        found = (expm(a * ball.parameter(s)) @ b[:, None])[:, 0]
        if measure == "legs":
            x = 2 * (-t).exp() - 1
            wanted = [flint.arb(2 * i + 1).sqrt() * x.legendre_p(i) * (-t).exp() for i in range(n)]
        else:
            wanted = [t.laguerre_l(i) * (-t / 2).exp() for i in range(n)]
        close(found, wanted)


def test_fourier_of_a_constant_stays() -> None:
    """f = 1 has the coefficients e_0: A e_0 + B = 0."""
    ball, a, b = balls("fout", 9)
    with ball.context():
        close(a[:, 0] + b, ball.zeros((9,)))


@pytest.mark.parametrize(("n", "norm"), [(4, "1.11"), (16, "15.7"), (64, "260")])
def test_an_euler_step_of_legs_grows(n: int, norm: str) -> None:
    """Each figure to its last digit."""
    a, _ = hippo.hippo_matrices(n, xp=np)
    assert f"{np.linalg.norm(np.eye(n) + 0.1 * a, 2):.3g}" == norm


@pytest.mark.parametrize("measure", hippo.MEASURES)
def test_numpy_and_balls_agree(measure: str) -> None:
    for n in (0, 1, 2, 7):
        ball, *exact = balls(measure, n)
        with ball.context():
            for got, want in zip(hippo.hippo_matrices(n, measure=measure, xp=np), exact, strict=True):
                # Of at most three roundings and one root, each of u, none of which cancels.
                np.testing.assert_allclose(got, enclosure(want)[0].astype(float), rtol=4 * 2.0**-53)


def test_unknown_measures_are_refused() -> None:
    with pytest.raises(ValueError, match="legs, legt"):
        hippo.hippo_matrices(2, measure="legendre", xp=np)
    with pytest.raises(ValueError, match="must not be negative"):
        hippo.hippo_matrices(-1, xp=np)
    with pytest.raises(ValueError, match="window must be"):
        hippo.hippo_matrices(2, window="3", xp=np)
    with pytest.raises(ValueError, match="legs, legt"):
        hippo.low_rank(2, measure="lmu", xp=np)


@pytest.mark.parametrize("form", ["roots", "scaled"])
@pytest.mark.parametrize("measure", hippo.MEASURES)
def test_forms_are_equal_in_exact_arithmetic(measure: str, form: str) -> None:
    text = HIPPO_MATRICES.forms[form]
    exact = Exact(BITS)
    for n in (0, 1, 2, 5):
        for got, want in zip(
            text(n, measure=measure, xp=exact), hippo.hippo_matrices(n, measure=measure, xp=exact), strict=True
        ):
            assert got.shape == want.shape
            assert all(abs(a - b) < 2.0**-300 for a, b in zip(got.parts[0].flat, want.parts[0].flat, strict=True))


def test_windows_and_signs() -> None:
    for measure in hippo.MEASURES:
        a, b = hippo.hippo_matrices(4, measure=measure, xp=np)
        half, less = hippo.hippo_matrices(4, measure=measure, window="2", xp=np)
        turned, same = hippo.hippo_matrices(4, measure=measure, sign="paper", xp=np)
        by = 2 if measure in ("legt", "lmu", "fout") else 1
        np.testing.assert_array_equal(by * half, a)
        np.testing.assert_array_equal(by * less, b)
        np.testing.assert_array_equal(turned, -a if measure in ("legs", "legt") else a)
        np.testing.assert_array_equal(same, b)
