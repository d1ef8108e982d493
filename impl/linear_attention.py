"""Linear attention in torch, for CPU and CUDA, differentiable in q, k, v and the state.

Not causal, keys and values are summed once. Causal, positions are worked on in chunks: within a chunk by weights, what
came before it by a state. Neither forward nor backward holds anything that grows faster than the sequence, or that
is longer than what goes in and comes out; features are computed chunk by chunk, and again in the backward.

Axes: b batch, h head, t query position, s key position, d channel, e value channel, r feature, n column of the state:
sum_j phi(k_j) (v_j, 1), the last column only where the output is normalised.

Error: within the bound of the form "chunked": float32 at least, one rounding at the end.
Source: A. Katharopoulos et al., arXiv:2006.16236, equations 4-12; S. Yang et al., arXiv:2312.06635, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from assay.impl.inputs import attending, floating
from assay.impl.kernel import kernel


EVERY = ("float64", "float32", "bfloat16", "float16")
CHUNK = 64
"""Positions that meet by weights: as many as there are channels, weights cost what states cost."""
CHUNKS = 16
"""So many chunks of all heads are worked on at once, about: what they need stays in a cache of the processor."""

Features = Callable[[Tensor], Tensor]
"""x[.., d] -> phi(x)[.., r], by autograd operations."""


@kernel("unnormalized_attention", dtypes=EVERY)
def unnormalized_attention(q: Tensor, k: Tensor, v: Tensor, *, order: str = "right") -> Tensor:
    """out[b, h, t, e] = q (k^T v), or (q k^T) v in the `order` "left".

    Raises: ValueError for another order, or shapes that do not fit each other; TypeError for an integer dtype.
    """
    attending(q, k, v)
    if order not in ("right", "left"):
        raise ValueError(f"order must be right or left, not {order!r}")
    wide = torch.promote_types(q.dtype, torch.float32)
    queries, keys, values = (x.to(wide) for x in (q, k, v))
    out = queries @ (keys.mT @ values) if order == "right" else (queries @ keys.mT) @ values
    return out.to(q.dtype)


@kernel("linear_attention", form="chunked", dtypes=EVERY)
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str = "elu+1",
    causal: bool = False,
    normalize: bool = True,
    eps: float = 0.0,
    denominator: str = "plus",
    state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """out[b, h, t, e], and state[b, h, r, n] if `return_state`, of q[b, h, t, d], k[b, h, s, d], v[b, h, s, e].

    Raises: ValueError for an unknown map or denominator, t != s where causal, "softmax" causal or with a state, or
    shapes that do not fit each other; TypeError for an integer dtype.
    """
    check(q, k, v, feature_map, causal, normalize, denominator, state, return_state)
    if feature_map == "softmax":
        wide = torch.promote_types(q.dtype, torch.float32)
        sums = k.to(wide).softmax(dim=-2).mT @ v.to(wide)
        return (q.to(wide).softmax(dim=-1) @ sums).to(q.dtype)
    phi = MAPS[feature_map]
    if causal:
        out, after = causal_attention(q, k, v, phi, normalize, eps, denominator, state)
    else:
        out, after = full_attention(q, k, v, phi, normalize, eps, denominator, state)
    return (out, after) if return_state else out


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    feature_map: str,
    causal: bool,
    normalize: bool,
    denominator: str,
    state: Tensor | None,
    return_state: bool,
) -> None:
    """Raises: as `linear_attention`."""
    attending(q, k, v)
    if causal and q.shape[-2] != k.shape[-2]:
        raise ValueError(f"causal linear attention needs as many keys as queries, not {k.shape[-2]} and {q.shape[-2]}")
    if denominator not in ("plus", "clamp"):
        raise ValueError(f"denominator must be plus or clamp, not {denominator!r}")
    if feature_map == "softmax" and (causal or state is not None or return_state):
        raise ValueError('the feature map "softmax" is neither causal nor continued from a state')
    if feature_map != "softmax" and feature_map not in MAPS:
        raise ValueError(f"feature_map must be one of {', '.join((*MAPS, 'softmax'))}, not {feature_map!r}")
    if state is not None:
        floating(state=state)
        wanted = (*q.shape[:2], q.shape[-1] + (feature_map == "1+x"), v.shape[-1] + normalize)
        if state.shape != wanted:
            raise ValueError(f"the state must have the shape {list(wanted)}, not {list(state.shape)}")


# Feature maps ------------------------------------------------------------------------------------------------------


def _elu_plus_one(x: Tensor) -> Tensor:
    return x.clamp(max=0).exp() + x.relu()


def _one_and_direction(x: Tensor) -> Tensor:
    none = ~x.any(dim=-1, keepdim=True)
    norm = x.square().sum(dim=-1, keepdim=True).masked_fill(none, 1).sqrt()
    return functional.pad((x / norm).masked_fill(none, 0), (1, 0), value=1.0)


MAPS: dict[str, Features] = {
    "elu+1": _elu_plus_one,
    "relu": torch.relu,
    "identity": lambda x: x,
    "exp": torch.exp,
    "1+x": _one_and_direction,
}


# Sums ----------------------------------------------------------------------------------------------------------------


def full_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    phi: Features,
    normalize: bool,
    eps: float,
    denominator: str,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Every query sees every key. The output and the state after the keys, in the dtype of q."""
    wide = torch.promote_types(q.dtype, torch.float32)
    b, values = phi(k.to(wide)), v.to(wide)
    after = _summed(b, values, normalize)
    if state is not None:
        after = after + state.to(wide)
    out = phi(q.to(wide)) @ after
    if normalize:
        total = _total(out[..., -1:], eps, denominator)
        out = (out[..., :-1] * _inverse(total)).masked_fill(total == 0, 0)  # sums that have overflown too
    return out.to(q.dtype), after.to(q.dtype)


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    phi: Features,
    normalize: bool,
    eps: float,
    denominator: str,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Query i sees the keys up to i, and the state before. The output and the last state, in the dtype of q."""
    return _Causal.apply(q, k, v, state, phi, normalize, eps, denominator)  # type: ignore[no-any-return, no-untyped-call]


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Tensor | None,
        phi: Features,
        normalize: bool,
        eps: float,
        denominator: str,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        e = v.shape[-1]
        out = torch.empty(*q.shape[:-1], e, dtype=q.dtype, device=q.device)
        total = torch.empty(*q.shape[:-1], 1, dtype=wide, device=q.device) if normalize else None
        carried = _state_before(q, v, phi, normalize, state)
        for bounds in _blocks(q):
            a, b = (phi(_cut(x, *bounds).to(wide)) for x in (q, k))
            values = _columns(_cut(v, *bounds).to(wide), normalize)
            before, carried = _prefix(b.mT @ values, carried)
            sums = ((a @ b.mT).tril_() @ values).add_(a @ before)
            target = _cut(out, *bounds)
            if total is None:
                target.copy_(sums)
                continue
            weight = sums[..., e:]
            _cut(total, *bounds).copy_(weight)
            divisor = _total(weight, eps, denominator)
            if target.dtype == wide:
                torch.mul(sums[..., :e], _inverse(divisor), out=target)
            else:
                target.copy_(sums[..., :e].mul_(_inverse(divisor)))
            target.masked_fill_(divisor == 0, 0)  # sums that have overflown too
        ctx.save_for_backward(q, k, v, state, out, total)
        ctx.settings = phi, normalize, eps, denominator
        return out, carried.to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, later: Tensor) -> tuple[Tensor | None, ...]:
        """Forward over the chunks for q, which needs the states; then back over them for k and v."""
        q, k, v, state, out, total = ctx.saved_tensors
        phi, normalize, eps, denominator = ctx.settings
        wide = torch.promote_types(q.dtype, torch.float32)
        e = v.shape[-1]
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
        if normalize:
            g = through_quotient(g, out, total, eps, denominator)
        blocks = list(_blocks(q))

        def block(bounds: tuple[int, int, int]) -> tuple[Tensor, ...]:
            """Queries, keys, values, cotangents, and the cotangents of the weights, [.., chunk, chunk]."""
            queries, keys, values, given = (_cut(x, *bounds).to(wide) for x in (q, k, v, g))
            values = _columns(values, normalize)
            return queries, keys, values, given, (given @ values.mT).tril_()

        carried = _state_before(q, v, phi, normalize, state)
        for bounds in blocks:
            queries, keys, values, given, of_weights = block(bounds)
            b = phi(keys)
            before, carried = _prefix(b.mT @ values, carried)
            _cut(grads[0], *bounds).copy_(pulled(phi, queries, (of_weights @ b).add_(given @ before.mT))[1])
        carried = later.to(wide)
        for bounds in reversed(blocks):
            queries, keys, values, given, of_weights = block(bounds)
            a = phi(queries)
            after, carried = _suffix(a.mT @ given, carried)
            b, dk = pulled(phi, keys, (of_weights.mT @ a).add_(values @ after.mT))
            dv = ((a @ b.mT).tril_().mT @ given[..., :e]).add_(b @ after[..., :e])
            _cut(grads[1], *bounds).copy_(dk)
            _cut(grads[2], *bounds).copy_(dv)
        return (*grads, None if state is None else carried.to(state.dtype), None, None, None, None)


def _blocks(q: Tensor) -> Iterator[tuple[int, int, int]]:
    """Where each block of positions starts and stops, and how long its chunks are: all of one length."""
    t, heads = q.shape[-2], q.shape[0] * q.shape[1]
    whole, step = t - t % CHUNK, CHUNK * max(1, CHUNKS // max(1, heads))
    for start in range(0, whole, step):
        yield start, min(start + step, whole), CHUNK
    if whole < t:
        yield whole, t, t - whole


def _cut(x: Tensor, start: int, stop: int, chunk: int) -> Tensor:
    """x[b, h, start:stop, ...] as [b, h, number, chunk, ...], a view."""
    return x[:, :, start:stop].view(*x.shape[:2], (stop - start) // chunk, chunk, x.shape[-1])


def _state_before(q: Tensor, v: Tensor, phi: Features, normalize: bool, state: Tensor | None) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    if state is not None:
        return state.to(wide)
    r = phi(q[..., :1, :].to(wide)).shape[-1]
    return torch.zeros(*q.shape[:2], r, v.shape[-1] + normalize, dtype=wide, device=q.device)


def _columns(values: Tensor, normalize: bool) -> Tensor:
    """(v, 1), so that the weights are summed as the values are; v where nothing is normalised."""
    return functional.pad(values, (0, 1), value=1.0) if normalize else values


def _summed(b: Tensor, values: Tensor, normalize: bool) -> Tensor:
    """The state of all keys, [b, h, r, n], without a copy of the values."""
    sums = b.mT @ values
    return torch.cat((sums, b.sum(dim=-2)[..., None]), dim=-1) if normalize else sums


def _prefix(sums: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk, and after the last."""
    running = torch.cat((before[:, :, None], sums), dim=2).cumsum(dim=2)
    return running[:, :, :-1], running[:, :, -1]


def _suffix(sums: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """The same from the end."""
    states, first = _prefix(sums.flip(2), after)
    return states.flip(2), first


def _total(weight: Tensor, eps: float, denominator: str) -> Tensor:
    """The sum of the weights with eps."""
    return weight + eps if denominator == "plus" else weight.clamp(min=eps)


def _inverse(total: Tensor) -> Tensor:
    """1 / total, and 0 where it is 0."""
    none = total == 0
    return total.masked_fill(none, 1).reciprocal().masked_fill(none, 0)


def through_quotient(g: Tensor, out: Tensor, total: Tensor, eps: float, denominator: str) -> Tensor:
    """The cotangents of the sums of values and of weights, side by side."""
    by_value = g * _inverse(_total(total, eps, denominator))
    by_weight = -(by_value * out).sum(dim=-1, keepdim=True)
    if denominator == "clamp":
        by_weight = by_weight.masked_fill(total < eps, 0)
    return torch.cat((by_value, by_weight), dim=-1)


def pulled(phi: Features, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """phi(x), and the cotangent of x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        features = phi(x)
    return features.detach(), torch.autograd.grad(features, x, g)[0]
