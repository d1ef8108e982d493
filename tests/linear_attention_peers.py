"""Causal linear attention as people write it, for ours to be timed beside:

assay bench linear_attention=assay.impl.linear_attention:linear_attention \\
    linear_attention=tests/linear_attention_peers.py:loop --case "one head" --lengths t+s=1024,4096,16384 --wrong
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import assay


CHUNK = 64
MOST = 32_768
"""Positions, of which every pair has a weight: more weights do not fit into this memory."""


def _definition(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    weights = (functional.elu(q) + 1) @ (functional.elu(k) + 1).mT
    if causal:
        weights = weights.tril()
    return weights @ v / weights.sum(dim=-1, keepdim=True)


def _fits(q: Tensor, k: Tensor) -> None:
    if max(q.shape[-2], k.shape[-2]) > MOST:
        raise NotImplementedError(f"is not asked for more than {MOST:,} positions")


@assay.kernel("linear_attention", form="quadratic-elu", dtypes=("float32",))
def quadratic(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """The definition: weights of every pair."""
    _fits(q, k)
    return _definition(q, k, v, causal)


@cache
def _compiled() -> Any:
    return torch.compile(_definition, dynamic=True)


@assay.kernel("linear_attention", form="quadratic-elu", dtypes=("float32",))
def compiled(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """The same by torch.compile."""
    _fits(q, k)
    out: Tensor = _compiled()(q, k, v, causal)
    return out


@assay.kernel("linear_attention", form="chunked-elu", dtypes=("float32",))
def loop(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """One chunk after the other, by autograd: split, as the gradient of a slice is as long as the whole."""
    a, b = functional.elu(q) + 1, functional.elu(k) + 1
    values = torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)
    if not causal:
        sums = a @ (b.mT @ values)
        return sums[..., :-1] / sums[..., -1:]
    state = torch.zeros(*b.shape[:2], b.shape[-1], values.shape[-1], dtype=b.dtype)
    outs = []
    for x, y, z in zip(*(m.split(CHUNK, dim=-2) for m in (a, b, values)), strict=True):
        sums = x @ state + (x @ y.mT).tril() @ z
        state = state + y.mT @ z
        outs.append(sums[..., :-1] / sums[..., -1:])
    return torch.cat(outs, dim=-2)
