"""performer-pytorch: linear attention of features, causal and not, and `FastAttention(dim, no_projection=True)`.

`linear_attention` and `causal_linear_attention_noncuda` take features, and divide by the sum of the weights as it is: 0
gives a NaN. `eps` of the causal one is added to each sum of features, not to the denominator: 0 here.
Without projection FastAttention is efficient attention. By default it has int(d ln d) random features, none for d = 1,
which it refuses: their number is given, and not used. Everything is computed in the dtype given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.impl.adapters._inputs import features
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@kernel(
    "linear_attention",
    form="recurrent",
    requires=("performer-pytorch",),
    dtypes=("float64", "float32", "bfloat16", "float16"),
)
def linear_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, feature_map: str = "elu+1", causal: bool = False
) -> torch.Tensor:
    from performer_pytorch import performer_pytorch as package

    a, b = features(q, feature_map), features(k, feature_map)
    if causal:
        return package.causal_linear_attention_noncuda(a, b, v, eps=0.0)
    return package.linear_attention(a, b, v)


@kernel(
    "linear_attention",
    form="recurrent",
    conventions={"feature_map": "softmax"},
    requires=("performer-pytorch",),
    dtypes=("float64", "float32", "bfloat16", "float16"),
)
def fast_attention_without_projection(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Divides by the sum of the weights, which is 1."""
    from performer_pytorch import FastAttention

    return FastAttention(q.shape[-1], nb_features=q.shape[-1], no_projection=True)(q, k, v)
