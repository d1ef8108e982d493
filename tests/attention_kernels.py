"""Attention kernels of the kind that people write, right and wrong, for the suite to judge.

All take q[b, h, t, d], k[b, g, s, d], v[b, g, s, e], and compute in float32 where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


LOG2E = 1.4426950408889634


def prepared(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, wide: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In float32 (or `wide`), with one key head for each query head, if these mean something."""
    if not all(x.is_floating_point() and x.ndim == 4 for x in (q, k, v)):
        raise ValueError("q, k and v must have the axes b h t d, and a floating-point dtype")
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[1] % k.shape[1] or q.shape[3] != k.shape[3]:
        raise ValueError("q, k and v do not fit each other")
    if not k.numel() or not q.numel():
        raise NotImplementedError("nothing to compute with")
    group = q.shape[1] // k.shape[1]
    k, v = (x.to(wide).repeat_interleave(group, dim=1) for x in (k, v))
    return q.to(wide), k, v


def hidden(t: int, s: int, ahead: int = 0) -> torch.Tensor:
    """True where key j comes after query i, bottom-right."""
    return torch.ones(t, s, dtype=torch.bool).triu(1 + s - t + ahead)


def default(q: torch.Tensor, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Weights, 0 in a row that sees nothing."""
    top = scores.detach().amax(dim=-1, keepdim=True)
    weights = (scores - top.masked_fill(top == -torch.inf, 0)).exp()
    total = weights.sum(dim=-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)


def divided(product: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    return product / total.masked_fill(total == 0, 1)


# Right ---------------------------------------------------------------------------------------------------------------


def naive(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    """Exponentials of the scores as they are."""
    wide = prepared(q, k, v)
    scores = wide[0] @ wide[1].mT * default(q, scale)
    if causal:
        scores = scores.masked_fill(hidden(*scores.shape[-2:]), -torch.inf)
    weights = scores.exp()
    return divided(weights @ wide[2], weights.sum(dim=-1, keepdim=True)).to(q.dtype)


def shifted(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    """The row's maximum subtracted; the sum divides at the end."""
    wide = prepared(q * default(q, scale) if q.dtype == torch.float32 else q, k, v)
    scores = wide[0] @ wide[1].mT
    if q.dtype != torch.float32:
        scores = scores * default(q, scale)
    if causal:
        scores = scores.masked_fill(hidden(*scores.shape[-2:]), -torch.inf)
    top = scores.detach().amax(dim=-1, keepdim=True)
    weights = (scores - top.masked_fill(top == -torch.inf, 0)).exp()
    return divided(weights.to(v.dtype).float() @ wide[2], weights.sum(dim=-1, keepdim=True)).to(q.dtype)


def normalised_before(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """Weights that add up to 1, kept in the dtype of v, and then the product."""
    if mask is not None:
        seen = mask if mask.dtype == torch.bool else mask > -torch.inf
        unseen = ~seen.expand(*q.shape[:-1], k.shape[-2]).any(dim=-2).any(dim=1)[:, None, :, None]
        k, v = k.masked_fill(unseen, 0), v.masked_fill(unseen, 0)
    wide = prepared(q, k, v)
    scores = wide[0] @ wide[1].mT * default(q, scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
    if causal:
        scores = scores.masked_fill(hidden(*scores.shape[-2:]), -torch.inf)
    return (softmax(scores).to(v.dtype).float() @ wide[2]).to(q.dtype)


def online(block: int, *, log2: bool = False) -> Callable[..., torch.Tensor]:
    """Keys in blocks, with a running maximum. `log2`: powers of two, log2(e) folded into the scale."""

    def kernel(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False, scale: float | None = None
    ) -> torch.Tensor:
        wide = prepared(q, k, v)
        power = torch.exp2 if log2 else torch.exp
        factor = default(q, scale) * (LOG2E if log2 else 1)
        t, s = q.shape[-2], k.shape[-2]
        top = torch.full((*q.shape[:-1], 1), -torch.inf)
        total, product = torch.zeros_like(top), torch.zeros(*q.shape[:-1], v.shape[-1])
        for start in range(0, s, block):
            rows = slice(start, start + block)
            scores = wide[0] @ wide[1][..., rows, :].mT * factor
            if causal:
                scores = scores.masked_fill(hidden(t, s)[:, rows], -torch.inf)
            new = torch.maximum(top, scores.detach().amax(dim=-1, keepdim=True))
            base = new.masked_fill(new == -torch.inf, 0)
            weights, rescale = power(scores - base), power(top - base)
            total = total * rescale + weights.sum(dim=-1, keepdim=True)
            product = product * rescale + weights.to(v.dtype).float() @ wide[2][..., rows, :]
            top = new
        return divided(product, total).to(q.dtype)

    kernel.__name__ = f"online_{block}{'_log2' if log2 else ''}"
    return kernel


def contracted(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    """Through baddbmm and einsum, the square root of the scale on both sides."""
    queries, keys, values = prepared(q, k, v)
    c = default(q, scale)
    root = abs(c) ** 0.5
    t, s = q.shape[-2], k.shape[-2]
    flat = (queries * (root if c >= 0 else -root)).flatten(0, 1), (keys * root).flatten(0, 1)
    scores = torch.baddbmm(torch.zeros(1, t, s), flat[0], flat[1].mT).unflatten(0, q.shape[:2])
    if causal:
        scores = scores.masked_fill(hidden(t, s), -torch.inf)
    return torch.einsum("bhts,bhse->bhte", softmax(scores), values).to(q.dtype)


def double(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    """In float64, rounded once."""
    wide = prepared(q, k, v, torch.float64)
    scores = wide[0] @ wide[1].mT * default(q, scale)
    if causal:
        scores = scores.masked_fill(hidden(*scores.shape[-2:]), -torch.inf)
    return (softmax(scores) @ wide[2]).to(q.dtype)


def split(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    """Keys in three parts, merged as (m, l, o)."""
    wide = prepared(q, k, v)
    t, s = q.shape[-2], k.shape[-2]
    parts = []
    for rows in torch.arange(s).tensor_split(min(3, s)):
        scores = wide[0] @ wide[1][..., rows, :].mT * default(q, scale)
        if causal:
            scores = scores.masked_fill(hidden(t, s)[:, rows], -torch.inf)
        top = scores.detach().amax(dim=-1, keepdim=True)
        weights = (scores - top.masked_fill(top == -torch.inf, 0)).exp()
        parts.append((top, weights.sum(dim=-1, keepdim=True), weights.to(v.dtype).float() @ wide[2][..., rows, :]))
    top = torch.stack([p[0] for p in parts]).amax(dim=0)
    base = top.masked_fill(top == -torch.inf, 0)
    scales = [(p[0] - base).exp() for p in parts]
    total = torch.stack([a * p[1] for a, p in zip(scales, parts, strict=True)]).sum(dim=0)
    product = torch.stack([a * p[2] for a, p in zip(scales, parts, strict=True)]).sum(dim=0)
    return divided(product, total).to(q.dtype)


class Flash(torch.autograd.Function):
    """Forward shifted; backward from the log of the sum and the returned output, weights in the dtype of the inputs."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, c: float) -> torch.Tensor:
        wide = prepared(q, k, v)
        scores = wide[0] @ wide[1].mT * c
        if causal:
            scores = scores.masked_fill(hidden(*scores.shape[-2:]), -torch.inf)
        top = scores.amax(dim=-1, keepdim=True)
        weights = (scores - top.masked_fill(top == -torch.inf, 0)).exp()
        total = weights.sum(dim=-1, keepdim=True)
        out = divided(weights.to(v.dtype).float() @ wide[2], total).to(q.dtype)
        lse = top + total.log()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal, ctx.c = causal, c
        return out

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        do = cotangents[0].float()
        wide = prepared(q, k, v)
        scores = wide[0] @ wide[1].mT * ctx.c
        if ctx.causal:
            scores = scores.masked_fill(hidden(*scores.shape[-2:]), -torch.inf)
        p = (scores - lse.masked_fill(lse == -torch.inf, 0)).exp()
        delta = (do * out.float()).sum(dim=-1, keepdim=True)
        ds = (p * (do @ wide[2].mT - delta)).to(q.dtype).float()
        dq = ctx.c * (ds @ wide[1])
        shape = (k.shape[0], k.shape[1], -1)
        dk = (ctx.c * (ds.mT @ wide[0])).unflatten(1, shape[1:]).sum(dim=2)
        dv = (p.to(q.dtype).float().mT @ do).unflatten(1, shape[1:]).sum(dim=2)
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), None, None


def flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    return Flash.apply(q, k, v, causal, default(q, scale))  # type: ignore[no-any-return, no-untyped-call]


RIGHT: dict[str, tuple[Callable[..., Any], str | None]] = {
    "naive": (naive, "naive"),
    "shifted": (shifted, "shifted"),
    "normalised_before": (normalised_before, "shifted"),
    "online_1": (online(1), "online"),
    "online_3": (online(3), "online"),
    "online_64": (online(64), "online"),
    "online_16_log2": (online(16, log2=True), "online"),
    "contracted": (contracted, "shifted"),
    "double": (double, None),
    "split": (split, "online"),
    "flash": (flash, "shifted"),
}
"""Kernels with the form that each claims."""


def tf32(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    """Operands of products rounded to ten explicit bits, to nearest with ties to even."""

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return Product.apply(a, b)  # type: ignore[no-any-return, no-untyped-call]

    queries, keys, values = prepared(q, k, v)
    scores = product(queries, keys.mT) * default(q, scale)
    if causal:
        scores = scores.masked_fill(hidden(*scores.shape[-2:]), -torch.inf)
    return product(softmax(scores), values)


def ten_bits(x: torch.Tensor) -> torch.Tensor:
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        return ten_bits(a) @ ten_bits(b)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
        a, b = ctx.saved_tensors
        g = cotangents[0]
        return ten_bits(g) @ ten_bits(b.mT), ten_bits(a.mT) @ ten_bits(g)


def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None = None) -> torch.Tensor:
    """Every step in the dtype of q, but for the softmax."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = q @ k.mT * default(q, scale)
    return scores.float().softmax(dim=-1).to(q.dtype) @ v


# Wrong ---------------------------------------------------------------------------------------------------------------


def changed(
    *,
    c: Callable[[float], float] = lambda c: c,
    scores: Callable[[torch.Tensor], torch.Tensor] = lambda s: s,
    weights: Callable[[torch.Tensor], torch.Tensor] = lambda w: w,
    total: Callable[[torch.Tensor], torch.Tensor] = lambda w: w.sum(dim=-1, keepdim=True),
    heads: Callable[[torch.Tensor, int], torch.Tensor] = lambda x, h: x.repeat_interleave(h // x.shape[1], dim=1),
    ahead: int = 0,
    output: Callable[[torch.Tensor], torch.Tensor] = lambda o: o,
) -> Callable[..., torch.Tensor]:
    """A right kernel with one thing changed."""

    def kernel(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False, scale: float | None = None
    ) -> torch.Tensor:
        keys, values = (heads(x.float(), q.shape[1]) for x in (k, v))
        s = scores(q.float() @ keys.mT * c(default(q, scale)))
        if causal:
            s = s.masked_fill(hidden(*s.shape[-2:], ahead), -torch.inf)
        top = s.detach().amax(dim=-1, keepdim=True)
        w = weights((s - top.masked_fill(top == -torch.inf, 0)).exp())
        return output(divided(w @ values, total(w))).to(q.dtype)

    return kernel


def top_left(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False) -> torch.Tensor:
    t, s = q.shape[-2], k.shape[-2]
    return changed(ahead=t - s)(q, k, v, causal=causal)


def over_queries(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    queries, keys, values = prepared(q, k, v)
    return ((queries @ keys.mT * default(q, None)).softmax(dim=-2) @ values).to(q.dtype)


def mask_ignored(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: torch.Tensor | None = None
) -> torch.Tensor:
    return shifted(q, k, v)


def wrong_backward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The row sum of the backward left out: the gradient of unnormalised weights."""
    queries, keys, values = prepared(q, k, v)
    weights = (queries @ keys.mT * default(q, None)).exp()
    return (weights @ values / weights.sum(dim=-1, keepdim=True).detach()).to(q.dtype)


def dropped(place: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda s: s.masked_fill(torch.arange(s.shape[-1]) == place % s.shape[-1], -torch.inf)


def rounded_to(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x.to(dtype).float()


def modulo(x: torch.Tensor, h: int) -> torch.Tensor:
    return x.repeat(1, h // x.shape[1], 1, 1)


WRONG: dict[str, tuple[Callable[..., Any], tuple[str, str] | None]] = {
    "scale_missing": (changed(c=lambda c: 1.0), ("slip", "scale_missing")),
    "scale_twice": (changed(c=lambda c: c * c), ("slip", "scale_applied_twice")),
    "scale_off": (changed(c=lambda c: c * 1.0001), ("parameter", "scale")),
    "one_ahead": (changed(ahead=1), ("slip", "causal_sees_one_key_ahead")),
    "strict": (changed(ahead=-1), ("slip", "causal_hides_the_present")),
    "top_left": (top_left, ("convention", "alignment=top-left")),
    "last_key_dropped": (changed(scores=dropped(-1)), ("slip", "last_key_dropped")),
    "first_key_dropped": (changed(scores=dropped(0)), ("slip", "first_key_dropped")),
    "interleaved_heads": (changed(heads=modulo), ("convention", "grouping=interleaved")),
    "over_queries": (over_queries, ("slip", "softmax_over_queries")),
    "mask_ignored": (mask_ignored, ("slip", "mask_ignored")),
    "denominator_short": (
        changed(total=lambda w: w[..., : max(1, w.shape[-1] - 1)].sum(dim=-1, keepdim=True)),
        ("slip", "denominator_without_last_key"),
    ),
    "half_weights": (changed(weights=rounded_to(torch.bfloat16)), None),
    "half_scores": (changed(scores=rounded_to(torch.bfloat16)), None),
    "second_block_lost": (changed(weights=lambda w: w.masked_fill(torch.arange(w.shape[-1]) >= 64, 0)), None),
    "zeros": (changed(output=torch.zeros_like), None),
}
"""Kernels wrong on purpose, with what the diagnosis has to say first."""
