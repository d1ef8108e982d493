"""Linear attention: weights that are inner products of features, so that keys and values can be summed once.

    w_ij = <phi(q_i), phi(k_j)>
    o_i  = sum_j w_ij v_j / sum_j w_ij            over all keys j, or over j <= i where causal

The sums over j are phi(q_i) S_i with a state S_i = sum_j phi(k_j) (v_j, 1), which a causal sequence hands over to its
continuation: the last column is the sum of the features alone, and is left out where nothing is normalised.

Axes: b batch, h head, t query position, s key position, d channel, e value channel, r feature (d, or d + 1 for "1+x"),
n column of the state (e + 1, or e).

Feature maps: "elu+1" (x + 1 above 0, exp(x) below), "relu", "identity", "exp"; "1+x", the features (1, x / |x|), whose
weights 1 + cos(q_i, k_j) are those of exp to first order; "softmax", over the channels of a query and over the
positions of a channel of the keys, whose weights add up to 1 as they are: nothing is divided, and as every key enters
every feature, it is neither causal nor continued from a state. The direction of a zero vector is 0, without gradient.

A denominator that is zero gives 0, and no gradient passes through it.

Source: A. Katharopoulos et al., Transformers are RNNs, arXiv:2006.16236, equations 4-12. "softmax": Z. Shen et al.,
Efficient Attention, arXiv:1812.01243, equation 4. "1+x": R. Li et al., Linear Attention Mechanism, arXiv:2007.14902,
equation 8. Chunks: S. Yang et al., Gated Linear Attention, arXiv:2312.06635, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace

from assay.reference.arithmetic.adjoint import Adjoint
from assay.reference.arithmetic.array import either, mixed, scaled, store, vanishes


FEATURE_MAPS = ("elu+1", "relu", "identity", "exp", "1+x", "softmax")
DENOMINATORS = ("plus", "clamp")
ORDERS = ("right", "left")

Sums = Callable[..., Any]
"""(a[.., t, r], b[.., s, r], c[.., s, n], over, state[.., r, n] or None) -> sum_j <a_i, b_j> c_j + a_i state."""


def unnormalized_attention(q: Any, k: Any, v: Any, *, order: str = "right") -> Any:
    """out[b, h, t, e] = q (k^T v), or (q k^T) v in the `order` "left", of q[b, h, t, d], k[b, h, s, d], v[b, h, s, e].

    The two are the same function: in exact arithmetic a product of matrices is associative.

    Error: none in exact arithmetic. Raises: ValueError for an unknown order.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    return (left if order == "left" else right)(q, k, v)


def linear_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    feature_map: str = "elu+1",
    causal: bool = False,
    normalize: bool = True,
    eps: Any = 0,
    denominator: str = "plus",
    state: Any = None,
    return_state: bool = False,
) -> Any:
    """out[b, h, t, e] of q[b, h, t, d], k[b, h, s, d], v[b, h, s, e]; with `return_state` also state[b, h, r, n].

    `state`: that of the keys and values before, which every query sees. `eps` is added to the `denominator` ("plus")
    or is the least that it may be ("clamp"). `causal` needs as many keys as queries.

    Error: none in exact arithmetic. Raises: ValueError for an unknown feature map or denominator, t != s where causal,
    the map "softmax" where causal or with a state, and a state of another shape.

    >>> import numpy as np
    >>> q, k, v = np.zeros((1, 1, 1, 2)), np.ones((1, 1, 2, 2)), np.array([[[[1.0], [3.0]]]])
    >>> linear_attention(q, k, v).tolist()
    [[[[2.0]]]]
    """
    return _attended(quadratic, q, k, v, feature_map, causal, normalize, eps, denominator, state, return_state)


# Forms: the same function, equal in exact arithmetic, with the roundings of a way to compute it. ----------------------
# They differ in how the sums are computed, and in the feature maps "elu+1" and "exp".


def right(q: Any, k: Any, v: Any, *, order: str = "right") -> Any:
    """Keys and values are summed first."""
    return recurrent(q, k, v, "all", None)


