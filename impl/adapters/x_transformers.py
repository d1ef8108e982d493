"""x-transformers: `RotaryEmbedding(dim, base=)` gives the angles of any positions, `apply_rotary_pos_emb` rotates.

The module is built once and kept in float32. `scale`, which the package uses for xPos, multiplies cos and sin. The
leading channels are rotated ("partial rotary embeddings"). Layout: interleaved.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from assay.impl.adapters._inputs import four_axes, rotated_dim
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@lru_cache(maxsize=32)
def _module(dim: int, base: float, device: torch.device) -> Any:
    from x_transformers.x_transformers import RotaryEmbedding

    return RotaryEmbedding(dim, base=base).to(device)


@kernel(
    "rope",
    conventions={"layout": "interleaved"},
    dtypes=("float64", "float32", "bfloat16", "float16"),
    requires=("x-transformers",),
)
def apply_rotary_pos_emb(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    rotary_dim: int | None = None,
    attention_factor: float = 1.0,
) -> torch.Tensor:
    """As `AttentionLayers` rotates: angles from positions, then the query."""
    from x_transformers.x_transformers import apply_rotary_pos_emb as apply

    angles, scale = _module(rotated_dim(x, rotary_dim), base, x.device)(position)
    return apply(four_axes(x), angles, scale * attention_factor).reshape(x.shape)


@kernel(
    "softmax_attention",
    conventions={"grouping": "interleaved"},
    dtypes=("float64", "float32", "bfloat16", "float16"),
    requires=("x-transformers",),
)
def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """`Attend(scale=, causal=)(q, k, v, mask=, attn_bias=)`, without flash; `causal` wants t = s or one query."""
    import torch
    from x_transformers.attend import Attend

    if causal and q.shape[-2] not in (1, k.shape[-2]):
        raise NotImplementedError("causal is for as many queries as keys, or one")
    boolean = mask is not None and mask.dtype == torch.bool
    bias = None if mask is None or boolean else mask.expand(*q.shape[:-1], k.shape[-2]).to(q.dtype)
    module = Attend(scale=scale, causal=causal, heads=q.shape[1])
    return module(q, k, v, mask=mask if boolean else None, attn_bias=bias)[0]
