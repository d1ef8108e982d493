"""The selective scan of Mamba in torch, for CPU and CUDA, differentiable in every input and through the last state.

Positions are worked on in blocks, of as many as keep the states of a block in the cache. Within a block the recurrence
runs over all chunks of it side by side, then over the chunks, and what came before a chunk is added to it. Where states
are many, a block is one chunk: the recurrence itself. Decays are multiplied and never divided, and no cumulative sum of
their logarithms is taken, so a decay of any size, 0 included, keeps its digits.

Neither forward nor backward holds the states of all positions: the backward computes those of a block again, from the
state before the block, which is all that is saved.

Axes: b batch, d channel, t position, n state. Blocks are laid out as [position, b, n, d].

Error: within the bound of the form "associative": float32 at least, one rounding at the end.
Source: A. Gu and T. Dao, Mamba, arXiv:2312.00752, algorithm 2; G. Blelloch, CMU-CS-90-190 (1990), section 1.4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from assay.impl.inputs import floating
from assay.impl.kernel import kernel


EVERY = ("float64", "float32", "bfloat16", "float16")
BLOCK = 1 << 17
"""So many numbers are the states of a block."""
SHORTEST = 16
"""A block has so many positions at least."""
ROW = 1 << 12
"""So many numbers are worth a call: with fewer states, chunks go side by side."""


@kernel("selective_scan", form="associative", dtypes=EVERY)
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y[b, d, t] and the last state[b, d, n], of u[b, d, t], delta[b, d, t], A[d, n], B[b, n, t], C[b, n, t], D[d].

    Raises: ValueError for shapes that do not fit each other, TypeError for an integer dtype.
    """
    check(u, delta, A, B, C, D, state)
    return _Scan.apply(u, delta, A, B, C, D, state)  # type: ignore[no-any-return, no-untyped-call]


def check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None) -> None:
    """Raises: as `selective_scan`."""
    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "state": state}
    given = {name: x for name, x in given.items() if x is not None}
    floating(**given)  # type: ignore[arg-type]
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError("u and delta must have the axes [b, d, t], A [d, n], B and C [b, n, t]")
    (b, d, t), n = u.shape, A.shape[1]
    wanted = {"delta": (b, d, t), "A": (d, n), "B": (b, n, t), "C": (b, n, t), "D": (d,), "state": (b, d, n)}
    for name, shape in wanted.items():
        x = given.get(name)
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} must have the shape {list(shape)}, not {list(x.shape)}")


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(u.dtype, torch.float32)
        (b, d, t), n = u.shape, A.shape[1]
        rates = A.to(wide).mT
        now = u.new_zeros(b, n, d, dtype=wide) if state is None else state.to(wide).mT
        y = torch.empty(b, d, t, dtype=u.dtype, device=u.device)
        starts = []
        for start, stop in _blocks(t, b * n * d):
            starts.append(now)
            values, steps, columns, rows = (_rows(x, start, stop, wide) for x in (u, delta, B, C))
            h, now = _states(steps, values, columns, rates, now)
            read = (rows[..., None, :] @ h)[..., 0, :]
            _put(y, start, stop, read if D is None else read.addcmul_(values, D.to(wide)))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(u, delta, A, B, C, D, state, *starts)
        return y, now.mT.to(u.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, later: Tensor) -> tuple[Tensor | None, ...]:
        """G_k = C_k dy_k + exp(delta_{k+1} A) G_{k+1}, from the last block to the first."""
        u, delta, A, B, C, D, state, *starts = ctx.saved_tensors
        wide = torch.promote_types(u.dtype, torch.float32)
        (b, d, t), n = u.shape, A.shape[1]
        rates = A.to(wide).mT
        du, ddelta, db, dc = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, B, C))
        da, skipped = torch.zeros_like(rates), torch.zeros(d, dtype=wide, device=u.device)
        carried = later.to(wide).mT
        blocks = list(_blocks(t, b * n * d))
        for (start, stop), before in zip(reversed(blocks), reversed(starts), strict=True):
            values, steps, columns, rows, given = (_rows(x, start, stop, wide) for x in (u, delta, B, C, dy))
            h, _ = _states(steps, values, columns, rates, before)
            decays = (steps[:, :, None] * rates).exp_()
            following = torch.cat((decays[1:], torch.ones_like(decays[:1])))
            g, carried = scan_(following, rows[..., None] * given[:, :, None], carried, reverse=True)
            carried = carried * decays[0]
            dz = decays.mul_(g)
            dz[0] *= before
            dz[1:] *= h[:-1]
            read = (columns[..., None, :] @ g)[..., 0, :]
            da += torch.einsum("tbnd,tbd->nd", dz, steps)
            _put(ddelta, start, stop, (dz * rates).sum(dim=2) + read * values)
            by_value = read * steps
            if D is not None:
                by_value.addcmul_(given, D.to(wide))
                skipped += torch.einsum("tbd,tbd->d", values, given)
            _put(du, start, stop, by_value)
            _put(db, start, stop, (g @ (steps * values)[..., None])[..., 0])
            _put(dc, start, stop, (h @ given[..., None])[..., 0])
        return (
            du,
            ddelta,
            da.mT.to(A.dtype),
            db,
            dc,
            None if D is None else skipped.to(D.dtype),
            None if state is None else carried.mT.to(state.dtype),
        )