def left(q: Any, k: Any, v: Any, *, order: str = "right") -> Any:
    """Weights first."""
    return quadratic(q, k, v, "all", None)


def form(sums: Sums, phi: Callable[[Any], Any] | None = None, *, shares: bool = False) -> Callable[..., Any]:
    """The text of linear attention whose sums are computed in one way, and "elu+1" as `phi`.

    `shares`: of "exp" the features of a query are divided by their sum, a softmax over channels. The quotient loses it
    again, unless there is an eps. What each feature is rounded by then enters the gradients of all, as that of the sum.
    """

    def text(
        q: Any,
        k: Any,
        v: Any,
        *,
        feature_map: str = "elu+1",
        causal: bool = False,
        normalize: bool = True,
        eps: Any = 0,
        denominator: str = "plus",
        state: Any = None,
        return_state: bool = False,
    ) -> Any:
        keywords = (feature_map, causal, normalize, eps, denominator, state, return_state)
        return _attended(sums, q, k, v, *keywords, phi, shares)

    text.__doc__ = sums.__doc__
    return text


def quadratic(a: Any, b: Any, c: Any, over: str, state: Any) -> Any:
    """Weights of every pair first."""
    xp = array_namespace(a)
    w = a @ xp.matrix_transpose(b)
    seen = _seen(xp, over, *w.shape[-2:])
    if seen is not None:
        w = xp.where(seen, w, xp.zeros_like(w))
    out = store(w, "weights") @ c
    return out if state is None else out + a @ state


def recurrent(a: Any, b: Any, c: Any, over: str, state: Any) -> Any:
    """The state at every position first: sums of b_j c_j and of the state before, in any order."""
    xp = array_namespace(a)
    t = a.shape[-2]
    if over == "all":
        return a @ final(b, c, state)
    seen = _seen(xp, over, t, t)
    # For each feature a matrix of what every position has seen of it, [.., r, t, s], times c[.., 1, s, n].
    columns = xp.matrix_transpose(b)[..., :, None, :]
    rows = xp.where(seen, columns, xp.zeros_like(columns))
    values = xp.expand_dims(c, axis=-3)
    if state is not None:
        rows, values = _with_state(rows, values, state)
    states = store(rows @ values, "state")
    return (xp.expand_dims(a, axis=-2) @ xp.moveaxis(states, -3, -2))[..., 0, :]


def chunked(a: Any, b: Any, c: Any, over: str, state: Any) -> Any:
    """Weights within a chunk of positions, the state for what came before it.

    The bound holds for every size of chunks, and for chunks of several sizes. Each pair of positions is in the weights
    or in the state, and what the one or the other charges for some of the pairs is at most what it charges for all. The
    sum of the two parts is one rounding, of a number that neither text has unless it has as many additions: so the
    charges of both texts together are enough.
    """
    return mixed(a, lambda: quadratic(a, b, c, over, state), lambda: recurrent(a, b, c, over, state))


def final(b: Any, c: Any, state: Any) -> Any:
    """sum_j b_j c_j and the state before, [.., r, n], in any order."""
    xp = array_namespace(b)
    if state is None:
        return xp.matrix_transpose(b) @ c
    rows, values = _with_state(xp.matrix_transpose(b)[..., :, None, :], xp.expand_dims(c, axis=-3), state)
    return (rows @ values)[..., 0, :]


def _with_state(rows: Any, values: Any, state: Any) -> tuple[Any, Any]:
    """rows[.., r, t, s] and values[.., 1, s, n] with the state as one more term of the sum, the first."""
    xp = array_namespace(rows)
    r, s = rows.shape[-3], rows.shape[-1]
    lead, n = rows.shape[:-3], values.shape[-1]
    before = xp.broadcast_to(xp.expand_dims(state, axis=-2), (*lead, r, 1, n))
    values = xp.concat([before, xp.broadcast_to(values, (*lead, r, s, n))], axis=-2)
    return xp.concat([xp.ones((*lead, *rows.shape[-3:-1], 1), dtype=rows.dtype), rows], axis=-1), values


