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

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from assay.impl.inputs import pairs
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
    """loss[] of image[n, d], text[n, d] and, if given, the boolean positives[n, n].

    Raises: TypeError for integers, ValueError for other shapes.
    """
    pairs(image, text, positives)
    out: torch.Tensor = _Clip.apply(image, text, scalar(scale, image), positives)  # type: ignore[no-untyped-call]
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
    """loss[] of image[n, d], text[n, d] and, if given, the boolean positives[n, n].

    Raises: TypeError for integers, ValueError for other shapes.
    """
    pairs(image, text, positives)
    scalars = scalar(scale, image), scalar(bias, image)
    asked = torch.is_grad_enabled() and any(x.requires_grad for x in (image, text, *scalars))
    out: torch.Tensor = _SigLip.apply(image, text, *scalars, positives, asked)  # type: ignore[no-untyped-call]
    return out


def scalar(value: float | torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    return torch.tensor(value, dtype=torch.promote_types(image.dtype, torch.float32), device=image.device)


def widened(image: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All in the dtype of the image tower, or in float32 if that is wider."""
    wide = torch.promote_types(image.dtype, torch.float32)
    return tuple(t.to(wide) for t in (image, *others))


class Tiles:
    """Tiles of image @ text^T, each in the same memory.

    Row i belongs to column i + shift: 0 but where the towers are parts of longer ones.
    """

    def __init__(self, image: torch.Tensor, text: torch.Tensor, shift: int = 0) -> None:
        self.image, self.text, self.shift = image, text, shift
        self.buffer = image.new_empty(min(ROWS, len(image)) * min(COLUMNS, len(text)))

    def __iter__(self) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        m, n = len(self.image), len(self.text)
        for i in range(0, m, ROWS):
            for j in range(0, n, COLUMNS):
                rows, columns = slice(i, min(i + ROWS, m)), slice(j, min(j + COLUMNS, n))
                shape = (rows.stop - i, columns.stop - j)
                tile = self.buffer[: shape[0] * shape[1]].view(shape)
                yield rows, columns, torch.mm(self.image[rows], self.text[columns].mT, out=tile)

    def diagonal(self, rows: slice, columns: slice) -> slice:
        """The rows of a tile whose own columns are in it."""
        low = max(rows.start, columns.start - self.shift)
        return slice(low, max(low, min(rows.stop, columns.stop - self.shift)))

    def own(self, tile: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
        """The elements of a tile that belong together, as a view."""
        of = self.diagonal(rows, columns)
        first, count = of.start + self.shift - columns.start, of.stop - of.start
        return tile[of.start - rows.start : of.stop - rows.start, first : first + count].diagonal()


# SigLIP ---------------------------------------------------------------------------------------------------------------


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
        x, y, c, b = widened(image, text, scale, bias)
        gradients = (torch.zeros_like(x), torch.zeros_like(y)) if asked else None
        total, g_bias = siglip_tiles(Tiles(c * x, y), x, b, positives, gradients)
        if gradients is not None:
            ctx.save_for_backward(*by_features(x, c, gradients), g_bias)
            ctx.dtypes = [t.dtype for t in (image, text, scale, bias)]
            ctx.n = len(x)
        return total / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
        return (*shares(cotangent / ctx.n, ctx.saved_tensors, ctx.dtypes), None, None)


def siglip_tiles(
    tiles: Tiles,
    image: torch.Tensor,
    bias: torch.Tensor,
    positives: torch.Tensor | None,
    gradients: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the losses of all pairs, and of the gradients of their logits; the gradients of both towers, over the
    scale, are added to `gradients`. The scale is in the image tower of `tiles`, and not in `image`."""
    total, g_bias = bias.new_zeros(()), bias.new_zeros(())
    for rows, columns, tile in tiles:
        logits = _signed(tile.add_(bias), tiles, rows, columns, positives)  # -z l
        total += functional.softplus(logits, threshold=THRESHOLD[bias.dtype]).sum()
        if gradients is not None:
            g = _signed(logits.sigmoid_(), tiles, rows, columns, positives)
            gradients[0][rows].addmm_(g, tiles.text[columns])
            gradients[1][columns].addmm_(g.mT, image[rows])
            g_bias += g.sum()
    return total, g_bias


def _signed(x: torch.Tensor, tiles: Tiles, rows: slice, columns: slice, positives: torch.Tensor | None) -> torch.Tensor:
    """Positive pairs negated, in place."""
    if positives is None:
        tiles.own(x, rows, columns).neg_()
        return x
    return torch.where(positives[rows, columns], -x, x, out=x)


def by_features(
    image: torch.Tensor, scale: torch.Tensor, gradients: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The gradients of image, text and scale, from those of both towers over the scale, in the memory of these."""
    g_scale = torch.dot(gradients[0].reshape(-1), image.reshape(-1))
    return gradients[0].mul_(scale), gradients[1].mul_(scale), g_scale


def shares(share: torch.Tensor, gradients: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype]) -> Any:
    """The gradients times one number, each in its dtype."""
    return ((share * g).to(dtype) for g, dtype in zip(gradients, dtypes, strict=True))


# CLIP -----------------------------------------------------------------------------------------------------------------


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, positives: torch.Tensor | None
    ) -> torch.Tensor:
        x, y, c = widened(image, text, scale)
        alone = c * (x * y).sum(dim=1) if positives is None else None
        by_row, by_column = (Sums(*Sums.empty(t, len(t)), alone) for t in (x, y))
        clip_sums(Tiles(c * x, y), by_row, by_column, positives)
        losses, logs, counts = zip(*(s.finished() for s in (by_row, by_column)), strict=True)
        ctx.save_for_backward(image, text, scale, positives, *losses, *logs, *counts)
        loss: torch.Tensor = (losses[0].mean() + losses[1].mean()) / 2
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
        image, text, scale, positives, *rest = ctx.saved_tensors
        losses, logs, counts = rest[:2], rest[2:4], rest[4:]
        x, y, c = widened(image, text, scale)
        gradients = torch.zeros_like(x), torch.zeros_like(y)
        targets = (positives, *counts) if positives is not None else lone(*losses)
        clip_gradients(Tiles(c * x, y), x, logs, targets, gradients)
        found = by_features(x, c, gradients)
        return (*shares(cotangent / (2 * len(x)), found, [t.dtype for t in (image, text, scale)]), None)


def clip_sums(tiles: Tiles, by_row: Sums, by_column: Sums, positives: torch.Tensor | None) -> None:
    """Add the scores of all pairs; without `positives`, all but those that belong together."""
    for rows, columns, tile in tiles:
        own = None if positives is None else positives[rows, columns]
        if own is None:
            tiles.own(tile, rows, columns).fill_(-torch.inf)
        by_row.add(rows, tile, own)
        by_column.add(columns, tile.mT, None if own is None else own.mT)


def lone(row_loss: torch.Tensor, column_loss: torch.Tensor) -> torch.Tensor:
    """The gradient of the score of each lone positive, p - 1 of its row and of its column, with nothing lost."""
    return (-row_loss).expm1() + (-column_loss).expm1()


def clip_gradients(
    tiles: Tiles,
    image: torch.Tensor,
    logs: Sequence[torch.Tensor],
    targets: torch.Tensor | tuple[torch.Tensor, ...],
    gradients: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Add the gradients of both towers, over the scale and times twice the number of pairs.

    logs: the log-sum-exp of each row and of each column. targets: the gradients of the scores of lone positives; or
    the positives, and how many there are in each row and in each column.
    """
    for rows, columns, tile in tiles:
        g = (tile - logs[0][rows, None]).exp_()
        g += tile.sub_(logs[1][columns]).exp_()
        if isinstance(targets, torch.Tensor):
            tiles.own(g, rows, columns).copy_(targets[tiles.diagonal(rows, columns)])
        else:
            positives, row_count, column_count = targets
            target = 1 / row_count[rows, None] + 1 / column_count[columns]
            g -= target.where(positives[rows, columns], 0)
        gradients[0][rows].addmm_(g, tiles.text[columns])
        gradients[1][columns].addmm_(g.mT, image[rows])


class Sums:
    """The log-sum-exp of each row of scores, less the mean of its positives, from tile after tile.

    `alone`: the scores of the only positives, which the tiles then do not have.
    """

    def __init__(self, top: torch.Tensor, total: torch.Tensor, alone: torch.Tensor | None = None) -> None:
        self.top, self.sum, self.alone = top, total, alone
        self.positive, self.count = torch.zeros_like(total), torch.zeros_like(total)

    @staticmethod
    def empty(like: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A shift and a sum of n rows without scores; the shift is finite, so that it can be subtracted from itself."""
        return like.new_full((n,), torch.finfo(like.dtype).min), like.new_zeros(n)

    def add(self, rows: slice, tile: torch.Tensor, own: torch.Tensor | None = None) -> None:
        top = torch.maximum(self.top[rows], tile.amax(dim=1))
        self.rescale(rows, top)
        self.sum[rows] += (tile - top[:, None]).exp_().sum(dim=1)
        if own is not None:
            self.positive[rows] += tile.where(own, 0).sum(dim=1)
            self.count[rows] += own.sum(dim=1)

    def rescale(self, rows: slice, top: torch.Tensor) -> None:
        """Sums below a higher top."""
        self.sum[rows] *= (self.top[rows] - top).exp_()
        self.top[rows] = top

    def finished(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.alone is None:
            return finished(self.top, self.sum, self.positive, self.count, alone=False)
        self.rescale(slice(None), torch.maximum(self.top, self.alone))
        return finished(self.top, self.sum, self.alone, torch.ones_like(self.sum), alone=True)


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
