"""The kernel of S4D: of a state space whose matrix is diagonal.

    K_l = 2 Re sum_n C_n Bb_n Ab_n**l, one of each pair of conjugate eigenvalues given
        zoh        Ab = exp(dt Lambda),   Bb = (exp(dt Lambda) - 1) / Lambda B, and dt B where Lambda is 0
        bilinear   Ab = (1 + dt Lambda / 2) / (1 - dt Lambda / 2),   Bb = dt B / (1 - dt Lambda / 2)

Models initialise Lambda as -1/2 + i pi n ("Lin"), -1/2 + i N/pi (N/(2n+1) - 1) ("Inv"), -(n+1) ("Real"), or as the
eigenvalues of the normal part of HiPPO's matrix ("LegS").

Axes: l lag, n state.

Source: A. Gu et al., S4D, arXiv:2206.11893, equations 2, 6 and 7, and section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace

from assay.reference.arithmetic.array import vanishes
from assay.reference.arithmetic.complex import imag, join, real
from assay.reference.arithmetic.recurrence import recurrence


METHODS = ("zoh", "bilinear")


def s4d_kernel(Lambda: Any, B: Any, C: Any, *, dt: Any, length: int, method: str = "zoh") -> Any:
    """K[length], real, of the complex Lambda[n], B[n] and C[n].

    Error: none in exact arithmetic. Raises: ValueError for shapes that do not fit each other, a negative length or an
    unknown method.

    >>> import numpy as np
    >>> one = np.ones(1, complex)
    >>> s4d_kernel(0 * one, one, one, dt=0.5, length=2).tolist()
    [1.0, 1.0]
    """
    return _read(_exponentials, _held, Lambda, B, C, dt, length, method)


# Forms: the same function, equal in exact arithmetic, with the roundings of a way to compute it. ----------------------


def one_by_one(Lambda: Any, B: Any, C: Any, *, dt: Any, length: int, method: str = "zoh") -> Any:
    """Powers one after the other."""
    return _read(_one_by_one, _held, Lambda, B, C, dt, length, method)


def naive(Lambda: Any, B: Any, C: Any, *, dt: Any, length: int, method: str = "zoh") -> Any:
    """exp(dt Lambda) - 1, as it is commonly written: of a small dt Lambda, hardly a digit is left."""
    return _read(_exponentials, _subtracted, Lambda, B, C, dt, length, method)


def products(Lambda: Any, B: Any, C: Any, *, dt: Any, length: int, method: str = "zoh") -> Any:
    """Ab**(i + s j) = Ab**i Ab**(s j), i < s, with s = 2**k >= sqrt(length): sums of products of two tables."""
    check(Lambda, B, C, length, method)
    xp, size = array_namespace(Lambda), 1
    while size * size < length:
        size *= 2
    count = -(-length // size)
    weight = (C * _held(Lambda, B, dt, method))[:, None]
    near, far = _table(Lambda, dt, method, size, 1), _table(Lambda, dt, method, count, size)
    return 2 * xp.reshape(real(far.mT @ (near * weight)), (-1,))[:length]


def _table(Lambda: Any, dt: Any, method: str, count: int, step: int) -> Any:
    """Ab**(step j), [n, count]: by exponentials, or by repeated squaring; step is a power of two."""
    xp = array_namespace(Lambda)
    if method == "zoh":
        return xp.exp((dt * Lambda)[:, None] * (step * xp.arange(count))[None, :])
    power = _step(Lambda, dt)[:, None]
    while step > 1:
        power, step = power * power, step // 2
    return _doubled(power, count)


def _doubled(power: Any, count: int) -> Any:
    """1, a, a**2, ..., [n, count], of a[n, 1]: the table is doubled by its next power, which is squared."""
    xp = array_namespace(power)
    table = xp.ones_like(power)
    while table.shape[1] < count:
        table, power = xp.concat([table, power * table], axis=1), power * power
    return table[:, :count]


# Parts of the formula -------------------------------------------------------------------------------------------------

Powers = Callable[[Any, Any, int, str], Any]
"""(Lambda, dt, length, method) -> Ab**l, [length, n]."""
Held = Callable[[Any, Any, Any, str], Any]
"""(Lambda, B, dt, method) -> Bb[n]."""


def _read(powers: Powers, held: Held, Lambda: Any, B: Any, C: Any, dt: Any, length: int, method: str) -> Any:
    """2 Re sum_n C_n Bb_n Ab_n**l."""
    check(Lambda, B, C, length, method)
    weight = C * held(Lambda, B, dt, method)
    return 2 * real(powers(Lambda, dt, length, method) @ weight[:, None])[:, 0]


def _exponentials(Lambda: Any, dt: Any, length: int, method: str) -> Any:
    return _table(Lambda, dt, method, length, 1).mT


def _one_by_one(Lambda: Any, dt: Any, length: int, method: str) -> Any:
    """As the states of a real system with twice as many, in pairs that turn."""
    xp, n = array_namespace(Lambda), Lambda.shape[0]
    a = xp.exp(dt * Lambda) if method == "zoh" else _step(Lambda, dt)
    i = xp.arange(n)
    own, none = i[:, None] == i[None, :], xp.zeros((n, n))
    x, y = (xp.where(own, part(a)[:, None], none) for part in (real, imag))
    both = xp.concat([xp.concat([x, -y], axis=1), xp.concat([y, x], axis=1)], axis=0)
    first = xp.concat([xp.ones((1, n)), xp.zeros((1, n))], axis=1)
    entered = xp.concat([first, xp.zeros((length, 2 * n))], axis=0)[:length]
    states = recurrence(both, entered[..., None])[..., 0]
    return join(states[:, :n], states[:, n:])


def _held(Lambda: Any, B: Any, dt: Any, method: str) -> Any:
    """Bb. At Lambda = 0 the terms of the series that a value and a derivative need stand for the quotient."""
    if method == "bilinear":
        return _driven(Lambda, B, dt)
    xp, z = array_namespace(Lambda), dt * Lambda
    nothing = vanishes(Lambda)
    rate = xp.where(nothing, xp.ones_like(Lambda), Lambda)
    return xp.where(nothing, dt * (1 + z / 2), xp.expm1(z) / rate) * B


def _subtracted(Lambda: Any, B: Any, dt: Any, method: str) -> Any:
    if method == "bilinear":
        return _driven(Lambda, B, dt)
    return (array_namespace(Lambda).exp(dt * Lambda) - 1) / Lambda * B


def _step(Lambda: Any, dt: Any) -> Any:
    """Ab of the bilinear method."""
    half = dt * Lambda / 2
    return (1 + half) / (1 - half)


def _driven(Lambda: Any, B: Any, dt: Any) -> Any:
    """Bb of the bilinear method."""
    return dt * B / (1 - dt * Lambda / 2)


def check(Lambda: Any, B: Any, C: Any, length: int, method: str) -> None:
    """Raises: ValueError, as `s4d_kernel`."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if length < 0:
        raise ValueError(f"the length must not be negative, as {length} is")
    if len(Lambda.shape) != 1 or not tuple(Lambda.shape) == tuple(B.shape) == tuple(C.shape):
        shapes = f"{list(Lambda.shape)}, {list(B.shape)} and {list(C.shape)}"
        raise ValueError(f"Lambda, B and C must be [n], not {shapes}")
