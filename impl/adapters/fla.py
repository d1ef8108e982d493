"""flash-linear-attention: rotary encoding, and linear attention as its naive reference and in Triton.

`fla.modules.RotaryEmbedding(dim, base, interleaved=)(q, k, seqlen_offset=)`, in Triton.

The module keeps a table of cos and sin, computed in float32, in the dtype of q, and lengthens it as offsets ask; its
kernel computes in float32 whatever x is, [b, t, h, d]. A negative offset means left padding there, rows of zeros, so
it is not a position. Layout: both, `interleaved`. bfloat16 is left out: Triton's interpreter truncates where a GPU
rounds.

`fla.ops.linear_attn`: q, k and v as [b, t, h, .], features left to the user, causal, `scale` d**-0.5 unless given. The
state is [b, h, d, e], with `normalize` a pair with the sum of the keys, [b, 1, h, d]; the denominator is always 1e-10
greater. `fused_recurrent_linear_attn` is one program per head that walks over time; it is not asked to normalise, which
is a kernel of its own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from assay.impl.adapters._inputs import features, four_axes, offset, rotated_dim, runs_triton, table_rows
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


def _untimed(function: Any) -> None:
    """The interpreter has no device to time the launch options on, which say nothing about the result: with one of them
    left, the autotuner skips the timing."""
    while not hasattr(function, "configs"):
        function = function.fn
    function.configs = function.configs[:1]


@lru_cache(maxsize=8)
def _module(dim: int, base: float, interleaved: bool, device: torch.device) -> Any:
    import torch
    from fla.modules.rotary import RotaryEmbedding, ops

    if not torch.cuda.is_available():
        _untimed(ops.rotary_embedding_kernel)
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
    start = offset(position, x)
    table_rows(position, least=1)  # raises where the table would have to begin below zero or never end
    rotary = _module(rotated_dim(x, rotary_dim), base, layout == "interleaved", x.device)
    q = four_axes(x).transpose(1, 2)
    # One head stands for the key, which the module insists on rotating too.
    rotated, _ = rotary(q, q[:, :, :1], seqlen_offset=start)
    return rotated.transpose(1, 2).reshape(x.shape)


def _linear(
    function: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    feature_map: str,
    causal: bool,
    normalize: bool,
    state: torch.Tensor | None,
    return_state: bool,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Our axes and our state, as the function has them."""
    import torch

    if not causal:
        raise NotImplementedError("is causal")
    q, k, v = (x.transpose(1, 2) for x in (features(q, feature_map), features(k, feature_map), v))
    initial: Any = None if state is None else state.float()
    if initial is not None and normalize:
        initial = initial[..., :-1], initial[..., -1][:, None]
    out, after = function(
        q, k, v, scale=1.0, initial_state=initial, output_final_state=return_state, normalize=normalize
    )
    out = out.transpose(1, 2)
    if not return_state:
        return out
    if normalize:
        after = torch.cat((after[0], after[1][:, 0, :, :, None]), dim=-1)
    return out, after.to(q.dtype)


@kernel("linear_attention", form="recurrent", requires=("fla-core",))
def naive_recurrent_linear_attn(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    feature_map: str = "elu+1",
    causal: bool = False,
    normalize: bool = True,
    state: torch.Tensor | None = None,
    return_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Computes in float32."""
    from fla.ops.linear_attn.naive import naive_recurrent_linear_attn as function

    return _linear(function, q, k, v, feature_map, causal, normalize, state, return_state)


@kernel(
    "linear_attention",
    form="recurrent",
    dtypes=("float32", "float16"),
    requires=("fla-core", "triton"),
    interpreted=True,
)
def fused_recurrent_linear_attn(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    feature_map: str = "elu+1",
    causal: bool = False,
    normalize: bool = True,
    state: torch.Tensor | None = None,
    return_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Computes in float32."""
    import torch
    from fla.ops.common import fused_recurrent
    from fla.ops.linear_attn import fused_recurrent_linear_attn as function

    runs_triton(q)
    if normalize:
        raise NotImplementedError("is not asked to normalise")
    if not torch.cuda.is_available():
        _untimed(fused_recurrent.fused_recurrent_fwd_kernel)
        _untimed(fused_recurrent.fused_recurrent_bwd_kernel)
    return _linear(function, q, k, v, feature_map, causal, normalize, state, return_state)
