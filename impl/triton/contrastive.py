"""The contrastive losses in Triton, forward and backward: no matrix of n x n numbers is stored.

A program has a block of rows of one tower and goes through all rows of the other. What belongs to the other tower comes
from the same kernel with the towers exchanged: no atomics, so that a call gives the same bits twice. That costs, for
`siglip_loss`, loss and gradients together, 8 n^2 d flops; for `clip_loss` 4 n^2 d forward and 8 n^2 d backward.

float32 products are IEEE's; half features are multiplied as they are, with float32 sums, and the gradients of the
logits are rounded to their dtype before they are multiplied by features.

Axes: n pair, d channel. A whole row of channels is held at once: meant for d up to about 512.

Source: A. Radford et al., arXiv:2103.00020, figure 3; X. Zhai et al., arXiv:2303.15343, algorithm 1.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from assay.impl.contrastive import finished
from assay.impl.inputs import pairs
from assay.impl.kernel import kernel
from assay.impl.triton.halves import widened
from assay.impl.triton.rope import INTERPRETED


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK = 32


@triton.jit
def _rows_of(x, rows, n, d, x_n, x_d, BLOCK_D: tl.constexpr, WIDE: tl.constexpr, IN_PYTHON: tl.constexpr):
    """Rows of features, [BLOCK, BLOCK_D], zero beyond the last; in float32 if WIDE."""
    channel = tl.arange(0, BLOCK_D)
    real = (rows < n)[:, None] & (channel < d)[None, :]
    place = x + rows.to(tl.int64)[:, None] * x_n + channel[None, :] * x_d
    if WIDE:
        return tl.where(real, widened(tl.load(place, mask=real), IN_PYTHON), 0.0)
    return tl.load(place, mask=real, other=0.0)


@triton.jit
def _pairs(own, rows, columns, n, own_i, own_j, GIVEN: tl.constexpr):
    """Which rows and columns are there, and which of them belong together."""
    real = (rows < n)[:, None] & (columns < n)[None, :]
    if GIVEN:
        place = own + rows.to(tl.int64)[:, None] * own_i + columns.to(tl.int64)[None, :] * own_j
        return real, real & (tl.load(place, mask=real, other=0) != 0)
    return real, real & (rows[:, None] == columns[None, :])


@triton.jit
def _log1p(e):
    """ln(1 + e) for 0 <= e <= 1, to a few units: the error of 1 + e is divided out (Kahan)."""
    w = 1.0 + e
    return tl.where(w == 1.0, e, tl.log(w) * (e / tl.where(w == 1.0, 1.0, w - 1.0)))


@triton.jit
def _siglip_rows(
    x, y, c, b, own, losses, grads, sums, n, d, x_n, x_d, y_n, y_d, own_i, own_j,
    GIVEN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr, IN_PYTHON: tl.constexpr,
):  # fmt: skip
    """Of each row of x: its loss, its gradient over c, and the sum of the gradients of its logits."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    features = _rows_of(x, rows, n, d, x_n, x_d, BLOCK_D, WIDE, IN_PYTHON)
    scale, bias = tl.load(c), tl.load(b)
    loss = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    grad = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for start in range(0, n, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        others = _rows_of(y, columns, n, d, y_n, y_d, BLOCK_D, WIDE, IN_PYTHON)
        logits = tl.dot(features, tl.trans(others), input_precision="ieee") * scale + bias
        real, positive = _pairs(own, rows, columns, n, own_i, own_j, GIVEN)
        z = tl.where(positive, -logits, logits)
        e = tl.exp(-tl.abs(z))
        loss += tl.sum(tl.where(real, tl.maximum(z, 0.0) + _log1p(e), 0.0), axis=1)
        sigmoid = tl.where(z >= 0, 1.0, e) / (1.0 + e)
        g = tl.where(real, tl.where(positive, -sigmoid, sigmoid), 0.0)
        total += tl.sum(g, axis=1)
        grad += tl.dot(g.to(others.dtype), others, input_precision="ieee")
    channel = tl.arange(0, BLOCK_D)
    there = rows < n
    tl.store(losses + rows, loss, mask=there)
    tl.store(sums + rows, total, mask=there)
    target = grads + rows.to(tl.int64)[:, None] * d + channel[None, :]
    tl.store(target, grad, mask=there[:, None] & (channel < d)[None, :])


@triton.jit
def _clip_sums(
    x, y, c, own, tops, sums, positives, counts, n, d, x_n, x_d, y_n, y_d, own_i, own_j,
    GIVEN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr, IN_PYTHON: tl.constexpr,
):  # fmt: skip
    """Of each row of scores: a shift, the sum of exponentials below it, the sum and number of its positives.

    A positive that is the only one of its row (GIVEN is false) is left out of the sum.
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    features = _rows_of(x, rows, n, d, x_n, x_d, BLOCK_D, WIDE, IN_PYTHON)
    scale = tl.load(c)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mine = tl.zeros([BLOCK], tl.float32)
    count = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        others = _rows_of(y, columns, n, d, y_n, y_d, BLOCK_D, WIDE, IN_PYTHON)
        s = tl.dot(features, tl.trans(others), input_precision="ieee") * scale
        real, positive = _pairs(own, rows, columns, n, own_i, own_j, GIVEN)
        mine += tl.sum(tl.where(positive, s, 0.0), axis=1)
        count += tl.sum(tl.where(positive, 1.0, 0.0), axis=1)
        if not GIVEN:
            real = real & (rows[:, None] != columns[None, :])
        s = tl.where(real, s, -float("inf"))
        high = tl.maximum(top, tl.max(s, axis=1))
        shift = tl.where(high == -float("inf"), 0.0, high)
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(s - shift[:, None]), axis=1)
        top = high
    if not GIVEN:
        high = tl.maximum(top, mine)
        total = total * tl.exp(top - high)
        top = high
    there = rows < n
    tl.store(tops + rows, top, mask=there)
    tl.store(sums + rows, total, mask=there)
    tl.store(positives + rows, mine, mask=there)
    tl.store(counts + rows, count, mask=there)


@triton.jit
def _clip_rows(
    x, y, c, own, row_logs, column_logs, row_counts, column_counts, lone, grads,
    n, d, x_n, x_d, y_n, y_d, own_i, own_j,
    GIVEN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr, IN_PYTHON: tl.constexpr,
):  # fmt: skip
    """The gradient of each row of x, times 2 n / c. lone[n]: the gradient of the logit of a lone positive."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < n
    features = _rows_of(x, rows, n, d, x_n, x_d, BLOCK_D, WIDE, IN_PYTHON)
    scale = tl.load(c)
    row_log = tl.load(row_logs + rows, mask=there, other=float("inf"))
    row_count = tl.load(row_counts + rows, mask=there, other=1.0)
    row_share = 1.0 / tl.maximum(row_count, 1.0)
    alone = tl.load(lone + rows, mask=there, other=0.0)
    grad = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for start in range(0, n, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        others = _rows_of(y, columns, n, d, y_n, y_d, BLOCK_D, WIDE, IN_PYTHON)
        column_log = tl.load(column_logs + columns, mask=columns < n, other=float("inf"))
        column_count = tl.load(column_counts + columns, mask=columns < n, other=1.0)
        column_share = 1.0 / tl.maximum(column_count, 1.0)
        s = tl.dot(features, tl.trans(others), input_precision="ieee") * scale
        real, positive = _pairs(own, rows, columns, n, own_i, own_j, GIVEN)
        s = tl.where(real, s, -float("inf"))
        g = tl.exp(s - row_log[:, None]) + tl.exp(s - column_log[None, :])
        if GIVEN:
            g = g - tl.where(positive, row_share[:, None] + column_share[None, :], 0.0)
        else:
            g = tl.where(positive, alone[:, None], g)
        g = tl.where(real, g, 0.0)
        grad += tl.dot(g.to(others.dtype), others, input_precision="ieee")
    channel = tl.arange(0, BLOCK_D)
    target = grads + rows.to(tl.int64)[:, None] * d + channel[None, :]
    tl.store(target, grad, mask=there[:, None] & (channel < d)[None, :])


class _Launch:
    """What the kernels are told of two towers; `exchanged` is the other way round."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, own: torch.Tensor | None) -> None:
        self.x, self.y, self.own = x, y, own
        self.n, self.d = x.shape

    def exchanged(self) -> _Launch:
        return _Launch(self.y, self.x, None if self.own is None else self.own.mT)

    def __call__(self, function: Any, scalars: tuple[torch.Tensor, ...], *others: torch.Tensor) -> None:
        own = self.x if self.own is None else self.own.view(torch.uint8)
        strides = (0, 0) if self.own is None else self.own.stride()
        function[(triton.cdiv(self.n, BLOCK),)](
            self.x, self.y, *scalars, own, *others, self.n, self.d, *self.x.stride(), *self.y.stride(), *strides,
            GIVEN=self.own is not None, BLOCK=BLOCK, BLOCK_D=max(16, triton.next_power_of_2(self.d)),
            WIDE=INTERPRETED or self.x.dtype == torch.float32, IN_PYTHON=INTERPRETED,
        )  # fmt: skip

    def vectors(self, count: int) -> list[torch.Tensor]:
        return [self.x.new_empty(self.n, dtype=torch.float32) for _ in range(count)]

    def matrix(self) -> torch.Tensor:
        return self.x.new_empty((self.n, self.d), dtype=torch.float32)


class _SigLip(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        text: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        positives: torch.Tensor | None,
    ) -> torch.Tensor:
        by_row = _Launch(image, text, positives)
        c, b = scale.float(), bias.float()
        losses, sums, unused, again = by_row.vectors(4)
        g_image, g_text = by_row.matrix(), by_row.matrix()
        by_row(_siglip_rows, (c, b), losses, g_image, sums)
        if any(ctx.needs_input_grad):
            by_row.exchanged()(_siglip_rows, (c, b), unused, g_text, again)
            ctx.save_for_backward(c * g_image, c * g_text, (g_image * image).sum(), sums.sum())
            ctx.dtypes = [t.dtype for t in (image, text, scale, bias)]
            ctx.n = len(image)
        return losses.sum() / len(image)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
        share = cotangent / ctx.n
        return (*((share * g).to(t) for g, t in zip(ctx.saved_tensors, ctx.dtypes, strict=True)), None)


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, positives: torch.Tensor | None
    ) -> torch.Tensor:
        by_row = _Launch(image, text, positives)
        found = []
        for launch in (by_row, by_row.exchanged()):
            vectors = launch.vectors(4)
            launch(_clip_sums, (scale.float(),), *vectors)
            top, total, positive, count = vectors
            found.append(finished(top, total, positive, count, positives is None))
        losses, logs, counts = zip(*found, strict=True)
        ctx.save_for_backward(image, text, scale, positives, *losses, *logs, *counts)
        loss: torch.Tensor = (losses[0].mean() + losses[1].mean()) / 2
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
        image, text, scale, positives, *rest = ctx.saved_tensors
        (row_loss, column_loss), logs, counts = rest[:2], rest[2:4], rest[4:]
        lone = (-row_loss).expm1() + (-column_loss).expm1()
        by_row, c = _Launch(image, text, positives), scale.float()
        g_image, g_text = by_row.matrix(), by_row.matrix()
        by_row(_clip_rows, (c,), *logs, *counts, lone, g_image)
        by_row.exchanged()(_clip_rows, (c,), *logs[::-1], *counts[::-1], lone, g_text)
        share = cotangent / (2 * len(image))
        found = (share * c * g_image, share * c * g_text, share * (g_image * image).sum())
        return (*(g.to(t.dtype) for g, t in zip(found, (image, text, scale), strict=True)), None)


@kernel("clip_loss", requires=("triton",), interpreted=True)
def clip_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    *,
    scale: float | torch.Tensor,
    positives: torch.Tensor | None = None,
) -> torch.Tensor:
    """loss[] in float32, of image[n, d] and text[n, d]; differentiable once in both and in scale.

    Raises: TypeError for integers, ValueError for other shapes; NotImplementedError for float64, or where there is
    neither a GPU nor the interpreter.
    """
    _checked(image, text, positives)
    loss: torch.Tensor = _Clip.apply(image, text, _scalar(scale, image), positives)
    return loss


@kernel("siglip_loss", requires=("triton",), interpreted=True)
def siglip_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    *,
    scale: float | torch.Tensor,
    bias: float | torch.Tensor,
    positives: torch.Tensor | None = None,
) -> torch.Tensor:
    """loss[] in float32, of image[n, d] and text[n, d]; differentiable once in both, in scale and in bias.

    Raises: as `clip_loss`.
    """
    _checked(image, text, positives)
    loss: torch.Tensor = _SigLip.apply(image, text, _scalar(scale, image), _scalar(bias, image), positives)
    return loss


def _checked(x: torch.Tensor, y: torch.Tensor, positives: torch.Tensor | None) -> None:
    pairs(x, y, positives)
    if x.dtype not in DTYPES:
        raise NotImplementedError(f"the Triton kernels take {DTYPES}, got {x.dtype}")
    if not (x.is_cuda or INTERPRETED):
        raise NotImplementedError("needs a GPU, or TRITON_INTERPRET=1 before triton is imported")


def _scalar(value: float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.tensor(value, device=like.device)
