"""The contrastive losses over the processes of torch.distributed: each rank has some of the pairs, in rank order.

Every rank calls with its own pairs and is given the loss of all of them. Backward gives it the gradient of that loss by
its own features, and its share of those by scale and bias. So gradients summed over the ranks are those of one process.
(DistributedDataParallel averages: there, multiply the loss by the number of ranks.) Shards may differ in size, and be
empty.

Each rank meets the texts of all ranks, one shard after another, and what belongs to the texts (sums over columns,
gradients) is brought home to the rank that has them. `exchange` says how:

    "gather"   each shard is broadcast, and what belongs to it is reduced over the ranks
    "ring"     shards go round from each rank to the next, with what belongs to them: no rank waits for all others

Axes: n pair (of this rank), d channel.

Source: the losses as in `contrastive`; the ring as in H. Liu et al., arXiv:2310.01889, for attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from assay.impl.contrastive import (
    Sums,
    Tiles,
    by_features,
    clip_gradients,
    clip_sums,
    lone,
    scalar,
    shares,
    siglip_tiles,
    widened,
)
from assay.impl.inputs import pairs
from assay.impl.kernel import kernel


Tensors = tuple[torch.Tensor, ...]
Visit = Callable[[Tensors, Tensors, int], None]
"""Receives a shard, what belongs to it, to be changed in place, and by how much its columns are shifted."""


@kernel("clip_loss", world=2)
def clip_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    *,
    scale: float | torch.Tensor,
    exchange: str = "gather",
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """loss[] of the image[n, d] and text[n, d] of all ranks of the group.

    Raises: TypeError for integers, ValueError for other shapes or an unknown exchange.
    """
    pairs(image, text)
    c = scalar(scale, image)
    out: torch.Tensor = _Clip.apply(image, text, c, _Ranks(exchange, len(image), group))  # type: ignore[no-untyped-call]
    return out


@kernel("siglip_loss", world=2)
def siglip_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    *,
    scale: float | torch.Tensor,
    bias: float | torch.Tensor,
    exchange: str = "gather",
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """loss[] of the image[n, d] and text[n, d] of all ranks of the group.

    Raises: TypeError for integers, ValueError for other shapes or an unknown exchange.
    """
    pairs(image, text)
    scalars = scalar(scale, image), scalar(bias, image)
    ranks = _Ranks(exchange, len(image), group)
    asked = torch.is_grad_enabled() and any(x.requires_grad for x in (image, text, *scalars))
    out: torch.Tensor = _SigLip.apply(image, text, *scalars, ranks, asked)  # type: ignore[no-untyped-call]
    return out


@kernel("clip_loss", world=3)
def clip_loss_ring(image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor) -> torch.Tensor:
    """`clip_loss` with exchange="ring"."""
    return clip_loss(image, text, scale=scale, exchange="ring")


@kernel("siglip_loss", world=3)
def siglip_loss_ring(
    image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor, bias: float | torch.Tensor
) -> torch.Tensor:
    """`siglip_loss` with exchange="ring"."""
    return siglip_loss(image, text, scale=scale, bias=bias, exchange="ring")


# Exchanges ------------------------------------------------------------------------------------------------------------


class Bring(Protocol):
    """Reduces what belongs to a shard to the rank that has it."""

    def __call__(self, own: Tensors, home: int, group: dist.ProcessGroup | None) -> None: ...


def _added(own: Tensors, home: int, group: dist.ProcessGroup | None) -> None:
    for x in own:
        if len(x):
            dist.reduce(x, group=group, group_dst=home)


def _sums_added(own: Tensors, home: int, group: dist.ProcessGroup | None) -> None:
    """Sums below a top of their own: below the highest."""
    top, total = own
    if not len(top):
        return
    highest = top.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX, group)
    total.mul_((top - highest).exp_())
    top.copy_(highest)
    dist.reduce(total, group=group, group_dst=home)


class _Ranks:
    """The ranks of a group: how many pairs each has, and how shards of texts meet all of them."""

    def __init__(self, exchange: str, n: int, group: dist.ProcessGroup | None) -> None:
        if exchange not in ("gather", "ring"):
            raise ValueError(f"exchange must be gather or ring, not {exchange!r}")
        self.group = group
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        found = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(found, torch.tensor([n]), group)
        self.sizes = [int(size) for size in found]
        self.total = sum(self.sizes)
        self._round = self._ring if exchange == "ring" else self._gather

    def meet(self, shard: Tensors, empty: Callable[[int], Tensors], visit: Visit, bring: Bring) -> Tensors:
        """Take `shard` to every rank; return what belongs to it: `empty` of its size, and what every rank added."""
        return self._round(shard, empty, visit, bring)

    def _shift(self, source: int) -> int:
        """By how much the pairs of this rank come after those of another."""
        return sum(self.sizes[: self.rank]) - sum(self.sizes[:source])

    def _gather(self, shard: Tensors, empty: Callable[[int], Tensors], visit: Visit, bring: Bring) -> Tensors:
        kept: Tensors = ()
        for source, size in enumerate(self.sizes):
            there = tuple(x.contiguous() if source == self.rank else x.new_empty((size, *x.shape[1:])) for x in shard)
            for x in there if size else ():
                dist.broadcast(x, group=self.group, group_src=source)
            own = empty(size)
            visit(there, own, self._shift(source))
            bring(own, source, self.group)
            kept = own if source == self.rank else kept
        return kept

    def _ring(self, shard: Tensors, empty: Callable[[int], Tensors], visit: Visit, bring: Bring) -> Tensors:
        own = empty(self.sizes[self.rank])
        for step in range(self.count):
            source = (self.rank - step) % self.count
            visit(shard, own, self._shift(source))
            if self.count > 1:
                moved = self._passed_on((*shard, *own), self.sizes[source - 1])
                shard, own = moved[: len(shard)], moved[len(shard) :]
        return own

    def _passed_on(self, tensors: Tensors, size: int) -> Tensors:
        """To the next rank, and from the one before."""
        ahead, behind = (self.rank + 1) % self.count, (self.rank - 1) % self.count
        sent = tuple(x.contiguous() for x in tensors)
        received = tuple(x.new_empty((size, *x.shape[1:])) for x in tensors)
        sends = [dist.isend(x, group=self.group, group_dst=ahead, tag=i) for i, x in enumerate(sent) if len(x)]
        takes = [dist.irecv(x, group=self.group, group_src=behind, tag=i) for i, x in enumerate(received) if size]
        for work in (*sends, *takes):
            assert work is not None
            work.wait()
        return received


# The losses -----------------------------------------------------------------------------------------------------------


class _SigLip(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        text: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        ranks: _Ranks,
        asked: bool,
    ) -> torch.Tensor:
        x, y, c, b = widened(image, text, scale, bias)
        scaled, g_image = c * x, torch.zeros_like(x)
        total, g_bias = b.new_zeros(()), b.new_zeros(())

        def empty(n: int) -> Tensors:
            return (y.new_zeros((n, y.shape[1])),) if asked else ()

        def visit(there: Tensors, own: Tensors, shift: int) -> None:
            gradients = (g_image, own[0]) if own else None
            found = siglip_tiles(Tiles(scaled, there[0], shift), x, b, None, gradients)
            total.add_(found[0])
            g_bias.add_(found[1])

        g_text = ranks.meet((y,), empty, visit, _added)
        dist.all_reduce(total, group=ranks.group)
        if asked:
            ctx.save_for_backward(*by_features(x, c, (g_image, g_text[0])), g_bias)
            ctx.dtypes = [t.dtype for t in (image, text, scale, bias)]
            ctx.n = ranks.total
        return total / ranks.total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
        return (*shares(cotangent / ctx.n, ctx.saved_tensors, ctx.dtypes), None, None)


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, ranks: _Ranks) -> torch.Tensor:
        x, y, c = widened(image, text, scale)
        scaled, alone = c * x, c * (x * y).sum(dim=1)
        by_row = Sums(*Sums.empty(x, len(x)), alone)

        def visit(there: Tensors, own: Tensors, shift: int) -> None:
            clip_sums(Tiles(scaled, there[0], shift), by_row, Sums(*own), None)

        top, below = ranks.meet((y,), lambda n: Sums.empty(y, n), visit, _sums_added)
        by_column = Sums(top, below, alone)
        losses, logs, _ = zip(by_row.finished(), by_column.finished(), strict=True)
        total = losses[0].sum() + losses[1].sum()
        dist.all_reduce(total, group=ranks.group)
        ctx.save_for_backward(image, text, scale, *losses, *logs)
        ctx.ranks = ranks
        return total / (2 * ranks.total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
        image, text, scale, *losses, row_log, column_log = ctx.saved_tensors
        x, y, c = widened(image, text, scale)
        scaled, g_image, targets = c * x, torch.zeros_like(x), lone(*losses)

        def visit(there: Tensors, own: Tensors, shift: int) -> None:
            tiles = Tiles(scaled, there[0], shift)
            clip_gradients(tiles, x, (row_log, there[1]), targets, (g_image, own[0]))

        (g_text,) = ctx.ranks.meet((y, column_log), lambda n: (y.new_zeros((n, y.shape[1])),), visit, _added)
        found = by_features(x, c, (g_image, g_text))
        return (*shares(cotangent / (2 * ctx.ranks.total), found, [t.dtype for t in (image, text, scale)]), None)
