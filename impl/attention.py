"""Softmax attention in torch, for CPU and CUDA, differentiable in q, k and v.

`softmax_attention` hands over to torch's own kernels what these are documented to do, and sees to the rest: rows that
see nothing, keys that nobody sees, the log of the sum. `softmax_attention_plain` is the formula in plain operations.

Axes: b batch, h query head, g key head (g divides h), t query position, s key position, d channel, e value channel.

Source: A. Vaswani et al., Attention Is All You Need, arXiv:1706.03762v7, equation 1.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from assay.impl.inputs import floating
from assay.impl.kernel import kernel


EVERY = ("float64", "float32", "bfloat16", "float16")


@kernel("softmax_attention", dtypes=EVERY, under=("vmap",))
def softmax_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    alignment: str = "bottom-right",
    scale: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """out[b, h, t, e], and lse[b, h, t] if `return_lse`, of q[b, h, t, d], k[b, g, s, d], v[b, g, s, e].

    Raises: ValueError for an unknown alignment, or shapes that do not fit each other; TypeError for an integer dtype.
    """
    _fit(q, k, v)
    seen = _seen(q, k, mask, causal, alignment)
    if return_lse or not k.shape[-2] or not q.shape[1]:
        return _plain(q, k, v, mask, seen, scale, return_lse)
    group = _group(q, k)
    if seen is None:
        bias = mask
    else:
        # torch adds minus infinity to hidden scores, which leaves a NaN a NaN, and makes one of an overflow.
        q, k, v = _without_unseen(q, k, v, seen)
        bias = seen if mask is None or mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(q.dtype)
    if group > 1:
        # Through float32, so that gradients of the heads of a group are added there: torch would add them in half.
        wide = torch.promote_types(q.dtype, torch.float32)
        k, v = (x.to(wide).repeat_interleave(group, dim=1).to(x.dtype) for x in (k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


@kernel("softmax_attention", form="shifted", dtypes=EVERY, under=("vmap",))
def softmax_attention_plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    alignment: str = "bottom-right",
    scale: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The same in plain operations, in float32 at least, rounded once at the end.

    Error: within the bound of the form `shifted`. Raises: as `softmax_attention`.
    """
    _fit(q, k, v)
    return _plain(q, k, v, mask, _seen(q, k, mask, causal, alignment), scale, return_lse)


def _plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    seen: torch.Tensor | None,
    scale: float | None,
    return_lse: bool,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    group = _group(q, k)
    shape = (*q.shape[:-1], k.shape[-2])
    if seen is not None:
        q, k, v = _without_unseen(q, k, v, seen)
    queries, keys, values = (x.to(wide) for x in (q, k, v))
    keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    scores = queries @ keys.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask.to(wide)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    if not shape[-1]:
        out, lse = scores @ values, scores.sum(-1) - torch.inf
        return (out.to(q.dtype), lse.to(q.dtype)) if return_lse else out.to(q.dtype)
    # A row that sees nothing is shifted by 0, has weights 0 and is divided by 1.
    top = scores.detach().amax(dim=-1, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0)
    weights = (scores - top).exp()
    total = weights.sum(dim=-1, keepdim=True)
    empty = total == 0
    out = (weights @ values / total.masked_fill(empty, 1)).to(q.dtype)
    if not return_lse:
        return out
    lse = (top + total.masked_fill(empty, 1).log()).masked_fill(empty, -torch.inf)
    return out, lse.squeeze(-1).to(q.dtype)


def _without_unseen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Zeros for queries that see nothing, and for keys and values that no query of their batch sees."""
    seen = seen.expand(*q.shape[:-1], k.shape[-2])
    unseen = ~seen.any(dim=-2).any(dim=1)[:, None, :, None]
    return q.masked_fill(~seen.any(dim=-1, keepdim=True), 0), k.masked_fill(unseen, 0), v.masked_fill(unseen, 0)


def _fit(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """torch's kernels answer some shapes that mean nothing."""
    floating(q=q, k=k, v=v)
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError("q, k and v must have the axes [b, h, t, d], [b, g, s, d] and [b, g, s, e]")
    (b, h, _, d), g = q.shape, k.shape[1]
    if (k.shape[0], k.shape[3]) != (b, d) or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"q{list(q.shape)}, k{list(k.shape)} and v{list(v.shape)} do not fit each other")
    if not g or h % g:
        raise ValueError(f"{g} key heads do not divide {h} query heads")


def _group(q: torch.Tensor, k: torch.Tensor) -> int:
    """How many query heads share a key head."""
    return q.shape[1] // k.shape[1]


def _seen(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, causal: bool, alignment: str
) -> torch.Tensor | None:
    """Which keys a query sees, broadcastable to [b, h, t, s]; None for all."""
    if alignment not in ("bottom-right", "top-left"):
        raise ValueError(f"alignment must be bottom-right or top-left, not {alignment!r}")
    seen = None
    if mask is not None:
        seen = mask if mask.dtype == torch.bool else mask > -torch.inf
    if causal:
        t, s = q.shape[-2], k.shape[-2]
        past = torch.ones(t, s, dtype=torch.bool, device=q.device).tril(s - t if alignment == "bottom-right" else 0)
        seen = past if seen is None else seen & past
    return seen
