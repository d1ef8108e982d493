"""Normwise bounds, for algorithms that mix all elements before they cancel: element by element they promise nothing.

Each function returns the largest Euclidean or maximum norm (as said) that the error of a right kernel may have, hence
also the largest error of any of its elements. u is the unit roundoff of the precision, gamma(k) = k u / (1 - k u).
Underflow is not covered: the numbers are meant to stay well within the range of the format.

Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., theorem 24.2 (FFT), theorems 9.3 and 9.4
(Gaussian elimination), lemma 3.5 (complex arithmetic), lemmas 19.1 to 19.3 (Householder's reflections).
"""

from __future__ import annotations

import numpy as np

from assay.reference.arithmetic.array import Part
from assay.reference.arithmetic.formatted import EXTENDED
from assay.reference.arithmetic.precision import Precision


def fft(x: Part, precision: Precision) -> Part:
    """The 2-norm of the error of the transform along the last axis of x[..., n], n a power of two.

        ||error||_2  <=  t eta / (1 - t eta) ||F x||_2,    t = log2 n,    eta = mu + gamma(4) (sqrt 2 + mu)

    for a fast transform of radix two, or any that does less, with roots of unity exact to within mu = 2 u.
    Raises: ValueError for other lengths, whose algorithms (Rader's, Bluestein's) have other errors.
    """
    n = x.shape[-1]
    return relative(n, precision) * np.sqrt(EXTENDED(n)) * _norm(x)


def fft_convolve(
    x: Part, k: Part, precision: Precision, ex: Part | float = 0.0, ek: Part | float = 0.0, rows: int = 1
) -> Part:
    """The 2-norm of the error of the circular convolution of x[..., n] and k[..., n] by three transforms, for operands
    that are off by at most ex and ek. What ex and ek make of the result is not counted.

    With r the relative error of one transform, d that of one complex product, sqrt(2) gamma(2), and of a sum over so
    many rows, X = max |F x|, K = max |F k|, and s = sqrt(n): the product of the spectra is off by at most

        z  =  s (1 + d) (r ||x||_2 K + r ||k||_2 X + r**2 s ||x||_2 ||k||_2) + d s ||x||_2 K

    in norm, and the result by (z + (r + u + r u) (s ||x||_2 K + z)) / s.
    """
    n = x.shape[-1]
    r, s = relative(n, precision), np.sqrt(EXTENDED(n))
    d = np.sqrt(EXTENDED(2)) * gamma(2, precision)
    d = d + gamma(rows - 1, precision) * (1 + d)
    (x2, X), (k2, K) = ((_norm(np.abs(v) + e), _highest(v, e)) for v, e in ((x, ex), (k, ek)))
    z = s * (1 + d) * (r * x2 * K + r * k2 * X + r * r * s * x2 * k2) + d * s * x2 * K
    last = r + unit(precision) * (1 + r)
    return np.asarray((z + last * (s * x2 * K + z)) / s)


def solve(a: Part, b: Part, precision: Precision) -> Part:
    """The maximum norm of the error of the solution of a[n, n] x = b[n] by elimination with partial pivoting.

        (a + e) x' = b,   |e| <= gamma(3 n) |L| |U|   =>   ||x' - x||  <=  c / (1 - c) ||x||,
        c  =  gamma(3 n) || |a**-1| P' |L| |U| ||

    in the maximum norm; infinite where c >= 1. L and U are the factors of an elimination in extended precision: the
    growth of a kernel's own factors is assumed to be that of these, which a tie between pivots could change. The bound
    is loose for large n: seen, errors of 0.002 of it at n = 8 and of 1e-5 at n = 48.
    """
    a, b = a.astype(EXTENDED), b.astype(EXTENDED)
    n = len(a)
    with np.errstate(all="ignore"):
        growth, inverse = eliminated(a)
    c = gamma(3 * n, precision) * (np.abs(inverse) @ growth).sum(axis=-1).max(initial=0)
    return np.asarray(c / (1 - c) * np.abs(inverse @ b).max(initial=0) if c < 1 else np.inf)


def orthonormal(d: int, precision: Precision) -> np.longdouble:
    """The Frobenius norm of the error of Q, computed by d Householder reflections of a matrix [d, d].

        ||Q' - Q||_F  <=  sqrt(d) ((1 + e)**d - 1),    e = gamma(10 d + 29)

    where Q is exactly orthogonal: that of a matrix near the one that was given. A reflection x - b v (v^T x) takes
    2 d + 6 roundings for each element of v scaled to b = 1, which occurs twice, times ||v||^2 = 2; d + 2 for the inner
    product, its product with v and the difference, times 2; and one for the result.
    """
    e = gamma(10 * d + 29, precision)
    return np.sqrt(EXTENDED(d)) * np.expm1(d * np.log1p(e)) if e < 1 else EXTENDED(np.inf)


def unit(precision: Precision) -> float:
    return precision.working.u * precision.spacings


def gamma(k: int, precision: Precision) -> np.longdouble:
    ku = EXTENDED(k * unit(precision))
    return ku / (1 - ku) if ku < 1 else EXTENDED(np.inf)


def relative(n: int, precision: Precision) -> np.longdouble:
    """The relative error of one transform, in the 2-norm."""
    t = n.bit_length() - 1
    if n != 1 << t:
        raise ValueError(f"the length must be a power of two, not {n}")
    mu = EXTENDED(2 * unit(precision))
    eta = t * (mu + gamma(4, precision) * (np.sqrt(EXTENDED(2)) + mu))
    return eta / (1 - eta) if eta < 1 else EXTENDED(np.inf)


def _highest(x: Part, e: Part | float) -> Part:
    """max |F (x + e)|: of a transform in extended precision, which is off by far less than its largest number."""
    wide = x.astype(np.clongdouble if np.iscomplexobj(x) else EXTENDED)
    spectrum = np.abs(np.fft.fft(np.where(np.isfinite(wide), wide, 0), axis=-1)).max(axis=-1)
    rounded = np.finfo(EXTENDED).eps * x.shape[-1] * np.abs(wide).sum(axis=-1)
    return np.asarray(spectrum + rounded + np.broadcast_to(e, x.shape).sum(axis=-1))


def _norm(x: Part) -> Part:
    return np.asarray(np.sqrt((_wide(x) ** 2).sum(axis=-1)))


def _wide(x: Part) -> Part:
    return np.abs(x.astype(np.clongdouble if np.iscomplexobj(x) else EXTENDED))


def eliminated(a: Part) -> tuple[Part, Part]:
    """P' |L| |U| and the inverse of a[n, n], in extended precision, pivots chosen by size."""
    n = len(a)
    work, lower, order = (
        np.concatenate([a, np.eye(n, dtype=EXTENDED)], axis=1),
        np.zeros((n, n), EXTENDED),
        np.arange(n),
    )
    for k in range(n):
        p = k + int(np.argmax(np.abs(work[k:, k])))
        work[[k, p]], lower[[k, p]], order[[k, p]] = work[[p, k]], lower[[p, k]], order[[p, k]]
        lower[k + 1 :, k] = work[k + 1 :, k] / work[k, k]
        work[k + 1 :] -= lower[k + 1 :, k : k + 1] * work[k]
    lower += np.eye(n, dtype=EXTENDED)
    growth = np.empty((n, n), EXTENDED)
    growth[order] = np.abs(lower) @ np.abs(np.triu(work[:, :n]))
    inverse = work[:, n:].copy()
    for k in reversed(range(n)):
        inverse[k] = (inverse[k] - work[k, k + 1 : n] @ inverse[k + 1 :]) / work[k, k]
    return growth, inverse
