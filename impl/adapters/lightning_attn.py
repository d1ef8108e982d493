"""lightning-attn: `lightning_attn.ops.torch.linear_attn(q, k, v)`, the plain causal reference, not normalised, without
decay; q k^T is kept in the dtype of q. Its Triton functions need a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.impl.adapters._inputs import features
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@kernel("linear_attention", form="quadratic", requires=("lightning-attn",))
def linear_attn(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    feature_map: str = "elu+1",
    causal: bool = False,
    normalize: bool = True,
) -> torch.Tensor:
    from lightning_attn.ops.torch import linear_attn as function

    if not causal or normalize:
        raise NotImplementedError("is causal and does not normalise")
    return function(features(q, feature_map), features(k, feature_map), v)
