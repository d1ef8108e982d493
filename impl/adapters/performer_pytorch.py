"""performer-pytorch: random projections, features and attention of Performer, ported from the JAX code of its paper.

`gaussian_orthogonal_random_matrix` takes no seed and draws from torch's global generator, which is seeded here for the
call and then put back as it was.

`softmax_kernel` always adds `eps` to its features and subtracts a maximum before: over the features of a query, over
features and positions of the keys of a head. `FastAttention` calls it with its default, 1e-4, which cannot be changed.
For causal attention on the CPU it takes `causal_linear_attention_noncuda`, which adds another eps, 1e-6, to the sums of
the keys' features. Both are asked for what their signatures offer; features are positive ones.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from typing import TYPE_CHECKING, Any

from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@kernel("random_projection", dtypes=("float32",), requires=("performer-pytorch",))
def gaussian_orthogonal_random_matrix(r: int, d: int, *, scaling: str = "chi", seed: int) -> torch.Tensor:
    """`gaussian_orthogonal_random_matrix(nb_rows, nb_columns, scaling=0 | 1)`."""
    import torch
    from performer_pytorch.performer_pytorch import gaussian_orthogonal_random_matrix as draw

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return draw(r, d, scaling={"chi": 0, "regularised": 1}[scaling])


@kernel("performer_attention", conventions={"stabilizer": "head"}, requires=("performer-pytorch",))
def softmax_kernel(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    projection: torch.Tensor,
    *,
    causal: bool = False,
    eps: float = 0.0,
) -> torch.Tensor:
    """`softmax_kernel(eps=)` of queries and keys, then its linear attention, causal or not, with eps=0."""
    from performer_pytorch.performer_pytorch import (
        causal_linear_attention_noncuda,
        linear_attention,
        softmax_kernel as features,
    )

    a, b = (
        features(x, projection_matrix=projection, is_query=queries, eps=eps) for x, queries in ((q, True), (k, False))
    )
    return causal_linear_attention_noncuda(a, b, v, eps=0.0) if causal else linear_attention(a, b, v)


@kernel("performer_attention", conventions={"stabilizer": "head", "eps": "1e-4"}, requires=("performer-pytorch",))
def fast_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, projection: torch.Tensor, *, causal: bool = False
) -> torch.Tensor:
    """`FastAttention(dim_heads, nb_features, causal)` with the projection as its buffer."""
    module = _module(q.shape[-1], projection.shape[0], causal)
    module.projection_matrix = projection
    return module(q, k, v)


@lru_cache(maxsize=8)
def _module(d: int, r: int, causal: bool) -> Any:
    import torch
    from performer_pytorch import FastAttention

    with redirect_stdout(StringIO()), torch.random.fork_rng(devices=()):  # it tells that it has no CUDA code
        return FastAttention(d, nb_features=r, causal=causal)
