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

from assay.impl.kernel import kernel


EVERY = ("float64", "float32", "bfloat16", "float16")
CHUNK = 64
"""Positions that meet by weights: as many as there are channels, weights cost what states cost."""
CHUNKS = 16
"""So many chunks of all heads are worked on at once."""

Features = Callable[[Tensor], Tensor]
"""x[.., d] -> phi(x)[.., r], by autograd operations."""


@kernel("unnormalized_attention", dtypes=EVERY)
def unnormalized_attention(q: Tensor, k: Tensor, v: Tensor, *, order: str = "right") -> Tensor:
    """out[b, h, t, e] = q (k^T v), or (q k^T) v in the `order` "left". Raises: ValueError for another order."""
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

    Raises: ValueError for an unknown map or denominator, t != s where causal, and "softmax" causal or with a state.
    """
    if causal and q.shape[-2] != k.shape[-2]:
        raise ValueError(f"causal linear attention needs as many keys as queries, not {k.shape[-2]} and {q.shape[-2]}")
    if denominator not in ("plus", "clamp"):
        raise ValueError(f"denominator must be plus or clamp, not {denominator!r}")
    wide = torch.promote_types(q.dtype, torch.float32)
    if feature_map == "softmax":
        if causal or state is not None or return_state:
            raise ValueError('the feature map "softmax" is neither causal nor continued from a state')
        sums = k.to(wide).softmax(dim=-2).mT @ v.to(wide)
        return (q.to(wide).softmax(dim=-1) @ sums).to(q.dtype)
    if feature_map not in MAPS:
        raise ValueError(f"feature_map must be one of {', '.join((*MAPS, 'softmax'))}, not {feature_map!r}")
    phi = MAPS[feature_map]
    if causal:
        out, after = causal_attention(q, k, v, phi, normalize, eps, denominator, state)
    else:
        out, after = full_attention(q, k, v, phi, normalize, eps, denominator, state)
    return (out, after) if return_state else out


# Feature maps ------------------------------------------------------------------------------------------------------


def _elu_plus_one(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


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
    after = phi(k.to(wide)).mT @ _values(v, normalize, wide)
    if state is not None:
        after = after + state.to(wide)
    out = phi(q.to(wide)) @ after
    if normalize:
        total = _total(out[..., -1:], eps, denominator)
        none = total == 0
        out = (out[..., :-1] / total.masked_fill(none, 1)).masked_fill(none, 0)
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
        out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)
        total = torch.empty(*q.shape[:-1], 1, dtype=wide, device=q.device) if normalize else None
        carried = None if state is None else state.to(wide)
        for start, stop, chunk in _blocks(q.shape[-2]):
            a, b = (phi(_cut(x, start, stop, chunk).to(wide)) for x in (q, k))
            values = _values(_cut(v, start, stop, chunk), normalize, wide)
            before, carried = _prefix(b.mT @ values, carried)
            sums = ((a @ b.mT).tril_() @ values).add_(a @ before)
            if total is not None:
                weight = sums[..., -1:]
                _cut(total, start, stop, chunk).copy_(weight)
                weight = _total(weight, eps, denominator)
                none = weight == 0
                sums = (sums[..., :-1] / weight.masked_fill(none, 1)).masked_fill_(none, 0)
            _cut(out, start, stop, chunk).copy_(sums)
        if carried is None:
            carried = phi(k.to(wide)).mT @ _values(v, normalize, wide)
        ctx.save_for_backward(q, k, v, state, out, total)
        ctx.settings = phi, normalize, eps, denominator
        return out, carried.to(q.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor, later: Tensor) -> tuple[Tensor | None, ...]:
        """Forward over the chunks for q, which needs the states; then back over them for k and v."""
        q, k, v, state, out, total = ctx.saved_tensors
        phi, normalize, eps, denominator = ctx.settings
        wide = torch.promote_types(q.dtype, torch.float32)
        grads = [torch.empty_like(x) for x in (q, k, v)]
        blocks = list(_blocks(q.shape[-2]))

        def block(start: int, stop: int, chunk: int) -> tuple[Tensor, ...]:
            queries, keys = (_cut(x, start, stop, chunk).to(wide) for x in (q, k))
            values = _values(_cut(v, start, stop, chunk), normalize, wide)
            given = _cut(g, start, stop, chunk).to(wide)
            if normalize:
                own, whole = _cut(out, start, stop, chunk).to(wide), _cut(total, start, stop, chunk)
                given = _through_quotient(given, own, whole, eps, denominator)
            return queries, keys, values, given

        carried = None if state is None else state.to(wide)
        for bounds in blocks:
            queries, keys, values, given = block(*bounds)
            b = phi(keys)
            before, carried = _prefix(b.mT @ values, carried)
            da = ((given @ values.mT).tril_() @ b).add_(given @ before.mT)
            _cut(grads[0], *bounds).copy_(_pulled(phi, queries, da)[1])
        carried = later.to(wide)
        for bounds in reversed(blocks):
            queries, keys, values, given = block(*bounds)
            a = phi(queries)
            after, carried = _suffix(a.mT @ given, carried)
            b, dk = _pulled(phi, keys, ((values @ given.mT).triu_() @ a).add_(values @ after.mT))
            dv = ((b @ a.mT).triu_() @ given).add_(b @ after)
            _cut(grads[1], *bounds).copy_(dk)
            _cut(grads[2], *bounds).copy_(dv[..., : v.shape[-1]])
        return (*grads, None if state is None else carried.to(state.dtype), None, None, None, None)


def _blocks(t: int) -> Iterator[tuple[int, int, int]]:
    """Where each block of positions starts and stops, and how long its chunks are: all of one length."""
    whole = t - t % CHUNK
    for start in range(0, whole, CHUNK * CHUNKS):
        yield start, min(start + CHUNK * CHUNKS, whole), CHUNK
    if whole < t:
        yield whole, t, t - whole


def _cut(x: Tensor, start: int, stop: int, chunk: int) -> Tensor:
    """x[b, h, start:stop, ...] as [b, h, number, chunk, ...], a view."""
    return x[:, :, start:stop].view(*x.shape[:2], -1, chunk, x.shape[-1])


def _prefix(sums: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state before each chunk, and after the last, of what each chunk adds, [b, h, number, r, n]."""
    first = torch.zeros_like(sums[:, :, 0]) if before is None else before
    running = torch.cat((first[:, :, None], sums), dim=2).cumsum(dim=2)
    return running[:, :, :-1], running[:, :, -1]


def _suffix(sums: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """The same from the end."""
    states, first = _prefix(sums.flip(2), after)
    return states.flip(2), first


def _values(v: Tensor, normalize: bool, wide: torch.dtype) -> Tensor:
    """(v, 1), or v."""
    return functional.pad(v.to(wide), (0, 1), value=1.0) if normalize else v.to(wide)


def _total(weight: Tensor, eps: float, denominator: str) -> Tensor:
    """The sum of the weights with eps."""
    return weight + eps if denominator == "plus" else weight.clamp(min=eps)


def _through_quotient(g: Tensor, out: Tensor, weight: Tensor, eps: float, denominator: str) -> Tensor:
    """The cotangents of the sums of values and of weights, side by side."""
    total = _total(weight, eps, denominator)
    none = total == 0
    by_value = g / total.masked_fill(none, 1)
    by_weight = -(by_value * out).sum(dim=-1, keepdim=True)
    if denominator == "clamp":
        by_weight = by_weight.masked_fill_(weight < eps, 0)
    return torch.cat((by_value, by_weight), dim=-1).masked_fill_(none, 0)


def _pulled(phi: Features, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """phi(x), and the cotangent of x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        features = phi(x)
    return features.detach(), torch.autograd.grad(features, x, g)[0]
