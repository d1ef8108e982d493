"""liger-kernel: Triton, in place of the functions that transformers' models apply; it takes cos and sin from them.

Here cos and sin are computed in float64 and cast to the dtype of x, as those models cast theirs; `rotary_dim` is the
width of cos. Layout: half (Llama, Qwen2-VL), interleaved (Llama 4). All three rotate in place, query, key and
cotangents too, where these lie in memory as [b, t, h, d]. bfloat16 is left out: Triton's interpreter cannot compute in
it, as the first two do, and truncates what is stored in it, as the third does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.impl.adapters._inputs import cosines_and_sines, four_axes, rotated_dim, runs_triton
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


HALF = {"layout": "half"}
DTYPES = ("float64", "float32", "float16")
REQUIRES = ("liger-kernel", "triton")


@kernel("rope", conventions=HALF, dtypes=DTYPES, requires=REQUIRES, interpreted=True)
def llama(
    x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0, rotary_dim: int | None = None
) -> torch.Tensor:
    """`LigerRopeFunction`."""
    runs_triton(x)
    import torch
    from liger_kernel.ops import LigerRopeFunction

    cos, sin = cosines_and_sines(position, rotated_dim(x, rotary_dim), base)
    cos, sin = (torch.cat([half, half], dim=-1).to(x.dtype)[None] for half in (cos, sin))
    q = four_axes(x)
    return LigerRopeFunction.apply(q, _key(q), cos, sin)[0].reshape(x.shape)


@kernel("rope", conventions=HALF, dtypes=DTYPES, requires=REQUIRES, interpreted=True)
def qwen2_vl(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    sections: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """`LigerQwen2VLMRopeFunction`: M-RoPE, cos and sin of three axes, [3, b, t, d]; text is the same on all three."""
    runs_triton(x)
    import torch
    from liger_kernel.ops import LigerQwen2VLMRopeFunction

    if sections is not None and len(sections) != 3:
        raise NotImplementedError("M-RoPE has three axes here: time, height, width")
    q = four_axes(x)
    b, _, _, d = q.shape
    axes = position.expand(3, -1) if sections is None else position.mT
    tables = zip(*(cosines_and_sines(axis, d, base) for axis in axes), strict=True)
    cos, sin = (torch.stack(table).to(x.dtype).repeat(1, 1, 2)[:, None].repeat(1, b, 1, 1) for table in tables)
    split = sections or (d // 2, 0, 0)
    return LigerQwen2VLMRopeFunction.apply(q, _key(q), cos, sin, split)[0].reshape(x.shape)


@kernel("rope", conventions={"layout": "interleaved"}, dtypes=DTYPES, requires=REQUIRES, interpreted=True)
def llama4(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """`LigerLlama4RopeFunction`: x[b, t, h, d] times complex64 numbers."""
    runs_triton(x)
    import torch
    from liger_kernel.ops import LigerLlama4RopeFunction

    freqs_cis = torch.complex(*cosines_and_sines(position, x.shape[-1], base)).to(torch.complex64)
    q = four_axes(x).transpose(1, 2)
    key = _key(q.transpose(1, 2)).transpose(1, 2)
    return LigerLlama4RopeFunction.apply(q, key, freqs_cis[None])[0].transpose(1, 2).reshape(x.shape)


def _key(q: torch.Tensor) -> torch.Tensor:
    """One head of zeros: the kernels rotate query and key together and in place, so they may not share memory."""
    import torch

    return torch.zeros_like(q[:, :1])
