"""A linear state space in discrete time: its scan, and its kernel, the response to an impulse.

    x_k = Ab x_{k-1} + Bb u_k,    y_k = C x_k;        K_l = C Ab**l Bb,    y_k = sum_l K_l u_{k-l} + C Ab**(k+1) x_{-1}

An input is seen at its own position: K_0 = C Bb. Signal processing writes x_{k+1} = A x_k + B u_k and y_k = C x_k +
D u_k for it, where an input is seen one position late, or by D alone.

Axes: b batch, t position or lag, n state.

Source: A. Gu et al., S4, arXiv:2111.00396, equations 3 to 5 (with D = 0). The scan: G. Blelloch, Prefix sums and their
applications, CMU-CS-90-190 (1990), section 1.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from array_api_compat import array_namespace

from assay.reference.arithmetic.recurrence import recurrence
from assay.reference.arithmetic.transform import toeplitz


CHUNK = 64
"""Positions of a chunk, in the form that has some: a power of two."""

Scan = Callable[[Any, Any, Any, Any, Any], tuple[Any, Any]]
"""(u[b, t], Ab[n, n], Bb[n], C[n], state[b, n] or None) -> y[b, t] and the last state[b, n], for t > 0."""


def ssm_scan(u: Any, Ab: Any, Bb: Any, C: Any, *, state: Any = None) -> tuple[Any, Any]:
    """y[b, t] and the last state[b, n], of u[b, t], Ab[n, n], Bb[n], C[n] and the state[b, n] before the first.

    Error: none in exact arithmetic. Raises: ValueError for shapes that do not fit each other.

    >>> import numpy as np
    >>> y, state = ssm_scan(np.ones((1, 3)), np.array([[0.5]]), np.array([2.0]), np.array([1.0]))
    >>> y.tolist(), state.tolist()
    ([[2.0, 3.0, 3.5]], [[3.5]])
    """
    return _scanned(one_by_one, u, Ab, Bb, C, state)


def ssm_kernel(Ab: Any, Bb: Any, C: Any, *, length: int) -> Any:
    """K[length], of Ab[n, n], Bb[n] and C[n].

    Error: none in exact arithmetic. Raises: ValueError for shapes that do not fit each other, or a negative length.

    >>> import numpy as np
    >>> ssm_kernel(np.array([[0.5]]), np.array([2.0]), np.array([1.0]), length=4).tolist()
    [2.0, 1.0, 0.5, 0.25]
    """
    check_kernel(Ab, Bb, C, length)
    return (columns(Ab, Bb, length) @ C[:, None])[:, 0]


# Forms of the kernel: the same function, equal in exact arithmetic, with the roundings of a way to compute it. --------


def by_rows(Ab: Any, Bb: Any, C: Any, *, length: int) -> Any:
    """C Ab**l, one after the other, times Bb."""
    check_kernel(Ab, Bb, C, length)
    return (columns(Ab.mT, C, length) @ Bb[:, None])[:, 0]


def by_powers(Ab: Any, Bb: Any, C: Any, *, length: int) -> Any:
    """Ab**l, one after the other, between C and Bb."""
    check_kernel(Ab, Bb, C, length)
    xp, n = array_namespace(Ab), Ab.shape[0]
    i = xp.arange(n)
    one = xp.where(i[:, None] == i[None, :], xp.ones_like(Ab), xp.zeros_like(Ab))
    powers = recurrence(Ab, _first(one, length))
    return ((powers @ Bb[:, None])[..., 0] @ C[:, None])[:, 0]


def doubling(Ab: Any, Bb: Any, C: Any, *, length: int) -> Any:
    """K_{i + s j} = (C Ab**i) (Ab**(s j) Bb), i < s = 2**k >= sqrt(length), by repeated squaring."""
    check_kernel(Ab, Bb, C, length)
    xp, size = array_namespace(Ab), 1
    while size * size < length:
        size *= 2
    near = squares(Ab, size)
    rows = doubled([a.mT for a in near], C[:, None], size)
    count = -(-length // size)
    far = doubled(squares(near[-1], count), Bb[:, None], count)
    return xp.reshape(far.mT @ rows, (-1,))[:length]


def columns(Ab: Any, Bb: Any, length: int) -> Any:
    """Ab**l Bb, [length, n]."""
    return recurrence(Ab, _first(Bb[:, None], length))[..., 0]


def squares(a: Any, count: int) -> list[Any]:
    """a, a**2, a**4, ..., up to the first power that is `count` or more."""
    found = [a]
    while 2 ** (len(found) - 1) < count:
        found.append(found[-1] @ found[-1])
    return found


def doubled(squares: Sequence[Any], x: Any, count: int) -> Any:
    """The first `count` of the columns x, a x, a**2 x, ..., [n, count], of x[n, 1] and the squares of a."""
    xp = array_namespace(x)
    for square in squares:
        if x.shape[1] < count:
            x = xp.concat([x, square @ x], axis=1)
    return x[:, :count]


def _first(x: Any, length: int) -> Any:
    """x and then nothing, [length, n, m]."""
    xp = array_namespace(x)
    whole = xp.concat([xp.expand_dims(x, axis=0), xp.zeros((max(length - 1, 0), *x.shape), dtype=x.dtype)], axis=0)
    return whole[:length]


# Forms of the scan ----------------------------------------------------------------------------------------------------


def form(scan: Scan) -> Callable[..., tuple[Any, Any]]:
    """The text of a scan that goes one way."""

    def text(u: Any, Ab: Any, Bb: Any, C: Any, *, state: Any = None) -> tuple[Any, Any]:
        return _scanned(scan, u, Ab, Bb, C, state)

    text.__doc__ = scan.__doc__
    return text


def one_by_one(u: Any, Ab: Any, Bb: Any, C: Any, state: Any) -> tuple[Any, Any]:
    """The recurrence."""
    return _read(recurrence(Ab, entered(u, Bb), None if state is None else state.mT), C)


def convolution(u: Any, Ab: Any, Bb: Any, C: Any, state: Any) -> tuple[Any, Any]:
    """The sums themselves, in any order; the columns Ab**l Bb and what becomes of the state, one after the other."""
    xp, t = array_namespace(u), u.shape[1]
    lags = columns(Ab, Bb, t)
    y, after = toeplitz((lags @ C[:, None])[:, 0]) @ u.mT, xp.flip(lags, axis=0).mT @ u.mT
    if state is not None:
        kept = recurrence(Ab, _first(Ab @ state.mT, t))
        y, after = y + (xp.permute_dims(kept, (0, 2, 1)) @ C[:, None])[..., 0], after + kept[-1, ...]
    return y.mT, after.mT


def associative(u: Any, Ab: Any, Bb: Any, C: Any, state: Any) -> tuple[Any, Any]:
    """Neighbours are joined in pairs, (p, x), (p', x') to (p' p, p' x + x'), the pairs likewise, and back again."""
    x = entered(u, Bb)
    return _read(_joined(Ab, x if state is None else _with(Ab, x, state)), C)


def chunked(u: Any, Ab: Any, Bb: Any, C: Any, state: Any) -> tuple[Any, Any]:
    """In chunks of CHUNK positions: within one by convolution, from one to the next by the recurrence of Ab**CHUNK.

    Ab**i Bb and C Ab**i by repeated squaring. The state after part of a chunk goes through the squares that add up.
    """
    xp, (b, t) = array_namespace(u), u.shape
    size = 1
    while size < min(t, CHUNK):
        size *= 2
    powers = squares(Ab, size)
    into = doubled(powers, Bb[:, None], size)
    out = Ab.mT @ doubled([a.mT for a in powers], C[:, None], size)
    # What a position is owed by its chunk and by the state before it: one sum, in any order.
    both = xp.concat([toeplitz((into.mT @ C[:, None])[:, 0]), out.mT], axis=1)
    backwards = xp.flip(into, axis=1)
    whole, rest = divmod(t, size)
    pieces, x = [], xp.zeros((Ab.shape[0], b), dtype=u.dtype) if state is None else state.mT
    if whole:
        chunks = xp.permute_dims(xp.reshape(u[:, : whole * size], (b, whole, size)), (1, 2, 0))
        after = recurrence(powers[-1], backwards @ chunks, x)
        before = xp.concat([xp.expand_dims(x, axis=0), after[:-1, ...]], axis=0)
        y = both @ xp.concat([chunks, before], axis=1)
        pieces.append(xp.reshape(xp.permute_dims(y, (2, 0, 1)), (b, whole * size)))
        x = after[-1, ...]
    if rest:
        last = u[:, whole * size :].mT
        some = xp.concat([both[:rest, :rest], both[:rest, size:]], axis=1)
        pieces.append((some @ xp.concat([last, x], axis=0)).mT)
        kept = x
        for i, square in enumerate(powers):
            kept = square @ kept if rest >> i & 1 else kept
        x = backwards[:, size - rest :] @ last + kept
    return xp.concat(pieces, axis=1), x.mT


# Parts of the formula -------------------------------------------------------------------------------------------------


def entered(u: Any, Bb: Any) -> Any:
    """Bb u_k, [t, n, b]."""
    xp = array_namespace(u)
    return xp.expand_dims(u.mT, axis=1) * Bb[None, :, None]


def _read(x: Any, C: Any) -> tuple[Any, Any]:
    """C x_k and the last state, of x[t, n, b]."""
    xp = array_namespace(x)
    return (xp.permute_dims(x, (0, 2, 1)) @ C[:, None])[..., 0].mT, x[-1, ...].mT


def _with(Ab: Any, x: Any, state: Any) -> Any:
    """What enters, the state through one step with the first of it."""
    xp = array_namespace(x)
    return xp.concat([xp.expand_dims(Ab @ state.mT + x[0, ...], axis=0), x[1:, ...]], axis=0)


def _joined(p: Any, x: Any) -> Any:
    """The states of x[t, n, b], where neighbours are a power p apart."""
    xp, t = array_namespace(x), x.shape[0]
    if t == 1:
        return x
    odd = _joined(p @ p, p @ x[: t - 1 : 2, ...] + x[1::2, ...])
    even = xp.concat([x[:1, ...], p @ odd[: (t - 1) // 2, ...] + x[2::2, ...]], axis=0) if t > 2 else x[:1, ...]
    both = [(even if k % 2 == 0 else odd)[k // 2, ...] for k in range(t)]
    return xp.stack(both, axis=0)


def check(u: Any, Ab: Any, Bb: Any, C: Any, state: Any) -> None:
    """Raises: ValueError, as `ssm_scan`."""
    _check_system(Ab, Bb, C)
    if len(u.shape) != 2:
        raise ValueError(f"u must have the axes [b, t], not the shape {list(u.shape)}")
    if state is not None and tuple(state.shape) != (u.shape[0], Ab.shape[0]):
        raise ValueError(f"state must have the shape {[u.shape[0], Ab.shape[0]]}, not {list(state.shape)}")


def check_kernel(Ab: Any, Bb: Any, C: Any, length: int) -> None:
    """Raises: ValueError, as `ssm_kernel`."""
    _check_system(Ab, Bb, C)
    if length < 0:
        raise ValueError(f"the length must not be negative, as {length} is")


def _check_system(Ab: Any, Bb: Any, C: Any) -> None:
    n = Ab.shape[0] if len(Ab.shape) == 2 else -1
    if tuple(Ab.shape) != (n, n) or tuple(Bb.shape) != (n,) or tuple(C.shape) != (n,):
        shapes = f"{list(Ab.shape)}, {list(Bb.shape)} and {list(C.shape)}"
        raise ValueError(f"Ab must be [n, n], Bb and C [n], not {shapes}")


def _scanned(scan: Scan, u: Any, Ab: Any, Bb: Any, C: Any, state: Any) -> tuple[Any, Any]:
    check(u, Ab, Bb, C, state)
    if u.shape[1]:
        return scan(u, Ab, Bb, C, state)
    xp = array_namespace(u)
    return xp.zeros(u.shape, dtype=u.dtype), (
        xp.zeros((u.shape[0], Ab.shape[0]), dtype=u.dtype) if state is None else state
    )