def _seen(xp: Any, over: str, t: int, s: int) -> Any:
    """Over which j a sum goes, [t, s]; None for all."""
    if over == "all":
        return None
    i, j = xp.arange(t)[:, None], xp.arange(s)[None, :]
    return j <= i if over == "past" else i <= j


# Parts of the formula ---------------------------------------------------------------------------------------------


def features(q: Any, k: Any, feature_map: str, elu: Callable[[Any], Any] | None = None) -> tuple[Any, Any]:
    """phi(q)[.., t, r] and phi(k)[.., s, r]. `elu` computes "elu+1". Raises: ValueError for an unknown map."""
    if feature_map == "softmax":
        return store(_softmax(q, -1), "weights"), store(_softmax(k, -2), "weights")
    if feature_map not in _MAPS:
        raise ValueError(f"feature_map must be one of {', '.join(FEATURE_MAPS)}, not {feature_map!r}")
    phi = elu if elu is not None and feature_map == "elu+1" else _MAPS[feature_map]
    return store(phi(q), "weights"), store(phi(k), "weights")


def _elu_plus_one(x: Any) -> Any:
    """By the exponential itself: what is small keeps its digits."""
    xp = array_namespace(x)
    above, low, high = _parts(x)
    return xp.where(above, high + 1, xp.exp(low))


def elu_and_one(x: Any) -> Any:
    """elu(x), by expm1 or as exp(x) - 1, and then 1, as most write it: of exp(x) what is small against 1 is lost."""
    xp = array_namespace(x)
    above, low, high = _parts(x)
    return either(
        x,
        lambda: xp.where(above, high, xp.expm1(low)) + 1,
        lambda: xp.where(above, high, xp.exp(low) - 1) + 1,
    )


def _parts(x: Any) -> tuple[Any, Any, Any]:
    """Where x is above 0, and x below and above it, 0 elsewhere."""
    xp = array_namespace(x)
    above, zero = x > 0, xp.zeros_like(x)
    return above, xp.where(above, zero, x), xp.where(above, x, zero)


def _relu(x: Any) -> Any:
    xp = array_namespace(x)
    return xp.where(x > 0, x, xp.zeros_like(x))


def _one_and_direction(x: Any) -> Any:
    xp = array_namespace(x)
    none = vanishes(xp.sum(xp.abs(x), axis=-1, keepdims=True))
    square = xp.sum(x * x, axis=-1, keepdims=True)
    norm = xp.sqrt(xp.where(none, xp.ones_like(square), square))
    direction = either(x, lambda: x / norm, lambda: x * (1 / norm))
    return xp.concat([xp.ones_like(square), xp.where(none, xp.zeros_like(x), direction)], axis=-1)


def _softmax(x: Any, axis: int) -> Any:
    xp = array_namespace(x)
    if not x.shape[axis]:
        return x
    w = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    return w / xp.sum(w, axis=axis, keepdims=True)


_MAPS: dict[str, Callable[[Any], Any]] = {
    "elu+1": _elu_plus_one,
    "relu": _relu,
    "identity": lambda x: x,
    "exp": lambda x: array_namespace(x).exp(x),
    "1+x": _one_and_direction,
}


def with_ones(v: Any) -> Any:
    """(v, 1): the sum of the weights is summed like a value."""
    xp = array_namespace(v)
    return xp.concat([v, xp.ones_like(v[..., :1])], axis=-1)


def divisor(total: Any, eps: Any, denominator: str) -> Any:
    """The sum of the weights with eps. Raises: ValueError for an unknown denominator."""
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator must be one of {', '.join(DENOMINATORS)}, not {denominator!r}")
    if denominator == "plus":
        return total + eps
    xp = array_namespace(total)
    return xp.maximum(total, xp.asarray(eps, dtype=total.dtype))


