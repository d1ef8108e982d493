"""Causal linear attention: one Triton kernel for forward and backward, whose state stays in registers.

    out_i = sum over j of <a_i, b_j> c_j,        j from the start to i, or from i to the end

A program walks over the chunks of one head: within a chunk by weights, what came before it by the state, sum_j b_j c_j,
and in the forward by the sum of b_j, which makes the denominators. Every gradient is such a sum again: with G_i the
cotangents of the sums of values and of weights, and u_j = (v_j, 1),

    dphi(q_i) = sum_(j <= i) <G_i, u_j> phi(k_j),   dphi(k_j) = sum_(i >= j) <u_j, G_i> phi(q_i),
    dv_j = sum_(i >= j) <phi(k_j), phi(q_i)> G_i

What is not causal is a product of two matrices, and is left to torch.

Axes: b batch, h head, t position, d channel, e value channel, r feature, n column of the state.

Error: float32 throughout, one rounding at the end: within the bound of the form "chunked".
Source: A. Katharopoulos et al., arXiv:2006.16236, equations 4-15; S. Yang et al., arXiv:2312.06635, section 2.
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
from torch.nn import functional

from assay.impl import linear_attention as plain
from assay.impl.kernel import kernel
from assay.impl.triton.halves import loaded, narrowed, widened


FUSED = {"identity": 0, "elu+1": 1, "relu": 2, "exp": 3}
"""Feature maps that are computed where x is loaded; others come as features."""
CHUNK = 64
COLUMNS = 64
"""Columns of the state in one program: with 64 features, 4096 numbers in registers."""
WIDEST = 256


@triton.jit
def _features(x, rows, row_stride, columns, column_stride, t, width, MAP: tl.constexpr, INTERPRETED: tl.constexpr):
    """phi(x) at rows and columns, in float32; zero outside of t rows and `width` columns."""
    real = (rows < t)[:, None] & (columns < width)[None, :]
    value = loaded(x, rows, row_stride, columns, column_stride, t, width, INTERPRETED)
    if MAP == 1:
        value = tl.where(real, tl.exp(tl.minimum(value, 0.0)) + tl.maximum(value, 0.0), 0.0)
    elif MAP == 2:
        value = tl.maximum(value, 0.0)
    elif MAP == 3:
        value = tl.where(real, tl.exp(value), 0.0)
    return value


@triton.jit
def _sums(
    a, b, c, out, total, before, after,
    a_p, a_t, a_r, b_p, b_t, b_r, c_p, c_t, c_n, s_p, s_r, s_n,
    t, chunks, eps, R, N,
    MAP_A: tl.constexpr, MAP_B: tl.constexpr, MAP_C: tl.constexpr, STATE: tl.constexpr, REVERSED: tl.constexpr,
    DIVIDES: tl.constexpr, CLAMPS: tl.constexpr, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Sums of all positions of one head, for some columns of c; `after` is contiguous, and has one column more if this
    divides, as has `before`."""
    head = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, BLOCK_R)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.arange(0, C)
    width = N + 1 if DIVIDES else N
    state = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    keys = tl.zeros((BLOCK_R,), tl.float32)
    if STATE:
        state = loaded(before + head * s_p, r, s_r, n, s_n, R, N, INTERPRETED)
        if DIVIDES:
            keys = widened(tl.load(before + head * s_p + r * s_r + N * s_n, mask=r < R, other=0.0), INTERPRETED)
    for number in range(chunks):
        rows = ((chunks - 1 - number) if REVERSED else number) * C + place
        of_a = _features(a + head * a_p, rows, a_t, r, a_r, t, R, MAP_A, INTERPRETED)
        of_b = _features(b + head * b_p, rows, b_t, r, b_r, t, R, MAP_B, INTERPRETED)
        of_c = _features(c + head * c_p, rows, c_t, n, c_n, t, N, MAP_C, INTERPRETED)
        weights = tl.dot(of_a, tl.trans(of_b), input_precision="ieee")
        if REVERSED:
            weights = tl.where(place[:, None] <= place[None, :], weights, 0.0)
        else:
            weights = tl.where(place[:, None] >= place[None, :], weights, 0.0)
        sums = tl.dot(weights, of_c, input_precision="ieee") + tl.dot(of_a, state, input_precision="ieee")
        if DIVIDES:
            weight = tl.sum(weights, 1) + tl.sum(of_a * keys[None, :], 1)
            tl.store(total + head * t + rows, weight, mask=rows < t)
            weight = tl.maximum(weight, eps) if CLAMPS else weight + eps
            none = weight == 0.0
            inverse = 1.0 / tl.where(none, 1.0, weight)
            sums = tl.where(none[:, None], 0.0, sums * inverse[:, None])  # sums that have overflown too
            keys += tl.sum(of_b, 0)
        real = (rows < t)[:, None] & (n < N)[None, :]
        target = out + (head * t + rows)[:, None] * N + n[None, :]
        tl.store(target, narrowed(sums, out.dtype.element_ty, INTERPRETED), mask=real)
        state += tl.dot(tl.trans(of_b), of_c, input_precision="ieee")
    real = (r < R)[:, None] & (n < N)[None, :]
    tl.store(after + head * R * width + r[:, None] * width + n[None, :], state, mask=real)
    if DIVIDES:
        tl.store(after + head * R * width + r * width + N, keys, mask=r < R)


