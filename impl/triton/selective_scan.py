"""The selective scan of Mamba: a Triton kernel for the forward and one for the backward, the state in registers.

A program walks over all positions of some channels of one batch entry, one after the other: the recurrence itself, so
that no decay is divided by and none is a difference of sums. The forward saves the state before every chunk of
positions; the backward goes through the chunks from the last to the first, computes the states of a chunk again, and

    G_k = C_k dy_k + exp(delta_{k+1} A) G_{k+1},  the cotangent of the last state added to the last,
    dz_k = G_k exp(z_k) h_{k-1},   ddelta = sum_n (dz A + G B u),   dA = sum dz delta,   du = sum_n G delta B + D dy,
    dB = sum_d G delta u,   dC = sum_d h dy

Sums over channels and over the batch are finished outside, from one part for each program.

Axes: b batch, d channel, t position, n state; in a program [d, n].

Error: float32 throughout, one rounding at the end: within the bound of the form "sequential".
Source: A. Gu and T. Dao, Mamba, arXiv:2312.00752, algorithm 2 and section 3.3.2 (states computed again).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from assay.impl import selective_scan as plain
from assay.impl.kernel import kernel
from assay.impl.triton.halves import narrowed, widened


CHUNK = 32
CHANNELS = 32
"""Channels of one program at most, fewer where states are many:"""
HELD = 1024
"""numbers of the state in one program."""
MOST = 256
"""States of a channel at most."""


@triton.jit
def _loaded(at, mask, INTERPRETED: tl.constexpr):
    """Float32 of what lies there, and 0 outside."""
    return widened(tl.load(at, mask=mask, other=0.0), INTERPRETED)


@triton.jit
def _forward(
    u, delta, A, B, C, D, before, y, after, saved,
    u_b, u_d, u_t, s_b, s_d, s_t, a_d, a_n, b_b, b_n, b_t, c_b, c_n, c_t, d_d, h_b, h_d, h_n,
    d, n, t, chunks, saved_c,
    SKIPS: tl.constexpr, STATE: tl.constexpr, SAVES: tl.constexpr, LENGTH: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write y and `after`, and into `saved` the state before each chunk; these are contiguous."""
    batch = tl.program_id(0).to(tl.int64)
    channel = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    column = tl.arange(0, BLOCK_N).to(tl.int64)
    of_d, of_n = channel < d, column < n
    both = of_d[:, None] & of_n[None, :]
    place = (batch * d + channel)[:, None] * n + column[None, :]
    rate = _loaded(A + channel[:, None] * a_d + column[None, :] * a_n, both, INTERPRETED)
    h = tl.zeros((BLOCK_D, BLOCK_N), tl.float32)
    if STATE:
        h = _loaded(before + batch * h_b + channel[:, None] * h_d + column[None, :] * h_n, both, INTERPRETED)
    skip = tl.zeros((BLOCK_D,), tl.float32)
    if SKIPS:
        skip = _loaded(D + channel * d_d, of_d, INTERPRETED)
    at_u, at_s = u + batch * u_b + channel * u_d, delta + batch * s_b + channel * s_d
    at_b, at_c = B + batch * b_b + column * b_n, C + batch * c_b + column * c_n
    at_y = y + (batch * d + channel) * t
    for chunk in range(chunks):
        if SAVES:
            tl.store(saved + place, h, mask=both)
            saved += saved_c
        for j in range(LENGTH):
            there = chunk * LENGTH + j < t
            value, step = _loaded(at_u, of_d & there, INTERPRETED), _loaded(at_s, of_d & there, INTERPRETED)
            into, out = _loaded(at_b, of_n & there, INTERPRETED), _loaded(at_c, of_n & there, INTERPRETED)
            moved = tl.exp(step[:, None] * rate) * h + (step * value)[:, None] * into[None, :]
            h = tl.where(there, moved, h)
            read = tl.sum(h * out[None, :], 1)
            if SKIPS:
                read += skip * value
            tl.store(at_y, narrowed(read, y.dtype.element_ty, INTERPRETED), mask=of_d & there)
            at_u += u_t
            at_s += s_t
            at_b += b_t
            at_c += c_t
            at_y += 1
    tl.store(after + place, narrowed(h, after.dtype.element_ty, INTERPRETED), mask=both)