def _blocks(t: int, states: int) -> Iterator[tuple[int, int]]:
    """Where each block of positions starts and stops, with so many states at a position."""
    length = max(SHORTEST, BLOCK // max(states, 1))
    for start in range(0, t, length):
        yield start, min(start + length, t)


def _rows(x: Tensor, start: int, stop: int, wide: torch.dtype) -> Tensor:
    """x[b, ., start:stop] as [position, b, .]."""
    return x[..., start:stop].permute(2, 0, 1).to(wide, memory_format=torch.contiguous_format)


def _put(out: Tensor, start: int, stop: int, rows: Tensor) -> None:
    """The reverse."""
    out[..., start:stop] = rows.permute(1, 2, 0)


def _states(steps: Tensor, values: Tensor, columns: Tensor, rates: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The states of a block, [position, b, n, d], and the last of them."""
    decays = (steps[:, :, None] * rates).exp_()
    return scan_(decays, (steps * values)[:, :, None] * columns[..., None], before)


def scan_(a: Tensor, x: Tensor, carry: Tensor, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """The h_k = a_k h_{k-1} + x_k of a[k, ...] and x[k, ...], which it overwrites, and the last of them.

    `carry` is what comes before the first. In `reverse`, from the last position to the first.
    """
    t, width = len(x), math.prod(x.shape[1:])
    chunks = max(1, min(ROW // max(width, 1), math.isqrt(t)))
    if chunks == 1:
        for k in reversed(range(t)) if reverse else range(t):
            carry = x[k].addcmul_(a[k], carry)
        return x, carry.clone()  # a part of x would keep all of it alive
    length = -(-t // chunks)
    padding = chunks * length - t
    if padding:  # a decay of 1 and no input leave a state as it is
        a = torch.cat((a, a.new_ones(padding, *a.shape[1:])))
        x = torch.cat((x, x.new_zeros(padding, *x.shape[1:])))
    a, x = a.view(chunks, length, *a.shape[1:]), x.view(chunks, length, *x.shape[1:])
    decays, states = a.unbind(1), x.unbind(1)
    order = list(reversed(range(length)) if reverse else range(length))
    for before, k in pairwise(order):
        states[k].addcmul_(decays[k], states[before])
        decays[k].mul_(decays[before])
    ends, totals, carries = states[order[-1]], decays[order[-1]], torch.empty_like(x[:, 0])
    for chunk in reversed(range(chunks)) if reverse else range(chunks):
        carries[chunk] = carry
        carry = torch.addcmul(ends[chunk], totals[chunk], carry)
    x.addcmul_(a, carries[:, None])
    return x.flatten(0, 1)[:t], carry