INTERPRETED = not isinstance(_sums, triton.JITFunction)


def _launch(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    before: Tensor | None,
    dtype: torch.dtype,
    *,
    maps: tuple[int, int, int] = (0, 0, 0),
    reverse: bool = False,
    divides: tuple[float, bool] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Sums[b, h, t, n] in `dtype`, the sums of the weights [b, h, t, 1] if it divides, and the state, in float32."""
    batch, heads, t, r = a.shape
    n = c.shape[-1]
    a, b, c = (x.flatten(0, 1) for x in (a, b, c))
    out = torch.empty(batch * heads, t, n, dtype=dtype, device=a.device)
    total = torch.empty(batch * heads, t, 1, dtype=torch.float32, device=a.device) if divides is not None else None
    width = n + (divides is not None)
    after = torch.empty(batch * heads, r, width, dtype=torch.float32, device=a.device)
    state = after if before is None else before.flatten(0, 1)
    columns = max(16, min(COLUMNS, triton.next_power_of_2(n)))
    eps, clamps = divides or (0.0, False)
    device = torch.cuda.device(a.device) if a.is_cuda else nullcontext()
    # The interpreter computes with NumPy, which would warn of the infinities and NaNs that float arithmetic is to pass.
    with device, numpy.errstate(all="ignore"):
        _sums[(batch * heads, triton.cdiv(n, columns))](
            a, b, c, out, out if total is None else total, state, after,
            *a.stride(), *b.stride(), *c.stride(), *state.stride(),
            t, triton.cdiv(t, CHUNK), float(eps), r, n,
            MAP_A=maps[0], MAP_B=maps[1], MAP_C=maps[2], STATE=before is not None, REVERSED=reverse,
            DIVIDES=divides is not None, CLAMPS=clamps, C=CHUNK, BLOCK_R=max(16, triton.next_power_of_2(r)),
            BLOCK_N=columns, INTERPRETED=INTERPRETED,
        )  # fmt: skip
    shaped = (x if x is None else x.unflatten(0, (batch, heads)) for x in (out, total, after))
    return tuple(shaped)  # type: ignore[return-value]


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Tensor | None,
        feature_map: str,
        normalize: bool,
        eps: float,
        denominator: str,
    ) -> tuple[Tensor, Tensor]:
        a, b, code = _read(q, k, feature_map)
        divides = (eps, denominator == "clamp") if normalize else None
        out, total, after = _launch(a, b, v, state, q.dtype, maps=(code, code, 0), divides=divides)
        ctx.save_for_backward(q, k, v, state, out, total)
        ctx.settings = feature_map, normalize, eps, denominator
        return out, after.to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, later: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, state, out, total = ctx.saved_tensors
        feature_map, normalize, eps, denominator = ctx.settings
        g = g.float()
        if normalize:
            g = plain.through_quotient(g, out, total, eps, denominator)
        values = functional.pad(v, (0, 1), value=1.0) if normalize else v
        a, b, code = _read(q, k, feature_map)
        turned = None if state is None else state.mT
        da, _, _ = _launch(g, values, b, turned, torch.float32, maps=(0, 0, code))
        db, _, _ = _launch(values, g, a, later.mT, torch.float32, maps=(0, 0, code), reverse=True)
        dv, _, first = _launch(b, a, g, later, torch.float32, maps=(code, code, 0), reverse=True)
        phi = plain.MAPS[feature_map]
        dq, dk = (plain.pulled(phi, x.float(), dx)[1].to(x.dtype) for x, dx in ((q, da), (k, db)))
        before = None if state is None else first.to(state.dtype)
        return dq, dk, dv[..., : v.shape[-1]].to(v.dtype), before, None, None, None, None


def _read(q: Tensor, k: Tensor, feature_map: str) -> tuple[Tensor, Tensor, int]:
    """What the kernel loads for queries and keys, and the map that it applies to it."""
    if feature_map in FUSED:
        return q, k, FUSED[feature_map]
    phi = plain.MAPS[feature_map]
    return phi(q.float()), phi(k.float()), 0


@kernel("linear_attention", form="chunked", requires=("triton",), interpreted=True)
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str = "elu+1",
    causal: bool = False,
    normalize: bool = True,
    eps: float = 0.0,
    denominator: str = "plus",
    state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """out[b, h, t, e], and state[b, h, r, n] if `return_state`, of q[b, h, t, d], k[b, h, s, d], v[b, h, s, e].

    Raises: ValueError as `assay.impl.linear_attention`; NotImplementedError without a GPU or the interpreter, for
    float64, and beyond 256 channels.
    """
    if not causal:
        return plain.linear_attention(
            q, k, v, feature_map=feature_map, normalize=normalize, eps=eps, denominator=denominator, state=state,
            return_state=return_state,
        )  # fmt: skip
    plain.check(q, k, v, feature_map, causal, normalize, denominator, state, return_state)
    if not (q.is_cuda or INTERPRETED):
        raise NotImplementedError("needs a GPU, or TRITON_INTERPRET=1 before triton is imported")
    if q.dtype == torch.float64 or max(q.shape[-1], v.shape[-1]) >= WIDEST:
        raise NotImplementedError(f"takes float32, bfloat16 and float16, and fewer than {WIDEST} channels")
    out, after = _Causal.apply(q, k, v, state, feature_map, normalize, eps, denominator)
    return (out, after) if return_state else out
