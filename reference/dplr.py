"""The kernel of S4: of a state space whose matrix is diagonal but for a low rank, A = diag(Lambda) - P Q^*.

    K_l = Re C Ab**l Bb,    Ab = (I - dt A / 2)**-1 (I + dt A / 2),    Bb = (I - dt A / 2)**-1 dt B

All eigenvalues are given, not one of each pair of conjugates; C is the row that reads the state. Models keep
C (I - Ab**length) in its place, from which the generating function is had without a power of Ab, or the conjugate of C.

By the generating function, at the roots of unity z,

    sum_l K_l z**l = Ct (I - Ab z)**-1 Bb = dt (k_CB - h k_CP k_QB / (1 + h k_QP)),    h = (1 + z) dt / 2,
    k_vw = sum_n v_n w_n / ((1 - z) - h Lambda_n),    Ct = C (I - Ab**length)

with Q conjugated, which is finite at z = -1, where (1 - z) / (1 + z) is not.

Axes: n state, l lag.

Source: A. Gu et al., S4, arXiv:2111.00396, section 3 and appendix C.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace

from assay.reference.arithmetic.complex import conj, imag, join, real
from assay.reference.arithmetic.transform import fourier, roots
from assay.reference.discretize import discretize
from assay.reference.state_space import doubling, squares, ssm_kernel


def s4_kernel(Lambda: Any, P: Any, Q: Any, B: Any, C: Any, *, dt: Any, length: int) -> Any:
    """K[length], real, of the complex Lambda[n], P[n], Q[n], B[n] and C[n].

    Error: none in exact arithmetic. Raises: ValueError for shapes that do not fit each other, or a negative length.

    >>> import numpy as np
    >>> one = np.ones(1, complex)
    >>> s4_kernel(0 * one, one, one, one, one, dt=2.0, length=3).tolist()
    [1.0, 0.0, 0.0]
    """
    return _read(ssm_kernel, Lambda, P, Q, B, C, dt, length)


def by_doubling(Lambda: Any, P: Any, Q: Any, B: Any, C: Any, *, dt: Any, length: int) -> Any:
    """Rows and columns by repeated squaring of Ab, and their products."""
    return _read(doubling, Lambda, P, Q, B, C, dt, length)


def by_cauchy(Lambda: Any, P: Any, Q: Any, B: Any, C: Any, *, dt: Any, length: int) -> Any:
    """The generating function at the roots of unity, by Cauchy products and Woodbury's identity, transformed back."""
    check(Lambda, P, Q, B, C, length)
    if not length:
        return s4_kernel(Lambda, P, Q, B, C, dt=dt, length=length)
    n = Lambda.shape[0]
    Ab, _, row = system(Lambda, P, Q, B, C, dt)
    after = row[:, None]
    for i, square in enumerate(squares(Ab, length)):
        after = square.mT @ after if length >> i & 1 else after
    left = row - after[:, 0]
    Ct = join(left[:n], -left[n:])
    c, s = roots(array_namespace(real(Lambda)), length)
    half = dt / 2
    up = join(1 + c, -s)[:, None] * half  # (1 + z) dt / 2
    poles = join(1 - c, s)[:, None] - up * Lambda[None, :]

    def product(v: Any, w: Any) -> Any:
        terms = (v * w)[None, :] / poles
        return array_namespace(terms).sum(terms, axis=-1)

    conjugate, up = conj(Q), up[:, 0]
    found = product(Ct, B) - up * product(Ct, P) * product(conjugate, B) / (1 + up * product(conjugate, P))
    x, y = real(dt * found), imag(dt * found)
    return fourier(array_namespace(x).stack([x, -y], axis=0))[0, ...] / length


def _read(kernel: Callable[..., Any], Lambda: Any, P: Any, Q: Any, B: Any, C: Any, dt: Any, length: int) -> Any:
    check(Lambda, P, Q, B, C, length)
    return kernel(*system(Lambda, P, Q, B, C, dt), length=length)


def system(Lambda: Any, P: Any, Q: Any, B: Any, C: Any, dt: Any) -> tuple[Any, Any, Any]:
    """Ab[2 n, 2 n], Bb[2 n] and C[2 n], of real and imaginary parts: what is real of C x is a product of these."""
    xp, i = array_namespace(Lambda), array_namespace(Lambda).arange(Lambda.shape[0])
    own = i[:, None] == i[None, :]
    rank = P[:, None] * conj(Q)[None, :]
    a, b = (xp.where(own, part(Lambda)[:, None], xp.zeros_like(part(rank))) - part(rank) for part in (real, imag))
    A = xp.concat([xp.concat([a, -b], axis=1), xp.concat([b, a], axis=1)], axis=0)
    entered, read = (xp.concat([real(x), sign * imag(x)], axis=0) for x, sign in ((B, 1), (C, -1)))
    Ab, Bb = discretize(A, entered, dt=dt, method="bilinear")
    return Ab, Bb, read


def check(Lambda: Any, P: Any, Q: Any, B: Any, C: Any, length: int) -> None:
    """Raises: ValueError, as `s4_kernel`."""
    if length < 0:
        raise ValueError(f"the length must not be negative, as {length} is")
    shapes = [tuple(x.shape) for x in (Lambda, P, Q, B, C)]
    if len(shapes[0]) != 1 or len(set(shapes)) > 1:
        raise ValueError(f"Lambda, P, Q, B and C must be [n], not {', '.join(map(str, shapes))}")
