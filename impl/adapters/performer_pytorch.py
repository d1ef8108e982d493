"""performer-pytorch: random projections and Performer attention, ported from the JAX code of its paper; and its linear
attention of other features, and `FastAttention(dim, no_projection=True)`.

`gaussian_orthogonal_random_matrix` takes no seed and draws from torch's global generator, which is seeded here for the
call and then put back as it was.

`softmax_kernel` adds `eps` to its features and subtracts a maximum before: over the features of a query, over features
and positions of the keys of a head. `FastAttention` calls it with its default, 1e-4, which cannot be changed. Features
are positive ones.

`linear_attention` and `causal_linear_attention_noncuda` take features, and divide by the sum of the weights as it is: 0
gives a NaN. `eps` of the causal one is added to each sum of features, not to the denominator: 0 here. FastAttention
leaves it at 1e-6.
Without projection FastAttention is efficient attention. By default it has int(d ln d) random features, none for d = 1,
which it refuses: their number is given, and not used. Everything is computed in the dtype given.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from typing import TYPE_CHECKING, Any

from assay.impl.adapters._inputs import features
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@kernel("random_projection", dtypes=("float32",), backward="none", requires=("performer-pytorch",))
def gaussian_orthogonal_random_matrix(r: int, d: int, *, scaling: str = "chi", seed: int) -> torch.Tensor:
    """`gaussian_orthogonal_random_matrix(nb_rows, nb_columns, scaling=0 | 1)`."""
    import torch
    from performer_pytorch.performer_pytorch import gaussian_orthogonal_random_matrix as draw

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return draw(r, d, scaling={"chi": 0, "regularised": 1}[scaling])


@kernel(
    "performer_attention",
    conventions={"stabilizer": "head"},
    requires=("performer-pytorch",),
    dtypes=("float64", "float32", "bfloat16", "float16"),
)
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
    from performer_pytorch import performer_pytorch as package

    a = package.softmax_kernel(q, projection_matrix=projection, is_query=True, eps=eps)
    b = package.softmax_kernel(k, projection_matrix=projection, is_query=False, eps=eps)
    if causal:
        return package.causal_linear_attention_noncuda(a, b, v, eps=0.0)
    return package.linear_attention(a, b, v)


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
    return _module(q.shape[-1], q.shape[-1], causal=False, no_projection=True)(q, k, v)


@lru_cache(maxsize=8)
def _module(d: int, r: int, **chosen: Any) -> Any:
    """Made once, as a model makes it: this draws from torch's global generator."""
    import torch
    from performer_pytorch import FastAttention

    with redirect_stdout(StringIO()), torch.random.fork_rng(devices=()):  # it tells that it has no CUDA code
        return FastAttention(d, nb_features=r, **chosen)
