"""Performer: softmax attention estimated by random features, whose inner products have exp(<x, y>) as their mean.

    w_i: row i of the projection, h = |x|^2 / 2
    positive        phi_i(x) = r^(-1/2) exp(<w_i, x> - h)
    hyperbolic      phi(x)   = (2 r)^(-1/2) exp(-h) (exp(<w_i, x>), exp(-<w_i, x>))
    trigonometric   phi(x)   = r^(-1/2) exp(h) (cos <w_i, x>, sin <w_i, x>)

    o_i = sum_j <phi(c q_i), phi(c k_j)> v_j / sum_j <phi(c q_i), phi(c k_j)>,        c = d^(-1/4)

over all keys j, or over j <= i where causal. The factor of the features cancels, and so does any number that is
subtracted from the exponents of one query, or of all keys.

With eps > 0 each feature of attention is exp(.) + eps, and what was subtracted before is seen: a `stabilizer`. "none";
"head": of a query the greatest <w_i, c q> over its features, of the keys the greatest over features and positions of a
head; "batch": for the keys over heads and the batch as well. For hyperbolic features it is the greatest |<w_i, x>|, for
trigonometric ones the greatest h, over positions alone. No gradient passes through what is subtracted.

A sum of weights is never 0 without eps, unless there is no key: then the output is 0. (Those of positive numbers are
positive; and by the theorem of Lindemann and Weierstrass no sum of exponentials of algebraic numbers with positive
coefficients is 0, of which a sum of exp(h) cos(.) is one.)

Axes: b batch, h head, t query position, s key position, d channel, e value channel, r random feature.

Source: K. Choromanski et al., Rethinking Attention with Performers, arXiv:2009.14794v4, lemma 1, equations 5 and 6.
Stabilizers: google-research, performer/fast_attention/jax/fast_attention.py ("head"), from which others are ported.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from array_api_compat import array_namespace

from assay.reference import linear_attention as linear
from assay.reference.arithmetic.adjoint import Adjoint
from assay.reference.arithmetic.array import either, exactly, scaled, store
from assay.reference.projection import KINDS


STABILIZERS = ("none", "head", "batch")


def random_features(x: Any, projection: Any, *, kind: str = "positive") -> Any:
    """phi[..., t, r], or [..., t, 2 r] for two-sided kinds, of x[..., t, d] and projection[r, d].

    Error: none in exact arithmetic. Raises: ValueError for an unknown kind, and without any row.

    >>> import numpy as np
    >>> random_features(np.zeros((1, 2)), np.ones((4, 2))).tolist()
    [[0.5, 0.5, 0.5, 0.5]]
    """
    exponent, factor, _ = _parts(x, projection, kind)
    xp = array_namespace(x)
    phi = xp.exp(exponent)
    return (phi if factor is None else phi * factor) / _root(xp, x, projection, kind)


def performer_attention(
    q: Any,
    k: Any,
    v: Any,
    projection: Any,
    *,
    kind: str = "positive",
    causal: bool = False,
    eps: Any = 0,
    stabilizer: str = "none",
) -> Any:
    """out[b, h, t, e] of q[b, h, t, d], k[b, h, s, d], v[b, h, s, e], projection[r, d].

    `causal` needs as many keys as queries.

    Error: none in exact arithmetic. Raises: ValueError for an unknown kind or stabilizer, without any row, and t != s
    where causal.

    >>> import numpy as np
    >>> q, k, v = np.zeros((1, 1, 1, 2)), np.ones((1, 1, 2, 2)), np.array([[[[1.0], [3.0]]]])
    >>> performer_attention(q, k, v, np.ones((1, 2))).tolist()
    [[[[2.0]]]]
    """
    a = weighing(q, projection, kind, eps, stabilizer, queries=True)
    b = weighing(k, projection, kind, eps, stabilizer)
    return _averaged(linear.quadratic, a, b, v, causal)


# Forms: the same function, equal in exact arithmetic, with the roundings of a way to compute it. ----------------------


def exponent(x: Any, projection: Any, *, kind: str = "positive") -> Any:
    """One exponential of the difference. The root of the number of features divides, or its inverse multiplies, or
    half its logarithm is in the exponent."""
    xp = array_namespace(x)
    power, factor, _ = _parts(x, projection, kind)
    root = _root(xp, x, projection, kind)

    def grown(y: Any) -> Any:
        return xp.exp(y) if factor is None else xp.exp(y) * factor

    return either(
        x,
        lambda: grown(power) / root,
        lambda: grown(power) * (1 / root),
        lambda: grown(power - xp.log(root * root) / 2),
    )


def factors(x: Any, projection: Any, *, kind: str = "positive") -> Any:
    """exp(<w, x>) and exp(-h) by themselves, then their product."""
    xp = array_namespace(x)
    phase, half = _phase(x, projection), _half(x)
    root = _root(xp, x, projection, kind)
    if kind == "trigonometric":
        phi = xp.exp(half) * xp.concat([xp.cos(phase), xp.sin(phase)], axis=-1)
    else:
        sides = phase if kind == "positive" else xp.concat([phase, -phase], axis=-1)
        phi = xp.exp(-half) * xp.exp(sides)
    return either(x, lambda: phi / root, lambda: phi * (1 / root))


def plain(q: Any, k: Any, v: Any, projection: Any, *, causal: bool = False, **rest: Any) -> Any:
    """Features as the definition has them, with or without their factor, and sums in chunks of whatever size."""
    a, b = _features(q, k, projection, **rest)
    return _averaged(linear.chunked, a, b, v, causal)


def shifted(q: Any, k: Any, v: Any, projection: Any, *, causal: bool = False, **rest: Any) -> Any:
    """Something is subtracted from exponents before the exponential, if eps is 0; otherwise as `plain`.

    From those of a query: its greatest <w_i, c q>, with or without h. From those of the keys: the greatest of all; or
    the greatest so far, with sums multiplied by exp(before - now) where it grows.
    """
    a, b = _shifted_features(q, k, projection, **rest)
    return _averaged(linear.chunked, a, b, v, causal)


# Backward, as kernels write it. -------------------------------------------------------------------------------------


def backward(
    cotangents: tuple[Any, ...], q: Any, k: Any, v: Any, projection: Any, *, causal: bool = False, **rest: Any
) -> tuple[Any, ...]:
    """The gradients of q, k, v and the projection, through sums as in linear attention, with features of their own.

    The projection is summed over queries and keys, batches and heads.
    """
    tape = Adjoint(q.xp)
    x, y, w = (tape.variable(node) for node in (q, k, projection))
    phi, psi = _shifted_features(x, y, w, **rest)
    da, db, dv, _ = linear.through_sums(cotangents[0], phi.value, psi.value, v, causal)
    (dq, dw), (dk, also) = tape.gradients([(phi, da)], [x, w]), tape.gradients([(psi, db)], [y, w])
    return dq, dk, dv, dw + also


# Parts of the formula ---------------------------------------------------------------------------------------------


def _phase(x: Any, projection: Any) -> Any:
    """<w_i, x>, [..., t, r]."""
    return x @ array_namespace(x).matrix_transpose(projection)


def _half(x: Any) -> Any:
    """|x|^2 / 2, [..., t, 1]."""
    return array_namespace(x).sum(x * x, axis=-1, keepdims=True) / 2


def _root(xp: Any, x: Any, projection: Any, kind: str) -> Any:
    """The square root of the number of features, of which cosine and sine make one."""
    count = projection.shape[0] * (2 if kind == "hyperbolic" else 1)
    return xp.sqrt(xp.asarray(count, dtype=x.dtype))


def _parts(x: Any, projection: Any, kind: str) -> tuple[Any, Any, Any]:
    """Features are exp(exponent) * factor (None: 1). Last comes what a stabilizer is the greatest of.

    Raises: ValueError for an unknown kind, and a projection without rows.
    """
    if not projection.shape[0]:
        raise ValueError("there are no features without a row of the projection")
    return _divided(_phase(x, projection), _half(x), kind)


def _divided(phase: Any, half: Any, kind: str) -> tuple[Any, Any, Any]:
    xp = array_namespace(phase)
    if kind == "positive":
        return phase - half, None, phase
    if kind == "hyperbolic":
        return xp.concat([phase - half, -phase - half], axis=-1), None, xp.concat([phase, -phase], axis=-1)
    if kind == "trigonometric":
        return half, xp.concat([xp.cos(phase), xp.sin(phase)], axis=-1), half
    raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")


def scale_of(x: Any) -> Any:
    """d^(-1/4)"""
    xp = array_namespace(x)
    return 1 / xp.sqrt(xp.sqrt(xp.asarray(x.shape[-1], dtype=x.dtype)))


def weighing(
    x: Any, projection: Any, kind: str, eps: Any, stabilizer: str, queries: bool = False, scale: Any = None
) -> Any:
    """The features of c x but for their factor. Raises: ValueError for an unknown kind or stabilizer."""
    if stabilizer not in STABILIZERS:
        raise ValueError(f"stabilizer must be one of {', '.join(STABILIZERS)}, not {stabilizer!r}")
    c = scale_of(x) if scale is None else scale
    return _grown(*_parts(c * x, projection, kind), eps, stabilizer, queries)


def _grown(exponent: Any, factor: Any, base: Any, eps: Any, stabilizer: str, queries: bool) -> Any:
    xp = array_namespace(exponent)
    if stabilizer != "none":
        exponent = exponent - _top(base, "row" if queries else stabilizer)
    phi = xp.exp(exponent)
    return (phi if factor is None else phi * factor) + eps


def _top(x: Any, of: str) -> Any:
    """The greatest of a row of features, of all rows of a head, or of everything; axes are kept."""
    xp = array_namespace(x)
    for axis in {"row": (-1,), "head": (-1, -2), "batch": (-1, -2, -3, -4)}[of]:
        x = xp.max(x, axis=axis, keepdims=True)
    return x


def _averaged(sums: linear.Sums, a: Any, b: Any, v: Any, causal: bool) -> Any:
    """Raises: ValueError where causal, and there are not as many keys as queries."""
    if causal and a.shape[-2] != b.shape[-2]:
        raise ValueError(f"causal attention needs as many keys as queries, not {b.shape[-2]} and {a.shape[-2]}")
    return linear.normalised(sums, a, b, v, "past" if causal else "all", None, 0, "plus")


# How kernels compute these parts ----------------------------------------------------------------------------------


def _parts_either(x: Any, projection: Any, kind: str) -> tuple[Any, Any, Any]:
    """The scale goes to x, or to what is computed of it."""
    c = scale_of(x)
    y = c * x
    phase = either(x, lambda: _phase(y, projection), lambda: c * _phase(x, projection))
    half = either(x, lambda: _half(y), lambda: c * c * _half(x))
    return _divided(phase, half, kind)


def _features(
    q: Any, k: Any, projection: Any, *, kind: str = "positive", eps: Any = 0, stabilizer: str = "none"
) -> tuple[Any, Any]:
    """The features of queries and keys. A kernel subtracts the maximum that it found, off by the error of that."""
    out = []
    for x, queries in ((q, True), (k, False)):
        exponent, factor, base = _parts_either(x, projection, kind)
        if stabilizer != "none" and eps != 0:
            found = _greatest(base, "row" if queries else stabilizer)
            # Nothing, but for its error; and no gradient passes.
            exponent = exponent + exactly(array_namespace(x).zeros_like(found), found - found)
        out.append(store(scaled(_grown(exponent, factor, base, eps, stabilizer, queries)), "weights"))
    return out[0], out[1]


def _shifted_features(
    q: Any, k: Any, projection: Any, *, kind: str = "positive", eps: Any = 0, stabilizer: str = "none"
) -> tuple[Any, Any]:
    if eps != 0:
        return _features(q, k, projection, kind=kind, eps=eps, stabilizer=stabilizer)
    xp = array_namespace(q)
    (eq, fq, bq), (ek, fk, bk) = (_parts_either(x, projection, kind) for x in (q, k))
    of_queries = [lambda: xp.exp(eq - _top(eq, "row")), lambda: xp.exp(eq - _top(bq, "row"))]
    if kind != "trigonometric":
        of_queries.append(lambda: xp.exp(bq - _top(bq, "row")))
    of_keys = [lambda: xp.exp(ek - _top(ek, "head")), lambda: _rescaled(ek)]
    of_keys += [partial(_exp_below, ek, bk, of) for of in STABILIZERS[1:]]
    a, b = either(q, *of_queries), either(k, *of_keys)
    a, b = (x if f is None else x * f for x, f in ((a, fq), (b, fk)))
    return store(scaled(a), "weights"), store(scaled(b), "weights")


def _exp_below(exponent: Any, base: Any, of: str) -> Any:
    return array_namespace(exponent).exp(exponent - _top(base, of))


def _greatest(x: Any, of: str) -> Any:
    """As `_top`, with the error of what was found."""
    xp = array_namespace(x)
    for axis in {"row": (-1,), "head": (-1, -2), "batch": (-1, -2, -3, -4)}[of]:
        rows = xp.moveaxis(x, axis, 0)
        greatest = rows[0]
        for i in range(1, rows.shape[0]):
            greatest = xp.maximum(greatest, rows[i])
        x = xp.expand_dims(greatest, axis=x.ndim + axis)
    return x


def _rescaled(exponent: Any) -> Any:
    """exp(e_j - M_j) prod over i > j of exp(M_(i-1) - M_i), M_j the greatest exponent of all features up to key j.

    Fewer and longer steps, as kernels with chunks of keys take, cost no more: their maxima are among these.
    """
    xp = array_namespace(exponent)
    s = exponent.shape[-2]
    tops = [_top(exponent[..., :1, :], "row")]
    for j in range(1, s):
        tops.append(xp.maximum(tops[-1], _top(exponent[..., j : j + 1, :], "row")))
    product = xp.ones_like(tops[-1])
    out = []
    for j in range(s - 1, -1, -1):
        # A chunk may have a greater maximum than M_j: then the first exponential takes a part of what the others do.
        ahead = xp.minimum(tops[j] + 1, tops[-1])
        out.append(xp.exp(exponent[..., j : j + 1, :] - ahead) * (xp.exp(ahead - tops[j]) * product))
        if j:
            product = product * xp.exp(tops[j - 1] - tops[j])
    return xp.concat(out[::-1], axis=-2)