def normalised(sums: Sums, a: Any, b: Any, v: Any, over: str, state: Any, eps: Any, denominator: str) -> Any:
    """The sums of the values, divided by those of the weights; 0 where these are 0.

    The sum divides, or its inverse multiplies.
    """
    xp = array_namespace(a)
    out, total = numerator_and_total(sums, a, b, v, over, state)
    total = divisor(total, eps, denominator)
    none = vanishes(total)
    total = xp.where(none, xp.ones_like(total), total)
    quotient = either(a, lambda: out / total, lambda: out * (1 / total))
    return xp.where(none, xp.zeros_like(quotient), quotient)


def numerator_and_total(sums: Sums, a: Any, b: Any, v: Any, over: str, state: Any) -> tuple[Any, Any]:
    """The sums of the values and of the weights.

    Some kernels divide weights before they meet the values, or the features of the query: that is one rounding more of
    each term of the first sum, and of the features it covers that of the weights.
    """
    xp, e = array_namespace(a), v.shape[-1]
    values, keys = (None, None) if state is None else (state[..., :e], state[..., e:])
    return sums(scaled(a), b, v, over, values), sums(a, b, xp.ones_like(v[..., :1]), over, keys)


def _attended(
    sums: Sums,
    q: Any,
    k: Any,
    v: Any,
    feature_map: str,
    causal: bool,
    normalize: bool,
    eps: Any,
    denominator: str,
    state: Any,
    return_state: bool,
    elu: Callable[[Any], Any] | None = None,
    shares: bool = False,
) -> Any:
    check(q, k, v, feature_map, causal, normalize, state, return_state)
    a, b = features(q, k, feature_map, elu)
    if shares and feature_map == "exp" and normalize and eps == 0:
        a = store(scaled(store(_softmax(q, -1), "weights")), "weights")  # some scale it, by a factor that is lost too
    over = "past" if causal else "all"
    if normalize and feature_map != "softmax":
        out = normalised(sums, a, b, v, over, state, eps, denominator)
    else:
        out = sums(a, b, v, over, state)
    if not return_state:
        return out
    return out, final(b, with_ones(v) if normalize else v, state)


def check(
    q: Any, k: Any, v: Any, feature_map: str, causal: bool, normalize: bool, state: Any, return_state: bool
) -> None:
    """Raises: ValueError, as `linear_attention`."""
    if causal and q.shape[-2] != k.shape[-2]:
        raise ValueError(f"causal linear attention needs as many keys as queries, not {k.shape[-2]} and {q.shape[-2]}")
    if feature_map == "softmax" and (causal or state is not None or return_state):
        raise ValueError('the feature map "softmax" is neither causal nor continued from a state')
    wanted = (q.shape[-1] + (feature_map == "1+x"), v.shape[-1] + normalize)
    if state is not None and tuple(state.shape[-2:]) != wanted:
        raise ValueError(f"the state must have {wanted[0]} features and {wanted[1]} columns, not {state.shape[-2:]}")


# Backward, as kernels write it. -------------------------------------------------------------------------------------


def unnormalized_backward(cotangents: tuple[Any, ...], q: Any, k: Any, v: Any, *, order: str = "right") -> Any:
    """dQ = (dO V^T) K,   dK = (V dO^T) Q,   dV = (K Q^T) dO, each with the brackets here or there."""
    (g,) = cotangents

    def sums(a: Any, b: Any, c: Any) -> Any:
        return either(q, lambda: quadratic(a, b, c, "all", None), lambda: recurrent(a, b, c, "all", None))

    return sums(g, v, k), sums(v, g, q), sums(k, q, g)


