"""The projection of a history on Legendre polynomials, sample by sample: LegS, discretised.

    c(t)' = (A c(t) + B f(t)) / t,    c_n(t) = 1/t integral_0^t f(x) sqrt(2n+1) P_n(2x/t - 1) dx

c_0 = f_0 e_0, and the sample f_k moves the time from k to k + 1:

    zoh        c_k = M c_{k-1} + (e_0 - M e_0) f_k,   M = exp(A log((k + 1) / k)): exact for step functions
    euler      c_k = (I + A/k) c_{k-1} + B/k f_k
    backward   (I - A/k) c_k = c_{k-1} + B/k f_k
    bilinear   (I - A/2k) c_k = (I + A/2k) c_{k-1} + B/k f_k

So with zoh c_k is the projection of the step function whose values are f_0, ..., f_k, each over as long a time.
(A e_0 = -B, hence A**-1 (M - I) B = e_0 - M e_0.)

Axes: t sample, n coefficient.

Source: A. Gu et al., HiPPO, arXiv:2008.07669, theorem 2, proposition 3 and appendix B.3. Departs: the paper's bilinear
rule takes A at the time k on the left and at k + 1 on the right; its code takes A/k on both sides, and so is it here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from array_api_compat import array_namespace

from assay.reference.arithmetic.linear import expm, identity, solve, substituted
from assay.reference.arithmetic.steps import Step, stepped
from assay.reference.hippo import form as form_of_matrices, of_each, whole


METHODS = ("zoh", "bilinear", "backward", "euler")
WEIGHTS = {"bilinear": (1, 2), "backward": (1, 1), "euler": (0, 1)}
"""The part of A/k that is taken at the new time, as a ratio."""


def hippo_project(f: Any, n: int, *, measure: str = "legs", method: str = "zoh") -> Any:
    """c[t, n], of f[t].

    Error: none in exact arithmetic. Raises: ValueError for an unknown method, another measure, or shapes that mean
    nothing.

    >>> import numpy as np
    >>> hippo_project(np.array([1.0, 3.0]), 1, method="backward").tolist()
    [[1.0], [2.0]]
    """
    return _projected(in_rows, f, n, measure, method)


# Forms: the same function, equal in exact arithmetic, with the roundings of a way to compute it. --------------------


def form(way: Callable[[Any, int, str], Step]) -> Callable[..., Any]:
    """The text whose steps are computed in one way."""

    def text(f: Any, n: int, *, measure: str = "legs", method: str = "zoh") -> Any:
        return _projected(way, f, n, measure, method)

    text.__doc__ = way.__doc__
    return text


def in_rows(xp: Any, n: int, method: str) -> Step:
    """The triangular system of a step is substituted row by row; for zoh the matrix of the step is multiplied."""
    if method == "zoh":
        return dense(xp, n, method)
    A, B = _matrices(xp, n)
    one, (ahead, of) = identity(xp, n, A), WEIGHTS[method]

    @cache
    def parts(k: int) -> tuple[Any, Any, Any]:
        a = A / k
        return one - a * ahead / of, a * (of - ahead) / of, (B / k)[:, None]

    def step(k: int, x: Any, u: Any) -> Any:
        if not k:
            return _first(xp, x, u)
        left, a, b = parts(k)
        terms = [x, a @ x, b @ u] if ahead < of else [x, b @ u]
        right = xp.sum(xp.stack(terms, axis=-1), axis=-1)  # in any order
        return substituted(left, right) if ahead else right

    return step


def dense(xp: Any, n: int, method: str) -> Step:
    """The matrix and the column of each step come first, by substitution or as an exponential, and are multiplied."""
    return _multiplying(substituted, xp, n, method)


def eliminated(xp: Any, n: int, method: str) -> Step:
    """The same by elimination with pivots, as functions for any system do."""
    return _multiplying(solve, xp, n, method)


def _multiplying(solution: Callable[[Any, Any], Any], xp: Any, n: int, method: str) -> Step:
    A, B = _matrices(xp, n)
    one = identity(xp, n, A)

    @cache
    def parts(k: int) -> tuple[Any, Any]:
        if method == "zoh":
            M = expm(A * xp.log1p(xp.ones(()) / k))
            return M, (one - M)[:, :1]
        ahead, of = WEIGHTS[method]
        a, b = A / k, (B / k)[:, None]
        right = xp.concat([one + a * (of - ahead) / of, b], axis=1)
        found = solution(one - a * ahead / of, right) if ahead else right
        return found[:, :n], found[:, n:]

    def step(k: int, x: Any, u: Any) -> Any:
        if not k:
            return _first(xp, x, u)
        M, N = parts(k)
        return M @ x + N @ u

    return step


def in_antidiagonals(f: Any, n: int, *, method: str, rows: Sequence[int]) -> Any:
    """c[len(rows), n] of some samples: of what `hippo_project` returns, and as our kernel computes it. Not for zoh.

    With s_i = sqrt(2i+1), S_i the sum of s_j c_j over j <= i, a part a of A/k at the new time, and a dash for the old,

        (k + a (i + 1)) c_i = (k - (1 - a) (i + 1)) c'_i + s_i (f_k - (1 - a) S'_{i-1} - a S_{i-1})

    needs of its own step what is before it, of the step before what is at its place: all of one k + i at once.
    """
    xp, (ahead, of) = array_namespace(f), WEIGHTS[method]
    last, i, zero = max(rows), xp.arange(n), xp.zeros((1,))
    s = xp.sqrt(xp.ones((n,)) * (2 * i + 1))
    # f_k at the places i = m - k; before the first sample and after the last asked for there is nothing.
    line = xp.concat([xp.zeros((n,)), xp.flip(f[: last + 1], axis=0), xp.zeros((n,))])
    c, sums, before, found = xp.zeros((n,)), xp.zeros((n,)), xp.zeros((n,)), []
    for m in range(last + n):
        k = m - i
        inside = xp.where(k > 0, k, xp.ones((n,)))
        u = line[n + last - m : 2 * n + last - m]
        shifted, older = (xp.concat([zero, x[:-1]]) for x in (sums, before))
        given = u - older * (of - ahead) / of - shifted * ahead / of
        below = inside + (i + 1) * ahead / of
        c = (inside - (i + 1) * (of - ahead) / of) / below * c + s / below * given
        c = xp.where(k > 0, c, xp.where((k == 0) & (i == 0), u, xp.zeros((n,))))
        before, sums = sums, shifted + s * c
        found.append(c)
    return xp.stack([xp.concat([found[k + j][j : j + 1] for j in range(n)]) for k in rows])


# Parts of the formula -----------------------------------------------------------------------------------------------


def _matrices(xp: Any, n: int) -> tuple[Any, Any]:
    """With products of roots: of the ways that leave the diagonal whole, that of the most roundings."""
    return form_of_matrices(of_each, whole)(n, xp=xp)


def _first(xp: Any, x: Any, u: Any) -> Any:
    """f_0 e_0, whatever was before."""
    return xp.concat([u, xp.zeros((x.shape[0] - 1, u.shape[1]), dtype=u.dtype)], axis=0)


def _projected(way: Callable[[Any, int, str], Step], f: Any, n: int, measure: str, method: str) -> Any:
    check(f, n, measure, method)
    xp, t = array_namespace(f), f.shape[0]
    if not n:
        return xp.zeros((t, 0), dtype=f.dtype)
    return stepped(lambda below: way(below, n, method), f[:, None, None], n)[..., 0]


def check(f: Any, n: int, measure: str, method: str) -> None:
    """Raises: ValueError, as `hippo_project`."""
    if measure != "legs":
        raise ValueError(f"only the measure legs is projected on, not {measure!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if len(f.shape) != 1 or n < 0:
        raise ValueError(f"f must be [t] and n not negative, not {list(f.shape)} and {n}")
