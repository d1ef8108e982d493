"""The matrices of HiPPO: how the coefficients of a history in orthogonal functions move, x' = A x + B u.

    legs   Legendre polynomials over the whole history, x' = (A x + B u) / t
           A_nk = -sqrt((2n+1)(2k+1)) below the diagonal, -(n+1) on it;   B_n = sqrt(2n+1)
    legt   Legendre polynomials over a window of length 1
           A_nk = -sqrt((2n+1)(2k+1)), times (-1)**(n-k) above the diagonal;   B_n = sqrt(2n+1)
    lmu    the same, coefficients scaled by (-1)**n sqrt(2n+1)
           A_nk = -(2n+1) above the diagonal, (2n+1) (-1)**(n-k+1) on and below it;   B_n = (2n+1) (-1)**n
    lagt   Laguerre functions, which forget exponentially
           A_nk = -1 below the diagonal, -1/2 on it;   B_n = 1
    fout   1, cos and sin of 2 pi k over a window of length 1: cosines at even indices, sines at odd ones, 1 is dead
           A = R - 2 g g^T with R_{2k+1,2k} = 2 pi k = -R_{2k,2k+1};   B = 2 g,   g = (1, 0, sqrt 2, 0, sqrt 2, ...)

A window of another length divides A and B by it: models of state spaces that take legt or fout with a window of 2 have
half of both.

Axes: n row, k column.

Source: A. Gu et al., HiPPO, arXiv:2008.07669, theorem 2 and appendix D; A. Gu et al., How to train your HiPPO,
arXiv:2206.12037, section 4 (fout); A. Voelker et al., Legendre Memory Units, NeurIPS 2019, equations 1 and 2; A. Gu et
al., S4, arXiv:2111.00396, theorem 1, for the normal part.
"""

from __future__ import annotations

from typing import Any

from assay.reference.arithmetic.linear import identity


MEASURES = ("legs", "legt", "lagt", "fout", "lmu")
RANKS = {"legs": 1, "legt": 2, "lagt": 1, "fout": 1}
"""Of what is added to A for a normal matrix, by measure."""


def hippo_matrices(n: int, *, measure: str = "legs", xp: Any) -> tuple[Any, Any]:
    """A[n, n] and B[n] in the arithmetic, or the namespace of arrays, xp.

    Error: none in exact arithmetic. Raises: ValueError for an unknown measure.

    >>> import numpy as np
    >>> [x.tolist() for x in hippo_matrices(2, measure="lmu", xp=np)]
    [[[-1.0, -1.0], [3.0, -3.0]], [1.0, -3.0]]
    """
    check(measure)
    one, odd = xp.ones((n,)), _odd(xp, n)
    i, j = xp.arange(n)[:, None], xp.arange(n)[None, :]
    below, diagonal = j < i, i == j
    if measure == "lagt":
        ones = one[:, None] * one[None, :]
        return xp.where(below, -ones, xp.where(diagonal, -ones / 2, xp.zeros_like(ones))), one
    if measure == "fout":
        g = _waves(xp, n)
        turn = 2 * xp.pi * _quarter(xp, n)
        return turn - 2 * (g[:, None] * g[None, :]), 2 * g
    sign = _signs(xp, n)
    alternating = sign[:, None] * sign[None, :]
    if measure == "lmu":
        rows = odd[:, None] * one[None, :]
        return xp.where(j > i, -rows, -(rows * alternating)), odd * sign
    root = xp.sqrt(odd[:, None] * odd[None, :])
    if measure == "legs":
        falls = xp.where(diagonal, (odd[:, None] * one[None, :] + 1) / 2, xp.zeros_like(root))
        return -xp.where(below, root, falls), xp.sqrt(odd)
    return -xp.where(j > i, root * alternating, root), xp.sqrt(odd)


def low_rank(n: int, *, measure: str, xp: Any) -> Any:
    """P[n, r] such that A + P P^T is normal: -1/2 and a skew part for legs, skew for the others.

    legs: sqrt(n + 1/2). legt: sqrt(2n+1), of the even and of the odd n. lagt: sqrt(1/2). fout: sqrt 2 g.
    Raises: ValueError for a measure whose coefficients are scaled so that there is none, or an unknown one.
    """
    check(measure)
    if measure not in RANKS:
        raise ValueError(f"measure must be one of {', '.join(RANKS)}, not {measure!r}")
    one, odd = xp.ones((n,)), _odd(xp, n)
    if measure == "legs":
        return xp.sqrt(odd / 2)[:, None]
    if measure == "lagt":
        return xp.sqrt(one / 2)[:, None]
    if measure == "fout":
        return (xp.sqrt(one * 2) * _waves(xp, n))[:, None]
    even = (one + _signs(xp, n)) / 2
    return xp.stack([xp.sqrt(odd) * even, xp.sqrt(odd) * (one - even)], axis=1)


def check(measure: str) -> None:
    """Raises: ValueError, as `hippo_matrices`."""
    if measure not in MEASURES:
        raise ValueError(f"measure must be one of {', '.join(MEASURES)}, not {measure!r}")


def _odd(xp: Any, n: int) -> Any:
    """1, 3, 5, ..."""
    return xp.ones((n,)) * (2 * xp.arange(n) + 1)


def _signs(xp: Any, n: int) -> Any:
    """1, -1, 1, ..."""
    one = xp.ones((n,))
    return xp.where(_even(xp, n), one, -one)


def _even(xp: Any, n: int) -> Any:
    i = xp.arange(n)
    return i - 2 * xp.floor(i / 2) == 0


def _waves(xp: Any, n: int) -> Any:
    """1, 0, sqrt 2, 0, sqrt 2, ..."""
    one = xp.ones((n,))
    wave = xp.where(xp.arange(n) == 0, one, xp.sqrt(2 * one))
    return xp.where(_even(xp, n), wave, xp.zeros_like(wave))


def _quarter(xp: Any, n: int) -> Any:
    """k at (2k + 1, 2k) and -k at (2k, 2k + 1), [n, n]."""
    i, j = xp.arange(n)[:, None], xp.arange(n)[None, :]
    k = identity(xp, n, xp.ones((n, n))) * xp.floor(xp.arange(n) / 2)[:, None]
    first = xp.where(_even(xp, n), xp.ones((n,)), xp.zeros((n,)))
    # Row 2k + 1 has k at the column before it, row 2k has -k at the column after it.
    down = xp.where(i == j + 1, xp.ones((n, n)) * first[None, :], xp.zeros((n, n)))
    up = xp.where(j == i + 1, xp.ones((n, n)) * first[:, None], xp.zeros((n, n)))
    return k @ (down - up)
