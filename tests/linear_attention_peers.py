"""Causal linear attention as people write it, for ours to be timed beside:

assay bench linear_attention=assay.impl.linear_attention linear_attention=tests/linear_attention_peers.py
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import assay


CHUNK = 64


@assay.kernel("linear_attention", form="quadratic-elu", dtypes=("float32",))
def quadratic(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """The definition: weights of every pair."""
    weights = (functional.elu(q) + 1) @ (functional.elu(k) + 1).mT
    if causal:
        weights = weights.tril()
    return weights @ v / weights.sum(dim=-1, keepdim=True)


@cache
def _compiled() -> Any:
    return torch.compile(quadratic, dynamic=True)


@assay.kernel("linear_attention", form="quadratic-elu", dtypes=("float32",))
def compiled(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """The same by torch.compile."""
    out: Tensor = _compiled()(q, k, v, causal=causal)
    return out


@assay.kernel("linear_attention", form="chunked-elu", dtypes=("float32",))
def loop(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """One chunk after the other, differentiated by autograd."""
    a, b = functional.elu(q) + 1, functional.elu(k) + 1
    values = torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)
    if not causal:
        sums = a @ (b.mT @ values)
        return sums[..., :-1] / sums[..., -1:]
    state = torch.zeros(*b.shape[:2], b.shape[-1], values.shape[-1], dtype=b.dtype)
    outs = []
    for start in range(0, q.shape[-2], CHUNK):
        x, y, z = (m[:, :, start : start + CHUNK] for m in (a, b, values))
        sums = x @ state + (x @ y.mT).tril() @ z
        state = state + y.mT @ z
        outs.append(sums[..., :-1] / sums[..., -1:])
    return torch.cat(outs, dim=-2)
