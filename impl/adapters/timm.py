"""timm: `build_rotary_pos_embed` tabulates sin and cos of a grid of positions, `apply_rot_embed` rotates.

Its vision models use a grid of two axes, each with the same bands, which is another function; here the grid has one
axis, index positions (`in_pixels=False`) and `grid_offset`. The embedding keeps its default, float32: the rotation is
documented to use "normal dtype promotion" and to be cast to the dtype of x at the end. Layout: both, `half`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.impl.adapters._inputs import four_axes, offset
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@kernel("rope", dtypes=("float64", "float32", "bfloat16", "float16"), requires=("timm", "torchvision"))
def apply_rot_embed(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    frequencies: torch.Tensor | None = None,
    layout: str = "half",
) -> torch.Tensor:
    """Positions are contiguous: the grid's axis and its offset."""
    from timm.layers.pos_embed_sincos import apply_rot_embed as apply, build_rotary_pos_embed

    t, d = x.shape[-2:]
    sin, cos = build_rotary_pos_embed(
        [t],
        bands=frequencies,
        # Documented as the width over two axes, a quarter of it being the bands of one.
        dim=2 * d,
        temperature=base,
        in_pixels=False,
        grid_offset=float(offset(position, x)),
        rotate_half=layout == "half",
        device=x.device,
    )
    return apply(four_axes(x), sin, cos, half=layout == "half").reshape(x.shape)
