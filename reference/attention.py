"""Softmax attention: each query returns the mean of the values, weighted by the exponentials of its scores.

    s_ij = c <q_i, k_j> + bias_ij        over the keys j that query i sees, c = d**(-1/2) unless given
    o_i  = sum_j exp(s_ij) v_j / sum_j exp(s_ij),        lse_i = ln sum_j exp(s_ij)

Axes: b batch, h query head, g key head, t query position, s key position, d channel, e value channel; g divides h, and
query head number n attends to key head number n // (h / g), or to n mod g where the grouping is "interleaved".

A query that sees no key returns 0, and its lse is minus infinity; no gradient passes through it.

Source: A. Vaswani et al., Attention Is All You Need, arXiv:1706.03762v7, equation 1. Heads in groups: J. Ainslie et
al., GQA, arXiv:2305.13245. Online: M. Milakov and N. Gimelshein, arXiv:1805.02867. Backward: T. Dao et al.,
FlashAttention, arXiv:2205.14135, algorithm 4.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from array_api_compat import array_namespace

from assay.reference.arithmetic.array import Mask, either, store


ALIGNMENTS = ("bottom-right", "top-left")
UNSEEING = ("zero", "mean")
GROUPINGS = ("blocks", "interleaved")


def grouped(text: Callable[..., Any]) -> Callable[..., Any]:
    """A text that knows one grouping, for both: with the heads of each group next to each other, and put back."""

    @wraps(text)
    def either_way(q: Any, k: Any, v: Any, *, grouping: str = "blocks", mask: Any = None, **rest: Any) -> Any:
        if grouping not in GROUPINGS:
            raise ValueError(f"grouping must be one of {', '.join(GROUPINGS)}, not {grouping!r}")
        if grouping == "blocks":
            return text(q, k, v, mask=mask, **rest)
        together, back = _orders(q, k)
        out = text(_heads(q, together), k, v, mask=_mask_heads(mask, together), **rest)
        return tuple(_heads(o, back) for o in out) if isinstance(out, tuple) else _heads(out, back)

    return either_way


def _orders(q: Any, k: Any) -> tuple[list[int], list[int]]:
    """Interleaved query heads in the order in which those of a group are neighbours, and the way back."""
    h, g = q.shape[1], k.shape[1]
    together = [n for i in range(g) for n in range(i, h, g)]
    return together, [together.index(n) for n in range(h)]


def _heads(x: Any, order: list[int], axis: int = 1) -> Any:
    """x[b, h, ...] with its heads in another order."""
    before = (slice(None),) * axis
    return x[(*before, order)] if isinstance(x, Mask) else array_namespace(x).take(x, order, axis=axis)


def _mask_heads(mask: Any, order: list[int]) -> Any:
    """The same of a mask, broadcastable to [b, h, t, s], if it tells heads apart."""
    axis = -1 if mask is None else len(mask.shape) - 3
    return mask if axis < 0 or mask.shape[axis] == 1 else _heads(mask, order, axis)


def softmax_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Any = None,
    causal: bool = False,
    alignment: str = "bottom-right",
    scale: Any = None,
    return_lse: bool = False,
    unseeing: str = "zero",
    grouping: str = "blocks",
) -> Any:
    """out[b, h, t, e] of q[b, h, t, d], k[b, g, s, d], v[b, g, s, e]; with `return_lse` also lse[b, h, t].

    `mask`, broadcast to [b, h, t, s]: boolean, True where key j is visible; or numbers, added to the scores after the
    scale, where minus infinity hides a key. `causal`: query i sees the keys j <= i + s - t ("bottom-right"
    `alignment`) or j <= i ("top-left"). `scale` is any finite number; None means d**(-1/2). `unseeing` says what a
    query that sees no key returns: 0, or the mean of all values, as where hidden scores become one finite number.
    `grouping`: the query heads that share a key head are neighbours ("blocks") or g apart ("interleaved").

    Error: none in exact arithmetic; over balls the result is an enclosure, and minus infinity is exact.
    Raises: ValueError for an unknown alignment, grouping or answer of a query that sees nothing, or a number of key
    heads that does not divide that of query heads.

    >>> import numpy as np
    >>> q, k, v = np.zeros((1, 1, 1, 2)), np.ones((1, 1, 2, 2)), np.array([[[[1.0], [3.0]]]])
    >>> softmax_attention(q, k, v).tolist()
    [[[[2.0]]]]
    """
    return _definition(
        q,
        k,
        v,
        mask=mask,
        causal=causal,
        alignment=alignment,
        scale=scale,
        return_lse=return_lse,
        unseeing=unseeing,
        grouping=grouping,
    )


@grouped
def _definition(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Any,
    causal: bool,
    alignment: str,
    scale: Any,
    return_lse: bool,
    unseeing: str,
) -> Any:
    xp = array_namespace(q)
    s, visible = scores(q, k, mask, causal, alignment, scale, unseeing)
    if not k.shape[-2]:
        return _nothing(q, v, return_lse)
    m = shift_of(s, visible)
    w = weights(s, m, visible)
    total = xp.sum(w, axis=-1, keepdims=True)
    return _returned(q, w @ _seen_values(v, visible) / or_one(total, visible), m, total, visible, return_lse)


# Forms: the same function, equal in exact arithmetic, with the roundings of a way to compute it. ----------------------
# Where kernels of one form differ among themselves, `either` names the ways, and the loosest of them bounds the form:
# the scale goes to the query, to the scores, or by halves (its square root) to query and key; the exponential is exp,
# or 2 to the power of scores in units of ln 2; the sum divides the weights, or their product with the values.


@grouped
def shifted(q: Any, k: Any, v: Any, *, scale: Any = None, return_lse: bool = False, **masks: Any) -> Any:
    """The row's maximum is subtracted from the scores before the exponential.

    Any number would do as the shift, so that a kernel found another maximum than the exact one is no error.
    """
    s, visible = _scores_either(q, k, scale=scale, **masks)
    if not k.shape[-2]:
        return _nothing(q, v, return_lse)
    m = shift_of(s, visible)
    w = either(s, lambda: weights(s, m, visible), lambda: powers_of_two(s, visible))
    return _averaged(q, v, w, m, visible, return_lse)


@grouped
def naive(q: Any, k: Any, v: Any, *, scale: Any = None, return_lse: bool = False, **masks: Any) -> Any:
    """The exponentials of the scores as they are: where one overflows, the bound is infinite."""
    xp = array_namespace(q)
    s, visible = _scores_either(q, k, scale=scale, **masks)
    if not k.shape[-2]:
        return _nothing(q, v, return_lse)
    w = either(s, lambda: weights(s, None, visible), lambda: powers_of_two(s, visible, shift=False))
    return _averaged(q, v, w, xp.zeros_like(s[..., :1]), visible, return_lse)


@grouped
def online(q: Any, k: Any, v: Any, *, scale: Any = None, return_lse: bool = False, **masks: Any) -> Any:
    """Keys in blocks, with a running maximum m; sum and product with v are multiplied by exp(m_old - m_new).

    The bound holds for every block size. In the rescalings blocks of one key are the loosest: the maxima of longer
    blocks are a subsequence of theirs, the differences that are exponentiated add up to the same, and each costs
    roundings of its own; the partial sums of longer blocks are among those of any order. In the weights they are not,
    since a weight of 1, which costs nothing, is not 1 in a block with a greater score further on. So a weight here is
    taken as in a block whose maximum is greater, by one at most, and is then rescaled as with blocks of one key.
    """
    s, visible = _scores_either(q, k, scale=scale, **masks)
    if not k.shape[-2]:
        return _nothing(q, v, return_lse)
    w = either(s, lambda: rescaled(s, visible), lambda: rescaled(s, visible, log2=True))
    return _averaged(q, v, w, shift_of(s, visible), visible, return_lse)


# Backward, as kernels write it. -------------------------------------------------------------------------------------


def backward(
    cotangents: tuple[Any, ...], q: Any, k: Any, v: Any, *, grouping: str = "blocks", mask: Any = None, **rest: Any
) -> tuple[Any, Any, Any]:
    """The gradients of q, k and v, with P computed again and the sum over a row taken from the output.

        dV = P^T dO,   dP = dO V^T,   D_i = <dO_i, O_i> - dlse_i,   dS = P * (dP - D),   dQ = c dS K,   dK = c dS^T Q

    P is exp(s - lse), or weights divided by their sum; D comes from the output as it was returned, or from P and dP;
    P, dP and dS are stored as weights are. The heads of a group are summed in the product, or one output for each.
    """
    if grouping == "blocks":
        return _backward(cotangents, q, k, v, mask=mask, **rest)
    together, back = _orders(q, k)
    cotangents = tuple(_heads(c, together) for c in cotangents)
    dq, dk, dv = _backward(cotangents, _heads(q, together), k, v, mask=_mask_heads(mask, together), **rest)
    return _heads(dq, back), dk, dv


def _backward(
    cotangents: tuple[Any, ...], q: Any, k: Any, v: Any, *, scale: Any = None, return_lse: bool = False, **masks: Any
) -> tuple[Any, Any, Any]:
    xp = array_namespace(q)
    s, visible = _scores_either(q, k, scale=scale, **masks)
    if not k.shape[-2]:
        return xp.zeros_like(q), xp.zeros_like(k), xp.zeros_like(v)
    m = shift_of(s, visible)
    w = either(s, lambda: weights(s, m, visible), lambda: powers_of_two(s, visible))
    total = or_one(xp.sum(w, axis=-1, keepdims=True), visible)
    p = either(s, lambda: w / total, lambda: weights(s, m + xp.log(total), visible))
    do, v = folded(cotangents[0], k), _seen_values(v, visible)
    dp = store(do @ xp.matrix_transpose(v), "weights")
    out = store(either(s, lambda: store(w, "weights") @ v / total, lambda: store(w / total, "weights") @ v), "output")
    delta = either(
        s,
        lambda: xp.sum(do * out, axis=-1, keepdims=True),
        lambda: xp.sum(p * dp, axis=-1, keepdims=True),
    )
    if return_lse:
        delta = delta - folded(cotangents[1][..., None], k)
    ds = p * (dp - delta)
    seen = visibility(q, k, masks.get("mask"), masks.get("causal", False), masks.get("alignment", ALIGNMENTS[0]))[0]
    if seen is not None:  # a score that was replaced passes nothing on, though its weight may not be 0
        ds = xp.where(seen, ds, 0 * ds)
    ds = store(ds, "weights")
    c, queries = scale_of(q, scale), folded(q, k)
    dq = either(s, lambda: c * (ds @ k), lambda: store(c * ds, "weights") @ k, lambda: ds @ (c * k))
    heads = (*k.shape[:2], -1, q.shape[-2])
    dk = either(
        s,
        lambda: c * _over_queries(ds, queries),
        lambda: _over_queries(store(c * ds, "weights"), queries),
        lambda: _over_queries(ds, c * queries),
        lambda: _over_heads(c, ds, queries, heads),
    )
    stored = store(p, "weights")
    dv = either(s, lambda: _over_queries(stored, do), lambda: _over_heads(1, stored, do, heads))
    return xp.reshape(dq, q.shape), dk, dv


def _over_queries(weights: Any, x: Any) -> Any:
    """The sum over the queries of all heads of a group, in one product."""
    return array_namespace(x).matrix_transpose(weights) @ x


def _over_heads(c: Any, weights: Any, x: Any, heads: tuple[int, ...]) -> Any:
    """The same as one output for each query head, as if keys had been repeated, and then their sum."""
    xp = array_namespace(x)
    weights, x = (xp.reshape(y, (*heads, y.shape[-1])) for y in (weights, x))
    shares = store(c * (xp.matrix_transpose(weights) @ x), "output")
    total = shares[:, :, 0]
    for i in range(1, shares.shape[2]):
        total = store(total + shares[:, :, i], "shares")
    return total


# Parts of the formula ---------------------------------------------------------------------------------------------
# The heads of a group stand one below the other, [b, g, (h/g) t, ...]: each key head meets one matrix.


def folded(x: Any, k: Any) -> Any:
    """x[b, h, t, ...] as [b, g, (h/g) t, ...]."""
    b, h, t, *rest = x.shape
    g = k.shape[1]
    if not g or h % g:
        raise ValueError(f"{g} key heads do not divide {h} query heads")
    return array_namespace(x).reshape(x, (b, g, h // g * t, *rest))


def scale_of(q: Any, scale: Any) -> Any:
    xp = array_namespace(q)
    if scale is None:
        return 1 / xp.sqrt(xp.asarray(q.shape[-1], dtype=q.dtype))
    return scale


def scores(
    q: Any,
    k: Any,
    mask: Any,
    causal: bool,
    alignment: str,
    scale: Any,
    unseeing: str = "zero",
    way: str = "scores",
) -> tuple[Any, Any]:
    """Scores and visibility (None: everything is visible), both [b, g, (h/g) t, s]; a hidden score is 0."""
    xp = array_namespace(q)
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment must be one of {', '.join(ALIGNMENTS)}, not {alignment!r}")
    if unseeing not in UNSEEING:
        raise ValueError(f"unseeing must be one of {', '.join(UNSEEING)}, not {unseeing!r}")
    shape = (*q.shape[:-1], k.shape[-2])
    queries, keys = folded(q, k), xp.matrix_transpose(k)
    c = scale_of(q, scale)
    if way == "query":
        s = (c * queries) @ keys
    elif way == "halves":
        root = xp.sqrt(xp.abs(xp.asarray(c, dtype=q.dtype)))
        signed = xp.where(c < 0, -root, root)
        s = (signed * queries) @ (root * keys)
    else:
        s = c * (queries @ keys)
    visible, bias = visibility(q, k, mask, causal, alignment)
    if bias is not None:
        s = s + folded(xp.broadcast_to(bias, shape), k)
    if visible is not None:
        s = xp.where(visible, s, xp.zeros_like(s) if way == "scores" else 0 * s)
        if unseeing == "mean":
            visible = visible | ~_some(visible, xp)
    return s, visible


def visibility(q: Any, k: Any, mask: Any, causal: bool, alignment: str) -> tuple[Any, Any]:
    """Which keys a query sees, [b, g, (h/g) t, s] (None: all of them), and the numbers that a mask adds, if it does."""
    xp = array_namespace(q)
    visible, bias = None, None
    if mask is not None and is_boolean(mask):
        visible = mask
    elif mask is not None:
        hidden = (mask < 0) & (mask == 2 * mask)  # minus infinity alone
        visible, bias = ~hidden, xp.where(hidden, xp.zeros_like(mask), mask)
    if causal:
        t, n = q.shape[-2], k.shape[-2]
        first = n - t if alignment == "bottom-right" else 0  # the last key that query 0 sees
        past = xp.arange(n)[None, :] <= xp.arange(first, first + t)[:, None]
        visible = past if visible is None else visible & past
    if visible is not None:
        visible = _folded_mask(xp, visible, (*q.shape[:-1], k.shape[-2]), k.shape[1])
    return visible, bias


def _scores_either(
    q: Any,
    k: Any,
    *,
    mask: Any = None,
    causal: bool = False,
    alignment: str = "bottom-right",
    scale: Any = None,
    unseeing: str = "zero",
) -> tuple[Any, Any]:
    """Scores as kernels compute them: the scale on the scores, on the query, or its square root on both.

    Hidden scores are replaced, or minus infinity is added to them: then one that overflows makes its row a NaN.
    """

    def in_way(way: str) -> tuple[Any, Any]:
        return scores(q, k, mask, causal, alignment, scale, unseeing, way)

    first, visible = in_way("scores")
    return either(q, lambda: first, lambda: in_way("query")[0], lambda: in_way("halves")[0]), visible


def _folded_mask(xp: Any, visible: Any, shape: tuple[int, ...], g: int) -> Any:
    b, h, t, s = shape
    return xp.reshape(xp.broadcast_to(visible, shape), (b, g, h // g * t, s))


def is_boolean(mask: Any) -> bool:
    return isinstance(mask, Mask) or str(mask.dtype).endswith("bool")


def shift_of(s: Any, visible: Any) -> Any:
    """The greatest visible score of each row, [..., 1]; 0 where none is visible."""
    xp = array_namespace(s)
    if visible is None:
        return xp.max(s, axis=-1, keepdims=True)
    low = -xp.max(xp.abs(s), axis=-1, keepdims=True)  # below every visible score of the row
    return xp.max(xp.where(visible, s, low), axis=-1, keepdims=True)


def weights(s: Any, m: Any, visible: Any) -> Any:
    """exp(s - m), or exp(s), and 0 for what is hidden."""
    xp = array_namespace(s)
    below = s if m is None else s - m
    if visible is None:
        return xp.exp(below)
    zero = 0 * below
    return xp.where(visible, xp.exp(xp.where(visible, below, zero)), zero)


def powers_of_two(s: Any, visible: Any, shift: bool = True) -> Any:
    """The same as 2 to the power of scores in units of ln 2, shifted by the maximum of these."""
    xp = array_namespace(s)
    unit = xp.log(xp.asarray(2, dtype=s.dtype))
    bits = s * (1 / unit)
    below = bits - shift_of(bits, visible) if shift else bits
    return weights(unit * below, None, visible)


def rescaled(s: Any, visible: Any, log2: bool = False) -> Any:
    """exp(s_j - M_j) exp(M_j - m_j) prod over i > j of exp(m_(i-1) - m_i) = exp(s_j - m).

    m_j is the maximum up to key j, m that of the row, M_j the lesser of m and m_j + 1.
    """
    xp = array_namespace(s)
    unit = xp.log(xp.asarray(2, dtype=s.dtype))
    s = s * (1 / unit) if log2 else s
    reach = s if visible is None else xp.where(visible, s, -xp.max(xp.abs(s), axis=-1, keepdims=True))

    def exp(x: Any) -> Any:
        return xp.exp(unit * x if log2 else x)

    running, known = xp.max(xp.expand_dims(reach, axis=-1), axis=-1), 1  # a shift from the first key on
    while known < s.shape[-1]:  # the maximum of the last 1, 2, 4, ... keys
        before = xp.concat([running[..., :known], running[..., :-known]], axis=-1)
        running, known = xp.max(xp.stack([running, before], axis=-1), axis=-1), 2 * known
    steps = exp(running[..., :-1] - running[..., 1:])
    products = [xp.ones_like(reach[..., :1])]
    for i in range(s.shape[-1] - 2, -1, -1):
        products.append(products[-1] * steps[..., i : i + 1])
    ahead = xp.minimum(running + 1, running[..., -1:])
    below = s - ahead
    w = weights(unit * below if log2 else below, None, visible)
    return w * (exp(ahead - running) * xp.concat(products[::-1], axis=-1))


def _seen_values(v: Any, visible: Any) -> Any:
    """v, and 0 for keys that no query sees: they do not count, whatever they hold (a weight of 0 times a NaN would)."""
    if visible is None:
        return v
    xp = array_namespace(v)
    return xp.where(_some(xp.matrix_transpose(visible), xp), v, xp.zeros_like(v))


def or_one(total: Any, visible: Any) -> Any:
    """The sum of a row, and 1 where nothing is visible."""
    if visible is None:
        return total
    xp = array_namespace(total)
    return xp.where(_some(visible, xp), total, xp.ones_like(total))


def _some(visible: Any, xp: Any) -> Any:
    """Which rows see a key, [..., 1]."""
    return xp.any(visible, axis=-1, keepdims=True)


def _averaged(q: Any, v: Any, w: Any, m: Any, visible: Any, return_lse: bool) -> Any:
    """The mean of the values: the sum of the weights divides the product, or the weights."""
    xp = array_namespace(q)
    total = xp.sum(w, axis=-1, keepdims=True)
    divisor = or_one(total, visible)
    v = _seen_values(v, visible)
    out = either(
        w,
        lambda: store(w, "weights") @ v / divisor,
        lambda: store(w / divisor, "weights") @ v,
    )
    return _returned(q, out, m, total, visible, return_lse)


def _returned(q: Any, out: Any, m: Any, total: Any, visible: Any, return_lse: bool) -> Any:
    xp = array_namespace(q)
    out = xp.reshape(out, (*q.shape[:-1], out.shape[-1]))
    if not return_lse:
        return out
    lse = m + xp.log(or_one(total, visible))
    if visible is not None:
        some = _some(visible, xp)
        # The second way is none: it tells the bound of a row that sees nothing that a hidden score may have overflown.
        lse = either(lse, lambda: xp.where(some, lse, -xp.inf), lambda: xp.where(some, lse, 0 * total))
    return out, xp.reshape(lse, q.shape[:-1])


def _nothing(q: Any, v: Any, return_lse: bool) -> Any:
    """What there is without any key."""
    xp = array_namespace(q)
    out = xp.zeros((*q.shape[:-1], v.shape[-1]), dtype=q.dtype)
    return (out, xp.zeros(q.shape[:-1], dtype=q.dtype) - xp.inf) if return_lse else out
