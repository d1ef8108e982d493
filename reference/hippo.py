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

A window of another length divides A and B by it: models of state spaces that take legt, lmu or fout with a window of 2
have half of both. The paper writes legs and legt as x' = -A x + B u, so that its A is the negative of ours.

Axes: n row, k column.

Source: A. Gu et al., HiPPO, arXiv:2008.07669, theorem 2 and appendix D; A. Gu et al., How to train your HiPPO,
arXiv:2206.12037, section 4 (fout); A. Voelker et al., Legendre Memory Units, NeurIPS 2019, equations 1 and 2; A. Gu et
al., S4, arXiv:2111.00396, theorem 1, for the normal part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace


MEASURES = ("legs", "legt", "lagt", "fout", "lmu")
RANKS = {"legs": 1, "legt": 2, "lagt": 1, "fout": 1}
"""Of what is added to A for a normal matrix, by measure."""


WINDOWED = ("legt", "lmu", "fout")
WINDOWS = ("1", "2")
SIGNED = ("legs", "legt")
SIGNS = ("stable", "paper")

Roots = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""sqrt(v_n v_k), [n, k], of v[n]; and (v_n + 1) / 2, the diagonal of legs, [n]."""


def hippo_matrices(
    n: int, *, measure: str = "legs", window: str = "1", sign: str = "stable", dtype: Any = None, xp: Any
) -> tuple[Any, Any]:
    """A[n, n] and B[n] in the arithmetic, or the namespace of arrays, xp, whose numbers are of the dtype.

    `window`: its length, "1" or "2". `sign`: "stable", or "paper" for the A of x' = -A x + B u.

    Error: none in exact arithmetic. Raises: ValueError for an unknown measure, window or sign, or a negative n.

    >>> import numpy as np
    >>> [x.tolist() for x in hippo_matrices(2, measure="lmu", xp=np)]
    [[[-1.0, -1.0], [3.0, -3.0]], [1.0, -3.0]]
    """
    return _made((of_products, whole), n, measure, window, sign, xp)


# Forms: the same matrices, equal in exact arithmetic, with the roundings of a way to compute them. --------------------


def form(root: Callable[[Any], Any], diagonal: Callable[[Any], Any]) -> Callable[..., tuple[Any, Any]]:
    """The text whose roots and whose diagonal are computed in one way."""

    def text(
        n: int, *, measure: str = "legs", window: str = "1", sign: str = "stable", dtype: Any = None, xp: Any
    ) -> tuple[Any, Any]:
        return _made((root, diagonal), n, measure, window, sign, xp)

    text.__doc__ = root.__doc__
    return text


def of_products(v: Any) -> Any:
    """Roots of products, sqrt((2n+1)(2k+1)): one rounding, and none where it is a whole number."""
    return array_namespace(v).sqrt(v[:, None] * v[None, :])


def whole(v: Any) -> Any:
    return (v + 1) / 2


def of_each(v: Any) -> Any:
    """Products of roots, sqrt(2n+1) sqrt(2k+1); the diagonal of legs is such a product less n."""
    root = array_namespace(v).sqrt(v)
    return root[:, None] * root[None, :]


def less(v: Any) -> Any:
    root = array_namespace(v).sqrt(v)
    return root * root - (v - 1) / 2


def scaled(v: Any) -> Any:
    """Products with roots and their inverses, sqrt(2n+1) (2k+1) (1 / sqrt(2k+1)): T M T**-1, as HiPPO's first code."""
    root = array_namespace(v).sqrt(v)
    return root[:, None] * v[None, :] * (1 / root)[None, :]


def similar(v: Any) -> Any:
    root = array_namespace(v).sqrt(v)
    return root * whole(v) * (1 / root)


def _made(roots: Roots, n: int, measure: str, window: str, sign: str, xp: Any) -> tuple[Any, Any]:
    check(measure, n, window, sign)
    a, b = _of_window_one(*roots, n, measure, xp)
    if window != "1" and measure in WINDOWED:
        a, b = a / 2, b / 2
    return (-a, b) if sign == "paper" and measure in SIGNED else (a, b)


def _of_window_one(root: Any, falls: Any, n: int, measure: str, xp: Any) -> tuple[Any, Any]:
    one, odd = xp.ones((n,)), _odd(xp, n)
    i, j = xp.arange(n)[:, None], xp.arange(n)[None, :]
    below, diagonal = j < i, i == j
    if measure == "lagt":
        ones = one[:, None] * one[None, :]
        return xp.where(below, -ones, xp.where(diagonal, -ones / 2, xp.zeros_like(ones))), one
    if measure == "fout":
        squares = _waves(xp, n)
        even = _even(xp, n)
        pulls = root(xp.where(even, squares, one))
        pulls = xp.where(even[:, None] & even[None, :], pulls, xp.zeros_like(pulls))
        return 2 * xp.pi * _quarter(xp, n) - 2 * pulls, 2 * xp.sqrt(squares)
    sign = _signs(xp, n)
    alternating = sign[:, None] * sign[None, :]
    if measure == "lmu":
        rows = odd[:, None] * one[None, :]
        return xp.where(j > i, -rows, -(rows * alternating)), odd * sign
    roots = root(odd)
    if measure == "legs":
        decays = xp.where(diagonal, falls(odd)[:, None] * one[None, :], xp.zeros_like(roots))
        return -xp.where(below, roots, decays), xp.sqrt(odd)
    return -xp.where(j > i, roots * alternating, roots), xp.sqrt(odd)


# Parts of the formula -----------------------------------------------------------------------------------------------


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
        return xp.sqrt(2 * _waves(xp, n))[:, None]
    even = (one + _signs(xp, n)) / 2
    return xp.stack([xp.sqrt(odd) * even, xp.sqrt(odd) * (one - even)], axis=1)


def check(measure: str, n: int = 0, window: str = "1", sign: str = "stable") -> None:
    """Raises: ValueError, as `hippo_matrices`."""
    for name, value, known in (("measure", measure, MEASURES), ("window", window, WINDOWS), ("sign", sign, SIGNS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    if n < 0:
        raise ValueError(f"n must not be negative, as {n} is")


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
    """The squares of g, 1, 0, 2, 0, 2, ..."""
    one = xp.ones((n,))
    wave = xp.where(xp.arange(n) == 0, one, 2 * one)
    return xp.where(_even(xp, n), wave, xp.zeros_like(wave))


def _quarter(xp: Any, n: int) -> Any:
    """k at (2k + 1, 2k) and -k at (2k, 2k + 1), [n, n]."""
    i, j = xp.arange(n)[:, None], xp.arange(n)[None, :]
    k, even = xp.ones((n, n)) * xp.floor(xp.arange(n) / 2)[:, None], _even(xp, n)
    # Row 2k + 1 has k at the column before it, row 2k has -k at the column after it.
    down, up = (i == j + 1) & even[None, :], (j == i + 1) & even[:, None]
    return xp.where(down, k, xp.where(up, -k, xp.zeros((n, n))))
