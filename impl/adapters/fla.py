"""flash-linear-attention: `fla.modules.RotaryEmbedding(dim, base, interleaved=)(q, k, seqlen_offset=)`, in Triton.

The module keeps a table of cos and sin, computed in float32, in the dtype of q, and lengthens it as offsets ask; its
kernel computes in float32 whatever x is, [b, t, h, d]. A negative offset means left padding there, rows of zeros, so
it is not a position. Layout: both, `interleaved`. bfloat16 is left out: Triton's interpreter truncates where a GPU
rounds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from assay.impl.adapters._inputs import four_axes, offset, rotated_dim, runs_triton, table_rows
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@lru_cache(maxsize=8)
def _module(dim: int, base: float, interleaved: bool, device: torch.device) -> Any:
    import torch
    from fla.modules.rotary import RotaryEmbedding, ops

    if not torch.cuda.is_available():
        # The interpreter has no device to time the launch options on, which say nothing about the result: with one
        # of them left, this kernel's autotuner (and no other) skips the timing.
        ops.rotary_embedding_kernel.configs = ops.rotary_embedding_kernel.configs[:1]
    return RotaryEmbedding(dim, base=base, interleaved=interleaved, device=device)


@kernel(
    "rope",
    dtypes=("float64", "float32", "float16"),
    requires=("fla-core", "triton"),
    interpreted=True,
)
def rotary_embedding(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    layout: str = "half",
    rotary_dim: int | None = None,
) -> torch.Tensor:
    """Positions are seqlen_offset + 0, 1, 2, ..."""
    runs_triton(x)
    start = offset(position)
    table_rows(position, least=1)  # raises where the table would have to begin below zero or never end
    rotary = _module(rotated_dim(x, rotary_dim), base, layout == "interleaved", x.device)
    q = four_axes(x).transpose(1, 2)
    # One head stands for the key, which the module insists on rotating too.
    rotated, _ = rotary(q, q[:, :, :1], seqlen_offset=start)
    return rotated.transpose(1, 2).reshape(x.shape)