@triton.jit
def _backward(
    u, delta, A, B, C, D, dy, later, saved, again, du, ds, da, db, dc, dd, first,
    u_b, u_d, u_t, s_b, s_d, s_t, a_d, a_n, b_b, b_n, b_t, c_b, c_n, c_t, d_d, y_b, y_d, y_t, h_b, h_d, h_n,
    d, n, t, chunks, saved_c,
    SKIPS: tl.constexpr, LENGTH: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Write du and ds (of delta) [b, d, t], da and `first` [b, d, n], dd [b, d], and the parts [b, blocks, t, n] that
    this block of channels has in db and dc: all contiguous. `again` [b, blocks, LENGTH, BLOCK_D, BLOCK_N] holds states.
    """
    batch = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1).to(tl.int64)
    blocks = tl.num_programs(1)
    inside = tl.arange(0, BLOCK_D).to(tl.int64)
    whole = tl.full((), LENGTH, tl.int64)  # times a stride, it may be beyond 2**31
    channel = block * BLOCK_D + inside
    column = tl.arange(0, BLOCK_N).to(tl.int64)
    of_d, of_n = channel < d, column < n
    both = of_d[:, None] & of_n[None, :]
    place = (batch * d + channel)[:, None] * n + column[None, :]
    own = again + (batch * blocks + block) * (LENGTH * BLOCK_D * BLOCK_N)
    own += inside[:, None] * BLOCK_N + column[None, :]
    rate = _loaded(A + channel[:, None] * a_d + column[None, :] * a_n, both, INTERPRETED)
    g = _loaded(later + batch * h_b + channel[:, None] * h_d + column[None, :] * h_n, both, INTERPRETED)
    skip = tl.zeros((BLOCK_D,), tl.float32)
    if SKIPS:
        skip = _loaded(D + channel * d_d, of_d, INTERPRETED)
    of_rate, of_skip = tl.zeros((BLOCK_D, BLOCK_N), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    # The first position of the last chunk.
    start = batch * 0 + (chunks - 1) * LENGTH
    at_u, at_s = u + batch * u_b + channel * u_d + start * u_t, delta + batch * s_b + channel * s_d + start * s_t
    at_b, at_c = B + batch * b_b + column * b_n + start * b_t, C + batch * c_b + column * c_n + start * c_t
    at_y = dy + batch * y_b + channel * y_d + start * y_t
    to_u, to_s = du + (batch * d + channel) * t + start, ds + (batch * d + channel) * t + start
    to_b = db + ((batch * blocks + block) * t + start) * n + column
    to_c = dc + ((batch * blocks + block) * t + start) * n + column
    saved += (chunks - 1) * saved_c
    for number in range(chunks):
        h = tl.load(saved + place, mask=both, other=0.0)
        for j in range(LENGTH):
            there = (chunks - 1 - number) * LENGTH + j < t
            tl.store(own + j * (BLOCK_D * BLOCK_N), h)
            value, step = _loaded(at_u, of_d & there, INTERPRETED), _loaded(at_s, of_d & there, INTERPRETED)
            into = _loaded(at_b, of_n & there, INTERPRETED)
            h = tl.exp(step[:, None] * rate) * h + (step * value)[:, None] * into[None, :]
            at_u += u_t
            at_s += s_t
            at_b += b_t
        tl.debug_barrier()
        at_c += whole * c_t
        at_y += whole * y_t
        to_u += LENGTH
        to_s += LENGTH
        to_b += LENGTH * n
        to_c += LENGTH * n
        for back in range(LENGTH):
            j = LENGTH - 1 - back
            there = (chunks - 1 - number) * LENGTH + j < t
            at_u -= u_t
            at_s -= s_t
            at_b -= b_t
            at_c -= c_t
            at_y -= y_t
            to_u -= 1
            to_s -= 1
            to_b -= n
            to_c -= n
            earlier = tl.load(own + j * (BLOCK_D * BLOCK_N))
            value, step = _loaded(at_u, of_d & there, INTERPRETED), _loaded(at_s, of_d & there, INTERPRETED)
            into, out = _loaded(at_b, of_n & there, INTERPRETED), _loaded(at_c, of_n & there, INTERPRETED)
            given = _loaded(at_y, of_d & there, INTERPRETED)
            decay = tl.exp(step[:, None] * rate)
            state = decay * earlier + (step * value)[:, None] * into[None, :]
            now = given[:, None] * out[None, :] + g
            kept = now * decay
            dz = kept * earlier
            by_step = tl.sum(now * into[None, :], 1)
            by_u = by_step * step
            if SKIPS:
                by_u += skip * given
                of_skip += value * given
            by_s = tl.sum(dz * rate, 1) + by_step * value
            of_rate += tl.where(there, dz * step[:, None], 0.0)
            tl.store(to_u, narrowed(by_u, du.dtype.element_ty, INTERPRETED), mask=of_d & there)
            tl.store(to_s, narrowed(by_s, ds.dtype.element_ty, INTERPRETED), mask=of_d & there)
            tl.store(to_b, tl.sum(now * (step * value)[:, None], 0), mask=of_n & there)
            tl.store(to_c, tl.sum(state * given[:, None], 0), mask=of_n & there)
            g = tl.where(there, kept, g)
        tl.debug_barrier()
        at_u -= whole * u_t
        at_s -= whole * s_t
        at_b -= whole * b_t
        at_c -= whole * c_t
        at_y -= whole * y_t
        to_u -= LENGTH
        to_s -= LENGTH
        to_b -= LENGTH * n
        to_c -= LENGTH * n
        saved -= saved_c
    tl.store(da + place, of_rate, mask=both)
    tl.store(first + place, g, mask=both)
    if SKIPS:
        tl.store(dd + batch * d + channel, of_skip, mask=of_d)


INTERPRETED = not isinstance(_forward, triton.JITFunction)


def _blocks(d: int, n: int, t: int) -> dict[str, Any]:
    """The sizes of a program."""
    wide = triton.next_power_of_2(n)
    most = max(1, min(CHANNELS, HELD // wide))
    return {
        "LENGTH": min(CHUNK, triton.next_power_of_2(t)),
        "BLOCK_D": min(most, triton.next_power_of_2(d)),
        "BLOCK_N": wide,
        "INTERPRETED": INTERPRETED,
    }


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        (b, d, t), n = u.shape, A.shape[1]
        sizes, saves = _blocks(d, n, t), any(ctx.needs_input_grad)
        chunks = triton.cdiv(t, sizes["LENGTH"])
        y = torch.empty(b, d, t, dtype=u.dtype, device=u.device)
        after = torch.empty(b, d, n, dtype=u.dtype, device=u.device)
        saved = torch.empty(chunks if saves else 0, b, d, n, dtype=torch.float32, device=u.device)
        skip, before = A if D is None else D, after if state is None else state
        with _on(u):
            _forward[(b, triton.cdiv(d, sizes["BLOCK_D"]))](
                u, delta, A, B, C, skip, before, y, after, saved,
                *u.stride(), *delta.stride(), *A.stride(), *B.stride(), *C.stride(), skip.stride(0), *before.stride(),
                d, n, t, chunks, b * d * n, SKIPS=D is not None, STATE=state is not None, SAVES=saves, **sizes,
            )  # fmt: skip
        if saves:
            ctx.save_for_backward(u, delta, A, B, C, D, saved)
            ctx.stateful = state is not None
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, later: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, saved = ctx.saved_tensors
        (b, d, t), n = u.shape, A.shape[1]
        sizes = _blocks(d, n, t)
        blocks, single = triton.cdiv(d, sizes["BLOCK_D"]), {"dtype": torch.float32, "device": u.device}
        again = torch.empty(b, blocks, sizes["LENGTH"], sizes["BLOCK_D"], sizes["BLOCK_N"], **single)
        du, ds = (torch.empty(b, d, t, dtype=x.dtype, device=x.device) for x in (u, delta))
        da, first = (torch.empty(b, d, n, **single) for _ in range(2))
        db, dc = (torch.empty(b, blocks, t, n, **single) for _ in range(2))
        dd = torch.empty(b, d, **single)
        skip = A if D is None else D
        with _on(u):
            _backward[(b, blocks)](
                u, delta, A, B, C, skip, dy, later, saved, again, du, ds, da, db, dc, dd, first,
                *u.stride(), *delta.stride(), *A.stride(), *B.stride(), *C.stride(), skip.stride(0), *dy.stride(),
                *later.stride(), d, n, t, len(saved), b * d * n, SKIPS=D is not None, **sizes,
            )  # fmt: skip
        return (
            du,
            ds,
            da.sum(dim=0).to(A.dtype),
            db.sum(dim=1).mT.to(B.dtype),
            dc.sum(dim=1).mT.to(C.dtype),
            None if D is None else dd.sum(dim=0).to(D.dtype),
            first.to(u.dtype) if ctx.stateful else None,
        )


def _on(x: Tensor) -> Any:
    """The device of x; and in the interpreter, which computes with NumPy, infinities and NaNs without a warning."""
    return torch.cuda.device(x.device) if x.is_cuda else _quiet() if INTERPRETED else nullcontext()


def _quiet() -> Any:
    return numpy.errstate(all="ignore")


@kernel("selective_scan", form="sequential", requires=("triton",), interpreted=True)
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

    Raises: as `assay.impl.selective_scan`; NotImplementedError without a GPU or the interpreter, for float64, and
    beyond 256 states.
    """
    plain.check(u, delta, A, B, C, D, state)
    if not (u.is_cuda or INTERPRETED):
        raise NotImplementedError("needs a GPU, or TRITON_INTERPRET=1 before triton is imported")
    if u.dtype == torch.float64 or A.shape[1] > MOST:
        raise NotImplementedError(f"takes float32, bfloat16 and float16, and no more than {MOST} states")
    if not u.numel() or not A.numel():  # nothing for a program to do
        return plain.selective_scan(u, delta, A, B, C, D=D, state=state)
    return _Scan.apply(u, delta, A, B, C, D, state)  # type: ignore[no-any-return]
