"""jax: `nn.dot_product_attention(query, key, value, bias, mask, scale=, is_causal=)`, its arrays shared by DLPack.

Axes are [b, t, h, d]. A query of which every key is hidden by a boolean mask returns the mean of all values; values
have as many channels as keys. Gradients are those of `jax.vjp`. Without jax_enable_x64, which is a setting of the whole
process, there is no float64. What has no elements is not exchanged: DLPack says nothing of where it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.utils.dlpack

from assay.impl.kernel import kernel


if TYPE_CHECKING:
    from collections.abc import Callable


class _Shared(torch.autograd.Function):
    """A function of JAX arrays, applied to tensors."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *tensors: torch.Tensor) -> torch.Tensor:
        import jax

        out, ctx.pull = jax.vjp(function, *(_to_jax(t) for t in tensors))
        return _to_torch(out)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[Any, ...]:
        return None, *(_to_torch(g) for g in ctx.pull(_to_jax(cotangents[0])))


def _to_jax(x: torch.Tensor) -> Any:
    import jax

    return jax.dlpack.from_dlpack(x.detach().contiguous())


def _to_torch(x: Any) -> torch.Tensor:
    return torch.utils.dlpack.from_dlpack(x).clone()  # JAX's arrays are never written to


@kernel(
    "softmax_attention",
    conventions={"alignment": "top-left", "unseeing": "mean"},
    dtypes=("float32", "bfloat16", "float16"),
    requires=("jax",),
)
def dot_product_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """With implementation="xla", the one that runs everywhere."""
    import jax

    if not (q.numel() and k.numel() and v.numel()):
        raise NotImplementedError("what has no elements is not exchanged")
    if v.shape[-1] != q.shape[-1]:
        raise NotImplementedError("values have as many channels as keys")
    given: dict[str, Any] = {}
    if mask is not None:
        if mask.dtype != torch.bool and bool((mask == -torch.inf).all(dim=-1).any()):
            raise NotImplementedError("a bias that hides every key of a query gives NaN")
        full = _to_jax(mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2]))
        given["mask" if mask.dtype == torch.bool else "bias"] = full

    def attention(q: Any, k: Any, v: Any) -> Any:
        return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=causal, implementation="xla", **given)

    out: torch.Tensor = _Shared.apply(attention, *(x.transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2)
