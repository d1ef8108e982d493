"""keras: `ops.dot_product_attention(query, key, value, bias=, mask=, scale=, is_causal=)` on the torch backend.

Axes are [b, t, h, d]. A boolean mask becomes numbers, a very negative one for a hidden key, so that a query that sees
none returns the mean of all values. The backend is chosen when keras is first imported, by KERAS_BACKEND: here it is
torch unless it was said before. Like torch's own function it takes `is_causal` or a `bias`, not both.
float64 is cast to float32.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@kernel(
    "softmax_attention",
    conventions={"alignment": "top-left", "unseeing": "mean"},
    dtypes=("float32", "bfloat16", "float16"),
    requires=("keras",),
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
    import torch

    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    if keras.backend.backend() != "torch":
        raise NotImplementedError(f"keras runs on {keras.backend.backend()} here, and not on torch")
    given: dict[str, Any] = {}
    if mask is not None and mask.dtype == torch.bool:
        given["mask"] = mask
    elif mask is not None:
        if causal:
            raise NotImplementedError("takes is_causal or a bias, not both")
        given["bias"] = mask
    turned = (x.transpose(1, 2) for x in (q, k, v))
    return keras.ops.dot_product_attention(*turned, scale=scale, is_causal=causal, **given).transpose(1, 2)
