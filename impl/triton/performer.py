"""Performer attention: one Triton kernel; the sums over the keys stay in registers, features are never stored.

    out_i = phi(q_i) S_i / phi(q_i) z_i,        S_i = sum_j phi(k_j) v_j,   z_i = sum_j phi(k_j)

A program has one head. Where causal it walks once over the chunks of positions: within a chunk by weights, what came
before it by S and z. Otherwise it walks over the keys, then over the queries. Exponents of keys are relative to the
greatest so far, with S and z rescaled where it grows; those of a query to its own greatest. Hyperbolic features are
positive ones of the rows of W and of -W. The backward is that of `assay.impl.performer`.

Axes: b batch, h head, t query position, s key position, d channel, e value channel, r random feature.

Error: float32 throughout, one rounding at the end: within the bound of the form "shifted".
Source: K. Choromanski et al., Rethinking Attention with Performers, arXiv:2009.14794v4, lemma 1, equations 5 and 6.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from assay.impl import performer as plain
from assay.impl.kernel import kernel
from assay.impl.triton.halves import narrowed, widened


CHUNK = 32
WIDEST = 256


@triton.jit
def _loaded(x, rows, n, columns, width, stride_n, stride_c, INTERPRETED: tl.constexpr):
    """x at rows and columns in float32; zero outside."""
    real = (rows < n)[:, None] & (columns < width)[None, :]
    value = tl.load(x + rows[:, None] * stride_n + columns[None, :] * stride_c, mask=real, other=0.0)
    return widened(value, INTERPRETED)


@triton.jit
def _exponents(x, projection, scale):
    """<w, y> and |y|^2 / 2 of y = scale x."""
    y = x * scale
    return tl.dot(y, tl.trans(projection), input_precision="ieee"), tl.sum(y * y, 1)[:, None] / 2


@triton.jit
def _of_queries(x, projection, scale, eps, real, EPS: tl.constexpr):
    phase, half = _exponents(x, projection, scale)
    if EPS:
        return tl.where(real, tl.exp(phase - half) + eps, 0.0)
    phase = tl.where(real, phase, float("-inf"))
    return tl.exp(phase - tl.max(phase, 1)[:, None])


@triton.jit
def _of_keys(x, projection, scale, eps, top, real, EPS: tl.constexpr):
    """The features, and the greatest exponent so far."""
    phase, half = _exponents(x, projection, scale)
    power = tl.where(real, phase - half, float("-inf"))
    if EPS:
        return tl.where(real, tl.exp(power) + eps, 0.0), top
    top = tl.maximum(top, tl.max(tl.max(power, 1), 0))
    return tl.exp(power - top), top


@triton.jit
def _attend(
    q, k, v, projection, out,
    q_b, q_h, q_t, q_d, k_b, k_h, k_s, k_d, v_b, v_h, v_s, v_e,
    heads, t, s, scale, eps, R, D, E,
    CAUSAL: tl.constexpr, EPS: tl.constexpr, C: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """All positions of one head; `projection` and `out` are contiguous."""
    program = tl.program_id(0)
    b, h = (program // heads).to(tl.int64), (program % heads).to(tl.int64)
    q += b * q_b + h * q_h
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    out += program.to(tl.int64) * t * E
    r, d, e, place = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E), tl.arange(0, C)
    w = _loaded(projection, r, R, d, D, D, 1, INTERPRETED)
    state = tl.zeros((BLOCK_R, BLOCK_E), tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    top = tl.full((), float("-inf"), tl.float32)
    if not CAUSAL:
        for number in range((s + C - 1) // C):
            rows = number * C + place
            real = (rows < s)[:, None] & (r < R)[None, :]
            phi, now = _of_keys(_loaded(k, rows, s, d, D, k_s, k_d, INTERPRETED), w, scale, eps, top, real, EPS)
            if not EPS:
                state *= tl.exp(top - now)
                total *= tl.exp(top - now)
            top = now
            state += tl.dot(tl.trans(phi), _loaded(v, rows, s, e, E, v_s, v_e, INTERPRETED), input_precision="ieee")
            total += tl.sum(phi, 0)
    for number in range((t + C - 1) // C):
        rows = number * C + place
        real = (rows < t)[:, None] & (r < R)[None, :]
        phi = _of_queries(_loaded(q, rows, t, d, D, q_t, q_d, INTERPRETED), w, scale, eps, (r < R)[None, :], EPS)
        if CAUSAL:
            psi, now = _of_keys(_loaded(k, rows, s, d, D, k_s, k_d, INTERPRETED), w, scale, eps, top, real, EPS)
            values = _loaded(v, rows, s, e, E, v_s, v_e, INTERPRETED)
            if not EPS:
                state *= tl.exp(top - now)
                total *= tl.exp(top - now)
            top = now
            weights = tl.dot(phi, tl.trans(psi), input_precision="ieee")
            weights = tl.where(place[:, None] >= place[None, :], weights, 0.0)
            sums = tl.dot(weights, values, input_precision="ieee") + tl.dot(phi, state, input_precision="ieee")
            weight = tl.sum(weights, 1) + tl.sum(phi * total[None, :], 1)
            state += tl.dot(tl.trans(psi), values, input_precision="ieee")
            total += tl.sum(psi, 0)
        else:
            sums = tl.dot(phi, state, input_precision="ieee")
            weight = tl.sum(phi * total[None, :], 1)
        none = weight == 0.0
        mean = tl.where(none[:, None], 0.0, sums / tl.where(none, 1.0, weight)[:, None])
        written = (rows < t)[:, None] & (e < E)[None, :]
        tl.store(out + rows[:, None] * E + e[None, :], narrowed(mean, out.dtype.element_ty, INTERPRETED), mask=written)


INTERPRETED = not isinstance(_attend, triton.JITFunction)


def _launched(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, kind: str, causal: bool, eps: float) -> Tensor:
    w = projection.to(torch.float32)
    w = torch.cat([w, -w]) if kind == "hyperbolic" else w.contiguous()
    (b, h, t, d), s, e, r = q.shape, k.shape[-2], v.shape[-1], w.shape[0]
    out = torch.empty(b, h, t, e, dtype=q.dtype, device=q.device)
    blocks = [max(16, triton.next_power_of_2(n)) for n in (r, d, e)]
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        _attend[(b * h,)](
            q, k, v, w, out, *q.stride(), *k.stride(), *v.stride(), h, t, s, d**-0.25, eps, r, d, e,
            causal, bool(eps), CHUNK, *blocks, INTERPRETED,
        )  # fmt: skip
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, projection: Tensor, *chosen: Any) -> Tensor:
        ctx.save_for_backward(q, k, v, projection)
        ctx.chosen = chosen
        return _launched(q, k, v, projection, *chosen)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return (*plain.backward(g, *ctx.saved_tensors, *ctx.chosen), None, None, None)


@kernel("performer_attention", form="shifted", requires=("triton",), interpreted=True)
def performer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    *,
    kind: str = "positive",
    causal: bool = False,
    eps: float = 0.0,
) -> Tensor:
    """out[b, h, t, e] of q[b, h, t, d], k[b, h, s, d], v[b, h, s, e], projection[r, d]; the result is contiguous.

    Raises: ValueError as `assay.impl.performer`. NotImplementedError for trigonometric features, for float64, for more
    features, channels or value channels than fit, and where there is neither a GPU nor the interpreter.
    """
    plain.check(q, k, v, projection, kind, causal)
    if kind == "trigonometric":
        raise NotImplementedError("has no trigonometric features")
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise NotImplementedError("takes float32, bfloat16 or float16")
    if max(projection.shape[0] * (2 if kind == "hyperbolic" else 1), q.shape[-1], v.shape[-1]) > WIDEST:
        raise NotImplementedError(f"takes at most {WIDEST} features, channels and value channels")
    if not q.is_cuda and not INTERPRETED:
        raise NotImplementedError("needs a GPU, or TRITON_INTERPRET=1")
    out: Tensor = _Attention.apply(q, k, v, projection, kind, causal, eps)
    return out
