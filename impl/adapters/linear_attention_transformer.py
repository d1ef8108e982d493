"""linear-attention-transformer: `causal_linear_attn(q, k, v, bucket_size=, eps=)`.

Features are the softmax of a query over its channels, times d**-0.5, and exp of the keys. The factors cancel in the
quotient: the map is exp, in the form whose features of a query add up to 1. With a `bucket_size` above 1 a query sees
only the buckets before its own, which is another function. `eps` is the least denominator: 0 here. Values have as many
channels as keys. The package's `linear_attn` is efficient attention times d**-0.5: another function as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@kernel(
    "linear_attention",
    form="recurrent-softmax",
    conventions={"feature_map": "exp"},
    requires=("linear-attention-transformer",),
    dtypes=("float64", "float32", "bfloat16", "float16"),
)
def causal_linear_attn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False) -> torch.Tensor:
    from linear_attention_transformer.linear_attention_transformer import causal_linear_attn as function

    if not causal or v.shape[-1] != q.shape[-1]:
        raise NotImplementedError("is causal, for values of as many channels as keys")
    return function(q, k, v, bucket_size=1, eps=0.0)
