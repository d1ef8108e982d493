"""Causal convolution by fast transforms, over every arithmetic.

Rounded, it is what kernels do: transforms of radix two, of both operands with zeros behind them, a product, and one
transform back. Over running error an elementwise bound would be meaningless, for a transform mixes all positions: each
element is charged the largest Euclidean norm that the error of a row may have (`normwise`). Over balls it is the sum
itself. Backward, a cotangent is convolved from the last position to the first.

Underflow: a step of a transform loses at most 4 times what a product may lose, and doubles what was lost before, so
that a transform of n positions loses at most 8 n times that in each number; the product of two transforms hands on

    p  =  2 (||u||_1 + ||k||_1 + 8 n l) 8 n l + 4 l,     l what a product loses,

and the transform back, divided by n before or after, at most 4 p + 20 n l.

Assumed of a kernel: its roots of unity are exact to within 2 u; its transforms are no less exact than those of radix
two whose length is the first power of two that is not below twice the number of positions; one of a length that is no
power of two, no less exact than one of the next but one. Summed over rows that share
an operand, before or after the last transform, what is summed is rounded once more for each row.

Axes: t position.

Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 24.1.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from assay.reference.arithmetic.adjoint import Adjoint, Node, _unbroadcast
from assay.reference.arithmetic.array import Arithmetic, Array, narrow, widen
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.formatted import EXTENDED, meet
from assay.reference.arithmetic.normwise import fft_convolve, relative
from assay.reference.arithmetic.objects import Ball


def convolve(u: Any, k: Any, rows: int = 1) -> Any:
    """sum_j k_j u_{i-j}, [..., t], of u[..., t] and k[..., t], whose other axes are broadcast. `rows`: how many are
    summed afterwards."""
    if not isinstance(u, Array):
        return by_transform(u, k)
    return _convolve(k.xp if isinstance(k.xp, Adjoint) else u.xp, u, k, rows)


def padded(t: int) -> int:
    """The first power of two that is not below 2 t."""
    n = 1
    while n < 2 * t:
        n *= 2
    return n


def toeplitz(k: Any) -> Any:
    """T[..., t, t] with T_ij = k_{i-j}, 0 above the diagonal."""
    xp, t = array_namespace(k), k.shape[-1]
    line = xp.concat([xp.flip(k, axis=-1), xp.zeros(k.shape, dtype=k.dtype)], axis=-1)
    return xp.stack([line[..., t - 1 - i : 2 * t - 1 - i] for i in range(t)], axis=-2) if t else line[..., None]


def direct(u: Any, k: Any) -> Any:
    """The sums themselves, each in any order."""
    return (toeplitz(k) @ u[..., None])[..., 0] if u.shape[-1] else u + k


def by_transform(u: Any, k: Any) -> Any:
    """Three transforms of radix two."""
    xp, t = array_namespace(u, k), u.shape[-1]
    if not t:
        return u + k
    n = padded(t)
    one, two = (transform(xp.concat([x, xp.zeros((*x.shape[:-1], n - t), dtype=x.dtype)], axis=-1)) for x in (u, k))
    (a, b), (c, d) = one, two
    back, _ = transform(a * c - b * d, -(a * d + b * c))
    return back[..., :t] / n


def transform(a: Any, b: Any = None) -> tuple[Any, Any]:
    """sum_i x_i exp(-2 pi i j / n), real and imaginary part, for x = a + b i, [..., n], n a power of two."""
    xp, n = array_namespace(a), a.shape[-1]
    a = a[..., None, :]
    b = xp.zeros_like(a) if b is None else b[..., None, :]
    while a.shape[-2] < n:
        done, half = a.shape[-2], a.shape[-1] // 2
        angle = widen(xp.pi * xp.ones((done, 1)), "quad") * xp.arange(done)[:, None] / done
        c, s = narrow(xp.cos(angle)), narrow(xp.sin(angle))
        (p, q), (v, w) = ((x[..., :half], x[..., half:]) for x in (a, b))
        turned, other = c * q + s * w, c * w - s * q
        a = xp.concat([p + turned, p - turned], axis=-2)
        b = xp.concat([v + other, v - other], axis=-2)
    return a[..., 0], b[..., 0]


def fourier(x: Any) -> Any:
    """sum_i x_i exp(-2 pi i j / n) of x[2, n], real and imaginary parts, likewise, n any length."""
    return _fourier(x.xp, x) if isinstance(x, Array) else _summed_up(x)


def roots(xp: Any, n: int) -> tuple[Any, Any]:
    """cos and sin of 2 pi j / n, [n], rounded once."""
    angle = widen(2 * xp.pi * xp.ones((n,)), "quad") * xp.arange(n) / n
    return narrow(xp.cos(angle)), narrow(xp.sin(angle))


def _summed_up(x: Any) -> Any:
    """By radix two, or of another length by the sums themselves."""
    xp, n = array_namespace(x), x.shape[-1]
    if n & (n - 1) == 0:
        return xp.stack(transform(x[0, ...], x[1, ...]), axis=0) if n else x
    turns = [[(j * k) % n for k in range(n)] for j in range(n)]
    c, s = (xp.stack([xp.take(part, row, axis=0) for row in turns], axis=0) for part in roots(xp, n))
    both = xp.concat([xp.concat([c, s], axis=1), xp.concat([-s, c], axis=1)], axis=0)
    return xp.reshape(both @ xp.reshape(x, (2 * n, 1)), (2, n))


@singledispatch
def _fourier(xp: Arithmetic, x: Array) -> Array:
    return _summed_up(x)


@_fourier.register
def _(xp: Adjoint, x: Array) -> Node:
    node = xp._node(x)

    def conjugate(g: Array) -> Array:
        return g.xp.concat([g[:1], -g[1:]], axis=0)

    return xp.record(
        fourier(node.value), (node, lambda g: conjugate(fourier(conjugate(g)))), step=f"matmul {max(1, x.shape[1])}"
    )


@_fourier.register
def _(xp: Bounded, x: Array) -> Array:
    value, error = xp.certain(x).parts
    n = value.shape[-1]
    if not n:
        return x
    known = np.where(np.isfinite(value), value, 0)
    spectrum = np.fft.fft(known[0] + 1j * known[1])
    size = np.sqrt(((np.abs(value) + error) ** 2).sum())
    carried = np.minimum(error.sum(), np.sqrt(n * (error * error).sum()))
    longest = padded(n) // 2 if n & (n - 1) == 0 else padded(n)
    loss = EXTENDED(xp.format.normal) if xp.precision.flushes else xp.loss
    charge = relative(longest, xp.precision.at(xp.format)) * np.sqrt(EXTENDED(n)) * size + 8 * longest * loss
    charge = EXTENDED(0) if n == 1 or not size else charge
    out = np.stack([spectrum.real, spectrum.imag])
    return xp.limited(out, np.full(out.shape, carried + charge), np.full(out.shape, np.abs(value).sum() + carried))


@singledispatch
def _convolve(xp: Arithmetic, u: Array, k: Array, rows: int) -> Array:
    return by_transform(u, k)


@_convolve.register
def _(xp: Ball, u: Array, k: Array, rows: int) -> Array:
    return direct(u, k)


@_convolve.register
def _(xp: Adjoint, u: Array, k: Array, rows: int) -> Node:
    left, right = xp._node(u), xp._node(k)
    out = convolve(left.value, right.value, rows)

    def back(other: Array, shape: tuple[int, ...]) -> Any:
        shared = max(1, out.size // max(1, int(np.prod(shape))))

        def rule(g: Array) -> Array:
            return g.xp.flip(convolve(g.xp.flip(g, axis=-1), other, shared), axis=-1)

        return _unbroadcast(rule, shape)

    rules = (left, back(right.value, left.shape)), (right, back(left.value, right.shape))
    return xp.record(out, *rules, step=f"matmul {max(1, u.shape[-1])}")


@_convolve.register
def _(xp: Bounded, u: Array, k: Array, rows: int) -> Array:
    if not u.shape[-1]:
        return u + k
    u, k = meet(xp.certain(u), xp.certain(k))
    (a, ea), (b, eb) = u.parts, k.parts
    value, carried = _summed(a, b), _summed(np.abs(a), eb) + _summed(ea, np.abs(b)) + _summed(ea, eb)
    x, y = np.abs(a) + ea, np.abs(b) + eb
    n, precision = padded(x.shape[-1]), xp.precision.at(xp.format)
    behind = n - x.shape[-1]
    one, two, e1, e2 = (np.concatenate([v, np.zeros((*v.shape[:-1], behind))], axis=-1) for v in (a, b, ea, eb))
    x1, y1 = x.sum(axis=-1), y.sum(axis=-1)
    loss = EXTENDED(xp.format.normal) if xp.precision.flushes else xp.loss
    product = 2 * (x1 + y1 + 8 * n * loss) * 8 * n * loss + 4 * loss
    charge = fft_convolve(one, two, precision, e1, e2, rows) + 4 * product + 20 * n * loss
    # A transform of nothing is nothing.
    charge = np.where((x1 == 0) | (y1 == 0), 0, charge)[..., None]
    reach = np.broadcast_to((n * (x1 * y1 + charge[..., 0]) + x1 + y1)[..., None], value.shape)
    return xp.limited(value, carried + charge, reach)


def _summed(a: Any, b: Any) -> Any:
    t = a.shape[-1]
    out = np.zeros(np.broadcast_shapes(a.shape, b.shape), EXTENDED)
    for lag in range(t):
        out[..., lag:] += a[..., : t - lag] * b[..., lag, None]
    return out
