"""rotary-embedding-torch: one module, `RotaryEmbedding(dim, custom_freqs, theta)`, built once and kept in float32.

Its README rotates queries and keys by `rotate_queries_or_keys(t, offset=)`, which caches the angles of positions from
zero; or computes angles of any positions by calling the module and applies them with `apply_rotary_emb`. Both multiply
cos and sin by an optional `scale`. Layout: interleaved.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from assay.impl.adapters._inputs import four_axes, offset, rotated_dim
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


ALL = ("float64", "float32", "bfloat16", "float16")
INTERLEAVED = {"layout": "interleaved"}


@lru_cache(maxsize=32)
def _module(dim: int, base: float, custom: tuple[float, ...] | None, dtype: Any, device: torch.device) -> Any:
    import torch
    from rotary_embedding_torch import RotaryEmbedding

    if custom is None:
        return RotaryEmbedding(dim, theta=base).to(device)
    return RotaryEmbedding(dim, custom_freqs=torch.tensor(custom, dtype=dtype)).to(device)


def _rotary(x: torch.Tensor, base: float, frequencies: torch.Tensor | None, rotary_dim: int | None) -> Any:
    dim = rotated_dim(x, rotary_dim)
    if frequencies is None:
        return _module(dim, base, None, None, x.device)
    return _module(dim, base, tuple(frequencies.tolist()), frequencies.dtype, x.device)


@kernel("rope", conventions=INTERLEAVED, dtypes=ALL, requires=("rotary-embedding-torch",))
def rotate_queries_or_keys(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    frequencies: torch.Tensor | None = None,
    rotary_dim: int | None = None,
    attention_factor: float = 1.0,
) -> torch.Tensor:
    """The usual call: positions are offset + 0, 1, 2, ..."""
    rotary = _rotary(x, base, frequencies, rotary_dim)
    scale = None if attention_factor == 1.0 else attention_factor
    q = four_axes(x)
    return rotary.rotate_queries_or_keys(q, offset=offset(position, x), scale=scale).reshape(x.shape)


@kernel("rope", conventions=INTERLEAVED, dtypes=ALL, requires=("rotary-embedding-torch",))
def apply_rotary_emb(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    frequencies: torch.Tensor | None = None,
    rotary_dim: int | None = None,
    attention_factor: float = 1.0,
) -> torch.Tensor:
    """Angles of any positions, computed anew at each call."""
    from rotary_embedding_torch import apply_rotary_emb as apply

    angles = _rotary(x, base, frequencies, rotary_dim)(position)
    return apply(angles, four_axes(x), scale=attention_factor).reshape(x.shape)
