"""torchscale: the rotary embedding within `XPOS`, `fixed_pos_embedding(scale)` and `apply_rotary_pos_emb(x, sin, cos)`.

x is [b h, t, d], positions are rows of the table, the base is 10000. Angles are computed in float32 and cast to the
dtype of xPos's buffer `scale`, which is that of the model: here of x, as after `model.half()`. Layout: interleaved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.impl.adapters._inputs import four_axes, table_rows
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@kernel(
    "rope",
    conventions={"layout": "interleaved"},
    dtypes=("float64", "float32", "bfloat16", "float16"),
    requires=("torchscale",),
)
def xpos(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """As `XPOS.forward` rotates, without its scale."""
    import torch
    from torchscale.component.xpos_relative_position import apply_rotary_pos_emb, fixed_pos_embedding

    dtype = x.dtype if x.is_floating_point() else torch.float32
    buffer = torch.ones(table_rows(position, least=512), x.shape[-1] // 2, dtype=dtype, device=x.device)
    sin, cos = (table[position] for table in fixed_pos_embedding(buffer))
    rows = four_axes(x).flatten(0, 1)
    return apply_rotary_pos_emb(rows, sin, cos).view(x.shape)
