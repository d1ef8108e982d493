"""local-attention: `LocalAttention(window_size, causal=, look_backward=, scale=)(q, k, v, mask=, attn_bias=)`.

Axes are [b, h, t, d]. With one window that holds the whole sequence, and without rotary embedding, it is softmax
attention of as many queries as keys; where there are fewer, they are the last ones, and what the others return is left
out. A boolean mask hides keys, [b, s]; a bias is [h, s, s]. Hidden scores are set to
the least finite number, so that a query of which every key is hidden returns the mean of all values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@kernel(
    "softmax_attention",
    conventions={"unseeing": "mean"},
    dtypes=("float64", "float32", "bfloat16", "float16"),
    requires=("local-attention",),
)
def local_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """One window of t positions, no window before or behind it."""
    import torch
    from local_attention import LocalAttention
    from torch.nn import functional

    earlier = k.shape[2] - q.shape[2]
    if q.shape[1] != k.shape[1] or earlier < 0:
        raise NotImplementedError("takes as many heads and positions of keys as of queries")
    given: dict[str, Any] = {}
    full = None if mask is None else mask[(None,) * (4 - mask.ndim)]
    if full is not None and full.dtype == torch.bool:
        if full.shape[1] > 1 or full.shape[2] > 1:
            raise NotImplementedError("a boolean mask says which keys there are, and not who sees them")
        given["mask"] = full[:, 0, 0].expand(q.shape[0], k.shape[2])
    elif full is not None:
        if full.shape[0] > 1:
            raise NotImplementedError("a bias is the same for all of a batch")
        if bool((full == -torch.inf).all(dim=-1).any()):
            raise NotImplementedError("a bias that hides every key of a query gives NaN: it is no mask")
        bias = full[0].expand(q.shape[1], q.shape[2], k.shape[2]).to(torch.promote_types(q.dtype, v.dtype))
        given["attn_bias"] = functional.pad(bias, (0, 0, earlier, 0))
    module = LocalAttention(
        k.shape[2], causal=causal, look_backward=0, look_forward=0, scale=scale, use_rotary_pos_emb=False
    )
    return module(functional.pad(q, (0, 0, earlier, 0)), k, v, **given)[:, :, earlier:]
