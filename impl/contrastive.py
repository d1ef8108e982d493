"""Contrastive losses in torch, tile by tile: no matrix of n x n numbers is ever held, forward or backward.

`siglip_loss` is done in one pass: a tile of logits gives its share of the loss and of every gradient, 6 n^2 d flops and
nothing computed twice. `clip_loss` finds the log-sum-exps of rows and columns in one pass, 2 n^2 d flops, and computes
the tiles again for the gradients, 6 n^2 d.

Both are computed in float32 at least, and return that. Small losses are not lost: the positive of a row is left out of
its sum, and ln(1 + rest) is taken. Differentiable once, in both towers, in scale and in bias.

Axes: n pair, d channel.

Source: A. Radford et al., arXiv:2103.00020, figure 3; X. Zhai et al., arXiv:2303.15343, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from assay.impl.kernel import kernel


EVERY = ("float64", "float32", "bfloat16", "float16")
ROWS, COLUMNS = 512, 2048
"""The tile: 4 MiB in float32, which a cache holds."""
THRESHOLD = {torch.float32: 20.0, torch.float64: 40.0}
"""Where ln(1 + exp(y)) = y in the dtype."""


@kernel("clip_loss", dtypes=EVERY)
def clip_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    *,
    scale: float | torch.Tensor,
    positives: torch.Tensor | None = None,
) -> torch.Tensor:
    """loss[] of image[n, d], text[n, d] and, if given, the boolean positives[n, n]."""
    wide = torch.promote_types(image.dtype, torch.float32)
    out: torch.Tensor = _Clip.apply(image, text, _scalar(scale, image, wide), positives)  # type: ignore[no-untyped-call]
    return out


@kernel("siglip_loss", dtypes=EVERY)
def siglip_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    *,
    scale: float | torch.Tensor,
    bias: float | torch.Tensor,
    positives: torch.Tensor | None = None,
) -> torch.Tensor:
    """loss[] of image[n, d], text[n, d] and, if given, the boolean positives[n, n]."""
    wide = torch.promote_types(image.dtype, torch.float32)
    scalars = (_scalar(scale, image, wide), _scalar(bias, image, wide))
    asked = torch.is_grad_enabled() and any(x.requires_grad for x in (image, text, *scalars))
    out: torch.Tensor = _SigLip.apply(image, text, *scalars, positives, asked)  # type: ignore[no-untyped-call]
    return out


def _scalar(value: float | torch.Tensor, image: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    return torch.tensor(value, dtype=wide, device=image.device)


class _Tiles:
    """Tiles of image @ text^T, each in the same memory."""

    def __init__(self, image: torch.Tensor, text: torch.Tensor) -> None:
        self.image, self.text = image, text
        n = len(image)
        self.buffer = image.new_empty(min(ROWS, n) * min(COLUMNS, n))

    def __iter__(self) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        n = len(self.image)
        for i in range(0, n, ROWS):
            for j in range(0, n, COLUMNS):
                rows, columns = slice(i, min(i + ROWS, n)), slice(j, min(j + COLUMNS, n))
                shape = (rows.stop - i, columns.stop - j)
                tile = self.buffer[: shape[0] * shape[1]].view(shape)
                yield rows, columns, torch.mm(self.image[rows], self.text[columns].mT, out=tile)


def _diagonal(tile: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    """The elements of a tile that lie on the diagonal of the whole, as a view."""
    low, high = max(rows.start, columns.start), min(rows.stop, columns.stop)
    within = tile[low - rows.start : max(low, high) - rows.start, low - columns.start : max(low, high) - columns.start]
    return within.diagonal()


class _SigLip(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        text: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        positives: torch.Tensor | None,
        asked: bool,
    ) -> torch.Tensor:
        wide = torch.promote_types(image.dtype, torch.float32)
        x, y, c, b = (t.to(wide) for t in (image, text, scale, bias))
        n = len(x)
        total, g_bias = x.new_zeros(()), x.new_zeros(())
        g_image, g_text = (torch.zeros_like(t) if asked else t for t in (x, y))
        for rows, columns, tile in _Tiles(c * x, y):
            own = None if positives is None else positives[rows, columns]
            logits = _signed(tile.add_(b), own, rows, columns)  # -z l
            total += functional.softplus(logits, threshold=THRESHOLD[wide]).sum()
            if asked:
                g = _signed(logits.sigmoid_(), own, rows, columns)
                g_image[rows].addmm_(g, y[columns])
                g_text[columns].addmm_(g.mT, x[rows])
                g_bias += g.sum()
        if asked:
            ctx.save_for_backward(c * g_image, c * g_text, (g_image * x).sum(), g_bias)
            ctx.dtypes = [t.dtype for t in (image, text, scale, bias)]
            ctx.n = n
        loss: torch.Tensor = total / n
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
        share = cotangent / ctx.n
        found = (share * g for g in ctx.saved_tensors)
        return (*(g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True)), None, None)


def _signed(tile: torch.Tensor, own: torch.Tensor | None, rows: slice, columns: slice) -> torch.Tensor:
    """Positive pairs negated, in place."""
    if own is None:
        _diagonal(tile, rows, columns).neg_()
    else:
        torch.where(own, -tile, tile, out=tile)
    return tile


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, positives: torch.Tensor | None
    ) -> torch.Tensor:
        wide = torch.promote_types(image.dtype, torch.float32)
        x, y, c = (t.to(wide) for t in (image, text, scale))
        alone = None if positives is not None else c * (x * y).sum(dim=1)
        by_row, by_column = _Sums(x, alone), _Sums(y, alone)
        for rows, columns, tile in _Tiles(c * x, y):
            if positives is None:
                _diagonal(tile, rows, columns).fill_(-torch.inf)
                by_row.add(rows, tile)
                by_column.add(columns, tile.mT)
            else:
                by_row.add(rows, tile, positives[rows, columns])
                by_column.add(columns, tile.mT, positives[rows, columns].mT)
        losses, logs, counts = zip(*(s.finished() for s in (by_row, by_column)), strict=True)
        ctx.save_for_backward(image, text, scale, positives, *losses, *logs, *counts)
        loss: torch.Tensor = (losses[0].mean() + losses[1].mean()) / 2
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
        image, text, scale, positives, *rest = ctx.saved_tensors
        (row_loss, column_loss), (row_log, column_log), (row_count, column_count) = rest[:2], rest[2:4], rest[4:]
        x, y, c = (t.to(row_loss.dtype) for t in (image, text, scale))
        g_image, g_text = torch.zeros_like(x), torch.zeros_like(y)
        on_diagonal = (-row_loss).expm1() + (-column_loss).expm1()  # p - 1 of a lone positive, with nothing lost
        for rows, columns, tile in _Tiles(c * x, y):
            g = (tile - row_log[rows, None]).exp_()
            g += tile.sub_(column_log[columns]).exp_()
            if positives is None:
                diagonal = _diagonal(g, rows, columns)
                first = max(rows.start, columns.start)
                diagonal.copy_(on_diagonal[first : first + len(diagonal)])
            else:
                target = 1 / row_count[rows, None] + 1 / column_count[columns]
                g -= target.where(positives[rows, columns], 0)
            g_image[rows].addmm_(g, y[columns])
            g_text[columns].addmm_(g.mT, x[rows])
        share = cotangent / (2 * len(x))
        found = (share * c * g_image, share * c * g_text, share * (g_image * x).sum())
        return (*(g.to(t.dtype) for g, t in zip(found, (image, text, scale), strict=True)), None)


class _Sums:
    """The log-sum-exp of each row of scores, less the mean of its positives, from tile after tile.

    `alone`: the scores of the only positives, which the tiles then do not have.
    """

    def __init__(self, like: torch.Tensor, alone: torch.Tensor | None) -> None:
        n = len(like)
        self.alone = alone is not None
        self.positive = like.new_zeros(n) if alone is None else alone
        self.count = like.new_zeros(n) if alone is None else torch.ones_like(alone)
        self.top = like.new_full((n,), -torch.inf) if alone is None else alone.clone()
        self.sum = like.new_zeros(n)

    def add(self, rows: slice, tile: torch.Tensor, own: torch.Tensor | None = None) -> None:
        before = self.top[rows]
        top = torch.maximum(before, tile.amax(dim=1))
        self.sum[rows] = self.sum[rows] * (before - top).exp() + (tile - top[:, None]).exp_().sum(dim=1)
        self.top[rows] = top
        if own is not None:
            self.positive[rows] += tile.where(own, 0).sum(dim=1)
            self.count[rows] += own.sum(dim=1)

    def finished(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return finished(self.top, self.sum, self.positive, self.count, self.alone)


def finished(
    top: torch.Tensor, total: torch.Tensor, positive: torch.Tensor, count: torch.Tensor, alone: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, log-sum-exps and numbers of positives; of a row without any, 0, infinity and 0.

    top[n]: a shift of each row; total[n]: its sum of exp(score - top), if `alone` without its positive; positive[n],
    count[n]: the sum of the scores of its positives, and their number.
    """
    mean = positive / count.clamp(min=1)
    above = top - mean
    log = torch.log1p(total + ((-above).expm1() if alone else -1))
    none = count == 0
    return (above + log).masked_fill(none, 0), (top + log).masked_fill(none, torch.inf), count
