"""The selective scan of Mamba: a diagonal recurrence whose step, input and output change from position to position.

    h_k = exp(delta_k A) h_{k-1} + delta_k B_k u_k,     y_k = <C_k, h_k> + D u_k

The decay is held over a step, the input is not: it is multiplied by the step, where a zero-order hold would have
(exp(delta_k A) - 1) / A. `delta` is taken as given, without softplus. The state starts at `state`, or at 0.

Axes: b batch, d channel, t position, n state. By position and by what entered: k position, j = 0 for the state before
the first position, and j = i + 1 for the input at position i.

Source: A. Gu and T. Dao, Mamba, arXiv:2312.00752, section 3.2 and algorithm 2. The scan: G. Blelloch, Prefix sums and
their applications, CMU-CS-90-190 (1990), section 1.4. Cumulative sums of the logarithms of decays: T. Dao and A. Gu,
Transformers are SSMs, arXiv:2405.21060, section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace

from assay.reference.arithmetic.array import either, exactly, mixed


Scan = Callable[[Any, Any, Any], Any]
"""(z[b, d, n, t], x[b, d, n, t], state[b, d, n] or None) -> the h[b, d, n, t] of h_k = exp(z_k) h_{k-1} + x_k."""


def selective_scan(u: Any, delta: Any, A: Any, B: Any, C: Any, *, D: Any = None, state: Any = None) -> tuple[Any, Any]:
    """y[b, d, t] and the last state[b, d, n], of u[b, d, t], delta[b, d, t], A[d, n], B[b, n, t], C[b, n, t], D[d].

    Error: none in exact arithmetic. Raises: ValueError for shapes that do not fit each other.

    >>> import numpy as np
    >>> one = np.ones((1, 1, 2))
    >>> y, state = selective_scan(one, one, np.zeros((1, 1)), one, one, D=np.array([10.0]))
    >>> y.tolist(), state.tolist()
    ([[[11.0, 12.0]]], [[[2.0]]])
    """
    return _scanned(sequential, u, delta, A, B, C, D, state)


# Forms: the same function, equal in exact arithmetic, with the roundings of a way to compute it. ----------------------


def form(scan: Scan) -> Callable[..., tuple[Any, Any]]:
    """The text of the selective scan whose states are computed in one way."""

    def text(u: Any, delta: Any, A: Any, B: Any, C: Any, *, D: Any = None, state: Any = None) -> tuple[Any, Any]:
        return _scanned(scan, u, delta, A, B, C, D, state)

    text.__doc__ = scan.__doc__
    return text


def sequential(z: Any, x: Any, state: Any) -> Any:
    """One position after the other. Where there is no state before, kernels multiply one of zeros."""
    xp = array_namespace(z)
    a, states = xp.exp(z), []
    h = xp.zeros(z.shape[:-1], dtype=z.dtype) if state is None else state
    for k in range(z.shape[-1]):
        h = a[..., k] * h + x[..., k]
        states.append(h)
    return xp.stack(states, axis=-1) if states else x


def associative(z: Any, x: Any, state: Any) -> Any:
    """Pairs (decay, state) of neighbouring stretches are joined, (p, h), (p', h') to (p' p, p' h + h'), in any order.

    Whatever the order is, what entered at j has k - j + 1 decays among its factors, each computed and multiplied once,
    and is one of the terms of a sum. So the bound is that of the products of decays, and of their sum in any order. A
    product is taken from its first factor on, and from its last: what may underflow or overflow is the larger of both.
    """
    return weighted(products(array_namespace(z).exp(z)), x, state)


def chunked(z: Any, x: Any, state: Any) -> Any:
    """Within a chunk of whatever length, decays are exponentials of differences of cumulative sums; across chunks,
    they are multiplied.

    A difference of two sums is off by a roundoff of the sums, however small it is: where much has decayed before, the
    decay that follows is known badly. The sums are longest where the chunk is the whole sequence. Where there are
    several, the factors of a decay are partly of the one kind and partly of the other. With r its relative error in one
    chunk and s that of a product, it is off by at most r + s + r s, and r + 2 s is charged: r below 1 is assumed.
    """
    decays = products(array_namespace(z).exp(z))
    return weighted(mixed(z, lambda: differences(z), lambda: decays, lambda: decays), x, state)


def weighted(w: Any, x: Any, state: Any) -> Any:
    """h_k = sum_j w_kj x_j, [b, d, n, t], in any order. w[b, d, n, t, j]; x with the state before, or 0."""
    xp = array_namespace(w)
    before = xp.zeros((*x.shape[:-1], 1), dtype=x.dtype) if state is None else xp.expand_dims(state, axis=-1)
    entered = xp.concat([before, x], axis=-1)
    return xp.sum(w * xp.expand_dims(entered, axis=-2), axis=-1)


def products(a: Any) -> Any:
    """w[b, d, n, t, j], the product of the decays of the positions j to k: 1 where there are none, 0 if j > k + 1."""
    return either(a, lambda: _from_the_first(a), lambda: _from_the_last(a))


def _from_the_first(a: Any) -> Any:
    xp, t = array_namespace(a), a.shape[-1]
    one = xp.ones_like(a[..., :1]) if t else a
    row, rows = one, []
    for k in range(t):
        row = xp.concat([row * a[..., k : k + 1], one], axis=-1)
        rows.append(_padded(row, 0, t - 1 - k))
    return xp.stack(rows, axis=-2) if rows else xp.zeros((*a.shape, 1), dtype=a.dtype)


def _from_the_last(a: Any) -> Any:
    xp, t = array_namespace(a), a.shape[-1]
    if not t:
        return xp.zeros((*a.shape, 1), dtype=a.dtype)
    one = xp.ones_like(a[..., :1])
    column, columns = one, [_padded(one, t - 1, 0)]
    for j in reversed(range(t)):
        column = a[..., j : j + 1] * column
        if j:
            column = xp.concat([one, column], axis=-1)
        columns.append(_padded(column, max(j - 1, 0), 0))
    return xp.stack(columns[::-1], axis=-1)


def _padded(x: Any, before: int, after: int) -> Any:
    """Zeros before and after x along its last axis."""
    xp = array_namespace(x)
    ends = [xp.zeros((*x.shape[:-1], n), dtype=x.dtype) for n in (before, after)]
    return xp.concat([ends[0], x, ends[1]], axis=-1)


def differences(z: Any) -> Any:
    """The same decays as exponentials of differences of sums of z. That of no position is 1, as a sum less itself is 0;
    but both are differentiated, and what belongs to them cancels with a rounding."""
    xp, t = array_namespace(z), z.shape[-1]
    k, j = xp.arange(t)[:, None], xp.arange(t + 1)[None, :]
    terms = xp.expand_dims(z, axis=-2)
    to = xp.sum(xp.where(xp.arange(t)[None, :] <= k, terms, xp.zeros_like(terms)), axis=-1)
    before = _padded(to, 1, 0)
    exponent = to[..., :, None] - before[..., None, :]
    zero = xp.zeros_like(exponent)
    exponent = xp.where(j == k + 1, exactly(exponent, zero), xp.where(j <= k, exponent, zero))
    decay = xp.exp(exponent)
    return xp.where(j <= k + 1, decay, xp.zeros_like(decay))


# Parts of the formula ---------------------------------------------------------------------------------------------


def exponents_and_inputs(u: Any, delta: Any, A: Any, B: Any) -> tuple[Any, Any]:
    """z = delta A and x = delta B u, [b, d, n, t]; x is a product in any order."""
    step, value, column = delta[:, :, None, :], u[:, :, None, :], B[:, None, :, :]
    return step * A[None, :, :, None], _product(step, value, column)


def _product(a: Any, b: Any, c: Any) -> Any:
    """In any order: what underflows in one is multiplied by the rest."""
    return either(a, lambda: (a * b) * c, lambda: (a * c) * b, lambda: a * (c * b))


def read(h: Any, C: Any) -> Any:
    """<C_k, h_k>, [b, d, t], of h[b, d, n, t] and C[b, n, t]."""
    xp = array_namespace(h)
    rows = xp.permute_dims(h, (0, 3, 1, 2))
    columns = xp.permute_dims(C, (0, 2, 1))[..., None]
    return xp.permute_dims((rows @ columns)[..., 0], (0, 2, 1))


def last(h: Any, state: Any) -> Any:
    """The state after the last position; that before the first where there is none."""
    xp = array_namespace(h)
    if h.shape[-1]:
        return h[..., -1]
    return xp.zeros(h.shape[:-1], dtype=h.dtype) if state is None else state


def check(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, state: Any) -> None:
    """Raises: ValueError, as `selective_scan`."""
    if len(u.shape) != 3 or len(A.shape) != 2:
        raise ValueError("u and delta must have the axes [b, d, t], A [d, n], B and C [b, n, t]")
    (b, d, t), n = u.shape, A.shape[1]
    wanted = {"delta": (b, d, t), "A": (d, n), "B": (b, n, t), "C": (b, n, t), "D": (d,), "state": (b, d, n)}
    given = {"delta": delta, "A": A, "B": B, "C": C, "D": D, "state": state}
    for name, x in given.items():
        if x is not None and tuple(x.shape) != wanted[name]:
            raise ValueError(f"{name} must have the shape {list(wanted[name])}, not {list(x.shape)}")


def _scanned(scan: Scan, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, state: Any) -> tuple[Any, Any]:
    check(u, delta, A, B, C, D, state)
    h = scan(*exponents_and_inputs(u, delta, A, B), state)
    y = read(h, C)
    return y if D is None else y + D[:, None] * u, last(h, state)


# Backward, as kernels write it. -------------------------------------------------------------------------------------


def backward(
    cotangents: tuple[Any, ...], u: Any, delta: Any, A: Any, B: Any, C: Any, *, D: Any = None, state: Any = None
) -> tuple[Any, ...]:
    """The gradients of u, delta, A, B, C, and of D and the state where they are given.

        G_k = C_k dy_k + exp(z_{k+1}) G_{k+1}, with the cotangent of the last state added to the last,
        dz_k = G_k exp(z_k) h_{k-1},   ddelta = sum_n (dz A + G B u),   dA = sum_bt dz delta,   dB = sum_d G delta u,
        du = sum_n G delta B + D dy,   dC = sum_d h dy,   dD = sum_bt u dy,   dstate = exp(z_0) G_0

    Both recurrences in any order, each sum too.
    """
    xp = array_namespace(u)
    check(u, delta, A, B, C, D, state)
    dy, later = cotangents
    z, x = exponents_and_inputs(u, delta, A, B)
    a = xp.exp(z)
    w = products(a)
    h = weighted(w, x, state)
    step, value, column = delta[:, :, None, :], u[:, :, None, :], B[:, None, :, :]
    given = C[:, None, :, :] * dy[:, :, None, :]
    if u.shape[-1]:
        # The cotangent of the last state enters at the last position, as one more term of the sums.
        entered = xp.concat([w, w[..., -1:, :]], axis=-2)
        g = xp.sum(entered * xp.concat([given, later[..., None]], axis=-1)[..., None], axis=-2)  # [b, d, n, j]
    else:
        g = xp.concat([later[..., None], given], axis=-1)
    of_state, g = g[..., 0], g[..., 1:]
    before = xp.zeros_like(h[..., :1]) if state is None else state[..., None]
    dz = g * a * xp.concat([before, h[..., :-1]], axis=-1) if u.shape[-1] else g
    by_value, by_column, by_step = _product(g, step, column), _product(g, step, value), _product(g, value, column)
    du, ddelta = by_value, xp.concat([dz * A[None, :, :, None], by_step], axis=-2)
    if D is not None:
        du = xp.concat([du, (D[:, None] * dy)[:, :, None, :]], axis=-2)
    out = [
        xp.sum(du, axis=-2),
        xp.sum(ddelta, axis=-2),
        _over_positions(dz * step),
        xp.sum(by_column, axis=1),
        xp.sum(h * dy[:, :, None, :], axis=1),
    ]
    if D is not None:
        out.append(_over_positions(u * dy))
    return (*out, of_state) if state is not None else tuple(out)


def _over_positions(x: Any) -> Any:
    """The sum over b and t of x[b, ..., t], in any order."""
    xp = array_namespace(x)
    moved = xp.moveaxis(x, 0, -1)
    return xp.sum(xp.reshape(moved, (*moved.shape[:-2], moved.shape[-2] * moved.shape[-1])), axis=-1)