def backward(
    cotangents: tuple[Any, ...],
    q: Any,
    k: Any,
    v: Any,
    *,
    feature_map: str = "elu+1",
    causal: bool = False,
    normalize: bool = True,
    eps: Any = 0,
    denominator: str = "plus",
    state: Any = None,
    return_state: bool = False,
) -> tuple[Any, ...]:
    """The gradients of q, k, v and, if there is one, of the state.

        G_i = (do_i, -<do_i, o_i>) / sum_j w_ij,    R_j = sum over i >= j of phi(q_i) G_i + dS,    u_j = (v_j, 1)
        dphi(q_i) = S_i G_i,   dphi(k_j) = R_j u_j,   (dv_j, .) = phi(k_j) R_j,   dS_before = R_1

    S is the state, dS the cotangent of the one that is returned; each sum in chunks of whatever size.
    """
    check(q, k, v, feature_map, causal, normalize, state, return_state)
    a, b = features(q, k, feature_map)
    divides = normalize and feature_map != "softmax"
    later = cotangents[1] if return_state else None
    da, db, dv, before = through_sums(cotangents[0], a, b, v, causal, divides, eps, denominator, state, later)
    dq, dk = _through_features(q, k, feature_map, da, db)
    return (dq, dk, dv) if state is None else (dq, dk, dv, before)


def through_sums(
    g: Any,
    a: Any,
    b: Any,
    v: Any,
    causal: bool,
    normalize: bool = True,
    eps: Any = 0,
    denominator: str = "plus",
    state: Any = None,
    later: Any = None,
) -> tuple[Any, Any, Any, Any]:
    """The cotangents of the features of queries and keys, of the values and of the state before; `later` is that of the
    state that is returned."""
    xp, e = array_namespace(a), v.shape[-1]
    past, future = ("past", "future") if causal else ("all", "all")
    values = with_ones(v) if normalize else v
    if normalize:
        sums = numerator_and_total(chunked, a, b, v, past, state)
        summed = None if state is None else xp.matrix_transpose(state[..., :e])
        by_terms = xp.sum(a * chunked(g, v, b, past, summed), axis=-1, keepdims=True)
        g = _through_quotient(g, *sums, by_terms, eps, denominator)
    turned = None if later is None else xp.matrix_transpose(later)
    da = chunked(g, values, b, past, None if state is None else xp.matrix_transpose(state))
    db = chunked(values, g, a, future, turned)
    dv = chunked(b, a, g, future, later)[..., :e]
    return da, db, dv, None if state is None else final(a, g, later)


def _through_quotient(g: Any, out: Any, total: Any, by_terms: Any, eps: Any, denominator: str) -> Any:
    """The cotangents of the sums of values and of weights, side by side. <g_i, sum_j w_ij v_j> is had from the sum, or
    `by_terms`, as where weights are divided one by one."""
    xp = array_namespace(g)
    whole = divisor(total, eps, denominator)
    none = vanishes(whole)
    safe = xp.where(none, xp.ones_like(whole), whole)
    mean = either(g, lambda: out / safe, lambda: out * (1 / safe))
    kept = store(mean, "output")
    by_value = either(g, lambda: g / safe, lambda: g * (1 / safe))
    by_weight = -either(
        g,
        lambda: xp.sum(g * mean, axis=-1, keepdims=True) / safe,
        lambda: xp.sum(g * kept, axis=-1, keepdims=True) / safe,
        lambda: xp.sum(by_value * kept, axis=-1, keepdims=True),
        lambda: xp.sum(g * out, axis=-1, keepdims=True) / (safe * safe),
        lambda: by_terms / (safe * safe),
    )
    if denominator == "clamp":
        least = xp.asarray(eps, dtype=total.dtype)
        by_weight = total.xp.chosen(total, least, by_weight, xp.zeros_like(by_weight))
    both = xp.concat([by_value, by_weight], axis=-1)
    return xp.where(none, xp.zeros_like(both), both)


def _through_features(q: Any, k: Any, feature_map: str, da: Any, db: Any) -> tuple[Any, Any]:
    """The derivative of the features, by the tape."""
    tape = Adjoint(q.xp)
    x, y = tape.variable(q), tape.variable(k)
    a, b = features(x, y, feature_map)
    return tape.gradients([(a, da)], [x])[0], tape.gradients([(b, db)], [y])[0]
