"""Discretisation: from x' = A x + B u to x_k = Ab x_{k-1} + Bb u_k, over steps of dt.

    gbt(alpha)   Ab = (I - alpha dt A)**-1 (I + (1 - alpha) dt A),   Bb = (I - alpha dt A)**-1 dt B
    euler, bilinear, backward: gbt of alpha = 0, 1/2 and 1
    zoh          [[Ab, Bb], [0, 1]] = exp(dt [[A, B], [0, 0]]), exact for an input that is constant over a step
    mamba        Ab = exp(dt A),   Bb = dt B

The exponential of the block matrix is A**-1 (exp(dt A) - I) B wherever A has an inverse, and needs none.

Axes: n state.

Source: A. Gu et al., HiPPO, arXiv:2008.07669, appendix B.3 (gbt, after G. Zhang et al., 2007);
C. Van Loan, IEEE Trans. Automatic Control 23 (1978), for the block matrix; arXiv:2312.00752, section 3.2, for Mamba.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from assay.reference.arithmetic.array import either
from assay.reference.arithmetic.linear import expm, identity, solve


METHODS = ("bilinear", "euler", "backward", "gbt", "zoh", "mamba")
SOLVED = ("bilinear", "backward", "gbt")
"""Methods that solve a linear system."""


def discretize(A: Any, B: Any, *, dt: Any, method: str = "bilinear", alpha: Any = None) -> tuple[Any, Any]:
    """Ab[n, n] and Bb[n], of A[n, n] and B[n]. `alpha`, for the method "gbt" alone, is 1/2 unless given.

    Error: none in exact arithmetic. Raises: ValueError for an unknown method, or shapes that do not fit each other.

    >>> import numpy as np
    >>> Ab, Bb = discretize(np.array([[-1.0]]), np.array([1.0]), dt=2.0)
    >>> Ab.tolist(), Bb.tolist()
    ([[0.0]], [1.0])
    """
    check(A, B, method)
    xp, n = array_namespace(A), A.shape[0]
    a, b = dt * A, dt * B
    one = identity(xp, n, A)
    if method == "euler":
        return one + a, b
    if method == "mamba":
        return expm(a), b
    if method == "zoh":
        upper = xp.concat([a, b[:, None]], axis=1)
        both = expm(xp.concat([upper, xp.zeros((1, n + 1), dtype=A.dtype)], axis=0))
        return both[:n, :n], both[:n, n]
    forward = weight(A, method, alpha)
    left, right = one - forward * a, xp.concat([one + (1 - forward) * a, b[:, None]], axis=1)
    found = either(A, lambda: solve(left, right), lambda: solve(left, one) @ right)
    return found[:, :n], found[:, n]


def weight(A: Any, method: str, alpha: Any) -> Any:
    """The alpha of a method that solves a system."""
    xp = array_namespace(A)
    if method == "backward":
        return xp.ones((), dtype=A.dtype)
    return xp.ones((), dtype=A.dtype) / 2 if method == "bilinear" or alpha is None else alpha


def check(A: Any, B: Any, method: str) -> None:
    """Raises: ValueError, as `discretize`."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if len(A.shape) != 2 or A.shape[0] != A.shape[1] or tuple(B.shape) != (A.shape[0],):
        raise ValueError(f"A must be [n, n] and B [n], not {list(A.shape)} and {list(B.shape)}")
