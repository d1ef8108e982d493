"""Contrastive losses over several ranks, right, wrong and fatal, for the suite to judge."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from assay.impl import sharded


Number = float | Tensor


def clip_gather(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    return sharded.clip_loss(image, text, scale=scale, exchange="gather")


def clip_ring(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    return sharded.clip_loss(image, text, scale=scale, exchange="ring")


def siglip_gather(image: Tensor, text: Tensor, *, scale: Number, bias: Number) -> Tensor:
    return sharded.siglip_loss(image, text, scale=scale, bias=bias, exchange="gather")


def siglip_ring(image: Tensor, text: Tensor, *, scale: Number, bias: Number) -> Tensor:
    return sharded.siglip_loss(image, text, scale=scale, bias=bias, exchange="ring")


# As people write them: all features are gathered; a rank has the rows of its images, the columns of its texts ---------


class Gathered(torch.autograd.Function):
    """The shards of all ranks, side by side; backward adds up what all ranks want of this one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        parts = [
            x.detach().clone() if r == dist.get_rank() else x.new_empty(n, x.shape[1]) for r, n in enumerate(sizes)
        ]
        for r, part in enumerate(parts):
            if len(part):
                dist.broadcast(part, r)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        g = cotangents[0].clone()
        dist.all_reduce(g)
        return g.split(ctx.sizes)[dist.get_rank()], None


class Summed(torch.autograd.Function):
    """The sum over ranks; each rank passes on its own cotangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return cotangents[0]


def sizes_of(n: int) -> list[int]:
    found = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(found, torch.tensor([n]))
    return [int(size) for size in found]


def _with_own(parts: tuple[Tensor, ...], own: Tensor) -> list[Tensor]:
    return [own if r == dist.get_rank() else part for r, part in enumerate(parts)]


def gathered(
    *towers: Tensor, offset: bool = True, differentiable: bool = True, twice: bool = False
) -> tuple[list[Tensor], Tensor, int]:
    """The towers of all ranks, the places of this rank's pairs among them, and how many pairs there are."""
    sizes = sizes_of(len(towers[0]))
    found = [Gathered.apply(x, sizes) for x in towers]  # type: ignore[no-untyped-call]
    if not differentiable:  # but for what is this rank's own
        found = [torch.cat(_with_own(x.detach().split(sizes), own)) for x, own in zip(found, towers, strict=True)]
    if twice:
        found = [torch.cat([x, x[-sizes[-1] :]]) for x in found]
    start = sum(sizes[: dist.get_rank()]) if offset else 0
    return found, start + torch.arange(len(towers[0])), sum(sizes)


def clip(image: Tensor, text: Tensor, *, scale: Number, **slip: bool) -> Tensor:
    (images, texts), own, n = gathered(image, text, **slip)
    rows = functional.cross_entropy(scale * image @ texts.mT, own, reduction="sum")
    columns = functional.cross_entropy(scale * text @ images.mT, own, reduction="sum")
    return Summed.apply((rows + columns) / (2 * n))  # type: ignore[no-any-return, no-untyped-call]


def siglip(image: Tensor, text: Tensor, *, scale: Number, bias: Number, **slip: bool) -> Tensor:
    (texts,), own, n = gathered(text, **slip)
    logits = scale * image @ texts.mT + bias
    positive = own[:, None] == torch.arange(len(texts))
    return Summed.apply(-functional.logsigmoid(torch.where(positive, logits, -logits)).sum() / n)  # type: ignore[no-any-return, no-untyped-call]


def clip_without_offset(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    return clip(image, text, scale=scale, offset=False)


def clip_without_gradient(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    return clip(image, text, scale=scale, differentiable=False)


def clip_seen_twice(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    return clip(image, text, scale=scale, twice=True)


def siglip_without_offset(image: Tensor, text: Tensor, *, scale: Number, bias: Number) -> Tensor:
    return siglip(image, text, scale=scale, bias=bias, offset=False)


def siglip_without_gradient(image: Tensor, text: Tensor, *, scale: Number, bias: Number) -> Tensor:
    return siglip(image, text, scale=scale, bias=bias, differentiable=False)


def siglip_seen_twice(image: Tensor, text: Tensor, *, scale: Number, bias: Number) -> Tensor:
    return siglip(image, text, scale=scale, bias=bias, twice=True)


def _scaled(x: Number) -> Any:
    """The value is kept, its gradient multiplied by the number of ranks."""
    if not isinstance(x, Tensor):
        return x
    w = dist.get_world_size()
    return w * x - ((w - 1) * x).detach()


def clip_scaled(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    return sharded.clip_loss(_scaled(image), _scaled(text), scale=_scaled(scale))


def siglip_scaled(image: Tensor, text: Tensor, *, scale: Number, bias: Number) -> Tensor:
    return sharded.siglip_loss(_scaled(image), _scaled(text), scale=_scaled(scale), bias=_scaled(bias))


def clip_of_one_rank(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    """Each rank the loss of its own pairs."""
    s = scale * image @ text.mT
    own = torch.arange(len(s))
    return (functional.cross_entropy(s, own) + functional.cross_entropy(s.mT, own)) / 2


# Fatal ----------------------------------------------------------------------------------------------------------------


def dies(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    if dist.get_rank() == 1:
        os._exit(7)
    return clip_gather(image, text, scale=scale)


def hangs(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    if dist.get_rank() == 1:
        time.sleep(3600)
    return clip_gather(image, text, scale=scale)


def raises(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    if dist.get_rank() == 1:
        raise RuntimeError("no such kernel")
    return clip_gather(image, text, scale=scale)


def refuses(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    raise NotImplementedError("not for these")
